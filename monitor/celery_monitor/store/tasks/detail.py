"""One task with all its runs, and the links between a task and its retries."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, literal_column, select

from celery_monitor.errors import NotFound
from celery_monitor.records.task import Lineage, Link, Task, TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import STATES
from celery_monitor.store.tasks.keys import from_key, to_key
from celery_monitor.store.tasks.rows import all_runs, other_runs, read_tasks
from celery_monitor.store.terms import cluster_id, cluster_ids, storable

_table = schema.task
_zero: ColumnElement[int] = literal_column("0")


def read_task(store: Store, task_id: str, cluster: str | None = None) -> Task:
    """One task with all its runs; where several clusters have the id, the newest. Raises NotFound."""
    with store.read() as connection:
        clusters = cluster_ids(connection, cluster) if storable(task_id) else []
        rows = [each for number in clusters for each in read_tasks(connection, _by_key(number, task_id))]
        if not rows:
            where = f" on cluster {cluster}" if cluster is not None else ""
            raise NotFound(f"no task {task_id!r} is in the record{where}; it may have expired", id=task_id)
        found = max(rows, key=lambda each: each.received or each.sent or 0.0)
        if found.pk is not None:
            found.runs = all_runs(other_runs(connection, found.pk), found.runs)
        return found


def _by_key(cluster: int, task_id: str) -> Select[Any]:
    return select(_table).where(_table.c.cluster_id == cluster, _table.c.key == to_key(task_id))


def read_lineage(store: Store, task: Task) -> Lineage:
    """The task that this one is a retry of, and its retries, the oldest first."""
    table = schema.retry
    with store.read() as connection:
        clusters = cluster_ids(connection, task.cluster)
        key = to_key(task.id)
        before = select(table.c.key).where(table.c.cluster_id.in_(clusters), table.c.new_key == key)
        before = before.where(table.c.key != key)  # without a retry under the same id
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


def link_retry(
    store: Store,
    cluster: str,
    old_id: str,
    new_id: str,
    fidelity: str,
    at: float,
    again_after: float | None = None,
    *,
    first_only: bool = False,
) -> bool:
    """Records that a person retries ``old_id`` as ``new_id``; False where that was recorded before.

    It is recorded before the message is sent, as a task that was sent without its link might be sent a second time.
    ``again_after``: seconds after which it may be recorded again, for a task that is sent again under its own id.
    ``first_only``: not where the task has another retry, even if that is recorded at the same moment.
    """
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        if first_only and _retried_as_another(connection, number, old_id, new_id):
            return False
        values = {
            "cluster_id": number,
            "key": to_key(old_id),
            "new_key": to_key(new_id),
            "at": at,
            "fidelity": fidelity,
        }
        statement = store.insert(schema.retry).values(values)
        if again_after is None:
            statement = statement.on_conflict_do_nothing()
        else:
            statement = statement.on_conflict_do_update(
                index_elements=["cluster_id", "key", "new_key"],
                set_={"at": at, "fidelity": fidelity},
                where=schema.retry.c.at < at - again_after,
            )
        return connection.execute(statement.returning(schema.retry.c.at)).first() is not None


def _retried_as_another(connection: Connection, number: int, old_id: str, new_id: str) -> bool:
    # Locked, as two people might check at the same time whether the other has retried it.
    connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.id == number).with_for_update())
    table, old, new = schema.retry, to_key(old_id), to_key(new_id)
    others = (table.c.cluster_id == number, table.c.key == old, table.c.new_key.not_in([old, new]))
    return connection.execute(select(table.c.at).where(*others).limit(1)).first() is not None


def unlink_retry(store: Store, cluster: str, old_id: str, new_id: str) -> None:
    """Deletes a link whose message the broker certainly did not accept."""
    table = schema.retry
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        mine = (table.c.cluster_id == number, table.c.key == to_key(old_id), table.c.new_key == to_key(new_id))
        connection.execute(delete(table).where(*mine))
