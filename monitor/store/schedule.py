"""What beat is to send, as it was last told, and which tasks it may have sent."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import delete
from sqlalchemy import select

from monitor.errors import NotFound
from monitor.records import BeatHealth
from monitor.records import ScheduledRun
from monitor.records import ScheduleEntry
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.load import numbers_of
from monitor.store.load import storable
from monitor.store.load import term_ids
from monitor.store.rows import STATES
from monitor.store.terms import cluster_id
from monitor.store.terms import texts

MOST_RUNS = 1000
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(ScheduleEntry).decode
_task = schema.task.c
_table = schema.schedule


def save_schedule(store: Store, cluster: str, entries: Sequence[ScheduleEntry], at: float) -> None:
    """Puts these in the place of all that were known of the cluster."""
    unique = {entry.name.replace("\0", "\ufffd"): entry for entry in entries}
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        connection.execute(delete(_table).where(_table.c.cluster_id == number))
        rows = [{"cluster_id": number, "name": name, "record": _pack(entry)} for name, entry in unique.items()]
        if rows:
            connection.execute(_table.insert(), rows)
        asked = store.insert(schema.meta).values(key=_asked_key(cluster), value=repr(at))
        connection.execute(asked.on_conflict_do_update(index_elements=["key"], set_={"value": asked.excluded.value}))


def schedule(store: Store, cluster: str | None = None) -> list[ScheduleEntry]:
    """Every entry, by cluster and name."""
    with store.read() as connection:
        wanted = _table.c.cluster_id.in_(numbers_of(connection, cluster))
        rows = connection.execute(select(_table.c.record).where(wanted).order_by(_table.c.cluster_id, _table.c.name))
        return [_unpack(record) for record in rows.scalars()]


def schedule_entry(store: Store, name: str, cluster: str) -> ScheduleEntry:
    """Raises NotFound."""
    found = [entry for entry in schedule(store, cluster) if entry.name == name]
    if not found:
        raise NotFound(f"the schedule of {cluster} has no entry {name!r}", name=name)
    return found[0]


def schedule_heard_at(store: Store, cluster: str) -> float | None:
    """When the schedule of a cluster was last told; ``None``: never, so whether there is one is not known."""
    with store.read() as connection:
        value = connection.execute(select(schema.meta.c.value).where(schema.meta.c.key == _asked_key(cluster))).scalar()
    return None if value is None else float(value)


def beat_health(store: Store, cluster: str) -> BeatHealth:
    """What the receiver last found out of beat; nothing known where it never looked."""
    with store.read() as connection:
        value = connection.execute(select(schema.meta.c.value).where(schema.meta.c.key == _beat_key(cluster))).scalar()
    return BeatHealth(cluster=cluster) if value is None else msgspec.json.decode(value, type=BeatHealth)


def save_beat_health(store: Store, health: BeatHealth) -> None:
    row = {"key": _beat_key(health.cluster), "value": msgspec.json.encode(health).decode()}
    with store.begin() as connection:
        insert = store.insert(schema.meta).values(**row)
        connection.execute(insert.on_conflict_do_update(index_elements=["key"], set_={"value": insert.excluded.value}))


def entry_runs(store: Store, entry: ScheduleEntry, since: float, limit: int = MOST_RUNS) -> list[ScheduledRun]:
    """Tasks with the name and the arguments of an entry, the newest first, of the ``limit`` newest of that name."""
    if not storable(entry.task):
        return []
    with store.read() as connection:
        names = term_ids(connection, "name", [entry.task])
        statement = (
            select(_task.key, _task.sent, _task.seen, _task.state, _task.client_id, _task.args, _task.kwargs)
            .where(_task.name_id.in_(names), _task.seen >= since)
            .where(_task.cluster_id.in_(numbers_of(connection, entry.cluster)))
            .order_by(_task.seen.desc(), _task.id.desc())
            .limit(limit)
        )
        rows = [row for row in connection.execute(statement) if _is_of(row, entry)]
        clients = texts(connection, {row.client_id for row in rows})
    return [
        ScheduledRun(
            id=from_key(row.key),
            at=row.sent if row.sent is not None else row.seen,
            state=STATES[row.state],
            client=clients.get(row.client_id),
        )
        for row in rows
    ]


def _is_of(row: Any, entry: ScheduleEntry) -> bool:
    return (row.args is None or _inside(row.args) == _inside(entry.args)) and row.kwargs in {None, entry.kwargs}


def _inside(args: str) -> str:
    """Beat sends a list where others send a tuple: ``['a']`` and ``('a',)`` are the same arguments."""
    return args[1:-1].removesuffix(",")


def _asked_key(cluster: str) -> str:
    return f"schedule asked: {cluster}"


def _beat_key(cluster: str) -> str:
    return f"beat: {cluster}"
