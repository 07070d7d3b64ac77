"""Unfinished tasks: by process, queue and state, when their messages were sent, and how long such tasks usually run.

The receiver needs them to find lost tasks and the age of waiting messages, and stuck workers are judged by them. The
index of states is partial (without SUCCESS), so none of these statements reads succeeded tasks.
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

WAITING_STATES = (TaskState.PENDING, TaskState.RETRY)  # in a queue, on no worker
NEWEST = 1000
MINUTE = 60
MOST_READ = 2000  # waiting tasks of each state that are read for the age of messages
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
    """A stored task. Times are by its worker's clock, ``sent`` by that of ``client``."""

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
    exception: str | None = None  # of a lost task, the evidence


class SendTime(NamedTuple):
    """When a message was sent, by the clock of ``client``; that of a retry by the clock of ``worker``."""

    at: float
    client: str | None = None
    worker: str | None = None


class WaitingTasks(NamedTuple):
    """Tasks of one queue that no worker has. ``sent``: when the oldest were sent, as many as were read."""

    number: int
    sent: tuple[SendTime, ...]


# Tasks


def unfinished_tasks(
    store: Store, cluster: str, state: TaskState, newest: int, after: tuple[float, int], limit: int
) -> list[UnfinishedTask]:
    """Tasks in this state with an id up to ``newest``, after a position of the list, the oldest first."""
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
    """Tasks in these states on one worker process, the oldest first."""
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
    """The unfinished ones among these tasks."""
    with store.read() as connection:
        return [task for task in _by_id(connection, cluster, ids) if task.state in UNFINISHED_STATES]


def recorded_ids(store: Store, cluster: str, ids: Iterable[str]) -> set[str]:
    """The ids among these that are in the record."""
    with store.read() as connection:
        return {task.id for task in _by_id(connection, cluster, ids)}


def last_number(store: Store, cluster: str) -> int:
    """The id of the newest row: rows stored later have larger ones, whatever the clocks of senders."""
    with store.read() as connection:
        return newest_id(store, connection, _number(connection, cluster)) or 0


def tasks_by_process(store: Store, cluster: str) -> dict[ProcessKey, int]:
    """The number of received or started tasks of each worker process."""
    columns = (_task.worker_id, _task.pid)
    with store.read() as connection:
        where = (_in_states(ON_WORKER_STATES), _of(_number(connection, cluster)))
        counted = select(*columns, func.count().label("tasks")).where(*where).group_by(*columns)
        rows = connection.execute(counted).all()
        names = texts(connection, {row.worker_id for row in rows})
    return {ProcessKey(names[row.worker_id], row.pid): row.tasks for row in rows if row.worker_id in names}


def ids_without_queue(store: Store, cluster: str, hostnames: Collection[str]) -> list[str]:
    """Ids of the newest tasks without a queue that ran on the process that is up now."""
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


class Prefetched(NamedTuple):
    """Tasks that were received and not started, and the longest wait on a worker, in seconds, of those that run.

    By name and worker; the worker is None where it was not asked for. A task with an ETA did not wait for its worker.
    """

    received: dict[tuple[str | None, str | None], int]
    waits: dict[tuple[str | None, str | None], float]


def read_prefetched(store: Store, *, by_worker: bool) -> Prefetched:
    """Of all clusters."""
    total, wait = func.sum(_count["count"]), func.max(_task.started - _task.received)
    places = ("name_id", "worker_id") if by_worker else ("name_id",)
    counted, running = [_count[each] for each in places], [_task[each] for each in places]
    is_running = (_task.state == STATE_CODES[TaskState.STARTED], literal_column("state") != _SUCCESS)
    with store.read() as connection:
        received = select(total, *counted).where(_count.state == STATE_CODES[TaskState.RECEIVED]).group_by(*counted)
        waits = select(wait, *running).where(*is_running, _task.eta.is_(None)).group_by(*running)
        rows = [connection.execute(each).all() for each in (received, waits)]
        names = texts(connection, {each for found in rows for row in found for each in row[1:]})
    numbers, seconds = (
        {(names.get(row[1]), names.get(row[2]) if by_worker else None): row[0] or 0 for row in found} for found in rows
    )
    return Prefetched({key: int(number) for key, number in numbers.items()}, seconds)


def workers_with_tasks(store: Store, cluster: str) -> set[str]:
    """The workers of all recorded tasks: those whose task events arrive, or did once."""
    with store.read() as connection:
        mine = (_count.cluster_id == _number(connection, cluster), _count["count"] > 0)
        numbers = connection.execute(select(_count.worker_id).where(*mine).distinct()).scalars()
        return set(texts(connection, numbers).values())


def waiting_by_queue(store: Store, cluster: str) -> dict[str, int]:
    """The recorded number of waiting tasks in each queue."""
    with store.read() as connection:
        counts = _waiting_counts(connection, cluster)
        names = texts(connection, counts)
    return {names[each]: count for each, count in counts.items() if each in names}


def has_sent_events(store: Store, cluster: str) -> bool:
    """Whether senders send task-sent events: whether one of the newest tasks has one."""
    with store.read() as connection:
        newest = _newest(_task.sent, _task.cluster_id)
        statement = select(func.count(newest.sent)).where(newest.cluster_id == _number(connection, cluster))
        return bool(connection.execute(statement).scalar())


# When messages were sent


def sent_messages(store: Store, cluster: str, ids: Iterable[str]) -> dict[str, SendTime]:
    """When the messages of these tasks were sent that are in a queue now; unknown ones are left out."""
    with store.read() as connection:
        tasks = _by_id(connection, cluster, ids)
    return {task.id: sent for task in tasks if (sent := _sent(task)) is not None}


def waiting_tasks(store: Store, cluster: str) -> dict[str, WaitingTasks]:
    """The recorded waiting tasks by queue."""
    with store.read() as connection:
        counts = _waiting_counts(connection, cluster)
        statements = [_oldest_first(connection, cluster, [state], MOST_READ) for state in WAITING_STATES]
        pending, retried = (_tasks(connection, each) if counts else [] for each in statements)
        names = texts(connection, counts)
    times: dict[str | None, list[SendTime]] = {}
    unknown = set()
    for task in [*retried, *pending]:
        sent = _sent(task)
        if sent is None:
            unknown.add(task.queue)
        else:
            times.setdefault(task.queue, []).append(sent)
    # Retries are ordered by their last receipt, not by when they were sent, so all of them are needed.
    complete = times.keys() - unknown if len(retried) < MOST_READ else set()
    found = {each: tuple(sorted(times[each], key=lambda sent: sent.at)) for each in complete}
    return {
        names[each]: WaitingTasks(count, found.get(names[each], ())) for each, count in counts.items() if each in names
    }


def queues_without_sent_events(store: Store, cluster: str, since: float) -> set[str | None]:
    """The queues from which workers received tasks without a task-sent event since then.

    ``None`` is among them where the queue is unknown: it may be any.
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
    if task.sent is None or task.retries:  # the time of a retry that a worker has received is not recorded
        return None
    return SendTime(task.sent, client=task.client)


# Statements


def _oldest_first(connection: Connection, cluster: str, states: Iterable[TaskState], limit: int) -> Select[Any]:
    mine = (_in_states(states), _of(_number(connection, cluster)))
    return select(*_COLUMNS).where(*mine).order_by(_task.sort_time, _task.id).limit(limit)


def _by_id(connection: Connection, cluster: str, ids: Iterable[str]) -> list[UnfinishedTask]:
    """These tasks, finished or not."""
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
    """These columns of the newest tasks of all clusters."""
    return select(*columns).order_by(_task.sort_time.desc(), _task.id.desc()).limit(NEWEST).subquery().c


def _waiting_counts(connection: Connection, cluster: str) -> dict[int, int]:
    """Waiting tasks by the number of their queue."""
    total, codes = func.sum(_count["count"]), [STATE_CODES[state] for state in WAITING_STATES]
    mine = (_count.cluster_id == _number(connection, cluster), _count.state.in_(codes))
    counted = select(_count.queue_id, total).where(*mine).group_by(_count.queue_id).having(total > 0)
    return {queue: int(count) for queue, count in connection.execute(counted).all()}


def _in_states(states: Iterable[TaskState]) -> ColumnElement[bool]:
    """In the words of the partial index: SQLite uses it only for exactly its condition."""
    codes: list[ColumnElement[int]] = [literal_column(str(STATE_CODES[each])) for each in states]
    return and_(_task.state.in_(codes), _task.state != literal_column(str(_SUCCESS)))


def _of(cluster: int) -> ColumnElement[bool]:
    """In this cluster, without an index: SQLite would prefer the index of keys to that of states."""
    return _task.cluster_id + literal_column("0") == cluster


def _number(connection: Connection, cluster: str) -> int:
    """The number of a cluster; -1 for one that is not recorded."""
    found: int | None = connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.name == cluster)).scalar()
    return -1 if found is None else found


MOST_STARTED = 2000  # the newest; a worker with more started tasks is not judged
MOST_RECEIVED = 400
WITHIN_SECONDS = 86400.0
USUAL_SECONDS = 60.0  # for which usual run times are cached
HABIT_RUNS, HABIT_SECONDS = 500, 600.0  # of so many runs in a day, the usual time hardly changes in so long
UNKNOWN_SECONDS = 5.0  # for which the lack of them is cached
MOST_USUAL = 5000  # cached names
_STARTED, _RECEIVED, _SUCCEEDED = (
    STATE_CODES[state] for state in (TaskState.STARTED, TaskState.RECEIVED, TaskState.SUCCESS)
)
_usual: WeakKeyDictionary[Store, dict[tuple[str | None, str], tuple[float, Usual | None]]] = WeakKeyDictionary()
_lock = Lock()


class ActiveTasks(NamedTuple):
    """``partly_...``: (cluster, hostname) of workers with more tasks in this state than were read."""

    tasks: list[ActiveTask]
    partly_started: frozenset[tuple[str, str]] = frozenset()
    partly_received: frozenset[tuple[str, str]] = frozenset()


def read_active_tasks(store: Store, workers: Sequence[Worker], now: float, cluster: str | None = None) -> ActiveTasks:
    """The newest started, and received and not started, tasks of the last day on the present worker processes.

    Times are by our clock. Tasks that wait for their ETA are not among them.
    """
    by_name = {(worker.cluster, worker.hostname): worker for worker in workers}
    with store.read() as connection:
        numbers = cluster_ids(connection, cluster)
        clusters = cluster_names(connection)
        started = _read(connection, _STARTED, MOST_STARTED, now, numbers)
        received = _read(connection, _RECEIVED, MOST_RECEIVED, now, numbers)
        rows = [*started.rows, *received.rows]
        ids = {each for row in rows for each in (row.worker_id, row.name_id)}
        names = texts(connection, ids.union(number for _, number in started.partly | received.partly))
    found = []
    for of, name_id, worker_id, pid, state, root, key, start, receipt, eta in rows:
        worker = by_name.get((clusters[of], names.get(worker_id, "")))
        is_started = state == _STARTED
        at = start if is_started else max(receipt or 0.0, eta or 0.0)
        if worker is not None and at and (pid is None or worker.pid is None or pid == worker.pid):
            since = at + (worker.skew or 0.0)
            name, root_id = names.get(name_id), from_key(root) if root else None
            found.append(ActiveTask(worker.cluster, worker.hostname, name, since, is_started, root_id, from_key(key)))
    partly = [
        frozenset((clusters[of], names[number]) for of, number in each.partly if number in names)
        for each in (started, received)
    ]
    return ActiveTasks(found, *partly)


class _Read(NamedTuple):
    """Rows of one state, and (cluster, worker) with more rows than these."""

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
    where = (_count.state == state, _count.cluster_id.in_(clusters), _count.worker_id != 0)
    counted = select(_count.cluster_id, _count.worker_id, func.sum(_count["count"])).where(*where)
    counts = connection.execute(counted.group_by(_count.cluster_id, _count.worker_id)).all()
    return _Read(rows, {(of, worker) for of, worker, count in counts if count > read[of, worker]})


def read_usual_runs(store: Store, names: set[str], now: float, cluster: str | None = None) -> dict[str, Usual]:
    """How long tasks of these names ran in the last day, if any did; cached for some seconds."""
    at = time.monotonic()
    with _lock:
        cached = _usual.setdefault(store, {})
        if len(cached) > MOST_USUAL:
            cached.clear()
        due = [name for name in names if _is_due(cached.get((cluster, name)), at)]
        if due:
            sums = sums_of_names(store, due, since=now - WITHIN_SECONDS, until=now, cluster=cluster)
            cached |= {(cluster, name): (at, _usual_of(sums.get(name))) for name in due}
        found = {name: cached[cluster, name][1] for name in names}
    return {name: usual for name, usual in found.items() if usual is not None}


def _is_due(cached: tuple[float, Usual | None] | None, at: float) -> bool:
    if cached is None:
        return True
    read_at, usual = cached
    if usual is None:
        return at - read_at > UNKNOWN_SECONDS
    return at - read_at > (HABIT_SECONDS if usual.runs >= HABIT_RUNS else USUAL_SECONDS)


def _usual_of(sums: NameSums | None) -> Usual | None:
    found = percentiles(sums.durations.run) if sums is not None else None
    return Usual(sums.runs, found.p99) if sums is not None and found is not None else None
