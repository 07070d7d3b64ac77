"""One worker: what it has in hand, and what it may be told."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated
from typing import Any
from typing import TypedDict

from msgspec import Meta
from msgspec import Struct

from monitor.control.inspect import HeldTask
from monitor.control.inspect import Inside
from monitor.control.inspect import look_inside
from monitor.control.worker_commands import AddConsumer
from monitor.control.worker_commands import Autoscale
from monitor.control.worker_commands import CancelConsumer
from monitor.control.worker_commands import DisableEvents
from monitor.control.worker_commands import EnableEvents
from monitor.control.worker_commands import PoolGrow
from monitor.control.worker_commands import PoolRestart
from monitor.control.worker_commands import PoolShrink
from monitor.control.worker_commands import RateLimit
from monitor.control.worker_commands import RevokeStamped
from monitor.control.worker_commands import Shutdown
from monitor.control.worker_commands import TimeLimit
from monitor.errors import BrokerUnavailable
from monitor.errors import Conflict
from monitor.errors import NotFound
from monitor.errors import Unsupported
from monitor.records import Worker
from monitor.store import queries
from monitor.web.api.acting import cluster_named
from monitor.web.api.acting import post
from monitor.web.api.acting import told
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import NO_NUL
from monitor.web.api.requests import ConfirmBody
from monitor.web.api.requests import Given
from monitor.web.api.requests import InCluster
from monitor.web.api.requests import Signal
from monitor.web.api.requests import Why
from monitor.web.api.shapes import Told

ON_WORKER = "workers/{hostname:name}/"
MOST_PROCESSES = 1000
Hostname = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Node name of a worker, percent-encoded")]
# JSON knows no whole numbers: 3.0 is one, and 2.5 is refused.
Processes = Annotated[float, Meta(ge=1, le=MOST_PROCESSES, multiple_of=1)]
Limit = Annotated[float, Meta(gt=0, le=31_536_000, description="Seconds; null removes this limit")]


class WorkerAddress(InCluster, frozen=True, kw_only=True):
    """One worker."""

    hostname: Hostname


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


class StampBody(Why, frozen=True, kw_only=True):
    """Tasks with one of these stamps under this header."""

    header: Given
    stamps: Annotated[list[Given], Meta(min_length=1, max_length=1000)]
    terminate: bool = False
    signal: Signal = "SIGTERM"


class HeldItem(Struct, frozen=True, kw_only=True):
    """A task that a worker has. ``started`` is by our clock; limits are those of its name, in seconds."""

    id: str
    name: str | None
    args: str | None
    kwargs: str | None
    pid: int | None
    started: float | None
    eta: float | None
    priority: int | None
    soft_limit: float | None
    hard_limit: float | None


class InsideItem(Struct, frozen=True, kw_only=True):
    """What a worker says of itself now; null: it did not say. ``silent``: it did not answer at all."""

    silent: bool
    active: list[HeldItem] | None
    reserved: list[HeldItem] | None
    scheduled: list[HeldItem] | None
    revoked: list[str] | None
    stats: dict[str, str] | None
    conf: dict[str, str] | None
    registered: dict[str, dict[str, str]] | None
    refusals: dict[str, str]


def inside_item(inside: Inside) -> InsideItem:
    return InsideItem(
        silent=inside.silent,
        active=_held(inside.active),
        reserved=_held(inside.reserved),
        scheduled=_held(inside.scheduled),
        revoked=None if inside.revoked is None else list(inside.revoked),
        stats=_plain(inside.stats),
        conf=_plain(inside.conf),
        registered=_plain(inside.registered),
        refusals=dict(inside.refusals),
    )


def _held(tasks: tuple[HeldTask, ...] | None) -> list[HeldItem] | None:
    return None if tasks is None else [HeldItem(**asdict(task)) for task in tasks]


def _plain(table: Any) -> Any:
    return None if table is None else dict(table)


def grow_pool(call: Call, given: WorkerAddress, body: PoolBody) -> Told:
    return told(call, PoolGrow(**_worker(call, given), reason=body.reason, number=int(body.number)))


def shrink_pool(call: Call, given: WorkerAddress, body: PoolBody) -> Told:
    return told(call, PoolShrink(**_worker(call, given), reason=body.reason, number=int(body.number)))


def restart_pool(call: Call, given: WorkerAddress, body: Why) -> Told:
    return told(call, PoolRestart(**_worker(call, given), reason=body.reason))


def autoscale(call: Call, given: WorkerAddress, body: AutoscaleBody) -> Told:
    to = _worker(call, given)
    return told(call, Autoscale(**to, reason=body.reason, maximum=int(body.maximum), minimum=int(body.minimum)))


def add_consumer(call: Call, given: WorkerAddress, body: ConsumerBody) -> Told:
    return told(call, AddConsumer(**_worker(call, given), reason=body.reason, queue=body.queue))


def cancel_consumer(call: Call, given: WorkerAddress, body: ConsumerBody) -> Told:
    return told(call, CancelConsumer(**_worker(call, given), reason=body.reason, queue=body.queue))


def rate_limit(call: Call, given: WorkerAddress, body: RateLimitBody) -> Told:
    return told(call, RateLimit(**_worker(call, given), reason=body.reason, task=body.task, rate=body.rate))


def time_limit(call: Call, given: WorkerAddress, body: TimeLimitBody) -> Told:
    to = _worker(call, given)
    return told(call, TimeLimit(**to, reason=body.reason, task=body.task, soft=body.soft, hard=body.hard))


def enable_events(call: Call, given: WorkerAddress, body: Why) -> Told:
    return told(call, EnableEvents(**_worker(call, given), reason=body.reason))


def disable_events(call: Call, given: WorkerAddress, body: Why) -> Told:
    return told(call, DisableEvents(**_worker(call, given), reason=body.reason))


def shut_down_worker(call: Call, given: WorkerAddress, body: ConfirmBody) -> Told:
    return told(call, Shutdown(**_worker(call, given), reason=body.reason, confirm=body.confirm))


def revoke_stamped(call: Call, given: InCluster, body: StampBody) -> Told:
    command = RevokeStamped(
        cluster=cluster_named(call, given.cluster),
        workers=(),
        header=body.header,
        stamps=tuple(body.stamps),
        terminate=body.terminate,
        signal=body.signal,
        reason=body.reason,
    )
    return told(call, command)


def inspect_worker(call: Call, given: WorkerAddress) -> InsideItem:
    return inside_item(look_inside(call.settings, _find(call, given)))


def _find(call: Call, given: WorkerAddress) -> Worker:
    """The worker in the record. Raises NotFound, and Conflict where several clusters have one of that name."""
    found = [each for each in queries.workers(call.store, given.cluster) if each.hostname == given.hostname]
    if not found:
        raise NotFound(f"No worker is called {given.hostname!r}, at least none that was heard of.")
    if len(found) > 1:
        raise Conflict(f"Several clusters have a worker {given.hostname}; add cluster= to the address.")
    return found[0]


class _Workers(TypedDict):
    cluster: str
    workers: tuple[str, ...]


def _worker(call: Call, given: WorkerAddress) -> _Workers:
    worker = _find(call, given)
    return {"cluster": worker.cluster, "workers": (worker.hostname,)}


def _post(name: str, handle: Callable[..., Told], body: type[Struct], summary: str) -> Operation:
    return post(ON_WORKER + name, handle, body, summary, WorkerAddress)


OPERATIONS = (
    _post("grow", grow_pool, PoolBody, "Add processes to a worker's pool"),
    _post("shrink", shrink_pool, PoolBody, "Take processes from a worker's pool, never the last"),
    _post(
        "restart",
        restart_pool,
        Why,
        "Replace each process of a worker's pool once it has ended what it runs",
    ),
    _post("autoscale", autoscale, AutoscaleBody, "Change the range in which a worker scales itself"),
    _post("add-consumer", add_consumer, ConsumerBody, "Let a worker take from one more queue"),
    _post("cancel-consumer", cancel_consumer, ConsumerBody, "Let a worker take no more from a queue"),
    _post("rate-limit", rate_limit, RateLimitBody, "Limit how often a worker runs tasks of a name"),
    _post("time-limit", time_limit, TimeLimitBody, "Set both time limits of tasks of a name"),
    _post("enable-events", enable_events, Why, "Let a worker send task events"),
    _post("disable-events", disable_events, Why, "Let a worker send no task events"),
    _post("shutdown", shut_down_worker, ConfirmBody, "End a worker once what it runs has ended"),
    Operation(
        method="GET",
        path=f"/api/v1/{ON_WORKER}inspect",
        handle=inspect_worker,
        summary="Ask a worker what it has in hand, and for its figures, configuration and tasks",
        answer=InsideItem,
        parameters=WorkerAddress,
        errors=(NotFound, Conflict, Unsupported, BrokerUnavailable),
    ),
    post("revoke-stamped", revoke_stamped, StampBody, "Revoke tasks by a stamp on every worker", InCluster),
)
