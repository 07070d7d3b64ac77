"""Small writes that are not task records: actions, lineage, workers, queues, the receiver's health, gaps."""

import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence

import msgspec
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy import update

from monitor.records import Action
from monitor.records import Gap
from monitor.records import Pause
from monitor.records import Queue
from monitor.records import ReceiverEnding
from monitor.records import ReceiverHealth
from monitor.records import StandbyReceiver
from monitor.records import Worker
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import to_key
from monitor.store.terms import cluster_id

SAMPLE_SECONDS = 60
PROOF = "written"
PROOF_SECONDS = 0.1
NO_CLUSTER = 0  # of an action that concerns the dashboard alone
PAUSED = "paused:"  # how the keys of pauses begin
RISING = "rising:"  # of the queues of a cluster that begin to grow
ENDING = "ending:"  # of receivers that ended by themselves
STANDBY = "standby:"  # and those of receivers that stand by
_WORKERS_LOCK = 1_296_848_211  # with a cluster's number, of an advisory lock
_pack = msgspec.msgpack.Encoder().encode
unpack_worker = msgspec.msgpack.Decoder(Worker).decode
unpack_health = msgspec.msgpack.Decoder(ReceiverHealth).decode


def record_action(store: Store, action: Action) -> Action:
    """Appends to the trail; gives the action back with its number."""
    with store.begin() as connection:
        return put_action(store, connection, action)


def put_action(store: Store, connection: Connection, action: Action) -> Action:
    """The same inside the caller's transaction."""
    values = {
        "at": action.at,
        "actor": action.actor,
        "action": action.action,
        "cluster_id": NO_CLUSTER if action.cluster is None else cluster_id(store, connection, action.cluster),
        "target": action.target,
        "query": action.query,
        "count": action.count,
        "reason": action.reason,
        "parameters": msgspec.json.encode(action.parameters).decode(),
        "outcome": action.outcome,
        "message": action.message,
    }
    number = connection.execute(schema.action.insert().values(values)).inserted_primary_key
    return msgspec.structs.replace(action, id=number[0] if number else None)


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
    """Notes that a person sends ``old_id`` again as ``new_id``; False where that was noted before.

    Written before the message is sent: a link to a task that nobody has seen says that it was asked for, while a
    task sent without its link would be sent a second time. With ``again_after`` it may be noted again so many seconds
    later: for a task that is sent again under its own id. With ``first_only`` it is not noted where somebody has
    retried the task as another one, not even where that happens at this moment.
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
    # Two people must not look at the same time whether the other has retried it.
    connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.id == number).with_for_update())
    table, old, new = schema.retry, to_key(old_id), to_key(new_id)
    others = (table.c.cluster_id == number, table.c.key == old, table.c.new_key.not_in([old, new]))
    return connection.execute(select(table.c.at).where(*others).limit(1)).first() is not None


def unlink_retry(store: Store, cluster: str, old_id: str, new_id: str) -> None:
    """Takes a link back whose message the broker certainly does not have."""
    table = schema.retry
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        mine = (table.c.cluster_id == number, table.c.key == to_key(old_id), table.c.new_key == to_key(new_id))
        connection.execute(delete(table).where(*mine))


def change_workers(
    store: Store, cluster: str, hostnames: Sequence[str] | None, change: Callable[[Worker], Worker]
) -> None:
    """Reads each worker that is known by these names, or every one, and stores what ``change`` makes of it.

    In one transaction, so that what events say meanwhile is not written over. Unknown names are passed over.
    """
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        found = load_workers(connection, number, hostnames)
        save_workers(store, connection, number, [change(worker) for worker in found.values()])


def load_workers(connection: Connection, cluster: int, hostnames: Sequence[str] | None) -> dict[str, Worker]:
    """The stored workers among these names, or all, by name.

    On PostgreSQL the transaction has the workers of the cluster for itself until its end: what events say and what
    workers answer stand in one record, and whoever wrote last would undo what the other wrote. SQLite has one writer
    anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_WORKERS_LOCK, cluster)))
    table = schema.worker
    statement = select(table.c.hostname, table.c.record).where(table.c.cluster_id == cluster)
    if hostnames is not None:
        statement = statement.where(table.c.hostname.in_(list(hostnames)))
    return {row.hostname: unpack_worker(row.record) for row in connection.execute(statement)}


def save_workers(store: Store, connection: Connection, cluster: int, workers: Sequence[Worker]) -> None:
    """Stores workers inside the caller's transaction."""
    if not workers:
        return
    statement = store.insert(schema.worker)
    mutable = ("status", "first_seen", "last_heartbeat", "record")
    statement = statement.on_conflict_do_update(
        index_elements=["cluster_id", "hostname"], set_={name: statement.excluded[name] for name in mutable}
    )
    rows = [
        {
            "cluster_id": cluster,
            "hostname": worker.hostname,
            "status": worker.status.value,
            "first_seen": worker.first_seen,
            "last_heartbeat": worker.last_heartbeat,
            "record": _pack(worker),
        }
        for worker in workers
    ]
    connection.execute(statement, rows)


def save_worker_starts(store: Store, connection: Connection, cluster: int, starts: Sequence[tuple[str, float]]) -> None:
    """Notes workers that came up with a new process, by name and time, inside the caller's transaction."""
    rows = [{"cluster_id": cluster, "hostname": hostname, "at": at} for hostname, at in starts]
    if rows:
        connection.execute(store.insert(schema.worker_start).on_conflict_do_nothing(), rows)


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
            _save_rising(store, connection, cluster, rising)


def _save_rising(store: Store, connection: Connection, cluster: str, names: Sequence[str]) -> None:
    row = {"key": f"{RISING}{cluster}", "value": msgspec.json.encode(list(names)).decode()}
    statement = store.insert(schema.meta).values(row)
    value = {"value": statement.excluded.value}
    connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=value))


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


def save_health(store: Store, health: ReceiverHealth) -> None:
    """What the receiver of a cluster says of itself."""
    with store.begin() as connection:
        put_health(store, connection, cluster_id(store, connection, health.cluster), health)


def put_health(store: Store, connection: Connection, cluster: int, health: ReceiverHealth) -> None:
    """The same inside the caller's transaction."""
    statement = store.insert(schema.receiver).values(cluster_id=cluster, record=_pack(health))
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["cluster_id", "shard"], set_={"record": statement.excluded.record}
        )
    )


def save_ending(store: Store, ending: ReceiverEnding) -> None:
    """Notes that a receiver's process ended by itself."""
    row = {"key": f"{ENDING}{ending.cluster}", "value": msgspec.json.encode(ending).decode()}
    statement = store.insert(schema.meta).values(row)
    value = {"value": statement.excluded.value}
    with store.begin() as connection:
        connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=value))


def save_standby(store: Store, standby: StandbyReceiver) -> None:
    """Notes that a receiver stands by."""
    table = schema.meta
    values = {"key": _standby_key(standby), "value": msgspec.json.encode(standby).decode()}
    statement = store.insert(table).values(values)
    with store.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value})
        )


def end_standby(store: Store, standby: StandbyReceiver) -> None:
    """Notes that a receiver stands by no longer."""
    with store.begin() as connection:
        connection.execute(delete(schema.meta).where(schema.meta.c.key == _standby_key(standby)))


def _standby_key(standby: StandbyReceiver) -> str:
    return STANDBY + msgspec.json.encode([standby.cluster, standby.host, standby.pid]).decode()


def open_gap(store: Store, cluster: str, began: float, cause: str) -> int:
    """Notes that events may be missing from ``began`` on; gives the number to close it with."""
    with store.begin() as connection:
        values = {"cluster_id": cluster_id(store, connection, cluster), "began": began, "cause": cause}
        key = connection.execute(schema.gap.insert().values(values)).inserted_primary_key
        number: int = key[0] if key else 0
        return number


def begin_gap(store: Store, gap_id: int, began: float) -> None:
    """Notes that the gap began earlier than was known."""
    with store.begin() as connection:
        connection.execute(update(schema.gap).where(schema.gap.c.id == gap_id).values(began=began))


def close_gap(store: Store, gap_id: int, ended: float, dropped: int | None = None) -> None:
    """Notes when the gap ended, and how many events are known to be missing (``None``: not known)."""
    with store.begin() as connection:
        connection.execute(update(schema.gap).where(schema.gap.c.id == gap_id).values(ended=ended, dropped=dropped))


def put_reconciliation(connection: Connection, gap: Gap) -> None:
    """Notes what has been found out after a gap, in a transaction that stores what was concluded of it."""
    told = msgspec.json.encode(gap.reconciliation).decode()
    connection.execute(update(schema.gap).where(schema.gap.c.id == gap.id).values(reconciliation=told))


def save_pause(store: Store, pause: Pause) -> None:
    """Notes that a queue is paused, in the place of what was noted before."""
    values = {"key": _pause_key(pause.cluster, pause.queue), "value": msgspec.json.encode(pause).decode()}
    statement = store.insert(schema.meta).values(values)
    with store.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value})
        )


def end_pause(store: Store, cluster: str, queue: str) -> None:
    """Forgets that a queue is paused."""
    with store.begin() as connection:
        connection.execute(delete(schema.meta).where(schema.meta.c.key == _pause_key(cluster, queue)))


def _pause_key(cluster: str, queue: str) -> str:
    return PAUSED + msgspec.json.encode([cluster, queue]).decode()


def secret(store: Store, key: str) -> str:
    """A random secret, made once and kept; every process on this database gets the same."""
    table = schema.meta
    kept = select(table.c.value).where(table.c.key == key)
    with store.read() as connection:  # a database that cannot be written now still serves who reads
        known: str | None = connection.execute(kept).scalar()
    if known is not None:
        return known
    with store.begin() as connection:
        fresh = {"key": key, "value": secrets.token_urlsafe(32)}
        connection.execute(store.insert(table).values(fresh).on_conflict_do_nothing())
        value: str = connection.execute(kept).scalar_one()
        return value


def prove_writable(store: Store) -> None:
    """Writes one small row. Raises StoreUnavailable, soon, where the database takes nothing."""
    row = {"key": PROOF, "value": f"{time.time():.3f}"}
    statement = store.insert(schema.meta).values(row)
    statement = statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value})
    with store.begin(PROOF_SECONDS) as connection:
        connection.execute(statement)
