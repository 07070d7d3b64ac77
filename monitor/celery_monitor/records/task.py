"""Tasks, their runs and invocations, their links, and the steps of a workflow."""

from enum import StrEnum
from typing import Literal

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
    discovered_at: float | None = None  # our clock: found on a worker or in a queue, before any event of its sending
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


class WaitingStep(msgspec.Struct, frozen=True, kw_only=True):
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
