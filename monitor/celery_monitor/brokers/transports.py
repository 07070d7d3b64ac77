"""By transport: what measures the queues of a broker, and what reads the messages of a queue."""

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.amqp import AmqpMessages, AmqpProbe
from celery_monitor.brokers.event_queue.sqs import SqsMessages, SqsProbe
from celery_monitor.brokers.queues import GenericProbe, Probe, QueueMessages
from celery_monitor.brokers.redis import RedisMessages, RedisProbe
from celery_monitor.errors import Unsupported
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

_PROBES: dict[str, type[GenericProbe]] = {
    "redis": RedisProbe,
    "sentinel": RedisProbe,
    "amqp": AmqpProbe,
    "sqs": SqsProbe,
}
_MESSAGES: dict[str, type[QueueMessages]] = {
    "redis": RedisMessages,
    "sentinel": RedisMessages,
    "amqp": AmqpMessages,
    "sqs": SqsMessages,
}


def make_probe(broker: Broker, settings: Settings) -> Probe:
    """It connects at its first sample."""
    return _PROBES.get(transport_of(broker.url), GenericProbe)(broker, settings)


def messages_of(broker: Broker, settings: Settings, queue: str) -> QueueMessages:
    """Raises Unsupported where messages cannot be read."""
    transport = transport_of(broker.url)
    if transport not in _MESSAGES:
        raise Unsupported(f"Messages in queues on {transport} can be neither read nor deleted from here.")
    return _MESSAGES[transport](broker, settings, queue)
