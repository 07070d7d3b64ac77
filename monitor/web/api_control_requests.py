"""What the JSON API may be asked to do with workers and queues. Whatever is not named here is refused."""

from typing import Annotated

from msgspec import UNSET
from msgspec import Meta
from msgspec import Raw
from msgspec import Struct
from msgspec import UnsetType

from monitor.web.api_requests import NO_NUL
from monitor.web.api_requests import InCluster
from monitor.web.api_requests import Reason
from monitor.web.api_requests import RequestId
from monitor.web.api_requests import Seconds
from monitor.web.api_requests import Signal

MOST_PROCESSES = 1000
Given = Annotated[str, Meta(pattern=NO_NUL, min_length=1, max_length=255)]
Hostname = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Node name of a worker, percent-encoded")]
QueueName = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Name of a queue, percent-encoded")]
# JSON knows no whole numbers: 3.0 is one, and 2.5 is refused.
Processes = Annotated[float, Meta(ge=1, le=MOST_PROCESSES, multiple_of=1)]
Limit = Annotated[float, Meta(gt=0, le=31_536_000, description="Seconds; null removes this limit")]


class WorkerAddress(InCluster, frozen=True, kw_only=True):
    """One worker."""

    hostname: Hostname


class QueueAddress(InCluster, frozen=True, kw_only=True):
    """One queue."""

    name: QueueName


class Why(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Nothing but a reason."""

    reason: Reason | None = None


class PoolBody(Why, frozen=True, kw_only=True):
    """By how many processes."""

    number: Processes = 1


class AutoscaleBody(Why, frozen=True, kw_only=True):
    """The new range of processes; minimum is at most maximum."""

    maximum: Processes
    minimum: Annotated[float, Meta(ge=0, le=MOST_PROCESSES, multiple_of=1)]


class ConsumerBody(Why, frozen=True, kw_only=True):
    """Which queue."""

    queue: Given


class RateLimitBody(Why, frozen=True, kw_only=True):
    """How many tasks of a name: 10/s, 5/m, 100/h, or 0 for no limit."""

    task: Given
    rate: Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?(/[smh])?$")]


class TimeLimitBody(Why, frozen=True, kw_only=True):
    """Both limits, always: Celery removes a limit that is not given, so null must be said."""

    task: Given
    soft: Limit | None
    hard: Limit | None


class ConfirmBody(Why, frozen=True, kw_only=True):
    """The name of what is ended or emptied, typed again."""

    confirm: str | None = None


class StampBody(Why, frozen=True, kw_only=True):
    """Tasks with one of these stamps under this header."""

    header: Given
    stamps: Annotated[list[Given], Meta(min_length=1, max_length=1000)]
    terminate: bool = False
    signal: Signal = "SIGTERM"


class ReadBody(Why, frozen=True, kw_only=True):
    """How many messages."""

    limit: Annotated[float, Meta(ge=1, le=200, multiple_of=1)] = 50


class DeleteBody(Why, frozen=True, kw_only=True):
    """The digest of a message, as reading gave it."""

    digest: Given
    id: Annotated[str, Meta(pattern=NO_NUL)] | None = None


class RunBody(Why, frozen=True, kw_only=True):
    """A task that a worker has registered."""

    name: Given
    queue: Given
    # Raw: what the caller wrote reaches the worker digit by digit.
    args: Annotated[Raw, Meta(extra_json_schema={"type": "array"})] | UnsetType = UNSET
    kwargs: Annotated[Raw, Meta(extra_json_schema={"type": "object"})] | UnsetType = UNSET
    countdown: Seconds | None = None
    request_id: RequestId | None = None
