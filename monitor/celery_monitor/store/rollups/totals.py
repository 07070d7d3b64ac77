"""Counters that only grow, for metrics: events, run times and wait times by task name.

Roll-ups are corrected and expire; whoever reads a counter that falls takes that for a restart. These are written in the
writer's transaction, one row for each name of a batch, so they survive a restart and are the same for every replica.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, select

from celery_monitor.core.quantiles import middle
from celery_monitor.records.event import Event
from celery_monitor.settings import METRIC_BUCKETS
from celery_monitor.store import schema
from celery_monitor.store.engine import PreparedStatement, Store
from celery_monitor.store.rollups.counters import Place, Tally
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

    def add(self, seconds: float, number: int = 1) -> None:
        at = 0
        for bound in METRIC_BUCKETS:  # few durations are long
            if seconds <= bound:
                break
            at += 1
        self.counts[at] += number
        self.sum += seconds * number


class Total(msgspec.Struct, array_like=True):
    """What was ever counted for a name. ``reported``: run times in events of success; ``run``: of every end."""

    events: dict[str, int] = {}
    reported: Histogram = msgspec.field(default_factory=Histogram)
    run: Histogram = msgspec.field(default_factory=Histogram)
    wait: Histogram = msgspec.field(default_factory=Histogram)

    def add_from(self, other: "Total") -> None:
        for name, number in other.events.items():
            self.events[name] = self.events.get(name, 0) + number
        for mine, more in ((self.reported, other.reported), (self.run, other.run), (self.wait, other.wait)):
            mine.counts = [one + two for one, two in zip(mine.counts, more.counts, strict=True)]
            mine.sum += more.sum


Key = tuple[str | None, str | None]  # name and worker


class Observed:
    """The events of one batch by name and, if ``by_worker``, by worker."""

    def __init__(self, *, by_worker: bool) -> None:
        self.by_worker = by_worker
        self.events: Counter[tuple[str | None, str | None, str]] = Counter()
        self.reported: dict[Key, list[float]] = defaultdict(list)

    def add(self, name: str | None, events: Iterable[Event]) -> None:
        """Counts a task's events. The sender of a task is no worker, and there may be any number of senders."""
        for event in events:
            kind = event.type
            if kind in COUNTED:
                worker = event.hostname if self.by_worker and kind != "task-sent" else None
                self.events[name, worker, kind] += 1
                if event.runtime is not None and kind == "task-succeeded":
                    self.reported[name, worker].append(event.runtime)


class Totals:
    """Adds to the totals of one cluster. Their only writer, so what it caches is valid until a rollback."""

    def __init__(self, store: Store, terms: Terms) -> None:
        self._terms = terms
        self._rows: dict[tuple[int, int], Total] | None = None
        statement = store.insert(schema.total)
        changed = {"record": statement.excluded.record}
        self._put = PreparedStatement(
            store, statement.on_conflict_do_update(index_elements=list(_KEY), set_=changed), [*_KEY, "record"]
        )

    def forget(self) -> None:
        """Empties the cache, after a rollback."""
        self._rows = None

    def apply(
        self, connection: Connection, cluster_id: int, observed: Observed, rollups: Mapping[Place, Tally]
    ) -> None:
        """Adds a batch: its events, and what is new in its changes of roll-ups."""
        added: defaultdict[Key, Total] = defaultdict(Total)
        for (name, worker, kind), number in observed.events.items():
            added[name, worker].events[kind] = number
        for key, durations in observed.reported.items():
            for seconds in durations:
                added[key].reported.add(seconds)
        for (_, name, _, worker), tally in rollups.items():
            total = added[name, worker if observed.by_worker else None]
            for histogram, counts in ((total.run, tally.run), (total.wait, tally.wait)):
                for bucket, number in counts.items():
                    if number > 0:  # a correction takes nothing away
                        histogram.add(middle(bucket), number)
        if added:
            self._store_added(connection, cluster_id, added)

    def _store_added(self, connection: Connection, cluster_id: int, added: Mapping[Key, Total]) -> None:
        if self._rows is None:
            self._rows = _load(connection, cluster_id)
        self._terms.load(connection, [(_WORKER, worker) for _, worker in added if worker is not None])
        changed = {}
        for key, total in added.items():
            place = self._place(connection, self._rows, key)
            row = changed[place] = self._rows.setdefault(place, Total())
            row.add_from(total)
        self._put.run(connection, [(cluster_id, *place, _encode(row)) for place, row in changed.items()])

    def _place(self, connection: Connection, rows: Collection[tuple[int, int]], key: Key) -> tuple[int, int]:
        """Where a key is counted: beyond the bounds under OTHER, without a worker."""
        place = self._terms.id(_NAME, key[0]), self._terms.id(_WORKER, key[1])
        if place in rows or len(rows) < (MOST_ROWS if place[1] else MOST_NAMES):
            return place
        return self._terms.others(connection)[0], UNKNOWN


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Total).decode


def _load(connection: Connection, cluster_id: int) -> dict[tuple[int, int], Total]:
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
