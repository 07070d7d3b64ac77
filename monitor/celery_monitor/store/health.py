"""Reads the facts that health and doctor are judged by: receivers, whether the record can be written, tasks, queues."""

import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from celery_monitor.core.filters.parser import parse
from celery_monitor.core.health.checks import RecordFacts
from celery_monitor.core.health.findings import (
    ENDING_SECONDS,
    FEWEST_ENDINGS,
    GAP_SECONDS,
    GROWTH_SECONDS,
    RECEIVER,
    STANDBY_SECONDS,
    WINDOW_SECONDS,
    Bound,
    grows,
)
from celery_monitor.core.health.judgement import LOST, HealthFacts
from celery_monitor.core.workflow import LEAST_SECONDS, Stalls, long_tasks, slow_workflows, stalled_workers
from celery_monitor.errors import MonitorError, StoreUnavailable
from celery_monitor.files import exposed
from celery_monitor.records.page import Count
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import (
    SILENT_RECEIVER_SECONDS,
    FailingHelper,
    ReceiverEnding,
    ReceiverHealth,
    StandbyReceiver,
)
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, connect_only
from celery_monitor.store.queues import MOST_QUEUES, read_depths, read_growing_queues, read_pauses, read_queues
from celery_monitor.store.receivers import (
    check_writable,
    read_clusters,
    read_endings,
    read_gaps,
    read_receiver_records,
    read_standby_receivers,
)
from celery_monitor.store.rollups.counters import MOST_GROUPS, MOST_NAMES, read_bounds
from celery_monitor.store.rollups.failures import (
    UNRESOLVED,
    read_failure_counts,
    read_failure_groups,
    read_new_failure_groups,
)
from celery_monitor.store.rollups.series import read_name_totals
from celery_monitor.store.schedule import read_beat_health
from celery_monitor.store.tasks.page import find_tasks, read_longest_running
from celery_monitor.store.tasks.unfinished import read_active_tasks, read_usual_runs
from celery_monitor.store.tasks.workflows import MOST_STUCK, read_stuck_workflows
from celery_monitor.store.terms import cluster_ids
from celery_monitor.store.workers import MOST_WORKERS, read_workers

T = TypeVar("T")
PROVE_SECONDS = 2.0  # between two attempts to write

_proved: WeakKeyDictionary[Store, tuple[float, str | None]] = WeakKeyDictionary()
_lock = Lock()


def read_banner_facts(store: Store, cluster: str | None, now: float) -> HealthFacts:
    """What every page needs of one cluster, or of all: receivers, workers and gaps."""
    return HealthFacts(
        now=now,
        receivers=[each for each in read_receivers(store, now) if cluster in (None, each.cluster)],
        workers=read_workers(store, cluster),
        partial=store.limits.scope.is_partial,
        gaps=read_gaps(store, now - GAP_SECONDS, cluster),
    )


def read_facts(store: Store, cluster: str | None, now: float) -> HealthFacts:
    """All facts: those of ``read_work_facts``, of failures, and the bounds that were reached."""
    facts, since = read_work_facts(store, cluster, now), now - WINDOW_SECONDS
    facts = replace(facts, bounds=_bounds(store, facts.receivers, facts.workers, facts.queues, now))
    if all(each.last_event_at is None for each in facts.receivers):
        return facts  # no event yet: whether tasks fail is unknown
    groups = read_failure_groups(store, since=since, cluster=cluster, states=UNRESOLVED, limit=1)
    return replace(
        facts,
        failures=read_failure_counts(store, since=since, cluster=cluster),
        top_failure=groups[0] if groups else None,
        new_failures=read_new_failure_groups(store, since=since, cluster=cluster),
    )


class Reads(Protocol):
    """Reads a part of the facts, or returns what was read before. ``part`` is its name."""

    def __call__(self, part: str, read: Callable[[], T]) -> T: ...


def read_now(part: str, read: Callable[[], T]) -> T:  # noqa: ARG001 - of Reads
    """Reads every part."""
    return read()


def read_work_facts(store: Store, cluster: str | None, now: float, reads: Reads = read_now) -> HealthFacts:
    """Those of the banners, and of queues, schedule, workflows and tasks. ``reads``: of what is costly."""
    facts = read_banner_facts(store, cluster, now)
    queues = {(queue.cluster, queue.name): queue for queue in read_queues(store, cluster)}
    rising = read_growing_queues(store, cluster)
    depths = reads("depths", lambda: read_depths(store, since=now - GROWTH_SECONDS, cluster=cluster))
    stuck = reads("stuck", lambda: read_stuck_workflows(store, now, cluster))
    lost_tasks = parse(LOST, now).in_cluster(cluster)
    lost = reads("lost", lambda: find_tasks(store, lost_tasks, sort="-finished", limit=1))
    return replace(
        facts,
        queues=list(queues.values()),
        growing={key for key, queue in queues.items() if grows(queue, depths.get(key, ()), rising, now)},
        pauses=read_pauses(store, cluster),
        beats=[read_beat_health(store, each.cluster) for each in facts.receivers],
        stalls=reads("stalls", lambda: read_stalls(store, facts.receivers, facts.workers, now, cluster)),
        stuck=stuck,
        stuck_more=len(stuck) >= MOST_STUCK,
        lost=(lost.count or Count(1, exact=False)) if lost.items else Count(0),
        lost_at=lost.items[0].finished if lost.items else None,
    )


def _bounds(
    store: Store, receivers: Sequence[ReceiverHealth], workers: Sequence[Worker], queues: Sequence[Queue], now: float
) -> list[tuple[str, Bound]]:
    """The bounds of store/ that a cluster has reached."""
    listed = Counter(each.cluster for each in workers), Counter(each.cluster for each in queues)
    found = []
    for cluster in dict.fromkeys(each.cluster for each in receivers if store.limits.scope.covers(each.cluster)):
        groups, folded = read_bounds(store, cluster, now)
        reached = (
            (listed[0][cluster] >= MOST_WORKERS, Bound("workers", MOST_WORKERS)),
            (listed[1][cluster] >= MOST_QUEUES, Bound("queues", MOST_QUEUES)),
            (folded, Bound("counters", MOST_NAMES)),
            (groups >= MOST_GROUPS, Bound("failures", MOST_GROUPS)),
        )
        found += [(cluster, bound) for is_reached, bound in reached if is_reached]
    return found


def read_stalls(
    store: Store, health: Sequence[ReceiverHealth], workers: Sequence[Worker], now: float, cluster: str | None
) -> Stalls:
    """Stalled workers, workflows and tasks, of the clusters whose receiver is caught up.

    As of the last event: the broker may be down since then, which nobody has noticed yet.
    """
    caught_up = [each for each in health if each.is_caught_up(now, SILENT_RECEIVER_SECONDS)]
    last_events = {each.cluster: each.last_event_at or 0.0 for each in caught_up}
    found = read_active_tasks(store, workers, now, cluster)
    active = [
        task._replace(since=task.since + max(0.0, now - last_events[task.cluster]))
        for task in found.tasks
        if task.cluster in last_events
    ]
    long = {task.name for task in active if task.started and task.name and now - task.since > LEAST_SECONDS}
    usual = read_usual_runs(store, long, now, cluster)
    whole = [worker for worker in workers if (worker.cluster, worker.hostname) not in found.partly_started]
    return Stalls(
        workers=stalled_workers(whole, active, usual, now, found.partly_received),
        workflows=slow_workflows(active, usual, now),
        tasks=long_tasks(active, usual, now),
    )


def read_receivers(store: Store, now: float) -> list[ReceiverHealth]:
    """The health of every receiver, and whether the record can be written.

    A receiver that has not reported for seconds may be dead, or its database not writable: so we try to write.
    """
    return [
        msgspec.structs.replace(each, unwritten=_why_unwritable(store))
        if each.updated_at is not None and each.late(now) > SILENT_RECEIVER_SECONDS
        else each
        for each in recorded_receivers(store, now)
    ]


def recorded_receivers(store: Store, now: float) -> list[ReceiverHealth]:
    """The recorded health of every receiver, also of those that crash before they can report."""
    found = {health.cluster: health for health in read_receiver_records(store)}
    for ending in read_endings(store, now - ENDING_SECONDS):
        if ending.failures >= FEWEST_ENDINGS:
            found[ending.cluster] = _with_ending(found.get(ending.cluster), ending)
    return list(found.values())


def _with_ending(health: ReceiverHealth | None, ending: ReceiverEnding) -> ReceiverHealth:
    found = health or ReceiverHealth(cluster=ending.cluster, connected=False, error=ending.error)
    helper = FailingHelper(name=RECEIVER, error=ending.error, since=ending.since, failures=ending.failures)
    return msgspec.structs.replace(found, helpers=(helper, *found.helpers))


def known_until(store: Store, now: float) -> dict[str, float]:
    """The clusters whose receiver is not caught up, and until when their events are complete; 0: never."""
    health = {each.cluster: each for each in read_receivers(store, now)}
    found = {}
    for cluster in read_clusters(store):
        receiver = health.get(cluster)
        if receiver is None or not receiver.is_caught_up(now, SILENT_RECEIVER_SECONDS):
            found[cluster] = receiver.known_until(now) if receiver is not None else 0.0
    return found


def read_standbys(store: Store, now: float) -> dict[str, list[StandbyReceiver]]:
    """The receivers that would take over now, by cluster."""
    found: dict[str, list[StandbyReceiver]] = {}
    for each in read_standby_receivers(store, now - STANDBY_SECONDS):
        found.setdefault(each.cluster, []).append(each)
    return found


def _why_unwritable(store: Store) -> str | None:
    with _lock:
        tried_at, error = _proved.get(store, (0.0, None))
        if not tried_at or time.monotonic() - tried_at > PROVE_SECONDS:
            error = _write_error(store)
            _proved[store] = (time.monotonic(), error)
        return error


def _write_error(store: Store) -> str | None:
    try:
        check_writable(store)
    except StoreUnavailable as error:
        return error.message
    return None


BUSY_SECONDS = 2.0
SEEN_DAYS = 7


def read_record_facts(url: str, cluster: str) -> RecordFacts:
    """Checks a database for doctor without creating, migrating or writing it. Raises SettingsError."""
    with closing(connect_only(url)) as store:
        if store.is_sqlite:
            return _sqlite(store, cluster)
        return _postgresql(store, cluster)


def _sqlite(store: Store, cluster: str) -> RecordFacts:
    file = Path(str(store.engine.url.database)).absolute()
    version = sqlite3.sqlite_version_info
    if not file.parent.is_dir():
        return RecordFacts(
            product="sqlite", version=version, exists=False, refusal=f"the folder {file.parent} does not exist"
        )
    free = shutil.disk_usage(file.parent).free
    if not file.exists():
        unwritable = None if os.access(file.parent, os.W_OK) else f"{file.parent} is not writable"
        return RecordFacts(product="sqlite", version=version, exists=False, refusal=unwritable, free_bytes=free)
    recorded = _recorded(store, cluster) if _is_ours(file) else RecordedFacts()
    facts = RecordFacts(
        product="sqlite",
        version=version,
        refusal=_refusal_of(file),
        exposed=[str(each) for each in exposed(file)],  # opening it above has tried to close them to others
        free_bytes=free,
    )
    return recorded.fill(facts)


def _is_ours(file: Path) -> bool:
    """Whether the file is in WAL mode, as ours are: opening another would change it."""
    with suppress(OSError), file.open("rb") as opened:
        return opened.read(20)[18:] == b"\x02\x02"
    return False


def _refusal_of(file: Path) -> str | None:
    """Why the file cannot be written: tries it, and rolls back."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return str(error)
    return None


def _postgresql(store: Store, cluster: str) -> RecordFacts:
    try:
        with store.engine.connect() as connection:
            number = int(str(connection.exec_driver_sql("SHOW server_version_num").scalar()))
            rights = "SELECT current_setting('transaction_read_only'), has_schema_privilege(current_schema(), 'CREATE')"
            read_only, may_create = connection.exec_driver_sql(rights).one()
    except SQLAlchemyError as error:
        text = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        return RecordFacts(product="postgresql", refusal=text)
    refusal = None
    if read_only == "on":
        refusal = "the server is read-only (a replica, or default_transaction_read_only)"
    elif not may_create:
        refusal = "the user may not create tables in its schema"
    version = (number // 10000, number % 10000)
    return _recorded(store, cluster).fill(RecordFacts(product="postgresql", version=version, refusal=refusal))


class RecordedFacts(NamedTuple):
    """Facts of one cluster that are read from the record itself."""

    events_off: Sequence[str] = ()
    events_on: Sequence[str] = ()
    longest_run: float | None = None
    longest_eta: float | None = None
    receiver: ReceiverHealth | None = None

    def fill(self, facts: RecordFacts) -> RecordFacts:
        return replace(facts, **self._asdict())


def _recorded(store: Store, cluster: str) -> RecordedFacts:
    """Nothing where the record is empty, of another version, or no record."""
    try:
        workers = read_workers(store, cluster)
        run, eta = _longest(store, cluster)
        receiver = next((each for each in recorded_receivers(store, time.time()) if each.cluster == cluster), None)
    except (MonitorError, SQLAlchemyError):
        return RecordedFacts()
    on, off = ([each.hostname for each in workers if each.events_enabled is enabled] for enabled in (True, False))
    return RecordedFacts(off, on, run, eta, receiver)


def _longest(store: Store, cluster: str) -> tuple[float | None, float | None]:
    """Longest run (99th percentile of each name, and what runs now) and longest wait for an ETA, in seconds."""
    now = time.time()
    totals = read_name_totals(store, since=now - SEEN_DAYS * 86400, until=now, cluster=cluster)
    runs = [each.run.p99 for each in totals if each.run is not None]
    running = read_longest_running(store, cluster=cluster, limit=1)
    runs += [now - task.started for task in running if task.started is not None]
    table = schema.task.c
    with store.read() as connection:
        ahead = sa.select(sa.func.max(table.eta - table.received))
        ours = table.cluster_id.in_(cluster_ids(connection, cluster))
        scheduled = table.state == schema.STATE_CODES[TaskState.SCHEDULED]
        eta: float | None = connection.execute(ahead.where(ours, scheduled)).scalar()
    return max(runs, default=None), eta
