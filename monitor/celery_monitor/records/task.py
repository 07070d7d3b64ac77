"""Tasks, their runs and invocations, their links, and the steps of a workflow."""

from enum import StrEnum
from typing import Literal

import msgspec


class TaskState(StrEnum):
    """The state of a task; Celery's names where it has one."""

    PENDING = "PENDING"  # sent or requeued, and on no worker
    SCHEDULED = "SCHEDULED"  # on a worker, waiting for its ETA
    RECEIVED = "RECEIVED"
    STARTED = "STARTED"
    RETRY = "RETRY"  # failed, and Celery will run it again
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"
    REJECTED = "REJECTED"
    LOST = "LOST"  # its worker is gone, or no longer has it; reversible

    @property
    def word(self) -> str:
        """The word in filters and on pages: ``failed`` for FAILURE."""
        return STATE_WORDS[self]

    @property
    def finished(self) -> bool:
        """Whether no more events are expected."""
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
    REQUEUED = "requeued"  # rejected and requeued: not the end of the task
    CANCELLED = "cancelled"  # the worker lost its connection, and its late-acknowledged task was redelivered
    LOST = "lost"
    REPLACED = "replaced"  # self.replace(): the task continues under its id as another call


WaitSince = Literal["sent", "eta", "retry", "received"]


class Invocation(msgspec.Struct, frozen=True, gc=False):
    """The fields of one message of a task. A retry, a replacement and a second sending are further messages.

    ``sent``, ``client`` and the route are from task-sent, and unknown without it.
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
# Reported by a worker's main process about a pool process that was killed or died.
KILLED_EXCEPTIONS = ("TimeLimitExceeded(", "WorkerLostError(")


class Run(msgspec.Struct):
    """One attempt of a task on one worker; before a worker has received it, a waiting message."""

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
    ready: float | None = None  # when it could run, by its worker's clock, if that was before its receipt: waits.py
    replacing: int = 0  # how its message was sent by self.replace(): see invocations.py
    invocation: Invocation | None = None  # its message, if that is not the one in the task's fields

    @property
    def waiting(self) -> bool:
        """Whether its message was sent and not received yet."""
        return self.received is None and self.started is None and self.ended is None and self.worker is None

    @property
    def runtime_estimated(self) -> bool:
        """Whether ``runtime`` is the difference of start and end, as the worker did not report it."""
        if self.runtime is None or self.outcome is Outcome.SUCCEEDED:
            return False
        if self.outcome is Outcome.FAILED:
            return self.exception is not None and self.exception.startswith(KILLED_EXCEPTIONS)
        return self.outcome in ESTIMATED_OUTCOMES

    @property
    def wait(self) -> float | None:
        """Seconds from when it could run to its start; ``wait_since`` says from which moment."""
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
        """What ``wait`` is counted from. Except for ``received``, that is when it could run; ``None``: no wait."""
        if self.started is None or (self.received is None and self.ready is None):
            return None
        due = self.eta is not None and self.received is not None and self.eta > self.received
        if self.ready is None and not due:
            return "received"
        if self.retries:
            return "retry"
        return "eta" if due or self.ready == self.eta else "sent"


class Task(msgspec.Struct):
    """One task. ``runs`` are in order, the latest last; empty while it is only sent.

    Name, arguments, route, ``client``, ``sent``, ``expires``, ``root_id`` and ``parent_id`` are those of the message of
    ``run``. A run of another message has that as ``invocation``.
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
    retried: "Link | None" = None  # the newest retry by a person
    pk: int | None = None  # id of the row, once stored

    @property
    def run(self) -> Run | None:
        """The latest run; while a retry is sent and not received, the run that was retried."""
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
    """A retry by a person: the new task. ``state`` is ``None`` until an event of it arrives."""

    id: str
    state: TaskState | None
    at: float
    fidelity: str


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The task that this one is a retry of, and its retries."""

    retry_of: str | None = None
    retried_as: tuple[Link, ...] = ()


class Step(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One task of a workflow, with the fields that a tree needs. ``state`` None: not in the record."""

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
    """A workflow that is stalled ``since`` then: ``tasks`` of it are unfinished, ``named`` of these have ``name``."""

    cluster: str
    root_id: str
    since: float
    name: str | None
    state: TaskState
    tasks: int
    named: int


class WorkflowState(StrEnum):
    """The state of a workflow as a whole, from the states of its tasks."""

    RUNNING = "running"  # a task runs
    WAITING = "waiting"  # none runs; some wait for a worker, a retry or an ETA
    LOST = "lost"  # none runs or waits, and a task is lost
    FAILED = "failed"
    REJECTED = "rejected"
    REVOKED = "revoked"
    SUCCEEDED = "succeeded"


class WorkflowSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A root task, and the number of tasks of its workflow by state, itself included."""

    root: Step
    cluster: str
    states: dict[TaskState, int]
    state: WorkflowState | None  # None: no task is in the record
    last_seen: float  # sort_time of its latest task
    unended: int = 0  # unfinished tasks, without those that wait for an ETA
    waits_for: str | None = None  # the most frequent name of these
    waits_for_tasks: int = 0  # how many of them have it

    @property
    def tasks(self) -> int:
        return sum(self.states.values())
