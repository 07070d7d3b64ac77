"""One worker: what it has in hand, and what it may be told."""

from dataclasses import asdict
from typing import Annotated
from typing import Any

from msgspec import Meta
from msgspec import Struct

from monitor.control.commands import NO_NUL
from monitor.control.inspect import HeldTask
from monitor.control.inspect import Inside
from monitor.control.inspect import look_inside
from monitor.control.workers import ON_WORKER
from monitor.control.workers import WORKER_COMMANDS
from monitor.control.workers import RevokeStamped
from monitor.errors import BrokerUnavailable
from monitor.errors import Conflict
from monitor.errors import NotFound
from monitor.errors import Unsupported
from monitor.records import Worker
from monitor.store import queries
from monitor.web.api.acting import cluster_named
from monitor.web.api.acting import operation
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import InCluster

Hostname = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Node name of a worker, percent-encoded")]


class WorkerAddress(InCluster, frozen=True, kw_only=True):
    """One worker."""

    hostname: Hostname


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


def _worker(call: Call, given: WorkerAddress) -> dict[str, Any]:
    worker = _find(call, given)
    return {"cluster": worker.cluster, "workers": (worker.hostname,)}


def _cluster(call: Call, given: InCluster) -> dict[str, Any]:
    return {"cluster": cluster_named(call, given.cluster)}


OPERATIONS = (
    *(operation(command, WorkerAddress, _worker) for command in WORKER_COMMANDS),
    Operation(
        method="GET",
        path=f"/api/v1/{ON_WORKER}inspect",
        handle=inspect_worker,
        summary="Ask a worker what it has in hand, and for its figures, configuration and tasks",
        answer=InsideItem,
        parameters=WorkerAddress,
        errors=(NotFound, Conflict, Unsupported, BrokerUnavailable),
    ),
    operation(RevokeStamped, InCluster, _cluster),
)
