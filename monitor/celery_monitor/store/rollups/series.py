"""Charts and totals by task name over time, from roll-ups, never from tasks.

Most sketches of a minute hold one or two durations, so many are equal: the database counts equal ones, each is decoded
once, and the merged sketch of a bucket is cached while its counts stay.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, func, select

from celery_monitor.core.quantiles import Sketch
from celery_monitor.errors import InvalidInput
from celery_monitor.records.queue import QueueSample
from celery_monitor.records.receiver import Gap
from celery_monitor.records.series import Bucket, NameTotal, Percentiles, Series, WaitPercentiles
from celery_monitor.records.worker import WorkerStart
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import gaps_between
from celery_monitor.store.rollups.counters import COUNT_FIELDS, RESOLUTIONS
from celery_monitor.store.terms import checked_time, cluster_ids, cluster_names, term_ids, texts

MOST_STARTS = 500
CACHE_SECONDS = 5.0  # totals by name, by the hour and by the day
DEPTH_SECONDS = 60.0  # depths of closed buckets, which only retention changes
OPEN_BUCKETS = 2  # the last buckets change all the time
MOST_BUCKETS = 750  # by the minute up to half a day, by the hour up to a month
MOST_CACHED = 4000
MOST_SPANS = 16
_SMALL = 64  # bytes of a sketch that is likely to repeat
_rollup = schema.rollup.c
K = TypeVar("K")
V = TypeVar("V")

Scope = tuple[int | str, ...]  # clusters and other conditions
BucketKey = tuple[int, int, Scope]  # resolution, start of the bucket
Fingerprint = tuple[int, ...]  # of a bucket: its counts, and the sizes of its sketches


class Durations(NamedTuple):
    """Wait and run times in one bucket."""

    wait: Sketch
    run: Sketch


# Before migration 0010 every wait was counted from receipt.
SINCE_RECEIPT = func.sum(func.coalesce(_rollup.since_receipt, _rollup.started))


class NameSums(NamedTuple):
    """Sums of the tasks of one name over some buckets."""

    runs: int
    failed: int
    durations: Durations
    since_receipt: int = 0  # waits counted from receipt


class SketchCache:
    """Recently used sketches, totals and depths. Threads may share it; its values must not be changed."""

    def __init__(self) -> None:
        self._names: OrderedDict[object, tuple[object, dict[int, NameSums]]] = OrderedDict()
        self._buckets: OrderedDict[BucketKey, tuple[Fingerprint, Durations]] = OrderedDict()
        self._totals: OrderedDict[object, tuple[float, list[NameTotal]]] = OrderedDict()
        self._marked_totals: OrderedDict[object, tuple[object, list[NameTotal]]] = OrderedDict()
        self._depths: OrderedDict[object, tuple[float, list[QueueSample]]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: BucketKey, mark: Fingerprint) -> Durations | None:
        """The cached durations, unless the bucket has changed since."""
        with self._lock:
            cached = self._buckets.get(key)
            if cached is None or cached[0] != mark:
                return None
            self._buckets.move_to_end(key)
            return cached[1]

    def put(self, key: BucketKey, mark: Fingerprint, durations: Durations) -> None:
        with self._lock:
            _put(self._buckets, key, (mark, durations), MOST_CACHED)

    def get_names(self, span: object, mark: object) -> dict[int, NameSums] | None:
        """The sums by name over many buckets, unless one of them has changed since."""
        with self._lock:
            cached = self._names.get(span)
            return cached[1] if cached is not None and cached[0] == mark else None

    def put_names(self, span: object, mark: object, sums: dict[int, NameSums]) -> None:
        with self._lock:
            _put(self._names, span, (mark, sums), MOST_SPANS)

    def totals(self, span: object, read: Callable[[], list[NameTotal]]) -> list[NameTotal]:
        """The totals by name, some seconds old."""
        return self._kept(self._totals, span, CACHE_SECONDS, read)

    def get_marked_totals(self, span: object, mark: object) -> list[NameTotal] | None:
        """The totals by name, unless one of the buckets has changed since."""
        with self._lock:
            cached = self._marked_totals.get(span)
            return cached[1] if cached is not None and cached[0] == mark else None

    def put_marked_totals(self, span: object, mark: object, totals: list[NameTotal]) -> None:
        with self._lock:
            _put(self._marked_totals, span, (mark, totals), MOST_SPANS)

    def closed_depths(self, span: object, read: Callable[[], list[QueueSample]]) -> list[QueueSample]:
        """The depths of closed buckets, as they were within the last minute."""
        return self._kept(self._depths, span, DEPTH_SECONDS, read)

    def _kept(
        self, cache: OrderedDict[object, tuple[float, V]], span: object, seconds: float, read: Callable[[], V]
    ) -> V:
        """The value read for this span in the last seconds; else it is read now."""
        now = time.monotonic()
        with self._lock:
            cached = cache.get(span)
        if cached is not None and now - cached[0] < seconds:
            return cached[1]
        value = read()
        with self._lock:
            _put(cache, span, (now, value), MOST_SPANS)
        return value


def _put(cache: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)


_caches: WeakKeyDictionary[Store, SketchCache] = WeakKeyDictionary()


def resolution_of(since: float, until: float) -> int:
    """The finest resolution with at most MOST_BUCKETS buckets in this span. Raises InvalidInput for a longer one."""
    checked_time(since)
    if not 0 < until - since <= RESOLUTIONS[-1] * MOST_BUCKETS:
        raise InvalidInput("a span of time must end after it begins, and is two years at most")
    return next(each for each in RESOLUTIONS if (until - since) / each <= MOST_BUCKETS)


def record_began(store: Store) -> float | None:
    """The first recorded minute; ``None`` for an empty record."""
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
    """Counts by outcome, wait and run times, depth and gaps, in equal buckets, empty ones included."""
    step = resolution_of(since, until)
    cache = _caches.setdefault(store, SketchCache())
    with store.read() as connection:
        wanted = _wanted(connection, step, since, until, cluster, {"name": name, "queue": queue, "worker": worker})
        sums = _sums(connection, wanted)
        scope: Scope = (*cluster_ids(connection, cluster), f"{name!r} {queue!r} {worker!r}")
        durations = _durations(connection, cache, wanted, step, sums, scope)
        gaps: list[Gap] = gaps_between(connection, since, until, cluster)
        depth = _depth_with_closed(connection, cache, _Span.of(step, since, until), cluster, queue)
        began = _starts(connection, since, until, cluster, worker)
    starts = range(int(since // step) * step, int(-(-until // step)) * step, step)
    buckets = [_bucket(at, sums.get(at), durations.get(at)) for at in starts]
    return Series(since=since, until=until, resolution=step, buckets=buckets, gaps=gaps, depth=depth, starts=began)


def _starts(
    connection: Connection, since: float, until: float, cluster: str | None, worker: str | None
) -> list[WorkerStart]:
    """The latest restarts of a span, in order."""
    table = schema.worker_start.c
    names = cluster_names(connection, cluster)
    wanted = [table.cluster_id.in_(names), table.at >= since, table.at < until]
    if worker is not None:
        wanted.append(table.hostname == worker)
    statement = select(table.cluster_id, table.hostname, table.at).where(*wanted).order_by(table.at.desc())
    rows = connection.execute(statement.limit(MOST_STARTS)).all()
    return [WorkerStart(cluster=names[row.cluster_id], hostname=row.hostname, at=row.at) for row in reversed(rows)]


class _Sums(NamedTuple):
    """The counts of one bucket, and the fingerprint that shows a change."""

    counts: dict[str, int]
    mark: Fingerprint
    since_receipt: int  # waits counted from receipt


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
    """Percentiles of waits, so many of which are counted from receipt."""
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
        conditions.append(_rollup.cluster_id.in_(cluster_ids(connection, cluster)))
    for kind, text in names.items():
        if text is not None:
            conditions.append(_rollup[f"{kind}_id"].in_(term_ids(connection, kind, [text])))
    return conditions


def _sums(connection: Connection, wanted: list[ColumnElement[bool]]) -> dict[int, _Sums]:
    sums = [func.sum(_rollup[each]).label(each) for each in COUNT_FIELDS]
    sizes = [func.coalesce(func.sum(func.length(_rollup[each])), 0) for each in ("wait", "run")]
    statement = select(_rollup.at, *sums, func.count(), *sizes, SINCE_RECEIPT).where(*wanted).group_by(_rollup.at)
    found = {}
    for at, *numbers in connection.execute(statement).all():
        mark = tuple(int(each) for each in numbers)
        found[at] = _Sums(dict(zip(COUNT_FIELDS, mark, strict=False)), mark, mark[-1])
    return found


class _Span(NamedTuple):
    """Buckets from ``first`` up to ``until``; those before ``border`` are closed, as their time is over."""

    step: int
    first: int
    border: int
    until: float

    @classmethod
    def of(cls, step: int, since: float, until: float) -> "_Span":
        first = int(since // step) * step
        closed = int(time.time() // step) * step - OPEN_BUCKETS * step
        return cls(step, first, max(first, min(closed, int(until // step) * step)), until)


def _durations(
    connection: Connection,
    cache: SketchCache,
    wanted: list[ColumnElement[bool]],
    step: int,
    sums: dict[int, _Sums],
    scope: Scope,
) -> dict[int, Durations]:
    """Durations of each bucket; merged again only where it has changed."""
    places: dict[int, BucketKey] = {at: (step, at, scope) for at in sums}
    cached = {at: cache.get(place, sums[at].mark) for at, place in places.items()}
    found = {at: durations for at, durations in cached.items() if durations is not None}
    changed = [at for at in sums if at not in found]
    if changed:
        these = [*wanted, _rollup.at >= min(changed), _rollup.at <= max(changed)]
        waits, runs = (merged_sketches(connection, these, column, "at") for column in ("wait", "run"))
        for at in changed:
            found[at] = Durations(waits.get(at, Sketch()), runs.get(at, Sketch()))
            cache.put(places[at], sums[at].mark, found[at])
    return found


def _depth_with_closed(
    connection: Connection, cache: SketchCache, span: _Span, cluster: str | None, queue: str | None
) -> list[QueueSample]:
    """The largest depth of each bucket, in order; a sample is taken in the present, so closed buckets are kept."""
    step, first, border, until = span
    key = (step, first, border, cluster, queue)
    closed = cache.closed_depths(key, lambda: _depth(connection, step, first, border, cluster, queue))
    return closed + _depth(connection, step, border, until, cluster, queue)


def _depth(
    connection: Connection, step: int, first: int, until: float, cluster: str | None, queue: str | None
) -> list[QueueSample]:
    """The largest depth of each bucket; of several queues, the sum over them."""
    sample = schema.queue_sample.c
    start = sample.at - sample.at % step
    wanted = [sample.at >= first, sample.at < until]
    if cluster is not None:
        wanted.append(sample.cluster_id.in_(cluster_ids(connection, cluster)))
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


def read_name_totals(
    store: Store, *, since: float, until: float, cluster: str | None = None, queue: str | None = None
) -> list[NameTotal]:
    """Runs, failures and times of each name in a span. By the hour and by the day, some seconds old."""
    step = resolution_of(since, until)
    place = (step, int(since // step), int(until // step), cluster, queue)
    if step == RESOLUTIONS[0]:
        return _name_totals(store, since, until, cluster, queue)
    cache = _caches.setdefault(store, SketchCache())
    return cache.totals(place, lambda: _name_totals(store, since, until, cluster, queue))


def sums_of_names(
    store: Store, names: Iterable[str], *, since: float, until: float, cluster: str | None = None
) -> dict[str, NameSums]:
    """Sums of a few names, by name, without reading the others."""
    with store.read() as connection:
        these = _rollup.name_id.in_(term_ids(connection, "name", names))
        wanted = _wanted(connection, resolution_of(since, until), since, until, cluster, {})
        found = name_sums(connection, [*wanted, these])
        texts_of = texts(connection, found)
    return {texts_of[key]: sums for key, sums in found.items()}


def _name_totals(store: Store, since: float, until: float, cluster: str | None, queue: str | None) -> list[NameTotal]:
    """Read again only if a bucket has changed: most commits, as of heartbeats, change none."""
    step = resolution_of(since, until)
    span, cache = (step, cluster, queue), _caches.setdefault(store, SketchCache())
    with store.read() as connection:
        wanted = _wanted(connection, step, since, until, cluster, {"queue": queue})
        sums = _sums(connection, wanted)
        mark = _mark(sums, sorted(sums))
        totals = cache.get_marked_totals(span, mark)
        if totals is None:
            found = _by_name(connection, cache, wanted, sums, span)
            totals = _totals(found, texts(connection, found))
            cache.put_marked_totals(span, mark, totals)
    return totals


def _totals(found: dict[int, NameSums], names: dict[int, str]) -> list[NameTotal]:
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


def _mark(sums: dict[int, _Sums], these: Sequence[int]) -> tuple[Fingerprint, ...]:
    """Of several buckets, which shows a change of one of them."""
    return tuple((at, *sums[at].mark) for at in these)


def _by_name(
    connection: Connection,
    cache: SketchCache,
    wanted: list[ColumnElement[bool]],
    sums: dict[int, _Sums],
    span: tuple[int, str | None, str | None],
) -> dict[int, NameSums]:
    """Sums by name. Those of all closed buckets are cached, until one of them changes or leaves the span."""
    closed = sorted(sums)[:-OPEN_BUCKETS]
    mark = _mark(sums, closed)
    border = closed[-1] if closed else -1
    older = cache.get_names(span, mark)
    if older is None:
        older = name_sums(connection, [*wanted, _rollup.at <= border])
        cache.put_names(span, mark, older)
    return add_sums(older, name_sums(connection, [*wanted, _rollup.at > border]))


def name_sums(connection: Connection, wanted: Sequence[ColumnElement[bool]]) -> dict[int, NameSums]:
    """Runs, failures and durations by name."""
    sums = [func.sum(_rollup[each]).label(each) for each in ("succeeded", "failed", "retried")]
    sums.append(SINCE_RECEIPT.label("since_receipt"))
    rows = connection.execute(select(_rollup.name_id, *sums).where(*wanted).group_by(_rollup.name_id)).all()
    waits, runs = (merged_sketches(connection, wanted, column, "name_id") for column in ("wait", "run"))
    return {
        row.name_id: NameSums(
            int(row.succeeded + row.failed + row.retried),
            int(row.failed),
            Durations(waits.get(row.name_id, Sketch()), runs.get(row.name_id, Sketch())),
            int(row.since_receipt),
        )
        for row in rows
    }


def add_sums(one: dict[int, NameSums], other: dict[int, NameSums]) -> dict[int, NameSums]:
    """Both added up, in new objects where a name is in both."""
    found = dict(one)
    for name, more in other.items():
        mine = found.get(name)
        found[name] = more if mine is None else _added(mine, more)
    return found


def _added(one: NameSums, other: NameSums) -> NameSums:
    wait, run = Sketch(one.durations.wait.counts), Sketch(one.durations.run.counts)
    wait.merge(other.durations.wait)
    run.merge(other.durations.run)
    since_receipt = one.since_receipt + other.since_receipt
    return NameSums(one.runs + other.runs, one.failed + other.failed, Durations(wait, run), since_receipt)


def merged_sketches(
    connection: Connection, wanted: Iterable[ColumnElement[bool]], column: str, by: str
) -> dict[int, Sketch]:
    """The sketches of one column, merged for each value of another: of the bucket, or of the name."""
    key, blob = _rollup[by], _rollup[column]
    times = func.count().label("times")
    statement = select(key, blob, times).where(*wanted, blob.is_not(None)).group_by(key, blob)
    found: dict[int, dict[int, int]] = {}
    for group, packed, number in connection.execute(statement).all():
        counts = found.setdefault(group, {})
        for each, count in _decoded(bytes(packed)):
            counts[each] = counts.get(each, 0) + count * number
    return {group: Sketch(counts) for group, counts in found.items()}


def _decoded(blob: bytes) -> tuple[tuple[int, int], ...]:
    return _decode_small(blob) if len(blob) <= _SMALL else tuple(Sketch.from_bytes(blob).counts.items())


@lru_cache(maxsize=20_000)
def _decode_small(blob: bytes) -> tuple[tuple[int, int], ...]:
    return tuple(Sketch.from_bytes(blob).counts.items())
