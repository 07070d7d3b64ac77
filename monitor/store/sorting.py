"""Lists in another order than by time: made of the newest rows on the path, and said to be where that is not all."""

from dataclasses import replace

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Double
from sqlalchemy import cast
from sqlalchemy import collate
from sqlalchemy import func
from sqlalchemy import literal
from sqlalchemy import select
from sqlalchemy import tuple_

from monitor.records import Count
from monitor.records import Page
from monitor.records import Task
from monitor.store import schema
from monitor.store.compile import WAIT
from monitor.store.cursors import Cursor
from monitor.store.cursors import write_cursor
from monitor.store.load import load_tasks
from monitor.store.paths import Path
from monitor.store.walk import floor_of
from monitor.store.walk import positions

_task = schema.task.c
_MEASURES: dict[str, ColumnElement[float]] = {
    "state": _task.state,
    "runtime": _task.runtime,
    "wait": WAIT,
    "retries": _task.retries,
    "sent": _task.sent,
    "started": _task.started,
    "finished": _task.ended,
}
NAME_SORTS = ("name", "queue", "worker")
SORTS = (*NAME_SORTS, *_MEASURES)
_FARTHEST = 1e300  # what is unknown comes last in both directions


def sorted_page(
    connection: Connection,
    path: Path,
    sort: str,
    limit: int,
    place: Cursor | None,
    count: Count,
    *,
    tracebacks: bool = False,
) -> Page[Task]:
    """A page of the newest rows in the order of ``sort``. The cursor keeps which rows those are."""
    floor = place.floor if place else floor_of(connection, replace(path, bounded=True))
    rows = positions(path, path.budget, floor=floor).subquery()
    descending, forward = sort.startswith("-"), place is None or place.direction == "next"
    key = _key(sort.removeprefix("-"), descending, connection.dialect.name == "sqlite")
    statement = select(key.label("key"), _task.id).join(rows, rows.c.id == _task.id)
    down = descending == forward
    if place is not None:
        at = tuple_(literal(place.key, key.type), literal(place.id, _task.id.type))
        here = tuple_(key, _task.id)
        statement = statement.where(here < at if down else here > at)
    order = (key.desc(), _task.id.desc()) if down else (key.asc(), _task.id.asc())
    found = connection.execute(statement.order_by(*order).limit(limit + 1)).all()
    more, found = len(found) > limit, found[:limit]
    if not forward:
        found = found[::-1]
    ends = {
        "next": found[-1] if found and (more or not forward) else None,
        "previous": found[0] if found and (more if not forward else place is not None) else None,
    }
    cursors = {
        direction: write_cursor(Cursor(sort, direction, row.key, row.id, floor)) if row else None  # type: ignore[arg-type]
        for direction, row in ends.items()
    }
    items = load_tasks(connection, [row.id for row in found], tracebacks=tracebacks)
    return Page(items=items, count=count, searched=Count(path.budget) if floor else None, **cursors)


def _key(name: str, descending: bool, is_sqlite: bool) -> ColumnElement[float] | ColumnElement[str]:
    """The value to sort by, never NULL, in the same order on both databases."""
    if name in _MEASURES:
        last = -_FARTHEST if descending else _FARTHEST
        return func.coalesce(cast(_MEASURES[name], Double), last)
    term = schema.term.c
    text = select(term.text).where(term.id == _task[f"{name}_id"]).scalar_subquery()
    return collate(func.coalesce(text, ""), "BINARY" if is_sqlite else "C")
