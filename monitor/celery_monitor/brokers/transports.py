"""Which transport measures the queues of a broker and reads their messages. Raises Unsupported for what it cannot
do.
"""

from collections.abc import Callable
from typing import Any, Protocol

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.amqp import AmqpMessages, AmqpProbe
from celery_monitor.brokers.queues import GenericProbe, Probe, ReadMessages
from celery_monitor.brokers.redis import RedisMessages, RedisProbe
from celery_monitor.core.sanitize import Redactor
from celery_monitor.errors import Unsupported
from celery_monitor.settings import Broker, Settings

_PROBES: dict[str, type[GenericProbe]] = {"redis": RedisProbe, "sentinel": RedisProbe, "amqp": AmqpProbe}


def make_probe(broker: Broker, settings: Settings) -> Probe:
    """The probe for this transport; it connects when it first samples."""
    return _PROBES.get(transport_of(broker.url), GenericProbe)(broker, settings)


class QueueMessages(Protocol):
    """The messages of one queue. Each call has a connection of its own. Raises BrokerUnavailable, NotFound."""

    def read(self, limit: int) -> ReadMessages: ...

    def delete(self, digest: str) -> Any:
        """The message as the transport has it, removed; ``None`` where a worker received it meanwhile.

        Raises NotFound where it is not among those that are looked at.
        """
        ...

    def purge(self, see: Callable[[Any], bool]) -> int:
        """How many were removed. ``see`` gets each, as the transport has it, until it says that it saw enough."""
        ...


def messages_of(broker: Broker, settings: Settings, queue: str) -> QueueMessages:
    """The messages of a queue, by what its transport can do."""
    transport = transport_of(broker.url)
    redactor = Redactor(settings.redact)
    if transport in {"redis", "sentinel"}:
        return RedisMessages(broker, settings, queue, redactor)
    if transport == "amqp":
        return AmqpMessages(broker, settings, queue, redactor)
    raise Unsupported(f"The messages of a queue on {transport} can neither be read nor thrown away from here.")
