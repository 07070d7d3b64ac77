"""How deep queues are, by whatever each transport can tell."""

from monitor.brokers.amqp import AmqpProbe
from monitor.brokers.connection import transport_of
from monitor.brokers.generic import GenericProbe
from monitor.brokers.generic import Probe
from monitor.brokers.redis import RedisProbe
from monitor.settings import Broker
from monitor.settings import Settings

_PROBES: dict[str, type[GenericProbe]] = {"redis": RedisProbe, "sentinel": RedisProbe, "amqp": AmqpProbe}


def make_probe(broker: Broker, settings: Settings) -> Probe:
    """The probe for this transport; it connects when it first samples."""
    return _PROBES.get(transport_of(broker.url), GenericProbe)(broker, settings)
