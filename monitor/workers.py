"""What a worker's events say of it. No I/O, no clock: times are given."""

import msgspec

from monitor.records import Event
from monitor.records import Worker
from monitor.records import WorkerStatus

SKEW_DRIFT_SECONDS = 0.05  # by which a clock may move between two heartbeats


def fold_worker(known: Worker | None, event: Event, cluster: str, arrived: float) -> Worker:
    """The worker after one of its events, which was read at ``arrived`` by our clock."""
    worker = known or Worker(
        cluster=cluster, hostname=event.hostname, status=WorkerStatus.ONLINE, first_seen=arrived, pid=event.pid
    )
    skew = _skew(worker, event, arrived)
    at = event.timestamp + skew
    if worker.last_heartbeat is not None and at < worker.last_heartbeat:
        return worker  # an older event that came late
    fresh: dict[str, object] = {"skew": skew, "last_heartbeat": at}
    if event.pid is not None and event.pid != worker.pid:  # a new process: what was asked of the old one is void
        fresh |= {"jump": 0.0, "pid": event.pid, "inspected_at": None, "rusage": None, "events_enabled": None}
    for name in ("freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys"):
        value = getattr(event, name)
        if value is not None:
            fresh[name] = value
    if event.type == "worker-offline":
        fresh |= {"status": WorkerStatus.OFFLINE, "offline_at": at, "active": 0}
    else:
        fresh |= {"status": WorkerStatus.ONLINE, "offline_at": None}
    return msgspec.structs.replace(worker, **fresh)


def _skew(worker: Worker, event: Event, arrived: float) -> float:
    """Our clock minus the worker's. Delay on the way only adds to it, so the smallest difference is the best."""
    seen = arrived - event.timestamp
    if worker.skew is None or event.pid != worker.pid:
        return seen
    return min(seen, worker.skew + SKEW_DRIFT_SECONDS)
