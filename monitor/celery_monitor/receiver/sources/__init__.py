"""Where events come from: one module per way of reading a broker, and the choice among them."""

import logging

from celery_monitor.addresses import require_supported, without_password
from celery_monitor.brokers.event_queue.post import uses_queues
from celery_monitor.errors import Unsupported
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.receiver.sources.amqp import AmqpSource
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.sources.event_queue import QueueSource
from celery_monitor.receiver.sources.kombu import KombuSource
from celery_monitor.receiver.sources.redis import RedisSource, serves
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

log = logging.getLogger(__name__)


def make_source(broker: Broker, settings: Settings, helpers: HelperFailures | None = None) -> Source:
    """The fastest source that serves this broker as it is configured, or the one that ``settings.source`` names.

    Raises Unsupported for a source that cannot read there, SettingsError where there is no such transport.
    """
    transport, source = require_supported(broker.url), settings.source
    if uses_queues(broker, settings):
        return QueueSource(broker, settings)
    if source not in {"auto", "kombu", transport}:
        raise Unsupported(f"source {source} cannot read from {without_password(broker.url)}; use auto or kombu")
    if transport == "amqp" and source != "kombu":
        return AmqpSource(broker, settings)
    if transport == "redis" and (source == "redis" or (source == "auto" and serves(broker, settings))):
        return RedisSource(broker, settings, helpers)
    if source == "auto":
        log.info("%s is read through kombu", without_password(broker.url))
    return KombuSource(broker, settings)
