"""Reads the facts of health: the receivers, whether the record can be written, and what tasks and queues do."""

import time
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from weakref import WeakKeyDictionary

import msgspec

from monitor.errors import StoreUnavailable
from monitor.filters import parse
from monitor.findings import ENDING_SECONDS
from monitor.findings import FEWEST_ENDINGS
from monitor.findings import GAP_SECONDS
from monitor.findings import RECEIVER
from monitor.findings import STANDBY_SECONDS
from monitor.findings import WINDOW_SECONDS
from monitor.health import LOST
from monitor.health import Facts
from monitor.queue_growth import grows
from monitor.records import UNSAID_SECONDS
from monitor.records import Count
from monitor.records import FailingHelper
from monitor.records import ReceiverEnding
from monitor.records import ReceiverHealth
from monitor.records import StandbyReceiver
from monitor.records import Worker
from monitor.stalls import LEAST_SECONDS
from monitor.stalls import Stalls
from monitor.stalls import long_tasks
from monitor.stalls import slow_workflows
from monitor.stalls import stalled_workers
from monitor.store import breakdowns
from monitor.store import journal
from monitor.store import queries
from monitor.store.engine import Store
from monitor.store.failures import UNRESOLVED
from monitor.store.stuck import MOST_STUCK

PROVE_SECONDS = 2.0  # between two attempts to write

_proved: WeakKeyDictionary[Store, tuple[float, str | None]] = WeakKeyDictionary()
_lock = Lock()


def read_banner_facts(store: Store, cluster: str | None, now: float) -> Facts:
    """What every page reads of one cluster, or of all: receivers, workers and gaps."""
    return Facts(
        now=now,
        receivers=[each for each in read_receivers(store, now) if cluster in (None, each.cluster)],
        workers=queries.workers(store, cluster),
        gaps=queries.gaps(store, now - GAP_SECONDS, cluster),
    )


def read_facts(store: Store, cluster: str | None, now: float) -> Facts:
    """The same, and what queues, schedule, tasks and failures do: all that there is to judge."""
    facts, since = read_banner_facts(store, cluster, now), now - WINDOW_SECONDS
    queues = {(queue.cluster, queue.name): queue for queue in queries.queues(store, cluster)}
    rising = queries.rising(store, cluster)
    depths = breakdowns.depths(store, since=since, cluster=cluster)
    stuck = queries.stuck_workflows(store, now, cluster)
    lost = queries.tasks(store, parse(LOST, now).in_cluster(cluster), sort="-finished", limit=1)
    facts = replace(
        facts,
        queues=list(queues.values()),
        growing={key for key, queue in queues.items() if grows(queue, depths.get(key, ()), rising, now)},
        pauses=queries.pauses(store, cluster),
        beats=[queries.beat_health(store, each.cluster) for each in facts.receivers],
        stalls=read_stalls(store, facts.receivers, facts.workers, now, cluster),
        stuck=stuck,
        stuck_more=len(stuck) >= MOST_STUCK,
        lost=(lost.count or Count(1, exact=False)) if lost.items else Count(0),
        lost_at=lost.items[0].finished if lost.items else None,
    )
    if all(each.last_event_at is None for each in facts.receivers):
        return facts  # whether anything fails is unknown
    groups = queries.failure_groups(store, since=since, cluster=cluster, states=UNRESOLVED, limit=1)
    return replace(
        facts,
        failures=queries.failure_counts(store, since=since, cluster=cluster),
        top_failure=groups[0] if groups else None,
        new_failures=queries.new_failure_groups(store, since=since, cluster=cluster),
    )


def read_stalls(
    store: Store, health: Sequence[ReceiverHealth], workers: Sequence[Worker], now: float, cluster: str | None
) -> Stalls:
    """Judged where the receiver hears its broker and is not behind; elsewhere nobody is accused.

    Of what was when it last heard anything: since then a broker may be still that nobody has found out yet.
    """
    heard = {each.cluster: each.last_event_at or 0.0 for each in health if each.is_level(now, UNSAID_SECONDS)}
    found = queries.held_tasks(store, workers, now, cluster)
    held = [
        task._replace(since=task.since + max(0.0, now - heard[task.cluster]))
        for task in found.tasks
        if task.cluster in heard
    ]
    long = {task.name for task in held if task.started and task.name and now - task.since > LEAST_SECONDS}
    usual = queries.usual_runs(store, long, now, cluster)
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
        if each.updated_at is not None and now - each.updated_at > UNSAID_SECONDS
        else each
        for each in recorded_receivers(store, now)
    ]


def recorded_receivers(store: Store, now: float) -> list[ReceiverHealth]:
    """The health of every receiver as recorded. One whose process keeps ending may never have written."""
    found = {health.cluster: health for health in queries.health(store)}
    for ending in queries.endings(store, now - ENDING_SECONDS):
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
    for cluster in queries.clusters(store):
        receiver = health.get(cluster)
        if receiver is None or not receiver.is_level(now, UNSAID_SECONDS):
            found[cluster] = receiver.known_until(now) if receiver is not None else 0.0
    return found


def read_standbys(store: Store, now: float) -> dict[str, list[StandbyReceiver]]:
    """The receivers that would take over now, by cluster."""
    found: dict[str, list[StandbyReceiver]] = {}
    for each in queries.standbys(store, now - STANDBY_SECONDS):
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
        journal.prove_writable(store)
    except StoreUnavailable as error:
        return error.message
    return None
