"""Examines a broker and its workers for doctor. The queue that it declares for that is deleted with the connection."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import uuid4

import amqp
from celery.events.event import get_exchange
from kombu import Connection, Consumer, Queue
from kombu.message import Message

from celery_monitor.addresses import require_supported
from celery_monitor.brokers.amqp import read_management_api
from celery_monitor.brokers.connection import app_for, keep_compressed, link
from celery_monitor.brokers.event_queue.post import uses_queues
from celery_monitor.brokers.lazy import redis
from celery_monitor.brokers.queues import PassiveDeclarations
from celery_monitor.brokers.remote import Remote
from celery_monitor.core.health.checks import BrokerFacts, EventQueue, Sender
from celery_monitor.errors import BrokerUnavailable
from celery_monitor.receiver.decode import decode, json_of
from celery_monitor.records.receiver import RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

LISTEN_SECONDS = 3.0  # a worker beats every 2 s
ANSWER_SECONDS = 1.0


def examine_broker(broker: Broker, settings: Settings, seconds: float = LISTEN_SECONDS) -> BrokerFacts:
    """Listens to events for up to ``seconds``, except to those in a queue, which are the receiver's.

    Raises BrokerUnavailable, and Unsupported where a package is missing.
    """
    transport = require_supported(broker.url)
    in_queue = uses_queues(broker, settings)
    remote = Remote(broker, settings)
    answers: Counter[str] = Counter()
    remote.ask("ping", timeout=ANSWER_SECONDS, on_reply=lambda reply: answers.update([reply.worker]))
    workers = sorted(answers)
    conf = remote.ask("conf", {"with_defaults": True}, workers, ANSWER_SECONDS)
    own = f"{app_for(broker, settings).conf.event_queue_prefix}.{settings.node_id}"
    with link(broker, settings) as connection:
        redis = _redis(connection) if transport == "redis" else None
        queues = _queues(connection, own, settings) if transport == "amqp" else None
        exchange = app_for(broker, settings).conf.event_exchange
        listened = None if in_queue else _listen(connection, exchange, transport, workers, seconds)
    return BrokerFacts(
        transport=transport,
        workers=workers,
        answers=answers,
        capture_key=bool(settings.capture_key),
        conf={name: reply.ok for name, reply in conf.items() if isinstance(reply.ok, dict)},
        senders=None if listened is None else listened.senders,
        refused={} if listened is None else listened.refused,
        redis=redis,
        queues=queues,
        own_queue=own,
        event_queue=settings.event_queue if in_queue else None,
    )


def _redis(connection: Connection) -> Mapping[str, object]:
    channel: Any = connection.default_channel
    found: dict[str, object] = {}
    with suppress(redis.RedisError):  # a managed Redis refuses some of these commands
        found |= channel.client.info("memory")
    with suppress(redis.RedisError):
        name = "client-output-buffer-limit"
        found["pubsub_limit"] = channel.client.config_get(name).get(name)
    return found


def _queues(connection: Connection, own: str, settings: Settings) -> list[EventQueue]:
    """Our event queue; with the management API also those of other monitors."""
    if settings.broker_api is not None:
        try:
            rows = read_management_api(settings.broker_api, connection.virtual_host or "/")
        except (OSError, ValueError) as error:
            raise BrokerUnavailable(f"the management API does not answer: {error}. Check --broker-api.") from error
        named = [row for row in rows if isinstance(row, dict) and str(row.get("name")).startswith("celeryev.")]
        found = [
            EventQueue(str(row["name"]), int(row.get("messages", 0)), int(row.get("consumers", 0))) for row in named
        ]
        return [queue for queue in found if not queue.name.endswith(".witness")]
    with PassiveDeclarations(connection) as declarations:
        declared = declarations.declare(own)
    return [EventQueue(own, declared.message_count, declared.consumer_count)] if declared else []


class _Listened(NamedTuple):
    """Senders of events, and by hostname the content type of events that cannot be read."""

    senders: dict[str, Sender]
    refused: dict[str, str]


def _listen(
    connection: Connection, exchange_name: str, transport: str, workers: Sequence[str], seconds: float
) -> _Listened | None:
    """Ends early when every worker has sent an event. ``None`` where we may not listen.

    Whatever sends events declares their exchange first: where there is none, nobody does.
    """
    exchange = get_exchange(connection, name=exchange_name)
    exchange.no_declare = transport == "amqp"  # where it is durable, and declared by the first worker
    name = f"celeryev.doctor-{uuid4()}"
    queue = Queue(name, exchange, routing_key="#", auto_delete=True, durable=False, exclusive=True, expires=60)
    listened = _Listened({}, {})

    def receive(message: Message) -> None:
        now = time.time()
        body = json_of(message)
        if isinstance(body, RefusedEvents):
            listened.refused[body.hostname] = body.content_type
        for event in decode(body)[0] if isinstance(body, bytes) else ():
            if event.type.startswith("worker-"):
                listened.senders[event.hostname] = Sender(now - event.timestamp, event.sw_ver)

    try:
        with Consumer(keep_compressed(connection.channel()), [queue], on_message=receive, no_ack=True):
            deadline = time.monotonic() + seconds
            while (
                set(workers) - listened.senders.keys() - listened.refused.keys()
                and (left := deadline - time.monotonic()) > 0
            ):
                with suppress(TimeoutError):
                    connection.drain_events(timeout=left)
    except amqp.NotFound:
        return listened
    except connection.channel_errors:
        return None
    return listened
