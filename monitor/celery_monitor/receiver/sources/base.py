"""What a source of events is, and what all sources do alike."""

import time
from collections.abc import Callable
from typing import Protocol

from celery_monitor.errors import BrokerUnavailable
from celery_monitor.receiver.sources.reader import Body, MessageFormat, Reader, ReadingWorker
from celery_monitor.records.receiver import Delivery, RefusedEvents
from celery_monitor.settings import Broker, Settings


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


class ReadSource:
    """A source whose broker is read by a worker of its own."""

    keeps_events: bool

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._url = broker.url
        self._settings = settings
        self._folder = settings.spool_directory / broker.cluster  # where events wait on disk
        self._reader: Reader | None = None
        self._heard_at = time.time()

    @property
    def heard_at(self) -> float:
        return self._reader.heard_at if self._reader else self._heard_at

    @property
    def kept_until(self) -> float | None:
        if self.keeps_events:
            return None
        return self._reader.kept_until if self._reader else self._heard_at

    @property
    def waits(self) -> bool:
        return self._reader is not None and self._reader.waits

    def _read_from(
        self,
        worker: ReadingWorker,
        messages: MessageFormat,
        unwrap: Callable[[bytes], Body] = lambda body: body,
        refused: set[RefusedEvents] | None = None,
    ) -> None:
        self._reader = Reader(self._url, worker, messages, self._settings, unwrap, refused)

    def read(self, timeout: float) -> Delivery:
        if self._reader is None:
            raise BrokerUnavailable("not connected")
        try:
            return self._reader.take(timeout)
        except BrokerUnavailable:
            self.close()
            raise

    def acknowledge(self) -> None:
        if self._reader is not None:
            self._reader.commit(self._reader.messages_taken if self.keeps_events else self._reader.complete_records)

    def discard(self, before: float) -> None:
        """Nothing is held here where the broker keeps everything."""
        if self._reader is not None and not self.keeps_events:
            self._reader.discard(before)

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self._heard_at = reader.heard_at
            reader.close()
