"""Workers as they last told of themselves."""

from msgspec import Struct

from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import InCluster
from monitor.web.api.shapes import shapes


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


class WorkerList(Struct, frozen=True):
    """Every worker."""

    items: list[WorkerItem]


def list_workers(call: Call, given: InCluster) -> WorkerList:
    return WorkerList(shapes(WorkerItem, queries.workers(call.store, given.cluster)))


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
