"""Judges unfinished tasks of which no event comes, by what was gathered about them. No I/O, no clock.

| silence | what is asked | what is concluded |
|---|---|---|
| no heartbeat of a worker | the worker, by two pings (a solo pool has 5 min) | its tasks are LOST |
| another process has the worker's name | heartbeats of the old process | its tasks are LOST |
| a goodbye: a warm shutdown ends tasks | nobody; a task's end is a sign of life | LOST after 10 min, or 2 usual runs |
| a goodbye, tasks received, not started | the queue, twice (Redis) | they wait again |
| STARTED for 60 s, worker up | the worker, twice; the result backend | the end stored there, or LOST |
| PENDING or RETRY for 45 s | queue and workers, twice; the result backend | the end, REVOKED if expired, or LOST |
| a gap in the events | all queues and workers, twice; the result backend | who has it, the end, or LOST |
| a message that was removed here | nobody: the writer reads store/removals.py | REVOKED |

Nothing is concluded where somebody who may have the task did not answer, or where the task changed between the
questions. Any later event of the task takes a conclusion back.
"""

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import msgspec

from celery_monitor.brokers.results import StoredEnd
from celery_monitor.brokers.task_messages import Seen
from celery_monitor.core.lifecycle import IN_QUEUE, ON_WORKER, REMOVED, RUNNING
from celery_monitor.core.words import age_words
from celery_monitor.core.workers import SHUTDOWN_SECONDS, overdue_seconds, process_of
from celery_monitor.records.event import Event
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerProcess, WorkerStatus
from celery_monitor.store.tasks.unfinished import WAITING_STATES, ProcessKey, UnfinishedTask

RESERVED_STATES = (TaskState.RECEIVED, TaskState.SCHEDULED)  # on a worker, not started
AGAIN_SECONDS = 5.0  # between two snapshots
STARTED_SECONDS, STARTED_AGAIN_SECONDS = 60.0, 30.0  # a run this old is asked for, and again after
SETTLE_SECONDS = 5.0  # before a new process or a goodbye counts: its last events may be on their way
SOLO_SECONDS = 300.0  # a solo pool neither beats nor answers while it works
AFTER_GAP = "after a gap in the events, in which its end may have been missed"  # in all evidence from here
_AFTER_START = (
    f", {STARTED_AGAIN_SECONDS:.0f} s apart, over {STARTED_SECONDS:.0f} s after the start. Its code ignored it, or "
    "its end was missed"
)


class OnWorker(NamedTuple):
    """A task that a worker has; ``listed`` is the question it was an answer to: active, reserved or scheduled."""

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
    """Who has which task, by one round of questions."""

    on_workers: Mapping[str, OnWorker]
    messages: Mapping[str, Seen]
    answered: frozenset[str] = frozenset()  # workers that answered every question
    silent: frozenset[str] = frozenset()  # those that did not: they may have tasks that are not in here
    queues: frozenset[str] = frozenset()  # that were searched
    whole: bool = False  # every message was read
    # Of brokers whose messages cannot be read in place:
    empty: frozenset[str] = frozenset()  # queues without a message, or that do not exist
    absent_queues: frozenset[str] = frozenset()  # these do not exist
    delayed: bool = False  # queues for delayed delivery have messages, of whatever queue

    @property
    def complete(self) -> bool:
        """A task that is not in here is not on any worker of the record, nor in these queues."""
        return self.whole and not self.silent

    def has(self, task_id: str) -> bool:
        return task_id in self.on_workers or task_id in self.messages


class Evidence(NamedTuple):
    """Two snapshots, what the result backend has, and what the record says of workers and gaps."""

    first: Snapshot
    second: Snapshot
    workers: Mapping[str, Worker]
    now: float
    ends: Mapping[str, StoredEnd] | None  # None: the result backend does not answer
    backend: str  # what it means that it has no end of a task
    gap: tuple[float, float] | None = None  # from when to when events may be missing, where that is the reason to ask
    reporting: Collection[str] = ()  # workers that have sent task events
    missed_until: float = 0.0  # the end of the last gap
    reads_queues: bool = True  # messages can be read in place

    def has(self, task_id: str) -> bool:
        return self.first.has(task_id) or self.second.has(task_id)

    def now_of(self, task: UnfinishedTask) -> float:
        """Now, by the clock that stamps the task's run: its worker's, or ours while it waits."""
        return self.now if task.state in WAITING_STATES else self.now - skew_of(task, self.workers)


class Verdict(NamedTuple):
    """Where the task is, as Reconciliation counts it, and the events that follow from that."""

    found: Literal["backend", "workers", "queue", "lost", "unknown"]
    events: tuple[Event, ...] = ()


UNKNOWN = Verdict("unknown")


# Tasks


def judge(task: UnfinishedTask, evidence: Evidence) -> Verdict:
    """Where a task is, how it ended, or that it is lost; UNKNOWN where the evidence is not enough."""
    on_worker, message = evidence.second.on_workers.get(task.id), evidence.second.messages.get(task.id)
    if on_worker is not None and evidence.gap:
        return Verdict("workers", _on_worker(task, on_worker, message, evidence))
    if message is not None:
        return Verdict("queue", _in_queue(task, message, evidence))
    if evidence.has(task.id) or evidence.ends is None:  # on its way: its events come
        return UNKNOWN
    end = evidence.ends.get(task.id)
    done = end.since(_begun(task), evidence.now_of(task)) if end is not None else None
    if end is not None and done is not None:
        return Verdict("backend", (_end_event(task, end, done),))
    text = _why_lost(task, evidence)
    if text is None:
        return UNKNOWN
    expired = evidence.gap is None and task.state in WAITING_STATES and _has_expired(task, evidence)
    return Verdict("lost", (run_event(REMOVED if expired else "task-lost", task, evidence.now_of(task), text),))


def may_have_ended(task: UnfinishedTask, evidence: Evidence) -> bool:
    """Whether the gap may hide its end: no event since; of what is lost, only what others called so since then."""
    began, ended = evidence.gap or (0.0, evidence.now)
    skew = skew_of(task, evidence.workers)
    if task.state is TaskState.LOST:
        ours = task.exception is not None and AFTER_GAP in task.exception
        return not ours and task.ended is not None and task.ended + skew >= began
    if task.learnt is not None and task.learnt >= began:
        return False  # it was not in the record when the gap began
    moments = [at for at in (task.received, task.started, task.ended) if at is not None]
    return max(moments, default=0.0) + skew <= ended


def waits_since(task: UnfinishedTask, workers: Mapping[str, Worker]) -> float:
    """Since when it waits, by our clock as far as the offsets are known."""
    skew = skew_of(task, workers)
    moments = [at + skew for at in (task.received, task.started, task.ended) if at is not None]
    return max([*moments, *(at for at in (task.sent, task.learnt) if at is not None)], default=0.0)


def skew_of(task: UnfinishedTask, workers: Mapping[str, Worker]) -> float:
    """Seconds by which our clock is ahead of that of the task's worker; 0 where that is unknown."""
    worker = workers.get(task.worker or "")
    return (worker.skew or 0.0) if worker is not None else 0.0


def _begun(task: UnfinishedTask) -> float:
    """When the run began whose end is missing: an end before that is an older one of the same id."""
    if task.state is TaskState.STARTED:
        return task.started or 0.0
    ended = None if task.state is TaskState.LOST else task.ended
    return max((at for at in (task.sent, task.received, task.started, ended) if at is not None), default=0.0)


def _on_worker(task: UnfinishedTask, found: OnWorker, message: Seen | None, evidence: Evidence) -> tuple[Event, ...]:
    worker = evidence.workers[found.hostname]
    event = _found_on_worker(task.id, found, message, worker, evidence.now)
    same = task.worker == found.hostname and task.pid in (None, worker.pid)
    if found.listed == "active":
        return () if same and task.state is TaskState.STARTED else (event,)
    if same and task.state is TaskState.LOST:
        return (run_event("task-found", task, evidence.now_of(task)),)
    before = evidence.first.on_workers.get(task.id)
    if task.state is TaskState.STARTED and (before is None or before.listed != "active"):
        text = f"it no longer ran when its worker was asked after a gap: {found.hostname} has it in hand again"
        return run_event("task-rejected", task, evidence.now_of(task), text, requeue=True), event
    return (event,) if task.state in WAITING_STATES else ()


def _in_queue(task: UnfinishedTask, message: Seen, evidence: Evidence) -> tuple[Event, ...]:
    """What a worker had received, or had begun and waits again, is on no worker now."""
    before = evidence.first.messages.get(task.id)
    waits = message.queue is not None and before is not None and before.queue is not None
    if not waits or task.worker is None or task.state in WAITING_STATES:
        return ()
    if evidence.gap:
        at, text = evidence.now_of(task), f"it was seen waiting in {message.queue} after a gap"
    else:  # the run is over when its worker said goodbye
        at = max(task.received or 0.0, _left_at(evidence.workers.get(task.worker), task.pid))
        text = f"its worker shut down before it began the task; its message waits in {task.queue}"
    return (run_event("task-rejected", task, at, text, requeue=True),)


def _left_at(worker: Worker | None, pid: int | None) -> float:
    """When the process said goodbye, by its own clock; 0 where that is unknown."""
    process = worker and (process_of(worker, pid) or worker)
    return 0.0 if not process or process.offline_at is None else process.offline_at - (process.skew or 0.0)


def _why_lost(task: UnfinishedTask, evidence: Evidence) -> str | None:
    """Why nobody has it; ``None`` where that is not certain."""
    if task.state is TaskState.STARTED:
        return _why_run_is_lost(task, evidence)
    if evidence.gap is None:
        return _why_message_is_gone(task, evidence)
    first, second = evidence.first, evidence.second
    searched = task.queue is not None and task.queue in first.queues & second.queues
    if task.state is TaskState.LOST or not (first.complete and second.complete and searched):
        return None
    return (
        f"no worker has the task and its message is neither in {task.queue} nor unacknowledged: both were looked "
        f"at twice {AFTER_GAP}; {evidence.backend}"
    )


def _why_run_is_lost(task: UnfinishedTask, evidence: Evidence) -> str | None:
    worker = evidence.workers.get(task.worker or "")
    if worker is None or worker.hostname not in evidence.first.answered & evidence.second.answered:
        return None
    if worker.pid != task.pid:
        return None  # ``why_gone`` judges processes that are gone
    when = f" {AFTER_GAP}" if evidence.gap else _AFTER_START
    name = f"{worker.hostname} (process {task.pid})"
    return f"{name} is up and no longer knows the task: it was asked twice{when}; {evidence.backend}"


def _why_message_is_gone(task: UnfinishedTask, evidence: Evidence) -> str | None:
    """Of a task that waits: its message is surely not in its queue, and no worker may have the task."""
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
    return f"{text}. It was purged, expired or dead-lettered, or a worker refused it (see the workers' logs){missed}"


def _has_expired(task: UnfinishedTask, evidence: Evidence) -> bool:
    return task.expires is not None and task.expires < evidence.now


def _any_worker_may_have(task: UnfinishedTask, evidence: Evidence) -> bool:
    """Whether a worker that consumes its queue did not answer, or may have run it without sending events."""
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
    """How many tasks a process has, since when they are counted, and when one of them ended last."""

    tasks: int
    since: float
    ended_at: float | None = None

    def after(self, tasks: int, now: float) -> "Activity":
        """Fewer tasks than before: one of them has ended, so the process lives."""
        return Activity(tasks, self.since, now if tasks < self.tasks else self.ended_at)


class JudgedProcess(NamedTuple):
    """A process that has tasks, and the worker that answers to its name."""

    key: ProcessKey
    worker: Worker
    activity: Activity
    settled_at: float  # since when the worker has had its process and status
    unanswered: str | None  # the evidence of pings that were not answered

    @property
    def name(self) -> str:
        return process_name(*self.key)


def why_gone(process: JudgedProcess, listening_since: float, now: float) -> str | None:
    """Why the tasks of this process are lost; ``None``: they are not."""
    worker, pid = process.worker, process.key.pid
    if now - process.settled_at < SETTLE_SECONDS:
        return process.unanswered if worker.status is WorkerStatus.OFFLINE and pid == worker.pid else None
    if pid is None or worker.pid in (None, pid):
        return _why_present_is_gone(process, now)
    other = process_of(worker, pid)
    if other is not None:
        return _why_other_is_gone(process, other, listening_since, now)
    patience = SETTLE_SECONDS if worker.freq else SHUTDOWN_SECONDS  # its only signs are the events of its tasks
    if now - process.activity.since < patience:
        return None
    return f"{process.name} is gone: process {worker.pid} has taken its place"


def _why_present_is_gone(process: JudgedProcess, now: float) -> str | None:
    """Of the process that stands for the worker."""
    worker = process.worker
    if worker.status is not WorkerStatus.OFFLINE:
        return None
    if worker.said_goodbye:
        return _outlasted(process, worker.offline_at or 0.0, now)
    went = f"went offline {seconds_ago(worker.offline_at, now)}"
    return process.unanswered or f"{process.name} is gone: it {went} and had not ended the task"


def _why_other_is_gone(process: JudgedProcess, other: WorkerProcess, listening_since: float, now: float) -> str | None:
    """Of one that was, or is, under the name beside it. Nobody can ask it: the other one answers to the name."""
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
    """A process in warm shutdown finishes its tasks and reports their ends; it sends no other event."""
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
    """Events of tasks that both snapshots have, which the record may not have.

    Without ``queues_too`` those in queues are left out: senders send no events, so nothing is missing there.
    """
    first, second = evidence.first, evidence.second
    events = []
    for task_id, found in second.on_workers.items():
        worker = evidence.workers.get(found.hostname)
        # Of a worker that sends no events the record would never get the end.
        if worker is not None and worker.events_enabled is not False and first.has(task_id):
            events.append(_found_on_worker(task_id, found, second.messages.get(task_id), worker, evidence.now))
    if queues_too:
        events += [
            _found_in_queue(seen, evidence.now)
            for task_id, seen in second.messages.items()
            if seen.queue is not None and task_id not in second.on_workers and task_id in first.messages
        ]
    return events


def run_event(
    kind: str, task: UnfinishedTask, at: float, text: str | None = None, *, requeue: bool | None = None
) -> Event:
    """A conclusion about the task's present run; about no run while it waits: nobody knows who had it."""
    waits = task.state in WAITING_STATES
    hostname, pid = ("", None) if waits else (task.worker or "", task.pid)
    return Event(type=kind, timestamp=at, hostname=hostname, pid=pid, uuid=task.id, exception=text, requeue=requeue)


def _end_event(task: UnfinishedTask, end: StoredEnd, done: float) -> Event:
    """Where its last run is over, the end is of another one, and only an extended backend names its worker."""
    over = task.worker is None or task.state in WAITING_STATES
    return Event(
        type=end.event,
        timestamp=done,
        hostname=(end.worker or "") if over else task.worker or "",
        pid=None if over else task.pid,
        uuid=task.id,
        result=end.result,
        exception=end.exception,
        traceback=end.traceback,
    )


def _found_on_worker(task_id: str, found: OnWorker, message: Seen | None, worker: Worker, now: float) -> Event:
    """What the worker lists, and of its message what the worker does not."""
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
        # Sent to the default exchange, the key is the queue's name; else nothing names it.
        queue=found.routing_key if found.exchange == "" else None,
        exchange=found.exchange,
        routing_key=found.routing_key,
        learnt_at=now,
        **{field: text for field, text in described.items() if text is not None},
    )


def _found_in_queue(seen: Seen, now: float) -> Event:
    described = msgspec.structs.asdict(seen.headers)
    return Event(type=IN_QUEUE, timestamp=now, hostname="", queue=seen.queue, learnt_at=now, **described)
