"""Measures queues on any transport that kombu reaches; the base of the probes that can tell more."""

from collections.abc import Sequence
from typing import Any
from typing import Protocol
from typing import Self

from kombu import Connection

from monitor.brokers.connection import app_for
from monitor.brokers.connection import explained
from monitor.errors import BrokerUnavailable
from monitor.records import Queue
from monitor.settings import Broker
from monitor.settings import Settings

LONGEST_NAME = 255  # bytes of an AMQP short string: nobody has a queue of a longer name, whatever events say


class Probe(Protocol):
    """Measures queues of one cluster. For one thread."""

    def sample(self, queue_names: Sequence[str]) -> list[Queue]:
        """One Queue per name, in order. Raises BrokerUnavailable; the next sample connects again."""
        ...

    def close(self) -> None: ...


class GenericProbe:
    """What a passive declaration tells: the messages that wait. Virtual transports know no consumers."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self.broker = broker
        self.settings = settings
        self._connection: Connection | None = None

    def sample(self, queue_names: Sequence[str]) -> list[Queue]:
        try:
            with explained(self.broker.url):
                return self.measure(self._connected(), queue_names)
        except BrokerUnavailable:
            self.close()
            raise

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        """The same over an open connection; may raise whatever the broker's library raises."""
        with Declarations(connection) as declarations:
            return [self._measure(declarations, name) for name in queue_names]

    def close(self) -> None:
        """Ends the connection, which may be lost already."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.collect()

    def _measure(self, declarations: "Declarations", name: str) -> Queue:
        declared = declarations.ask(name)
        return Queue(cluster=self.broker.cluster, name=name, ready=declared.message_count if declared else None)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = app_for(self.broker, self.settings).connection_for_read(heartbeat=0)
        self._connection.ensure_connection(max_retries=1, interval_start=0)
        return self._connection


class Declarations:
    """Asks the broker about queues without making them, on a channel of its own for as long as that lasts."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def ask(self, name: str) -> Any:
        """What is said of one queue; ``None`` where it does not exist or cannot be seen. A refusal ends the channel."""
        if len(name.encode()) > LONGEST_NAME:
            return None
        if self._channel is None:
            self._channel = self._connection.channel()
        try:
            return self._channel.queue_declare(queue=name, passive=True)
        except self._connection.channel_errors:
            self._close()
            return None

    def _close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
