"""The messages of a queue: read, thrown away one by one or all. What a transport cannot do raises Unsupported."""

from typing import Protocol

from monitor.brokers.amqp_messages import AmqpMessages
from monitor.brokers.connection import transport_of
from monitor.brokers.message import Reading
from monitor.brokers.redis_messages import RedisMessages
from monitor.errors import Unsupported
from monitor.redact import Redactor
from monitor.settings import Broker
from monitor.settings import Settings


class Messages(Protocol):
    """The messages of one queue. Each call has a connection of its own. Raises BrokerUnavailable, NotFound."""

    def read(self, limit: int) -> Reading: ...

    def delete(self, digest: str) -> bool:
        """Whether it was there and is gone. Raises NotFound where it is not among those that are looked at."""
        ...

    def purge(self) -> int:
        """How many were thrown away."""
        ...


def messages_of(broker: Broker, settings: Settings, queue: str) -> Messages:
    """The messages of a queue, by what its transport can do."""
    transport = transport_of(broker.url)
    redactor = Redactor(settings.redact)
    if transport in {"redis", "sentinel"}:
        return RedisMessages(broker, settings, queue, redactor)
    if transport == "amqp":
        return AmqpMessages(broker, settings, queue, redactor)
    raise Unsupported(f"The messages of a queue on {transport} can neither be read nor thrown away from here.")
