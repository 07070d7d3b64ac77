"""Lists of tasks: a page, its count, and how far was searched."""

from typing import NamedTuple

from sqlalchemy import Connection

from monitor.errors import InvalidInput
from monitor.filters import Filter
from monitor.records import Count
from monitor.records import Page
from monitor.records import Task
from monitor.store import cube
from monitor.store.cursors import Cursor
from monitor.store.cursors import read_cursor
from monitor.store.cursors import write_cursor
from monitor.store.engine import Store
from monitor.store.load import load_tasks
from monitor.store.paths import Path
from monitor.store.paths import choose
from monitor.store.sorting import NAME_SORTS
from monitor.store.sorting import SORTS
from monitor.store.sorting import sorted_page
from monitor.store.walk import Position
from monitor.store.walk import floor_of
from monitor.store.walk import number
from monitor.store.walk import positions
from monitor.store.walk import steer

COUNT_LIMIT = 10_000
MOST_ROWS = 1000
NEWEST_FIRST = "-received"
OLDEST_FIRST = "received"


def tasks(
    store: Store,
    filter: Filter,  # noqa: A002
    *,
    sort: str = NEWEST_FIRST,
    limit: int = 50,
    cursor: str | None = None,
    tracebacks: bool = False,
) -> Page[Task]:
    """One page of the tasks that match, with their count. Each has its latest run only.

    Tracebacks may be many megabytes in all: without ``tracebacks`` they are left out, as if there were none.

    ``sort`` is a key of SORTS, descending with ``-`` before it. Raises InvalidInput for a cursor, sort or limit
    that cannot be.
    """
    if sort.removeprefix("-") not in {"received", *SORTS}:
        known = ", ".join(["received", *SORTS])
        raise InvalidInput(f"tasks cannot be sorted by {sort!r}; known are {known}, each with - for descending")
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidInput(f"a page has 1 to {MOST_ROWS} tasks, not {limit}")
    place = read_cursor(cursor, sort, by_text=sort.removeprefix("-") in NAME_SORTS) if cursor is not None else None
    with store.read() as connection:
        steer(connection)
        path = choose(connection, filter, limit + 1)
        if sort.removeprefix("-") != "received":
            return sorted_page(connection, path, sort, limit, place, _count(connection, path), tracebacks=tracebacks)
        counting = place is None and path.cube is None  # then the page and its count are one walk
        most = COUNT_LIMIT if counting else limit
        found = _find(connection, path, limit, place, most=most, newest_first=sort == NEWEST_FIRST)
        return Page(
            items=load_tasks(connection, [row for _, row in found.rows], tracebacks=tracebacks),
            next=_cursor(sort, "next", found.next),
            previous=_cursor(sort, "previous", found.previous),
            count=_capped(found.total, found.floor) if counting else _count(connection, path),
            searched=Count(path.budget) if found.cut else None,
        )


def count(store: Store, filter: Filter) -> Count:  # noqa: A002
    """How many tasks match: exact where the counters answer it, else counted up to 10,000."""
    with store.read() as connection:
        steer(connection)
        return _count(connection, choose(connection, filter, COUNT_LIMIT))


def _count(connection: Connection, path: Path) -> Count:
    if path.matching is not None:
        return Count(path.matching)
    if path.cube is not None:
        return Count(cube.total(connection, path.cube))
    floor = floor_of(connection, path)
    return _capped(number(connection, path, COUNT_LIMIT, floor), floor)


def _capped(found: int, floor: Position | None) -> Count:
    return Count(min(found, COUNT_LIMIT), exact=floor is None and found <= COUNT_LIMIT)


class Found(NamedTuple):
    """``total`` rows were found, of which ``rows`` are the page; the walk ended at ``floor``."""

    rows: list[Position]
    next: Position | None
    previous: Position | None
    cut: bool
    total: int
    floor: Position | None


def find(connection: Connection, path: Path, limit: int, after: Position | None) -> Found:
    """The newest rows that match, those older than ``after``."""
    place = None if after is None else Cursor(NEWEST_FIRST, "next", *after)
    return _find(connection, path, limit, place, most=limit, newest_first=True)


def _find(
    connection: Connection, path: Path, limit: int, place: Cursor | None, *, most: int, newest_first: bool
) -> Found:
    """The rows of a page in the order they are shown, and where the pages beside it begin.

    A walk is towards older rows or towards newer ones; the list's order and the cursor's direction decide.
    """
    older = newest_first == (place is None or place.direction == "next")
    at: Position | None = (float(place.key), place.id) if place else None
    if at is None and not older:
        at = (float("-inf"), -1)
    after, before = (at, None) if older else (None, at)
    floor = floor_of(connection, path, after=after, before=before)
    statement = positions(path, most + 1, after=after, before=before, floor=floor)
    rows = [(row.seen, row.id) for row in connection.execute(statement)]
    total = len(rows)
    more, cut = total > limit, total <= limit and floor is not None
    rows = rows[:limit]
    far = rows[-1] if more else floor if cut else None
    near = (rows[0] if rows else at) if place is not None else None
    forward = older == newest_first
    if not forward:
        rows = rows[::-1]
    return Found(rows, *((far, near) if forward else (near, far)), cut, total, floor)


def _cursor(sort: str, direction: str, position: Position | None) -> str | None:
    if position is None:
        return None
    return write_cursor(Cursor(sort, direction, position[0], position[1]))  # type: ignore[arg-type]
