"""The search of the palette: tasks by id, and workers, queues, task names and saved views by name."""

from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Table, case, func, or_, select

from celery_monitor.core.filters.terms import Pattern
from celery_monitor.records.page import Hit
from celery_monitor.records.task import TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import STATES, TERM_KINDS
from celery_monitor.store.tasks.keys import from_key, spans_of_word
from celery_monitor.store.terms import cluster_ids, cluster_names, storable, texts

SHORTEST_ID = 4  # too many ids begin with fewer characters
_task = schema.task.c


def search(store: Store, text: str, *, cluster: str | None = None, limit: int = 6) -> list[Hit]:
    """At most ``limit`` tasks whose id begins with the text, and as many of each other kind whose name contains it."""
    text = text.strip()
    if not text or not storable(text):
        return []
    with store.read() as connection:
        clusters = cluster_ids(connection, cluster)
        names = cluster_names(connection)
        return [
            *_tasks(connection, text, clusters, names, limit),
            *_of_clusters(connection, "worker", schema.worker, "hostname", text, clusters, names, limit),
            *_of_clusters(connection, "queue", schema.queue, "name", text, clusters, names, limit),
            *_names(connection, text, limit),
            *_views(connection, text, limit),
        ]


def _tasks(connection: Connection, text: str, clusters: list[int], names: dict[int, str], limit: int) -> list[Hit]:
    """By the index of keys alone, however many ids begin with the text."""
    if len(text) < SHORTEST_ID:
        return []
    found: list[Hit] = []
    for number in clusters:
        for span in spans_of_word(Pattern((text,))):
            columns = (_task.key, _task.state, _task.name_id)
            statement = select(*columns).where(_task.cluster_id == number, span.holds(_task.key)).order_by(_task.key)
            rows = connection.execute(statement.limit(limit - len(found))).all() if len(found) < limit else []
            task_names = texts(connection, [row.name_id for row in rows])
            found += [
                _task_hit(bytes(row.key), names[number], STATES[row.state], task_names.get(row.name_id)) for row in rows
            ]
    return found


def _task_hit(key: bytes, cluster: str, state: TaskState, name: str | None) -> Hit:
    return Hit(kind="task", name=from_key(key), cluster=cluster, state=state, detail=name)


def _of_clusters(
    connection: Connection,
    kind: Literal["worker", "queue"],
    table: Table,
    column: str,
    text: str,
    clusters: list[int],
    names: dict[int, str],
    limit: int,
) -> list[Hit]:
    wanted = _like(table.c[column], text)
    statement = select(table.c.cluster_id, table.c[column]).where(table.c.cluster_id.in_(clusters), wanted)
    rows = connection.execute(statement.order_by(*_best(table.c[column], text)).limit(limit)).all()
    return [Hit(kind=kind, name=row[1], cluster=names[row[0]]) for row in rows]


def _names(connection: Connection, text: str, limit: int) -> list[Hit]:
    table = schema.term.c
    statement = select(table.text).where(table.kind == TERM_KINDS["name"], _like(table.text, text))
    rows = connection.execute(statement.order_by(*_best(table.text, text)).limit(limit))
    return [Hit(kind="name", name=name) for name in rows.scalars()]


def _views(connection: Connection, text: str, limit: int) -> list[Hit]:
    table = schema.saved_view.c
    statement = select(table.name, table.path, table.query).where(
        or_(_like(table.name, text), _like(table.query, text))
    )
    rows = connection.execute(statement.order_by(*_best(table.name, text)).limit(limit))
    return [Hit(kind="view", name=row.name, path=row.path, query=row.query) for row in rows]


def _like(column: ColumnElement[str], text: str) -> ColumnElement[bool]:
    return func.lower(column).contains(text.lower(), autoescape=True)


def _best(column: ColumnElement[str], text: str) -> tuple[ColumnElement[Any], ...]:
    """Those that begin with the text first, then the shortest."""
    begins = func.lower(column).startswith(text.lower(), autoescape=True)
    return case((begins, 0), else_=1), func.length(column), column
