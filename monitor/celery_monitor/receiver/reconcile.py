"""Decides when silence is checked: of workers, of processes that have tasks, of tasks, and after gaps.

Nothing is concluded while the receiver itself may miss events. Silence counts only from the last heartbeat, or from
when the receiver last connected, caught up or resumed. lost_tasks.py has the evidence and the conclusions.
"""

import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from celery_monitor.brokers.remote import Remote
from celery_monitor.brokers.transports import make_probe
from celery_monitor.core.lifecycle import IN_QUEUE
from celery_monitor.core.words import reconciliation_words
from celery_monitor.core.workers import GRACE_SECONDS, ON_WORKER_STATES, process_state
from celery_monitor.errors import MonitorError
from celery_monitor.receiver.helper_failures import RECONCILER, HelperFailures
from celery_monitor.receiver.lost_tasks import (
    AGAIN_SECONDS,
    RESERVED_STATES,
    SOLO_SECONDS,
    Activity,
    Evidence,
    JudgedProcess,
    Snapshot,
    judge,
    may_have_ended,
    process_name,
    run_event,
    seconds_ago,
    unrecorded,
    why_gone,
)
from celery_monitor.receiver.pace import Pace
from celery_monitor.receiver.task_locations import CHUNK, StartedCheck, TaskLocations, WaitingCheck
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, Gap, ReceiverHealth, Reconciliation
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import recorded_queue_names
from celery_monitor.store.receivers import read_gaps
from celery_monitor.store.tasks.unfinished import (
    WAITING_STATES,
    ProcessKey,
    UnfinishedTask,
    has_sent_events,
    last_number,
    read_usual_runs,
    recorded_ids,
    tasks_by_process,
    tasks_of_process,
    unfinished_tasks,
)
from celery_monitor.store.workers import change_workers, read_workers

STEP_SECONDS = 0.5
IDLE_REST = 2.0  # steps are as much rarer while nothing happens: a late heartbeat ends idleness
COUNT_SECONDS = 1.0  # between two counts of the tasks that processes have
LONG_SECONDS, REST = 0.1, 10.0  # if counting takes longer, it is repeated after this multiple of its duration
DEAF_SECONDS = 5.0  # without a step: we were suspended, or the clock was set
HEALTH_SECONDS = 2.0  # without an update of the receiver: it waits for the database, or stores something large
LATE_INTERVALS = 1.25  # of a heartbeat, after which the worker is pinged
NO_EVENT_SECONDS = 30.0  # of silence, after which a worker without heartbeats is pinged
PING_SECONDS = 1.0
PINGS = 2  # without a reply in a row before a worker counts as gone
PING_AGAIN_SECONDS = 30.0  # between later pings
MOST_LOGGED = 20  # changes of status in one step
MOST_PINGED = 200  # workers in one step; the others wait for the next ones
MOST_JUDGED = 50  # processes in one round whose tasks are read, as each is a query
LOST_AT_ONCE = 1000
USUAL_TIMES, MOST_TIMED = 2.0, 100  # a process in warm shutdown gets this multiple of its tasks' usual run times
POLL_SECONDS = 2.0  # between two searches for gaps
BACK_SECONDS = 86_400.0  # a gap that ended earlier is not reconciled
ARRIVAL_SECONDS = 3.0  # for events to arrive: after a gap, and before a snapshot is judged
PATIENCE_SECONDS = 60.0  # for workers to reconnect after a broker's outage, and for a result backend to answer
# The order is stored: the progress of a gap's check is an index into it.
STATES = (TaskState.STARTED, *RESERVED_STATES, *WAITING_STATES, TaskState.LOST)

log = logging.getLogger(__name__)


class Reconciler:
    """Checks the workers of one cluster twice a second while somebody uses the dashboard, in a thread of its own.

    ``health`` returns the receiver's health; ``conclude`` stores concluded events; ``last_heartbeat`` returns when the
    last heartbeat of a worker arrived, if it may not be stored yet.
    """

    def __init__(
        self,
        store: Store,
        cluster: str,
        remote: Remote,
        health: Callable[[], ReceiverHealth],
        conclude: Callable[[Delivery], None],
        helpers: HelperFailures | None = None,
        pace: Pace | None = None,
        last_heartbeat: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        self._helpers = helpers or HelperFailures()
        self._pace = pace or Pace()
        self._store = store
        self._cluster = cluster
        self._remote = remote
        self._health = health
        self._last_heartbeat = last_heartbeat
        self._rest = STEP_SECONDS  # between the last two steps, on purpose
        self._locations = TaskLocations(store, remote, make_probe(remote.broker, remote.settings), conclude)
        self._started = StartedCheck(self._locations)
        self._gaps = GapCheck(self._locations)
        self._waiting = WaitingCheck(self._locations)
        self._stepped_at = 0.0
        self._judged_at = 0.0
        self._counts: dict[ProcessKey, int] = {}
        self._count_at = 0.0
        self._listening_since = 0.0
        self._unanswered: dict[str, tuple[int, float]] = {}  # pings in a row, and when the last was sent
        self._gone: dict[str, str] = {}  # workers that count as gone, with the evidence
        self._settled: dict[str, tuple[int | None, WorkerStatus, float]] = {}  # process, status, since when
        self._activity: dict[ProcessKey, Activity] = {}
        self._may_return: set[ProcessKey] = set()  # whose tasks were marked lost
        self._logged = ""
        self._on_change: Callable[[], None] = lambda: None

    def on_change(self, call: Callable[[], None]) -> None:
        """Sets what is called after the status of a worker was changed."""
        self._on_change = call

    def run(self, stop: threading.Event) -> None:
        """Runs until ``stop`` is set; outages of broker and database are waited out."""
        while not self._pace.wait(stop, self._rest):
            try:
                self.step(time.time())
                self._helpers.succeeded(RECONCILER)
                self._logged = ""
            except MonitorError as error:
                self._helpers.failed(RECONCILER, error)
                if error.message != self._logged:
                    log.warning("workers cannot be checked: %s", error)
                self._logged = error.message
            self._rest = self._pace.pause(STEP_SECONDS) * (IDLE_REST if self._pace.idle else 1.0)
        self._locations.probe.close()

    def step(self, now: float) -> None:
        """One check of all workers. Raises StoreUnavailable, and BrokerUnavailable when none can be asked."""
        began = time.monotonic()
        if self._listening(now):
            self._judge(now)
        self._stepped_at = now + time.monotonic() - began  # waiting for replies is not being suspended

    def _judge(self, now: float) -> None:
        workers = read_workers(self._store, self._cluster)
        self._settle(workers, now)
        self._judge_silent(workers, now)
        if abs(now - self._judged_at) >= COUNT_SECONDS:
            self._judged_at = now
            self._judge_processes(workers, now)

    def _judge_processes(self, workers: Sequence[Worker], now: float) -> None:
        """Judges the tasks that processes have, and then all others."""
        counts = self._count()
        self._activity = {
            key: self._activity.get(key, Activity(count, now)).after(count, now) for key, count in counts.items()
        }
        by_name = {worker.hostname: worker for worker in workers}
        judged = 0
        for key in list(counts):
            worker = by_name.get(key.hostname)
            if worker is None or (evidence := self._why_gone(worker, key, now)) is None:
                continue
            judged += 1
            if judged > MOST_JUDGED:
                break
            if self._lose(worker, key, evidence, now):
                del counts[key]
        self._recover_lost(by_name, now)
        self._started.step(workers, counts, now)
        self._gaps.step(workers, now)
        self._waiting.step(workers, counts, now)

    def _count(self) -> dict[ProcessKey, int]:
        """Tasks by process. Counting a million takes seconds: then the last count is used for a while."""
        began = time.monotonic()
        if began >= self._count_at:
            self._counts = tasks_by_process(self._store, self._cluster)
            spent = time.monotonic() - began
            self._count_at = began + spent * (REST if spent > LONG_SECONDS else 1.0)
        return self._counts

    def _listening(self, now: float) -> bool:
        """Whether silence is evidence now; if not, all checks start again."""
        stepping = abs(now - self._stepped_at) < DEAF_SECONDS + self._rest
        listening = stepping and self._health().is_caught_up(now, HEALTH_SECONDS)
        if not listening:
            self._listening_since = now
            self._unanswered.clear()
            self._settled.clear()
            for check in (self._started, self._gaps, self._waiting):
                check.reset()
        return listening

    def _settle(self, workers: Sequence[Worker], now: float) -> None:
        """Notes since when each worker has had its current process and status; forgets those no longer recorded."""
        if len(self._settled) > len(workers):
            names = {worker.hostname for worker in workers}
            for known in (self._settled, self._unanswered, self._gone):
                for name in known.keys() - names:
                    del known[name]
        for worker in workers:
            pid, status, _ = self._settled.get(worker.hostname, (None, None, now))
            if (pid, status) != (worker.pid, worker.status):
                self._settled[worker.hostname] = (worker.pid, worker.status, now)

    # Silent workers

    def _judge_silent(self, workers: Iterable[Worker], now: float) -> None:
        silent = {worker.hostname: worker for worker in workers if self._is_silent(worker, now)}
        for worker in workers:
            if worker.hostname not in silent:
                self._unanswered.pop(worker.hostname, None)
            if worker.status is WorkerStatus.ONLINE:
                self._gone.pop(worker.hostname, None)
        names = [name for name, worker in silent.items() if self._ping_is_due(worker, now)]
        if len(names) > MOST_PINGED:  # those that were asked before are not judged later for it
            names = heapq.nsmallest(MOST_PINGED, names, key=lambda name: self._unanswered.get(name, (0, 0.0))[1])
        answered = self._remote.ask("ping", destination=names, timeout=PING_SECONDS) if names else {}
        marks = [self._after_ping(silent[name], name in answered, now) for name in names]
        self._mark(zip((silent[name] for name in names), marks, strict=True), now)

    def _ping_is_due(self, worker: Worker, now: float) -> bool:
        """Pings are few, as a worker that is busy gets all of them when it is done."""
        count, asked_at = self._unanswered.get(worker.hostname, (0, 0.0))
        again = count < PINGS and self._silence(worker, now) > _overdue(worker)
        return count == 0 or again or now - asked_at >= PING_AGAIN_SECONDS

    def _after_ping(self, worker: Worker, answered: bool, now: float) -> WorkerStatus:
        """The status after a ping."""
        if answered:
            self._unanswered.pop(worker.hostname, None)
            if self._silence(worker, now) > _overdue(worker):  # else the heartbeat is on its way
                return WorkerStatus.SILENT if worker.freq else WorkerStatus.ONLINE
            return worker.status
        count = self._unanswered.get(worker.hostname, (0, 0.0))[0] + 1
        self._unanswered[worker.hostname] = (count, now)
        patience = SOLO_SECONDS if worker.pool == "solo" else _overdue(worker)
        if count < PINGS or self._silence(worker, now) <= patience:
            return WorkerStatus.SILENT
        name = process_name(worker.hostname, worker.pid)
        self._gone[worker.hostname] = f"{name} is gone: {_last_event(worker, now)}, and it did not answer {count} pings"
        return WorkerStatus.OFFLINE

    def _is_silent(self, worker: Worker, now: float) -> bool:
        """Whether nothing came for long enough to ping; a worker that does not reply then is SILENT."""
        limit = LATE_INTERVALS * worker.freq if worker.freq else NO_EVENT_SECONDS
        return worker.status is not WorkerStatus.OFFLINE and self._silence(worker, now) > limit

    def _silence(self, worker: Worker, now: float) -> float:
        """Seconds for which we have listened and nothing came."""
        heartbeat = max(worker.last_heartbeat or 0.0, self._last_heartbeat(worker.hostname))
        last = max(heartbeat, 0.0 if worker.freq else worker.inspected_at or 0.0)
        return now - max(last, self._listening_since)

    def _mark(self, marks: Iterable[tuple[Worker, WorkerStatus]], now: float) -> None:
        """Stores the statuses in one transaction, unless an event of the worker was stored meanwhile."""
        changed = {worker.hostname: (worker, status) for worker, status in marks if worker.status is not status}
        if not changed:
            return

        def change(worker: Worker) -> Worker:
            judged, status = changed[worker.hostname]
            before = (judged.last_heartbeat, judged.pid, judged.status)
            if (worker.last_heartbeat, worker.pid, worker.status) != before:
                return worker
            offline_at = now if status is WorkerStatus.OFFLINE else None
            return msgspec.structs.replace(worker, status=status, offline_at=offline_at)

        change_workers(self._store, self._cluster, list(changed), change)
        self._on_change()
        for hostname, (_, status) in list(changed.items())[:MOST_LOGGED]:
            log.info("%s is %s", hostname, status.value)
        if len(changed) > MOST_LOGGED:
            log.info("%d more workers have another status", len(changed) - MOST_LOGGED)

    # Processes that have tasks

    def _why_gone(self, worker: Worker, key: ProcessKey, now: float) -> str | None:
        _, _, settled_at = self._settled.get(worker.hostname, (None, None, now))
        process = JudgedProcess(key, worker, self._activity[key], settled_at, self._gone.get(worker.hostname))
        evidence = why_gone(process, self._listening_since, now)
        leaving = evidence is not None and process_state(worker, key.pid) == "shutting down"
        return None if leaving and self._usual_end(key, now) > now else evidence

    def _usual_end(self, key: ProcessKey, now: float) -> float:
        """When all its started tasks have run for USUAL_TIMES the usual run time of their names."""
        tasks = tasks_of_process(self._store, self._cluster, key, (TaskState.STARTED,), MOST_TIMED)
        names = {task.name for task in tasks if task.name is not None}
        usual = read_usual_runs(self._store, names, now, self._cluster) if names else {}
        ends = [(task.started or 0.0) + USUAL_TIMES * usual[task.name].p99 for task in tasks if task.name in usual]
        return max(ends, default=0.0)

    def _lose(self, worker: Worker, key: ProcessKey, evidence: str, now: float) -> bool:
        """Marks the process's tasks as lost, up to LOST_AT_ONCE; returns whether those were all."""
        tasks = tasks_of_process(self._store, self._cluster, key, ON_WORKER_STATES, LOST_AT_ONCE)
        self._conclude_runs("task-lost", tasks, worker, evidence, now)
        self._may_return.add(key)
        if tasks:
            log.warning("%d tasks are lost: %s", len(tasks), evidence)
        return len(tasks) < LOST_AT_ONCE

    def _recover_lost(self, workers: Mapping[str, Worker], now: float) -> None:
        """Asks processes that came back which of their lost tasks they still have."""
        for key in list(self._may_return):
            worker = workers.get(key.hostname)
            if worker is None or (worker.pid != key.pid and worker.status is WorkerStatus.ONLINE):
                self._may_return.discard(key)
            elif worker.status is WorkerStatus.ONLINE:
                lost = tasks_of_process(self._store, self._cluster, key, (TaskState.LOST,), LOST_AT_ONCE)
                has = self._locations.still_has(key.hostname, lost, PING_SECONDS)
                if has is not None:
                    found = [task for task in lost if task.id in has]
                    self._conclude_runs("task-found", found, worker, None, now)
                    self._may_return.discard(key)

    def _conclude_runs(
        self, kind: str, tasks: Iterable[UnfinishedTask], worker: Worker, text: str | None, now: float
    ) -> None:
        at = now - (worker.skew or 0.0)  # by the worker's clock, like the run's other times
        self._locations.conclude([run_event(kind, task, at, text) for task in tasks], now)


def _overdue(worker: Worker) -> float:
    """Seconds of silence that a delayed heartbeat does not explain."""
    return 2 * worker.freq + GRACE_SECONDS if worker.freq else NO_EVENT_SECONDS


def _last_event(worker: Worker, now: float) -> str:
    ago = seconds_ago(worker.last_heartbeat, now)
    if not worker.freq:  # without heartbeats
        return f"its last event came {ago}"
    return f"its last heartbeat came {ago} (one is due every {worker.freq:g} s)"


class GapWork(NamedTuple):
    """The gap that is being reconciled, and the progress."""

    gap: Gap
    began: float  # from when on events may be missing, including earlier gaps that are reconciled with this one
    found: Reconciliation
    first: Snapshot | None = None
    second: Snapshot | None = None
    newest: int = 0  # the number of the last task that was stored before the first snapshot
    asked_at: float = 0.0
    until: float = 0.0  # until when silent workers are waited for
    silent_since: float | None = None  # the result backend
    unrecorded: tuple[Event, ...] | None = None  # of tasks that the record may not have; None: not gathered yet


class GapCheck:
    """Reconciles after a gap: tasks that had not ended when it began, and tasks that are not in the record.

    Two snapshots are made after the receiver has caught up. Then the record's unfinished tasks are judged in chunks,
    one a second, as a million of them must not flood a result backend. The progress is stored with the gap, in the
    transaction of the conclusions: a receiver that is restarted continues there.
    """

    def __init__(self, locations: TaskLocations) -> None:
        self._locations = locations
        self._store, self._cluster = locations.store, locations.cluster
        self._work: GapWork | None = None
        self._polled_at = 0.0

    def reset(self) -> None:
        """Events may have been missed, or are late: what was gathered is invalid."""
        self._work = None

    def step(self, workers: Sequence[Worker], now: float) -> None:
        """Does what is due, at most one chunk. Raises BrokerUnavailable and StoreUnavailable."""
        self._work = work = self._work or self._next(now)
        if work is None:
            return
        if work.first is None or work.second is None:
            if now - work.asked_at >= AGAIN_SECONDS:
                self._work = self._gather(work, workers, now)
        elif now - work.asked_at >= ARRIVAL_SECONDS:
            gap = work.began, work.gap.ended or now
            evidence = self._locations.evidence(work.first, work.second, workers, {}, now, gap)
            if work.unrecorded is None:
                events = unrecorded(evidence, queues_too=has_sent_events(self._store, self._cluster))
                self._work = work._replace(unrecorded=tuple(events))
            elif work.unrecorded:
                self._store_unrecorded(work, work.unrecorded, now)
            else:
                self._judge_chunk(work, evidence)

    def _next(self, now: float) -> GapWork | None:
        """The latest gap that is not reconciled; its result counts for the earlier ones, too."""
        if abs(now - self._polled_at) < POLL_SECONDS:
            return None
        self._polled_at = now
        gaps = [gap for gap in read_gaps(self._store, now - BACK_SECONDS, self._cluster) if gap.dropped != 0]
        open_ = [gap for gap in gaps if gap.reconciliation is None or gap.reconciliation.ended is None]
        if not open_ or any(gap.ended is None or now - gap.ended < ARRIVAL_SECONDS for gap in open_):
            return None
        *earlier, last = sorted(open_, key=lambda gap: gap.ended or 0.0)
        for gap in earlier:
            done = gap.reconciliation or Reconciliation(began=now)
            self._store_progress(gap, msgspec.structs.replace(done, ended=now, together_with=last.began), now)
        began = min(_beginning(gap, gaps) for gap in open_)
        return GapWork(last, began, last.reconciliation or Reconciliation(began=now))

    def _gather(self, work: GapWork, workers: Sequence[Worker], now: float) -> GapWork:
        """Makes the next snapshot; the first is repeated while workers are silent, for PATIENCE_SECONDS."""
        newest = last_number(self._store, self._cluster)
        consumed = {queue for worker in workers for queue in worker.queues or ()}
        queues = consumed | recorded_queue_names(self._store, self._cluster)
        snapshot = self._locations.snapshot(workers, queues)
        work = work._replace(asked_at=now, until=work.until or now + PATIENCE_SECONDS)
        if work.first is None or (now < work.until and work.first.silent | snapshot.silent):
            return work._replace(first=snapshot, newest=newest)
        return work._replace(second=snapshot)

    def _store_unrecorded(self, work: GapWork, events: tuple[Event, ...], now: float) -> None:
        """Stores the next chunk of the tasks that are not in the record."""
        chunk, rest = events[:CHUNK], events[CHUNK:]
        recorded = recorded_ids(self._store, self._cluster, [str(event.uuid) for event in chunk])
        new = [event for event in chunk if event.uuid not in recorded]
        queued = sum(event.type == IN_QUEUE for event in new)
        found = msgspec.structs.replace(
            work.found,
            discovered_on_workers=work.found.discovered_on_workers + len(new) - queued,
            discovered_in_queues=work.found.discovered_in_queues + queued,
        )
        self._store_progress(work.gap, found, now, new)
        self._work = work._replace(unrecorded=rest, found=found)

    def _judge_chunk(self, work: GapWork, evidence: Evidence) -> None:
        """Judges the next unfinished tasks of the record. While the result backend is silent, the chunk waits."""
        number, *position = work.found.position
        if number == len(STATES):
            self._finish(work, evidence)
            return
        after = (float(position[0]), int(position[1]))
        rows = unfinished_tasks(self._store, self._cluster, STATES[number], work.newest, after, CHUNK)
        asked = [task for task in rows if may_have_ended(task, evidence)]
        results = self._locations.results_of(task for task in asked if not evidence.has(task.id))
        if rows:
            silent_since = (work.silent_since or evidence.now) if results is None else None
            self._work = work = work._replace(silent_since=silent_since)
        if results is None and evidence.now - (work.silent_since or 0.0) < PATIENCE_SECONDS:
            return
        verdicts = [judge(task, evidence._replace(results=results)) for task in asked]
        counts = Counter(verdict.found for verdict in verdicts)
        found = msgspec.structs.replace(
            work.found,
            position=(number, *rows[-1].position) if rows else (number + 1, 0.0, 0),
            asked=work.found.asked + len(asked),
            complete=work.found.complete and results is not None,
            **{name: getattr(work.found, name) + count for name, count in counts.items()},
        )
        events = [event for verdict in verdicts for event in verdict.events]
        self._store_progress(work.gap, found, evidence.now, events)
        self._work = work._replace(found=found)

    def _finish(self, work: GapWork, evidence: Evidence) -> None:
        complete = work.found.complete and evidence.first.complete and evidence.second.complete
        found = msgspec.structs.replace(work.found, ended=evidence.now, complete=complete)
        self._store_progress(work.gap, found, evidence.now)
        log.info("the gap of %s is reconciled: %s", self._cluster, reconciliation_words(found))
        self._work = None

    def _store_progress(self, gap: Gap, found: Reconciliation, now: float, events: Sequence[Event] = ()) -> None:
        """Stores the conclusions and the progress in one transaction."""
        self._locations.conclude(events, now, msgspec.structs.replace(gap, reconciliation=found))


def _beginning(gap: Gap, gaps: Iterable[Gap]) -> float:
    """When the first of the gaps began that are reconciled together with this one."""
    together = [each for each in gaps if each.reconciliation and each.reconciliation.together_with == gap.began]
    return min([gap.began, *(_beginning(each, gaps) for each in together)])
