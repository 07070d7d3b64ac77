"""Which source serves which broker."""

import logging

from celery_monitor.addresses import require_events, without_password
from celery_monitor.errors import Unsupported
from celery_monitor.receiver.helpers import Helpers
from celery_monitor.receiver.sources.amqp import AmqpSource
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.sources.kombu import KombuSource
from celery_monitor.receiver.sources.redis import RedisSource, serves
from celery_monitor.settings import Broker, Settings

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
    if transport == "redis" and serves(broker, settings):
        return RedisSource(broker, settings, helpers)
    if transport == "amqp":
        return AmqpSource(broker, settings)
    log.info("%s is read through kombu", without_password(broker.url))
    return KombuSource(broker, settings)
