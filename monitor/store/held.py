"""What workers hold now, and how long such tasks usually run: from which it is judged whether anything is stuck."""

import time
from collections.abc import Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

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
from monitor.store.series import name_totals
from monitor.store.terms import texts

MOST_HELD = 400  # of each state, the newest
WITHIN_SECONDS = 86400.0
USUAL_SECONDS = 60.0  # for which what is usual is taken to stay
UNKNOWN_SECONDS = 5.0  # and where a name was not among it
_STARTED, _RECEIVED, _SUCCESS = (
    STATE_CODES[state] for state in (TaskState.STARTED, TaskState.RECEIVED, TaskState.SUCCESS)
)
_task = schema.task.c
_usual: WeakKeyDictionary[Store, dict[str | None, tuple[float, dict[str, Usual]]]] = WeakKeyDictionary()
_lock = Lock()


def held_tasks(store: Store, workers: Sequence[Worker], now: float, cluster: str | None = None) -> list[HeldTask]:
    """The tasks of the last day that workers have started, or received and not started; the newest 400 of each.

    Times are brought to our clock. What waits for its ETA is not among them, nor what an earlier process held.
    """
    known = {(worker.cluster, worker.hostname): worker for worker in workers}
    columns = (_task.cluster_id, _task.name_id, _task.worker_id, _task.pid, _task.state, _task.root)
    times = (_task.started, _task.received, _task.eta)
    rows: list[Any] = []
    with store.read() as connection:
        numbers = numbers_of(connection, cluster)
        for state in (_STARTED, _RECEIVED):
            newest = select(*columns, *times).where(
                _task.state == literal_column(str(state)),
                _task.state != literal_column(str(_SUCCESS)),
                _task.seen > now - WITHIN_SECONDS,
                (_task.cluster_id + literal_column("0")).in_(numbers),
            )
            newest = newest.order_by(_task.seen.desc(), _task.id.desc()).limit(MOST_HELD)
            rows += connection.execute(newest).all()
        names = texts(connection, {each for row in rows for each in (row.name_id, row.worker_id)})
        clusters = cluster_names(connection)
    found = []
    for row in rows:
        worker = known.get((clusters[row.cluster_id], names.get(row.worker_id, "")))
        started = row.state == _STARTED
        at = row.started if started else max(row.received or 0.0, row.eta or 0.0)
        if worker is not None and at and (row.pid is None or worker.pid is None or row.pid == worker.pid):
            since = at + (worker.skew or 0.0)
            root = from_key(row.root) if row.root else None
            found.append(HeldTask(worker.cluster, worker.hostname, names.get(row.name_id), since, started, root))
    return found


def usual_runs(store: Store, names: set[str], now: float, cluster: str | None = None) -> dict[str, Usual]:
    """How long the tasks of each name ran in the last day; some seconds old."""
    with _lock:
        kept = _usual.setdefault(store, {})
        read_at, known = kept.get(cluster, (float("-inf"), {}))
        age = time.monotonic() - read_at
        if age > USUAL_SECONDS or (age > UNKNOWN_SECONDS and not names <= known.keys()):
            totals = name_totals(store, since=now - WITHIN_SECONDS, until=now, cluster=cluster)
            known = {each.name: Usual(each.runs, each.run.p99) for each in totals if each.name and each.run}
            kept[cluster] = (time.monotonic(), known)
        return known
