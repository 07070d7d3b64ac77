"""What the JSON API may be asked: path and query parameters, and bodies. Whatever is not named here is refused."""

from typing import Annotated
from typing import Literal

from msgspec import UNSET
from msgspec import Meta
from msgspec import Raw
from msgspec import Struct
from msgspec import UnsetType

from monitor.control.bulk import MAX_RATE
from monitor.control.bulk import MIN_RATE
from monitor.records import JobOutcome
from monitor.store.sorting import SORTS

MOST_ITEMS = 500
LATEST = 4_102_444_800.0  # the year 2100
SORT_KEYS = [sign + key for key in ("received", *SORTS) for sign in ("-", "")]
NO_NUL = r"^[^\x00]*$"  # nothing in the record has one, and PostgreSQL refuses it

Signal = Literal["SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGUSR1"]
Cluster = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Name of a cluster")]
Cursor = Annotated[
    str,
    Meta(pattern=NO_NUL, description="Where to go on: next of the page before", extra_json_schema={"format": "cursor"}),
]
WorkflowLimit = Annotated[int, Meta(ge=1, le=100, description="Most workflows of a page")]
Limit = Annotated[int, Meta(ge=1, le=MOST_ITEMS, description="Most items of a page")]
Query = Annotated[
    str, Meta(pattern=NO_NUL, description="Filter; see docs/filters.md", extra_json_schema={"format": "task-filter"})
]
Sort = Annotated[
    str, Meta(description="What to sort by; - in front: the largest first", extra_json_schema={"enum": SORT_KEYS})
]
TaskId = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Id of a task, percent-encoded")]
Time = Annotated[float, Meta(ge=0, le=LATEST, description="Seconds since 1970, UTC")]
RequestId = Annotated[
    str,
    Meta(
        pattern=NO_NUL,
        min_length=1,
        max_length=200,
        description="The same request, however often it comes, is done once; the header Idempotency-Key may say it too",
    ),
]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000, description="Seconds to wait before the task may run")]
FailureStates = Annotated[
    Literal["unresolved", "open", "regressed", "resolved", "muted", "all"],
    Meta(description="Which groups; unresolved are the open and the regressed ones"),
]
GroupId = Annotated[int, Meta(ge=1, lt=2**31, description="Number of a failure group")]
Name = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="This one only, by its whole name")]
ActionOutcome = Annotated[
    Literal["done", "denied", "failed", "unconfirmed"], Meta(description="Those alone that ended so")
]
Reason = Annotated[str, Meta(pattern=NO_NUL, max_length=1000, description="Why; kept in the record of actions")]

JobNumber = Annotated[int, Meta(ge=1, le=2**31 - 1, description="Number of a job")]
Rate = Annotated[float, Meta(ge=MIN_RATE, le=MAX_RATE, description="Tasks per second; left out: as fast as it goes")]


class NoParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """An operation without parameters."""


class InCluster(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cluster, or all."""

    cluster: Cluster | None = None


class TaskAddress(InCluster, frozen=True, kw_only=True):
    """One task."""

    id: TaskId


class TaskListing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which tasks, in which order, how many."""

    q: Query = ""
    sort: Sort = "-received"
    limit: Limit = 50
    cursor: Cursor | None = None


class FailureListing(InCluster, frozen=True, kw_only=True):
    """Failures since when, and in which state; without one, those that are neither resolved nor muted."""

    since: Time | UnsetType = UNSET
    state: FailureStates = "unresolved"
    limit: Limit = 50


class FailureAddress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One failure group; its numbers are of the span since then, of the last day unless that is given."""

    id: GroupId
    since: Time | UnsetType = UNSET


class FailureBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why the state of a failure group is changed."""

    reason: Reason | None = None


class ActionListing(InCluster, frozen=True, kw_only=True):
    """Which actions, how many, from where."""

    actor: Name | None = None
    action: (
        Annotated[str, Meta(pattern=NO_NUL, description="As worker.shutdown; worker.* for all on workers")] | None
    ) = None
    outcome: ActionOutcome | UnsetType = UNSET
    target: Annotated[str, Meta(pattern=NO_NUL, description="Task id, worker, queue")] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class WorkflowAddress(InCluster, frozen=True, kw_only=True):
    """One workflow, by its root task."""

    root_id: TaskId


class WorkflowListing(InCluster, frozen=True, kw_only=True):
    """How many workflows, from where."""

    limit: WorkflowLimit = 50
    cursor: Cursor | None = None


class RunScheduledBody(InCluster, frozen=True, kw_only=True):
    """Which entry of a schedule to send now; ``confirm``: its arguments were seen."""

    name: Annotated[str, Meta(pattern=NO_NUL, min_length=1)]
    confirm: bool = False
    reason: Reason | None = None


class SeriesSpan(InCluster, frozen=True, kw_only=True):
    """A span of time, of everything or of what is named."""

    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    name: Name | None = None
    queue: Name | None = None
    worker: Name | None = None


class RetryBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to send a task again. Without args and kwargs: with what is known of them."""

    # Raw: what the caller wrote reaches the worker digit by digit.
    args: Annotated[Raw, Meta(extra_json_schema={"type": "array"})] | UnsetType = UNSET
    kwargs: Annotated[Raw, Meta(extra_json_schema={"type": "object"})] | UnsetType = UNSET
    queue: Annotated[str, Meta(pattern=NO_NUL, min_length=1)] | None = None
    countdown: Seconds | None = None
    same_id: bool = False
    confirm: bool = False
    reason: Reason | None = None
    request_id: RequestId | None = None


class FindBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why to look for a message."""

    reason: Reason | None = None


class RevokeBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to revoke a task."""

    terminate: bool = False
    signal: Signal = "SIGTERM"
    reason: Reason | None = None


class BulkBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to do to every task that matches, how fast, and why."""

    action: Literal["retry", "revoke"]
    q: Query
    cluster: Cluster | None = None
    rate: Rate | None = None
    reason: Reason | None = None


class BulkStartBody(BulkBody, frozen=True, kw_only=True):
    """The same, on the tasks of a preview, or else on those that match now."""

    request_id: RequestId | None = None
    # To JSON 7.0 is the integer 7; msgspec takes it for a number alone.
    preview: Annotated[float, Meta(ge=1, le=2**31 - 1, multiple_of=1, description="Number of a preview")] | None = None


class AbortBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why a job is to end."""

    reason: Reason | None = None


class JobAddress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One job."""

    id: JobNumber


class JobListing(InCluster, frozen=True, kw_only=True):
    """How many jobs."""

    limit: Limit = 50


class JobTaskListing(JobAddress, frozen=True, kw_only=True):
    """Which tasks of a job, how many, from where."""

    outcome: Annotated[JobOutcome, Meta(description="Only tasks of this outcome")] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None
