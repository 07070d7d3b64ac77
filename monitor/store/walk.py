"""Walking a path: rows as (seen, id), newest first or oldest first, a page at a time, never more than a budget."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Select
from sqlalchemy import func
from sqlalchemy import literal
from sqlalchemy import select
from sqlalchemy import tuple_
from sqlalchemy import union
from sqlalchemy import union_all

from monitor.store import schema
from monitor.store.compile import numbers
from monitor.store.paths import Path

Position = tuple[float, int]  # of a row in the list: (seen, id)
_task = schema.task.c
_place = tuple_(_task.seen, _task.id)


def steer(connection: Connection) -> None:
    """PostgreSQL would now and then rather read everything and sort; its guess does not know where we stop."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off"
        )


def positions(
    path: Path,
    limit: int,
    *,
    after: Position | None = None,
    before: Position | None = None,
    floor: Position | None = None,
    also: Sequence[ColumnElement[Any]] = (),
) -> Select[Any]:
    """Rows on the path that match, newest first: those older than ``after``, or the nearest newer than ``before``.

    Each is (seen, id) and, read on the same way, what else of the task is asked for.
    """
    branches = [_branch(path, each, limit, after, before, floor) for each in path.branches]
    if path.besides and floor is not None:
        branches.append(_branch(path, numbers(_task.id, path.besides), limit, after, before, None))
    branches = [each.add_columns(*also) for each in branches]
    if not branches:
        return select(_task.seen, _task.id, *also).where(literal(value=False))
    if len(branches) == 1:
        return branches[0]
    join = union if path.besides else union_all  # only the rows besides can be on another branch too
    rows = join(*(select(each.subquery()) for each in branches)).subquery()
    return select(*rows.c).order_by(*_order(rows.c.seen, rows.c.id, before)).limit(limit)


def _branch(
    path: Path,
    branch: ColumnElement[bool],
    limit: int,
    after: Position | None,
    before: Position | None,
    floor: Position | None,
) -> Select[tuple[float, int]]:
    statement = select(_task.seen, _task.id).where(branch)
    if path.where is not None:
        statement = statement.where(path.where)
    if after is not None:
        statement = statement.where(_place < _at(after))
    if before is not None:
        statement = statement.where(_place > _at(before))
    if floor is not None:  # a ceiling when the walk goes up
        statement = statement.where(_place >= _at(floor) if before is None else _place <= _at(floor))
    if path.low is not None:
        statement = statement.where(_task.seen >= path.low.value)
    if path.high is not None:
        statement = statement.where(_task.seen <= path.high.value)
    return statement.order_by(*_order(_task.seen, _task.id, before)).limit(limit)


def _at(position: Position) -> ColumnElement[tuple[float, int]]:
    return tuple_(literal(position[0], schema.task.c.seen.type), literal(position[1], schema.task.c.id.type))


def _order(
    seen: ColumnElement[float], key: ColumnElement[int], before: Position | None
) -> tuple[ColumnElement[float], ColumnElement[int]]:
    return (seen.desc(), key.desc()) if before is None else (seen.asc(), key.asc())


def floor_of(
    connection: Connection, path: Path, *, after: Position | None = None, before: Position | None = None
) -> Position | None:
    """Where looking must stop so that the path's budget is kept; ``None``: it may go to the end.

    With several branches each has its share, and the nearest stop counts: the others then have fewer rows to there.
    """
    if not path.bounded or not path.branches:
        return None
    plain = replace(path, where=None, besides=frozenset())
    share = path.budget // len(path.branches)
    stops = []
    for each in path.branches:
        one = replace(plain, branches=(each,))
        statement = positions(one, 1, after=after, before=before).offset(share)
        stops += [(row.seen, row.id) for row in connection.execute(statement)]
    return (max if before is None else min)(stops, default=None)


def number(connection: Connection, path: Path, most: int, floor: Position | None) -> int:
    """How many rows match, counted up to ``most`` + 1."""
    rows = positions(path, most + 1, floor=floor).subquery()
    return connection.execute(select(func.count()).select_from(rows)).scalar_one()
