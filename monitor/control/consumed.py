"""Which queues the worker of a task consumes: a task whose events name no queue came out of one of these."""

import logging
import time
from dataclasses import dataclass
from threading import Lock

from monitor.control.inspect import queue_names
from monitor.control.target import Target
from monitor.errors import MonitorError
from monitor.records import Task
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.store import queries

log = logging.getLogger(__name__)

ASK_SECONDS = 1.0
REMEMBERED_SECONDS = 2.0  # for which the other tasks of a bulk retry do not ask again
MOST_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Consumed:
    """The queues of one worker, empty where it does not say. ``same_process``: by the process that ran the task."""

    worker: str
    queues: tuple[str, ...] = ()
    same_process: bool = True

    @property
    def sole(self) -> str | None:
        """The only queue that the task can have come from."""
        return self.queues[0] if self.same_process and len(self.queues) == 1 else None


def consumed(target: Target, task: Task) -> Consumed | None:
    """What the worker of the latest run consumes; ``None`` for a task that no worker has had.

    From the record, else the worker is asked now, within ASK_SECONDS.
    """
    run = task.run
    if run is None or run.worker is None:
        return None
    key = (target.settings.database, target.broker.url, run.worker, run.pid)
    now = time.monotonic()
    with _remembering:
        at, found = _remembered.get(key, (float("-inf"), None))
    if found is not None and now - at < REMEMBERED_SECONDS:
        return found
    found = _find(target, run.worker, run.pid)
    with _remembering:
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        _remembered[key] = (time.monotonic(), found)
    return found


def _find(target: Target, name: str, pid: int | None) -> Consumed:
    worker = next((each for each in queries.workers(target.store, target.cluster) if each.hostname == name), None)
    same = worker is not None and pid in {None, worker.pid}
    return Consumed(name, _queues(target, name, worker), same)


def _queues(target: Target, name: str, worker: Worker | None) -> tuple[str, ...]:
    if worker is not None and worker.queues is not None:
        return worker.queues
    if worker is None or worker.status is WorkerStatus.OFFLINE:
        return ()
    try:
        reply = target.remote.ask("active_queues", destination=[name], timeout=ASK_SECONDS).get(name)
    except MonitorError as error:
        log.warning("cannot ask %s for its queues: %s", name, error.message)
        return ()
    return tuple(sorted(queue_names(reply.ok) or ())) if reply is not None else ()


_Key = tuple[str, str, str, int | None]
_remembered: dict[_Key, tuple[float, Consumed]] = {}
_remembering = Lock()
