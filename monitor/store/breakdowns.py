"""What passed through each queue and each worker lately, for lists that show all of them at once."""

from collections import defaultdict
from typing import Literal

import msgspec
from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import select

from monitor.records import QueueSample
from monitor.records import WaitPercentiles
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.schema import UNKNOWN
from monitor.store.series import began as record_began
from monitor.store.series import wait_percentiles
from monitor.store.sketches import SINCE_RECEIPT
from monitor.store.sketches import merged
from monitor.store.terms import texts

RESOLUTION = 60
Key = tuple[str, str]  # cluster, name of the queue or worker


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """Runs in a span of time: how many workers took, and how those that ended did."""

    taken: int = 0
    succeeded: int = 0
    failed: int = 0

    @property
    def failure_share(self) -> float | None:
        """Failed among those that succeeded or failed; ``None`` where none did."""
        ended = self.succeeded + self.failed
        return self.failed / ended if ended else None


class Flows(msgspec.Struct, frozen=True, kw_only=True):
    """Flow by cluster and name. ``unnamed`` are runs whose queue or worker is not known."""

    seconds: float
    by_key: dict[Key, Flow]
    unnamed: int = 0

    def of(self, cluster: str, name: str) -> Flow | None:
        """``None`` where nothing is recorded and some runs are of no known place: theirs could be this one."""
        found = self.by_key.get((cluster, name))
        return found if found is not None or self.unnamed else Flow()


def flows(
    store: Store, by: Literal["queue", "worker"], *, since: float, now: float, cluster: str | None = None
) -> Flows:
    """Runs by queue or by worker from the minute of ``since`` on; for spans of up to some hours."""
    table = schema.rollup
    place = table.c.queue_id if by == "queue" else table.c.worker_id
    began = int(since // RESOLUTION * RESOLUTION)
    sums = [func.sum(table.c[name]).label(name) for name in ("received", "succeeded", "failed")]
    statement = select(table.c.cluster_id, place.label("place"), *sums).where(
        table.c.resolution == RESOLUTION, table.c.at >= began
    )
    with store.read() as connection:
        clusters = _clusters(connection, cluster)
        rows = connection.execute(
            statement.where(table.c.cluster_id.in_(clusters)).group_by(table.c.cluster_id, place)
        ).all()
        names = texts(connection, [row.place for row in rows])
    # Of a record that is younger than the span no more is known than since it began.
    known = max(began, record_began(store) or 0.0)
    return Flows(
        seconds=max(1.0, now - known),
        by_key={
            (clusters[row.cluster_id], names[row.place]): Flow(
                taken=row.received, succeeded=row.succeeded, failed=row.failed
            )
            for row in rows
            if row.place in names
        },
        unnamed=sum(row.received for row in rows if row.place == UNKNOWN),
    )


def waits(store: Store, *, since: float, cluster: str | None = None) -> dict[Key, WaitPercentiles]:
    """How long tasks waited, by the queue they came from, from the minute of ``since`` on."""
    table = schema.rollup.c
    began = int(since // RESOLUTION * RESOLUTION)
    found: dict[tuple[str, int], WaitPercentiles | None] = {}
    with store.read() as connection:
        for number, name in _clusters(connection, cluster).items():
            wanted = [table.resolution == RESOLUTION, table.at >= began, table.cluster_id == number]
            sketches = merged(connection, wanted, "wait", "queue_id")
            counts = select(table.queue_id, SINCE_RECEIPT.label("starts")).where(*wanted).group_by(table.queue_id)
            since_receipt = {row.queue_id: int(row.starts) for row in connection.execute(counts)}
            for queue, sketch in sketches.items():
                found[name, queue] = wait_percentiles(sketch, since_receipt[queue])
        names = texts(connection, {queue for _, queue in found})
    return {(name, names[queue]): each for (name, queue), each in found.items() if each is not None and queue in names}


def depths(store: Store, *, since: float, cluster: str | None = None) -> dict[Key, list[QueueSample]]:
    """The samples of every queue from ``since`` on, in order."""
    table = schema.queue_sample
    found: dict[Key, list[QueueSample]] = defaultdict(list)
    with store.read() as connection:
        clusters = _clusters(connection, cluster)
        statement = (
            select(table)
            .where(table.c.cluster_id.in_(clusters), table.c.at >= int(since))
            .order_by(table.c.cluster_id, table.c.name, table.c.at)
        )
        for row in connection.execute(statement).all():
            sample = QueueSample(
                at=row.at, ready=row.ready, unacked=row.unacked, consumers=row.consumers, oldest=row.oldest
            )
            found[clusters[row.cluster_id], row.name].append(sample)
    return dict(found)


def _clusters(connection: Connection, only: str | None) -> dict[int, str]:
    rows = connection.execute(select(schema.cluster.c.id, schema.cluster.c.name))
    return {row.id: row.name for row in rows if only is None or row.name == only}
