"""The base class of all sources of events."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from celery_monitor.errors import BrokerUnavailable
from celery_monitor.receiver.sources.reader import Body, MessageFormat, Reader, ReadingWorker
from celery_monitor.records.receiver import Delivery, RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker


class Source(ABC):
    """Events of one broker, over one connection that a thread or process of its own reads."""

    name: str  # "redis", "amqp" or "kombu"
    keeps_events: bool  # the broker keeps events while we are away
    missed = True  # after connect(): events may be missing that were sent since the last connection

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._url = broker.url
        self._settings = settings
        self._folder = settings.spool_directory / broker.cluster
        self._reader: Reader | None = None
        self._acknowledged = 0
        self._last_received_at = time.time()

    @abstractmethod
    def connect(self) -> None:
        """Connects and subscribes, again if it was connected. Raises BrokerUnavailable within a few seconds."""

    @property
    def last_received_at(self) -> float:
        """When data last came from the broker: until then the connection was good."""
        return self._reader.last_received_at if self._reader else self._last_received_at

    @property
    def kept_until(self) -> float | None:
        """Unless read() returned it, what arrived before survives this process; ``None``: the broker keeps it."""
        if self.keeps_events:
            return None
        return self._reader.kept_until if self._reader else self._last_received_at

    @property
    def waits(self) -> bool:
        """Whether read() would return something at once, without an error."""
        return self._reader is not None and self._reader.waits

    def _read_from(
        self,
        worker: ReadingWorker,
        messages: MessageFormat,
        unwrap: Callable[[bytes], Body] = lambda body: body,
        refused: set[RefusedEvents] | None = None,
    ) -> None:
        self._use(Reader(self._url, worker, messages, self._settings, unwrap, refused))

    def _use(self, reader: Reader) -> None:
        self._acknowledged = 0
        self._reader = reader

    def read(self, timeout: float) -> Delivery:
        """What has arrived, at once if anything has, else an empty delivery after ``timeout`` seconds.

        Raises BrokerUnavailable when the connection is lost.
        """
        if self._reader is None:
            raise BrokerUnavailable("not connected")
        try:
            return self._reader.read(timeout)
        except BrokerUnavailable:
            self.close()
            raise

    def acknowledge(self) -> None:
        """Everything returned by read() so far is committed."""
        if self._reader is None:
            return
        number = self._reader.messages_read if self.keeps_events else self._reader.complete_records
        if number != self._acknowledged:
            self._reader.commit(number)
            self._acknowledged = number

    def guard(self) -> None:
        """Nothing is read for a while. Where that could lose events, something else begins to read. Thread-safe."""
        return

    def discard(self, before: float) -> None:
        """Drops what arrived before, as another receiver has stored it; raises as read() does.

        Does nothing where the broker keeps events.
        """
        if self._reader is not None and not self.keeps_events:
            self._reader.discard(before)

    def close(self) -> None:
        """Closes the connection. May be called at any time, also twice."""
        reader, self._reader = self._reader, None
        if reader is not None:
            self._last_received_at = reader.last_received_at
            reader.close()
