"""Workers from their events, and clocks that are set while they run.

A node name is not a process: in a rolling restart the old and the new process have one name, and two workers may be
started with one name by mistake (Celery only warns). So each process has its own heartbeats and shutdown.

A worker numbers its events. A later number with an earlier time shows that the clock was set back; a time later than
the arrival, by the clock's known offset, that it was set forward. From then on the worker's times are converted to its
clock as it was before, so that runs have consistent times.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from celery_monitor.core.lifecycle import CAPTURED
from celery_monitor.records.event import Event
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.worker import Worker, WorkerProcess, WorkerStatus

JUMP_SECONDS = 5.0  # less is drift, or events that overtook each other
OWN_SECONDS = 1.0


class OwnClock:
    """Our clock compared to a monotonic one that also runs during sleep."""

    def __init__(self, now: float, steady: float) -> None:
        self._ahead = now - steady
        self._jump = 0.0  # events that were not read yet may have an arrival time from before it

    def jump(self, now: float, steady: float) -> float:
        """Seconds by which the clock was set forward since the last call; 0 if it only drifted."""
        ahead = now - steady
        seconds, self._ahead = ahead - self._ahead, ahead
        if abs(seconds) < OWN_SECONDS:
            return 0.0
        self._jump = seconds
        return seconds

    def current(self, arrived: float, now: float) -> float:
        """An arrival time by the clock as it is now: with or without the last jump, whichever is nearer to now."""
        if self._jump and abs(arrived + self._jump - now) < abs(arrived - now):
            return arrived + self._jump
        self._jump = 0.0
        return arrived


class Newest(msgspec.Struct):
    """The latest event of a worker process, by its number."""

    pid: int | None
    clock: int
    stamp: float


class Clocks:
    """The clocks of one cluster's workers, by process."""

    def __init__(self) -> None:
        self._last: dict[str, Newest] = {}
        self._jumps: dict[str, tuple[int | None, float]] = {}

    def forget(self) -> None:
        """Clears the state in memory; ``restore`` adds what is stored."""
        self._last.clear()
        self._jumps.clear()

    def drop(self, hostname: str) -> None:
        """Removes the state of a worker that is no longer recorded."""
        self._last.pop(hostname, None)
        self._jumps.pop(hostname, None)

    def restore(self, hostname: str, pid: int | None, jump: float) -> None:
        """Adds a jump that an earlier receiver detected."""
        if jump and hostname not in self._jumps:
            self._jumps[hostname] = (pid, jump)

    def jump_of(self, hostname: str, pid: int | None) -> float:
        """Seconds by which this process's clock was set forward since its first event."""
        process, jump = self._jumps.get(hostname, (None, 0.0))
        return jump if process == pid else 0.0

    def steady(self, events: Sequence[Event]) -> bool:
        """Whether no clock was set, by the last event of each worker: then no event needs correction."""
        if self._jumps:
            return False
        newest = {event.hostname: event for event in events}
        for hostname, event in newest.items():
            last = self._last.get(hostname)
            if last is None or last.pid != event.pid or abs(event.timestamp - last.stamp) > JUMP_SECONDS:
                return False
        for hostname, event in newest.items():
            self._advance(self._last[hostname], event)
        return True

    def corrected(self, event: Event, arrived: float, skews: Mapping[str, float]) -> Event:
        """The event with its time by the clock as if it had not been set. ``skews`` are from before the event."""
        hostname, pid, stamp = event.hostname, event.pid, event.timestamp
        last = self._last.get(hostname)
        if last is not None and last.pid == pid and abs(stamp - last.stamp) <= JUMP_SECONDS:
            self._advance(last, event)
        elif hostname in skews and event.type != CAPTURED:
            self._detect_jump(event, stamp + skews[hostname] - arrived)
        jump = self.jump_of(hostname, pid)
        return msgspec.structs.replace(event, timestamp=max(0.0, stamp - jump)) if jump else event

    @staticmethod
    def _advance(last: Newest, event: Event) -> None:
        if (event.clock or 0) > last.clock:
            last.clock, last.stamp = event.clock or 0, event.timestamp

    def _detect_jump(self, event: Event, ahead: float) -> None:
        """Notes whether the clock was set since the worker's latest event. ``ahead``: seconds from arrival to stamp."""
        hostname, pid, stamp = event.hostname, event.pid, event.timestamp
        last = self._last.get(hostname)
        if last is not None and last.pid == pid:
            if (event.clock or 0) <= last.clock:
                return
            jump = self.jump_of(hostname, pid)
            if stamp < last.stamp or ahead - jump > JUMP_SECONDS:
                self._jumps[hostname] = (pid, ahead)
        self._last[hostname] = Newest(pid, event.clock or 0, stamp)


SKEW_DRIFT_SECONDS = 0.05  # by which a clock may move between two heartbeats
SKEW_SECONDS = 2.0  # a larger skew is shown
SET_BACK_SECONDS = 60.0  # an arrival earlier than this before a stored one shows a clock that was set back
GRACE_SECONDS = 1.0  # beyond two intervals, for a heartbeat on its way
# A process that sent worker-offline and then no end of a task for this long counts as killed. Celery's supervisord
# example waits as long (stopwaitsecs = 600) before it kills.
SHUTDOWN_SECONDS = 600.0
OVERLAP_SECONDS = 5.0  # of heartbeats from both processes, after which it is not a restart but two workers
KEPT_SECONDS = 3600.0  # after its last heartbeat, another process is forgotten
MOST_OTHERS = 8

ON_WORKER_STATES = frozenset({TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.STARTED})
ProcessState = Literal["online", "silent", "shutting down", "offline"]


def fold_worker(known: Worker | None, event: Event, cluster: str, arrived: float) -> Worker:
    """Applies an event that arrived at ``arrived`` by our clock."""
    worker = known or Worker(
        cluster=cluster,
        hostname=event.hostname,
        status=WorkerStatus.ONLINE,
        first_seen=arrived,
        pid=event.pid,
        since=arrived,
    )
    if event.pid is not None and worker.pid is not None and event.pid != worker.pid:
        other = process_of(worker, event.pid)
        at = event.timestamp + _skew_of(other, event, arrived)
        if not _takes_over(worker, other, event, at, arrived):
            return _with_other(worker, _fold_process(other, event, arrived))
        worker = _replaced(worker, other, event.pid, arrived)
    skew = _skew(worker, event, arrived)
    at = event.timestamp + skew
    if _is_older(worker, event, at, arrived):
        return worker
    if worker.sent_offline and not event.type.startswith("worker-"):
        return msgspec.structs.replace(worker, skew=skew)  # it finishes its running tasks
    fresh: dict[str, object] = {"skew": skew, "last_heartbeat": at}
    if worker.pid is None:
        fresh["pid"] = event.pid
    for name in ("freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys"):
        value = getattr(event, name)
        if value is not None:
            fresh[name] = value
    if event.type == "worker-offline":
        fresh |= {"status": WorkerStatus.OFFLINE, "offline_at": at, "active": 0, "sent_offline": True}
    else:
        fresh |= {"status": WorkerStatus.ONLINE, "offline_at": None, "sent_offline": False}
    return msgspec.structs.replace(worker, **fresh)


# Several processes of one name


def process_of(worker: Worker, pid: int | None) -> WorkerProcess | None:
    """The process with this pid among those that are not the current one."""
    return next((each for each in worker.others if each.pid == pid), None)


def duplicates(worker: Worker) -> tuple[WorkerProcess, ...]:
    """Other processes that are up with the worker's name: workers started with one name by mistake.

    In a restart the old process goes silent or offline. These continue to send heartbeats long after the other start.
    """
    if worker.status is WorkerStatus.OFFLINE or worker.since is None or worker.last_heartbeat is None:
        return ()
    overlapped = worker.since + OVERLAP_SECONDS
    return tuple(
        each
        for each in worker.others
        if each.offline_at is None
        and each.last_heartbeat >= overlapped
        and each.last_heartbeat >= worker.last_heartbeat - overdue_seconds(each.freq)
    )


def duplicate_pids(worker: Worker) -> tuple[int, ...]:
    """The pids of all processes with the worker's name if there are several, else none."""
    others = duplicates(worker)
    pids = {each.pid for each in others} | {pid for pid in (worker.pid,) if pid is not None}
    return tuple(sorted(pids)) if others else ()


def process_state(worker: Worker, pid: int | None, now: float | None = None) -> ProcessState:
    """The state of the process that has a task.

    With ``now``, a process that went offline long ago counts as offline rather than shutting down.
    """
    if pid is None or pid == worker.pid:
        if worker.status is WorkerStatus.OFFLINE:
            return _after_offline(worker.offline_at, now) if worker.sent_offline else "offline"
        return "online" if worker.status is WorkerStatus.ONLINE else "silent"
    other = process_of(worker, pid)
    if other is None:
        return "offline"
    if other.offline_at is not None:
        return _after_offline(other.offline_at, now)
    beating = other.last_heartbeat + overdue_seconds(other.freq) >= (worker.last_heartbeat or 0.0)
    return "online" if beating else "silent"


def _after_offline(offline_at: float | None, now: float | None) -> ProcessState:
    return "offline" if now is not None and now - (offline_at or 0.0) > SHUTDOWN_SECONDS else "shutting down"


def task_process_state(task: Task, workers: Iterable[Worker]) -> ProcessState | None:
    """The state of the process that has the task now; ``None`` if none is known to have it."""
    if task.state not in ON_WORKER_STATES or task.run is None:
        return None
    found = [worker for worker in workers if (worker.cluster, worker.hostname) == (task.cluster, task.worker)]
    return process_state(found[0], task.run.pid) if found else None


def overdue_seconds(freq: float | None) -> float:
    """Seconds after which a heartbeat is overdue; infinite for a worker that sends none."""
    return 2 * freq + GRACE_SECONDS if freq else float("inf")


def _takes_over(worker: Worker, other: WorkerProcess | None, event: Event, at: float, arrived: float) -> bool:
    """Whether the process of this event becomes the worker's current one."""
    if event.type == "worker-offline":
        return False
    if other is not None and other.offline_at is not None:
        return event.type == "worker-online"  # the pid was reused; otherwise it is finishing its tasks
    if not event.type.startswith("worker-"):
        return other is None and not _is_older(worker, event, at, arrived)
    if worker.status is WorkerStatus.OFFLINE:
        return at >= (worker.offline_at or 0.0)
    if other is None:
        return not _is_older(worker, event, at, arrived)
    return at - (worker.last_heartbeat or 0.0) > overdue_seconds(worker.freq)


def _replaced(worker: Worker, other: WorkerProcess | None, pid: int, arrived: float) -> Worker:
    """The worker with another current process; answers of the previous one are dropped."""
    before = WorkerProcess(
        pid=worker.pid or 0,
        first_seen=worker.since or worker.first_seen or arrived,
        last_heartbeat=worker.last_heartbeat or arrived,
        offline_at=worker.offline_at if worker.sent_offline else None,
        freq=worker.freq,
        skew=worker.skew or 0.0,
        active=worker.active,
        processed=worker.processed,
        pool=worker.pool,
    )
    returning = other is not None and other.offline_at is None
    fresh = msgspec.structs.replace(
        worker,
        pid=pid,
        since=other.first_seen if other is not None and returning else arrived,
        skew=other.skew if other is not None and returning else None,
        last_heartbeat=other.last_heartbeat if other is not None and returning else None,
        jump=0.0,
        inspected_at=None,
        queues=None,  # it may consume others
        rusage=None,
        events_enabled=None,
        others=tuple(each for each in worker.others if each.pid != pid),
    )
    return _with_other(fresh, before)


def _fold_process(other: WorkerProcess | None, event: Event, arrived: float) -> WorkerProcess:
    skew = _skew_of(other, event, arrived)
    at = event.timestamp + skew
    if other is None:
        other = WorkerProcess(pid=event.pid or 0, first_seen=at, last_heartbeat=at)
    fresh: dict[str, object] = {"skew": skew, "last_heartbeat": max(at, other.last_heartbeat)}
    for name in ("freq", "active", "processed"):
        if getattr(event, name) is not None:
            fresh[name] = getattr(event, name)
    if event.type == "worker-offline":
        fresh["offline_at"] = at
    return msgspec.structs.replace(other, **fresh)


def _with_other(worker: Worker, process: WorkerProcess) -> Worker:
    """Adds a process to the latest few; those without recent heartbeats are dropped."""
    newest = max(process.last_heartbeat, worker.last_heartbeat or 0.0)
    rest = [each for each in worker.others if each.pid != process.pid]
    kept = [each for each in (*rest, process) if newest - each.last_heartbeat < KEPT_SECONDS]
    kept.sort(key=lambda each: each.last_heartbeat)
    return msgspec.structs.replace(worker, others=tuple(kept[-MOST_OTHERS:]))


def _skew_of(other: WorkerProcess | None, event: Event, arrived: float) -> float:
    seen = arrived - event.timestamp
    return seen if other is None else min(seen, other.skew + SKEW_DRIFT_SECONDS)


def _is_older(worker: Worker, event: Event, at: float, arrived: float) -> bool:
    """Whether the event is older than the last one by both clocks. By just one clock, that clock was set back."""
    if worker.last_heartbeat is None or at >= worker.last_heartbeat:
        return False
    if arrived < worker.last_heartbeat - SET_BACK_SECONDS:
        return False  # on one machine both clocks go back together
    return event.timestamp < worker.last_heartbeat - (worker.skew or 0.0)


def after_setting(worker: Worker, seconds: float) -> Worker:
    """The worker with its times shifted after this machine's clock jumped by these seconds."""
    times = _shifted(worker, ("skew", "last_heartbeat", "offline_at", "inspected_at", "since"), seconds)
    others = tuple(
        msgspec.structs.replace(each, **_shifted(each, ("skew", "first_seen", "last_heartbeat", "offline_at"), seconds))
        for each in worker.others
    )
    return msgspec.structs.replace(worker, **times, others=others)


def _shifted(process: Worker | WorkerProcess, names: Sequence[str], seconds: float) -> dict[str, float | None]:
    times = {name: getattr(process, name) for name in names}
    return {name: None if at is None else at + seconds for name, at in times.items()}


def is_skewed(worker: Worker) -> bool:
    """Whether its clock is off. A clock that was set while the worker ran and now agrees with ours is not."""
    skew = worker.skew or 0.0
    return min(abs(skew), abs(skew - worker.jump)) > SKEW_SECONDS


def _skew(worker: Worker, event: Event, arrived: float) -> float:
    """Our clock minus the worker's. Delays only increase the difference, so the smallest one is used."""
    seen = arrived - event.timestamp
    if worker.skew is None or event.pid != worker.pid:
        return seen
    return min(seen, worker.skew + SKEW_DRIFT_SECONDS)
