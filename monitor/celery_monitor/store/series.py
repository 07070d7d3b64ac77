"""The course of things over time, and throughput by queue and worker: from rollups, never from tasks."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import msgspec
from sqlalchemy import ColumnElement, Connection, func, select

from celery_monitor.core.quantiles import Sketch
from celery_monitor.errors import InvalidInput
from celery_monitor.records.queue import QueueSample
from celery_monitor.records.receiver import Gap
from celery_monitor.records.series import Bucket, NameTotal, Percentiles, Series, WaitPercentiles
from celery_monitor.records.worker import WorkerStart
from celery_monitor.store import schema
from celery_monitor.store.duration_stats import (
    SINCE_RECEIPT,
    Among,
    Durations,
    Kept,
    Mark,
    NameSums,
    Where,
    joined,
    merged,
    name_sums,
)
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import gaps_between
from celery_monitor.store.schema import UNKNOWN
from celery_monitor.store.tasks.rows import checked_time, cluster_names, numbers_of, term_ids
from celery_monitor.store.terms import texts

RESOLUTIONS = (60, 3600, 86400)
MOST_STARTS = 500
OLD_SECONDS = 5.0  # of hours and days, the sums by name
OPEN_BUCKETS = 2  # the last ones change all the time
MOST_BUCKETS = 750  # by the minute up to half a day, by the hour up to a month
COUNTS = ("received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "lost")
_rollup = schema.rollup.c
_kept: WeakKeyDictionary[Store, Kept] = WeakKeyDictionary()


def resolution_of(since: float, until: float) -> int:
    """The finest that gives a chart no more points than it can show. Raises InvalidInput for an endless span."""
    checked_time(since)
    if not 0 < until - since <= RESOLUTIONS[-1] * MOST_BUCKETS:
        raise InvalidInput("a span of time ends after it begins, and is of two years at most")
    return next(each for each in RESOLUTIONS if (until - since) / each <= MOST_BUCKETS)


def record_began(store: Store) -> float | None:
    """The first minute that charts by the minute can show; ``None`` for an empty record."""
    with store.read() as connection:
        at = connection.execute(select(func.min(_rollup.at)).where(_rollup.resolution == RESOLUTIONS[0])).scalar_one()
    return None if at is None else float(at)


def read_series(
    store: Store,
    *,
    since: float,
    until: float,
    cluster: str | None = None,
    name: str | None = None,
    queue: str | None = None,
    worker: str | None = None,
) -> Series:
    """Counts by outcome, wait and run time, depth and gaps, in equal buckets, the empty ones too."""
    step = resolution_of(since, until)
    with store.read() as connection:
        wanted = _wanted(connection, step, since, until, cluster, {"name": name, "queue": queue, "worker": worker})
        sums = _sums(connection, wanted)
        among: Among = (*numbers_of(connection, cluster), f"{name!r} {queue!r} {worker!r}")
        durations = _durations(connection, _kept.setdefault(store, Kept()), wanted, step, sums, among)
        gaps: list[Gap] = gaps_between(connection, since, until, cluster)
        depth = _depth(connection, step, since, until, cluster, queue)
        began = _starts(connection, since, until, cluster, worker)
    starts = range(int(since // step) * step, int(-(-until // step)) * step, step)
    buckets = [_bucket(at, sums.get(at), durations.get(at)) for at in starts]
    return Series(since=since, until=until, resolution=step, buckets=buckets, gaps=gaps, depth=depth, starts=began)


def _starts(
    connection: Connection, since: float, until: float, cluster: str | None, worker: str | None
) -> list[WorkerStart]:
    """The latest restarts of a span, in order."""
    table = schema.worker_start.c
    names = cluster_names(connection)
    numbers = [number for number, name in names.items() if cluster in {None, name}]
    wanted = [table.cluster_id.in_(numbers), table.at >= since, table.at < until]
    if worker is not None:
        wanted.append(table.hostname == worker)
    statement = select(table.cluster_id, table.hostname, table.at).where(*wanted).order_by(table.at.desc())
    rows = connection.execute(statement.limit(MOST_STARTS)).all()
    return [WorkerStart(cluster=names[row.cluster_id], hostname=row.hostname, at=row.at) for row in reversed(rows)]


class _Sums(NamedTuple):
    """The counts of one bucket, and by what is seen that it has changed."""

    counts: dict[str, int]
    mark: Mark
    since_receipt: int  # of how many starts the wait is counted from receipt


def _bucket(at: int, sums: _Sums | None, durations: Durations | None) -> Bucket:
    if sums is None or durations is None:
        return Bucket(at=at)
    wait = wait_percentiles(durations.wait, sums.since_receipt)
    return Bucket(at=at, **sums.counts, wait=wait, run=percentiles(durations.run))


def percentiles(sketch: Sketch | None) -> Percentiles | None:
    """``None`` where nothing was measured."""
    found = sketch.quantiles((0.5, 0.95, 0.99)) if sketch is not None else None
    return Percentiles(*found) if found else None


def wait_percentiles(sketch: Sketch | None, since_receipt: int) -> WaitPercentiles | None:
    """The same of waits, of which so many are counted from receipt."""
    found = percentiles(sketch)
    if sketch is None or found is None:
        return None
    share = min(1.0, max(0, since_receipt) / sketch.count)
    return WaitPercentiles(found.p50, found.p95, found.p99, share)


def _wanted(
    connection: Connection, step: int, since: float, until: float, cluster: str | None, names: dict[str, str | None]
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        _rollup.resolution == step,
        _rollup.at >= int(since // step) * step,
        _rollup.at < until,
    ]
    if cluster is not None:
        conditions.append(_rollup.cluster_id.in_(numbers_of(connection, cluster)))
    for kind, text in names.items():
        if text is not None:
            conditions.append(_rollup[f"{kind}_id"].in_(term_ids(connection, kind, [text])))
    return conditions


def _sums(connection: Connection, wanted: list[ColumnElement[bool]]) -> dict[int, _Sums]:
    sums = [func.sum(_rollup[each]).label(each) for each in COUNTS]
    sizes = [func.coalesce(func.sum(func.length(_rollup[each])), 0) for each in ("wait", "run")]
    statement = select(_rollup.at, *sums, func.count(), *sizes, SINCE_RECEIPT).where(*wanted).group_by(_rollup.at)
    found = {}
    for at, *numbers in connection.execute(statement).all():
        mark = tuple(int(each) for each in numbers)
        found[at] = _Sums(dict(zip(COUNTS, mark, strict=False)), mark, mark[-1])
    return found


def _durations(
    connection: Connection,
    kept: Kept,
    wanted: list[ColumnElement[bool]],
    step: int,
    sums: dict[int, _Sums],
    among: Among,
) -> dict[int, Durations]:
    """Of each bucket; merged anew only where it has changed since somebody looked."""
    places: dict[int, Where] = {at: (step, at, among) for at in sums}
    known = {at: kept.take(place, sums[at].mark) for at, place in places.items()}
    found = {at: durations for at, durations in known.items() if durations is not None}
    changed = [at for at in sums if at not in found]
    if changed:
        these = [*wanted, _rollup.at >= min(changed), _rollup.at <= max(changed)]
        waits, runs = (merged(connection, these, column, "at") for column in ("wait", "run"))
        for at in changed:
            found[at] = Durations(waits.get(at, Sketch()), runs.get(at, Sketch()))
            kept.put(places[at], sums[at].mark, found[at])
    return found


def _depth(
    connection: Connection, step: int, since: float, until: float, cluster: str | None, queue: str | None
) -> list[QueueSample]:
    """The largest depth of each bucket; of several queues, the sum over them."""
    sample = schema.queue_sample.c
    start = sample.at - sample.at % step
    wanted = [sample.at >= int(since // step) * step, sample.at < until]
    if cluster is not None:
        wanted.append(sample.cluster_id.in_(numbers_of(connection, cluster)))
    if queue is not None:
        wanted.append(sample.name == queue)
    columns = [func.max(sample[each]).label(each) for each in ("ready", "unacked", "consumers")]
    each_queue = (
        select(start.label("at"), *columns, func.min(sample.oldest).label("oldest"))
        .where(*wanted)
        .group_by(start, sample.cluster_id, sample.name)
        .subquery()
    ).c
    total = [func.sum(each_queue[each]).label(each) for each in ("ready", "unacked", "consumers")]
    statement = select(each_queue.at, *total, func.min(each_queue.oldest).label("oldest"))
    rows = connection.execute(statement.group_by(each_queue.at).order_by(each_queue.at))
    return [_sample(row) for row in rows]


def _sample(row: Any) -> QueueSample:
    depths = (row.ready, row.unacked, row.consumers)
    ready, unacked, consumers = (None if each is None else int(each) for each in depths)
    return QueueSample(at=row.at, ready=ready, unacked=unacked, consumers=consumers, oldest=row.oldest)


def most_time(
    store: Store, *, since: float, until: float, cluster: str | None = None, limit: int = 10
) -> list[NameTotal]:
    """The task names that kept workers busy for longest."""
    return _ranked(store, since, until, cluster, limit, lambda each: each.seconds)


def slowest(
    store: Store, *, since: float, until: float, cluster: str | None = None, limit: int = 10
) -> list[NameTotal]:
    """The task names whose 95th percentile of run time is largest."""
    return _ranked(store, since, until, cluster, limit, lambda each: each.run.p95 if each.run else 0.0)


def _ranked(
    store: Store, since: float, until: float, cluster: str | None, limit: int, key: Callable[[NameTotal], float]
) -> list[NameTotal]:
    totals = [each for each in read_name_totals(store, since=since, until=until, cluster=cluster) if each.run]
    return sorted(totals, key=key, reverse=True)[:limit]


def read_name_totals(
    store: Store, *, since: float, until: float, cluster: str | None = None, queue: str | None = None
) -> list[NameTotal]:
    """What the tasks of each name took in a span. By the hour and by the day it may be some seconds old."""
    step = resolution_of(since, until)
    place = (step, int(since // step), int(until // step), cluster, queue)
    kept = _kept.setdefault(store, Kept())
    fresh = time.monotonic() - OLD_SECONDS
    totals = kept.take_totals(place, fresh) if step > RESOLUTIONS[0] else None
    if totals is None:
        totals = _name_totals(store, since, until, cluster, queue)
        kept.put_totals(place, time.monotonic(), totals)
    return totals


def sums_of_names(
    store: Store, names: Iterable[str], *, since: float, until: float, cluster: str | None = None
) -> dict[str, NameSums]:
    """The same for a few names, by name: what others took is not read."""
    with store.read() as connection:
        these = _rollup.name_id.in_(term_ids(connection, "name", names))
        wanted = _wanted(connection, resolution_of(since, until), since, until, cluster, {})
        found = name_sums(connection, [*wanted, these])
        told = texts(connection, found)
    return {told[key]: sums for key, sums in found.items()}


def _name_totals(store: Store, since: float, until: float, cluster: str | None, queue: str | None) -> list[NameTotal]:
    step = resolution_of(since, until)
    with store.read() as connection:
        wanted = _wanted(connection, step, since, until, cluster, {"queue": queue})
        sums = _sums(connection, wanted)
        found = _by_name(connection, _kept.setdefault(store, Kept()), wanted, sums, (step, cluster, queue))
        names = texts(connection, found)
    return [
        NameTotal(
            name=names.get(key),
            runs=each.runs,
            failed=each.failed,
            seconds=each.durations.run.total,
            run=percentiles(each.durations.run),
            wait=wait_percentiles(each.durations.wait, each.since_receipt),
        )
        for key, each in found.items()
    ]


def _by_name(
    connection: Connection,
    kept: Kept,
    wanted: list[ColumnElement[bool]],
    sums: dict[int, _Sums],
    span: tuple[int, str | None, str | None],
) -> dict[int, NameSums]:
    """Most buckets are closed: what they came to is kept together, until one of them changes or leaves the span."""
    closed = sorted(sums)[:-OPEN_BUCKETS]
    mark = tuple((at, *sums[at].mark) for at in closed)
    border = closed[-1] if closed else -1
    older = kept.take_names(span, mark)
    if older is None:
        older = name_sums(connection, [*wanted, _rollup.at <= border])
        kept.put_names(span, mark, older)
    return joined(older, name_sums(connection, [*wanted, _rollup.at > border]))


RESOLUTION = 60
Key = tuple[str, str]  # cluster, name of the queue or worker


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """Runs in a span of time: how many workers took, and how those that ended did."""

    taken: int = 0
    succeeded: int = 0
    failed: int = 0

    @property
    def failure_share(self) -> float | None:
        """Failed among those that succeeded or failed; ``None`` where none did."""
        ended = self.succeeded + self.failed
        return self.failed / ended if ended else None


class Flows(msgspec.Struct, frozen=True, kw_only=True):
    """Flow by cluster and name. ``unnamed`` are runs whose queue or worker is not known."""

    seconds: float
    by_key: dict[Key, Flow]
    unnamed: int = 0

    def of(self, cluster: str, name: str) -> Flow | None:
        """``None`` where nothing is recorded and some runs are of no known place: theirs could be this one."""
        found = self.by_key.get((cluster, name))
        return found if found is not None or self.unnamed else Flow()


def read_flows(
    store: Store, by: Literal["queue", "worker"], *, since: float, now: float, cluster: str | None = None
) -> Flows:
    """Runs by queue or by worker from the minute of ``since`` on; for spans of up to some hours."""
    table = schema.rollup
    place = table.c.queue_id if by == "queue" else table.c.worker_id
    began = int(since // RESOLUTION * RESOLUTION)
    sums = [func.sum(table.c[name]).label(name) for name in ("received", "succeeded", "failed")]
    statement = select(table.c.cluster_id, place.label("place"), *sums).where(
        table.c.resolution == RESOLUTION, table.c.at >= began
    )
    with store.read() as connection:
        clusters = _clusters_of_flows(connection, cluster)
        rows = connection.execute(
            statement.where(table.c.cluster_id.in_(clusters)).group_by(table.c.cluster_id, place)
        ).all()
        names = texts(connection, [row.place for row in rows])
    # Of a record that is younger than the span no more is known than since it began.
    known = max(began, record_began(store) or 0.0)
    return Flows(
        seconds=max(1.0, now - known),
        by_key={
            (clusters[row.cluster_id], names[row.place]): Flow(
                taken=row.received, succeeded=row.succeeded, failed=row.failed
            )
            for row in rows
            if row.place in names
        },
        unnamed=sum(row.received for row in rows if row.place == UNKNOWN),
    )


def read_waits(store: Store, *, since: float, cluster: str | None = None) -> dict[Key, WaitPercentiles]:
    """How long tasks waited, by the queue they came from, from the minute of ``since`` on."""
    table = schema.rollup.c
    began = int(since // RESOLUTION * RESOLUTION)
    found: dict[tuple[str, int], WaitPercentiles | None] = {}
    with store.read() as connection:
        for number, name in _clusters_of_flows(connection, cluster).items():
            wanted = [table.resolution == RESOLUTION, table.at >= began, table.cluster_id == number]
            sketches = merged(connection, wanted, "wait", "queue_id")
            counts = select(table.queue_id, SINCE_RECEIPT.label("starts")).where(*wanted).group_by(table.queue_id)
            since_receipt = {row.queue_id: int(row.starts) for row in connection.execute(counts)}
            for queue, sketch in sketches.items():
                found[name, queue] = wait_percentiles(sketch, since_receipt[queue])
        names = texts(connection, {queue for _, queue in found})
    return {(name, names[queue]): each for (name, queue), each in found.items() if each is not None and queue in names}


def read_depths(store: Store, *, since: float, cluster: str | None = None) -> dict[Key, list[QueueSample]]:
    """The samples of every queue from ``since`` on, in order."""
    table = schema.queue_sample
    found: dict[Key, list[QueueSample]] = defaultdict(list)
    with store.read() as connection:
        clusters = _clusters_of_flows(connection, cluster)
        statement = (
            select(table)
            .where(table.c.cluster_id.in_(clusters), table.c.at >= int(since))
            .order_by(table.c.cluster_id, table.c.name, table.c.at)
        )
        for row in connection.execute(statement).all():
            sample = QueueSample(
                at=row.at, ready=row.ready, unacked=row.unacked, consumers=row.consumers, oldest=row.oldest
            )
            found[clusters[row.cluster_id], row.name].append(sample)
    return dict(found)


def _clusters_of_flows(connection: Connection, only: str | None) -> dict[int, str]:
    rows = connection.execute(select(schema.cluster.c.id, schema.cluster.c.name))
    return {row.id: row.name for row in rows if only is None or row.name == only}
