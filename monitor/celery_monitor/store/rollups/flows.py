"""Throughput and wait by queue or by worker, from roll-ups."""

from typing import Literal

import msgspec
from sqlalchemy import func, select

from celery_monitor.records.series import WaitPercentiles
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.rollups.series import SINCE_RECEIPT, merged_sketches, record_began, wait_percentiles
from celery_monitor.store.terms import OTHER, cluster_names, texts

MINUTE = 60
Key = tuple[str, str]  # cluster, name of the queue or worker
_rollup = schema.rollup.c


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
    table = _rollup
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
