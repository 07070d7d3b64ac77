"""Stands by while another receiver writes the record of the same cluster, and takes over when that one dies.

Where the broker keeps events for us, there is nothing else to do. Where it keeps none (Redis), this receiver listens
too, and holds what arrives until the other one says that it has stored it: so nothing is missing after a death. What
both have stored changes nothing the second time.
"""

import logging
import os
import socket
import threading
import time
from contextlib import suppress

from monitor.errors import BrokerUnavailable
from monitor.errors import StoreUnavailable
from monitor.receiver.hole import Hole
from monitor.receiver.sources.base import Source
from monitor.records import ReceiverHealth
from monitor.records import StandbyReceiver
from monitor.store import journal
from monitor.store import queries
from monitor.store.engine import Store
from monitor.store.lease import Lease

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
        self.hole = Hole(lease.store if lease else store, cluster, kept_by_broker=source.keeps_events)
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
                if self._lease is None or self._lease.take():
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
        last = queries.receiver_health(self._store, self._cluster)
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
        journal.save_standby(self._store, self._said)

    def _end(self) -> None:
        said, self._said = self._said, None
        if said is not None:
            journal.end_standby(self._store, said)


def _kept_until(last: ReceiverHealth) -> float | None:
    """Whatever came later may have died with the receiver that said this last."""
    if last.kept_until is not None or last.updated_at is None:
        return last.kept_until
    return last.updated_at - (last.lag_seconds or 0.0)
