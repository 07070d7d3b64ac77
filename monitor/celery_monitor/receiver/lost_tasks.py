"""Judges unfinished tasks without recent events, from the evidence that was gathered about them. No I/O, no clock.

| reason to check | evidence | conclusion |
|---|---|---|
| no heartbeat of a worker | two pings of the worker (a solo pool has 5 min) | its tasks are LOST |
| another process has the worker's name | heartbeats of the old process | its tasks are LOST |
| worker-offline: warm shutdown, tasks run on | a task's end is a sign of life | LOST after 10 min, or 2 usual runs |
| worker-offline, tasks received, not started | the queue, twice (Redis) | they wait again |
| STARTED for 60 s, worker up | the worker, twice; the result backend | the stored result, or LOST |
| PENDING or RETRY for 45 s | queue and workers, twice; the result backend | the result, REVOKED if expired, or LOST |
| a gap in the events | all queues and workers, twice; the result backend | where it is, the result, or LOST |
| a message that was removed here | none: the writer reads it in store/tasks/detail.py | REVOKED |

Nothing is concluded if anybody who may have the task did not reply, or if the task changed between the questions. Any
later event of the task overrides the conclusion.
"""

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import msgspec

from celery_monitor.brokers.results import StoredResult
from celery_monitor.brokers.task_messages import LocatedMessage
from celery_monitor.core.lifecycle import IN_QUEUE, ON_WORKER, REMOVED, RUNNING
from celery_monitor.core.words import age_words
from celery_monitor.core.workers import SHUTDOWN_SECONDS, overdue_seconds, process_of
from celery_monitor.records.event import Event
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerProcess, WorkerStatus
from celery_monitor.store.tasks.unfinished import WAITING_STATES, ProcessKey, UnfinishedTask

RESERVED_STATES = (TaskState.RECEIVED, TaskState.SCHEDULED)  # on a worker, not started
AGAIN_SECONDS = 5.0  # between two snapshots
STARTED_SECONDS, STARTED_AGAIN_SECONDS = 60.0, 30.0  # the age of a run that is first checked, and the interval
SETTLE_SECONDS = 5.0  # before a new process or a shutdown counts: the last events may be on their way
SOLO_SECONDS = 300.0  # a solo pool sends no heartbeats and no replies while it works
AFTER_GAP = "after a gap in the events, in which its end may have been missed"  # marks our own conclusions
_AFTER_START = (
    f", {STARTED_AGAIN_SECONDS:.0f} s apart, over {STARTED_SECONDS:.0f} s after the start. Its code ignored it, or "
    "its end was missed"
)


class OnWorker(NamedTuple):
    """A task that a worker has; ``listed`` is the command that listed it: active, reserved or scheduled."""

    listed: str
    hostname: str
    name: str | None = None
    args: str | None = None
    kwargs: str | None = None
    started: float | None = None  # by the worker's clock
    eta: str | None = None
    exchange: str | None = None
    routing_key: str | None = None


class Snapshot(NamedTuple):
    """Where tasks are, from one round of questions."""

    on_workers: Mapping[str, OnWorker]
    messages: Mapping[str, LocatedMessage]
    answered: frozenset[str] = frozenset()  # workers that replied to every question
    silent: frozenset[str] = frozenset()  # the others, which may have tasks that are missing here
    queues: frozenset[str] = frozenset()  # that were searched
    whole: bool = False  # every message was read
    # Of brokers whose messages cannot be read in place:
    empty: frozenset[str] = frozenset()  # queues without a message, or that do not exist
    absent_queues: frozenset[str] = frozenset()  # queues that do not exist
    delayed: bool = False  # queues of delayed delivery have messages, which may belong to any queue

    @property
    def complete(self) -> bool:
        """A task that is missing here is neither on a recorded worker nor in these queues."""
        return self.whole and not self.silent

    def has(self, task_id: str) -> bool:
        return task_id in self.on_workers or task_id in self.messages


class Evidence(NamedTuple):
    """Two snapshots, results from the result backend, and workers and gaps from the record."""

    first: Snapshot
    second: Snapshot
    workers: Mapping[str, Worker]
    now: float
    results: Mapping[str, StoredResult] | None  # None: the result backend does not answer
    backend: str  # what a missing result means
    gap: tuple[float, float] | None = None  # from when to when events may be missing, if that is the reason to check
    reporting: Collection[str] = ()  # workers that have sent task events
    missed_until: float = 0.0  # the end of the last gap
    reads_queues: bool = True  # messages can be read in place

    def has(self, task_id: str) -> bool:
        return self.first.has(task_id) or self.second.has(task_id)

    def now_of(self, task: UnfinishedTask) -> float:
        """Now, by the clock of the task's run: its worker's, or ours while it waits."""
        return self.now if task.state in WAITING_STATES else self.now - skew_of(task, self.workers)


class Verdict(NamedTuple):
    """Where the task is, as Reconciliation counts it, and the events that follow."""

    found: Literal["backend", "workers", "queue", "lost", "unknown"]
    events: tuple[Event, ...] = ()


UNKNOWN = Verdict("unknown")


# Tasks


def judge(task: UnfinishedTask, evidence: Evidence) -> Verdict:
    """Where a task is, how it ended, or that it is lost; UNKNOWN if the evidence is not enough."""
    on_worker, message = evidence.second.on_workers.get(task.id), evidence.second.messages.get(task.id)
    if on_worker is not None and evidence.gap:
        return Verdict("workers", _on_worker(task, on_worker, message, evidence))
    if message is not None:
        return Verdict("queue", _in_queue(task, message, evidence))
    if evidence.has(task.id) or evidence.results is None:  # on its way: events will follow
        return UNKNOWN
    result = evidence.results.get(task.id)
    done = result.ended_at(_began(task), evidence.now_of(task)) if result is not None else None
    if result is not None and done is not None:
        return Verdict("backend", (_end_event(task, result, done),))
    text = _why_lost(task, evidence)
    if text is None:
        return UNKNOWN
    expired = evidence.gap is None and task.state in WAITING_STATES and _has_expired(task, evidence)
    return Verdict("lost", (run_event(REMOVED if expired else "task-lost", task, evidence.now_of(task), text),))


def may_have_ended(task: UnfinishedTask, evidence: Evidence) -> bool:
    """Whether its end may be missing because of the gap: no event since; LOST only where the gap was not the reason."""
    began, ended = evidence.gap or (0.0, evidence.now)
    skew = skew_of(task, evidence.workers)
    if task.state is TaskState.LOST:
        ours = task.exception is not None and AFTER_GAP in task.exception
        return not ours and task.ended is not None and task.ended + skew >= began
    if task.discovered_at is not None and task.discovered_at >= began:
        return False  # it was not in the record when the gap began
    moments = [at for at in (task.received, task.started, task.ended) if at is not None]
    return max(moments, default=0.0) + skew <= ended


def waits_since(task: UnfinishedTask, workers: Mapping[str, Worker]) -> float:
    """Since when it waits, by our clock as far as the workers' offsets are known."""
    skew = skew_of(task, workers)
    moments = [at + skew for at in (task.received, task.started, task.ended) if at is not None]
    return max([*moments, *(at for at in (task.sent, task.discovered_at) if at is not None)], default=0.0)


def skew_of(task: UnfinishedTask, workers: Mapping[str, Worker]) -> float:
    """Seconds by which our clock is ahead of that of the task's worker; 0 where that is unknown."""
    worker = workers.get(task.worker or "")
    return (worker.skew or 0.0) if worker is not None else 0.0


def _began(task: UnfinishedTask) -> float:
    """When the run began whose end is missing. An earlier result is of an older run with the same id."""
    if task.state is TaskState.STARTED:
        return task.started or 0.0
    ended = None if task.state is TaskState.LOST else task.ended
    return max((at for at in (task.sent, task.received, task.started, ended) if at is not None), default=0.0)


def _on_worker(
    task: UnfinishedTask, found: OnWorker, message: LocatedMessage | None, evidence: Evidence
) -> tuple[Event, ...]:
    worker = evidence.workers[found.hostname]
    event = _found_on_worker(task.id, found, message, worker, evidence.now)
    same = task.worker == found.hostname and task.pid in (None, worker.pid)
    if found.listed == "active":
        return () if same and task.state is TaskState.STARTED else (event,)
    if same and task.state is TaskState.LOST:
        return (run_event("task-found", task, evidence.now_of(task)),)
    before = evidence.first.on_workers.get(task.id)
    if task.state is TaskState.STARTED and (before is None or before.listed != "active"):
        text = f"after a gap it no longer ran: {found.hostname} has it reserved again"
        return run_event("task-rejected", task, evidence.now_of(task), text, requeue=True), event
    return (event,) if task.state in WAITING_STATES else ()


def _in_queue(task: UnfinishedTask, message: LocatedMessage, evidence: Evidence) -> tuple[Event, ...]:
    """Ends the run of a task that a worker had received or started, and that waits in its queue again."""
    before = evidence.first.messages.get(task.id)
    waits = message.queue is not None and before is not None and before.queue is not None
    if not waits or task.worker is None or task.state in WAITING_STATES:
        return ()
    if evidence.gap:
        at, text = evidence.now_of(task), f"its message was found in {message.queue} after a gap"
    else:  # the run ended with its worker
        at = max(task.received or 0.0, _left_at(evidence.workers.get(task.worker), task.pid))
        text = f"its worker shut down before starting the task; its message waits in {task.queue}"
    return (run_event("task-rejected", task, at, text, requeue=True),)


def _left_at(worker: Worker | None, pid: int | None) -> float:
    """When the process shut down, by its own clock; 0 if unknown."""
    process = worker and (process_of(worker, pid) or worker)
    return 0.0 if not process or process.offline_at is None else process.offline_at - (process.skew or 0.0)


def _why_lost(task: UnfinishedTask, evidence: Evidence) -> str | None:
    """The evidence that nobody has it; ``None`` if that is not certain."""
    if task.state is TaskState.STARTED:
        return _why_run_is_lost(task, evidence)
    if evidence.gap is None:
        return _why_message_is_gone(task, evidence)
    first, second = evidence.first, evidence.second
    searched = task.queue is not None and task.queue in first.queues & second.queues
    if task.state is TaskState.LOST or not (first.complete and second.complete and searched):
        return None
    return (
        f"no worker has the task and its message is neither in {task.queue} nor unacknowledged: both were checked "
        f"twice {AFTER_GAP}; {evidence.backend}"
    )


def _why_run_is_lost(task: UnfinishedTask, evidence: Evidence) -> str | None:
    worker = evidence.workers.get(task.worker or "")
    if worker is None or worker.hostname not in evidence.first.answered & evidence.second.answered:
        return None
    if worker.pid != task.pid:
        return None  # ``why_gone`` judges processes that are gone
    when = f" {AFTER_GAP}" if evidence.gap else _AFTER_START
    name = f"{worker.hostname} (process {task.pid})"
    return f"{name} is up and no longer has the task: it was queried twice{when}; {evidence.backend}"


def _why_message_is_gone(task: UnfinishedTask, evidence: Evidence) -> str | None:
    """The evidence that a waiting task's message is not in its queue, and that no worker can have the task."""
    first, second = evidence.first, evidence.second
    gone = first.whole and second.whole
    place = f"its message is neither in {task.queue} nor unacknowledged"
    if not evidence.reads_queues:
        gone = task.queue in first.empty & second.empty and not (first.delayed or second.delayed)
        place = f"its queue {task.queue} {'does not exist' if task.queue in second.absent_queues else 'is empty'}"
    if task.state not in WAITING_STATES or not gone or _any_worker_may_have(task, evidence):
        return None
    since = waits_since(task, evidence.workers)
    text = (
        f"{place}, and no worker that consumes {task.queue} has the task: checked twice, "
        f"{AGAIN_SECONDS:.0f} s apart, {age_words(evidence.now - since)} after it began to wait"
    )
    if _has_expired(task, evidence):
        return f"expired before a worker received it; {text}"
    missed = "; events were missed meanwhile, perhaps those of its run" if since <= evidence.missed_until else ""
    return f"{text}. It was purged, expired or dead-lettered, or a worker rejected it (see the workers' logs){missed}"


def _has_expired(task: UnfinishedTask, evidence: Evidence) -> bool:
    return task.expires is not None and task.expires < evidence.now


def _any_worker_may_have(task: UnfinishedTask, evidence: Evidence) -> bool:
    """Whether a worker that consumes its queue did not reply, or may have run it without sending events."""
    answered = evidence.first.answered & evidence.second.answered
    for worker in evidence.workers.values():
        if worker.queues is not None and task.queue not in worker.queues:
            continue
        if worker.status is not WorkerStatus.OFFLINE and worker.hostname not in answered:
            return True
        unset = worker.events_enabled is None and worker.hostname in evidence.reporting
        reports = worker.events_enabled or unset or worker.processed == 0
        if not reports and (worker.last_heartbeat or 0.0) >= (task.sent or 0.0):
            return True
    return False


# Processes


class Activity(NamedTuple):
    """How many tasks a process has, since when they are counted, and when one of them last ended."""

    tasks: int
    since: float
    ended_at: float | None = None

    def after(self, tasks: int, now: float) -> "Activity":
        """Fewer tasks than before: one has ended, so the process is alive."""
        return Activity(tasks, self.since, now if tasks < self.tasks else self.ended_at)


class JudgedProcess(NamedTuple):
    """A process that has tasks, and the worker of its name."""

    key: ProcessKey
    worker: Worker
    activity: Activity
    settled_at: float  # since when the worker has had its process and status
    unanswered: str | None  # evidence: pings without a reply

    @property
    def name(self) -> str:
        return process_name(*self.key)


def why_gone(process: JudgedProcess, listening_since: float, now: float) -> str | None:
    """The evidence that this process, and so its tasks, are gone; ``None``: they are not."""
    worker, pid = process.worker, process.key.pid
    if now - process.settled_at < SETTLE_SECONDS:
        return process.unanswered if worker.status is WorkerStatus.OFFLINE and pid == worker.pid else None
    if pid is None or worker.pid in (None, pid):
        return _why_present_is_gone(process, now)
    other = process_of(worker, pid)
    if other is not None:
        return _why_other_is_gone(process, other, listening_since, now)
    patience = SETTLE_SECONDS if worker.freq else SHUTDOWN_SECONDS  # without heartbeats only ends of tasks are signs
    if now - process.activity.since < patience:
        return None
    return f"{process.name} is gone: process {worker.pid} has taken its place"


def _why_present_is_gone(process: JudgedProcess, now: float) -> str | None:
    """For the worker's current process."""
    worker = process.worker
    if worker.status is not WorkerStatus.OFFLINE:
        return None
    if worker.sent_offline:
        return _outlasted(process, worker.offline_at or 0.0, now)
    went = f"went offline {seconds_ago(worker.offline_at, now)}"
    return process.unanswered or f"{process.name} is gone: it {went} and had not ended the task"


def _why_other_is_gone(process: JudgedProcess, other: WorkerProcess, listening_since: float, now: float) -> str | None:
    """For another process of the same name, which cannot be asked: the current one replies."""
    if other.offline_at is not None:
        return _outlasted(process, other.offline_at, now)
    overdue = overdue_seconds(other.freq) if other.freq else SHUTDOWN_SECONDS
    patience = max(overdue, SOLO_SECONDS) if other.pool == "solo" else overdue
    if now - max(other.last_heartbeat, listening_since) <= patience:
        return None
    due = f" (one is due every {other.freq:g} s)" if other.freq else ""
    last = f"its last heartbeat came {seconds_ago(other.last_heartbeat, now)}{due}"
    return f"{process.name} is gone: {last}, and process {process.worker.pid} has taken its place"


def _outlasted(process: JudgedProcess, offline_at: float, now: float) -> str | None:
    """For a process in warm shutdown, which finishes its tasks and sends no event but their ends."""
    ended_at, minutes = process.activity.ended_at, SHUTDOWN_SECONDS / 60
    if now - max(offline_at, ended_at or 0.0) < SHUTDOWN_SECONDS:
        return None
    ended = "it ended no task since" if ended_at is None else f"its last task ended {seconds_ago(ended_at, now)}"
    return (
        f"{process.name} shut down {seconds_ago(offline_at, now)} and had not ended the task; {ended}. "
        f"After {minutes:.0f} min it is presumed killed"
    )


def process_name(hostname: str, pid: int | None) -> str:
    return f"{hostname} (process {pid})" if pid else hostname


def seconds_ago(then: float | None, now: float) -> str:
    return "at an unknown time" if then is None else f"{max(0.0, now - then):.0f} s ago"


# Events


def unrecorded(evidence: Evidence, *, queues_too: bool) -> list[Event]:
    """Events for tasks in both snapshots that the record may not have.

    Without ``queues_too`` tasks in queues are left out: without task-sent events the record never has them.
    """
    first, second = evidence.first, evidence.second
    events = []
    for task_id, found in second.on_workers.items():
        worker = evidence.workers.get(found.hostname)
        # A worker without events would never report the end.
        if worker is not None and worker.events_enabled is not False and first.has(task_id):
            events.append(_found_on_worker(task_id, found, second.messages.get(task_id), worker, evidence.now))
    if queues_too:
        events += [
            _found_in_queue(message, evidence.now)
            for task_id, message in second.messages.items()
            if message.queue is not None and task_id not in second.on_workers and task_id in first.messages
        ]
    return events


def run_event(
    kind: str, task: UnfinishedTask, at: float, text: str | None = None, *, requeue: bool | None = None
) -> Event:
    """A conclusion about the task's current run; about no run while it waits, as its worker is unknown."""
    waits = task.state in WAITING_STATES
    hostname, pid = ("", None) if waits else (task.worker or "", task.pid)
    return Event(type=kind, timestamp=at, hostname=hostname, pid=pid, uuid=task.id, exception=text, requeue=requeue)


def _end_event(task: UnfinishedTask, result: StoredResult, done: float) -> Event:
    """If the last run is over, the result is of another run, whose worker only an extended result names."""
    over = task.worker is None or task.state in WAITING_STATES
    return Event(
        type=result.event,
        timestamp=done,
        hostname=(result.worker or "") if over else task.worker or "",
        pid=None if over else task.pid,
        uuid=task.id,
        result=result.result,
        exception=result.exception,
        traceback=result.traceback,
    )


def _found_on_worker(
    task_id: str, found: OnWorker, message: LocatedMessage | None, worker: Worker, now: float
) -> Event:
    """What the worker lists, completed from the message."""
    event = _found_in_queue(message, now) if message else Event(type=IN_QUEUE, timestamp=now, hostname="", uuid=task_id)
    described = {"name": found.name, "args": found.args, "kwargs": found.kwargs}
    started = found.started if found.listed == "active" else None
    return msgspec.structs.replace(
        event,
        type=ON_WORKER if started is None else RUNNING,
        timestamp=now if started is None else started,
        hostname=found.hostname,
        pid=worker.pid,
        eta=found.eta,
        # With the default exchange the routing key is the queue's name; else it is unknown.
        queue=found.routing_key if found.exchange == "" else None,
        exchange=found.exchange,
        routing_key=found.routing_key,
        discovered_at=now,
        **{field: text for field, text in described.items() if text is not None},
    )


def _found_in_queue(message: LocatedMessage, now: float) -> Event:
    described = msgspec.structs.asdict(message.headers)
    return Event(type=IN_QUEUE, timestamp=now, hostname="", queue=message.queue, discovered_at=now, **described)
