"""One task with all its runs, the links between a task and its retries, and its messages.

Of captured messages the first of each attempt is kept, and different ones beside it. A removal is a task whose message
an action deleted from a queue: the action records it, and the receiver ends the task.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, delete, exists, func, literal_column, select, tuple_

from celery_monitor.core.captures import MOST_KEPT, merged
from celery_monitor.errors import NotFound
from celery_monitor.records.event import Event, Message
from celery_monitor.records.task import Lineage, Link, Task, TaskState
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import STATES
from celery_monitor.store.tasks.keys import from_key, to_key
from celery_monitor.store.tasks.rows import all_runs, other_runs, read_tasks
from celery_monitor.store.terms import cluster_id, cluster_ids, storable

_table = schema.task
_zero: ColumnElement[int] = literal_column("0")


def read_task(store: Store, task_id: str, cluster: str | None = None) -> Task:
    """One task with all its runs; where several clusters have the id, the newest. Raises NotFound."""
    with store.read() as connection:
        clusters = cluster_ids(connection, cluster) if storable(task_id) else []
        rows = [each for number in clusters for each in read_tasks(connection, _by_key(number, task_id))]
        if not rows:
            where = f" on cluster {cluster}" if cluster is not None else ""
            raise NotFound(f"no task {task_id!r} is in the record{where}; it may have expired", id=task_id)
        found = max(rows, key=lambda each: each.received or each.sent or 0.0)
        if found.pk is not None:
            found.runs = all_runs(other_runs(connection, found.pk), found.runs)
        return found


def _by_key(cluster: int, task_id: str) -> Select[Any]:
    return select(_table).where(_table.c.cluster_id == cluster, _table.c.key == to_key(task_id))


def read_lineage(store: Store, task: Task) -> Lineage:
    """The task that this one is a retry of, and its retries, the oldest first."""
    table = schema.retry
    with store.read() as connection:
        clusters = cluster_ids(connection, task.cluster)
        key = to_key(task.id)
        before = select(table.c.key).where(table.c.cluster_id.in_(clusters), table.c.new_key == key)
        before = before.where(table.c.key != key)  # without a retry under the same id
        old = connection.execute(before.order_by(table.c.at.desc()).limit(1)).scalar()
        after = select(table).where(table.c.cluster_id.in_(clusters), table.c.key == key)
        after = after.where(table.c.new_key != key).order_by(table.c.at)
        rows = connection.execute(after).all()
        states = _states(connection, clusters, [row.new_key for row in rows])
        links = tuple(
            Link(
                id=from_key(row.new_key),
                state=states.get(bytes(row.new_key)),
                at=row.at,
                fidelity=row.fidelity,
            )
            for row in rows
        )
    return Lineage(retry_of=from_key(old) if old is not None else None, retried_as=links)


def _states(connection: Connection, clusters: list[int], keys: list[bytes]) -> dict[bytes, TaskState]:
    statement = select(_table.c.key, _table.c.state).where(_table.c.cluster_id.in_(clusters), _table.c.key.in_(keys))
    return {bytes(row.key): STATES[row.state] for row in connection.execute(statement)}


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
    """Records that a person retries ``old_id`` as ``new_id``; False where that was recorded before.

    It is recorded before the message is sent, as a task that was sent without its link might be sent a second time.
    ``again_after``: seconds after which it may be recorded again, for a task that is sent again under its own id.
    ``first_only``: not where the task has another retry, even if that is recorded at the same moment.
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
    # Locked, as two people might check at the same time whether the other has retried it.
    connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.id == number).with_for_update())
    table, old, new = schema.retry, to_key(old_id), to_key(new_id)
    others = (table.c.cluster_id == number, table.c.key == old, table.c.new_key.not_in([old, new]))
    return connection.execute(select(table.c.at).where(*others).limit(1)).first() is not None


def unlink_retry(store: Store, cluster: str, old_id: str, new_id: str) -> None:
    """Deletes a link whose message the broker certainly did not accept."""
    table = schema.retry
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        mine = (table.c.cluster_id == number, table.c.key == to_key(old_id), table.c.new_key == to_key(new_id))
        connection.execute(delete(table).where(*mine))


DAY_SECONDS = 86_400.0
_CHUNK = 500
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Message).decode
_captured = schema.message


def read_message(store: Store, task: Task) -> Message | None:
    """The captured message of a task; ``None`` where there is none, or it has expired."""
    return read_messages(store, task.cluster, [task.id]).get(task.id)


def read_messages(store: Store, cluster: str, task_ids: Sequence[str]) -> dict[str, Message]:
    """The captured messages of these tasks, by the task's id."""
    found: dict[str, Message] = {}
    with store.read() as connection:
        numbers = cluster_ids(connection, cluster)
        for start in range(0, len(task_ids), _CHUNK):
            keys = [to_key(each) for each in task_ids[start : start + _CHUNK]]
            statement = select(_captured).where(_captured.c.cluster_id.in_(numbers), _captured.c.key.in_(keys))
            found.update((from_key(row.key), _message(row)) for row in connection.execute(statement))
    return found


def _message(row: Any) -> Message:
    return msgspec.structs.replace(_unpack(row.record), body=row.body)


def save_messages(store: Store, connection: Connection, cluster: int, events: Iterable[Event]) -> None:
    """Stores the messages of these events inside the caller's transaction. One that is stored already stays first."""
    announced = [(event.uuid, event.timestamp, event.message) for event in events if event.uuid and event.message]
    keys = {to_key(task_id) for task_id, _, _ in announced}
    stored = _stored(connection, cluster, keys)
    changed: dict[str, tuple[float, Message]] = {}
    for task_id, at, message in announced:
        key = to_key(task_id)
        if (before := stored.get(key)) is None:
            stored[key] = changed[task_id] = (at, message)
        elif (now := merged(before[1], message, _retries(connection, cluster, key, before[1]))) is not None:
            stored[key] = changed[task_id] = (max(at, before[0]), now)
    rows = [_row(cluster, task_id, at, message) for task_id, (at, message) in changed.items()]
    _upsert(store, connection, rows)


def _stored(connection: Connection, cluster: int, keys: Collection[bytes]) -> dict[bytes, tuple[float, Message]]:
    found: dict[bytes, tuple[float, Message]] = {}
    wanted = sorted(keys)
    for start in range(0, len(wanted), _CHUNK):
        mine = _captured.c.key.in_(wanted[start : start + _CHUNK])
        rows = connection.execute(select(_captured).where(_captured.c.cluster_id == cluster, mine))
        found.update((bytes(row.key), (row.at, _message(row))) for row in rows)
    return found


def _retries(connection: Connection, cluster: int, key: bytes, stored: Message) -> int | None:
    """The latest attempt of a task; only needed where its messages have no room left."""
    if len(stored.others) < MOST_KEPT - 1:
        return None
    task = schema.task.c
    statement = select(task.retries).where(task.cluster_id == cluster, task.key == key)
    return connection.execute(statement).scalars().first()


def _upsert(store: Store, connection: Connection, rows: Sequence[dict[str, object]]) -> None:
    if not rows:
        return
    statement = store.insert(_captured)
    new = statement.excluded
    changed = {name: new[name] for name in ("at", "size", "body", "record")}
    connection.execute(statement.on_conflict_do_update(index_elements=["cluster_id", "key"], set_=changed), rows)


def _row(cluster: int, task_id: str, at: float, message: Message) -> dict[str, object]:
    record = _pack(msgspec.structs.replace(message, body=None))
    size = len(record) + len(message.body or b"")
    return {
        "cluster_id": cluster,
        "key": to_key(task_id),
        "at": at,
        "size": size,
        "body": message.body,
        "record": record,
    }


def expire_messages(connection: Connection, cluster: int, settings: Settings, now: float, limit: int) -> int:
    """Deletes at most ``limit`` messages that are too old or above the limit of bytes; without ``capture``, all."""
    before = now - settings.keep_message_days * DAY_SECONDS if settings.capture else float("inf")
    oldest = select(_captured.c.key, _captured.c.at, _captured.c.size).where(_captured.c.cluster_id == cluster)
    oldest = oldest.order_by(_captured.c.at).limit(limit)
    surplus = _bytes(connection, cluster) - settings.keep_message_bytes
    keys = []
    for row in connection.execute(oldest):
        if row.at >= before and surplus <= 0:
            break
        keys.append((cluster, row.key))
        surplus -= row.size
    for start in range(0, len(keys), _CHUNK):
        mine = tuple_(_captured.c.cluster_id, _captured.c.key).in_(keys[start : start + _CHUNK])
        connection.execute(delete(_captured).where(mine))
    return len(keys)


def _bytes(connection: Connection, cluster: int) -> int:
    return int(
        connection.execute(select(func.sum(_captured.c.size)).where(_captured.c.cluster_id == cluster)).scalar() or 0
    )


def keep_message(store: Store, task: Task, message: Message, at: float, most_bytes: int) -> bool:
    """Stores a message that was read from the broker; False where its body is longer than ``most_bytes``."""
    if len(message.body or b"") > most_bytes:
        return False
    with store.begin() as connection:
        put_messages(store, connection, cluster_id(store, connection, task.cluster), {task.id: message}, at)
    return True


def put_messages(
    store: Store, connection: Connection, cluster: int, messages: Mapping[str, Message], at: float
) -> None:
    """Stores messages that were read from the broker, by task id, inside the caller's transaction."""
    rows = [_row(cluster, task_id, at, message) for task_id, message in messages.items()]
    _upsert(store, connection, rows)


_removal = schema.removal


class Removal(NamedTuple):
    """A task whose message an action deleted; the time, and the user."""

    id: str
    at: float
    text: str
    stored: bool  # the task is in the record


def record_removals(
    store: Store, cluster: str, ids: Sequence[str], text: str, at: float, messages: Mapping[str, Message]
) -> None:
    """Records that the messages of these tasks were removed, and stores ``messages`` as captured ones."""
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        for start in range(0, len(ids), _CHUNK):
            keys = {to_key(each) for each in ids[start : start + _CHUNK]}
            rows = [{"cluster_id": number, "key": key, "at": at, "text": text} for key in keys]
            statement = store.insert(_removal)
            new = statement.excluded
            changed = {"at": new.at, "text": new.text}
            connection.execute(
                statement.on_conflict_do_update(index_elements=["cluster_id", "key"], set_=changed), rows
            )
        put_messages(store, connection, number, messages, at)


def removals(connection: Connection, cluster: str, limit: int) -> list[Removal]:
    """The removals whose tasks have not been ended yet, by key."""
    task = schema.task.c
    stored = exists().where(task.cluster_id == _removal.c.cluster_id, task.key == _removal.c.key)
    statement = select(_removal.c.key, _removal.c.at, _removal.c.text, stored.label("stored"))
    mine = _removal.c.cluster_id.in_(cluster_ids(connection, cluster))
    rows = connection.execute(statement.where(mine).order_by(_removal.c.key).limit(limit))
    return [Removal(from_key(row.key), row.at, row.text, row.stored) for row in rows]


def awaits_removal(store: Store, cluster: str) -> bool:
    """Whether the receiver has not yet ended all recorded tasks whose messages were removed."""
    with store.read() as connection:
        return any(each.stored for each in removals(connection, cluster, _CHUNK))


def delete_removals(store: Store, cluster: str, done: Sequence[Removal]) -> None:
    """Deletes these, unless they were recorded again meanwhile."""
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        for start in range(0, len(done), _CHUNK):
            mine = [(number, to_key(each.id), each.at) for each in done[start : start + _CHUNK]]
            connection.execute(
                delete(_removal).where(tuple_(_removal.c.cluster_id, _removal.c.key, _removal.c.at).in_(mine))
            )
