"""What a source of events is, and the bounded inbox between the thread that reads and the one that stores."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import NamedTuple
from typing import Protocol

from monitor.errors import BrokerUnavailable
from monitor.receiver.decode import count
from monitor.receiver.decode import decode
from monitor.receiver.spool import Spool
from monitor.records import Delivery
from monitor.records import Event
from monitor.records import RefusedEvents
from monitor.settings import Broker
from monitor.settings import Settings

log = logging.getLogger(__name__)

AWAY_SECONDS = 1.0  # without a call to take(): the database is away
# So much in one read of the socket is a burst. The reading thread then gets the interpreter for itself for a while:
# Redis cuts off a subscriber that is 32 MB behind.
BURST_BYTES = 256 * 1024
BURST_SECONDS = 0.02
YIELD_SECONDS = 0.3  # at most, before each batch
MOST_REFUSED = 20  # senders that are named
MESSAGE_OVERHEAD = 100  # bytes that Python needs beside a body
BATCH_BYTES = 16 * 1024 * 1024  # decoded and stored at once; a traceback has no bound of its own


class Source(Protocol):
    """Where events come from. One connection; connect() may be called again after it was lost."""

    name: str  # "redis", "amqp" or "kombu"
    keeps_events: bool  # the broker keeps events while we are away
    missed: bool  # after connect(): events may be missing that were sent since the last connection

    @property
    def heard_at(self) -> float:
        """When anything last came from the broker: until then the connection was good."""

    @property
    def kept_until(self) -> float | None:
        """What arrived before outlives this process once what read() gave is stored; ``None``: the broker keeps it."""

    @property
    def waits(self) -> bool:
        """Whether read() would give something at once, without an error."""

    def connect(self) -> None:
        """Connect and subscribe, or raise BrokerUnavailable within a few seconds."""

    def read(self, timeout: float) -> Delivery:
        """What has arrived, at once if anything has, else after ``timeout`` seconds nothing.

        Raises BrokerUnavailable when the connection is lost.
        """

    def acknowledge(self) -> None:
        """Everything returned by read() so far is committed."""

    def discard(self, before: float) -> None:
        """Another receiver has stored everything that arrived before; raises as read() does.

        Only for a source whose broker keeps nothing: it holds what arrives until then.
        """

    def close(self) -> None:
        """Let go of the connection. May be called at any time, also twice."""


def spool_of(broker: Broker, settings: Settings) -> Spool | None:
    """Where the events of this cluster wait on disk; ``None`` where the setting is 0."""
    if not settings.spool_bytes:
        return None
    return Spool(settings.spool_directory / broker.cluster, settings.spool_bytes, claims=True)


# JSON, or what is to be unwrapped; what is refused; None: it could not be unwrapped.
Body = bytes | RefusedEvents | None


class Batch(NamedTuple):
    """Messages that came with one read of the socket."""

    arrived: float
    bodies: Sequence[Body]
    size: int


class Inbox:
    """Batches that have arrived and are not decoded yet, bounded in bytes.

    With ``drops`` (brokers that keep nothing for us) a batch beyond the bound is dropped and its events
    counted; otherwise the reading thread asks ``full`` and leaves them at the broker. With a ``spool``, what comes
    while half of the bound is used, or while nobody takes anything, waits there, and only what it refuses is dropped.
    """

    def __init__(
        self,
        limit: int,
        *,
        drops: bool,
        unwrap: Callable[[bytes], Body] | None = None,
        spool: Spool | None = None,
    ) -> None:
        self._limit = limit
        self._spool = spool
        self._taken_at = time.monotonic()
        self._burst_at = 0.0
        self._drops = drops
        self._unwrap = unwrap
        self._batches: deque[Batch] = deque()
        self._size = 0
        self._dropped = 0
        self._refused: set[RefusedEvents] = set()
        self._error: BrokerUnavailable | None = None
        self._changed = threading.Condition()
        self.messages_taken = 0
        self.heard_at = time.time()

    @property
    def full(self) -> bool:
        return self._size >= self._limit

    @property
    def held_bytes(self) -> int:
        """What is held in memory."""
        return self._size

    @property
    def kept_until(self) -> float:
        """When the oldest arrived that is held in memory alone, here or with whoever empties the socket."""
        with self._changed:
            return min(self._batches[0].arrived, self.heard_at) if self._batches else self.heard_at

    def put(self, bodies: Sequence[Body], arrived: float | None = None) -> None:
        """Keep what has been read, just now or when it ``arrived``, or drop and count it."""
        kept = self._without_refused(bodies) if self._unwrap is None and self._drops else bodies
        size = sum(len(body) + MESSAGE_OVERHEAD for body in kept if type(body) is bytes)
        batch = Batch(time.time() if arrived is None else arrived, kept, size)
        if size >= BURST_BYTES:
            self._burst_at = time.monotonic()
        with self._changed:
            if self._keep(batch):
                self._changed.notify()
                return
        dropped = self._count(bodies)  # not under the lock: it takes a while
        with self._changed:
            self._dropped += dropped
            self._changed.notify()

    def _without_refused(self, bodies: Sequence[Body]) -> list[Body]:
        """What may have to wait on disk; who sent the rest is noted at once."""
        with self._changed:
            self._note(each for each in bodies if isinstance(each, RefusedEvents))
        return [each for each in bodies if not isinstance(each, RefusedEvents)]

    def _note(self, refused: Iterable[RefusedEvents]) -> None:
        for each in refused:
            if len(self._refused) < MOST_REFUSED:
                self._refused.add(each)

    def _keep(self, batch: Batch) -> bool:
        if self._should_spool(batch.size) and self._wait_on_disk(batch):
            return True
        if self._drops and self._size and self._size + batch.size > self._limit:
            return False
        self._batches.append(batch)
        self._size += batch.size
        return True

    def _wait_on_disk(self, batch: Batch) -> bool:
        bodies = [None if isinstance(each, RefusedEvents) else each for each in batch.bodies]
        return self._spool is not None and self._spool.append(batch.arrived, bodies)

    def _should_spool(self, size: int) -> bool:
        if self._spool is not None and not self._spool.empty:
            return True  # behind what waits there already
        behind = time.monotonic() - self._taken_at > AWAY_SECONDS
        return self._size + size > self._limit // 2 or (behind and self._size > 0)

    def fail(self, error: BrokerUnavailable) -> None:
        """The connection is lost: said by take() once everything kept has been taken."""
        with self._changed:
            self._error = error
            self._changed.notify()

    def discard(self, before: float) -> None:
        """Drop what arrived before, and say as take() does that the connection is lost."""
        with self._changed:
            self._taken_at = time.monotonic()  # somebody looks after it: memory will do as long as it holds
            while self._waiting and self._next_arrived() < before:
                self._pop()
            if self._spool is not None:
                self._spool.commit()
            if self._error:
                raise self._error

    def commit(self) -> None:
        """What was taken is stored: the spool may let go of it."""
        if self._spool is not None:
            with self._changed:
                self._spool.commit()

    def close(self) -> None:
        """Leave what nobody has taken in the spool, for the next receiver."""
        if self._spool is None:
            return
        with self._changed:
            while self._batches and self._wait_on_disk(self._batches[0]):
                self._pop()
            self._spool.close()

    def forget(self) -> None:
        """Drop what was not taken: the broker will deliver it again."""
        with self._changed:
            self._batches.clear()
            self._size = 0

    def take(self, timeout: float, batch_events: int, batch_seconds: float) -> Delivery:
        """Decode what is there, up to about ``batch_events`` or BATCH_BYTES that came within ``batch_seconds``."""
        self._yield_to_reader()
        first = self._next(timeout)
        if first is None:
            return Delivery([], time.time(), 0, self._take_dropped(), refused=self._take_refused())
        events: list[Event] = []
        malformed = size = 0
        batch: Batch | None = first
        while batch is not None:
            malformed += self._decode(batch.bodies, events)
            self.messages_taken += len(batch.bodies)
            size += batch.size
            more = len(events) < batch_events and size < BATCH_BYTES
            batch = self._next_before(first.arrived + batch_seconds) if more else None
        return Delivery(events, first.arrived, malformed, self._take_dropped(), refused=self._take_refused())

    def _yield_to_reader(self) -> None:
        latest = time.monotonic() + YIELD_SECONDS
        while self._drops and self._burst_at + BURST_SECONDS > time.monotonic() < latest:
            time.sleep(BURST_SECONDS / 2)

    def _next(self, timeout: float) -> Batch | None:
        with self._changed:
            self._taken_at = time.monotonic()
            self._changed.wait_for(lambda: self._waiting or self._error or self._dropped, timeout)
            if self._waiting:
                return self._pop()
            if self._error and not self._dropped:
                raise self._error
            return None

    def _next_before(self, latest: float) -> Batch | None:
        # One Delivery has one time of arrival: what came much later goes into the next.
        with self._changed:
            return self._pop() if self._waiting and self._next_arrived() <= latest else None

    def _next_arrived(self) -> float:
        """Of the oldest that waits; 0 where that cannot be read."""
        if self._batches:
            return self._batches[0].arrived
        return (self._spool.next_arrived() if self._spool is not None else None) or 0.0

    @property
    def waits(self) -> bool:
        """Something was put in and not taken."""
        with self._changed:
            return self._waiting

    @property
    def _waiting(self) -> bool:
        return bool(self._batches) or (self._spool is not None and not self._spool.empty)

    def _from_spool(self) -> Batch:
        record = self._spool.read() if self._spool is not None else None
        if record is None:
            return Batch(time.time(), [], 0)
        return Batch(record.arrived, [None] if record.damaged else record.bodies, 0)

    def _pop(self) -> Batch:
        batch = self._batches.popleft() if self._batches else self._from_spool()
        self._size -= batch.size
        return batch

    def _take_dropped(self) -> int:
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped

    def _take_refused(self) -> tuple[RefusedEvents, ...]:
        if not self._refused:
            return ()
        with self._changed:
            refused, self._refused = tuple(self._refused), set()
        return refused

    def _decode(self, bodies: Iterable[Body], events: list[Event]) -> int:
        malformed = 0
        for wrapped in bodies:
            body = self._unwrap(wrapped) if self._unwrap is not None and isinstance(wrapped, bytes) else wrapped
            if body is None:
                malformed += 1
                continue
            if isinstance(body, RefusedEvents):
                with self._changed:
                    self._note((body,))
                continue
            decoded, bad = decode(body)
            events += decoded
            malformed += bad
        return malformed

    def _count(self, bodies: Iterable[Body]) -> int:
        unwrap = self._unwrap or (lambda body: body)
        unwrapped = (unwrap(body) if isinstance(body, bytes) else body for body in bodies)
        return sum(count(body) if isinstance(body, bytes) else 1 for body in unwrapped)
