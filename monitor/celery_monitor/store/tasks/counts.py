"""``task_count``: tasks by cluster, state, name, queue and worker. Small and exact; never a scan of tasks."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, case, cast, func, select

from celery_monitor.store import schema

_cube = schema.task_count.c
_KEY = ("cluster_id", "state", "name_id", "queue_id", "worker_id")


def total(connection: Connection, where: ColumnElement[bool] | None) -> int:
    """Tasks that match a condition on the cube."""
    statement = select(_sum(_cube["count"]))
    found: int = connection.execute(statement if where is None else statement.where(where)).scalar_one()
    return found


def by_place(connection: Connection, where: ColumnElement[bool] | None) -> Sequence[Row[Any]]:
    """State, name, queue and the number of such tasks, for every place that has some that match."""
    order = (_cube.cluster_id, _cube.state, _cube.name_id, _cube.queue_id)  # of the key: so nothing is sorted
    statement = select(*order[1:], _sum(_cube["count"])).where(_cube["count"] > 0).group_by(*order)
    return connection.execute(statement if where is None else statement.where(where)).all()


def totals_by(connection: Connection, column: str, where: ColumnElement[bool] | None) -> dict[int, int]:
    """Tasks that match, by the numbers in one column. Several groups of the key become one value here."""
    order = _KEY[: _KEY.index(column) + 1]  # of the key: so nothing is sorted
    statement = select(_cube[column], _sum(_cube["count"])).where(_cube["count"] > 0)
    if column == "worker_id":
        order = (column,)
    if where is not None:
        statement = statement.where(where)
    counts: Counter[int] = Counter()
    for number, count in connection.execute(statement.group_by(*(_cube[each] for each in order))).all():
        counts[number] += count
    return counts


@dataclass(frozen=True, slots=True)
class Share:
    """How many tasks of a state or a name there are, and how many of them match."""

    all: int
    matching: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Where the tasks that match are to be found."""

    whole: Share
    states: dict[int, Share]
    names: dict[int, Share]


def estimate(connection: Connection, where: ColumnElement[bool]) -> Estimate:
    """Counts by state and by name, beside those that match the condition."""
    matching = _sum(case((where, _cube["count"]), else_=0))
    order = (_cube.cluster_id, _cube.state, _cube.name_id)  # of the key: so nothing is sorted
    statement = select(_cube.state, _cube.name_id, _sum(_cube["count"]), matching).group_by(*order)
    states: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    names: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for state, name, count, found in connection.execute(statement).all():
        for sums in (states[state], names[name]):
            sums[0] += count
            sums[1] += found
    whole = Share(*map(sum, zip(*states.values(), strict=True))) if states else Share(0, 0)
    return Estimate(whole, *({key: Share(*sums) for key, sums in each.items()} for each in (states, names)))


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(column), 0), BigInteger)
