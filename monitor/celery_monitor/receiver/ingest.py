"""The receiver: reads events from a source, stores them, and reports its health.

One thread reads, folds and stores, so events keep their order and a batch is acknowledged only after its commit. While
the database is away, the source keeps events within its limit; while the broker is away, a Gap is recorded.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec

from celery_monitor.core.waits import Senders
from celery_monitor.core.words import age_words
from celery_monitor.core.workers import OwnClock
from celery_monitor.errors import BrokerUnavailable, LeaseLost, StoreRefused, StoreUnavailable
from celery_monitor.receiver.helper_failures import RETENTION, HelperFailures
from celery_monitor.receiver.pace import Pace
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.standby import Standby
from celery_monitor.records.receiver import Delivery, ReceiverHealth, RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import read_receiver_health, save_health
from celery_monitor.store.retention.expiry import Retention
from celery_monitor.store.writer import Writer, WriteResult

log = logging.getLogger(__name__)

HEALTH_SECONDS = 1.0
# For which a read waits for events, and conclusions of other threads for it: while somebody uses the dashboard, or not.
READ_SECONDS, UNUSED_READ_SECONDS = 0.25, 1.0
IDLE_GATHER_SECONDS = 12.0  # for which heartbeats gather while nothing else happens
LATE_INTERVALS, LATE_SECONDS = 1.5, 0.5  # of a heartbeat, after which it is missing, and that is news
SLOW_SECONDS = 5.0  # for one batch; a broker may drop a connection that is not read for longer
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # the last is repeated
MOST_DELIVERIES, UNUSED_MOST_DELIVERIES = 10, 30  # in one transaction, when the receiver is behind
PAUSES = 5  # while a batch fills
RETENTION_SECONDS = 5.0  # between two checks when there was nothing more to delete
# The pause between two deletions, as a multiple of the last one's duration. Deleting a task takes about a quarter of
# the CPU time that storing it took (docs/scaling.md).
REST, REST_BEHIND = 1.0, 2.0
BEHIND_SECONDS = 0.3
MALFORMED_SECONDS = 10.0  # between two log lines
NOTICES = 5
REFUSED_SECONDS = 60.0  # a worker sends a heartbeat every 2 s
MOST_REFUSED = 20
HOST = socket.gethostname()


class Work(NamedTuple):
    """A batch that is being stored: when its first event arrived, and since when by the monotonic clock."""

    arrived: float
    began: float
    deliveries: Sequence[Delivery]


class LastHeartbeat(NamedTuple):
    """The last heartbeat of a worker: its process, when it arrived, also by the monotonic clock, and its interval."""

    pid: int | None
    arrived: float
    at: float
    freq: float


class SlowBatch(NamedTuple):
    """A batch that took longer than SLOW_SECONDS, and when it ended by the monotonic clock."""

    seconds: float
    ended: float


class Receiver:
    """Receives the events of one cluster."""

    def __init__(
        self,
        store: Store,
        source: Source,
        cluster: str,
        settings: Settings,
        standby: Standby | None = None,
        helpers: HelperFailures | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._helpers = helpers or HelperFailures()
        self._pace = pace or Pace()
        self._store = store
        self._source = source
        self._settings = settings
        self._writer = Writer(store, cluster, settings)
        self._retention = Retention(store, cluster, settings)
        self._retention_at = 0.0
        self._housekeeping_at = 0.0
        self._conclusions: SimpleQueue[Delivery] = SimpleQueue()
        self._health = ReceiverHealth(cluster=cluster, connected=False, source=source.name, host=HOST, pid=os.getpid())
        self._refused: dict[RefusedEvents, float] = {}  # senders, and when each last sent refused events
        self._saved_at = 0.0
        self._saved_news: tuple[object, ...] = ()
        self._fill_until = 0.0
        self._clock = OwnClock(time.time(), _steady())
        self._clock_change = 0.0  # seconds by which our clock was set, not yet applied to the record
        self._unlogged = 0  # malformed messages that are not logged yet
        self._log_at = 0.0
        self._standby = standby or Standby(store, source, cluster)
        self._gaps = self._standby.gaps
        self._on_new_worker: tuple[Callable[[], None], ...] = ()
        self._work: Work | None = None
        self._slow: SlowBatch | None = None
        self._busy_since: float | None = None  # since when nothing was read from the source
        self._heartbeats: dict[str, LastHeartbeat] = {}  # while nobody uses the dashboard, the oldest first
        self._gathered: list[Delivery] = []  # heartbeats that are not stored yet
        self._gathered_since = 0.0

    @property
    def health(self) -> ReceiverHealth:
        """The current health; replaced as a whole, so any thread may read it."""
        return self._health

    @property
    def senders(self) -> Senders:
        """The clock offsets of the clients that send tasks."""
        return self._writer.senders

    def last_heartbeat(self, hostname: str) -> float:
        """When a worker's last heartbeat arrived that may not be stored yet; 0: none. Thread-safe."""
        known = self._heartbeats.get(hostname)
        return 0.0 if known is None else known.arrived

    def conclude(self, delivery: Delivery) -> None:
        """Stores concluded events (``task-lost``) with the next batch. Thread-safe."""
        self._conclusions.put(msgspec.structs.replace(delivery, concluded=True))

    def notice(self, text: str) -> None:
        """Adds a text about something that the receiver did on its own; the newest few are kept."""
        self._change(notices=(*self._health.notices, text)[-NOTICES:])

    def on_new_worker(self, *calls: Callable[[], None]) -> None:
        """Sets what is called after the first event of a worker process is stored."""
        self._on_new_worker = calls

    def run(self, stop: threading.Event) -> None:
        """Receives until ``stop`` is set. Outages of broker and database are waited out. Raises LeaseLost."""
        self._resume(stop)
        with self._reporting_work():
            self._run(stop)
        self._source.close()
        self._change(connected=False, error="the receiver was stopped")
        if unsaved := self._save_health():
            log.error("%s", unsaved)

    def _run(self, stop: threading.Event) -> None:
        attempt = 0
        while not stop.is_set():
            try:
                if self._source.keeps_events:
                    self._store.ensure_lease()
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

    def _resume(self, stop: threading.Event) -> None:
        """Continues from the health and gaps of the last receiver of this cluster; waits for the database."""
        cluster = self._health.cluster
        attempt = 0
        while not stop.is_set():
            try:
                last = read_receiver_health(self._store, cluster)
                self._standby.begin(last)
                self._gaps.adopt(time.time(), listened=self._standby.listens)
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
        expired = self._gaps.seconds(now) > self._settings.event_queue_ttl
        self._gaps.close(now, missed=self._source.missed or expired)
        self._housekeeping_at = 0.0  # stores the gap's end at once
        self._change(connected=True, error=None, lag_seconds=0.0)
        log.info("receiving events of %s through %s", self._health.cluster, self._source.name)

    def _disconnected(self, error: BrokerUnavailable) -> None:
        if self._health.connected or self._health.error != error.message:
            log.warning("%s", error)
        began = self._source.last_received_at if self._health.connected else time.time()
        self._gaps.open(began, f"{self._why_disconnected()}: {error.message}")
        self._change(connected=False, error=error.message, lag_seconds=None)
        self._housekeeping_at = 0.0
        self._do_housekeeping(time.time())

    def _why_disconnected(self) -> str:
        """A broker drops whoever reads too slowly: right after a slow batch, it was ours to keep the connection."""
        slow = self._slow
        if slow is None or time.monotonic() - slow.ended > SLOW_SECONDS:
            return "no connection to the broker"
        busy = age_words(slow.seconds)
        return f"the receiver was busy with one batch for {busy}, and lost its connection to the broker"

    def _receive(self, stop: threading.Event) -> None:
        self._gathered = []  # what was not acknowledged comes again
        while not stop.is_set():
            self._check_lease()
            self._busy_since = None
            deliveries = self._collect()
            self._busy_since = time.monotonic()
            if not self._only_gathers(deliveries):
                self._process([*self._gathered, *deliveries], stop)
            self._do_housekeeping(time.time())
        self._store_gathered()

    def _process(self, collected: Sequence[Delivery], stop: threading.Event) -> None:
        deliveries = self._correct_arrivals(collected)
        if any(each.events or each.malformed or each.dropped or each.gap for each in deliveries):
            self._store_batch(deliveries, stop)
        self._gathered = []
        for refused in {sender for each in deliveries for sender in each.refused}:
            self._note_refused(refused)
        self._source.acknowledge()

    # Idleness

    def _store_gathered(self) -> None:
        """Before this receiver stops; what cannot be stored is left to the next one, if the source keeps it."""
        with suppress(StoreUnavailable):
            if self._gathered and self._writer.write(self._correct_arrivals(self._gathered)):
                self._source.acknowledge()

    def _only_gathers(self, deliveries: Sequence[Delivery]) -> bool:
        """Whether a read may wait for later ones: nobody uses the dashboard, and it has at most usual heartbeats."""
        if self._pace.used:
            self._heartbeats.clear()
            return False
        now = time.monotonic()
        usual = all(self._is_usual(each, now) for each in deliveries)
        if not usual or self._misses_heartbeat(now):
            self._pace.news()
            return False
        with_events = [each for each in deliveries if each.events]
        if not self._pace.idle or not (self._gathered or with_events):
            return False
        if not self._gathered:
            self._gathered_since = now
        full = len(self._gathered) >= self._settings.batch_events
        if full or now - self._gathered_since >= IDLE_GATHER_SECONDS:
            return False
        self._gathered += with_events
        return True

    def _is_usual(self, delivery: Delivery, now: float) -> bool:
        """Whether it has at most heartbeats of known processes. Notes all heartbeats."""
        usual = not (delivery.malformed or delivery.dropped or delivery.gap or delivery.refused or delivery.concluded)
        for event in delivery.events:
            if event.type != "worker-heartbeat":
                return False
            known = self._heartbeats.pop(event.hostname, None)  # it goes to the end
            self._heartbeats[event.hostname] = LastHeartbeat(event.pid, delivery.arrived, now, event.freq or 0.0)
            usual = usual and known is not None and known.pid == event.pid
        return usual

    def _misses_heartbeat(self, now: float) -> bool:
        """Whether the worker that has been silent for the longest is late; that is said once."""
        hostname, last = next(iter(self._heartbeats.items()), (None, None))
        if hostname is None or last is None or now - last.at <= LATE_INTERVALS * last.freq + LATE_SECONDS:
            return False
        del self._heartbeats[hostname]
        return True

    def _note_refused(self, sender: RefusedEvents) -> None:
        if sender not in self._refused:
            who = sender.hostname or "a sender without a name"
            log.warning('events of %s are %s and are not read; set event_serializer = "json"', who, sender.content_type)
        self._refused[sender] = time.monotonic()

    def _refused_lately(self) -> tuple[RefusedEvents, ...]:
        """Senders that sent refused events within the last minute."""
        if self._refused:
            since = time.monotonic() - REFUSED_SECONDS
            self._refused = {each: at for each, at in self._refused.items() if at > since}
        return tuple(sorted(self._refused, key=lambda each: (each.hostname, each.content_type)))[:MOST_REFUSED]

    def _check_lease(self) -> None:
        """A queue that the broker keeps for us is released to the receiver that may write its events."""
        if self._source.keeps_events and not self._store.has_lease:
            self._source.close()
            raise BrokerUnavailable("the queue is left to another receiver until the database answers")

    def _correct_arrivals(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Arrival times by our present clock, which may have been set since."""
        now = time.time()
        if seconds := self._clock.jump(now, _steady()):
            self._clock_change += seconds
            self._heartbeats.clear()
            log.warning("this machine's clock jumped by %+.1f s", seconds)
        moved = []
        for each in deliveries:
            arrived = each.arrived if each.concluded else self._clock.current(each.arrived, now)
            moved.append(each if arrived == each.arrived else msgspec.structs.replace(each, arrived=arrived))
        return moved

    def _collect(self) -> list[Delivery]:
        """The deliveries of the next batch: what has arrived, or else arrives within READ_SECONDS.

        After a batch with events the next one fills for ``batch_seconds``, longer while nobody uses the dashboard, as a
        transaction costs as much as some hundreds of events. A delivery has one time of arrival: a receiver that is
        behind collects several, without waiting.
        """
        deliveries = []
        while True:
            try:
                deliveries.append(self._conclusions.get_nowait())
            except Empty:
                break
        patience = READ_SECONDS if self._pace.used else UNUSED_READ_SECONDS
        deliveries.append(self._source.read(0.0 if deliveries else patience))
        events = len(deliveries[-1].events)
        gather = self._pace.batch_seconds(self._settings.batch_seconds)
        most = MOST_DELIVERIES if self._pace.used else UNUSED_MOST_DELIVERIES
        while events < self._settings.batch_events and len(deliveries) < most:
            rest = self._fill_until - time.monotonic()
            if rest > 0 and (gather <= self._settings.batch_seconds or not self._is_used_now()):
                # In short pauses, else a burst would have to be spooled to disk.
                time.sleep(min(rest, gather / PAUSES))
            else:
                rest = 0.0
            if self._source.waits:
                deliveries.append(self._source.read(0.0))
                events += len(deliveries[-1].events)
            elif rest <= 0:
                break
        behind = events >= self._settings.batch_events or len(deliveries) >= most
        self._fill_until = time.monotonic() + gather if events and not behind else 0.0
        return deliveries

    def _is_used_now(self) -> bool:
        self._pace.look()
        return self._pace.used

    # The database

    def _store_batch(self, deliveries: Sequence[Delivery], stop: threading.Event) -> None:
        """Stores a batch, however long the database is away. Only events that the database refuses are dropped."""
        attempt = 0
        while not stop.is_set():
            try:
                if self._clock_change:  # before anything is stored by the new time
                    self._writer.own_clock_set(self._clock_change)
                    self._clock_change = 0.0
                with self._working_on(deliveries):
                    written = self._writer.write(deliveries, self._health_after(deliveries))
                self._after_write(written, deliveries)
            except StoreUnavailable as error:
                unsaved = self._save_health(unwritten=error.message, unstored=deliveries)
                if isinstance(error, StoreRefused) and not unsaved:  # the database answers: it refuses this batch
                    self._store_apart(deliveries, error, stop)
                    return
                log.error("%s; events wait", error)
                self._check_lease()
                _pause(stop, attempt)
                attempt += 1
            else:
                return
        raise BrokerUnavailable("stopped before the last batch was stored; the broker still has it if it keeps events")

    @contextmanager
    def _working_on(self, deliveries: Sequence[Delivery]) -> Iterator[None]:
        arrived = min((each.arrived for each in deliveries if not each.concluded), default=time.time())
        self._work = work = Work(arrived, time.monotonic(), deliveries)
        try:
            yield
        finally:
            self._work, ended = None, time.monotonic()
            if ended - work.began > SLOW_SECONDS:
                log.warning("one batch took %.0f s", ended - work.began)
                self._slow = SlowBatch(ended - work.began, ended)

    @contextmanager
    def _reporting_work(self) -> Iterator[None]:
        """Meanwhile, a thread guards the source and saves the health while a batch takes long."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(HEALTH_SECONDS):
                busy = self._busy_since
                if busy is not None and time.monotonic() - busy > HEALTH_SECONDS:
                    self._source.guard()
                self._report_work()

        thread = threading.Thread(target=watch, name="health", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _report_work(self) -> None:
        """Saves how old the batch in work is. SQLite has one writer: there it is saved until the transaction begins."""
        work = self._work
        if work is None or time.monotonic() - work.began < HEALTH_SECONDS:
            return
        now = time.time()
        health = msgspec.structs.replace(
            self._health,
            updated_at=now,
            lag_seconds=max(0.0, now - work.arrived),
            kept_until=self._kept_until(work.deliveries),
        )
        with suppress(StoreUnavailable):  # the batch itself reports it
            save_health(self._store, health, lambda: self._work is work)

    def _store_apart(self, deliveries: Sequence[Delivery], error: StoreRefused, stop: threading.Event) -> None:
        """Halves a refused batch until only the events that cannot be stored are left."""
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
        self._gaps.dropped(delivery.arrived, time.time(), lost)
        self._change(dropped_total=self._health.dropped_total + lost)

    def _health_after(self, deliveries: Sequence[Delivery]) -> ReceiverHealth:
        """The health after this batch, stored in its transaction; the writer adds the counts that only it has."""
        health, now = self._health, time.time()
        received = [each for each in deliveries if not each.concluded]
        events = sum(len(each.events) for each in received)
        arrived = [each.arrived for each in received if each.events]
        gathered = max((each.arrived for each in self._gathered), default=0.0)  # these waited on purpose
        late = [each for each in received if each.events and each.arrived > gathered]
        lag = max(now - min((each.arrived for each in late), default=now), self._writer.lag(late, now))
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
            report_seconds=self._pace.pause(HEALTH_SECONDS),
            kept_until=self._kept_until(),
            helpers=self._helpers.failing,
            refused=self._refused_lately(),
        )

    def _kept_until(self, unstored: Sequence[Delivery] = ()) -> float | None:
        """See ReceiverHealth. During a gap nothing is kept since it began."""
        waiting = () if self._source.keeps_events else (*unstored, *self._gathered)
        moments = [each.arrived for each in waiting if not each.concluded]
        for at in (self._source.kept_until, self._gaps.began):
            moments += () if at is None else (at,)
        return min(moments, default=None)

    def _after_write(self, written: WriteResult, deliveries: Sequence[Delivery]) -> None:
        self._health = health = written.health or self._health
        self._saved_at, self._saved_news = time.monotonic(), self._news()
        if written.new_workers:
            for call in self._on_new_worker:
                call()
        self._log_malformed(sum(each.malformed for each in deliveries) + written.refused)
        for each in deliveries:
            if each.dropped:
                self._gaps.dropped(each.arrived, health.updated_at or each.arrived, each.dropped)

    def _log_malformed(self, count: int) -> None:
        self._unlogged += count
        if count and time.monotonic() >= self._log_at:
            log.warning("%d messages were not events; they are counted and not stored", self._unlogged)
            self._unlogged, self._log_at = 0, time.monotonic() + MALFORMED_SECONDS

    def _do_housekeeping(self, now: float) -> None:
        """Whatever is due beside the events: health, gaps, ETAs, removals, names of queues, retention."""
        try:
            self._report_health()
            self._pace.look()
            if time.monotonic() - self._housekeeping_at >= self._pace.pause(HEALTH_SECONDS):
                self._housekeeping_at = time.monotonic()
                self._gaps.store()
                self._writer.mark_due(now)
                self._writer.conclude_removals(now)
                self._writer.set_missing_queues(now)
        except StoreUnavailable as error:
            log.error("%s", error)
        if time.monotonic() >= self._retention_at:
            self._run_retention(now)

    def _run_retention(self, now: float) -> None:
        """Deletes old tasks; a failure does not stop the storing of events. Raises LeaseLost."""
        try:
            self._delete_old(now)
            self._helpers.succeeded(RETENTION)
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

    def _report_health(self) -> None:
        """Saves the health, unless a batch has just done so. Raises StoreUnavailable."""
        since = time.monotonic() - self._saved_at
        if since < HEALTH_SECONDS:
            return
        if self._health.connected:  # a second without a batch: we are not behind
            self._change(lag_seconds=0.0)
        if since < self._pace.pause(HEALTH_SECONDS) and self._news() == self._saved_news:
            self._change(updated_at=time.time())
            return
        if unsaved := self._save_health():
            raise unsaved

    def _delete_old(self, now: float) -> None:
        began = time.monotonic()
        rest = self._pace.pause(RETENTION_SECONDS) if self._pace.idle else RETENTION_SECONDS
        self._retention_at = began + rest  # also where it fails
        retired = self._retention.delete_expired(now)
        self._writer.forget_deleted(retired.keys, counters=retired.counters)
        if retired.more:
            ended = time.monotonic()
            behind = (self._health.lag_seconds or 0.0) > BEHIND_SECONDS
            self._retention_at = ended + (ended - began) * (REST_BEHIND if behind else REST)

    def _news(self) -> tuple[object, ...]:
        """What of the health is reported at once, however seldom it is saved."""
        health = self._health
        return health.connected, health.error, health.notices, self._helpers.failing, self._refused_lately()

    def _change(self, **fields: object) -> None:
        self._health = msgspec.structs.replace(self._health, **fields)

    def _save_health(self, unwritten: str | None = None, unstored: Sequence[Delivery] = ()) -> StoreUnavailable | None:
        """Returns the error where the health cannot be stored. ``unstored``: the batch that was read."""
        self._saved_at, self._saved_news = time.monotonic(), self._news()
        self._change(
            updated_at=time.time(),
            report_seconds=self._pace.pause(HEALTH_SECONDS),
            kept_until=self._kept_until(unstored),
            helpers=self._helpers.failing,
            refused=self._refused_lately(),
        )
        try:
            save_health(self._store, msgspec.structs.replace(self._health, unwritten=unwritten))
        except StoreUnavailable as error:
            return error
        return None


def _steady() -> float:
    """A clock that cannot be set. On Linux it also runs while the machine sleeps, like the wall clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _pause(stop: threading.Event, attempt: int) -> None:
    """Waits longer after each failed attempt, up to a limit that keeps recovery quick."""
    stop.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
