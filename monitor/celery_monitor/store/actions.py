"""The audit trail of actions."""

from itertools import takewhile
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, select

from celery_monitor.errors import InvalidInput
from celery_monitor.records.page import Action, ListPage
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.keys import Cursor, read_cursor, write_cursor
from celery_monitor.store.terms import cluster_id, cluster_ids, cluster_names

_COPIED = ("at", "actor", "action", "target", "query", "count", "reason", "outcome", "message")
NO_CLUSTER = 0  # of an action on the dashboard itself


def record_action(store: Store, action: Action) -> Action:
    """Appends an action; returns it with its number."""
    with store.begin() as connection:
        return put_action(store, connection, action)


def put_action(store: Store, connection: Connection, action: Action) -> Action:
    """Appends an action inside the caller's transaction."""
    values = {
        **{name: getattr(action, name) for name in _COPIED},
        "cluster_id": NO_CLUSTER if action.cluster is None else cluster_id(store, connection, action.cluster),
        "parameters": msgspec.json.encode(action.parameters).decode(),
    }
    number = connection.execute(schema.action.insert().values(values)).inserted_primary_key
    return msgspec.structs.replace(action, id=number[0] if number else None)


MOST_ROWS = 1000
MOST_DELETED = 500  # at once


def delete_old_actions(connection: Connection, before: float) -> bool:
    """Deletes the oldest actions from before that time, a few at once, never the newest; whether there may be more."""
    table = schema.action.c
    rows = connection.execute(select(table.id, table.at).order_by(table.id).limit(MOST_DELETED + 1)).all()
    old = list(takewhile(lambda row: row.at < before, rows[:-1]))
    if old:
        connection.execute(delete(schema.action).where(table.id <= old[-1].id))
    return len(old) == MOST_DELETED


_parameters = msgspec.json.Decoder(dict[str, object]).decode


def read_actions(
    store: Store,
    *,
    limit: int = 50,
    cursor: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    outcome: str | None = None,
    target: str | None = None,
    cluster: str | None = None,
) -> ListPage[Action]:
    """Actions, the newest first. Raises InvalidInput for an invalid cursor or limit."""
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidInput(f"a page has 1 to {MOST_ROWS} actions, not {limit}")
    place = read_cursor(cursor, "actions") if cursor is not None else None
    older = place is None or place.direction == "next"
    table = schema.action
    statement = select(table).order_by(table.c.id.desc() if older else table.c.id.asc()).limit(limit + 1)
    if place is not None:
        statement = statement.where(table.c.id < place.id if older else table.c.id > place.id)
    for column, value in ((table.c.actor, actor), (table.c.outcome, outcome), (table.c.target, target)):
        if value is not None:
            statement = statement.where(column == value)
    if action is not None:
        statement = statement.where(_named(table.c.action, action))
    with store.read() as connection:
        if cluster is not None:
            statement = statement.where(table.c.cluster_id.in_(cluster_ids(connection, cluster)))
        names = cluster_names(connection)
        rows = connection.execute(statement).all()
    more, rows = len(rows) > limit, rows[:limit][:: 1 if older else -1]
    return ListPage(
        items=[_action(row, names) for row in rows],
        next=_beside("next", rows[-1]) if rows and (more or not older) else None,
        previous=_beside("previous", rows[0]) if rows and (more if not older else place is not None) else None,
    )


def _named(column: ColumnElement[str], action: str) -> ColumnElement[bool]:
    """``worker.shutdown``, or every action on workers for ``worker.*``."""
    if action.endswith(".*"):
        return column.startswith(action[:-1], autoescape=True)
    return column == action


def _beside(direction: str, row: Row[Any]) -> str:
    return write_cursor(Cursor("actions", direction, row.id, row.id))  # type: ignore[arg-type]


def _action(row: Row[Any], names: dict[int, str]) -> Action:
    values = {**row._mapping}
    values["cluster"] = names.get(values.pop("cluster_id"))
    values["parameters"] = _parameters(values["parameters"])
    return Action(**values)
