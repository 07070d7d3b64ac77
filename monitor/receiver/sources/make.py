"""Which source serves which broker."""

import logging

from monitor.brokers.connection import require_events
from monitor.brokers.connection import without_password
from monitor.errors import Unsupported
from monitor.receiver.helpers import Helpers
from monitor.receiver.sources import redis
from monitor.receiver.sources.amqp import AmqpSource
from monitor.receiver.sources.base import Source
from monitor.receiver.sources.generic import KombuSource
from monitor.receiver.sources.redis import RedisSource
from monitor.settings import Broker
from monitor.settings import Settings

log = logging.getLogger(__name__)


def make_source(broker: Broker, settings: Settings, helpers: Helpers | None = None) -> Source:
    """The fastest source that serves this broker as it is configured, or the one that ``settings.source`` names.

    Raises Unsupported where Celery sends no events, SettingsError where there is no such transport.
    """
    transport = require_events(broker.url)
    if settings.source == "auto":
        return _fastest(transport, broker, settings, helpers)
    if settings.source == "kombu":
        return KombuSource(broker, settings)
    if settings.source != transport:
        raise Unsupported(
            f"source {settings.source} cannot read from {without_password(broker.url)}; take auto or kombu"
        )
    return RedisSource(broker, settings, helpers) if transport == "redis" else AmqpSource(broker, settings)


def _fastest(transport: str, broker: Broker, settings: Settings, helpers: Helpers | None) -> Source:
    if transport == "redis" and redis.serves(broker, settings):
        return RedisSource(broker, settings, helpers)
    if transport == "amqp":
        return AmqpSource(broker, settings)
    log.info("%s is read through kombu", without_password(broker.url))
    return KombuSource(broker, settings)
