"""Workers in the record, and their restarts."""

from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import Connection, delete, func, select

from celery_monitor.errors import NotFound
from celery_monitor.records.worker import Worker
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.terms import cluster_id, cluster_ids, storable

MOST_WORKERS = 5000  # recorded of one cluster: the list of all stays readable within 100 ms
IDLE_SECONDS = 3600.0  # without an event, after which a worker makes room for a new one
_CHUNK = 1000
_WORKERS_LOCK = 1_296_848_211  # with a cluster's number, of an advisory lock
_pack = msgspec.msgpack.Encoder().encode
unpack_worker = msgspec.msgpack.Decoder(Worker).decode


def change_workers(
    store: Store, cluster: str, hostnames: Sequence[str] | None, change: Callable[[Worker], Worker]
) -> None:
    """Applies ``change`` to the recorded workers of these names, or to all, in one transaction.

    So that it does not overwrite what the writer stores at the same time. Unknown names are ignored.
    """
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        found = load_workers(connection, number, hostnames)
        save_workers(store, connection, number, [change(worker) for worker in found.values()])


def load_workers(connection: Connection, cluster: int, hostnames: Sequence[str] | None) -> dict[str, Worker]:
    """The stored workers among these names, or all, by name.

    On PostgreSQL the transaction locks the workers of the cluster: events and answers of workers go into the same
    records, and one writer would undo the changes of the other. SQLite has one writer anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_WORKERS_LOCK, cluster)))
    table = schema.worker
    statement = select(table.c.hostname, table.c.record).where(table.c.cluster_id == cluster)
    if hostnames is None:
        return {row.hostname: unpack_worker(row.record) for row in connection.execute(statement)}
    found: dict[str, Worker] = {}
    for start in range(0, len(hostnames), _CHUNK):
        named = statement.where(table.c.hostname.in_(hostnames[start : start + _CHUNK]))
        found.update((row.hostname, unpack_worker(row.record)) for row in connection.execute(named))
    return found


def make_room(connection: Connection, cluster: int, wanted: int, now: float) -> tuple[int, list[str]]:
    """How many of so many new workers may be recorded, and the names that were deleted for them.

    A cluster has at most MOST_WORKERS: those that were silent the longest go, where that is more than IDLE_SECONDS.
    """
    table = schema.worker.c
    mine = table.cluster_id == cluster
    room = MOST_WORKERS - connection.execute(select(func.count()).select_from(schema.worker).where(mine)).scalar_one()
    if wanted <= room:
        return wanted, []
    last = func.coalesce(table.last_heartbeat, table.first_seen, 0.0)
    idle = select(table.hostname).where(mine, last < now - IDLE_SECONDS).order_by(last).limit(wanted - room)
    gone = list(connection.execute(idle).scalars())
    for start in range(0, len(gone), _CHUNK):
        connection.execute(delete(schema.worker).where(mine, table.hostname.in_(gone[start : start + _CHUNK])))
    return max(0, room + len(gone)), gone


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
    """Stores that workers (name, time) started with a new process, inside the caller's transaction."""
    rows = [{"cluster_id": cluster, "hostname": hostname, "at": at} for hostname, at in starts]
    if rows:
        connection.execute(store.insert(schema.worker_start).on_conflict_do_nothing(), rows)


def read_workers(store: Store, cluster: str | None = None) -> list[Worker]:
    """Every recorded worker, by cluster and name."""
    table = schema.worker.c
    with store.read() as connection:
        wanted = table.cluster_id.in_(cluster_ids(connection, cluster))
        rows = connection.execute(select(table.record).where(wanted).order_by(table.cluster_id, table.hostname))
        return [unpack_worker(record) for record in rows.scalars()]


def read_worker(store: Store, hostname: str, cluster: str | None = None) -> Worker:
    """One worker; where several clusters have the name, the one with the latest heartbeat. Raises NotFound."""
    table = schema.worker.c
    with store.read() as connection:
        wanted = (table.hostname == hostname, table.cluster_id.in_(cluster_ids(connection, cluster)))
        rows = connection.execute(select(table.record).where(*wanted)).scalars() if storable(hostname) else ()
        found = [unpack_worker(record) for record in rows]
    if not found:
        raise NotFound(f"no worker {hostname!r} is in the record", hostname=hostname)
    return max(found, key=lambda each: each.last_heartbeat or 0.0)
