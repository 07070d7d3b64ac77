"""Sketches of many places merged into one. Most of a minute's hold one or two durations, and so are soon the same:
the database counts equal ones, each is decoded once, and what a bucket came to is kept while its counts stay.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, func, select

from celery_monitor.core.quantiles import Sketch
from celery_monitor.records.series import NameTotal
from celery_monitor.store import schema

MOST_BUCKETS = 4000
MOST_SPANS = 16
_SMALL = 64  # bytes of a sketch that is likely to come again
_rollup = schema.rollup.c

Among = tuple[int | str, ...]  # clusters, and whatever else narrows what is merged
Where = tuple[int, int, Among]  # resolution, start of the bucket
Mark = tuple[int, ...]  # what a bucket is known by: its counts, and the sizes of its sketches


class Durations(NamedTuple):
    """How long tasks waited and ran, in one bucket."""

    wait: Sketch
    run: Sketch


# Before migration 0010 every wait was counted from receipt.
SINCE_RECEIPT = func.sum(func.coalesce(_rollup.since_receipt, _rollup.started))


class NameSums(NamedTuple):
    """What the tasks of one name came to in some buckets."""

    runs: int
    failed: int
    durations: Durations
    since_receipt: int = 0  # of how many the wait is counted from receipt


class Kept:
    """Merged sketches, the ones used last. Threads may share it; what it gives must not be changed."""

    def __init__(self) -> None:
        self._names: OrderedDict[object, tuple[object, dict[int, NameSums]]] = OrderedDict()
        self._known: OrderedDict[Where, tuple[Mark, Durations]] = OrderedDict()
        self._totals: OrderedDict[object, tuple[float, list[NameTotal]]] = OrderedDict()
        self._lock = Lock()

    def take(self, where: Where, mark: Mark) -> Durations | None:
        """What was merged, unless the bucket has changed since."""
        with self._lock:
            known = self._known.get(where)
            if known is None or known[0] != mark:
                return None
            self._known.move_to_end(where)
            return known[1]

    def put(self, where: Where, mark: Mark, durations: Durations) -> None:
        with self._lock:
            self._known[where] = (mark, durations)
            self._known.move_to_end(where)
            while len(self._known) > MOST_BUCKETS:
                self._known.popitem(last=False)

    def take_names(self, span: object, mark: object) -> dict[int, NameSums] | None:
        """The sums by name over many buckets, unless one of them has changed since."""
        with self._lock:
            known = self._names.get(span)
            return known[1] if known is not None and known[0] == mark else None

    def put_names(self, span: object, mark: object, sums: dict[int, NameSums]) -> None:
        with self._lock:
            self._names[span] = (mark, sums)
            self._names.move_to_end(span)
            while len(self._names) > MOST_SPANS:
                self._names.popitem(last=False)

    def take_totals(self, span: object, since: float) -> list[NameTotal] | None:
        """The totals by name, unless they are older than a moment of the monotonic clock."""
        with self._lock:
            at, totals = self._totals.get(span, (since, None))
            return totals if at > since else None

    def put_totals(self, span: object, at: float, totals: list[NameTotal]) -> None:
        with self._lock:
            self._totals[span] = (at, totals)
            self._totals.move_to_end(span)
            while len(self._totals) > MOST_SPANS:
                self._totals.popitem(last=False)


def name_sums(connection: Connection, wanted: Sequence[ColumnElement[bool]]) -> dict[int, NameSums]:
    """Runs, failures and durations by name."""
    sums = [func.sum(_rollup[each]).label(each) for each in ("succeeded", "failed", "retried")]
    sums.append(SINCE_RECEIPT.label("since_receipt"))
    rows = connection.execute(select(_rollup.name_id, *sums).where(*wanted).group_by(_rollup.name_id)).all()
    waits, runs = (merged(connection, wanted, column, "name_id") for column in ("wait", "run"))
    return {
        row.name_id: NameSums(
            int(row.succeeded + row.failed + row.retried),
            int(row.failed),
            Durations(waits.get(row.name_id, Sketch()), runs.get(row.name_id, Sketch())),
            int(row.since_receipt),
        )
        for row in rows
    }


def joined(one: dict[int, NameSums], other: dict[int, NameSums]) -> dict[int, NameSums]:
    """The sums of both, as new ones where a name is in both."""
    found = dict(one)
    for name, more in other.items():
        known = found.get(name)
        found[name] = more if known is None else _together(known, more)
    return found


def _together(one: NameSums, other: NameSums) -> NameSums:
    wait, run = Sketch(one.durations.wait.counts), Sketch(one.durations.run.counts)
    wait.merge(other.durations.wait)
    run.merge(other.durations.run)
    since_receipt = one.since_receipt + other.since_receipt
    return NameSums(one.runs + other.runs, one.failed + other.failed, Durations(wait, run), since_receipt)


def merged(connection: Connection, wanted: Iterable[ColumnElement[bool]], column: str, by: str) -> dict[int, Sketch]:
    """The sketches of a column, merged by another: by the bucket, or by the name."""
    key, blob = _rollup[by], _rollup[column]
    times = func.count().label("times")
    statement = select(key, blob, times).where(*wanted, blob.is_not(None)).group_by(key, blob)
    found: dict[int, dict[int, int]] = {}
    for group, packed, number in connection.execute(statement).all():
        counts = found.setdefault(group, {})
        for each, count in _decoded(bytes(packed)):
            counts[each] = counts.get(each, 0) + count * number
    return {group: Sketch(counts) for group, counts in found.items()}


def _decoded(blob: bytes) -> tuple[tuple[int, int], ...]:
    return _decode_small(blob) if len(blob) <= _SMALL else tuple(Sketch.from_bytes(blob).counts.items())


@lru_cache(maxsize=20_000)
def _decode_small(blob: bytes) -> tuple[tuple[int, int], ...]:
    return tuple(Sketch.from_bytes(blob).counts.items())
