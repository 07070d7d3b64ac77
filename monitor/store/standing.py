"""What the receiver must look up to judge workers: who they are, what they hold, which queues there are."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import select

from monitor.records import TaskState
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.schema import STATE_CODES
from monitor.store.schema import TERM_KINDS
from monitor.store.terms import texts

# What a worker has taken and not ended. PENDING and RETRY wait in a queue, with nobody.
HELD_STATES = (TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.STARTED)
_SUCCESS = STATE_CODES[TaskState.SUCCESS]


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
    codes = [STATE_CODES[state] for state in states]
    with store.read() as connection:
        statement = (
            select(table.c.worker_id, table.c.pid, func.count().label("tasks"))
            .where(table.c.cluster_id == _cluster(connection, cluster))
            .where(table.c.state.in_(codes), table.c.state != _SUCCESS)
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
    codes = [STATE_CODES[state] for state in states]
    with store.read() as connection:
        worker_id = connection.execute(
            select(term.c.id).where(term.c.kind == TERM_KINDS["worker"], term.c.text == holder.hostname)
        ).scalar()
        if worker_id is None:
            return []
        statement = (
            select(table.c.key)
            .where(table.c.cluster_id == _cluster(connection, cluster))
            .where(table.c.state.in_(codes), table.c.state != _SUCCESS)
            .where(table.c.worker_id == worker_id, table.c.pid.is_not_distinct_from(holder.pid))
            .order_by(table.c.seen, table.c.id)
            .limit(limit)
        )
        if started_before is not None:
            statement = statement.where(table.c.started < started_before)
        return [from_key(key) for key in connection.execute(statement).scalars()]


def _cluster(connection: Connection, name: str) -> int:
    """The number of a cluster; -1, which none has, where nothing is known of it yet."""
    found: int | None = connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.name == name)).scalar()
    return -1 if found is None else found
