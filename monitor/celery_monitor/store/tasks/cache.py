"""The stored tasks that a batch of events is about: from memory if they were written recently."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from celery_monitor.records.event import Event
from celery_monitor.records.task import FINISHED_STATES, Run, Task
from celery_monitor.store import schema
from celery_monitor.store.engine import one_of
from celery_monitor.store.tasks.keys import from_key, to_key
from celery_monitor.store.tasks.rows import all_runs, other_run_of, task_of
from celery_monitor.store.terms import texts

CACHED = 10_000  # unfinished tasks, of which more events will come
LONGEST_TEXT = 2000  # characters of a cached task
CHUNK = 500
_FIRST_EVENTS = frozenset({"task-sent", "task-received"})
_TERM_COLUMNS = ("name_id", "queue_id", "worker_id", "client_id", "exchange_id", "routing_key_id")


class TaskCache:
    """Stored tasks of one cluster. Only its writer changes them, so they stay valid until a rollback."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._recent: OrderedDict[str, Task] = OrderedDict()

    def forget(self) -> None:
        """Empties the cache, after a rollback."""
        self._recent.clear()

    def forget_tasks(self, keys: Iterable[bytes]) -> None:
        """Removes deleted tasks from the cache."""
        if self._recent:
            for key in keys:
                self._recent.pop(from_key(key), None)

    def find(
        self, connection: Connection, number: int, by_task: Mapping[str, Sequence[Event]], *, look_up_all: bool
    ) -> dict[str, Task]:
        """The stored ones among these tasks.

        Unless ``look_up_all``, a task whose first events these are is assumed to be new: if it is not, inserting it
        raises KeyTaken.
        """
        recent = self._recent
        found = {task_id: recent[task_id] for task_id in by_task if task_id in recent}
        missing = [
            task_id
            for task_id, events in by_task.items()
            if task_id not in found and (look_up_all or events[0].retries or events[0].type not in _FIRST_EVENTS)
        ]
        if missing:
            found |= load(connection, number, self._cluster, missing)
        return found

    def remember(self, tasks: Iterable[Task]) -> None:
        """Caches the unfinished ones of these written tasks."""
        recent = self._recent
        for task in tasks:
            if task.state in FINISHED_STATES or len(task.runs) > 1 or not _is_short(task):
                recent.pop(task.id, None)
            else:
                recent[task.id] = task
        while len(recent) > CACHED:
            recent.popitem(last=False)


def _is_short(task: Task) -> bool:
    return len(task.args or "") + len(task.kwargs or "") + len(task.traceback or "") <= LONGEST_TEXT


def load(connection: Connection, number: int, cluster: str, task_ids: Sequence[str]) -> dict[str, Task]:
    """The stored ones among these tasks, with all runs, from the database."""
    table = schema.task
    rows: list[Row[Any]] = []
    for start in range(0, len(task_ids), CHUNK):
        keys = [to_key(each) for each in task_ids[start : start + CHUNK]]
        rows += connection.execute(
            select(table).where(table.c.cluster_id == number, one_of(connection, table.c.key, keys))
        ).all()
    if not rows:
        return {}
    names = texts(connection, {getattr(row, column) for row in rows for column in _TERM_COLUMNS})
    tasks = {row.id: task_of(row, cluster, names) for row in rows}
    earlier = [row.id for row in rows if row.earlier_runs]
    for task_id, runs in _load_runs(connection, earlier).items():
        tasks[task_id].runs = all_runs(runs, tasks[task_id].runs)
    return {task.id: task for task in tasks.values()}


def _load_runs(connection: Connection, task_ids: list[int]) -> dict[int, list[tuple[int, Run]]]:
    table = schema.run
    rows: list[Row[Any]] = []
    for start in range(0, len(task_ids), CHUNK):
        chunk = task_ids[start : start + CHUNK]
        statement = (
            select(table).where(one_of(connection, table.c.task_id, chunk)).order_by(table.c.task_id, table.c.ordinal)
        )
        rows += connection.execute(statement).all()
    names = texts(connection, {row.worker_id for row in rows})
    runs: dict[int, list[tuple[int, Run]]] = {}
    for row in rows:
        runs.setdefault(row.task_id, []).append((row.ordinal, other_run_of(row, names)))
    return runs
