"""Standing by while another receiver writes the record of the same cluster, and taking over when that one ends.

Where the broker keeps events for us, there is nothing else to do. Where it keeps none (Redis), this receiver subscribes
too, and keeps what arrives until the other one reports that it is stored, so that nothing is missing after a takeover.
Storing an event twice changes nothing. The gap tracker stores when events may be missing, and why.
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
    """A gap whose end is not stored yet. ``gap`` is its id if its beginning is stored."""

    began: float
    ended: float
    cause: str
    dropped: int | None
    gap: int | None = None


class GapTracker:
    """Tracks the gaps of one receiver; ``store`` writes them, later if the database is away."""

    def __init__(self, store: Store, cluster: str, *, kept_by_broker: bool) -> None:
        self._store = store
        self._cluster = cluster
        self._kept_by_broker = kept_by_broker  # then only the next connection shows whether anything is missing
        self._began: float | None = None
        self._cause = ""
        self._gap: int | None = None
        self._adopted = False  # another process stored its beginning
        self._ended: list[EndedGap] = []

    @property
    def began(self) -> float | None:
        """When the open gap began."""
        return self._began

    @property
    def is_open(self) -> bool:
        return self._began is not None

    def open(self, began: float, cause: str) -> None:
        """Events may be missed from this time on. A gap that is already open keeps its cause."""
        if self._began is None:
            self._began, self._cause = began, cause

    def seconds(self, now: float) -> float:
        """How long the gap has been open."""
        return 0.0 if self._began is None else now - self._began

    def close(self, ended: float, *, missed: bool) -> None:
        """Events arrive again; ``missed`` is False if the broker kept all of them."""
        if self._began is not None and (missed or self._gap is not None):
            dropped = None if missed or self._adopted else 0
            self._ended.append(EndedGap(self._began, ended, self._cause, dropped, self._gap))
        self._began = self._gap = None
        self._adopted = False

    def forget(self, before: float) -> None:
        """Another receiver has stored everything before: no gap begins earlier."""
        self._ended = [gap for gap in self._ended if gap.ended > before]
        if self._began is not None:
            self._began = max(self._began, before)

    def adopt(self, now: float, *, listened: bool) -> None:
        """Takes over the gaps that a dead receiver left open. Raises StoreUnavailable.

        If we have ``listened`` all the time, nothing is missing.
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

    def release(self) -> None:
        """Another receiver writes from now on, and has adopted our gaps."""
        self._gap = None
        self._ended.clear()

    def dropped(self, began: float, ended: float, count: int) -> None:
        """We dropped ``count`` events in this interval."""
        last = self._ended[-1] if self._ended else None
        if last is not None and last.cause == OVERFLOW:
            self._ended[-1] = last._replace(ended=ended, dropped=(last.dropped or 0) + count)
        else:
            self._ended.append(EndedGap(began, ended, OVERFLOW, count))

    def store(self) -> None:
        """Writes what is not stored yet. Raises StoreUnavailable, and can then be called again."""
        if self._began is not None and self._gap is None and not self._kept_by_broker:
            self._gap = open_gap(self._store, self._cluster, self._began, self._cause)
        while self._ended:
            ended = self._ended[0]
            gap = ended.gap
            if gap is None:
                gap = open_gap(self._store, self._cluster, ended.began, ended.cause)
                self._ended[0] = ended._replace(gap=gap)
            close_gap(self._store, gap, ended.ended, ended.dropped)
            del self._ended[0]


POLL_SECONDS = 0.5  # how soon a death is noticed
REPORT_SECONDS = 2.0  # how often the record is updated that we stand by
RECONNECT_SECONDS = 2.0
# An event reaches two receivers at different times, and is stored a little after it arrived.
MARGIN_SECONDS = 5.0

log = logging.getLogger(__name__)


class Standby:
    """One receiver of a cluster before it leads, and again when another has taken the lead."""

    def __init__(self, store: Store, source: Source, cluster: str, lease: Lease | None = None) -> None:
        self._store = store
        self._source = source
        self._cluster = cluster
        self._lease = lease
        self.gaps = GapTracker(lease.store if lease else store, cluster, kept_by_broker=source.keeps_events)
        self.listens = False  # the source is connected, and keeps what arrives
        self.waited = False  # another receiver led while we stood by
        self._begun = False
        self._reported: StandbyReceiver | None = None
        self._connected_at = self._checked_at = 0.0
        self._last_update: float | None = None  # of the other receiver's health

    def wait(self, stop: threading.Event) -> bool:
        """True as soon as this receiver may write; False when ``stop`` was set before."""
        last_error = ""
        while not stop.is_set():
            try:
                if self._lease is None or self._lease.acquire():
                    self._end()
                    return True
                self._stand_by(time.time())
                last_error = ""
            except StoreUnavailable as error:
                if error.message != last_error:
                    log.error("%s", error)
                last_error = error.message
            stop.wait(POLL_SECONDS)
        return False

    def begin(self, last: ReceiverHealth | None) -> None:
        """Opens a gap from the oldest event on that the last receiver had not stored."""
        if not self._begun:
            self._begun = True
            if last is not None:
                self.gaps.open(_kept_until(last) or time.time(), "the receiver was not running")

    def step_down(self) -> None:
        """Another receiver leads now."""
        self.gaps.release()
        if self._source.keeps_events:
            self._source.close()
        else:
            self.listens = not self.gaps.is_open
        if not self.gaps.is_open and not self.listens:
            self.gaps.open(time.time(), "the receiver was not running")
        self._last_update = None

    def close(self) -> None:
        """Disconnects from the broker, and removes this standby from the record."""
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
        self._checked_at = now
        self._report(now)

    def _listen(self) -> None:
        if self.listens or time.monotonic() - self._connected_at < RECONNECT_SECONDS:
            return
        self._connected_at = time.monotonic()
        try:
            self._source.connect()
        except BrokerUnavailable as error:
            log.warning("%s", error)
            return
        self.listens = True
        self.gaps.close(time.time(), missed=True)

    def _follow(self, last: ReceiverHealth) -> None:
        """Discards what the other receiver has stored; all by our own clock."""
        stored = None
        if last.updated_at != self._last_update and last.connected and self._checked_at:
            stored = self._checked_at - (last.lag_seconds or 0.0) - MARGIN_SECONDS
            self.gaps.forget(stored)
        self._last_update = last.updated_at
        if self.listens:
            try:
                self._source.discard(stored or 0.0)
            except BrokerUnavailable as error:
                log.warning("%s", error)
                self.listens = False
                self.gaps.open(self._source.last_received_at, f"no connection to the broker: {error.message}")

    def _report(self, now: float) -> None:
        if self._reported is not None and now - self._reported.updated_at < REPORT_SECONDS:
            return
        self._reported = StandbyReceiver(
            cluster=self._cluster,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=self._reported.since if self._reported else now,
            updated_at=now,
            listening=self.listens or self._source.keeps_events,
        )
        save_standby(self._store, self._reported)

    def _end(self) -> None:
        reported, self._reported = self._reported, None
        if reported is not None:
            end_standby(self._store, reported)


def _kept_until(last: ReceiverHealth) -> float | None:
    """Whatever arrived later may have been lost with the receiver that reported this health."""
    if last.kept_until is not None or last.updated_at is None:
        return last.kept_until
    return last.updated_at - (last.lag_seconds or 0.0)
