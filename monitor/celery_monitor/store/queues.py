"""Queues in the record: their state, samples and pauses, and which begin to grow."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, func, select

from celery_monitor.records.queue import Pause, Queue, QueueSample
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, delete_value, put_value, read_values
from celery_monitor.store.tasks.rows import checked_time, cluster_names, numbers_of, storable
from celery_monitor.store.terms import cluster_id

SAMPLE_SECONDS = 60
PAUSED = "paused:"  # how the keys of pauses begin
RISING = "rising:"  # of the queues of a cluster that begin to grow


def save_queues(
    store: Store, cluster: str, queues: Sequence[Queue], at: float, rising: Sequence[str] | None = None
) -> None:
    """Stores the state of queues as sampled at ``at``, the largest depth of that minute, and which begin to grow."""
    if not queues:
        return
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        _save_queue_state(store, connection, number, queues, at)
        _save_queue_samples(store, connection, number, queues, at)
        if rising is not None:
            put_value(store, connection, f"{RISING}{cluster}", msgspec.json.encode(list(rising)).decode())


def _save_queue_state(store: Store, connection: Connection, cluster: int, queues: Sequence[Queue], at: float) -> None:
    statement = store.insert(schema.queue)
    mutable = ("ready", "unacked", "consumers", "oldest", "oldest_exact", "sampled_at", "workers")
    statement = statement.on_conflict_do_update(
        index_elements=["cluster_id", "name"], set_={name: statement.excluded[name] for name in mutable}
    )
    rows = [
        {
            "cluster_id": cluster,
            "name": queue.name,
            "ready": queue.ready,
            "unacked": queue.unacked,
            "consumers": queue.consumers,
            "oldest": queue.oldest,
            "oldest_exact": queue.oldest_exact,
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

    def largest(name: str) -> ColumnElement[int]:  # an unknown side must not win: max and greatest differ on it
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
        {
            "cluster_id": cluster,
            "name": queue.name,
            "at": minute,
            "ready": queue.ready,
            "unacked": queue.unacked,
            "consumers": queue.consumers,
            "oldest": queue.oldest,
        }
        for queue in queues
    ]
    connection.execute(statement, rows)


def save_pause(store: Store, pause: Pause) -> None:
    """Notes that a queue is paused, in the place of what was noted before."""
    with store.begin() as connection:
        put_value(store, connection, _pause_key(pause.cluster, pause.queue), msgspec.json.encode(pause).decode())


def end_pause(store: Store, cluster: str, queue: str) -> None:
    """Forgets that a queue is paused."""
    delete_value(store, _pause_key(cluster, queue))


def _pause_key(cluster: str, queue: str) -> str:
    return PAUSED + msgspec.json.encode([cluster, queue]).decode()


_names = msgspec.json.Decoder(tuple[str, ...]).decode


def read_queues(store: Store, cluster: str | None = None) -> list[Queue]:
    """Every queue as last sampled, by cluster and name."""
    table = schema.queue
    with store.read() as connection:
        names = cluster_names(connection)
        wanted = table.c.cluster_id.in_(numbers_of(connection, cluster))
        rows = connection.execute(select(table).where(wanted).order_by(table.c.cluster_id, table.c.name)).all()
    return [_queue(row, names) for row in rows]


def read_growing_queues(store: Store, cluster: str | None = None) -> set[tuple[str, str]]:
    """The queues that begin to grow, as cluster and name, by the samples of the last minute."""
    return {
        (place, name)
        for place, names in read_values(store, RISING).items()
        if cluster in (None, place)
        for name in msgspec.json.decode(names, type=list[str])
    }


def _queue(row: Row[Any], names: dict[int, str]) -> Queue:
    return Queue(
        cluster=names[row.cluster_id],
        name=row.name,
        ready=row.ready,
        unacked=row.unacked,
        consumers=row.consumers,
        oldest=row.oldest,
        oldest_exact=row.oldest_exact,
        sampled_at=row.sampled_at,
        workers=_names(row.workers),
    )


def read_queue_samples(store: Store, name: str, cluster: str, since: float) -> list[QueueSample]:
    """The queue minute by minute, the largest depth of each."""
    checked_time(since)
    if not storable(name):
        return []
    table = schema.queue_sample.c
    with store.read() as connection:
        wanted = (
            table.cluster_id.in_(numbers_of(connection, cluster)),
            table.name == name,
            table.at >= since // 60 * 60,
        )
        rows = connection.execute(
            select(table.at, table.ready, table.unacked, table.consumers, table.oldest)
            .where(*wanted)
            .order_by(table.at)
        )
        return [QueueSample(**row._mapping) for row in rows]


def read_pauses(store: Store, cluster: str | None = None) -> dict[tuple[str, str], Pause]:
    """The queues that are paused, by cluster and name."""
    found = [msgspec.json.decode(text, type=Pause) for text in read_values(store, PAUSED).values()]
    return {(pause.cluster, pause.queue): pause for pause in found if cluster in (None, pause.cluster)}
