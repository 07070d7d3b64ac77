"""Workers as they last told of themselves."""

from msgspec import Struct

from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import InCluster
from monitor.web.api.shapes import shape
from monitor.workers import ProcessState
from monitor.workers import process_state
from monitor.workers import twin_pids


class ProcessItem(Struct, frozen=True, kw_only=True):
    """A process that calls itself so. ``shutting down``: it sent worker-offline and finishes what it runs."""

    pid: int | None
    state: ProcessState
    first_seen: float | None
    last_heartbeat: float | None
    active: int | None
    processed: int | None
    pool: str | None


class WorkerItem(Struct, frozen=True, kw_only=True):
    """One worker; nulls until it was asked. Times are of our clock, ``skew`` is ours minus the worker's."""

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
    duplicates: list[int]  # process ids where several are up under this name, which is a mistake; else empty


class WorkerList(Struct, frozen=True):
    """Every worker."""

    items: list[WorkerItem]


def list_workers(call: Call, given: InCluster) -> WorkerList:
    return WorkerList([worker_item(worker) for worker in queries.workers(call.store, given.cluster)])


def worker_item(worker: Worker) -> WorkerItem:
    return shape(WorkerItem, worker, processes=process_items(worker), duplicates=list(twin_pids(worker)))


def process_items(worker: Worker) -> list[ProcessItem]:
    own = shape(ProcessItem, worker, state=process_state(worker, worker.pid), first_seen=worker.since)
    others = sorted(worker.others, key=lambda each: each.first_seen, reverse=True)
    return [own, *(shape(ProcessItem, each, state=process_state(worker, each.pid)) for each in others)]


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/workers",
        handle=list_workers,
        summary="Workers",
        answer=WorkerList,
        parameters=InCluster,
    ),
)
