"""Queues in the record: their names, state, samples, pauses, and which begin to grow."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, func, select

from celery_monitor.records.queue import Pause, Queue, QueueSample
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, delete_value, put_value, read_values
from celery_monitor.store.terms import cluster_id, cluster_ids, cluster_names, texts

SAMPLE_SECONDS = 60
MOST_QUEUES = 5000  # measured and recorded of one cluster
IDLE_SECONDS = 3600.0  # without a measurement, after which a queue makes room for a new one
_CHUNK = 1000
_SAMPLED = ("name", "ready", "unacked", "consumers", "oldest")
# Prefixes of keys in ``meta``.
PAUSED = "paused:"
RISING = "rising:"  # the queues of a cluster that begin to grow


def save_queues(
    store: Store, cluster: str, queues: Sequence[Queue], at: float, rising: Sequence[str] | None = None
) -> None:
    """Stores the state of queues sampled at ``at``, the largest depth of that minute, and which begin to grow."""
    if not queues:
        return
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        queues = _within_bound(connection, number, queues, at)
        if not queues:
            return
        _save_queue_state(store, connection, number, queues, at)
        _save_queue_samples(store, connection, number, queues, at)
        if rising is not None:
            put_value(store, connection, f"{RISING}{cluster}", msgspec.json.encode(list(rising)).decode())


def _within_bound(connection: Connection, cluster: int, queues: Sequence[Queue], at: float) -> Sequence[Queue]:
    """The queues without new ones beyond MOST_QUEUES; those not measured for IDLE_SECONDS make room for new ones."""
    table = schema.queue.c
    mine = table.cluster_id == cluster
    names = [queue.name for queue in queues]
    known = {
        name
        for start in range(0, len(names), _CHUNK)
        for name in connection.execute(
            select(table.name).where(mine, table.name.in_(names[start : start + _CHUNK]))
        ).scalars()
    }
    new = len(queues) - len(known)
    if not new:
        return queues
    counted = select(func.count()).select_from(schema.queue).where(mine)
    room = MOST_QUEUES - int(connection.execute(counted).scalar_one())
    if new > room:
        idle = select(table.name).where(mine, table.sampled_at < at - IDLE_SECONDS).order_by(table.sampled_at)
        gone = list(connection.execute(idle.limit(min(new - room, _CHUNK))).scalars())
        connection.execute(delete(schema.queue).where(mine, table.name.in_(gone)))
        room += len(gone)
    kept = []
    for queue in queues:
        if queue.name in known or room > 0:
            kept.append(queue)
            room -= queue.name not in known
    return kept


def _save_queue_state(store: Store, connection: Connection, cluster: int, queues: Sequence[Queue], at: float) -> None:
    statement = store.insert(schema.queue)
    mutable = ("ready", "unacked", "consumers", "oldest", "oldest_exact", "sampled_at", "workers")
    statement = statement.on_conflict_do_update(
        index_elements=["cluster_id", "name"], set_={name: statement.excluded[name] for name in mutable}
    )
    rows = [
        {
            "cluster_id": cluster,
            **{name: getattr(queue, name) for name in (*_SAMPLED, "oldest_exact")},
            "sampled_at": at,
            "workers": msgspec.json.encode(queue.workers).decode(),
        }
        for queue in queues
    ]
    connection.execute(statement, rows)


def _save_queue_samples(store: Store, connection: Connection, cluster: int, queues: Sequence[Queue], at: float) -> None:
    table = schema.queue_sample
    statement = store.insert(table)
    greatest = func.max if store.is_sqlite else func.greatest
    new = statement.excluded

    def largest(name: str) -> ColumnElement[int]:  # coalesced, as max() and greatest() treat NULL differently
        return greatest(func.coalesce(table.c[name], new[name]), func.coalesce(new[name], table.c[name]))

    statement = statement.on_conflict_do_update(
        index_elements=["cluster_id", "name", "at"],
        set_={
            "ready": largest("ready"),
            "unacked": largest("unacked"),
            "consumers": new.consumers,
            "oldest": new.oldest,
        },
    )
    minute = int(at // SAMPLE_SECONDS * SAMPLE_SECONDS)
    rows = [
        {"cluster_id": cluster, "at": minute, **{name: getattr(queue, name) for name in _SAMPLED}} for queue in queues
    ]
    connection.execute(statement, rows)


def save_pause(store: Store, pause: Pause) -> None:
    """Records that a queue is paused."""
    with store.begin() as connection:
        put_value(store, connection, _pause_key(pause.cluster, pause.queue), msgspec.json.encode(pause).decode())


def end_pause(store: Store, cluster: str, queue: str) -> None:
    """Records that a queue is no longer paused."""
    delete_value(store, _pause_key(cluster, queue))


def _pause_key(cluster: str, queue: str) -> str:
    return PAUSED + msgspec.json.encode([cluster, queue]).decode()


_names = msgspec.json.Decoder(tuple[str, ...]).decode


def read_queues(store: Store, cluster: str | None = None) -> list[Queue]:
    """Every queue as last sampled, by cluster and name."""
    table = schema.queue
    with store.read() as connection:
        names = cluster_names(connection)
        wanted = table.c.cluster_id.in_(cluster_ids(connection, cluster))
        rows = connection.execute(select(table).where(wanted).order_by(table.c.cluster_id, table.c.name)).all()
    return [_queue(row, names) for row in rows]


def read_growing_queues(store: Store, cluster: str | None = None) -> set[tuple[str, str]]:
    """(cluster, name) of the queues that begin to grow, by the samples of the last minute."""
    return {
        (of, name)
        for of, names in read_values(store.whole, RISING).items()
        if cluster in (None, of)
        for name in msgspec.json.decode(names, type=list[str])
        if store.limits.scope.has_queue(of, name)
    }


def _queue(row: Row[Any], names: dict[int, str]) -> Queue:
    return Queue(
        **{name: getattr(row, name) for name in (*_SAMPLED, "oldest_exact", "sampled_at")},
        cluster=names[row.cluster_id],
        workers=_names(row.workers),
    )


def read_pauses(store: Store, cluster: str | None = None) -> dict[tuple[str, str], Pause]:
    """The queues that are paused, by cluster and name."""
    scope = store.limits.scope
    found = [msgspec.json.decode(text, type=Pause) for text in read_values(store.whole, PAUSED).values()]
    inside = [each for each in found if scope.has_queue(each.cluster, each.queue)]
    return {(pause.cluster, pause.queue): pause for pause in inside if cluster in (None, pause.cluster)}


Key = tuple[str, str]  # cluster, name of the queue


def recorded_queue_names(store: Store, cluster: str) -> set[str]:
    """The queues of all recorded tasks of a cluster."""
    count = schema.task_count.c
    with store.read() as connection:
        mine = (count.cluster_id.in_(cluster_names(connection, cluster)), count["count"] > 0)
        numbers = connection.execute(select(count.queue_id).where(*mine).distinct()).scalars()
        return set(texts(connection, numbers).values())


def read_depths(
    store: Store, *, since: float, cluster: str | None = None, names: Collection[str] | None = None
) -> dict[Key, list[QueueSample]]:
    """The samples of every queue, or of those of a few names, from ``since`` on, the oldest first."""
    table = schema.queue_sample
    found: dict[Key, list[QueueSample]] = defaultdict(list)
    with store.read() as connection:
        clusters = cluster_names(connection, cluster)
        statement = (
            select(table)
            .where(table.c.cluster_id.in_(clusters), table.c.at >= int(since))
            .order_by(table.c.cluster_id, table.c.name, table.c.at)
        )
        if names is not None:
            statement = statement.where(table.c.name.in_(names))
        for row in connection.execute(statement).all():
            sample = {name: getattr(row, name) for name in QueueSample.__struct_fields__}
            found[clusters[row.cluster_id], row.name].append(QueueSample(**sample))
    return dict(found)
