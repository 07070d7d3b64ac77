"""Sessions and API tokens, on SQLite and on PostgreSQL."""

import pytest
from sqlalchemy import select

from celery_monitor.errors import NotFound
from celery_monitor.records.user import ApiToken, Role, Session
from celery_monitor.store import schema
from celery_monitor.store.accounts import users
from celery_monitor.store.engine import Store
from tests.factories import NOW


def make_session(user: str = "ada", used: float = NOW, created: float = NOW, role: Role | None = None) -> Session:
    return Session(
        id="",
        user=user,
        role=role,
        source="password",
        created_at=created,
        used_at=used,
        address="192.0.2.7",
        agent="Browser/7",
    )


def test_session_is_found_by_its_secret_alone(store: Store) -> None:
    secret = users.open_session(store, make_session(role=Role.OPERATOR))
    found = users.find_session(store, secret)
    assert found is not None
    assert (found.user, found.role, found.address, found.agent) == ("ada", Role.OPERATOR, "192.0.2.7", "Browser/7")
    assert users.find_session(store, found.id) is None
    with store.read() as connection:
        (row,) = connection.execute(select(schema.user_session)).all()
    assert secret not in str(row)


def test_sessions_end_one_by_one_all_of_a_user_or_by_age(store: Store) -> None:
    for user, used in (("ada", NOW), ("ada", NOW - 10), ("ned", NOW - 500), ("vera", NOW)):
        users.open_session(store, make_session(user, used))
    (first, *_) = users.read_sessions(store, "ada")
    users.end_session(store, first.id)
    with pytest.raises(NotFound):
        users.end_session(store, first.id)
    assert users.end_sessions(store, "ada") == 1
    assert users.delete_expired(store, used_before=NOW - 100, created_before=0.0) == 1
    assert [each.user for each in users.read_sessions(store)] == ["vera"]


def test_one_user_keeps_a_bounded_number_of_sessions_the_newest(store: Store) -> None:
    for at in range(users.MOST_SESSIONS_OF_USER + 5):
        users.open_session(store, make_session(used=NOW + at))
    kept = users.read_sessions(store)
    assert len(kept) == users.MOST_SESSIONS_OF_USER
    assert min(each.used_at for each in kept) == NOW + 5


def test_token_is_found_by_its_secret_alone(store: Store) -> None:
    token = ApiToken(id=0, name="ci", role=Role.OPERATOR, actor="root", created_at=NOW, expires_at=NOW + 60)
    made, secret = users.make_token(store, token)
    assert users.find_token(store, secret) == made
    assert users.find_token(store, "cmt_other") is None
    users.touch_token(store, made, NOW + 5)
    (read,) = users.read_tokens(store)
    assert (read.used_at, read.expires_at) == (NOW + 5, NOW + 60)
    assert users.revoke_token(store, "ci").name == "ci"
    assert users.find_token(store, secret) is None
