"""When the messages that wait in queues were sent, as far as the record has it."""

from collections.abc import Collection
from typing import Any
from typing import NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Row
from sqlalchemy import and_
from sqlalchemy import func
from sqlalchemy import literal_column
from sqlalchemy import select

from monitor.records import TaskState
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.keys import to_key
from monitor.store.schema import STATE_CODES
from monitor.store.terms import texts

MINUTE = 60
MOST_READ = 2000  # tasks of each state in one look
IN_QUEUE = (TaskState.PENDING, TaskState.RETRY)  # no worker has them
_RETRY, _SUCCESS = STATE_CODES[TaskState.RETRY], STATE_CODES[TaskState.SUCCESS]
_task = schema.task.c
_COLUMNS = (_task.key, _task.state, _task.queue_id, _task.retries, _task.sent, _task.ended)
_NAMES = (_task.client_id, _task.worker_id)


class Sent(NamedTuple):
    """When a message was sent, by the clock of ``client``; that of a retry by the clock of ``worker``."""

    at: float
    client: str | None = None
    worker: str | None = None


class WaitingTasks(NamedTuple):
    """Tasks of one queue that no worker has. ``sent``: when the first of them were sent, as many as were read."""

    number: int
    sent: tuple[Sent, ...]


def sent_messages(store: Store, cluster: str, ids: Collection[str]) -> dict[str, Sent]:
    """When the messages of these tasks were sent that are in a queue now; those that are not known are left out."""
    with store.read() as connection:
        wanted = (_task.cluster_id == _number(connection, cluster), _task.key.in_([to_key(each) for each in ids]))
        rows = connection.execute(select(*_COLUMNS, *_NAMES).where(*wanted)).all()
        names = _texts(connection, rows)
    found = {from_key(row.key): _sent(row, names) for row in rows}
    return {task_id: sent for task_id, sent in found.items() if sent is not None}


def waiting_tasks(store: Store, cluster: str) -> dict[str, WaitingTasks]:
    """By queue, the tasks that wait there as far as the record has them."""
    with store.read() as connection:
        number = _number(connection, cluster)
        counts = _counts(connection, number)
        pending, retried = (_earliest(connection, number, state) for state in IN_QUEUE) if counts else ([], [])
        names = _texts(connection, [*pending, *retried])
        queues = texts(connection, counts)
    first: dict[int, list[Sent]] = {}
    unknown = set()
    for row in [*retried, *pending]:
        sent = _sent(row, names)
        if sent is None:
            unknown.add(row.queue_id)
        else:
            first.setdefault(row.queue_id, []).append(sent)
    # Retries are read in the order of their last receipt, so all are needed.
    sure = first.keys() - unknown if len(retried) < MOST_READ else set()
    found = {each: tuple(sorted(first[each], key=lambda sent: sent.at)) for each in sure}
    return {queues[each]: WaitingTasks(count, found.get(each, ())) for each, count in counts.items() if each in queues}


def untold_queues(store: Store, cluster: str, since: float) -> set[str | None]:
    """The queues from which workers received tasks since then of which nobody told that they were sent.

    ``None`` is among them where the queue is not known either: then it may be any.
    """
    rollup = schema.rollup.c
    with store.read() as connection:
        wanted = (
            rollup.resolution == MINUTE,
            rollup.at >= int(since),
            rollup.cluster_id == _number(connection, cluster),
        )
        statement = select(rollup.queue_id).where(*wanted, rollup.since_receipt > 0).distinct()
        found = connection.execute(statement).scalars().all()
        names = texts(connection, found)
    return {names.get(each) for each in found}


def _sent(row: Row[*tuple[Any, ...]], names: dict[int, str]) -> Sent | None:
    if row.state == _RETRY:
        return None if row.ended is None else Sent(row.ended, worker=names.get(row.worker_id))
    if row.sent is None or row.retries:  # of a retry that a worker has had, it is not known
        return None
    return Sent(row.sent, client=names.get(row.client_id))


def _counts(connection: Connection, number: int) -> dict[int, int]:
    cube = schema.task_count.c
    codes = [STATE_CODES[state] for state in IN_QUEUE]
    statement = (
        select(cube.queue_id, func.sum(cube["count"]))
        .where(cube.cluster_id == number, cube.state.in_(codes), cube["count"] > 0)
        .group_by(cube.queue_id)
    )
    return {queue: int(count) for queue, count in connection.execute(statement).all()}


def _earliest(connection: Connection, number: int, state: TaskState) -> list[Row[*tuple[Any, ...]]]:
    """SQLite proves that a partial index serves by the very words of its condition."""
    code: ColumnElement[int] = literal_column(str(STATE_CODES[state]))
    wanted = and_(_task.state == code, _task.state != literal_column(str(_SUCCESS)))
    statement = select(*_COLUMNS, *_NAMES).where(wanted, _task.cluster_id + literal_column("0") == number)
    return list(connection.execute(statement.order_by(_task.seen, _task.id).limit(MOST_READ)).all())


def _texts(connection: Connection, rows: Collection[Row[*tuple[Any, ...]]]) -> dict[int, str]:
    return texts(connection, {number for row in rows for number in (row.client_id, row.worker_id)})


def _number(connection: Connection, cluster: str) -> int:
    """The number of a cluster; -1, which none has, where nothing is known of it yet."""
    found: int | None = connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.name == cluster)).scalar()
    return -1 if found is None else found
