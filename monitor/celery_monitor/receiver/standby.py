"""Standing by while another receiver writes the record of the same cluster, and taking over when that one ends.

Where the broker keeps events for us, there is nothing else to do. Where it keeps none (Redis), this receiver listens
too, and keeps what arrives until the other one reports that it is stored: so nothing is missing after a takeover.
What both have stored changes nothing the second time. The gap tracker stores from when to when events may be missing,
and why.
"""

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import NamedTuple

from celery_monitor.errors import BrokerUnavailable, StoreUnavailable
from celery_monitor.receiver.sources.base import Source
from celery_monitor.records.receiver import ReceiverHealth, StandbyReceiver
from celery_monitor.store.engine import Store
from celery_monitor.store.lease import Lease
from celery_monitor.store.receivers import (
    close_gap,
    end_standby,
    open_gap,
    read_open_gaps,
    read_receiver_health,
    save_standby,
    set_gap_start,
)

OVERFLOW = "more events came than could be stored"


class EndedGap(NamedTuple):
    """A hole that is over and not yet stored. ``gap`` is its number where its beginning was stored."""

    began: float
    ended: float
    cause: str
    dropped: int | None
    gap: int | None = None


class GapTracker:
    """Notes holes as they open and close; ``store`` writes them down, later if the database is away."""

    def __init__(self, store: Store, cluster: str, *, kept_by_broker: bool) -> None:
        self._store = store
        self._cluster = cluster
        self._kept_by_broker = kept_by_broker  # then only the next connection tells whether anything is missing
        self._began: float | None = None
        self._cause = ""
        self._gap: int | None = None
        self._adopted = False  # its beginning was noted by another process, of which we know no more
        self._ended: list[EndedGap] = []

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
            self._ended.append(EndedGap(self._began, ended, self._cause, dropped, self._gap))
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
        for gap in read_open_gaps(self._store, self._cluster):
            if self._began is not None and self._gap is None:
                if gap.id is not None and self._began < gap.began:
                    set_gap_start(self._store, gap.id, self._began)
                self._began, self._cause = min(self._began, gap.began), gap.cause
                self._gap, self._adopted = gap.id, True
            else:
                self._ended.append(EndedGap(gap.began, now, gap.cause, dropped, gap.id))

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
            self._ended.append(EndedGap(began, ended, OVERFLOW, count))

    def store(self) -> None:
        """Writes down what is not stored yet. Raises StoreUnavailable; then it can be called again."""
        if self._began is not None and self._gap is None and not self._kept_by_broker:
            self._gap = open_gap(self._store, self._cluster, self._began, self._cause)
        while self._ended:
            hole = self._ended[0]
            gap = hole.gap
            if gap is None:
                gap = open_gap(self._store, self._cluster, hole.began, hole.cause)
                self._ended[0] = hole._replace(gap=gap)
            close_gap(self._store, gap, hole.ended, hole.dropped)
            del self._ended[0]


POLL_SECONDS = 0.5  # how soon a death is noticed
SAY_SECONDS = 2.0  # how often the record hears that we stand by
TRY_SECONDS = 2.0  # between two connections to the broker
# The same event reaches two receivers at two times, and is stored a little after it arrived.
MARGIN_SECONDS = 5.0

log = logging.getLogger(__name__)


class Standby:
    """One receiver of a cluster before it leads, and again when another has taken the lead."""

    def __init__(self, store: Store, source: Source, cluster: str, lease: Lease | None = None) -> None:
        self._store = store
        self._source = source
        self._cluster = cluster
        self._lease = lease
        self.hole = GapTracker(lease.store if lease else store, cluster, kept_by_broker=source.keeps_events)
        self.listens = False  # the source is connected, and holds what arrives
        self.waited = False  # another receiver led while we stood by
        self._begun = False
        self._said: StandbyReceiver | None = None
        self._tried_at = self._looked_at = 0.0
        self._seen: float | None = None

    def wait(self, stop: threading.Event) -> bool:
        """True as soon as this receiver may write; False when it was told to stop before."""
        complaint = ""
        while not stop.is_set():
            try:
                if self._lease is None or self._lease.acquire():
                    self._end()
                    return True
                self._stand_by(time.time())
                complaint = ""
            except StoreUnavailable as error:
                if error.message != complaint:
                    log.error("%s", error)
                complaint = error.message
            stop.wait(POLL_SECONDS)
        return False

    def begin(self, last: ReceiverHealth | None) -> None:
        """From when on events may be missing: from the oldest on that the last receiver had not stored."""
        if not self._begun:
            self._begun = True
            if last is not None:
                self.hole.open(_kept_until(last) or time.time(), "the receiver was not running")

    def step_down(self) -> None:
        """Another receiver leads now."""
        self.hole.let_go()
        if self._source.keeps_events:
            self._source.close()
        else:
            self.listens = not self.hole.is_open
        if not self.hole.is_open and not self.listens:
            self.hole.open(time.time(), "the receiver was not running")
        self._seen = None

    def close(self) -> None:
        """Lets go of the broker, and says that nobody stands by any more."""
        self._source.close()
        with suppress(StoreUnavailable):
            self._end()

    def _stand_by(self, now: float) -> None:
        last = read_receiver_health(self._store, self._cluster)
        self.begin(last)
        if not self.waited:
            where = f" on {last.host} (process {last.pid})" if last is not None and last.host else ""
            log.info("another receiver%s writes the record of %s; this one stands by", where, self._cluster)
        self.waited = True
        if not self._source.keeps_events:
            self._listen()
        if last is not None:
            self._follow(last)
        self._looked_at = now
        self._say(now)

    def _listen(self) -> None:
        if self.listens or time.monotonic() - self._tried_at < TRY_SECONDS:
            return
        self._tried_at = time.monotonic()
        try:
            self._source.connect()
        except BrokerUnavailable as error:
            log.warning("%s", error)
            return
        self.listens = True
        self.hole.close(time.time(), missed=True)

    def _follow(self, last: ReceiverHealth) -> None:
        """Lets go of what the other receiver has stored; all by our own clock."""
        stored = None
        if last.updated_at != self._seen and last.connected and self._looked_at:
            stored = self._looked_at - (last.lag_seconds or 0.0) - MARGIN_SECONDS
            self.hole.forget(stored)
        self._seen = last.updated_at
        if self.listens:
            try:
                self._source.discard(stored or 0.0)
            except BrokerUnavailable as error:
                log.warning("%s", error)
                self.listens = False
                self.hole.open(self._source.heard_at, f"no connection to the broker: {error.message}")

    def _say(self, now: float) -> None:
        if self._said is not None and now - self._said.updated_at < SAY_SECONDS:
            return
        self._said = StandbyReceiver(
            cluster=self._cluster,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=self._said.since if self._said else now,
            updated_at=now,
            listening=self.listens or self._source.keeps_events,
        )
        save_standby(self._store, self._said)

    def _end(self) -> None:
        said, self._said = self._said, None
        if said is not None:
            end_standby(self._store, said)


def _kept_until(last: ReceiverHealth) -> float | None:
    """Whatever came later may have died with the receiver that said this last."""
    if last.kept_until is not None or last.updated_at is None:
        return last.kept_until
    return last.updated_at - (last.lag_seconds or 0.0)
