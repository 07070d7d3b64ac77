"""Workers as their events describe them, and clocks that are set while they run.

A node name is not a process: a rolling restart has the old and the new one under one name, and two workers may be
started with one name by mistake (Celery only warns). So each process has heartbeats and a shutdown of its own.

A worker counts its events, whatever its clock shows. An event with a higher count and an earlier time shows that the
clock was set back; one that is stamped later than it arrived, by the clock's known offset, that it was set forward.
From then on the worker's times are converted to its clock as it was before, so that runs have consistent times.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from celery_monitor.core.lifecycle import CAPTURED
from celery_monitor.records.event import Event
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.worker import Worker, WorkerProcess, WorkerStatus

JUMP_SECONDS = 5.0  # less than that is drift, or events that overtook each other
OWN_SECONDS = 1.0


class OwnClock:
    """Our own clock beside one that nobody can set; it goes on while the machine sleeps."""

    def __init__(self, now: float, steady: float) -> None:
        self._ahead = now - steady
        self._set_by = 0.0  # of what has arrived and is not read yet, the time may be by the clock as it was before

    def set_by(self, now: float, steady: float) -> float:
        """Seconds by which the clock was set forward since this was last asked; 0 where it only drifted."""
        ahead = now - steady
        seconds, self._ahead = ahead - self._ahead, ahead
        if abs(seconds) < OWN_SECONDS:
            return 0.0
        self._set_by = seconds
        return seconds

    def read_again(self, arrived: float, now: float) -> float:
        """A time of arrival, in order, by the clock as it is now: of the two that it may be, what is nearer to now."""
        if self._set_by and abs(arrived + self._set_by - now) < abs(arrived - now):
            return arrived + self._set_by
        self._set_by = 0.0
        return arrived


class Newest(msgspec.Struct):
    """The event with the highest count that a worker's process has sent."""

    pid: int | None
    clock: int
    stamp: float


class Clocks:
    """The clocks of the workers of one cluster, by their processes."""

    def __init__(self) -> None:
        self._last: dict[str, Newest] = {}
        self._jumps: dict[str, tuple[int | None, float]] = {}

    def forget(self) -> None:
        """Nothing that is in memory is sure; what was stored is restored."""
        self._last.clear()
        self._jumps.clear()

    def restore(self, hostname: str, pid: int | None, jump: float) -> None:
        """What an earlier receiver found out."""
        if jump and hostname not in self._jumps:
            self._jumps[hostname] = (pid, jump)

    def jump_of(self, hostname: str, pid: int | None) -> float:
        """Seconds by which this process's clock was set forward since it was first heard."""
        process, jump = self._jumps.get(hostname, (None, 0.0))
        return jump if process == pid else 0.0

    def steady(self, events: Sequence[Event]) -> bool:
        """Nobody has set a clock, as the last event of each worker shows: none of these is to be corrected."""
        if self._jumps:
            return False
        newest = {event.hostname: event for event in events}
        for hostname, event in newest.items():
            last = self._last.get(hostname)
            if last is None or last.pid != event.pid or abs(event.timestamp - last.stamp) > JUMP_SECONDS:
                return False
        for hostname, event in newest.items():
            self._hear(self._last[hostname], event)
        return True

    def corrected(self, event: Event, arrived: float, skews: Mapping[str, float]) -> Event:
        """The event with the time that the clock would say if nobody had set it. ``skews`` are as they were before."""
        hostname, pid, stamp = event.hostname, event.pid, event.timestamp
        last = self._last.get(hostname)
        if last is not None and last.pid == pid and abs(stamp - last.stamp) <= JUMP_SECONDS:
            self._hear(last, event)
        elif hostname in skews and event.type != CAPTURED:
            self._look(event, stamp + skews[hostname] - arrived)
        jump = self.jump_of(hostname, pid)
        return msgspec.structs.replace(event, timestamp=max(0.0, stamp - jump)) if jump else event

    @staticmethod
    def _hear(last: Newest, event: Event) -> None:
        if (event.clock or 0) > last.clock:
            last.clock, last.stamp = event.clock or 0, event.timestamp

    def _look(self, event: Event, ahead: float) -> None:
        """Whether the clock was set since the worker's newest event. ``ahead``: seconds it arrived before its stamp."""
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
SKEW_SECONDS = 2.0  # from here on people are told
SET_BACK_SECONDS = 60.0  # no event arrives so long before one that was stored earlier
GRACE_SECONDS = 1.0  # beyond two intervals, for a heartbeat on its way
# A process that sent worker-offline and then no end of a task for this long was killed, as far as anybody can tell.
# Celery's own supervisord example waits as long (stopwaitsecs = 600) before it kills.
SHUTDOWN_SECONDS = 600.0
OVERLAP_SECONDS = 5.0  # for which both processes beat before they are two workers, not a restart
KEPT_SECONDS = 3600.0  # after its last heartbeat, another process is forgotten
MOST_OTHERS = 8

ON_WORKER_STATES = frozenset({TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.STARTED})
ProcessState = Literal["online", "silent", "shutting down", "offline"]


def fold_worker(known: Worker | None, event: Event, cluster: str, arrived: float) -> Worker:
    """The worker after one of its events, which was read at ``arrived`` by our clock."""
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
            return _with_other(worker, _heard(other, event, arrived))
        worker = _replaced(worker, other, event.pid, arrived)
    skew = _skew(worker, event, arrived)
    at = event.timestamp + skew
    if _is_older(worker, event, at, arrived):
        return worker
    if worker.sent_offline and not event.type.startswith("worker-"):
        return msgspec.structs.replace(worker, skew=skew)  # it ends what it runs
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
    """The process of this number that is not the worker's present one."""
    return next((each for each in worker.others if each.pid == pid), None)


def twins(worker: Worker) -> tuple[WorkerProcess, ...]:
    """The processes that are up under the worker's name beside its own: started so by mistake.

    In a restart the old one falls silent, or says goodbye. These go on beating, long after the other one has begun.
    """
    if worker.status is WorkerStatus.OFFLINE or worker.since is None or worker.last_heartbeat is None:
        return ()
    begun = worker.since + OVERLAP_SECONDS
    return tuple(
        each
        for each in worker.others
        if each.offline_at is None
        and each.last_heartbeat >= begun
        and each.last_heartbeat >= worker.last_heartbeat - overdue_seconds(each.freq)
    )


def twin_pids(worker: Worker) -> tuple[int, ...]:
    """All processes that call themselves so, where there are several; else none."""
    others = twins(worker)
    pids = {each.pid for each in others} | {pid for pid in (worker.pid,) if pid is not None}
    return tuple(sorted(pids)) if others else ()


def process_state(worker: Worker, pid: int | None, now: float | None = None) -> ProcessState:
    """What is known of the process that has a task, by the worker that stands under its name.

    With ``now``, one that said goodbye long ago is offline: of a task that it has, the receiver knows better.
    """
    if pid is None or pid == worker.pid:
        if worker.status is WorkerStatus.OFFLINE:
            return _after_goodbye(worker.offline_at, now) if worker.sent_offline else "offline"
        return "online" if worker.status is WorkerStatus.ONLINE else "silent"
    other = process_of(worker, pid)
    if other is None:
        return "offline"
    if other.offline_at is not None:
        return _after_goodbye(other.offline_at, now)
    heard = other.last_heartbeat + overdue_seconds(other.freq) >= (worker.last_heartbeat or 0.0)
    return "online" if heard else "silent"


def _after_goodbye(offline_at: float | None, now: float | None) -> ProcessState:
    return "offline" if now is not None and now - (offline_at or 0.0) > SHUTDOWN_SECONDS else "shutting down"


def holder_state(task: Task, workers: Iterable[Worker]) -> ProcessState | None:
    """Of the process that has the task now; ``None`` where nobody is known to have it."""
    if task.state not in ON_WORKER_STATES or task.run is None:
        return None
    found = [worker for worker in workers if (worker.cluster, worker.hostname) == (task.cluster, task.worker)]
    return process_state(found[0], task.run.pid) if found else None


def overdue_seconds(freq: float | None) -> float:
    """Seconds of silence that no heartbeat on its way explains; of one that sends none, nothing is ever overdue."""
    return 2 * freq + GRACE_SECONDS if freq else float("inf")


def _takes_over(worker: Worker, other: WorkerProcess | None, event: Event, at: float, arrived: float) -> bool:
    """Whether the process of this event stands for the worker from now on."""
    if event.type == "worker-offline":
        return False
    if other is not None and other.offline_at is not None:
        return event.type == "worker-online"  # the system gave the number again; else it ends what it runs
    if not event.type.startswith("worker-"):
        return other is None and not _is_older(worker, event, at, arrived)
    if worker.status is WorkerStatus.OFFLINE:
        return at >= (worker.offline_at or 0.0)
    if other is None:
        return not _is_older(worker, event, at, arrived)
    return at - (worker.last_heartbeat or 0.0) > overdue_seconds(worker.freq)


def _replaced(worker: Worker, other: WorkerProcess | None, pid: int, arrived: float) -> Worker:
    """Another process under the name: what was asked of the one before is void."""
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
    again = other is not None and other.offline_at is None
    fresh = msgspec.structs.replace(
        worker,
        pid=pid,
        since=other.first_seen if other is not None and again else arrived,
        skew=other.skew if other is not None and again else None,
        last_heartbeat=other.last_heartbeat if other is not None and again else None,
        jump=0.0,
        inspected_at=None,
        queues=None,  # it may have been started with others
        rusage=None,
        events_enabled=None,
        others=tuple(each for each in worker.others if each.pid != pid),
    )
    return _with_other(fresh, before)


def _heard(other: WorkerProcess | None, event: Event, arrived: float) -> WorkerProcess:
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
    """The newest few; what was last heard of long ago is forgotten."""
    newest = max(process.last_heartbeat, worker.last_heartbeat or 0.0)
    rest = [each for each in worker.others if each.pid != process.pid]
    kept = [each for each in (*rest, process) if newest - each.last_heartbeat < KEPT_SECONDS]
    kept.sort(key=lambda each: each.last_heartbeat)
    return msgspec.structs.replace(worker, others=tuple(kept[-MOST_OTHERS:]))


def _skew_of(other: WorkerProcess | None, event: Event, arrived: float) -> float:
    seen = arrived - event.timestamp
    return seen if other is None else min(seen, other.skew + SKEW_DRIFT_SECONDS)


def _is_older(worker: Worker, event: Event, at: float, arrived: float) -> bool:
    """It came late: both clocks say so. By one alone, it is that clock that was set back."""
    if worker.last_heartbeat is None or at >= worker.last_heartbeat:
        return False
    if arrived < worker.last_heartbeat - SET_BACK_SECONDS:
        return False  # on one machine both clocks go back together
    return event.timestamp < worker.last_heartbeat - (worker.skew or 0.0)


def after_setting(worker: Worker, seconds: float) -> Worker:
    """The same, told by our own clock after it was set by so many seconds."""
    moments = _moved(worker, ("skew", "last_heartbeat", "offline_at", "inspected_at", "since"), seconds)
    others = tuple(
        msgspec.structs.replace(each, **_moved(each, ("skew", "first_seen", "last_heartbeat", "offline_at"), seconds))
        for each in worker.others
    )
    return msgspec.structs.replace(worker, **moments, others=others)


def _moved(holder: Worker | WorkerProcess, names: Sequence[str], seconds: float) -> dict[str, float | None]:
    moments = {name: getattr(holder, name) for name in names}
    return {name: None if at is None else at + seconds for name, at in moments.items()}


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
