"""Unfinished tasks: by process, by queue, by state, when their messages were sent, and how long such tasks usually
run.

The receiver reads them to find lost tasks and to date what waits in a queue; stuck workers are judged by them. The
state index leads with the state and is partial (without SUCCESS), so none of these reads passes tasks that have
ended.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, Select, and_, func, literal_column, select, tuple_

from celery_monitor.core.workers import ON_WORKER_STATES
from celery_monitor.core.workflow import ActiveTask, Usual
from celery_monitor.records.task import UNFINISHED_STATES, TaskState
from celery_monitor.records.worker import Worker
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.retention.partitions import newest_id
from celery_monitor.store.rollups.series import NameSums, percentiles, sums_of_names
from celery_monitor.store.schema import STATE_CODES, STATES, TERM_KINDS
from celery_monitor.store.tasks.keys import from_key, to_key
from celery_monitor.store.terms import cluster_ids, cluster_names, texts
from celery_monitor.store.workers import unpack_worker

WAITING_STATES = (TaskState.PENDING, TaskState.RETRY)  # in a queue: no worker has them
NEWEST = 1000
MINUTE = 60
MOST_READ = 2000  # waiting tasks of each state that are read to date a queue
_SUCCESS = STATE_CODES[TaskState.SUCCESS]
_task = schema.task.c
_count = schema.task_count.c
_COPIED = ("pid", "retries", "sent", "received", "started", "ended", "discovered_at", "exception", "expires")
_NAMED = {"worker": "worker_id", "queue": "queue_id", "name": "name_id", "client": "client_id"}
_COLUMNS = [_task[each] for each in ("key", "state", "sort_time", "id", *_COPIED, *_NAMED.values())]


class ProcessKey(NamedTuple):
    """One process under a worker's name; ``pid`` is None where the task's run has none."""

    hostname: str
    pid: int | None


class UnfinishedTask(NamedTuple):
    """A task as it is stored. Times are by its worker's clock; ``sent`` by that of ``client``."""

    id: str
    state: TaskState
    position: tuple[float, int] = (0.0, 0)  # in the order of ``unfinished_tasks``
    name: str | None = None
    worker: str | None = None
    pid: int | None = None
    queue: str | None = None
    client: str | None = None
    retries: int | None = None
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    ended: float | None = None
    discovered_at: float | None = None  # our clock
    expires: float | None = None
    exception: str | None = None  # of a lost task: the evidence


class SendTime(NamedTuple):
    """When a message was sent, by the clock of ``client``; that of a retry by the clock of ``worker``."""

    at: float
    client: str | None = None
    worker: str | None = None


class WaitingTasks(NamedTuple):
    """Tasks of one queue that no worker has. ``sent``: when the first of them were sent, as many as were read."""

    number: int
    sent: tuple[SendTime, ...]


# Tasks


def unfinished_tasks(
    store: Store, cluster: str, state: TaskState, newest: int, after: tuple[float, int], limit: int
) -> list[UnfinishedTask]:
    """Tasks in this state with a number up to ``newest``, after a position in their order, the oldest first."""
    with store.read() as connection:
        statement = _oldest_first(connection, cluster, [state], limit)
        return _tasks(connection, statement.where(tuple_(_task.sort_time, _task.id) > after, _task.id <= newest))


def tasks_of_process(
    store: Store,
    cluster: str,
    process: ProcessKey,
    states: Iterable[TaskState] = ON_WORKER_STATES,
    limit: int = 1000,
    *,
    started_before: float | None = None,
) -> list[UnfinishedTask]:
    """Tasks in these states that a worker process has, the oldest first."""
    term = schema.term.c
    with store.read() as connection:
        worker = select(term.id).where(term.kind == TERM_KINDS["worker"], term.text == process.hostname)
        worker_id = connection.execute(worker).scalar()
        if worker_id is None:
            return []
        statement = _oldest_first(connection, cluster, states, limit)
        statement = statement.where(_task.worker_id == worker_id, _task.pid.is_not_distinct_from(process.pid))
        if started_before is not None:
            statement = statement.where(_task.started < started_before)
        return _tasks(connection, statement)


def unfinished_of(store: Store, cluster: str, ids: Iterable[str]) -> list[UnfinishedTask]:
    """Those of these tasks that have not ended."""
    with store.read() as connection:
        return [task for task in _by_id(connection, cluster, ids) if task.state in UNFINISHED_STATES]


def recorded_ids(store: Store, cluster: str, ids: Iterable[str]) -> set[str]:
    """Those of these tasks that the record has."""
    with store.read() as connection:
        return {task.id for task in _by_id(connection, cluster, ids)}


def last_number(store: Store, cluster: str) -> int:
    """The number of the newest row: a task stored later has a larger one, whatever its sender's clock says."""
    with store.read() as connection:
        return newest_id(store, connection, _number(connection, cluster)) or 0


def tasks_by_process(store: Store, cluster: str) -> dict[ProcessKey, int]:
    """How many tasks each worker process has, received or started."""
    columns = (_task.worker_id, _task.pid)
    with store.read() as connection:
        where = (_in_states(ON_WORKER_STATES), _of(_number(connection, cluster)))
        counted = select(*columns, func.count().label("tasks")).where(*where).group_by(*columns)
        rows = connection.execute(counted).all()
        names = texts(connection, {row.worker_id for row in rows})
    return {ProcessKey(names[row.worker_id], row.pid): row.tasks for row in rows if row.worker_id in names}


def ids_without_queue(store: Store, cluster: str, hostnames: Collection[str]) -> list[str]:
    """The ids of those of the newest tasks whose queue is unknown and whose run was by the process that is up now."""
    worker, term = schema.worker.c, schema.term.c
    with store.read() as connection:
        number = _number(connection, cluster)
        records = select(worker.record).where(worker.cluster_id == number, worker.hostname.in_(list(hostnames)))
        workers = [unpack_worker(record) for record in connection.execute(records).scalars()]
        pids = {each.hostname: each.pid for each in workers}
        newest = _newest(_task.key, _task.worker_id, _task.pid, _task.queue_id, _task.cluster_id)
        statement = (
            select(newest.key, newest.pid, term.text)
            .join_from(newest.key.table, schema.term, term.id == newest.worker_id)
            .where(newest.cluster_id == number, newest.queue_id == schema.UNKNOWN, term.text.in_(pids))
        )
        rows = connection.execute(statement).all()
    return [from_key(row.key) for row in rows if row.pid == pids[row.text]]


# Queues, workers and senders


def queue_names(store: Store, cluster: str) -> set[str]:
    """The queues that recorded tasks of a cluster have gone through."""
    return _counted_names(store, cluster, _count.queue_id)


def workers_with_tasks(store: Store, cluster: str) -> set[str]:
    """The workers that any recorded task names: their task events arrive, or did once."""
    return _counted_names(store, cluster, _count.worker_id)


def waiting_by_queue(store: Store, cluster: str) -> dict[str, int]:
    """How many tasks wait in each queue, by the record."""
    with store.read() as connection:
        counts = _waiting_counts(connection, cluster)
        names = texts(connection, counts)
    return {names[each]: count for each, count in counts.items() if each in names}


def has_sent_events(store: Store, cluster: str) -> bool:
    """Whether senders send task-sent events: one of the newest tasks has one."""
    with store.read() as connection:
        newest = _newest(_task.sent, _task.cluster_id)
        statement = select(func.count(newest.sent)).where(newest.cluster_id == _number(connection, cluster))
        return bool(connection.execute(statement).scalar())


# When messages were sent


def sent_messages(store: Store, cluster: str, ids: Iterable[str]) -> dict[str, SendTime]:
    """When the messages of these tasks were sent that are in a queue now; without those where that is unknown."""
    with store.read() as connection:
        tasks = _by_id(connection, cluster, ids)
    return {task.id: sent for task in tasks if (sent := _sent(task)) is not None}


def waiting_tasks(store: Store, cluster: str) -> dict[str, WaitingTasks]:
    """By queue, the tasks that wait there as far as the record has them."""
    with store.read() as connection:
        counts = _waiting_counts(connection, cluster)
        statements = [_oldest_first(connection, cluster, [state], MOST_READ) for state in WAITING_STATES]
        pending, retried = (_tasks(connection, each) if counts else [] for each in statements)
        names = texts(connection, counts)
    first: dict[str | None, list[SendTime]] = {}
    unknown = set()
    for task in [*retried, *pending]:
        sent = _sent(task)
        if sent is None:
            unknown.add(task.queue)
        else:
            first.setdefault(task.queue, []).append(sent)
    # Retries are read in the order of their last receipt, so all are needed.
    sure = first.keys() - unknown if len(retried) < MOST_READ else set()
    found = {each: tuple(sorted(first[each], key=lambda sent: sent.at)) for each in sure}
    return {
        names[each]: WaitingTasks(count, found.get(names[each], ())) for each, count in counts.items() if each in names
    }


def queues_without_sent_events(store: Store, cluster: str, since: float) -> set[str | None]:
    """The queues from which workers received tasks since then that have no task-sent event.

    ``None`` is among them where the queue is unknown too: then it may be any.
    """
    rollup = schema.rollup.c
    with store.read() as connection:
        mine = (rollup.cluster_id == _number(connection, cluster), rollup.since_receipt > 0)
        wanted = (rollup.resolution == MINUTE, rollup.at >= int(since))
        found = connection.execute(select(rollup.queue_id).where(*wanted, *mine).distinct()).scalars().all()
        names = texts(connection, found)
    return {names.get(each) for each in found}


def _sent(task: UnfinishedTask) -> SendTime | None:
    if task.state is TaskState.RETRY:
        return None if task.ended is None else SendTime(task.ended, worker=task.worker)
    if task.sent is None or task.retries:  # of a retry that a worker has had, the time is not recorded
        return None
    return SendTime(task.sent, client=task.client)


# Statements


def _oldest_first(connection: Connection, cluster: str, states: Iterable[TaskState], limit: int) -> Select[Any]:
    mine = (_in_states(states), _of(_number(connection, cluster)))
    return select(*_COLUMNS).where(*mine).order_by(_task.sort_time, _task.id).limit(limit)


def _by_id(connection: Connection, cluster: str, ids: Iterable[str]) -> list[UnfinishedTask]:
    """These tasks, whether they have ended or not."""
    mine = (_task.cluster_id == _number(connection, cluster), _task.key.in_([to_key(each) for each in ids]))
    return _tasks(connection, select(*_COLUMNS).where(*mine))


def _tasks(connection: Connection, statement: Select[Any]) -> list[UnfinishedTask]:
    rows = connection.execute(statement).all()
    names = texts(connection, {getattr(row, column) for row in rows for column in _NAMED.values()})
    found = []
    for row in rows:
        fields: dict[str, Any] = {field: getattr(row, field) for field in _COPIED}
        fields |= {field: names.get(getattr(row, column)) for field, column in _NAMED.items()}
        found.append(UnfinishedTask(from_key(row.key), STATES[row.state], (row.sort_time, row.id), **fields))
    return found


def _newest(*columns: ColumnElement[Any]) -> Any:
    """These columns of the newest tasks, of whatever cluster."""
    return select(*columns).order_by(_task.sort_time.desc(), _task.id.desc()).limit(NEWEST).subquery().c


def _counted_names(store: Store, cluster: str, column: ColumnElement[int]) -> set[str]:
    with store.read() as connection:
        mine = (_count.cluster_id == _number(connection, cluster), _count["count"] > 0)
        return set(texts(connection, connection.execute(select(column).where(*mine).distinct()).scalars()).values())


def _waiting_counts(connection: Connection, cluster: str) -> dict[int, int]:
    """Waiting tasks by the number of their queue."""
    total, codes = func.sum(_count["count"]), [STATE_CODES[state] for state in WAITING_STATES]
    mine = (_count.cluster_id == _number(connection, cluster), _count.state.in_(codes))
    counted = select(_count.queue_id, total).where(*mine).group_by(_count.queue_id).having(total > 0)
    return {queue: int(count) for queue, count in connection.execute(counted).all()}


def _in_states(states: Iterable[TaskState]) -> ColumnElement[bool]:
    """SQLite proves that a partial index serves by the very words of its condition."""
    codes: list[ColumnElement[int]] = [literal_column(str(STATE_CODES[each])) for each in states]
    return and_(_task.state.in_(codes), _task.state != literal_column(str(_SUCCESS)))


def _of(cluster: int) -> ColumnElement[bool]:
    """Of this cluster, by no index: SQLite would rather walk all of its keys than those that have not ended."""
    return _task.cluster_id + literal_column("0") == cluster


def _number(connection: Connection, cluster: str) -> int:
    """The number of a cluster; -1, which none has, where nothing is recorded of it yet."""
    found: int | None = connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.name == cluster)).scalar()
    return -1 if found is None else found


MOST_STARTED = 2000  # the newest: of a worker with more of them not all is known, so it is not judged
MOST_RECEIVED = 400
WITHIN_SECONDS = 86400.0
USUAL_SECONDS = 60.0  # for which what is usual is taken to stay
UNKNOWN_SECONDS = 5.0  # and that nothing is known of a name
MOST_USUAL = 5000  # names that are kept in memory
_STARTED, _RECEIVED, _SUCCEEDED = (
    STATE_CODES[state] for state in (TaskState.STARTED, TaskState.RECEIVED, TaskState.SUCCESS)
)
_cube = schema.task_count.c
_usual: WeakKeyDictionary[Store, dict[tuple[str | None, str], tuple[float, Usual | None]]] = WeakKeyDictionary()
_lock = Lock()


class ActiveTasks(NamedTuple):
    """``partly_…``: (cluster, hostname) of workers that have more tasks of that state than were read."""

    tasks: list[ActiveTask]
    partly_started: frozenset[tuple[str, str]] = frozenset()
    partly_received: frozenset[tuple[str, str]] = frozenset()


def read_active_tasks(store: Store, workers: Sequence[Worker], now: float, cluster: str | None = None) -> ActiveTasks:
    """The tasks of the last day that workers have started, or received and not started: the newest.

    Times are brought to our clock. What waits for its ETA is not among them, nor what an earlier process held.
    """
    known = {(worker.cluster, worker.hostname): worker for worker in workers}
    with store.read() as connection:
        numbers = cluster_ids(connection, cluster)
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
            found.append(ActiveTask(worker.cluster, worker.hostname, name, since, is_started, root, task_id))
    told = [
        frozenset((clusters[of], names[number]) for of, number in each.partly if number in names)
        for each in (started, received)
    ]
    return ActiveTasks(found, *told)


class _Read(NamedTuple):
    """Rows of one state, and (cluster, worker) of which there are more than these."""

    rows: Sequence[Any]
    partly: set[tuple[int, int]]


def _read(connection: Connection, state: int, most: int, now: float, clusters: Sequence[int]) -> _Read:
    columns = (_task.cluster_id, _task.name_id, _task.worker_id, _task.pid, _task.state, _task.root, _task.key)
    newest = select(*columns, _task.started, _task.received, _task.eta).where(
        _task.state == literal_column(str(state)),
        _task.state != literal_column(str(_SUCCEEDED)),
        _task.sort_time > now - WITHIN_SECONDS,
        (_task.cluster_id + literal_column("0")).in_(clusters),
    )
    rows = connection.execute(newest.order_by(_task.sort_time.desc(), _task.id.desc()).limit(most)).all()
    if len(rows) < most:
        return _Read(rows, set())
    read = Counter((row.cluster_id, row.worker_id) for row in rows)
    where = (_cube.state == state, _cube.cluster_id.in_(clusters), _cube.worker_id != 0)
    counted = select(_cube.cluster_id, _cube.worker_id, func.sum(_cube["count"])).where(*where)
    there = connection.execute(counted.group_by(_cube.cluster_id, _cube.worker_id)).all()
    return _Read(rows, {(of, worker) for of, worker, count in there if count > read[of, worker]})


def read_usual_runs(store: Store, names: set[str], now: float, cluster: str | None = None) -> dict[str, Usual]:
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
