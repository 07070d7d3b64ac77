"""Saved views: lists under a name, shared by all users."""

from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.page import SavedView
from celery_monitor.store import schema
from celery_monitor.store.engine import Store

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
            raise Conflict(f"There are {count} saved views, the most that are allowed; delete one that is not needed.")
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
