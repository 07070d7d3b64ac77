"""Tasks and runs as rows and back, with the names that their numbers stand for."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, and_, select

from celery_monitor.records.task import Invocation, Link, Outcome, Run, Task
from celery_monitor.store import schema
from celery_monitor.store.engine import numbers
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
