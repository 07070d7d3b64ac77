"""Tasks and runs as rows and back, with the names that their numbers stand for, and links between a task and its
retries.

A task that was sent again under its own id is no other task, so it is not marked as retried.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, and_, any_, delete, func, select

from celery_monitor.core.filters.values import NO, STATES_BY_WORD, YES
from celery_monitor.errors import InvalidInput
from celery_monitor.records.task import Invocation, Link, Outcome, Run, Task
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, numbers
from celery_monitor.store.schema import OUTCOME_CODES, STATE_CODES
from celery_monitor.store.tasks.keys import from_key, to_key
from celery_monitor.store.terms import Names, Numbers, cluster_id, texts

TASK_COLUMNS = tuple(column.name for column in schema.task.columns)
IDENTITY = ("id", "cluster_id", "key")
CHANGING_COLUMNS = tuple(name for name in TASK_COLUMNS if name not in IDENTITY)
RUN_COLUMNS = tuple(column.name for column in schema.run.columns)
STATES = {code: state for state, code in STATE_CODES.items()}
OUTCOMES: dict[int | None, Outcome | None] = {None: None} | {code: each for each, code in OUTCOME_CODES.items()}
_CODES: dict[Outcome | None, int | None] = {None: None} | OUTCOME_CODES
_NO_RUN = Run()
_SELF = b""  # as root: the task itself
_pack = msgspec.msgpack.Encoder().encode
unpack_invocation = msgspec.msgpack.Decoder(Invocation).decode


def names_of(task: Task) -> Names:
    """What the row of a task names."""
    run = task.run
    worker = run.worker if run is not None else None
    return (task.name, task.queue, worker, task.client, task.exchange, task.routing_key)


def sort_time(task: Task) -> float:
    """The time by which lists are sorted: received, else sent, else the first thing that is known of the latest run."""
    run = task.run or _NO_RUN
    for time in (run.received, task.sent, run.started, run.ended, task.discovered_at):
        if time is not None:
            return time
    return 0.0


def task_row(task: Task, cluster_id: int, numbers: Numbers) -> tuple[object, ...]:
    """The values of TASK_COLUMNS; ``numbers`` are those of its names."""
    return (task.pk, cluster_id, to_key(task.id), *task_values(task, numbers))


def task_values(task: Task, numbers: Numbers) -> tuple[object, ...]:
    """The values of CHANGING_COLUMNS: of a stored task, all that can change."""
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
    """The run of a row that has at least RUN_COLUMNS without traceback; a column left out is unknown."""
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
    """A run that stands in a row of its own, with its message."""
    run = run_of(row, texts)
    run.invocation = None if row.message is None else unpack_invocation(row.message)
    return run


def all_runs(others: Sequence[tuple[int, Run]], shown: Sequence[Run]) -> list[Run]:
    """The runs in order: those in rows of their own with their ordinals, and the one in the task's row between them."""
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


FEW = 25_000  # links that are looked up one by one, where nothing else narrows a search
_CHUNK = 500
_link = schema.retry.alias("link")
_again = schema.task.alias("again")
_other = _link.c.new_key != _link.c.key
_task = schema.task.c

Place = tuple[int, bytes]  # cluster and key of a task


def newest_links(connection: Connection, places: Iterable[Place]) -> dict[Place, Link]:
    """The newest task as which each of these was retried, with its state now."""
    found: dict[Place, Link] = {}
    for cluster, several in groupby(sorted(places), key=lambda place: place[0]):
        keys = [key for _, key in several]
        for start in range(0, len(keys), _CHUNK):
            mine = (_link.c.cluster_id == cluster, _link.c.key.in_(keys[start : start + _CHUNK]), _other)
            statement = select(_link, _again.c.state).select_from(_link.outerjoin(_again, _same_task()))
            for row in connection.execute(statement.where(*mine).order_by(_link.c.at, _link.c.new_key)):
                state = None if row.state is None else STATES[row.state]
                link = Link(id=from_key(row.new_key), state=state, at=row.at, fidelity=row.fidelity)
                found[cluster, bytes(row.key)] = link
    return found


def mark_retried(word: str) -> ColumnElement[bool]:
    """What ``retried:WORD`` says of a row of ``task``."""
    if word == YES:
        return _links_of_row().exists()
    if word == NO:
        return ~_links_of_row().exists()
    state = newest_state()
    if not word:
        return and_(_links_of_row().exists(), state.is_(None))
    return numbers(state, (STATE_CODES[each] for each in STATES_BY_WORD[word]))


def newest_state() -> ColumnElement[int]:
    """The state of the newest task as which a row of ``task`` was retried; NULL: none, or its state is unknown."""
    statement = select(_again.c.state).select_from(_link.outerjoin(_again, _same_task()))
    newest = statement.where(*_of_row()).order_by(_link.c.at.desc(), _link.c.new_key.desc()).limit(1)
    return newest.correlate(schema.task).scalar_subquery()


def _same_task() -> ColumnElement[bool]:
    return and_(_again.c.cluster_id == _link.c.cluster_id, _again.c.key == _link.c.new_key)


def _of_row() -> tuple[ColumnElement[bool], ...]:
    return (_link.c.cluster_id == _task.cluster_id, _link.c.key == _task.key, _other)


def _links_of_row() -> Select[tuple[bytes]]:
    return select(_link.c.key).where(*_of_row()).correlate(schema.task)


def few_retried(connection: Connection, clusters: Iterable[int]) -> bool:
    """Whether so few tasks were retried that each can be looked up by its key."""
    links = select(_link.c.key).where(_link.c.cluster_id.in_(clusters), _other).limit(FEW + 1).subquery()
    return connection.execute(select(func.count()).select_from(links)).scalar_one() <= FEW


def those_retried(clusters: Iterable[int], *, is_sqlite: bool) -> tuple[ColumnElement[bool], ...]:
    """The tasks that were retried, by cluster, each looked up by its key."""
    return tuple(_retried_in(cluster, is_sqlite=is_sqlite) for cluster in clusters)


def _retried_in(cluster: int, *, is_sqlite: bool) -> ColumnElement[bool]:
    """As in ``job_members``: PostgreSQL would sort the keys and then read every task."""
    keys = select(_link.c.key).where(_link.c.cluster_id == cluster, _other).distinct()
    if is_sqlite:
        return and_(_task.cluster_id == cluster, _task.key.in_(keys))
    return and_(_task.cluster_id == cluster, _task.key == any_(func.array(keys.scalar_subquery())))


_TERM_COLUMNS = ("name_id", "queue_id", "worker_id", "client_id", "exchange_id", "routing_key_id")
_FARTHEST = 1e11  # the year 5138
_list_columns = [each for each in schema.task.c if each.name != "traceback"]


def load_tasks(connection: Connection, rows: Sequence[int], *, tracebacks: bool = False) -> list[Task]:
    """The tasks of these rows in this order, each with its latest run, without the traceback unless asked for."""
    columns = schema.task.c if tracebacks else _list_columns
    found: dict[int | None, Task] = {}
    for start in range(0, len(rows), _CHUNK):
        statement = select(*columns).where(numbers(schema.task.c.id, rows[start : start + _CHUNK]))
        found.update({task.pk: task for task in read_tasks(connection, statement)})
    return [found[each] for each in rows if each in found]


def read_tasks(connection: Connection, statement: Select[Any]) -> list[Task]:
    """The tasks that a statement selects; it names every column, ``traceback`` perhaps excepted."""
    rows = connection.execute(statement).all()
    names = texts(connection, {getattr(row, column) for row in rows for column in _TERM_COLUMNS})
    clusters = cluster_names(connection) if rows else {}
    links = newest_links(connection, [(row.cluster_id, bytes(row.key)) for row in rows])
    tasks = [task_of(row, clusters[row.cluster_id], names) for row in rows]
    for row, task in zip(rows, tasks, strict=True):
        task.retried = links.get((row.cluster_id, bytes(row.key)))
    return tasks


def other_runs(connection: Connection, row: int) -> list[tuple[int, Run]]:
    """The runs beside the one that is shown, with their places among all, in order, with all their texts."""
    table = schema.run
    rows = connection.execute(select(table).where(table.c.task_id == row).order_by(table.c.ordinal)).all()
    names = texts(connection, {each.worker_id for each in rows})
    return [(each.ordinal, other_run_of(each, names)) for each in rows]


def cluster_names(connection: Connection) -> dict[int, str]:
    """Names of clusters by number, in the order in which they came."""
    rows = connection.execute(select(schema.cluster.c.id, schema.cluster.c.name).order_by(schema.cluster.c.id))
    return {row.id: row.name for row in rows}


def numbers_of(connection: Connection, cluster: str | None) -> list[int]:
    """The number of the cluster, or of all clusters; empty where it is not known."""
    return [key for key, name in cluster_names(connection).items() if cluster in {None, name}]


def term_ids(connection: Connection, kind: str, names: Iterable[str]) -> list[int]:
    """The numbers of these names, as far as they are known."""
    term = schema.term.c
    known = [name for name in names if storable(name)]
    statement = select(term.id).where(term.kind == schema.TERM_KINDS[kind], term.text.in_(known))
    return list(connection.execute(statement).scalars())


def storable(text: str) -> bool:
    """Whether any stored text can be this: NUL and lone surrogates are replaced before storage."""
    return not re.search("[\x00\ud800-\udfff]", text)


def checked_time(seconds: float) -> float:
    """Raises InvalidInput unless this can be a moment, in epoch seconds."""
    if not abs(seconds) < _FARTHEST:
        raise InvalidInput(f"{seconds} is no time in epoch seconds")
    return seconds


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
    """Notes that a person sends ``old_id`` again as ``new_id``; False where that was noted before.

    Written before the message is sent: a link to a task that nobody has seen says that it was asked for, while a
    task sent without its link would be sent a second time. With ``again_after`` it may be noted again so many seconds
    later: for a task that is sent again under its own id. With ``first_only`` it is not noted where somebody has
    retried the task as another one, not even where that happens at this moment.
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
    # Two people must not look at the same time whether the other has retried it.
    connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.id == number).with_for_update())
    table, old, new = schema.retry, to_key(old_id), to_key(new_id)
    others = (table.c.cluster_id == number, table.c.key == old, table.c.new_key.not_in([old, new]))
    return connection.execute(select(table.c.at).where(*others).limit(1)).first() is not None


def unlink_retry(store: Store, cluster: str, old_id: str, new_id: str) -> None:
    """Takes a link back whose message the broker certainly does not have."""
    table = schema.retry
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        mine = (table.c.cluster_id == number, table.c.key == to_key(old_id), table.c.new_key == to_key(new_id))
        connection.execute(delete(table).where(*mine))
