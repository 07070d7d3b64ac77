"""What a person may ask for, as values. Each names the action under which it is allowed and recorded."""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import ClassVar
from typing import Literal

from monitor.brokers.message import Reading
from monitor.control.queue_commands import QueueCommand
from monitor.control.queue_commands import RunTask
from monitor.control.view_commands import ViewCommand
from monitor.control.worker_commands import WorkerCommand
from monitor.fidelity import Fidelity
from monitor.records import FailureState

MAX_TASKS = 1000  # of one command; more than a page is a job, not a click
SIGNALS = ("SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGUSR1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTask:
    """Send one task again under a new id.

    ``args`` and ``kwargs`` are JSON texts that replace what is known; ``countdown`` is in seconds.
    ``confirm`` says that the arguments were seen. The same ``request_id`` sends at most once: a form carries
    one, so that a double click is one retry. ``same_id`` sends it under the id that it has.
    """

    action: ClassVar[str] = "task.retry"
    cluster: str
    id: str
    args: str | None = None
    kwargs: str | None = None
    queue: str | None = None
    countdown: float | None = None
    same_id: bool = False
    confirm: bool = False
    reason: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTasks:
    """Send several tasks again; each has an outcome of its own, and what cannot be sent is skipped with a reason.

    Tasks that were retried before are skipped unless ``include_retried``.
    """

    action: ClassVar[str] = "task.retry"
    cluster: str
    ids: tuple[str, ...]
    include_retried: bool = False
    confirm: bool = False
    reason: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindMessage:
    """Look for a task's message in its queue where that means taking messages out and putting them back."""

    action: ClassVar[str] = "task.find_message"
    cluster: str
    id: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeTask:
    """Tell every worker not to run a task; with ``terminate``, also kill the process that runs it."""

    action: ClassVar[str] = "task.revoke"
    cluster: str
    id: str
    terminate: bool = False
    signal: str = "SIGTERM"
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeTasks:
    """Revoke several tasks; each has an outcome of its own."""

    action: ClassVar[str] = "task.revoke"
    cluster: str
    ids: tuple[str, ...]
    terminate: bool = False
    signal: str = "SIGTERM"
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveFailure:
    """Call a failure group mended: its next failure is a regression."""

    action: ClassVar[str] = "failure.resolve"
    state: ClassVar[FailureState] = FailureState.RESOLVED
    cluster: str
    group: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MuteFailure:
    """Stop being told of a failure group, whatever comes."""

    action: ClassVar[str] = "failure.mute"
    state: ClassVar[FailureState] = FailureState.MUTED
    cluster: str
    group: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenFailure:
    """Take a resolved or muted failure group back among the open ones."""

    action: ClassVar[str] = "failure.reopen"
    state: ClassVar[FailureState] = FailureState.OPEN
    cluster: str
    group: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScheduled:
    """Send what a schedule's entry sends, now. ``confirm`` says that the arguments were seen."""

    action: ClassVar[str] = "schedule.run"
    cluster: str
    entry: str
    confirm: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRetry:
    """Send every task again that matches a filter, as a job.

    ``job`` is the number of a preview: then exactly its tasks. Else they are chosen now. ``rate`` is in tasks per
    second; ``cluster`` may stay open where the filter finds tasks of one cluster alone. The same ``request_id``
    starts one job, however often it comes. Tasks that were retried before are skipped unless ``include_retried``;
    ``None`` is as in the preview.
    """

    action: ClassVar[str] = "bulk.retry"
    verb: ClassVar[Literal["retry"]] = "retry"
    cluster: str | None = None
    query: str
    job: int | None = None
    rate: float | None = None
    include_retried: bool | None = None
    reason: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRevoke:
    """Revoke every task that matches a filter, as a job; see BulkRetry."""

    action: ClassVar[str] = "bulk.revoke"
    verb: ClassVar[Literal["revoke"]] = "revoke"
    cluster: str | None = None
    query: str
    job: int | None = None
    rate: float | None = None
    reason: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortJob:
    """End a job: what is on its way ends, and what was not sent is left alone."""

    action: ClassVar[str] = "bulk.abort"
    cluster: str
    job: int
    reason: str | None = None


BulkCommand = BulkRetry | BulkRevoke
ChangeFailure = ResolveFailure | MuteFailure | ReopenFailure
ClusterCommand = (
    RetryTask
    | RetryTasks
    | FindMessage
    | RevokeTask
    | RevokeTasks
    | RunTask
    | WorkerCommand
    | QueueCommand
    | ChangeFailure
    | BulkCommand
    | AbortJob
    | RunScheduled
)
Command = ClusterCommand | ViewCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What came of one task (or of one worker, whose name is then the ``id``)."""

    id: str
    outcome: Literal["done", "unconfirmed", "skipped", "failed"]
    message: str
    new_id: str | None = None
    fidelity: Fidelity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """What came of a command. ``unconfirmed``: it was sent, and not everybody who should have answered did."""

    outcome: Literal["done", "unconfirmed", "failed"]
    message: str
    results: tuple[TaskResult, ...] = ()
    reading: Reading | None = None  # what was read, of which nothing goes into the record of actions
    details: Mapping[str, object] = field(default_factory=dict)
