"""What the overview asks for: counts by state, and what runs longest."""

from sqlalchemy import ColumnElement
from sqlalchemy import and_
from sqlalchemy import literal_column
from sqlalchemy import select

from monitor.records import Task
from monitor.records import TaskState
from monitor.store import cube
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.load import load_tasks
from monitor.store.load import numbers_of
from monitor.store.rows import STATES
from monitor.store.schema import STATE_CODES

_RECENT = 10_000
_task = schema.task.c


def state_counts(store: Store, cluster: str | None = None) -> dict[TaskState, int]:
    """How many tasks of each state are in the record; every state is there."""
    with store.read() as connection:
        where = schema.task_count.c.cluster_id.in_(numbers_of(connection, cluster))
        found = cube.totals_by(connection, "state", where)
    return {state: found.get(code, 0) for code, state in STATES.items()}


def longest_running(store: Store, *, cluster: str | None = None, limit: int = 10) -> list[Task]:
    """Started and not ended, the earliest start first; of the 10,000 running tasks received first."""
    running: ColumnElement[int] = literal_column(str(STATE_CODES[TaskState.STARTED]))
    partial = _task.state != literal_column(str(STATE_CODES[TaskState.SUCCESS]))
    with store.read() as connection:
        oldest = select(_task.id, _task.started).where(and_(_task.state == running, partial))
        if cluster is not None:
            clusters = numbers_of(connection, cluster)
            oldest = oldest.where((_task.cluster_id + literal_column("0")).in_(clusters))
        rows = oldest.order_by(_task.seen, _task.id).limit(_RECENT).subquery().c
        statement = select(rows.id).where(rows.started.is_not(None)).order_by(rows.started, rows.id).limit(limit)
        return load_tasks(connection, list(connection.execute(statement).scalars()))
