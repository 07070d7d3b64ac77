"""Numbers of tasks by cluster, state, name, queue and worker: exact, from ``task_count``, without reading tasks."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, case, cast, func, select

from celery_monitor.store import schema

_count = schema.task_count.c
_KEY = ("cluster_id", "state", "name_id", "queue_id", "worker_id")


def total(connection: Connection, where: ColumnElement[bool] | None) -> int:
    """Tasks that match a condition on ``task_count``."""
    statement = select(_sum(_count["count"]))
    found: int = connection.execute(statement if where is None else statement.where(where)).scalar_one()
    return found


def by_place(connection: Connection, where: ColumnElement[bool] | None) -> Sequence[Row[Any]]:
    """State, name, queue and the number of matching tasks, where there are any."""
    order = (
        _count.cluster_id,
        _count.state,
        _count.name_id,
        _count.queue_id,
    )  # the primary key, so nothing is sorted
    statement = select(*order[1:], _sum(_count["count"])).where(_count["count"] > 0).group_by(*order)
    return connection.execute(statement if where is None else statement.where(where)).all()


def totals_by(connection: Connection, column: str, where: ColumnElement[bool] | None) -> dict[int, int]:
    """Matching tasks by the numbers in one column."""
    order = _KEY[: _KEY.index(column) + 1]  # the primary key, so nothing is sorted
    statement = select(_count[column], _sum(_count["count"])).where(_count["count"] > 0)
    if column == "worker_id":
        order = (column,)
    if where is not None:
        statement = statement.where(where)
    counts: Counter[int] = Counter()
    for number, count in connection.execute(statement.group_by(*(_count[each] for each in order))).all():
        counts[number] += count
    return counts


@dataclass(frozen=True, slots=True)
class Share:
    """All tasks of a state or a name, and the matching ones."""

    all: int
    matching: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """How matching tasks are spread over states and names."""

    whole: Share
    states: dict[int, Share]
    names: dict[int, Share]


def estimate(connection: Connection, where: ColumnElement[bool]) -> Estimate:
    """All and matching tasks, by state and by name: for plans, so whatever the limits of who asks."""
    matching = _sum(case((where, _count["count"]), else_=0))
    order = (_count.cluster_id, _count.state, _count.name_id)  # the primary key, so nothing is sorted
    statement = select(_count.state, _count.name_id, _sum(_count["count"]), matching).group_by(*order)
    states: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    names: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    whole = {"unlimited": True}
    for state, name, count, found in connection.execute(statement, execution_options=whole).all():
        for sums in (states[state], names[name]):
            sums[0] += count
            sums[1] += found
    total = Share(*map(sum, zip(*states.values(), strict=True))) if states else Share(0, 0)
    return Estimate(total, *({key: Share(*sums) for key, sums in each.items()} for each in (states, names)))


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(column), 0), BigInteger)
