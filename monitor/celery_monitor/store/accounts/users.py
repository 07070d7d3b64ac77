"""Users that were added on the page or by command; those of the setting basic_auth are not stored."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, func, inspect, select, update

from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.user import Role, User
from celery_monitor.store import schema
from celery_monitor.store.engine import Store

MOST_USERS = 10_000
_table = schema.user_account


def read_users(store: Store) -> list[User]:
    """Every user, by name."""
    with store.read() as connection:
        return [_user(row) for row in connection.execute(select(_table).order_by(_table.c.name))]


def find_user(store: Store, name: str) -> User | None:
    with store.read() as connection:
        row = connection.execute(select(_table).where(_table.c.name == name)).first()
    return None if row is None else _user(row)


def has_users(store: Store) -> bool:
    """Whether anybody can sign in by a password that is stored here."""
    with store.read() as connection:
        return connection.execute(select(_table.c.name).limit(1)).first() is not None


def has_users_yet(store: Store) -> bool:
    """The same of a database that may not have been made or migrated yet; makes nothing."""
    if store.is_sqlite and not Path(store.engine.url.database or "").exists():
        return False
    with store.read() as connection:
        known = inspect(connection).has_table(_table.name)
    return known and has_users(store)


def add_user(store: Store, user: User, *, first: Role | None = None) -> User:
    """Adds a user; the very first one gets the role ``first`` and no scope. Raises Conflict where the name exists."""
    with store.begin() as connection:
        count: int = connection.execute(select(func.count()).select_from(_table)).scalar_one()
        if count >= MOST_USERS:
            raise Conflict(f"There are {count} users, the most that can be kept; remove one first.")
        role = user.role if count or first is None else first
        values = {**_values(user), "role": int(role), "scope": user.scope if role is user.role else ""}
        statement = store.insert(_table).values(values).on_conflict_do_nothing(index_elements=["name"])
        if connection.execute(statement.returning(_table.c.name)).first() is None:
            raise Conflict(f"There is a user {user.name!r} already.", name=user.name)
        return _one(connection, user.name)


def change_user(store: Store, name: str, **values: object) -> User:
    """Sets columns of a user (``role``, ``scope``, ``password``, ``disabled``). Raises NotFound."""
    with store.begin() as connection:
        connection.execute(update(_table).where(_table.c.name == name).values(values))
        return _one(connection, name)


def remove_user(store: Store, name: str) -> User:
    """Removes a user and gives the record as it was. Raises NotFound."""
    with store.begin() as connection:
        user = _one(connection, name)
        connection.execute(delete(_table).where(_table.c.name == name))
        return user


def _one(connection: Connection, name: str) -> User:
    row = connection.execute(select(_table).where(_table.c.name == name)).first()
    if row is None:
        raise NotFound(f"There is no user {name!r}.", name=name)
    return _user(row)


def _values(user: User) -> dict[str, object]:
    return {
        "name": user.name,
        "role": int(user.role),
        "password": user.password,
        "disabled": int(user.disabled),
        "created_at": user.created_at,
        "scope": user.scope,
    }


def _user(row: Row[Any]) -> User:
    return User(
        name=row.name,
        role=Role(row.role),
        password=row.password,
        disabled=bool(row.disabled),
        created_at=row.created_at,
        scope=row.scope,
    )
