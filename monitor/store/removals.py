"""Tasks whose messages were removed from a queue by us: noted by whoever did it, concluded by the receiver."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import exists
from sqlalchemy import select
from sqlalchemy import tuple_

from monitor.records import Message
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.keys import to_key
from monitor.store.load import numbers_of
from monitor.store.messages import put_messages
from monitor.store.terms import cluster_id

_CHUNK = 500
_table = schema.removal


class Removal(NamedTuple):
    """One task, when its message was removed, and what to say of it."""

    id: str
    at: float
    text: str
    stored: bool  # the record has the task


def note_removals(
    store: Store, cluster: str, ids: Sequence[str], text: str, at: float, messages: Mapping[str, Message]
) -> None:
    """Notes that the messages of these tasks are gone, and keeps those of ``messages`` as captured ones."""
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        for start in range(0, len(ids), _CHUNK):
            keys = {to_key(each) for each in ids[start : start + _CHUNK]}
            rows = [{"cluster_id": number, "key": key, "at": at, "text": text} for key in keys]
            statement = store.insert(_table)
            new = statement.excluded
            changed = {"at": new.at, "text": new.text}
            connection.execute(
                statement.on_conflict_do_update(index_elements=["cluster_id", "key"], set_=changed), rows
            )
        put_messages(store, connection, number, messages, at)


def removals(connection: Connection, cluster: str, limit: int) -> list[Removal]:
    """Those that are not concluded yet, by key."""
    task = schema.task.c
    known = exists().where(task.cluster_id == _table.c.cluster_id, task.key == _table.c.key)
    statement = select(_table.c.key, _table.c.at, _table.c.text, known.label("stored"))
    mine = _table.c.cluster_id.in_(numbers_of(connection, cluster))
    rows = connection.execute(statement.where(mine).order_by(_table.c.key).limit(limit))
    return [Removal(from_key(row.key), row.at, row.text, row.stored) for row in rows]


def forget_removals(store: Store, cluster: str, done: Sequence[Removal]) -> None:
    """After these were concluded. One that was noted again meanwhile stays."""
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        for start in range(0, len(done), _CHUNK):
            mine = [(number, to_key(each.id), each.at) for each in done[start : start + _CHUNK]]
            connection.execute(delete(_table).where(tuple_(_table.c.cluster_id, _table.c.key, _table.c.at).in_(mine)))
