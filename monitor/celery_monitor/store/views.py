"""Saved views, shared by all users, and the search of the palette: tasks by id, and everything that has a name."""

from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, Table, case, delete, func, or_, select, update

from celery_monitor.core.filters.terms import Pattern
from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.page import Hit, SavedView
from celery_monitor.records.task import TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import STATES, TERM_KINDS
from celery_monitor.store.tasks.keys import from_key, spans_of_word
from celery_monitor.store.terms import cluster_ids, cluster_names, storable, texts

MOST_VIEWS = 500
_table = schema.saved_view


def read_views(store: Store) -> list[SavedView]:
    """Every saved view, by name."""
    with store.read() as connection:
        rows = connection.execute(select(_table).order_by(func.lower(_table.c.name), _table.c.id)).all()
    return [_record(row) for row in rows]


def read_view(store: Store, id: int) -> SavedView:  # noqa: A002
    """One view. Raises NotFound."""
    with store.read() as connection:
        return _one(connection, id)


def save_view(store: Store, name: str, path: str, query: str, actor: str, at: float) -> SavedView:
    """Stores a new view. Raises Conflict where the name is taken or there are too many."""
    values = {"name": name, "path": path, "query": query, "actor": actor, "at": at}
    statement = store.insert(_table).values(values).on_conflict_do_nothing(index_elements=["name"])
    with store.begin() as connection:
        count = connection.execute(select(func.count()).select_from(_table)).scalar_one()
        if count >= MOST_VIEWS:
            raise Conflict(f"There are {count} saved views, the most allowed; delete one that is not needed.")
        number = connection.execute(statement.returning(_table.c.id)).scalar()
        if number is None:
            raise _taken(name)
        return _one(connection, number)


def rename_view(store: Store, id: int, name: str) -> SavedView:  # noqa: A002
    """Renames a view. Raises NotFound, and Conflict where the name is taken."""
    with store.begin() as connection:
        view = _one(connection, id)
        other = select(_table.c.id).where(_table.c.name == name, _table.c.id != id)
        if connection.execute(other).first() is not None:
            raise _taken(name)
        connection.execute(update(_table).where(_table.c.id == view.id).values(name=name))
        return _one(connection, id)


def delete_view(store: Store, id: int) -> SavedView:  # noqa: A002
    """Deletes a view and returns it. Raises NotFound."""
    with store.begin() as connection:
        view = _one(connection, id)
        connection.execute(delete(_table).where(_table.c.id == id))
        return view


def _one(connection: Connection, id: int) -> SavedView:  # noqa: A002
    row = connection.execute(select(_table).where(_table.c.id == id)).first() if 0 < id < 2**31 else None
    if row is None:
        raise NotFound(f"There is no saved view {id}; it may have been deleted.", id=id)
    return _record(row)


def _taken(name: str) -> Conflict:
    return Conflict(f"A saved view named {name!r} exists already; choose another name.", name=name)


def _record(row: Row[Any]) -> SavedView:
    return SavedView(**row._mapping)


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
