"""Metrics for Prometheus, from the record alone: Flower's by their names, and our own. docs/metrics.md

A scrape asks no broker and no worker. The text is written here and not by prometheus-client, which needs 8 µs a line:
500 task names have more than 20,000 lines.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate

from celery_monitor import __version__
from celery_monitor.records.failure import FailureState
from celery_monitor.records.receiver import ReceiverHealth
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.settings.values import METRIC_BUCKETS
from celery_monitor.store.engine import Store
from celery_monitor.store.health import read_receivers
from celery_monitor.store.queues import read_queues
from celery_monitor.store.receivers import read_clusters, read_gaps
from celery_monitor.store.rollups.failures import count_new_groups, read_group_numbers
from celery_monitor.store.rollups.totals import Histogram, Key, NamedTotal, read_totals
from celery_monitor.store.schedule import read_beat_health
from celery_monitor.store.tasks.page import count_states
from celery_monitor.store.tasks.unfinished import Prefetched, read_prefetched
from celery_monitor.store.workers import read_workers

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OWN_BUCKETS = (0.01, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 1800.0)
HOUR, DAY = 3600.0, 86400.0


@dataclass(slots=True)
class Family:
    """A metric with its lines."""

    name: str  # of a counter with _total
    kind: str
    help: str
    lines: list[str] = field(default_factory=list)

    def add(self, value: float | None, **labels: str | None) -> None:
        """A sample; none where the value is unknown."""
        if value is not None:
            self.lines.append(f"{self.name}{{{labels_of(labels)}}} {_number(value)}")

    def add_histogram(self, histogram: Histogram, bounds: tuple[float, ...], named: str) -> None:
        """``bounds`` are among METRIC_BUCKETS; ``named`` are the labels as text."""
        passed = list(accumulate(histogram.counts))
        bucket = f'{self.name}_bucket{{{named},le="'
        self.lines += [f"{bucket}{end}{passed[place]}" for end, place in _ends(bounds)]
        self.lines.append(f'{bucket}+Inf"}} {passed[-1]}')
        self.lines.append(f"{self.name}_count{{{named}}} {passed[-1]}")
        self.lines.append(f"{self.name}_sum{{{named}}} {histogram.sum}")


@cache
def _ends(bounds: tuple[float, ...]) -> list[tuple[str, int]]:
    """The rest of the line of each bucket before its number, and its place in a histogram."""
    return [(f'{bound}"}} ', METRIC_BUCKETS.index(bound)) for bound in bounds]


def labels_of(labels: Mapping[str, str | None]) -> str:
    return _labels(tuple(labels.items()))


@lru_cache(20_000)  # most are of the last scrape, too
def _labels(labels: tuple[tuple[str, str | None], ...]) -> str:
    return ",".join(f'{name}="{_escaped(value or "")}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) or (math.isfinite(value) and value == int(value)) else repr(value)


def render(families: Iterable[Family], *, openmetrics: bool = False) -> bytes:
    """As text, or in the format of OpenMetrics, which calls a counter by its name without ``_total``."""
    lines: list[str] = []
    for family in families:
        name = family.name.removesuffix("_total") if openmetrics and family.kind == "counter" else family.name
        lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}", *family.lines]
    return "\n".join([*lines, *(["# EOF"] if openmetrics else []), ""]).encode()


def collect(store: Store, settings: Settings) -> Iterator[Family]:
    """Every metric of the record, now. Raises StoreUnavailable."""
    now = time.time()
    workers = [each for each in read_workers(store) if not _is_gone(each, settings.purge_offline_workers, now)]
    totals, prefetched = read_totals(store), read_prefetched(store, by_worker=settings.metrics_by_worker)
    yield from _flower(settings, workers, totals, prefetched)
    yield from _build()
    yield from _tasks(store, totals)
    yield from _queues(store, now)
    yield from _workers(store, workers)
    yield from _failures(store, now)
    yield from _beat(store)
    yield from _receivers(store, settings, now)


def _is_gone(worker: Worker, after: float, now: float) -> bool:
    return worker.status is WorkerStatus.OFFLINE and now - (worker.last_heartbeat or worker.first_seen or 0.0) > after


def _flower(
    settings: Settings, workers: Sequence[Worker], totals: Sequence[NamedTotal], prefetched: Prefetched
) -> Iterator[Family]:
    """Flower has no clusters: what is of one name in several is added up."""
    present = {None, *(each.hostname for each in workers)}
    shown = [each for each in totals if each.worker in present]
    summed: dict[tuple[str | None, str | None], list[NamedTotal]] = defaultdict(list)
    for each in shown:
        summed[each.name, each.worker].append(each)
    events = Family("flower_events_total", "counter", "Events of tasks by type")
    runtime = Family("flower_task_runtime_seconds", "histogram", "Run times that workers have reported")
    for (name, worker), several in summed.items():
        counts: Counter[str] = Counter()
        for each in several:
            counts.update(each.total.events)
        named = labels_of({"task": name, "worker": worker})
        events.lines += [f'{events.name}{{{named},type="{kind}"}} {count}' for kind, count in counts.items()]
        reported = _merged(each.total.reported for each in several)
        runtime.add_histogram(reported, settings.task_runtime_metric_buckets, named)
    yield from (events, runtime, *_prefetched(prefetched, {*summed}, present))
    yield from _online(workers)


def _online(workers: Sequence[Worker]) -> Iterator[Family]:
    online = Family("flower_worker_online", "gauge", "1 while the worker sends heartbeats")
    executing = Family(
        "flower_worker_number_of_currently_executing_tasks", "gauge", "Tasks that run on the worker, by its heartbeat"
    )
    for worker in {each.hostname: each for each in workers}.values():
        is_online = worker.status is WorkerStatus.ONLINE
        online.add(int(is_online), worker=worker.hostname)
        executing.add(worker.active if is_online else 0, worker=worker.hostname)
    yield from (online, executing)


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    first, *others = histograms
    if not others:
        return first
    counts = [sum(each) for each in zip(*(one.counts for one in (first, *others)), strict=True)]
    return Histogram(counts, first.sum + sum(each.sum for each in others))


def _prefetched(found: Prefetched, seen: set[Key], present: set[str | None]) -> Iterator[Family]:
    """0 where nothing waits or runs."""
    waits = Family(
        "flower_task_prefetch_time_seconds", "gauge", "Seconds between receipt and start, the longest of running tasks"
    )
    numbers = Family("flower_worker_prefetched_tasks", "gauge", "Tasks on workers that have not started")
    for name, worker in seen | found.received.keys() | found.waits.keys():
        if worker in present:
            waits.add(found.waits.get((name, worker), 0.0), task=name, worker=worker)
            numbers.add(found.received.get((name, worker), 0), task=name, worker=worker)
    yield from (waits, numbers)


def _build() -> Iterator[Family]:
    build = Family("celery_monitor_build_info", "gauge", "1, with the version as a label")
    build.add(1, version=__version__)
    yield build


def _tasks(store: Store, totals: Sequence[NamedTotal]) -> Iterator[Family]:
    states = Family("celery_monitor_tasks", "gauge", "Recorded tasks by state; LOST are those whose worker is gone")
    for cluster in read_clusters(store):
        for state, count in count_states(store, cluster).items():
            states.add(count, cluster=cluster, state=state)
    run = Family("celery_monitor_task_run_seconds", "histogram", "Run times of tasks that have ended in any way")
    wait = Family("celery_monitor_task_wait_seconds", "histogram", "Seconds from when a task could run to its start")
    named: dict[tuple[str, str | None], list[NamedTotal]] = defaultdict(list)
    for each in totals:
        named[each.cluster, each.name].append(each)
    for (cluster, name), several in named.items():
        labels = labels_of({"cluster": cluster, "task": name})
        run.add_histogram(_merged(each.total.run for each in several), OWN_BUCKETS, labels)
        wait.add_histogram(_merged(each.total.wait for each in several), OWN_BUCKETS, labels)
    yield from (states, run, wait)


def _queues(store: Store, now: float) -> Iterator[Family]:
    ready = Family("celery_monitor_queue_messages", "gauge", "Messages that wait in a queue")
    unacked = Family("celery_monitor_queue_unacknowledged", "gauge", "Messages that workers have not acknowledged")
    consumers = Family("celery_monitor_queue_consumers", "gauge", "Consumers of a queue")
    oldest = Family("celery_monitor_queue_oldest_message_seconds", "gauge", "Age of the oldest waiting message")
    for queue in read_queues(store):
        labels = {"cluster": queue.cluster, "queue": queue.name}
        ready.add(queue.ready, **labels)
        unacked.add(queue.unacked, **labels)
        consumers.add(queue.consumers, **labels)
        oldest.add(None if queue.oldest is None else max(0.0, now - queue.oldest), **labels)
    yield from (ready, unacked, consumers, oldest)


def _workers(store: Store, workers: Sequence[Worker]) -> Iterator[Family]:
    family = Family("celery_monitor_workers", "gauge", "Workers by whether they are up")
    counts = Counter((each.cluster, each.status) for each in workers)
    for cluster in read_clusters(store):
        for status in WorkerStatus:
            family.add(counts[cluster, status], cluster=cluster, status=status)
    yield family


def _failures(store: Store, now: float) -> Iterator[Family]:
    groups = Family("celery_monitor_failure_groups", "gauge", "Failure groups by state")
    new = Family(
        "celery_monitor_failure_groups_new", "gauge", "Failure groups that first failed or regressed in the last hour"
    )
    for cluster in read_clusters(store):
        numbers = read_group_numbers(store, cluster)
        for state in FailureState:
            groups.add(numbers.get(state, 0), cluster=cluster, state=state)
        new.add(count_new_groups(store, cluster, since=now - HOUR), cluster=cluster)
    yield from (groups, new)


def _beat(store: Store) -> Iterator[Family]:
    overdue = Family("celery_monitor_beat_overdue_entries", "gauge", "Entries of the schedule that were missed")
    stopped = Family("celery_monitor_beat_stopped", "gauge", "1 while every entry of the schedule is overdue")
    late = Family("celery_monitor_beat_late_seconds", "gauge", "For how long the most overdue entry is overdue")
    for cluster in read_clusters(store):
        beat = read_beat_health(store, cluster)
        overdue.add(len(beat.overdue), cluster=cluster)
        stopped.add(int(beat.stopped), cluster=cluster)
        late.add(max((beat.at - each.since for each in beat.overdue), default=0.0), cluster=cluster)
    yield from (overdue, stopped, late)


RECEIVER_COUNTERS = {
    "events_total": ("celery_monitor_receiver_events_total", "Events that were received"),
    "dropped_total": ("celery_monitor_receiver_dropped_total", "Events that had to be dropped"),
    "malformed_total": ("celery_monitor_receiver_malformed_total", "Messages that are not events"),
    "unknown_total": ("celery_monitor_receiver_unknown_total", "Events of unknown types"),
}


def _receivers(store: Store, settings: Settings, now: float) -> Iterator[Family]:
    health = read_receivers(store, now)
    connected = Family("celery_monitor_receiver_connected", "gauge", "1 while the receiver is connected and writes")
    lag = Family("celery_monitor_receiver_lag_seconds", "gauge", "Seconds that the record is behind")
    gaps = Family("celery_monitor_gaps", "gauge", "Gaps in the record in the last day")
    for each in health:
        connected.add(int(each.connected and each.unwritten is None), cluster=each.cluster)
        lag.add(each.lag(now), cluster=each.cluster)
        gaps.add(len(read_gaps(store, now - DAY, each.cluster)), cluster=each.cluster)
    yield from (connected, lag, gaps, *_receiver_counters(health), _spool(settings))


def _receiver_counters(health: Sequence[ReceiverHealth]) -> Iterator[Family]:
    for attribute, (name, text) in RECEIVER_COUNTERS.items():
        family = Family(name, "counter", text)
        for each in health:
            family.add(getattr(each, attribute), cluster=each.cluster)
        yield family


def spooled_bytes(settings: Settings, cluster: str) -> int | None:
    """Bytes of events that wait on this machine's disk; None: there is no such folder here."""
    folder = settings.spool_directory / cluster
    try:
        return sum(each.stat().st_size for each in folder.iterdir())
    except OSError:  # of another machine, or a segment was just deleted
        return None


def _spool(settings: Settings) -> Family:
    family = Family("celery_monitor_spool_bytes", "gauge", "Bytes of events that wait on the disk of this machine")
    for cluster in settings.clusters:
        family.add(spooled_bytes(settings, cluster), cluster=cluster)
    return family
