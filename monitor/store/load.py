"""Reading whole tasks and runs by their rows, with the names that their numbers stand for."""

import re
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import Select
from sqlalchemy import select

from monitor.errors import InvalidInput
from monitor.records import Run
from monitor.records import Task
from monitor.store import schema
from monitor.store.engine import numbers
from monitor.store.retries import newest_links
from monitor.store.rows import other_run_of
from monitor.store.rows import task_of
from monitor.store.terms import texts

_TERM_COLUMNS = ("name_id", "queue_id", "worker_id", "client_id", "exchange_id", "routing_key_id")
_CHUNK = 500
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
