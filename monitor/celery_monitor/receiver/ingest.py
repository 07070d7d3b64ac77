"""The receiver: reads a source, stores what it says, and says how it fares.

One thread reads, folds and stores, so the order of events is kept and a batch is acknowledged only when it is
committed. While the database is away the source holds events back, within its bound; while the broker is away the
hole is noted as a Gap.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

import msgspec

from celery_monitor.core.waits import Senders
from celery_monitor.core.workers import OwnClock
from celery_monitor.errors import BrokerUnavailable, LeaseLost, StoreRefused, StoreUnavailable
from celery_monitor.receiver.helpers import RETENTION, Helpers
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.standby import Standby
from celery_monitor.records.receiver import Delivery, ReceiverHealth, RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import read_receiver_health, save_health
from celery_monitor.store.retention import Retention
from celery_monitor.store.writer import Writer, Written

log = logging.getLogger(__name__)

HEALTH_SECONDS = 1.0
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # then for ever the last
MOST_DELIVERIES = 10  # in one transaction, when the receiver is behind
PAUSES = 5  # while events gather
RETENTION_SECONDS = 5.0  # between two looks when there was nothing more to delete
# Between two steps of deleting, in times what the last one took. To delete a task takes about a quarter of the CPU that
# storing it took (docs/scaling.md).
REST, REST_BEHIND = 1.0, 2.0
BEHIND_SECONDS = 0.3
MALFORMED_SECONDS = 10.0  # between two log lines
NOTICES = 5
REFUSED_SECONDS = 60.0  # a worker sends a heartbeat every 2 s
MOST_REFUSED = 20
HOST = socket.gethostname()


class Receiver:
    """Receives the events of one cluster."""

    def __init__(
        self,
        store: Store,
        source: Source,
        cluster: str,
        settings: Settings,
        standby: Standby | None = None,
        helpers: Helpers | None = None,
    ) -> None:
        self._helpers = helpers or Helpers()
        self._store = store
        self._source = source
        self._settings = settings
        self._writer = Writer(store, cluster, settings)
        self._retention = Retention(store, cluster, settings)
        self._retention_at = 0.0
        self._tidied_at = 0.0
        self._conclusions: SimpleQueue[Delivery] = SimpleQueue()
        self._health = ReceiverHealth(cluster=cluster, connected=False, source=source.name, host=HOST, pid=os.getpid())
        self._refused: dict[RefusedEvents, float] = {}  # when each last sent such
        self._saved_at = 0.0
        self._gather_until = 0.0
        self._clock = OwnClock(time.time(), _steady())
        self._set_seconds = 0.0  # by which our clock was set, and the record does not know yet
        self._untold = 0  # malformed messages that the log does not tell of yet
        self._tell_at = 0.0
        self._standby = standby or Standby(store, source, cluster)
        self._hole = self._standby.hole
        self._on_new_worker: Callable[[], None] = lambda: None

    @property
    def health(self) -> ReceiverHealth:
        """What was last said of the receiver; replaced as a whole, so any thread may read it."""
        return self._health

    @property
    def senders(self) -> Senders:
        """The clock offsets of the clients that send tasks."""
        return self._writer.senders

    def conclude(self, delivery: Delivery) -> None:
        """Stores events that were concluded, not received (``task-lost``), with the next batch; from any thread."""
        self._conclusions.put(msgspec.structs.replace(delivery, concluded=True))

    def notice(self, text: str) -> None:
        """Says something that the receiver did by itself; the newest few are kept."""
        self._change(notices=(*self._health.notices, text)[-NOTICES:])

    def on_new_worker(self, call: Callable[[], None]) -> None:
        """Calls this once a worker process is recorded of which no event came before."""
        self._on_new_worker = call

    def run(self, stop: threading.Event) -> None:
        """Receives until told to stop. Broker and database may come and go. Raises LeaseLost."""
        self._resume(stop)
        attempt = 0
        while not stop.is_set():
            try:
                if self._source.keeps_events:
                    self._store.hold()
                self._connect()
                attempt = 0
                self._receive(stop)
            except BrokerUnavailable as error:
                self._disconnected(error)
                _pause(stop, attempt)
                attempt += 1
            except StoreUnavailable as error:
                log.error("%s", error)
                _pause(stop, attempt)
                attempt += 1
        self._source.close()
        self._change(connected=False, error="the receiver was stopped")
        if unsaved := self._save_health():
            log.error("%s", unsaved)

    def _resume(self, stop: threading.Event) -> None:
        """Takes up what the last receiver of this cluster left; waits for the database."""
        cluster = self._health.cluster
        attempt = 0
        while not stop.is_set():
            try:
                last = read_receiver_health(self._store, cluster)
                self._standby.begin(last)
                self._hole.adopt(time.time(), listened=self._standby.listens)
            except StoreUnavailable as error:
                log.error("%s", error)
                _pause(stop, attempt)
                attempt += 1
                continue
            self._take_over(last)
            return

    def _take_over(self, last: ReceiverHealth | None) -> None:
        if last is None:
            return
        mine = self._health
        self._health = msgspec.structs.replace(
            last,
            connected=False,
            source=mine.source,
            host=mine.host,
            pid=mine.pid,
            notices=(),
            helpers=(),
            refused=(),
        )
        if self._standby.waited:
            since = time.strftime("%H:%M:%S", time.gmtime())
            self.notice(f"took over at {since} UTC from {last.host or 'a receiver'} (process {last.pid})")

    # The broker

    def _connect(self) -> None:
        if not self._standby.listens:
            self._source.connect()
        self._standby.listens = False
        now = time.time()
        expired = self._hole.seconds(now) > self._settings.event_queue_ttl
        self._hole.close(now, missed=self._source.missed or expired)
        self._change(connected=True, error=None, lag_seconds=0.0)
        log.info("receiving events of %s through %s", self._health.cluster, self._source.name)

    def _disconnected(self, error: BrokerUnavailable) -> None:
        if self._health.connected or self._health.error != error.message:
            log.warning("%s", error)
        began = self._source.heard_at if self._health.connected else time.time()
        self._hole.open(began, f"no connection to the broker: {error.message}")
        self._change(connected=False, error=error.message, lag_seconds=None)
        self._keep_house(time.time())

    def _receive(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._heed_lease()
            deliveries = self._by_own_clock(self._collect())
            if any(each.events or each.malformed or each.dropped or each.gap for each in deliveries):
                self._store_batch(deliveries, stop)
            for refused in {sender for each in deliveries for sender in each.refused}:
                self._refuse(refused)
            self._source.acknowledge()
            self._keep_house(time.time())

    def _refuse(self, sender: RefusedEvents) -> None:
        if sender not in self._refused:
            who = sender.hostname or "a sender without a name"
            log.warning('events of %s are %s and are not read; set event_serializer = "json"', who, sender.content_type)
        self._refused[sender] = time.monotonic()

    def _refused_lately(self) -> tuple[RefusedEvents, ...]:
        """Who has not changed it since, and may have."""
        if self._refused:
            since = time.monotonic() - REFUSED_SECONDS
            self._refused = {each: at for each, at in self._refused.items() if at > since}
        return tuple(sorted(self._refused, key=lambda each: (each.hostname, each.content_type)))[:MOST_REFUSED]

    def _heed_lease(self) -> None:
        """A queue that keeps events for us is left to the receiver that may write them."""
        if self._source.keeps_events and not self._store.held:
            self._source.close()
            raise BrokerUnavailable("the queue is left to another receiver until the database answers")

    def _by_own_clock(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """These, arrived by our clock as it is now: somebody may have set it since."""
        now = time.time()
        if seconds := self._clock.jump(now, _steady()):
            self._set_seconds += seconds
            log.warning("our own clock was set by %+.1f s", seconds)
        moved = []
        for each in deliveries:
            arrived = each.arrived if each.concluded else self._clock.current(each.arrived, now)
            moved.append(each if arrived == each.arrived else msgspec.structs.replace(each, arrived=arrived))
        return moved

    def _collect(self) -> list[Delivery]:
        """What there is to store: at once what has arrived, else what comes within the batch's time.

        After events the next ones gather for that time, as a transaction costs as much as some hundreds of them. One
        delivery is of one moment; who is behind takes several at once, and lets nothing gather.
        """
        deliveries = []
        while True:
            try:
                deliveries.append(self._conclusions.get_nowait())
            except Empty:
                break
        deliveries.append(self._source.read(self._settings.batch_seconds))
        events = len(deliveries[-1].events)
        while events < self._settings.batch_events and len(deliveries) < MOST_DELIVERIES:
            rest = self._gather_until - time.monotonic()
            if rest > 0:  # in short pauses, or what a burst brings meanwhile would have to wait on disk
                time.sleep(min(rest, self._settings.batch_seconds / PAUSES))
            if self._source.waits:
                deliveries.append(self._source.read(0.0))
                events += len(deliveries[-1].events)
            elif rest <= 0:
                break
        behind = events >= self._settings.batch_events or len(deliveries) >= MOST_DELIVERIES
        gathering = events and not behind
        self._gather_until = time.monotonic() + self._settings.batch_seconds if gathering else 0.0
        return deliveries

    # The database

    def _store_batch(self, deliveries: Sequence[Delivery], stop: threading.Event) -> None:
        """Stores a batch, however long the database is away. Only what it refuses for itself is dropped."""
        attempt = 0
        while not stop.is_set():
            try:
                if self._set_seconds:  # before anything is stored by the new time
                    self._writer.own_clock_set(self._set_seconds)
                    self._set_seconds = 0.0
                self._wrote(self._writer.write(deliveries, self._counted(deliveries)), deliveries)
            except StoreUnavailable as error:
                unsaved = self._save_health(unwritten=error.message, in_hand=deliveries)
                if isinstance(error, StoreRefused) and not unsaved:  # it answers: it is the batch that it refuses
                    self._store_apart(deliveries, error, stop)
                    return
                log.error("%s; events wait", error)
                self._heed_lease()
                _pause(stop, attempt)
                attempt += 1
            else:
                return
        raise BrokerUnavailable("stopped before the last batch was stored; the broker still has it if it keeps events")

    def _store_apart(self, deliveries: Sequence[Delivery], error: StoreRefused, stop: threading.Event) -> None:
        """Halves a batch that is refused until the events that cannot be stored stand alone."""
        if len(deliveries) > 1:
            for delivery in deliveries:
                self._store_batch([delivery], stop)
            return
        (delivery,) = deliveries
        middle = len(delivery.events) // 2
        if not middle:
            self._drop(delivery, error)
            return
        self._store_batch([msgspec.structs.replace(delivery, events=delivery.events[:middle])], stop)
        rest = msgspec.structs.replace(delivery, events=delivery.events[middle:], malformed=0, dropped=0)
        self._store_batch([rest], stop)

    def _drop(self, delivery: Delivery, error: StoreRefused) -> None:
        log.error("an event is dropped, since it cannot be stored (%s): %.500r", error, delivery.events)
        lost = delivery.dropped + len(delivery.events)
        self._hole.dropped(delivery.arrived, time.time(), lost)
        self._change(dropped_total=self._health.dropped_total + lost)

    def _counted(self, deliveries: Sequence[Delivery]) -> ReceiverHealth:
        """The health once this batch is stored; it goes in its transaction, which counts what only the writer finds."""
        health, now = self._health, time.time()
        received = [each for each in deliveries if not each.concluded]
        events = sum(len(each.events) for each in received)
        arrived = [each.arrived for each in received if each.events]
        lag = max(now - min(arrived, default=now), self._writer.behind(received, now))
        malformed = sum(each.malformed for each in deliveries)
        return msgspec.structs.replace(
            health,
            error=None,
            last_event_at=max(arrived, default=health.last_event_at),
            lag_seconds=max(0.0, lag),
            events_total=health.events_total + events,
            malformed_total=health.malformed_total + malformed,
            malformed_at=now if malformed else health.malformed_at,
            dropped_total=health.dropped_total + sum(each.dropped for each in deliveries),
            updated_at=now,
            kept_until=self._kept_until(),
            helpers=self._helpers.failing,
            refused=self._refused_lately(),
        )

    def _kept_until(self, in_hand: Sequence[Delivery] = ()) -> float | None:
        """See ReceiverHealth. While there is a hole, nothing was kept since it began."""
        moments = [each.arrived for each in in_hand if not each.concluded and not self._source.keeps_events]
        for at in (self._source.kept_until, self._hole.began):
            moments += () if at is None else (at,)
        return min(moments, default=None)

    def _wrote(self, written: Written, deliveries: Sequence[Delivery]) -> None:
        self._health = health = written.health or self._health
        self._saved_at = time.monotonic()
        if written.new_workers:
            self._on_new_worker()
        self._tell_malformed(sum(each.malformed for each in deliveries) + written.refused)
        for each in deliveries:
            if each.dropped:
                self._hole.dropped(each.arrived, health.updated_at or each.arrived, each.dropped)

    def _tell_malformed(self, count: int) -> None:
        if not count:
            return
        self._untold += count
        if time.monotonic() >= self._tell_at:
            log.warning("%d messages were no events; they are counted and not stored", self._untold)
            self._untold, self._tell_at = 0, time.monotonic() + MALFORMED_SECONDS

    def _keep_house(self, now: float) -> None:
        """What is due beside the events: the health, ETAs that have come, old tasks, gaps that wait to be noted."""
        try:
            self._tell_health()
            if time.monotonic() - self._tidied_at >= HEALTH_SECONDS:
                self._tidied_at = time.monotonic()
                self._hole.store()
                self._writer.mark_due(now)
                self._writer.conclude_removals(now)
                self._writer.name_queues(now)
        except StoreUnavailable as error:
            log.error("%s", error)
        if time.monotonic() >= self._retention_at:
            self._keep_deleting(now)

    def _keep_deleting(self, now: float) -> None:
        """Old tasks go; where that fails, events are stored all the same. Raises LeaseLost."""
        try:
            self._delete_old(now)
            self._helpers.works(RETENTION)
        except LeaseLost:
            raise
        except StoreUnavailable as error:
            self._retention_failed(error)
            log.error("old tasks are not deleted: %s", error)
        except Exception as error:
            self._retention_failed(error)
            log.exception("old tasks are not deleted")

    def _retention_failed(self, error: Exception) -> None:
        self._helpers.failed(RETENTION, error)
        self._retention_at = time.monotonic() + self._helpers.pause(RETENTION)

    def _tell_health(self) -> None:
        """Unless a batch has just done so. Raises StoreUnavailable."""
        if time.monotonic() - self._saved_at < HEALTH_SECONDS:
            return
        if self._health.connected:  # a second without a batch: there was nothing to be behind of
            self._change(lag_seconds=0.0)
        if unsaved := self._save_health():
            raise unsaved

    def _delete_old(self, now: float) -> None:
        began = time.monotonic()
        self._retention_at = began + RETENTION_SECONDS  # also where it fails
        retired = self._retention.retire(now)
        self._writer.forget_deleted(retired.keys, counters=retired.counters)
        if retired.more:
            ended = time.monotonic()
            behind = (self._health.lag_seconds or 0.0) > BEHIND_SECONDS
            self._retention_at = ended + (ended - began) * (REST_BEHIND if behind else REST)

    def _change(self, **fields: object) -> None:
        self._health = msgspec.structs.replace(self._health, **fields)

    def _save_health(self, unwritten: str | None = None, in_hand: Sequence[Delivery] = ()) -> StoreUnavailable | None:
        """Says how the receiver fares; gives the reason where even that cannot be stored.

        What is ``in_hand`` was read and is not stored.
        """
        self._saved_at = time.monotonic()
        self._change(
            updated_at=time.time(),
            kept_until=self._kept_until(in_hand),
            helpers=self._helpers.failing,
            refused=self._refused_lately(),
        )
        try:
            save_health(self._store, msgspec.structs.replace(self._health, unwritten=unwritten))
        except StoreUnavailable as error:
            return error
        return None


def _steady() -> float:
    """A clock that nobody sets. On Linux it also counts while the machine sleeps, as the one on the wall does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _pause(stop: threading.Event, attempt: int) -> None:
    """Waits longer the more often it failed, and not too long to notice that it is well again."""
    stop.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
