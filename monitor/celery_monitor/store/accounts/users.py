"""Users who were added on the page or by command, their sessions, and API tokens.

Those of the setting basic_auth are not stored. Of secrets only hashes are stored.
"""

import hashlib
import secrets
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, func, inspect, or_, select, update

from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.user import ApiToken, Role, Session, User
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
            raise Conflict(f"There are {count} users, the most allowed; remove one first.")
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


TOUCH_SECONDS = 60.0  # between two writes of when a session or a token was last used
MOST_SESSIONS_OF_USER = 100  # the oldest go
MOST_TOKENS = 1000
LONGEST_AGENT = 200
TOKEN_PREFIX = "cmt_"  # by which a scanner of repositories can know one  # noqa: S105
_session = schema.user_session
_token = schema.api_token


def hashed(secret: str) -> bytes:
    """The secret has 256 bits: one round of SHA-256 is enough."""
    return hashlib.sha256(secret.encode()).digest()


def open_session(store: Store, session: Session) -> str:
    """Stores a new session and gives its secret, which is kept nowhere else."""
    secret = secrets.token_urlsafe(32)
    values = {
        "key": hashed(secret),
        "id": secrets.token_hex(8),
        "user": session.user,
        "role": None if session.role is None else int(session.role),
        "source": session.source,
        "created_at": session.created_at,
        "used_at": session.used_at,
        "address": session.address,
        "agent": session.agent[:LONGEST_AGENT],
        "scope": session.scope,
    }
    newest = (
        select(_session.c.key)
        .where(_session.c.user == session.user)
        .order_by(_session.c.used_at.desc())
        .limit(MOST_SESSIONS_OF_USER - 1)
    )
    with store.begin() as connection:
        connection.execute(delete(_session).where(_session.c.user == session.user, _session.c.key.not_in(newest)))
        connection.execute(_session.insert().values(values))
    return secret


def find_session(store: Store, secret: str) -> Session | None:
    with store.read() as connection:
        row = connection.execute(select(_session).where(_session.c.key == hashed(secret))).first()
    return None if row is None else _session_of(row)


def touch_session(store: Store, session: Session, now: float) -> None:
    """Records that a session is in use."""
    with store.begin() as connection:
        connection.execute(update(_session).where(_session.c.id == session.id).values(used_at=now))


def read_sessions(store: Store, user: str | None = None) -> list[Session]:
    """Sessions, the one used last first."""
    statement = select(_session).order_by(_session.c.used_at.desc())
    if user is not None:
        statement = statement.where(_session.c.user == user)
    with store.read() as connection:
        return [_session_of(row) for row in connection.execute(statement)]


def end_session(store: Store, id: str) -> None:  # noqa: A002
    """Ends one session. Raises NotFound."""
    with store.begin() as connection:
        if not connection.execute(delete(_session).where(_session.c.id == id)).rowcount:
            raise NotFound("There is no such session; it may have ended.", id=id)


def end_sessions(store: Store, user: str) -> int:
    """Ends every session of a user; gives their number."""
    with store.begin() as connection:
        return connection.execute(delete(_session).where(_session.c.user == user)).rowcount


def delete_expired(store: Store, *, used_before: float, created_before: float) -> int:
    """Deletes sessions that were not used since, or are older; gives their number."""
    old = or_(_session.c.used_at < used_before, _session.c.created_at < created_before)
    with store.begin() as connection:
        return connection.execute(delete(_session).where(old)).rowcount


def make_token(store: Store, token: ApiToken) -> tuple[ApiToken, str]:
    """Stores a new API token; gives it with its secret, which is not stored. Raises Conflict where the name exists."""
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    values = {
        "key": hashed(secret),
        "name": token.name,
        "role": int(token.role),
        "actor": token.actor,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "scope": token.scope,
    }
    statement = store.insert(_token).values(values).on_conflict_do_nothing(index_elements=["name"])
    with store.begin() as connection:
        count: int = connection.execute(select(func.count()).select_from(_token)).scalar_one()
        if count >= MOST_TOKENS:
            raise Conflict(f"There are {count} API tokens, the most allowed; revoke one first.")
        row = connection.execute(statement.returning(*_token.c)).first()
    if row is None:
        raise Conflict(f"There is an API token {token.name!r} already; choose another name.", name=token.name)
    return _token_of(row), secret


def find_token(store: Store, secret: str) -> ApiToken | None:
    with store.read() as connection:
        row = connection.execute(select(_token).where(_token.c.key == hashed(secret))).first()
    return None if row is None else _token_of(row)


def touch_token(store: Store, token: ApiToken, now: float) -> None:
    """Records that a token is in use."""
    with store.begin() as connection:
        connection.execute(update(_token).where(_token.c.id == token.id).values(used_at=now))


def read_tokens(store: Store) -> list[ApiToken]:
    """Every API token, by name."""
    with store.read() as connection:
        return [_token_of(row) for row in connection.execute(select(_token).order_by(_token.c.name))]


def revoke_token(store: Store, name: str) -> ApiToken:
    """Deletes a token: it opens nothing any more. Raises NotFound."""
    with store.begin() as connection:
        row = connection.execute(delete(_token).where(_token.c.name == name).returning(*_token.c)).first()
    if row is None:
        raise NotFound(f"There is no API token {name!r}.", name=name)
    return _token_of(row)


def _session_of(row: Row[Any]) -> Session:
    return Session(
        id=row.id,
        user=row.user,
        role=None if row.role is None else Role(row.role),
        source=row.source,
        created_at=row.created_at,
        used_at=row.used_at,
        address=row.address,
        agent=row.agent,
        scope=row.scope,
    )


def _token_of(row: Row[Any]) -> ApiToken:
    return ApiToken(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        actor=row.actor,
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        scope=row.scope,
    )
