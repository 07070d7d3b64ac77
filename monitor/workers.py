"""What a worker's events say of it. No I/O, no clock: times are given."""

import msgspec

from monitor.records import Event
from monitor.records import Worker
from monitor.records import WorkerStatus

SKEW_DRIFT_SECONDS = 0.05  # by which a clock may move between two heartbeats
SKEW_SECONDS = 2.0  # from here on people are told
SET_BACK_SECONDS = 60.0  # no event arrives so long before one that was stored earlier


def fold_worker(known: Worker | None, event: Event, cluster: str, arrived: float) -> Worker:
    """The worker after one of its events, which was read at ``arrived`` by our clock."""
    worker = known or Worker(
        cluster=cluster, hostname=event.hostname, status=WorkerStatus.ONLINE, first_seen=arrived, pid=event.pid
    )
    skew = _skew(worker, event, arrived)
    at = event.timestamp + skew
    if _is_older(worker, event, at, arrived):
        return worker
    fresh: dict[str, object] = {"skew": skew, "last_heartbeat": at}
    if event.pid is not None and event.pid != worker.pid:  # a new process: what was asked of the old one is void
        fresh |= {"jump": 0.0, "pid": event.pid, "inspected_at": None, "rusage": None, "events_enabled": None}
        fresh["queues"] = None  # it may have been started with others
    for name in ("freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys"):
        value = getattr(event, name)
        if value is not None:
            fresh[name] = value
    if event.type == "worker-offline":
        fresh |= {"status": WorkerStatus.OFFLINE, "offline_at": at, "active": 0}
    else:
        fresh |= {"status": WorkerStatus.ONLINE, "offline_at": None}
    return msgspec.structs.replace(worker, **fresh)


def _is_older(worker: Worker, event: Event, at: float, arrived: float) -> bool:
    """It came late: both clocks say so. By one alone, it is that clock that was set back."""
    if worker.last_heartbeat is None or at >= worker.last_heartbeat:
        return False
    if arrived < worker.last_heartbeat - SET_BACK_SECONDS:
        return False  # on one machine both clocks go back together
    return event.timestamp < worker.last_heartbeat - (worker.skew or 0.0)


def after_setting(worker: Worker, seconds: float) -> Worker:
    """The same, told by our own clock after it was set by so many seconds."""
    moments = {name: getattr(worker, name) for name in ("skew", "last_heartbeat", "offline_at", "inspected_at")}
    moved = {name: None if at is None else at + seconds for name, at in moments.items()}
    return msgspec.structs.replace(worker, **moved)


def is_skewed(worker: Worker) -> bool:
    """Its clock is off; not where it was set while it ran and agrees with ours now, as on a machine of ours."""
    skew = worker.skew or 0.0
    return min(abs(skew), abs(skew - worker.jump)) > SKEW_SECONDS


def _skew(worker: Worker, event: Event, arrived: float) -> float:
    """Our clock minus the worker's. Delay on the way only adds to it, so the smallest difference is the best."""
    seen = arrived - event.timestamp
    if worker.skew is None or event.pid != worker.pid:
        return seen
    return min(seen, worker.skew + SKEW_DRIFT_SECONDS)
