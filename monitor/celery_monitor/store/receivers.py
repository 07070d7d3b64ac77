"""Receivers in the record: their health, crashes, standbys and gaps; the clusters; and the use that sets their pace."""

import secrets
import time
from collections.abc import Callable

import msgspec
from sqlalchemy import ColumnElement, Connection, or_, select, update

from celery_monitor.records.receiver import (
    SILENT_RECEIVER_SECONDS,
    Gap,
    ReceiverEnding,
    ReceiverHealth,
    Reconciliation,
    StandbyReceiver,
)
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, delete_value, put_value, read_value, read_values
from celery_monitor.store.terms import checked_time, cluster_id, cluster_ids, cluster_names

PROOF = "written"
PROOF_SECONDS = 0.1
USE = "used"
USE_SECONDS = 15.0  # for which a use of the dashboard counts
# Prefixes of keys in ``meta``.
ENDING = "ending:"
STANDBY = "standby:"
_pack = msgspec.msgpack.Encoder().encode
unpack_health = msgspec.msgpack.Decoder(ReceiverHealth).decode


def save_health(store: Store, health: ReceiverHealth, is_current: Callable[[], bool] = lambda: True) -> None:
    """Stores what the receiver of a cluster reports of itself, if it is still so once the record can be written."""
    with store.begin() as connection:
        number = cluster_id(store, connection, health.cluster)
        if is_current():
            put_health(store, connection, number, health)


def put_health(store: Store, connection: Connection, cluster: int, health: ReceiverHealth) -> None:
    """Stores it inside the caller's transaction."""
    statement = store.insert(schema.receiver).values(cluster_id=cluster, record=_pack(health))
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["cluster_id", "shard"], set_={"record": statement.excluded.record}
        )
    )


def save_ending(store: Store, ending: ReceiverEnding) -> None:
    """Records that a receiver's process ended unexpectedly."""
    with store.begin() as connection:
        put_value(store, connection, f"{ENDING}{ending.cluster}", msgspec.json.encode(ending).decode())


def save_standby(store: Store, standby: StandbyReceiver) -> None:
    """Records that a receiver stands by."""
    with store.begin() as connection:
        put_value(store, connection, _standby_key(standby), msgspec.json.encode(standby).decode())


def end_standby(store: Store, standby: StandbyReceiver) -> None:
    """Records that a receiver no longer stands by."""
    delete_value(store, _standby_key(standby))


def _standby_key(standby: StandbyReceiver) -> str:
    return STANDBY + msgspec.json.encode([standby.cluster, standby.host, standby.pid]).decode()


def open_gap(store: Store, cluster: str, began: float, cause: str) -> int:
    """Records that events may be missing from ``began`` on; returns the number to close the gap with."""
    with store.begin() as connection:
        values = {"cluster_id": cluster_id(store, connection, cluster), "began": began, "cause": cause}
        key = connection.execute(schema.gap.insert().values(values)).inserted_primary_key
        number: int = key[0] if key else 0
        return number


def set_gap_start(store: Store, gap_id: int, began: float) -> None:
    """Corrects the beginning of a gap to an earlier time."""
    with store.begin() as connection:
        connection.execute(update(schema.gap).where(schema.gap.c.id == gap_id).values(began=began))


def close_gap(store: Store, gap_id: int, ended: float, dropped: int | None = None) -> None:
    """Records when the gap ended, and how many events are missing (``None``: unknown)."""
    with store.begin() as connection:
        connection.execute(update(schema.gap).where(schema.gap.c.id == gap_id).values(ended=ended, dropped=dropped))


def put_reconciliation(connection: Connection, gap: Gap) -> None:
    """Stores the reconciliation of a gap, in the transaction that stores the events concluded from it."""
    text = msgspec.json.encode(gap.reconciliation).decode()
    connection.execute(update(schema.gap).where(schema.gap.c.id == gap.id).values(reconciliation=text))


def read_secret(store: Store, key: str) -> str:
    """A random secret, generated once; the same in every process on this database."""
    table = schema.meta
    stored = read_value(store, key)  # without a write, as the database may be read-only at the moment
    if stored is not None:
        return stored
    with store.begin() as connection:
        fresh = {"key": key, "value": secrets.token_urlsafe(32)}
        connection.execute(store.insert(table).values(fresh).on_conflict_do_nothing())
        value: str = connection.execute(select(table.c.value).where(table.c.key == key)).scalar_one()
        return value


def check_writable(store: Store) -> None:
    """Writes one small row. Raises StoreUnavailable within PROOF_SECONDS."""
    with store.begin(PROOF_SECONDS) as connection:
        put_value(store, connection, PROOF, f"{time.time():.3f}")


_reconciliation = msgspec.json.Decoder(Reconciliation).decode


def read_clusters(store: Store) -> list[str]:
    """Every cluster of the record, the oldest first."""
    with store.read() as connection:
        return list(cluster_names(connection).values())


def is_caught_up(store: Store, cluster: str, now: float) -> bool:
    """Whether the record has all events up to now: see ReceiverHealth.is_caught_up."""
    return any(
        each.cluster == cluster and each.is_caught_up(now, SILENT_RECEIVER_SECONDS)
        for each in read_receiver_records(store)
    )


def read_receiver_records(store: Store) -> list[ReceiverHealth]:
    """The last report of each cluster's receiver; for who sees a part of the cluster, without names and errors."""
    table, scope = schema.receiver.c, store.limits.scope
    with store.whole.read() as connection:
        rows = connection.execute(select(table.record).where(table.shard == 1).order_by(table.cluster_id))
        found = [unpack_health(record) for record in rows.scalars()]
    inside = [each for each in found if scope.allows("cluster", each.cluster)]
    return [without_names(each) for each in inside] if scope.is_partial else inside


def without_names(health: ReceiverHealth) -> ReceiverHealth:
    """Whether events arrive, and nothing about hosts, senders or the broker."""
    shown = ("cluster", "connected", "source", "last_event_at", "lag_seconds", "updated_at", "kept_until")
    return ReceiverHealth(**{name: getattr(health, name) for name in shown})


def read_receiver_health(store: Store, cluster: str) -> ReceiverHealth | None:
    """The last report of one cluster's receiver; ``None`` before the first."""
    return next((each for each in read_receiver_records(store) if each.cluster == cluster), None)


def read_standby_receivers(store: Store, since: float) -> list[StandbyReceiver]:
    """The standby receivers that have reported since then, by cluster and host."""
    texts = read_values(store.whole, STANDBY).values()
    found = [msgspec.json.decode(text, type=StandbyReceiver) for text in texts]
    return [each for each in found if each.updated_at >= since and store.limits.scope.covers(each.cluster)]


def read_endings(store: Store, since: float) -> list[ReceiverEnding]:
    """The receivers whose process ended unexpectedly since then, by cluster."""
    texts = read_values(store.whole, ENDING).values()
    found = [msgspec.json.decode(text, type=ReceiverEnding) for text in texts]
    return [each for each in found if each.at >= since and store.limits.scope.covers(each.cluster)]


def read_open_gaps(store: Store, cluster: str) -> list[Gap]:
    """The open gaps of a cluster, the oldest first."""
    with store.read() as connection:
        found = gaps_between(connection, 0.0, None, cluster)
    return [gap for gap in found if gap.ended is None]


def read_gaps(store: Store, since: float, cluster: str | None = None) -> list[Gap]:
    """The gaps that ended after ``since`` or are open, the oldest first."""
    with store.read() as connection:
        return gaps_between(connection, checked_time(since), None, cluster)


def gaps_between(connection: Connection, since: float, until: float | None, cluster: str | None) -> list[Gap]:
    """The gaps that overlap with a span, the oldest first."""
    table = schema.gap
    wanted: list[ColumnElement[bool]] = [table.c.cluster_id.in_(cluster_ids(connection, cluster))]
    wanted.append(or_(table.c.ended.is_(None), table.c.ended >= since))
    if until is not None:
        wanted.append(table.c.began < until)
    names = cluster_names(connection)
    rows = connection.execute(select(table).where(*wanted).order_by(table.c.began))
    return [
        Gap(
            **{name: getattr(row, name) for name in ("id", "began", "ended", "cause", "dropped")},
            cluster=names[row.cluster_id],
            reconciliation=_reconciliation(row.reconciliation) if row.reconciliation else None,
        )
        for row in rows
    ]


def note_use(store: Store) -> None:
    """Records that somebody uses the dashboard now. Raises StoreUnavailable."""
    with store.begin() as connection:
        put_value(store, connection, USE, f"{time.time():.3f}")


def last_use(store: Store) -> str | None:
    """The last use of the dashboard: another text each time; ``None`` before the first. Raises StoreUnavailable."""
    return read_value(store, USE)
