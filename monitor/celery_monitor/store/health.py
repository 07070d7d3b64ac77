"""Reads the facts of health: the receivers, whether the record can be written, and what tasks and queues do."""

import time
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from weakref import WeakKeyDictionary

import msgspec

from celery_monitor.core.filters.parser import parse
from celery_monitor.core.findings import (
    ENDING_SECONDS,
    FEWEST_ENDINGS,
    GAP_SECONDS,
    RECEIVER,
    STANDBY_SECONDS,
    WINDOW_SECONDS,
    grows,
)
from celery_monitor.core.health import LOST, HealthFacts
from celery_monitor.core.workflow import LEAST_SECONDS, Stalls, long_tasks, slow_workflows, stalled_workers
from celery_monitor.errors import StoreUnavailable
from celery_monitor.records.page import Count
from celery_monitor.records.receiver import (
    SILENT_RECEIVER_SECONDS,
    FailingHelper,
    ReceiverEnding,
    ReceiverHealth,
    StandbyReceiver,
)
from celery_monitor.records.worker import Worker
from celery_monitor.store.engine import Store
from celery_monitor.store.failures import UNRESOLVED, read_failure_counts, read_failure_groups, read_new_failure_groups
from celery_monitor.store.queues import read_growing_queues, read_pauses, read_queues
from celery_monitor.store.receivers import (
    prove_writable,
    read_clusters,
    read_endings,
    read_gaps,
    read_receiver_records,
    read_standby_receivers,
)
from celery_monitor.store.schedule import read_beat_health
from celery_monitor.store.series import read_depths
from celery_monitor.store.tasks.page import find_tasks
from celery_monitor.store.tasks.unfinished import read_active_tasks, read_usual_runs
from celery_monitor.store.workers import read_workers
from celery_monitor.store.workflows import MOST_STUCK, read_stuck_workflows

PROVE_SECONDS = 2.0  # between two attempts to write

_proved: WeakKeyDictionary[Store, tuple[float, str | None]] = WeakKeyDictionary()
_lock = Lock()


def read_banner_facts(store: Store, cluster: str | None, now: float) -> HealthFacts:
    """What every page reads of one cluster, or of all: receivers, workers and gaps."""
    return HealthFacts(
        now=now,
        receivers=[each for each in read_receivers(store, now) if cluster in (None, each.cluster)],
        workers=read_workers(store, cluster),
        gaps=read_gaps(store, now - GAP_SECONDS, cluster),
    )


def read_facts(store: Store, cluster: str | None, now: float) -> HealthFacts:
    """The same, and what queues, schedule, tasks and failures do: all that there is to judge."""
    facts, since = read_banner_facts(store, cluster, now), now - WINDOW_SECONDS
    queues = {(queue.cluster, queue.name): queue for queue in read_queues(store, cluster)}
    rising = read_growing_queues(store, cluster)
    depths = read_depths(store, since=since, cluster=cluster)
    stuck = read_stuck_workflows(store, now, cluster)
    lost = find_tasks(store, parse(LOST, now).in_cluster(cluster), sort="-finished", limit=1)
    facts = replace(
        facts,
        queues=list(queues.values()),
        growing={key for key, queue in queues.items() if grows(queue, depths.get(key, ()), rising, now)},
        pauses=read_pauses(store, cluster),
        beats=[read_beat_health(store, each.cluster) for each in facts.receivers],
        stalls=read_stalls(store, facts.receivers, facts.workers, now, cluster),
        stuck=stuck,
        stuck_more=len(stuck) >= MOST_STUCK,
        lost=(lost.count or Count(1, exact=False)) if lost.items else Count(0),
        lost_at=lost.items[0].finished if lost.items else None,
    )
    if all(each.last_event_at is None for each in facts.receivers):
        return facts  # whether anything fails is unknown
    groups = read_failure_groups(store, since=since, cluster=cluster, states=UNRESOLVED, limit=1)
    return replace(
        facts,
        failures=read_failure_counts(store, since=since, cluster=cluster),
        top_failure=groups[0] if groups else None,
        new_failures=read_new_failure_groups(store, since=since, cluster=cluster),
    )


def read_stalls(
    store: Store, health: Sequence[ReceiverHealth], workers: Sequence[Worker], now: float, cluster: str | None
) -> Stalls:
    """Judged where the receiver hears its broker and is not behind; elsewhere nobody is accused.

    Of what was when it last heard anything: since then a broker may be still that nobody has found out yet.
    """
    heard = {each.cluster: each.last_event_at or 0.0 for each in health if each.is_level(now, SILENT_RECEIVER_SECONDS)}
    found = read_active_tasks(store, workers, now, cluster)
    held = [
        task._replace(since=task.since + max(0.0, now - heard[task.cluster]))
        for task in found.tasks
        if task.cluster in heard
    ]
    long = {task.name for task in held if task.started and task.name and now - task.since > LEAST_SECONDS}
    usual = read_usual_runs(store, long, now, cluster)
    known = [worker for worker in workers if (worker.cluster, worker.hostname) not in found.partly_started]
    return Stalls(
        workers=stalled_workers(known, held, usual, now, found.partly_received),
        workflows=slow_workflows(held, usual, now),
        tasks=long_tasks(held, usual, now),
    )


def read_receivers(store: Store, now: float) -> list[ReceiverHealth]:
    """The health of every receiver, and whether the record can be written.

    One that has not written for seconds may be dead, or have a database that refuses to: it cannot write which. So
    we try to write ourselves.
    """
    return [
        msgspec.structs.replace(each, unwritten=_why_unwritable(store))
        if each.updated_at is not None and now - each.updated_at > SILENT_RECEIVER_SECONDS
        else each
        for each in recorded_receivers(store, now)
    ]


def recorded_receivers(store: Store, now: float) -> list[ReceiverHealth]:
    """The health of every receiver as recorded. One whose process keeps ending may never have written."""
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
    """The clusters whose receiver does not run, hears nothing or is behind, and until when it can tell; 0: never.

    What it was not seen to send, beat may have sent since.
    """
    health = {each.cluster: each for each in read_receivers(store, now)}
    found = {}
    for cluster in read_clusters(store):
        receiver = health.get(cluster)
        if receiver is None or not receiver.is_level(now, SILENT_RECEIVER_SECONDS):
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
            error = _try(store)
            _proved[store] = (time.monotonic(), error)
        return error


def _try(store: Store) -> str | None:
    try:
        prove_writable(store)
    except StoreUnavailable as error:
        return error.message
    return None
