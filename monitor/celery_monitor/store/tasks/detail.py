"""One task: all its runs, what it repeats and is repeated as, and the tree it is in."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, literal_column, select

from celery_monitor.errors import NotFound
from celery_monitor.records.task import Lineage, Link, Task, TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.keys import from_key, in_tree, span_of, to_key
from celery_monitor.store.tasks.rows import STATES, all_runs, load_tasks, numbers_of, other_runs, read_tasks, storable

_table = schema.task
_zero: ColumnElement[int] = literal_column("0")


def read_task(store: Store, task_id: str, cluster: str | None = None) -> Task:
    """Everything known of one task. Where several clusters have the id, the newest. Raises NotFound."""
    with store.read() as connection:
        clusters = numbers_of(connection, cluster) if storable(task_id) else []
        rows = [each for number in clusters for each in read_tasks(connection, _by_key(number, task_id))]
        if not rows:
            where = f" on cluster {cluster}" if cluster is not None else ""
            raise NotFound(f"no task {task_id!r} is in the record{where}; it may be too old to be kept", id=task_id)
        found = max(rows, key=lambda each: each.received or each.sent or 0.0)
        if found.pk is not None:
            found.runs = all_runs(other_runs(connection, found.pk), found.runs)
        return found


def _by_key(cluster: int, task_id: str) -> Select[Any]:
    return select(_table).where(_table.c.cluster_id == cluster, _table.c.key == to_key(task_id))


def read_lineage(store: Store, task: Task) -> Lineage:
    """The task that this one repeats, and those that repeat it, the oldest first."""
    table = schema.retry
    with store.read() as connection:
        clusters = numbers_of(connection, task.cluster)
        key = to_key(task.id)
        before = select(table.c.key).where(table.c.cluster_id.in_(clusters), table.c.new_key == key)
        before = before.where(table.c.key != key)  # a task sent again under its own id is no other task
        old = connection.execute(before.order_by(table.c.at.desc()).limit(1)).scalar()
        after = select(table).where(table.c.cluster_id.in_(clusters), table.c.key == key)
        after = after.where(table.c.new_key != key).order_by(table.c.at)
        rows = connection.execute(after).all()
        states = _states(connection, clusters, [row.new_key for row in rows])
        links = tuple(
            Link(
                id=from_key(row.new_key),
                state=states.get(bytes(row.new_key)),
                at=row.at,
                fidelity=row.fidelity,
            )
            for row in rows
        )
    return Lineage(retry_of=from_key(old) if old is not None else None, retried_as=links)


def _states(connection: Connection, clusters: list[int], keys: list[bytes]) -> dict[bytes, TaskState]:
    statement = select(_table.c.key, _table.c.state).where(_table.c.cluster_id.in_(clusters), _table.c.key.in_(keys))
    return {bytes(row.key): STATES[row.state] for row in connection.execute(statement)}


def read_tree(store: Store, root_id: str, cluster: str | None = None, limit: int = 10_000) -> list[Task]:
    """The root and every task under it that is known, at most ``limit``, the oldest first."""
    if not storable(root_id):
        return []
    key = to_key(root_id)
    with store.read() as connection:
        clusters = numbers_of(connection, cluster)
        own = select(_table.c.id).where(_table.c.cluster_id.in_(clusters), _table.c.key == key)
        inside = and_(in_tree(span_of(key)), (_table.c.cluster_id + _zero).in_(clusters))
        members = select(_table.c.id).where(inside).order_by(_table.c.sort_time, _table.c.id).limit(limit)
        rows = list(connection.execute(own).scalars())
        rows += [each for each in connection.execute(members).scalars() if each not in rows]
        return load_tasks(connection, rows[:limit])
