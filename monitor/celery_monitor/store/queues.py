"""Queues in the record: state, samples, pauses, which begin to grow; throughput and wait by queue or worker."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, func, select

from celery_monitor.records.queue import Pause, Queue, QueueSample
from celery_monitor.records.series import WaitPercentiles
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, delete_value, put_value, read_values
from celery_monitor.store.rollups.series import SINCE_RECEIPT, merged_sketches, record_began, wait_percentiles
from celery_monitor.store.terms import OTHER, cluster_id, cluster_ids, cluster_names, texts

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


MINUTE = 60
Key = tuple[str, str]  # cluster, name of the queue or worker


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """Runs in a span of time: how many were received, succeeded and failed."""

    received: int = 0
    succeeded: int = 0
    failed: int = 0

    @property
    def failure_share(self) -> float | None:
        """Failed among those that succeeded or failed; ``None`` where none did."""
        ended = self.succeeded + self.failed
        return self.failed / ended if ended else None


class Flows(msgspec.Struct, frozen=True, kw_only=True):
    """Flow by cluster and name. ``unnamed`` counts runs of an unknown queue or worker, or of OTHER."""

    seconds: float
    by_key: dict[Key, Flow]
    unnamed: int = 0

    def of(self, cluster: str, name: str) -> Flow | None:
        """``None`` where nothing is recorded and some runs are unnamed, which may be of this queue or worker."""
        found = self.by_key.get((cluster, name))
        return found if found is not None or self.unnamed else Flow()


def read_flows(
    store: Store, by: Literal["queue", "worker"], *, since: float, now: float, cluster: str | None = None
) -> Flows:
    """Runs by queue or by worker from the minute of ``since`` on; for spans of up to some hours."""
    table = schema.rollup
    place = table.c.queue_id if by == "queue" else table.c.worker_id
    began = int(since // MINUTE * MINUTE)
    sums = [func.sum(table.c[name]).label(name) for name in ("received", "succeeded", "failed")]
    statement = select(table.c.cluster_id, place.label("place"), *sums).where(
        table.c.resolution == MINUTE, table.c.at >= began
    )
    with store.read() as connection:
        clusters = cluster_names(connection, cluster)
        rows = connection.execute(
            statement.where(table.c.cluster_id.in_(clusters)).group_by(table.c.cluster_id, place)
        ).all()
        names = texts(connection, [row.place for row in rows])
    known = max(began, record_began(store) or 0.0)  # the record may be younger than the span
    return Flows(
        seconds=max(1.0, now - known),
        by_key={
            (clusters[row.cluster_id], names[row.place]): Flow(
                received=row.received, succeeded=row.succeeded, failed=row.failed
            )
            for row in rows
            if names.get(row.place, OTHER) != OTHER
        },
        unnamed=sum(row.received for row in rows if names.get(row.place, OTHER) == OTHER),
    )


def read_waits(store: Store, *, since: float, cluster: str | None = None) -> dict[Key, WaitPercentiles]:
    """Wait of tasks by the queue they came from, from the minute of ``since`` on."""
    table = schema.rollup.c
    began = int(since // MINUTE * MINUTE)
    found: dict[tuple[str, int], WaitPercentiles | None] = {}
    with store.read() as connection:
        for number, name in cluster_names(connection, cluster).items():
            wanted = [table.resolution == MINUTE, table.at >= began, table.cluster_id == number]
            sketches = merged_sketches(connection, wanted, "wait", "queue_id")
            counts = select(table.queue_id, SINCE_RECEIPT.label("starts")).where(*wanted).group_by(table.queue_id)
            since_receipt = {row.queue_id: int(row.starts) for row in connection.execute(counts)}
            for queue, sketch in sketches.items():
                found[name, queue] = wait_percentiles(sketch, since_receipt[queue])
        names = texts(connection, {queue for _, queue in found})
    return {(name, names[queue]): each for (name, queue), each in found.items() if each is not None and queue in names}


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
