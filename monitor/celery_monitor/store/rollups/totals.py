"""Counters that only grow, for metrics: events, run times and wait times by task name.

Roll-ups are corrected and expire; whoever reads a counter that falls takes that for a restart. These are written in the
writer's transaction, one row for each name of a batch, so they survive a restart and are the same for every replica.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, select

from celery_monitor.core.quantiles import middle
from celery_monitor.records.event import Event
from celery_monitor.settings.values import METRIC_BUCKETS
from celery_monitor.store import schema
from celery_monitor.store.engine import PreparedStatement, Store
from celery_monitor.store.rollups.counters import Place as RollupPlace
from celery_monitor.store.rollups.counters import Tally
from celery_monitor.store.schema import TERM_KINDS, UNKNOWN
from celery_monitor.store.terms import Terms

MOST_NAMES = 1000  # with a row of their own; further ones are counted under OTHER
MOST_ROWS = 20_000  # with a worker's name in each
COUNTED = frozenset(
    f"task-{end}" for end in ("sent", "received", "started", "succeeded", "failed", "rejected", "revoked", "retried")
)
_KEY = ("cluster_id", "name_id", "worker_id")
_NAME, _WORKER = TERM_KINDS["name"], TERM_KINDS["worker"]


class Histogram(msgspec.Struct, array_like=True):
    """Numbers of durations by METRIC_BUCKETS, the last one of those beyond, and their sum in seconds."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(METRIC_BUCKETS) + 1))
    sum: float = 0.0

    def add(self, durations: Collection[float]) -> None:
        counts = self.counts
        for seconds in durations:
            counts[bisect_left(METRIC_BUCKETS, seconds)] += 1
        self.sum += sum(durations)

    def add_new(self, changes: Mapping[int, int]) -> None:
        """What is new among the changes of a sketch; a correction takes nothing away."""
        for bucket, number in changes.items():
            if number > 0:
                place, seconds = _place_of(bucket)
                self.counts[place] += number
                self.sum += seconds * number


@lru_cache(4096)
def _place_of(bucket: int) -> tuple[int, float]:
    """Where a bucket of a sketch is counted, and the seconds that it stands for."""
    seconds = middle(bucket)
    return bisect_left(METRIC_BUCKETS, seconds), seconds


class Total(msgspec.Struct, array_like=True):
    """What was ever counted for a name. ``reported``: run times in events of success; ``run``: of every end."""

    events: dict[str, int] = {}
    reported: Histogram = msgspec.field(default_factory=Histogram)
    run: Histogram = msgspec.field(default_factory=Histogram)
    wait: Histogram = msgspec.field(default_factory=Histogram)


Key = tuple[str | None, str | None]  # name and worker
Place = tuple[int, int]  # their numbers, of a row


class Observed:
    """The events of one batch by name and, if ``by_worker``, by worker."""

    def __init__(self, *, by_worker: bool) -> None:
        self.by_worker = by_worker
        self.events: dict[Key, list[Event]] = {}

    def add(self, name: str | None, events: Sequence[Event]) -> None:
        """Keeps a task's events, to be counted together with those of other tasks."""
        if self.by_worker:
            for event in events:  # the sender of a task is no worker, and there may be any number of senders
                self._add((name, event.hostname if event.type != "task-sent" else None), (event,))
        else:
            self._add((name, None), events)

    def _add(self, key: Key, events: Sequence[Event]) -> None:
        kept = self.events.get(key)
        if kept is None:
            kept = self.events[key] = []
        kept += events


class Totals:
    """Adds to the totals of one cluster. Their only writer, so what it caches is valid until a rollback."""

    def __init__(self, store: Store, terms: Terms) -> None:
        self._terms = terms
        self._rows: dict[Place, Total] | None = None
        self._places: dict[Key, Place] = {}
        statement = store.insert(schema.total)
        changed = {"record": statement.excluded.record}
        self._put = PreparedStatement(
            store, statement.on_conflict_do_update(index_elements=list(_KEY), set_=changed), [*_KEY, "record"]
        )

    def forget(self) -> None:
        """Empties the cache, after a rollback."""
        self._rows = None
        self._places.clear()

    def apply(
        self, connection: Connection, cluster_id: int, observed: Observed, rollups: Mapping[RollupPlace, Tally]
    ) -> None:
        """Adds a batch: its events, and what is new in its changes of roll-ups."""
        rows = self._rows
        if rows is None:
            rows = self._rows = _load(connection, cluster_id)
        places = self._places
        changed: set[Place] = set()

        def row(key: Key) -> Total:
            place = places.get(key)
            if place is None:
                place = places[key] = self._place(connection, rows, key)
            changed.add(place)
            return rows[place]

        for key, events in observed.events.items():
            total = row(key)
            for kind, number in Counter([each.type for each in events]).items():
                if kind in COUNTED:
                    total.events[kind] = total.events.get(kind, 0) + number
            ended = [each.runtime for each in events if each.type == "task-succeeded" and each.runtime is not None]
            total.reported.add(ended)
        for (_, name, _, worker), tally in rollups.items():
            if tally.run or tally.wait:
                total = row((name, worker if observed.by_worker else None))
                total.run.add_new(tally.run)
                total.wait.add_new(tally.wait)
        self._put.run(connection, [(cluster_id, *place, _encode(rows[place])) for place in changed])

    def _place(self, connection: Connection, rows: dict[Place, Total], key: Key) -> Place:
        """Where a key is counted: beyond the bounds under OTHER, without a worker."""
        self._terms.load(connection, [(_WORKER, key[1])] if key[1] is not None else [])
        place = self._terms.id(_NAME, key[0]), self._terms.id(_WORKER, key[1])
        if place not in rows and len(rows) >= (MOST_ROWS if place[1] else MOST_NAMES):
            place = self._terms.others(connection)[0], UNKNOWN
        rows.setdefault(place, Total())
        return place


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Total).decode


def _load(connection: Connection, cluster_id: int) -> dict[Place, Total]:
    table = schema.total.c
    statement = select(table.name_id, table.worker_id, table.record).where(table.cluster_id == cluster_id)
    return {(row.name_id, row.worker_id): _decode(row.record) for row in connection.execute(statement)}


class NamedTotal(NamedTuple):
    """A total with its names; ``worker`` is None where it is of all workers."""

    cluster: str
    name: str | None
    worker: str | None
    total: Total


def read_totals(store: Store) -> Sequence[NamedTotal]:
    """The totals of every cluster."""
    table, name, worker = schema.total.c, schema.term.alias("name"), schema.term.alias("worker")
    joined = (
        schema.total.join(schema.cluster, schema.cluster.c.id == table.cluster_id)
        .outerjoin(name, name.c.id == table.name_id)
        .outerjoin(worker, worker.c.id == table.worker_id)
    )
    statement = select(schema.cluster.c.name, name.c.text, worker.c.text, table.record).select_from(joined)
    with store.read() as connection:
        rows = connection.execute(statement).all()
    return [NamedTotal(cluster, name, worker, _decode(record)) for cluster, name, worker, record in rows]
