"""What the receiver must look up to judge workers: who they are, what they hold, which queues there are."""

from collections.abc import Collection
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Select
from sqlalchemy import and_
from sqlalchemy import func
from sqlalchemy import literal_column
from sqlalchemy import select
from sqlalchemy import tuple_

from monitor.records import UNFINISHED_STATES
from monitor.records import TaskState
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.journal import unpack_worker
from monitor.store.keys import from_key
from monitor.store.keys import to_key
from monitor.store.partitions import newest_id
from monitor.store.rows import STATES
from monitor.store.schema import STATE_CODES
from monitor.store.schema import TERM_KINDS
from monitor.store.terms import texts

# What a worker has taken and not ended. PENDING and RETRY wait in a queue, with nobody.
HELD_STATES = (TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.STARTED)
NEWEST = 1000
_SUCCESS = STATE_CODES[TaskState.SUCCESS]


_UNENDED = tuple(
    schema.task.c[name]
    for name in ("key", "state", "seen", "id", "worker_id", "pid", "queue_id", "retries", "sent", "received", "started")
) + tuple(schema.task.c[name] for name in ("ended", "learnt", "exception", "expires", "name_id"))


class Holder(NamedTuple):
    """One process of a worker, by what the latest run of a task says."""

    hostname: str
    pid: int | None


def queue_names(store: Store, cluster: str) -> set[str]:
    """The queues that tasks of a cluster are known to have gone through."""
    counted = schema.task_count
    with store.read() as connection:
        number = _cluster(connection, cluster)
        statement = select(counted.c.queue_id).where(counted.c.cluster_id == number, counted.c.count > 0).distinct()
        return set(texts(connection, connection.execute(statement).scalars()).values())


def seen_workers(store: Store, cluster: str) -> set[str]:
    """The workers of which any task is known: their task events arrive, or did once."""
    counted = schema.task_count
    with store.read() as connection:
        number = _cluster(connection, cluster)
        statement = select(counted.c.worker_id).where(counted.c.cluster_id == number, counted.c.count > 0).distinct()
        return set(texts(connection, connection.execute(statement).scalars()).values())


def holders(store: Store, cluster: str, states: Sequence[TaskState] = HELD_STATES) -> dict[Holder, int]:
    """How many tasks in these states each worker process holds. No state may be SUCCESS: that has no index."""
    table = schema.task
    with store.read() as connection:
        statement = (
            select(table.c.worker_id, table.c.pid, func.count().label("tasks"))
            .where(_in_states(states), _of(_cluster(connection, cluster)))
            .group_by(table.c.worker_id, table.c.pid)
        )
        rows = connection.execute(statement).all()
        names = texts(connection, {row.worker_id for row in rows})
    return {Holder(names[row.worker_id], row.pid): row.tasks for row in rows if row.worker_id in names}


def held_by(
    store: Store,
    cluster: str,
    holder: Holder,
    states: Sequence[TaskState] = HELD_STATES,
    limit: int = 1000,
    *,
    started_before: float | None = None,
) -> list[str]:
    """The ids of tasks in these states that a worker process holds, the oldest first."""
    table, term = schema.task, schema.term
    with store.read() as connection:
        worker_id = connection.execute(
            select(term.c.id).where(term.c.kind == TERM_KINDS["worker"], term.c.text == holder.hostname)
        ).scalar()
        if worker_id is None:
            return []
        statement = (
            select(table.c.key)
            .where(_in_states(states), _of(_cluster(connection, cluster)))
            .where(table.c.worker_id == worker_id, table.c.pid.is_not_distinct_from(holder.pid))
            .order_by(table.c.seen, table.c.id)
            .limit(limit)
        )
        if started_before is not None:
            statement = statement.where(table.c.started < started_before)
        return [from_key(key) for key in connection.execute(statement).scalars()]


class Unended(NamedTuple):
    """A task that has not ended, as it is stored. Times are by its worker's clock."""

    id: str
    state: TaskState
    worker: str | None
    pid: int | None
    queue: str | None
    retries: int | None
    sent: float | None
    received: float | None
    started: float | None
    ended: float | None
    learnt: float | None  # by our own clock
    exception: str | None  # the evidence, of what is lost
    place: tuple[float, int]  # in the order of ``unended``
    expires: float | None = None
    name: str | None = None


def newest(store: Store, cluster: str) -> int:
    """The number that was given last: what is stored later has a larger one, whatever its sender's clock says."""
    with store.read() as connection:
        return newest_id(store, connection, _cluster(connection, cluster)) or 0


def unended(
    store: Store, cluster: str, state: TaskState, newest: int, after: tuple[float, int], limit: int
) -> list[Unended]:
    """Tasks in this state with a number up to ``newest``, behind a place in their order, the oldest first."""
    table = schema.task.c
    with store.read() as connection:
        statement = (
            select(*_UNENDED)
            .where(_in_states([state]), _of(_cluster(connection, cluster)))
            .where(tuple_(table.seen, table.id) > after, table.id <= newest)
            .order_by(table.seen, table.id)
            .limit(limit)
        )
        return _unended(connection, statement)


def unended_of(store: Store, cluster: str, ids: Sequence[str]) -> list[Unended]:
    """Those of these tasks that have not ended."""
    table = schema.task.c
    unfinished = [STATE_CODES[state] for state in UNFINISHED_STATES]
    with store.read() as connection:
        mine = (table.cluster_id == _cluster(connection, cluster), table.key.in_([to_key(each) for each in ids]))
        return _unended(connection, select(*_UNENDED).where(*mine, table.state.in_(unfinished)))


def waiting_by_queue(store: Store, cluster: str, states: Sequence[TaskState]) -> dict[str, int]:
    """How many tasks in these states each queue has, by the record."""
    counted = schema.task_count.c
    codes = [STATE_CODES[each] for each in states]
    with store.read() as connection:
        statement = (
            select(counted.queue_id, func.sum(counted["count"]).label("tasks"))
            .where(counted.cluster_id == _cluster(connection, cluster), counted.state.in_(codes))
            .group_by(counted.queue_id)
        )
        rows = [row for row in connection.execute(statement) if row.tasks > 0]
        names = texts(connection, {row.queue_id for row in rows})
    return {names[row.queue_id]: row.tasks for row in rows if row.queue_id in names}


def _unended(connection: Connection, statement: Select[Any]) -> list[Unended]:
    rows = connection.execute(statement).all()
    names = texts(connection, {number for row in rows for number in (row.worker_id, row.queue_id, row.name_id)})
    return [
        Unended(
            id=from_key(row.key),
            state=STATES[row.state],
            worker=names.get(row.worker_id),
            pid=row.pid,
            queue=names.get(row.queue_id),
            retries=row.retries,
            sent=row.sent,
            received=row.received,
            started=row.started,
            ended=row.ended,
            learnt=row.learnt,
            exception=row.exception,
            place=(row.seen, row.id),
            expires=row.expires,
            name=names.get(row.name_id),
        )
        for row in rows
    ]


def stored(store: Store, cluster: str, ids: Sequence[str]) -> set[str]:
    """Those of these tasks that the record has."""
    table = schema.task.c
    with store.read() as connection:
        keys = [to_key(each) for each in ids]
        number = _cluster(connection, cluster)
        statement = select(table.key).where(table.cluster_id == number, table.key.in_(keys))
        return {from_key(key) for key in connection.execute(statement).scalars()}


def without_queue(store: Store, cluster: str, hostnames: Collection[str]) -> list[str]:
    """The ids of those of the newest tasks whose queue is unknown and whose run was by the process that is up now."""
    table, worker, term = schema.task.c, schema.worker.c, schema.term.c
    with store.read() as connection:
        number = _cluster(connection, cluster)
        records = select(worker.record).where(worker.cluster_id == number, worker.hostname.in_(list(hostnames)))
        workers = [unpack_worker(record) for record in connection.execute(records).scalars()]
        pids = {each.hostname: each.pid for each in workers}
        newest = (
            select(table.key, table.worker_id, table.pid, table.queue_id, table.cluster_id)
            .order_by(table.seen.desc(), table.id.desc())
            .limit(NEWEST)
            .subquery()
            .c
        )
        statement = (
            select(newest.key, newest.pid, term.text)
            .join_from(newest.key.table, schema.term, term.id == newest.worker_id)
            .where(newest.cluster_id == number, newest.queue_id == schema.UNKNOWN, term.text.in_(pids))
        )
        rows = connection.execute(statement).all()
    return [from_key(row.key) for row in rows if row.pid == pids[row.text]]


def tells_what_is_sent(store: Store, cluster: str) -> bool:
    """Whether senders tell of tasks before a worker has them: one of the newest was told of so."""
    table = schema.task.c
    with store.read() as connection:
        newest = select(table.sent, table.cluster_id).order_by(table.seen.desc(), table.id.desc()).limit(NEWEST)
        sent = newest.subquery().c
        statement = select(func.count(sent.sent)).where(sent.cluster_id == _cluster(connection, cluster))
        return bool(connection.execute(statement).scalar())


def _in_states(states: Sequence[TaskState]) -> ColumnElement[bool]:
    """SQLite proves that a partial index serves by the very words of its condition."""
    state = schema.task.c.state
    codes: list[ColumnElement[int]] = [literal_column(str(STATE_CODES[each])) for each in states]
    return and_(state.in_(codes), state != literal_column(str(_SUCCESS)))


def _of(cluster: int) -> ColumnElement[bool]:
    """Of this cluster, by no index: SQLite would rather walk all of its keys than those that have not ended."""
    return schema.task.c.cluster_id + literal_column("0") == cluster


def _cluster(connection: Connection, name: str) -> int:
    """The number of a cluster; -1, which none has, where nothing is known of it yet."""
    found: int | None = connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.name == name)).scalar()
    return -1 if found is None else found
