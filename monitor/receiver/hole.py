"""The hole in the record: from when on events may be missing, until when, and why. Stored as Gaps."""

from typing import NamedTuple

from monitor.store import journal
from monitor.store import queries
from monitor.store.engine import Store

OVERFLOW = "more events came than could be stored"


class Ended(NamedTuple):
    """A hole that is over and not yet stored. ``gap`` is its number where its beginning was stored."""

    began: float
    ended: float
    cause: str
    dropped: int | None
    gap: int | None = None


class Hole:
    """Notes holes as they open and close; ``store`` writes them down, later if the database is away."""

    def __init__(self, store: Store, cluster: str, *, kept_by_broker: bool) -> None:
        self._store = store
        self._cluster = cluster
        self._kept_by_broker = kept_by_broker  # then only the next connection tells whether anything is missing
        self._began: float | None = None
        self._cause = ""
        self._gap: int | None = None
        self._adopted = False  # its beginning was noted by another process, of which we know no more
        self._ended: list[Ended] = []

    @property
    def began(self) -> float | None:
        """Since when it is open."""
        return self._began

    @property
    def is_open(self) -> bool:
        return self._began is not None

    def open(self, began: float, cause: str) -> None:
        """From this time on events may be missed; the cause that came first stays."""
        if self._began is None:
            self._began, self._cause = began, cause

    def seconds(self, now: float) -> float:
        """How long it has been open."""
        return 0.0 if self._began is None else now - self._began

    def close(self, ended: float, *, missed: bool) -> None:
        """Events come again; ``missed`` is False if the broker kept them all meanwhile."""
        if self._began is not None and (missed or self._gap is not None):
            dropped = None if missed or self._adopted else 0
            self._ended.append(Ended(self._began, ended, self._cause, dropped, self._gap))
        self._began = self._gap = None
        self._adopted = False

    def forget(self, before: float) -> None:
        """Everything that came before is stored, by another receiver: no hole reaches further back."""
        self._ended = [hole for hole in self._ended if hole.ended > before]
        if self._began is not None:
            self._began = max(self._began, before)

    def adopt(self, now: float, *, listened: bool) -> None:
        """Takes over the gaps that a receiver noted and, being dead, cannot close. Raises StoreUnavailable.

        Where we have ``listened`` all the time, nothing is missing.
        """
        dropped = 0 if listened and not self._ended and not self.is_open else None
        for gap in queries.open_gaps(self._store, self._cluster):
            if self._began is not None and self._gap is None:
                if gap.id is not None and self._began < gap.began:
                    journal.begin_gap(self._store, gap.id, self._began)
                self._began, self._cause = min(self._began, gap.began), gap.cause
                self._gap, self._adopted = gap.id, True
            else:
                self._ended.append(Ended(gap.began, now, gap.cause, dropped, gap.id))

    def let_go(self) -> None:
        """Another receiver writes from now on, and has adopted what we noted."""
        self._gap = None
        self._ended.clear()

    def dropped(self, began: float, ended: float, count: int) -> None:
        """So many events of this span were thrown away by us."""
        last = self._ended[-1] if self._ended else None
        if last is not None and last.cause == OVERFLOW:
            self._ended[-1] = last._replace(ended=ended, dropped=(last.dropped or 0) + count)
        else:
            self._ended.append(Ended(began, ended, OVERFLOW, count))

    def store(self) -> None:
        """Writes down what is not stored yet. Raises StoreUnavailable; then it can be called again."""
        if self._began is not None and self._gap is None and not self._kept_by_broker:
            self._gap = journal.open_gap(self._store, self._cluster, self._began, self._cause)
        while self._ended:
            hole = self._ended[0]
            gap = hole.gap
            if gap is None:
                gap = journal.open_gap(self._store, self._cluster, hole.began, hole.cause)
                self._ended[0] = hole._replace(gap=gap)
            journal.close_gap(self._store, gap, hole.ended, hole.dropped)
            del self._ended[0]
