"""Reads the facts from which the sentence of health is composed."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from monitor.filters import parse
from monitor.health_sentence import Disconnected
from monitor.health_sentence import Facts
from monitor.health_sentence import GrowingQueue
from monitor.health_sentence import LostTasks
from monitor.health_sentence import NewFailure
from monitor.health_sentence import Overdue
from monitor.health_sentence import PausedQueue
from monitor.health_sentence import SilentWorker
from monitor.health_sentence import StuckWorkflow
from monitor.health_sentence import TopFailure
from monitor.queue_growth import grows
from monitor.queue_growth import unattended
from monitor.records import UNSAID_SECONDS
from monitor.records import Count
from monitor.records import FailureState
from monitor.records import Pause
from monitor.records import Queue
from monitor.records import ReceiverHealth
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.stalls import LEAST_SECONDS
from monitor.stalls import HeldTask
from monitor.stalls import LongTask
from monitor.stalls import SlowWorkflow
from monitor.stalls import StalledWorker
from monitor.stalls import long_tasks
from monitor.stalls import may_be_busy
from monitor.stalls import slow_workflows
from monitor.stalls import stalled_workers
from monitor.store import breakdowns
from monitor.store import queries
from monitor.store.engine import Store
from monitor.store.failures import UNRESOLVED
from monitor.store.stuck import MOST_STUCK
from monitor.web.receivers import read_health
from monitor.workers import doubled_words

WINDOW_SECONDS = 900.0
LOST = "state:lost retried:no finished:>-1d"  # what the sentence says of lost tasks
RECEIVER_SILENT_SECONDS = 15.0
GONE_SECONDS = 3600.0  # how long a worker that left is named


def read_facts(store: Store, cluster: str | None, now: float, workers: Sequence[Worker]) -> Facts:
    """What is known of one cluster, or of all, at ``now``."""
    since = now - WINDOW_SECONDS
    health = [each for each in read_health(store, now) if cluster in (None, each.cluster)]
    queues = queries.queues(store, cluster)
    depths = breakdowns.depths(store, since=since, cluster=cluster)
    failed = queries.failure_counts(store, since=since, cluster=cluster)
    gaps = queries.gaps(store, since, cluster)
    heard = [each for each in health if each.last_event_at is not None]
    beats = [queries.beat_health(store, each.cluster) for each in health]
    rising = queries.rising(store, cluster)
    stalls = read_stalls(store, health, workers, now, cluster)
    still = queries.stuck_workflows(store, now, cluster)
    silent = [worker for worker in workers if worker.status is WorkerStatus.SILENT]
    pauses = queries.pauses(store, cluster)
    roots = {each.root_id for each in still}
    return Facts(
        workers_up=_count(workers, WorkerStatus.ONLINE),
        workers_silent=_count(workers, WorkerStatus.SILENT),
        silent=[_silence(each, now) for each in silent if not may_be_busy(each)],
        busy=[_silence(each, now) for each in silent if may_be_busy(each)],
        doubled=[words for worker in workers if (words := doubled_words(worker))],
        stalled=stalls.workers,
        slow=[each for each in stalls.workflows if each.root_id not in roots],
        workers_offline=_count(workers, WorkerStatus.OFFLINE),
        seen_tasks=any(queries.state_counts(store, cluster).values()),
        receivers=len(health),
        disconnected=[found for each in health if (found := _disconnected(each, now))],
        growing=[
            _waiting(queue, now)
            for queue in queues
            if grows(queue, depths.get((queue.cluster, queue.name), ()), rising, now)
        ],
        unattended=[_waiting(queue, now) for queue in queues if unattended(queue) and not is_paused(queue, pauses)],
        paused=_paused(queues, pauses, now),
        long_tasks=_long_alone(stalls),
        lost=_lost(store, cluster, now),
        failures=failed.total if heard else None,
        failures_muted=failed.muted,
        failures_resolved=failed.resolved,
        top_failure=_top_failure(store, cluster, since) if heard else None,
        missed_seconds=sum((gap.ended or now) - max(gap.began, since) for gap in gaps),
        lag_seconds=max((each.lag_seconds or 0.0 for each in health), default=None),
        many_clusters=len(health) > 1,
        gone=[worker.hostname for worker in workers if _gone(worker, now)],
        stuck=[StuckWorkflow(each.root_id, each.name, now - each.since) for each in still],
        stuck_at_least=MOST_STUCK,
        new_failures=_new_failures(store, cluster, since) if heard else (),
        overdue=[Overdue(each.name, now - each.since, each.may_wait_in) for beat in beats for each in beat.overdue],
        beat_stopped=any(beat.stopped or beat.lock_free_since is not None for beat in beats),
    )


class Stalls(NamedTuple):
    """What may be stuck."""

    workers: Sequence[StalledWorker] = ()
    workflows: Sequence[SlowWorkflow] = ()
    tasks: Sequence[LongTask] = ()


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
    usual = queries.usual_runs(store, _long_running(held, now), now, cluster)
    known = [worker for worker in workers if (worker.cluster, worker.hostname) not in found.partly_started]
    return Stalls(
        workers=stalled_workers(known, held, usual, now, found.partly_received),
        workflows=slow_workflows(held, usual, now),
        tasks=long_tasks(held, usual, now),
    )


def _long_alone(stalls: Stalls) -> list[LongTask]:
    """Without those of workers and workflows of which more is said."""
    stalled = {worker.hostname for worker in stalls.workers}
    slow = {each.root_id for each in stalls.workflows}
    return [task for task in stalls.tasks if task.hostname not in stalled and task.root_id not in slow]


def _long_running(held: Sequence[HeldTask], now: float) -> set[str]:
    """The names of which it matters how long they usually run."""
    return {task.name for task in held if task.started and task.name and now - task.since > LEAST_SECONDS}


def is_paused(queue: Queue, pauses: Mapping[tuple[str, str], Pause]) -> bool:
    """Somebody paused it, and nobody is known to consume from it since then."""
    return (queue.cluster, queue.name) in pauses and not queue.consumers


def _paused(queues: Sequence[Queue], pauses: Mapping[tuple[str, str], Pause], now: float) -> list[PausedQueue]:
    found = [(pauses[queue.cluster, queue.name], queue) for queue in queues if is_paused(queue, pauses)]
    latest = sorted(found, key=lambda each: -each[0].at)
    return [PausedQueue(queue.name, pause.by, now - pause.at, queue.ready) for pause, queue in latest]


def _lost(store: Store, cluster: str | None, now: float) -> LostTasks | None:
    page = queries.tasks(store, parse(LOST, now).in_cluster(cluster), sort="-finished", limit=1)
    if not page.items:
        return None
    ended = page.items[0].finished
    return LostTasks(page.count or Count(1, exact=False), None if ended is None else now - ended, LOST)


def _gone(worker: Worker, now: float) -> bool:
    left = worker.status is WorkerStatus.OFFLINE and now - (worker.offline_at or 0.0) < GONE_SECONDS
    return left or (worker.status is WorkerStatus.SILENT and not may_be_busy(worker))


def _silence(worker: Worker, now: float) -> SilentWorker:
    heard = worker.last_heartbeat
    return SilentWorker(worker.hostname, None if heard is None else now - heard)


def _new_failures(store: Store, cluster: str | None, since: float) -> list[NewFailure]:
    return [
        NewFailure(each.id, each.exception_type, each.name, each.state is FailureState.REGRESSED)
        for each in queries.new_failure_groups(store, since=since, cluster=cluster)
    ]


def _count(workers: Sequence[Worker], status: WorkerStatus) -> int:
    return sum(worker.status is status for worker in workers)


def _waiting(queue: Queue, now: float) -> GrowingQueue:
    age = None if queue.oldest is None else max(0.0, now - queue.oldest)
    return GrowingQueue(queue.name, queue.ready or 0, age, queue.oldest_exact)


def _disconnected(health: ReceiverHealth, now: float) -> Disconnected | None:
    silent = health.updated_at is not None and now - health.updated_at > RECEIVER_SILENT_SECONDS
    if silent or health.unwritten:
        return Disconnected(health.cluster, now - (health.updated_at or now), unwritten=True)
    if health.connected:
        return None
    return Disconnected(health.cluster, None if health.last_event_at is None else now - health.last_event_at)


def _top_failure(store: Store, cluster: str | None, since: float) -> TopFailure | None:
    groups = queries.failure_groups(store, since=since, cluster=cluster, states=UNRESOLVED, limit=1)
    return TopFailure(groups[0].exception_type, groups[0].name, groups[0].count, groups[0].id) if groups else None
