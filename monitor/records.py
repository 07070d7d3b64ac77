"""The vocabulary: what every layer calls things. Imports nothing of ours.

Times are UTC epoch seconds; durations are seconds; ``None`` always means *unknown*, never zero or empty.
"""

from enum import StrEnum
from typing import Annotated
from typing import Generic
from typing import Literal
from typing import TypeVar

import msgspec


class TaskState(StrEnum):
    """What is known of a task now; Celery's names where it has one."""

    PENDING = "PENDING"  # sent (or put back), and no worker has it
    SCHEDULED = "SCHEDULED"  # a worker holds it until its ETA
    RECEIVED = "RECEIVED"
    STARTED = "STARTED"
    RETRY = "RETRY"  # failed, and will run again by itself
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"
    REJECTED = "REJECTED"
    LOST = "LOST"  # a worker took it and is gone, or no longer knows of it; reversible

    @property
    def word(self) -> str:
        """The word that people type and read: ``failed`` for FAILURE."""
        return STATE_WORDS[self]

    @property
    def finished(self) -> bool:
        """Nothing more is expected of the task."""
        return self in FINISHED_STATES


STATE_WORDS: dict[TaskState, str] = {state: state.lower() for state in TaskState} | {
    TaskState.SUCCESS: "succeeded",
    TaskState.FAILURE: "failed",
}
FINISHED_STATES = frozenset({TaskState.SUCCESS, TaskState.FAILURE, TaskState.REVOKED, TaskState.REJECTED})
UNFINISHED_STATES = frozenset(TaskState) - FINISHED_STATES


class Outcome(StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRIED = "retried"
    REVOKED = "revoked"
    REJECTED = "rejected"
    REQUEUED = "requeued"  # rejected back into the queue: not the end of the task
    CANCELLED = "cancelled"  # the worker lost its connection and gave a late-acknowledged task back
    LOST = "lost"
    REPLACED = "replaced"  # self.replace(): the task goes on under its id as another call


# What every database holds. The JSON decoder checks it in C; decode.py makes an unknown of what is beyond.
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Timestamp = Annotated[float, msgspec.Meta(ge=0, lt=253_402_300_800)]  # up to the year 9999


WAITING = "waiting"  # why a message is known: it lies in its queue
UNACKED = "unacked"  # delivered to a worker, which has not acknowledged it
READ = "read"  # it lay in its queue when somebody took it out to look at it
REMOVED = "removed"  # somebody deleted it from its queue here, or purged that
HELD = frozenset({WAITING, UNACKED, READ})


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """The message of a task as a worker got it, or as it lies in the broker.

    ``headers`` and ``properties`` are JSON as kombu writes it. ``body`` is ``None`` where it was too large.
    """

    why: str  # captured: failed, rejected, revoked, received; in the broker: see HELD
    size: Integer  # bytes of the body
    headers: str
    properties: str
    body: bytes | None = None
    as_sent: bool = True  # False: compressed on its way, and the worker has only what was inside
    content_type: str | None = None
    content_encoding: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    queue: str | None = None
    chain: Integer = 0  # tasks that follow
    callbacks: Integer = 0
    errbacks: Integer = 0
    chord: str | None = None  # name of the chord's body, of which the task is a member
    links: bool = True  # False: nobody has opened the body, so the four above are not known


class Event(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One event as its sender stamped it (celery/events/dispatcher.py).

    ``timestamp`` is the sender's own clock; ``utcoffset`` is not kept, since adjusting by it corrupts the time.
    """

    type: str
    timestamp: Timestamp
    hostname: str
    pid: Integer | None = None
    clock: Integer | None = None
    # task-*
    uuid: str | None = None
    name: str | None = None
    args: str | None = None
    kwargs: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    retries: Integer | None = None
    eta: str | None = None
    expires: str | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    result: str | None = None
    runtime: float | None = None
    exception: str | None = None
    traceback: str | None = None
    requeue: bool | None = None
    terminated: bool | None = None
    signum: Integer | str | None = None
    expired: bool | None = None
    # capture-message
    message: Message | None = None
    # concluded after a gap
    learnt_at: Timestamp | None = None
    # worker-*
    freq: float | None = None
    active: Integer | None = None
    processed: Integer | None = None
    loadavg: tuple[float, ...] | None = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None


class RefusedEvents(msgspec.Struct, frozen=True, gc=False):
    """A message of events in a form that is not read, such as pickle; who sent it, as its headers say."""

    hostname: str
    content_type: str


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """What one read of a source gave.

    ``arrived`` is our clock when the bytes were read; ``malformed`` counts bodies that are no events;
    ``dropped`` counts events that the source had to throw away since the last delivery.
    """

    events: list[Event]
    arrived: float
    malformed: int = 0
    dropped: int = 0
    concluded: bool = False  # by us, of what workers, brokers and result backends answered: nobody sent it
    refused: tuple[RefusedEvents, ...] = ()  # senders of events in a form that is not read, each once
    gap: "Gap | None" = None  # of which it was concluded; how far its reconciliation is, is stored with the events


WaitSince = Literal["sent", "eta", "retry", "received"]


class Invocation(msgspec.Struct, frozen=True, gc=False):
    """What one message of a task says of itself. A retry, a replacement and a second sending are further messages.

    ``sent``, ``client`` and the route come from task-sent, and are unknown where no such event came.
    """

    name: str | None = None
    args: str | None = None
    kwargs: str | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    client: str | None = None
    sent: float | None = None
    expires: float | None = None
    root_id: str | None = None
    parent_id: str | None = None


ESTIMATED_OUTCOMES = frozenset({Outcome.REVOKED, Outcome.CANCELLED, Outcome.LOST, Outcome.REPLACED})
# Reported by the worker's main process about a pool process that was killed or died.
KILLED_EXCEPTIONS = ("TimeLimitExceeded(", "WorkerLostError(")


class Run(msgspec.Struct):
    """One attempt of a task on one worker. One that no worker has received yet is a message that waits."""

    worker: str | None = None
    pid: int | None = None
    retries: int | None = None
    received: float | None = None
    started: float | None = None
    ended: float | None = None
    eta: float | None = None
    outcome: Outcome | None = None
    runtime: float | None = None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None
    ready: float | None = None  # when it could run, by its worker's clock, where that was before its receipt: waits.py
    replacing: int = 0  # its message was sent by self.replace(), and how: see invocations.py
    invocation: Invocation | None = None  # its message, where that is another one than the task's fields show

    @property
    def waiting(self) -> bool:
        """Its message was sent, and nobody is known to have received it."""
        return self.received is None and self.started is None and self.ended is None and self.worker is None

    @property
    def runtime_estimated(self) -> bool:
        """Whether ``runtime`` is from our record of start and end, as the task did not live to measure it."""
        if self.runtime is None or self.outcome is Outcome.SUCCEEDED:
            return False
        if self.outcome is Outcome.FAILED:
            return self.exception is not None and self.exception.startswith(KILLED_EXCEPTIONS)
        return self.outcome in ESTIMATED_OUTCOMES

    @property
    def wait(self) -> float | None:
        """Seconds ready to run and not running, counted from what ``wait_since`` names."""
        ready = self.ready
        if ready is None:
            ready = self.received
            if ready is not None and self.eta is not None and self.eta > ready:
                ready = self.eta
        if self.started is None or ready is None:
            return None
        return self.started - ready if self.started > ready else 0.0

    @property
    def wait_since(self) -> "WaitSince | None":
        """Where ``wait`` begins. Every start but ``received`` is when the run could begin; ``None``: no wait."""
        if self.started is None or (self.received is None and self.ready is None):
            return None
        due = self.eta is not None and self.received is not None and self.eta > self.received
        if self.ready is None and not due:
            return "received"
        if self.retries:
            return "retry"
        return "eta" if due or self.ready == self.eta else "sent"


class Task(msgspec.Struct):
    """What is known of one task now. ``runs`` are in order, the latest last; it may be empty (only sent).

    Name, arguments, route, ``client``, ``sent``, ``expires``, ``root_id`` and ``parent_id`` are those of one message:
    that of the run that is shown (``run``). A run of another message carries that one itself.
    """

    cluster: str
    id: str
    state: TaskState = TaskState.PENDING
    name: str | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    client: str | None = None  # who sent it: the hostname of task-sent
    args: str | None = None  # the publisher's repr, possibly truncated: see fidelity.py
    kwargs: str | None = None
    sent: float | None = None
    expires: float | None = None
    root_id: str | None = None  # its own id when it is a root
    parent_id: str | None = None
    failure_group: int | None = None
    learnt: float | None = None  # our clock, when we learnt of it by asking: no event told that it was sent or received
    runs: list[Run] = []
    retried: "Link | None" = None  # the newest task as which a person retried this one
    pk: int | None = None  # the row, once stored

    @property
    def run(self) -> Run | None:
        """The latest run; where a retry is sent and not received yet, the one that asked for the retry."""
        runs = self.runs
        if not runs:
            return None
        last = runs[-1]
        if last.received is None and last.retries and len(runs) > 1 and last.waiting:
            return runs[-2]
        return last

    @property
    def retries(self) -> int | None:
        run = self.run
        return run.retries if run is not None else None

    @property
    def worker(self) -> str | None:
        run = self.run
        return run.worker if run is not None else None

    @property
    def eta(self) -> float | None:
        run = self.run
        return run.eta if run is not None else None

    @property
    def received(self) -> float | None:
        run = self.run
        return run.received if run is not None else None

    @property
    def started(self) -> float | None:
        run = self.run
        return run.started if run is not None else None

    @property
    def finished(self) -> float | None:
        run = self.run
        return run.ended if run is not None else None

    @property
    def runtime(self) -> float | None:
        run = self.run
        return run.runtime if run is not None else None

    @property
    def wait(self) -> float | None:
        run = self.run
        return run.wait if run is not None else None

    @property
    def runtime_estimated(self) -> bool:
        run = self.run
        return run is not None and run.runtime_estimated

    @property
    def wait_since(self) -> WaitSince | None:
        run = self.run
        return run.wait_since if run is not None else None

    @property
    def result(self) -> str | None:
        run = self.run
        return run.result if run is not None else None

    @property
    def exception(self) -> str | None:
        run = self.run
        return run.exception if run is not None else None

    @property
    def traceback(self) -> str | None:
        run = self.run
        return run.traceback if run is not None else None


class WorkerStatus(StrEnum):
    """Whether a worker can be counted on."""

    ONLINE = "online"
    SILENT = "silent"  # no heartbeat for over two intervals, and it may only be busy
    OFFLINE = "offline"  # said goodbye, was replaced by a new process, or stayed silent for long


class WorkerProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that sent events under a node name beside, or before, the one that stands for the worker."""

    pid: int
    first_seen: float
    last_heartbeat: float  # our clock
    offline_at: float | None = None  # when it sent worker-offline: it finishes what it runs, and ends
    freq: float | None = None
    skew: float = 0.0
    active: int | None = None
    processed: int | None = None
    pool: str | None = None


class Worker(msgspec.Struct, kw_only=True):
    """One worker, by its node name. Inspect's answers stay ``None`` until the worker has given them."""

    cluster: str
    hostname: str
    status: WorkerStatus
    pid: int | None = None
    first_seen: float | None = None
    last_heartbeat: float | None = None  # our clock at arrival
    offline_at: float | None = None
    freq: float | None = None
    skew: float | None = None  # our clock minus the worker's
    jump: float = 0.0  # by which its clock was set forward while it ran; its times are as if it had not been
    active: int | None = None
    processed: int | None = None
    loadavg: tuple[float, ...] | None = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None
    queues: tuple[str, ...] | None = None  # active_queues
    pool: str | None = None  # prefork, threads, ...
    pool_size: int | None = None
    prefetch: int | None = None
    rusage: dict[str, float] | None = None
    inspected_at: float | None = None
    events_enabled: bool | None = None  # False: it answers and sends no task events
    since: float | None = None  # when the first event of this process came
    said_goodbye: bool = False  # it is offline because it sent worker-offline
    others: tuple[WorkerProcess, ...] = ()  # of the same name: earlier ones, or a second one by mistake


class Queue(msgspec.Struct, kw_only=True):
    """One queue as last sampled. Whatever a transport cannot tell is ``None``."""

    cluster: str
    name: str
    ready: int | None = None
    unacked: int | None = None
    consumers: int | None = None
    oldest: float | None = None  # epoch seconds at or before which the oldest waiting message was sent: age is ≥
    sampled_at: float | None = None
    workers: tuple[str, ...] = ()
    oldest_exact: bool = False  # it was sent just then
    heads: tuple[str | None, ...] = ()  # tasks whose messages come next, one a priority, where the broker shows them


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """A queue that somebody told the workers to take no more from. They forget it when they are started again."""

    cluster: str
    queue: str
    by: str
    at: float
    workers: tuple[str, ...]  # that took from it, and are to take from it again
    reason: str | None = None


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out after a gap about the tasks that had not ended when it began.

    ``asked`` is the sum of what follows it, up to ``unknown``.
    """

    began: float
    ended: float | None = None  # None: it goes on
    asked: int = 0
    backend: int = 0  # the result backend knew how it ended
    workers: int = 0  # a worker has it
    queue: int = 0  # its message waits, or is delivered and not acknowledged
    lost: int = 0  # nobody has it, and nobody knows how it ended: marked as lost, with the evidence
    unknown: int = 0  # nothing could be found out
    learnt_from_workers: int = 0  # tasks that the record did not have
    learnt_from_queues: int = 0
    complete: bool = True  # False: some worker did not answer, or not every message could be looked at
    together_with: float | None = None  # when the later gap began whose numbers stand for both
    position: tuple[int, float, int] = (0, 0.0, 0)  # up to where tasks were asked for


class Gap(msgspec.Struct, kw_only=True):
    """A span in which events may have been missed. ``ended`` is ``None`` while it lasts."""

    cluster: str
    began: float
    ended: float | None
    cause: str
    dropped: int | None = None  # events known to be dropped; None: not known
    id: int | None = None
    reconciliation: Reconciliation | None = None  # None: not begun


LEVEL_SECONDS = 2.0  # a receiver further behind than this accuses nobody: what it misses may be on its way
UNSAID_SECONDS = 4.0  # nor does one that said nothing of itself for this long


class FailingHelper(msgspec.Struct, frozen=True, kw_only=True):
    """A thread or process beside a receiver that keeps failing, or the receiver itself (``receiver``)."""

    name: str
    error: str  # the last one
    since: float
    failures: int  # in a row


class ReceiverEnding(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver's process ended by itself, ``failures`` times in a row, the last time ``at``; it is started again."""

    cluster: str
    error: str
    since: float
    failures: int
    at: float


class ReceiverHealth(msgspec.Struct, kw_only=True):
    """What the receiver of one cluster last said of itself."""

    cluster: str
    connected: bool
    source: str | None = None  # redis, amqp, kombu
    error: str | None = None  # why it is not connected
    unwritten: str | None = None  # why the record cannot be written now; all else is then as old as updated_at
    last_event_at: float | None = None
    lag_seconds: float | None = None
    events_total: int = 0
    dropped_total: int = 0
    malformed_total: int = 0
    malformed_at: float | None = None  # when the last one came
    unknown_total: int = 0  # events of a type that we do not know
    host: str | None = None  # where it runs
    pid: int | None = None
    updated_at: float | None = None  # when it last said so
    kept_until: float | None = None  # what arrived before is stored or on disk; None: the broker keeps it
    notices: tuple[str, ...] = ()  # what it did on its own, e.g. turned events on
    refused: tuple[RefusedEvents, ...] = ()  # who sent such within the last minutes
    helpers: tuple[FailingHelper, ...] = ()  # those that keep failing

    def is_level(self, now: float, unsaid_seconds: float) -> bool:
        """It hears its broker and is not behind, and has said so within this time: then silence means something."""
        said = self.updated_at is not None and now - self.updated_at < unsaid_seconds
        return said and self.connected and self.lag_seconds is not None and self.lag_seconds <= LEVEL_SECONDS

    def known_until(self, now: float) -> float:
        """The last moment of which it can tell, where it is not level; 0: none."""
        said = self.updated_at or 0.0
        if not self.connected:
            return min(said, self.last_event_at or 0.0)
        return min(said, now - (self.lag_seconds or 0.0))


class StandbyReceiver(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver that writes nothing while another does, and takes over when that one dies."""

    cluster: str
    host: str
    pid: int
    since: float
    updated_at: float  # when it last said so
    listening: bool  # events that arrive now reach it too, or the broker keeps them


class Action(msgspec.Struct, kw_only=True):
    """Who did what, to what, why, and what came of it. Append-only."""

    id: int | None = None
    at: float
    actor: str
    action: str
    cluster: str | None  # None: it concerns the dashboard, and no cluster
    target: str | None = None  # a task id, a worker, a queue
    query: str | None = None
    count: int | None = None
    reason: str | None = None
    parameters: dict[str, object] = {}
    outcome: str = "done"  # done, denied, failed, unconfirmed
    message: str | None = None


class SavedView(msgspec.Struct, frozen=True, kw_only=True):
    """A list that somebody has named for everybody: a path of the dashboard and its query."""

    id: int
    name: str
    path: str
    query: str
    actor: str
    at: float | None = None


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a search found: a task, a worker, a queue, a task's name or a saved view."""

    kind: Literal["task", "worker", "queue", "name", "view"]
    name: str  # the id of a task
    cluster: str | None = None
    state: TaskState | None = None  # of a task
    detail: str | None = None
    path: str | None = None  # of a saved view
    query: str | None = None


class FailureState(StrEnum):
    """What people have decided about a failure group, and whether it came back since."""

    OPEN = "open"
    REGRESSED = "regressed"  # it was resolved, and failed again
    RESOLVED = "resolved"
    MUTED = "muted"


class JobState(StrEnum):
    """How far a bulk action is."""

    PREPARING = "preparing"  # its tasks are being chosen
    PREVIEW = "preview"  # its tasks are chosen, and nobody has said yes
    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"  # somebody aborted it, and what is on its way ends first
    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in {JobState.DONE, JobState.ABORTED, JobState.FAILED}


class JobOutcome(StrEnum):
    """What came of one task of a job."""

    WAITING = "waiting"
    SENDING = "sending"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNCONFIRMED = "unconfirmed"  # it may have been sent, and is not sent a second time


class JobReason(msgspec.Struct, frozen=True, kw_only=True):
    """How many tasks of a job had this outcome for this reason."""

    outcome: JobOutcome
    reason: str
    count: int


class JobTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a job. ``new_id`` is the task that it was sent again as."""

    id: str
    outcome: JobOutcome
    reason: str | None = None
    new_id: str | None = None


class JobPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What a job would do, before anybody says yes. With ``estimated``, the numbers are those of ``judged`` tasks
    taken evenly from among all, multiplied."""

    judged: int = 0
    estimated: bool = False
    sendable: int = 0
    fidelity: dict[str, int] = {}
    skipped: dict[str, int] = {}  # by reason
    retried: int = 0  # tasks that somebody has retried before, whether they are skipped or not; never estimated
    samples: list[dict[str, str]] = []
    warnings: list[str] = []


class Job(msgspec.Struct, kw_only=True):
    """A bulk action on the tasks that matched a query at one moment. ``rate`` is in tasks per second."""

    id: int
    token: str
    cluster: str
    verb: Literal["retry", "revoke"]
    query: str
    at: float
    actor: str
    reason: str | None = None
    rate: float | None = None
    include_retried: bool = False  # tasks that were retried before are sent too
    state: JobState
    total: int = 0
    position: int = 0
    preview: JobPreview = JobPreview()
    started: float | None = None
    ended: float | None = None
    message: str | None = None
    batch: str | None = None
    reasons: tuple[JobReason, ...] = ()

    def count(self, outcome: JobOutcome) -> int:
        """Tasks that ended so."""
        return sum(each.count for each in self.reasons if each.outcome is outcome)

    @property
    def left(self) -> int:
        """Tasks without an outcome yet."""
        return self.total - sum(each.count for each in self.reasons)


class FailureVariant(msgspec.Struct, frozen=True, kw_only=True):
    """One of the messages that a failure group stands for, where they differ in names, and all its failures."""

    message: str | None  # None: of all that came after the first fifty
    count: int


class FailureGroup(msgspec.Struct, kw_only=True):
    """Failures that share a signature."""

    id: int
    cluster: str
    name: str | None
    exception_type: str
    message: str  # masked
    frame: str | None  # the deciding frame, ``shop/pay.py in charge``
    first_seen: float
    last_seen: float
    count: int
    state: FailureState = FailureState.OPEN
    state_at: float | None = None  # when it became so; ``None`` where nobody has touched it
    variants: tuple[FailureVariant, ...] = ()  # the most frequent first; empty: the message names nothing


class FailureCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Failures in a span of time, by whether their group still needs somebody."""

    open: int = 0
    muted: int = 0
    resolved: int = 0

    @property
    def total(self) -> int:
        return self.open + self.muted + self.resolved


class FailureWindows(msgspec.Struct, frozen=True, kw_only=True):
    """How often one failure group failed lately. ``workers`` are those known to be affected in the span asked for."""

    hour: int = 0
    day: int = 0
    week: int = 0
    workers: int = 0
    trend: tuple[int, ...] = ()  # the span asked for in equal steps, the last still filling


class FailureSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A failure group with its windows; ``group.count`` is of the span asked for."""

    group: FailureGroup
    windows: FailureWindows


class FailureTrend(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of one group over time, in steps of ``step`` seconds, and by worker."""

    since: float
    until: float
    step: int
    at: tuple[int, ...]
    counts: tuple[int, ...]
    by_worker: tuple[tuple[str | None, int], ...]  # the most first; ``None``: the worker is not known


class Count(msgspec.Struct, frozen=True):
    """A number of tasks. ``exact`` is False where counting stopped: then it is at least ``value``."""

    value: int
    exact: bool = True


T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a keyset-paged list. Cursors are opaque; ``None``: nothing there.

    ``searched`` is set where not every row was looked at: how many of the newest were. Then ``next`` searches on.
    """

    items: list[T]
    next: str | None = None
    previous: str | None = None
    count: Count | None = None
    searched: Count | None = None


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A task that was sent again by a person: the new one. ``state`` is ``None`` until it is heard of."""

    id: str
    state: TaskState | None
    at: float
    fidelity: str


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Which task this one repeats, and which ones repeat it."""

    retry_of: str | None = None
    retried_as: tuple[Link, ...] = ()


class Step(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One task of a workflow, as much of it as a tree of thousands needs. ``state`` None: not in the record."""

    id: str
    parent_id: str | None = None
    name: str | None = None
    state: TaskState | None = None
    queue: str | None = None
    worker: str | None = None
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    ended: float | None = None
    eta: float | None = None


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow that has stood still ``since`` then: ``tasks`` of it have not ended, ``named`` of them ``name``."""

    cluster: str
    root_id: str
    since: float
    name: str | None
    state: TaskState
    tasks: int
    named: int


class WorkflowState(StrEnum):
    """The state of a workflow as a whole, from the states of its tasks."""

    RUNNING = "running"  # a task of it runs
    WAITING = "waiting"  # none runs, and some wait: for a worker, a retry or an ETA
    LOST = "lost"  # nothing of it runs or waits, and a task is lost
    FAILED = "failed"
    REJECTED = "rejected"
    REVOKED = "revoked"
    SUCCEEDED = "succeeded"


class WorkflowSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A root task and how many tasks of each state stand under it, itself included."""

    root: Step
    cluster: str
    states: dict[TaskState, int]
    state: WorkflowState | None  # None: none of its tasks is in the record
    last_seen: float  # when the latest of its tasks was received, or sent
    unended: int = 0  # tasks that have not ended, those that wait for an ETA left out
    waits_for: str | None = None  # the name that most of them have
    waits_for_tasks: int = 0  # how many have it

    @property
    def tasks(self) -> int:
        return sum(self.states.values())


BeatSource = Literal["workers", "app", "redbeat", "django"]  # who told of an entry


class ScheduleEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Something that beat sends by itself. Either ``every`` is known, or the five sets of a crontab, or neither."""

    cluster: str
    name: str
    task: str
    schedule: str  # as it is configured
    every: float | None = None  # seconds
    minutes: tuple[int, ...] | None = None
    hours: tuple[int, ...] | None = None
    weekdays: tuple[int, ...] | None = None  # 0 is Sunday
    days: tuple[int, ...] | None = None
    months: tuple[int, ...] | None = None
    timezone: str | None = None  # of the crontab; ``None``: beat's own, which is not known
    args: str = "()"  # as events show them, secrets masked
    kwargs: str = "{}"
    args_json: str | None = None  # ``None``: not known well enough to send it
    kwargs_json: str | None = None
    queue: str | None = None
    source: BeatSource = "workers"
    heard_at: float = 0.0
    # What RedBeat and django-celery-beat keep of an entry; the others keep nothing.
    enabled: bool = True
    once_at: float | None = None  # due once, at this time
    starts: float | None = None  # not before
    told_last: float | None = None  # when beat's own record says that it was last sent
    told_next: float | None = None  # when beat's own record says that it is due
    total: int | None = None  # how often it was sent


class OverdueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that should have been sent at ``since``, and was not seen."""

    name: str
    since: float
    may_wait_in: str | None = None  # a queue with messages among which it may be


class UnreadEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the schedule that could not be read; an empty name is that of what has none."""

    source: BeatSource
    name: str
    reason: str


class BeatHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the beat of one cluster. It tells nobody that it lives: each of these is a sign of it."""

    cluster: str
    at: float = 0.0
    overdue: tuple[OverdueEntry, ...] = ()
    stopped: bool = False  # all that it sends is overdue
    lock_until: float | None = None  # RedBeat's lock is held, and would expire then
    lock_free_since: float | None = None  # nobody holds it any more
    answered_at: float | None = None  # it answered a ping, where beat_enable_remote_control lets it
    answered: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()  # sources of the schedule that could not be read, and why
    unread_entries: tuple[UnreadEntry, ...] = ()


class ScheduledRun(msgspec.Struct, frozen=True, kw_only=True):
    """A task that may have been sent by beat for an entry."""

    id: str
    at: float  # when it was sent, else received
    by_receipt: bool = False  # when it was sent is not known
    state: TaskState
    client: str | None  # who sent it, as far as that was told
    queue: str | None = None


class QueueSample(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one time; the largest depth where it spans several."""

    at: float
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds."""

    p50: float
    p95: float
    p99: float


class WaitPercentiles(Percentiles, frozen=True):
    """Seconds. Of the share ``since_receipt`` (0 to 1) it is not known since when they could run: they are counted
    from their receipt, and may have waited longer."""

    since_receipt: float


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """What happened from ``at`` on, for the length of the series' resolution."""

    at: float
    received: int = 0
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    revoked: int = 0
    rejected: int = 0
    lost: int = 0
    wait: WaitPercentiles | None = None
    run: Percentiles | None = None


class WorkerStart(msgspec.Struct, frozen=True, kw_only=True):
    """A worker came up again with a new process."""

    cluster: str
    hostname: str
    at: float


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """The course of things from ``since`` to ``until``; ``buckets`` has one for each ``resolution`` seconds."""

    since: float
    until: float
    resolution: int
    buckets: list[Bucket]
    gaps: list["Gap"]
    depth: list[QueueSample]  # of the one queue asked for, else of all together
    starts: list[WorkerStart] = []


class NameTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What the tasks of one name took in a span of time."""

    name: str | None
    runs: int
    failed: int
    seconds: float  # of run time altogether, within 2 %
    run: Percentiles | None
    wait: WaitPercentiles | None
