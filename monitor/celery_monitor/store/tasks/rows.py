"""Tasks and runs as rows and back, with the names of their numbers; recently written ones are kept in memory."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, and_, select

from celery_monitor.records.event import Event
from celery_monitor.records.task import FINISHED_STATES, Invocation, Link, Outcome, Run, Task
from celery_monitor.store import schema
from celery_monitor.store.engine import numbers, one_of
from celery_monitor.store.schema import OUTCOME_CODES, STATE_CODES, STATES
from celery_monitor.store.tasks.keys import from_key, to_key
from celery_monitor.store.terms import Names, Numbers, cluster_names, texts

TASK_COLUMNS = tuple(column.name for column in schema.task.columns)
IDENTITY = ("id", "cluster_id", "key")
CHANGING_COLUMNS = tuple(name for name in TASK_COLUMNS if name not in IDENTITY)
RUN_COLUMNS = tuple(column.name for column in schema.run.columns)
OUTCOMES: dict[int | None, Outcome | None] = {None: None} | {code: each for each, code in OUTCOME_CODES.items()}
_CODES: dict[Outcome | None, int | None] = {None: None} | OUTCOME_CODES
_NO_RUN = Run()
_SELF = b""  # as root: the task itself
_pack = msgspec.msgpack.Encoder().encode
unpack_invocation = msgspec.msgpack.Decoder(Invocation).decode


def names_of(task: Task) -> Names:
    """The names in the row of a task."""
    run = task.run
    worker = run.worker if run is not None else None
    return (task.name, task.queue, worker, task.client, task.exchange, task.routing_key)


def sort_time(task: Task) -> float:
    """The time by which lists are sorted: received, else sent, else the first known time of the latest run."""
    run = task.run or _NO_RUN
    for time in (run.received, task.sent, run.started, run.ended, task.discovered_at):
        if time is not None:
            return time
    return 0.0


def task_row(task: Task, cluster_id: int, numbers: Numbers) -> tuple[object, ...]:
    """The values of TASK_COLUMNS; ``numbers`` are those of its names."""
    return (task.pk, cluster_id, to_key(task.id), *task_values(task, numbers))


def task_values(task: Task, numbers: Numbers) -> tuple[object, ...]:
    """The values of CHANGING_COLUMNS."""
    run = task.run or _NO_RUN
    root = task.root_id
    name, queue, worker, client, exchange, routing_key = numbers
    return (
        STATE_CODES[task.state],
        run.received if run.received is not None else sort_time(task),
        name,
        queue,
        worker,
        _CODES[run.outcome],
        run.retries,
        run.pid,
        run.received,
        run.started,
        run.ended,
        run.eta,
        run.runtime,
        run.ready,
        task.sent,
        task.expires,
        client,
        exchange,
        routing_key,
        min(len(task.runs) - 1, 32767) if task.runs else 0,
        task.failure_group,
        None if root is None else _SELF if root == task.id else to_key(root),
        None if task.parent_id is None else to_key(task.parent_id),
        task.args,
        task.kwargs,
        run.result,
        run.exception,
        run.traceback,
        task.discovered_at,
        run.replacing or None,
    )


def run_row(task_id: int, ordinal: int, run: Run, worker: int) -> tuple[object, ...]:
    """The values of RUN_COLUMNS."""
    return (
        task_id,
        ordinal,
        worker,
        _CODES[run.outcome],
        run.retries,
        run.pid,
        run.received,
        run.started,
        run.ended,
        run.eta,
        run.runtime,
        run.ready,
        run.result,
        run.exception,
        run.traceback,
        run.replacing or None,
        None if run.invocation is None else _pack(run.invocation),
    )


def run_of(row: Any, texts: Mapping[int, str]) -> Run:
    """The run of a row with RUN_COLUMNS; result, exception and traceback may be missing."""
    return Run(
        worker=texts.get(row.worker_id),
        pid=row.pid,
        retries=row.retries,
        received=row.received,
        started=row.started,
        ended=row.ended,
        eta=row.eta,
        outcome=OUTCOMES[row.outcome],
        runtime=row.runtime,
        ready=row.ready,
        result=getattr(row, "result", None),
        exception=getattr(row, "exception", None),
        traceback=getattr(row, "traceback", None),
        replacing=row.replacing or 0,
    )


def other_run_of(row: Any, texts: Mapping[int, str]) -> Run:
    """A run from ``run``, with its message."""
    run = run_of(row, texts)
    run.invocation = None if row.message is None else unpack_invocation(row.message)
    return run


def all_runs(others: Sequence[tuple[int, Run]], shown: Sequence[Run]) -> list[Run]:
    """All runs in order: those from ``run`` with their ordinals, and the one in the task's row between them."""
    runs = [run for _, run in others]
    place = next((place for place, (ordinal, _) in enumerate(others) if ordinal != place), len(others))
    return [*runs[:place], *shown, *runs[place:]]


def task_of(row: Any, cluster: str, texts: Mapping[int, str]) -> Task:
    """The task of a row, with its latest run only."""
    task_id = from_key(row.key)
    run = run_of(row, texts)
    return Task(
        cluster=cluster,
        id=task_id,
        state=STATES[row.state],
        name=texts.get(row.name_id),
        queue=texts.get(row.queue_id),
        exchange=texts.get(row.exchange_id),
        routing_key=texts.get(row.routing_key_id),
        client=texts.get(row.client_id),
        args=row.args,
        kwargs=row.kwargs,
        sent=row.sent,
        expires=row.expires,
        root_id=None if row.root is None else task_id if len(row.root) == 0 else from_key(row.root),
        parent_id=None if row.parent is None else from_key(row.parent),
        failure_group=row.failure_group_id,
        discovered_at=row.discovered_at,
        runs=[] if run == _NO_RUN and not row.earlier_runs else [run],
        pk=row.id,
    )


_CHUNK = 500
_task = schema.task.c

Place = tuple[int, bytes]  # cluster and key of a task


def newest_links(connection: Connection, places: Iterable[Place]) -> dict[Place, Link]:
    """The newest retry of each of these tasks, with its state now."""
    link, again = schema.retry.c, schema.task.c
    same = and_(again.cluster_id == link.cluster_id, again.key == link.new_key)
    statement = select(schema.retry, again.state).select_from(schema.retry.outerjoin(schema.task, same))
    found: dict[Place, Link] = {}
    for cluster, several in groupby(sorted(places), key=lambda place: place[0]):
        keys = [key for _, key in several]
        for start in range(0, len(keys), _CHUNK):
            mine = (link.cluster_id == cluster, link.key.in_(keys[start : start + _CHUNK]), link.new_key != link.key)
            for row in connection.execute(statement.where(*mine).order_by(link.at, link.new_key)):
                state = None if row.state is None else STATES[row.state]
                found[cluster, bytes(row.key)] = Link(
                    id=from_key(row.new_key), state=state, at=row.at, fidelity=row.fidelity
                )
    return found


_TERM_COLUMNS = ("name_id", "queue_id", "worker_id", "client_id", "exchange_id", "routing_key_id")
_list_columns = [each for each in schema.task.c if each.name != "traceback"]


def load_tasks(connection: Connection, rows: Sequence[int], *, tracebacks: bool = False) -> list[Task]:
    """The tasks of these rows in this order, each with its latest run, without traceback unless asked for."""
    columns = schema.task.c if tracebacks else _list_columns
    found: dict[int | None, Task] = {}
    for start in range(0, len(rows), _CHUNK):
        statement = select(*columns).where(numbers(schema.task.c.id, rows[start : start + _CHUNK]))
        found.update({task.pk: task for task in read_tasks(connection, statement)})
    return [found[each] for each in rows if each in found]


def read_tasks(connection: Connection, statement: Select[Any]) -> list[Task]:
    """The tasks that a statement selects, with every column; ``traceback`` may be missing."""
    rows = connection.execute(statement).all()
    names = texts(connection, {getattr(row, column) for row in rows for column in _TERM_COLUMNS})
    clusters = cluster_names(connection) if rows else {}
    links = newest_links(connection, [(row.cluster_id, bytes(row.key)) for row in rows])
    tasks = [task_of(row, clusters[row.cluster_id], names) for row in rows]
    for row, task in zip(rows, tasks, strict=True):
        task.retried = links.get((row.cluster_id, bytes(row.key)))
    return tasks


def other_runs(connection: Connection, row: int) -> list[tuple[int, Run]]:
    """The runs of a task that are not in its row, with their ordinals."""
    table = schema.run
    rows = connection.execute(select(table).where(table.c.task_id == row).order_by(table.c.ordinal)).all()
    names = texts(connection, {each.worker_id for each in rows})
    return [(each.ordinal, other_run_of(each, names)) for each in rows]


CACHED = 10_000  # unfinished tasks, of which more events will come
LONGEST_TEXT = 2000  # characters of a cached task
CHUNK = 500
_FIRST_EVENTS = frozenset({"task-sent", "task-received"})


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
