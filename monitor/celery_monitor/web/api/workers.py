"""Workers as last reported, inspection of one worker, and commands."""

import time
from dataclasses import asdict
from typing import Annotated, Any

from msgspec import Meta, Struct

from celery_monitor.control.commands import NO_NUL
from celery_monitor.control.inspect import Inspected, InspectedTask, query_worker
from celery_monitor.control.revoke import RevokeStamped
from celery_monitor.control.workers import ON_WORKER, WORKER_COMMANDS
from celery_monitor.core.workers import ProcessState, duplicate_pids, process_state
from celery_monitor.errors import BrokerUnavailable, Conflict, NotAlive, NotFound, Unsupported
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store.receivers import is_caught_up, read_receiver_health
from celery_monitor.store.workers import read_workers
from celery_monitor.web.api.operation import (
    Call,
    InCluster,
    NamedListing,
    Operation,
    cluster_named,
    operation,
    page_by_name,
    shape,
)
from celery_monitor.web.security.reach import IN_CLUSTERS, Access, Reach

Hostname = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Node name of a worker, percent-encoded")]


class WorkerAddress(InCluster, frozen=True, kw_only=True):
    """One worker."""

    hostname: Hostname


class InspectedItem(Struct, frozen=True, kw_only=True):
    """A task that a worker has. ``started`` is by the dashboard's clock; limits are of the task name, in seconds."""

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


class InspectionItem(Struct, frozen=True, kw_only=True):
    """The answers of a worker; null: no answer. ``silent``: it answered nothing at all."""

    silent: bool
    active: list[InspectedItem] | None
    reserved: list[InspectedItem] | None
    scheduled: list[InspectedItem] | None
    revoked: list[str] | None
    stats: dict[str, str] | None
    conf: dict[str, str] | None
    registered: dict[str, dict[str, str]] | None
    refusals: dict[str, str]


def inspection_item(answers: Inspected) -> InspectionItem:
    return InspectionItem(
        silent=answers.silent,
        active=_inspected(answers.active),
        reserved=_inspected(answers.reserved),
        scheduled=_inspected(answers.scheduled),
        revoked=None if answers.revoked is None else list(answers.revoked),
        stats=_plain(answers.stats),
        conf=_plain(answers.conf),
        registered=_plain(answers.registered),
        refusals=dict(answers.refusals),
    )


def _inspected(tasks: tuple[InspectedTask, ...] | None) -> list[InspectedItem] | None:
    return None if tasks is None else [InspectedItem(**asdict(task)) for task in tasks]


def _plain(table: Any) -> Any:
    return None if table is None else dict(table)


def inspect_worker(call: Call, given: WorkerAddress) -> InspectionItem:
    return inspection_item(query_worker(call.settings, _find(call, given)))


def _find(call: Call, given: WorkerAddress) -> Worker:
    """The recorded worker. Raises NotFound, and Conflict if several clusters have one of that name."""
    found = [each for each in read_workers(call.store, given.cluster) if each.hostname == given.hostname]
    if not found:
        raise NotFound(f"Worker {given.hostname!r} not found.")
    if len(found) > 1:
        raise Conflict(f"Several clusters have a worker {given.hostname}; add cluster= to the URL.")
    return found[0]


def _worker(call: Call, given: WorkerAddress) -> dict[str, Any]:
    worker = _find(call, given)
    return {"cluster": worker.cluster, "workers": (worker.hostname,)}


def _cluster(call: Call, given: InCluster) -> dict[str, Any]:
    return {"cluster": cluster_named(call, given.cluster)}


class ProcessItem(Struct, frozen=True, kw_only=True):
    """A process of this name. ``shutting down``: it sent worker-offline and finishes its running tasks."""

    pid: int | None
    state: ProcessState
    first_seen: float | None
    last_heartbeat: float | None
    active: int | None
    processed: int | None
    pool: str | None


class WorkerItem(Struct, frozen=True, kw_only=True):
    """One worker; null: unknown. Times are by the dashboard's clock, ``skew`` is that clock minus the worker's."""

    hostname: str
    cluster: str
    status: WorkerStatus
    pid: int | None
    first_seen: float | None
    last_heartbeat: float | None
    offline_at: float | None
    freq: float | None
    skew: float | None
    active: int | None
    processed: int | None
    loadavg: tuple[float, ...] | None
    sw_ident: str | None
    sw_ver: str | None
    sw_sys: str | None
    queues: tuple[str, ...] | None
    pool: str | None
    pool_size: int | None
    prefetch: int | None
    events_enabled: bool | None
    processes: list[ProcessItem]  # the worker's own first, then earlier and second ones
    duplicates: list[int]  # process ids, if several processes use this name by mistake


class WorkerList(Struct, frozen=True):
    """Workers by cluster and name; ``next`` is the cursor of the following page."""

    items: list[WorkerItem]
    next: str | None


def list_workers(call: Call, given: NamedListing) -> WorkerList:
    now = time.time()
    workers = read_workers(call.store, given.cluster)
    page, following = page_by_name(workers, given, "workers", lambda each: (each.cluster, each.hostname))
    return WorkerList([worker_item(worker, now) for worker in page], following)


def worker_item(worker: Worker, now: float) -> WorkerItem:
    return shape(WorkerItem, worker, processes=process_items(worker, now), duplicates=list(duplicate_pids(worker)))


def process_items(worker: Worker, now: float) -> list[ProcessItem]:
    own = shape(ProcessItem, worker, state=process_state(worker, worker.pid, now), first_seen=worker.since)
    others = sorted(worker.others, key=lambda each: each.first_seen, reverse=True)
    return [own, *(shape(ProcessItem, each, state=process_state(worker, each.pid, now)) for each in others)]


class Aliveness(WorkerAddress, frozen=True, kw_only=True):
    """One worker, and how old its last heartbeat may be."""

    within: Annotated[float, Meta(ge=5, le=3600, description="Seconds since the last heartbeat")] = 60.0


class AliveItem(Struct, frozen=True, kw_only=True):
    """``alive`` null: unknown, since the record itself is behind or its receiver is down; that accuses no worker."""

    hostname: str
    alive: bool | None
    last_heartbeat: float | None


def check_alive(call: Call, given: Aliveness) -> AliveItem:
    """From the record: no worker is asked. Raises NotAlive."""
    worker, now = _find(call, given), time.time()
    if not is_caught_up(call.store, worker.cluster, now):
        return AliveItem(hostname=worker.hostname, alive=None, last_heartbeat=worker.last_heartbeat)
    age = now - (worker.last_heartbeat or 0.0)
    # While nothing happens, heartbeats gather in the receiver: it has stored those that came before its last report.
    receiver = read_receiver_health(call.store, worker.cluster)
    unreported = 0.0 if receiver is None or receiver.updated_at is None else max(0.0, now - receiver.updated_at)
    if worker.status is WorkerStatus.OFFLINE or age - unreported > given.within:
        raise NotAlive(
            f"{worker.hostname} has sent no heartbeat for {age:.0f} s.", last_heartbeat=worker.last_heartbeat
        )
    return AliveItem(hostname=worker.hostname, alive=True, last_heartbeat=worker.last_heartbeat)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/workers",
        handle=list_workers,
        summary="List workers",
        answer=WorkerList,
        parameters=NamedListing,
        access=IN_CLUSTERS,
    ),
    Operation(
        method="GET",
        path=f"/api/v1/{ON_WORKER}alive",
        handle=check_alive,
        summary="Check that a worker is alive, for its own liveness probe",
        answer=AliveItem,
        parameters=Aliveness,
        errors=(NotFound, Conflict, NotAlive),
        access=IN_CLUSTERS,
    ),
    *(operation(command, WorkerAddress, _worker) for command in WORKER_COMMANDS),
    Operation(
        method="GET",
        path=f"/api/v1/{ON_WORKER}inspect",
        handle=inspect_worker,
        summary="Inspect a worker: current tasks, stats, configuration and registered tasks",
        answer=InspectionItem,
        parameters=WorkerAddress,
        errors=(NotFound, Conflict, Unsupported, BrokerUnavailable),
        access=Access(Reach.CLUSTERS),  # it reports the arguments of current tasks
    ),
    operation(RevokeStamped, InCluster, _cluster),
)
