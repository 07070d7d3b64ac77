"""The messages of a queue: read, thrown away one by one or all. What a transport cannot do raises Unsupported."""

from collections.abc import Callable
from typing import Any
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

    def delete(self, digest: str) -> Any:
        """The message as the transport has it, removed; ``None`` where a worker received it meanwhile.

        Raises NotFound where it is not among those that are looked at.
        """
        ...

    def purge(self, see: Callable[[Any], bool]) -> int:
        """How many were removed. ``see`` gets each, as the transport has it, until it says that it saw enough."""
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
