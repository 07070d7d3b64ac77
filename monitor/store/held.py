"""What workers hold now, and how long such tasks usually run: from which it is judged whether anything is stuck."""

import time
from collections import Counter
from collections.abc import Sequence
from threading import Lock
from typing import Any
from typing import NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import literal_column
from sqlalchemy import select

from monitor.records import TaskState
from monitor.records import Worker
from monitor.stalls import HeldTask
from monitor.stalls import Usual
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.load import cluster_names
from monitor.store.load import numbers_of
from monitor.store.schema import STATE_CODES
from monitor.store.series import percentiles
from monitor.store.series import sums_of_names
from monitor.store.sketches import NameSums
from monitor.store.terms import texts

MOST_STARTED = 2000  # the newest: of a worker with more of them not all is known, so it is not judged
MOST_RECEIVED = 400
WITHIN_SECONDS = 86400.0
USUAL_SECONDS = 60.0  # for which what is usual is taken to stay
UNKNOWN_SECONDS = 5.0  # and that nothing is known of a name
MOST_USUAL = 5000  # names that are kept in memory
_STARTED, _RECEIVED, _SUCCESS = (
    STATE_CODES[state] for state in (TaskState.STARTED, TaskState.RECEIVED, TaskState.SUCCESS)
)
_cube = schema.task_count.c
_task = schema.task.c
_usual: WeakKeyDictionary[Store, dict[tuple[str | None, str], tuple[float, Usual | None]]] = WeakKeyDictionary()
_lock = Lock()


class Held(NamedTuple):
    """``partly_…``: (cluster, hostname) of workers that have more tasks of that state than were read."""

    tasks: list[HeldTask]
    partly_started: frozenset[tuple[str, str]] = frozenset()
    partly_received: frozenset[tuple[str, str]] = frozenset()


def held_tasks(store: Store, workers: Sequence[Worker], now: float, cluster: str | None = None) -> Held:
    """The tasks of the last day that workers have started, or received and not started: the newest.

    Times are brought to our clock. What waits for its ETA is not among them, nor what an earlier process held.
    """
    known = {(worker.cluster, worker.hostname): worker for worker in workers}
    with store.read() as connection:
        numbers = numbers_of(connection, cluster)
        clusters = cluster_names(connection)
        started = _read(connection, _STARTED, MOST_STARTED, now, numbers)
        received = _read(connection, _RECEIVED, MOST_RECEIVED, now, numbers)
        rows = [*started.rows, *received.rows]
        whose = {each.worker_id for each in rows}
        partly = started.partly | received.partly
        names = texts(connection, {*whose, *(row.name_id for row in rows), *(number for _, number in partly)})
    found = []
    for row in rows:
        worker = known.get((clusters[row.cluster_id], names.get(row.worker_id, "")))
        is_started = row.state == _STARTED
        at = row.started if is_started else max(row.received or 0.0, row.eta or 0.0)
        if worker is not None and at and (row.pid is None or worker.pid is None or row.pid == worker.pid):
            since = at + (worker.skew or 0.0)
            root = from_key(row.root) if row.root else None
            name, task_id = names.get(row.name_id), from_key(row.key)
            found.append(HeldTask(worker.cluster, worker.hostname, name, since, is_started, root, task_id))
    told = [
        frozenset((clusters[of], names[number]) for of, number in each.partly if number in names)
        for each in (started, received)
    ]
    return Held(found, *told)


class _Read(NamedTuple):
    """Rows of one state, and (cluster, worker) of which there are more than these."""

    rows: Sequence[Any]
    partly: set[tuple[int, int]]


def _read(connection: Connection, state: int, most: int, now: float, clusters: Sequence[int]) -> _Read:
    columns = (_task.cluster_id, _task.name_id, _task.worker_id, _task.pid, _task.state, _task.root, _task.key)
    newest = select(*columns, _task.started, _task.received, _task.eta).where(
        _task.state == literal_column(str(state)),
        _task.state != literal_column(str(_SUCCESS)),
        _task.seen > now - WITHIN_SECONDS,
        (_task.cluster_id + literal_column("0")).in_(clusters),
    )
    rows = connection.execute(newest.order_by(_task.seen.desc(), _task.id.desc()).limit(most)).all()
    if len(rows) < most:
        return _Read(rows, set())
    read = Counter((row.cluster_id, row.worker_id) for row in rows)
    where = (_cube.state == state, _cube.cluster_id.in_(clusters), _cube.worker_id != 0)
    counted = select(_cube.cluster_id, _cube.worker_id, func.sum(_cube["count"])).where(*where)
    there = connection.execute(counted.group_by(_cube.cluster_id, _cube.worker_id)).all()
    return _Read(rows, {(of, worker) for of, worker, count in there if count > read[of, worker]})


def usual_runs(store: Store, names: set[str], now: float, cluster: str | None = None) -> dict[str, Usual]:
    """How long the tasks of these names ran in the last day, where any did; some seconds old."""
    at = time.monotonic()
    with _lock:
        known = _usual.setdefault(store, {})
        if len(known) > MOST_USUAL:
            known.clear()
        due = [name for name in names if _is_due(known.get((cluster, name)), at)]
        if due:
            sums = sums_of_names(store, due, since=now - WITHIN_SECONDS, until=now, cluster=cluster)
            known |= {(cluster, name): (at, _usual_of(sums.get(name))) for name in due}
        found = {name: known[cluster, name][1] for name in names}
    return {name: usual for name, usual in found.items() if usual is not None}


def _is_due(known: tuple[float, Usual | None] | None, at: float) -> bool:
    """Not read yet, or too long ago."""
    return known is None or at - known[0] > (UNKNOWN_SECONDS if known[1] is None else USUAL_SECONDS)


def _usual_of(sums: NameSums | None) -> Usual | None:
    found = percentiles(sums.durations.run) if sums is not None else None
    return Usual(sums.runs, found.p99) if sums is not None and found is not None else None
