"""Failure groups: counts over time and by worker, variants, and states."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Subquery,
    and_,
    case,
    func,
    literal_column,
    select,
    union_all,
    update,
)

from celery_monitor.errors import NotFound
from celery_monitor.records.failure import (
    FailureCounts,
    FailureGroup,
    FailureState,
    FailureSummary,
    FailureTrend,
    FailureVariant,
    FailureWindows,
)
from celery_monitor.records.task import Task
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import UNKNOWN
from celery_monitor.store.tasks.rows import load_tasks
from celery_monitor.store.terms import checked_time, cluster_ids, cluster_names, texts

UNRESOLVED = (FailureState.OPEN, FailureState.REGRESSED)
MOST_STEPS = 30
TREND_STEPS = (60, 120, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400)
_HOUR = 3600
_DAY = 86400
_COPIED = ("id", "name", "exception_type", "frame", "first_seen", "last_seen", "state_at")
_group = schema.failure_group
_rollup = schema.failure_rollup.c
_task = schema.task.c


def read_failure_groups(
    store: Store,
    *,
    since: float,
    cluster: str | None = None,
    states: Sequence[FailureState] | None = None,
    limit: int = 50,
) -> list[FailureGroup]:
    """Groups with failures since then, the most frequent first; ``count`` is since then."""
    with store.read() as connection:
        return _groups(connection, since, cluster, states, limit)


def read_new_failure_groups(
    store: Store, *, since: float, cluster: str | None = None, limit: int = 50
) -> list[FailureGroup]:
    """Unresolved groups that first failed or regressed since then, the newest first."""
    first, wanted = _new_since(since)
    with store.read() as connection:
        numbers = cluster_ids(connection, cluster)
        statement = select(_group).where(wanted, _group.c.cluster_id.in_(numbers)).order_by(first.desc()).limit(limit)
        names = cluster_names(connection)
        rows = connection.execute(statement).all()
        found = _variants(connection, [row.id for row in rows])
        return [_record(row, names, int(row._mapping["count"]), found) for row in rows]


def count_new_groups(store: Store, cluster: str, *, since: float) -> int:
    """How many ``read_new_failure_groups`` would find."""
    with store.read() as connection:
        mine = _group.c.cluster_id.in_(cluster_ids(connection, cluster))
        return connection.execute(select(func.count(_group.c.id)).where(_new_since(since)[1], mine)).scalar_one()


def _new_since(since: float) -> tuple[ColumnElement[float], ColumnElement[bool]]:
    first = case((_group.c.state == FailureState.REGRESSED.value, _group.c.state_at), else_=_group.c.first_seen)
    return first, and_(_group.c.state.in_([state.value for state in UNRESOLVED]), first >= since)


def read_failure_summaries(
    store: Store,
    *,
    since: float,
    now: float,
    cluster: str | None = None,
    states: Sequence[FailureState] | None = None,
    limit: int = 50,
) -> list[FailureSummary]:
    """Groups with failures since then, with counts of an hour, a day and a week, trend and affected workers."""
    with store.read() as connection:
        groups = _groups(connection, since, cluster, states, limit)
        found = _windows(connection, [group.id for group in groups], since, now)
    return [FailureSummary(group=group, windows=found[group.id]) for group in groups]


def read_failure_summary(store: Store, id: int, *, since: float, now: float) -> FailureSummary:  # noqa: A002
    """One group with its windows; ``count`` has all its failures. Raises NotFound."""
    group = read_failure_group(store, id)
    with store.read() as connection:
        return FailureSummary(group=group, windows=_windows(connection, [id], since, now)[id])


def read_failure_group(store: Store, id: int) -> FailureGroup:  # noqa: A002
    """One group; ``count`` has all its failures. Raises NotFound."""
    with store.read() as connection:
        row = connection.execute(select(_group).where(_group.c.id == id)).first() if 0 < id < 2**31 else None
        names = cluster_names(connection)
        found = _variants(connection, [id] if row is not None else [])
    if row is None:
        raise NotFound(f"there is no failure group {id}", id=id)
    return _record(row, names, row._mapping["count"], found)


def read_group_states(store: Store, *, since: float, cluster: str | None = None) -> dict[FailureState, int]:
    """The number of groups with failures since then, by state; every state is there."""
    with store.read() as connection:
        counts = _counts_since(since)
        statement = select(_group.c.state, func.count()).join(counts, counts.c.group_id == _group.c.id)
        if cluster is not None:
            statement = statement.where(_group.c.cluster_id.in_(cluster_ids(connection, cluster)))
        found = {row[0]: row[1] for row in connection.execute(statement.group_by(_group.c.state))}
    return {state: found.get(state.value, 0) for state in FailureState}


def read_group_numbers(store: Store, cluster: str) -> dict[FailureState, int]:
    """The number of all groups of a cluster, by state; every state is there."""
    with store.read() as connection:
        mine = _group.c.cluster_id.in_(cluster_ids(connection, cluster))
        rows = connection.execute(select(_group.c.state, func.count()).where(mine).group_by(_group.c.state)).all()
    found = {row[0]: row[1] for row in rows}
    return {state: found.get(state.value, 0) for state in FailureState}


def read_failure_counts(store: Store, *, since: float, cluster: str | None = None) -> FailureCounts:
    """Failures of all groups since then, by state of the group."""
    with store.read() as connection:
        counts = _counts_since(since)
        statement = select(_group.c.state, func.sum(counts.c.recent)).join(counts, counts.c.group_id == _group.c.id)
        if cluster is not None:
            statement = statement.where(_group.c.cluster_id.in_(cluster_ids(connection, cluster)))
        found = {row[0]: int(row[1]) for row in connection.execute(statement.group_by(_group.c.state))}
    return FailureCounts(
        open=sum(found.get(state.value, 0) for state in UNRESOLVED),
        muted=found.get(FailureState.MUTED.value, 0),
        resolved=found.get(FailureState.RESOLVED.value, 0),
    )


def read_open_groups(store: Store, *, since: float, cluster: str | None = None) -> int:
    """The number of unresolved groups with failures since then, without reading roll-ups."""
    recent = _group.c.last_seen >= checked_time(since) // 60 * 60  # the minute, as in the list
    statement = select(func.count()).where(recent, _group.c.state.in_([state.value for state in UNRESOLVED]))
    with store.read() as connection:
        if cluster is not None:
            statement = statement.where(_group.c.cluster_id.in_(cluster_ids(connection, cluster)))
        return connection.execute(statement).scalar_one()


def read_failure_trend(store: Store, id: int, *, since: float, until: float) -> FailureTrend:  # noqa: A002
    """Failures of one group over time, and by worker."""
    step = trend_step(since, until)
    wanted = (*_span(step, since, until), _rollup.group_id == id)
    total = func.sum(_rollup["count"])
    with store.read() as connection:
        statement = select(_start(step), total).where(*wanted).group_by(_start(step))
        by_time = {row[0]: int(row[1]) for row in connection.execute(statement)}
        by_worker = select(_rollup.worker_id, total.label("n")).where(*wanted).group_by(_rollup.worker_id)
        rows = [row for row in connection.execute(by_worker) if row.n]
        names = texts(connection, [row.worker_id for row in rows])
    at = _starts(step, since, until)
    workers = [(names.get(row.worker_id), int(row.n)) for row in rows]
    return FailureTrend(
        since=since,
        until=until,
        step=step,
        at=tuple(at),
        counts=tuple(by_time.get(each, 0) for each in at),
        by_worker=tuple(sorted(workers, key=lambda each: (-each[1], each[0] or ""))),
    )


def read_latest_failure(store: Store, id: int, limit: int) -> list[Task]:  # noqa: A002
    """The latest recorded tasks with this failure, without tracebacks."""
    with store.read() as connection:
        newest = select(_task.id).where(_task.failure_group_id == id).order_by(_task.sort_time.desc(), _task.id.desc())
        return load_tasks(connection, list(connection.execute(newest.limit(limit)).scalars()))


def set_failure_state(store: Store, id: int, state: FailureState, at: float) -> None:  # noqa: A002
    """Sets the state of a group."""
    with store.begin() as connection:
        connection.execute(update(_group).where(_group.c.id == id).values(state=state.value, state_at=at))


def trend_step(since: float, until: float) -> int:
    """Seconds per step of a trend: the finest with at most MOST_STEPS steps."""
    return next((step for step in TREND_STEPS if (until - since) / step <= MOST_STEPS), TREND_STEPS[-1])


def _groups(
    connection: Connection, since: float, cluster: str | None, states: Sequence[FailureState] | None, limit: int
) -> list[FailureGroup]:
    counts = _counts_since(since)
    statement = select(_group, counts.c.recent).join(counts, counts.c.group_id == _group.c.id)
    if cluster is not None:
        statement = statement.where(_group.c.cluster_id.in_(cluster_ids(connection, cluster)))
    if states is not None:
        statement = statement.where(_group.c.state.in_([state.value for state in states]))
    order = (counts.c.recent.desc(), _group.c.last_seen.desc(), _group.c.id)
    rows = connection.execute(statement.order_by(*order).limit(limit)).all()
    names = cluster_names(connection)
    found = _variants(connection, [row.id for row in rows])
    return [_record(row, names, int(row.recent), found) for row in rows]


def _variants(connection: Connection, groups: Sequence[int]) -> dict[int, tuple[FailureVariant, ...]]:
    """Variants with failures by group, the most frequent first, that of all others last."""
    table = schema.failure_variant.c
    statement = select(schema.failure_variant).where(table.group_id.in_(groups), table["count"] > 0)
    order = (table.message == "", table["count"].desc(), table.message)
    found: dict[int, list[FailureVariant]] = defaultdict(list)
    for row in connection.execute(statement.order_by(*order)) if groups else ():
        found[row.group_id].append(FailureVariant(message=row.message or None, count=row._mapping["count"]))
    return {group: tuple(variants) for group, variants in found.items()}


def _counts_since(since: float, groups: Sequence[int] | None = None) -> Subquery:
    """Failures and workers by group: whole days and hours from coarser roll-ups, the beginning by the minute."""
    checked_time(since)
    hour, day = math.ceil(since / _HOUR) * _HOUR, math.ceil(since / _DAY) * _DAY
    spans = (
        and_(_rollup.resolution == 60, _rollup.at >= since // 60 * 60, _rollup.at < hour),
        and_(_rollup.resolution == _HOUR, _rollup.at >= hour, _rollup.at < day),
        and_(_rollup.resolution == _DAY, _rollup.at >= day),
    )
    columns = (_rollup.group_id, _rollup.worker_id, _rollup["count"].label("count"))
    only: tuple[ColumnElement[bool], ...] = () if groups is None else (_rollup.group_id.in_(groups),)
    each = union_all(*(select(*columns).where(span, _rollup["count"] > 0, *only) for span in spans)).subquery().c
    worker = case((each.worker_id != UNKNOWN, each.worker_id))
    sums = (func.sum(each["count"]).label("recent"), func.count(worker.distinct()).label("workers"))
    return select(each.group_id, *sums).group_by(each.group_id).subquery()


def _windows(connection: Connection, groups: list[int], since: float, now: float) -> dict[int, FailureWindows]:
    if not groups:
        return {}
    found: dict[int, dict[str, Any]] = {group: {} for group in groups}
    for name, seconds in (("hour", _HOUR), ("day", _DAY), ("week", 7 * _DAY)):
        for row in connection.execute(select(_counts_since(now - seconds, groups))):
            found[row.group_id][name] = int(row.recent)
    for row in connection.execute(select(_counts_since(since, groups))):
        found[row.group_id]["workers"] = row.workers
    for group, trend in _trends(connection, groups, since, now).items():
        found[group]["trend"] = trend
    return {group: FailureWindows(**values) for group, values in found.items()}


def _trends(connection: Connection, groups: list[int], since: float, now: float) -> dict[int, tuple[int, ...]]:
    step = trend_step(since, now)
    sums: dict[int, dict[int, int]] = defaultdict(dict)
    statement = (
        select(_rollup.group_id, _start(step).label("start"), func.sum(_rollup["count"]).label("n"))
        .where(*_span(step, since, now), _rollup.group_id.in_(groups))
        .group_by(_rollup.group_id, _start(step))
    )
    for row in connection.execute(statement):
        sums[row.group_id][row.start] = int(row.n)
    at = _starts(step, since, now)
    return {group: tuple(sums[group].get(each, 0) for each in at) for group in groups}


def _span(step: int, since: float, until: float) -> tuple[ColumnElement[bool], ...]:
    resolution = next(each for each in (_DAY, _HOUR, 60) if step % each == 0)
    return _rollup.resolution == resolution, _rollup.at >= int(since // step) * step, _rollup.at < until


def _start(step: int) -> ColumnElement[int]:
    # A literal: PostgreSQL does not take two parameters, in SELECT and in GROUP BY, for the same value.
    return _rollup.at - _rollup.at % literal_column(str(step))


def _starts(step: int, since: float, until: float) -> list[int]:
    return list(range(int(since // step) * step, math.ceil(until / step) * step, step))


def _record(
    row: Row[Any], names: dict[int, str], count: int, variants: dict[int, tuple[FailureVariant, ...]]
) -> FailureGroup:
    """A group with a single variant has the message of that."""
    mine = variants.get(row.id, ())
    alone = mine[0].message if len(mine) == 1 else None
    return FailureGroup(
        **{name: getattr(row, name) for name in _COPIED},
        cluster=names[row.cluster_id],
        message=alone or row.message,
        variants=mine,
        count=count,
        state=FailureState(row.state),
    )
