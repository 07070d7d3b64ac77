"""The message of a task that the broker still has: in its queue, or delivered and not acknowledged.

On Redis both can be read in place: a queue is a list, and delivered messages stay in a hash until they are acknowledged
(kombu/transport/redis.py). RabbitMQ shows a message only by delivering it, and never one that a worker has: there a
queue is read only when a user asks for it.
"""

import json
import time
from base64 import b64decode
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any, NamedTuple

import msgspec
from kombu.utils.json import dumps

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.amqp import AmqpMessages
from celery_monitor.brokers.connection import broker_unavailable, link, short_error
from celery_monitor.brokers.lazy import redis
from celery_monitor.brokers.queues import task_id_of
from celery_monitor.brokers.redis import lists_of, walk
from celery_monitor.core.message import with_links
from celery_monitor.records.event import READ, REMOVED, UNACKED, WAITING, Message
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

MOST_READ = 20_000  # messages in one search
MOST_BYTES = 64_000_000
MOST_SECONDS = 1.0
MOST_DELIVERED = 500  # messages that RabbitMQ delivers in one search
SCANNED = 200  # entries of the hash per request
# Properties of a delivery, and those that have a field of their own.
LEFT_OUT = frozenset(
    {
        "delivery_info",
        "delivery_tag",
        "body_encoding",
        "application_headers",
        "content_type",
        "content_encoding",
        "headers",
    }
)


class FoundMessages(NamedTuple):
    """Messages by the ids of their tasks. ``whole``: nothing was left out of the search."""

    messages: dict[str, Message]
    whole: bool


class StoredMessage(NamedTuple):
    """A message as Redis has it; ``queue`` is None in the hash of delivered messages."""

    payload: bytes
    queue: str | None

    def unwrap(self) -> tuple[bytes, str | None, str | None]:
        """The message itself, its exchange and routing key; both are unknown in a queue. Raises ValueError."""
        if self.queue is not None:
            return self.payload, None, None
        raw, exchange, key = _read_entry(self.payload)
        return bytes(raw), exchange, key


class StoredMessages:
    """Messages in the order of delivery, until a limit of the search is reached."""

    def __init__(self, found: Iterator[StoredMessage]) -> None:
        self._found = found
        self.whole = True  # no limit was reached

    def __iter__(self) -> Iterator[StoredMessage]:
        until, size = time.monotonic() + MOST_SECONDS, 0
        for number, stored in enumerate(self._found):
            size += len(stored.payload)
            if number == MOST_READ or size > MOST_BYTES or time.monotonic() > until:
                self.whole = False
                return
            yield stored


def can_read_messages(broker: Broker) -> bool:
    """Whether messages can be searched in place."""
    return transport_of(broker.url) in {"redis", "sentinel"}


def can_read_by_delivery(broker: Broker) -> bool:
    """Whether messages can be searched by having them delivered and requeued."""
    return transport_of(broker.url) == "amqp"


def find_task_messages(
    broker: Broker, settings: Settings, ids: Collection[str], queues: Sequence[str]
) -> FoundMessages:
    """The messages of these tasks in these queues, or unacknowledged; only where ``can_read_messages``.

    At most MOST_READ messages are searched, in the order of delivery. Raises BrokerUnavailable.
    """
    found: dict[str, Message] = {}
    with stored_messages(broker, settings, queues) as messages:
        for stored in messages:
            message = _message_of(stored, ids)
            if message is not None:
                found.setdefault(*message)
                if len(found) == len(ids):
                    break
    return FoundMessages(found, messages.whole)


@contextmanager
def stored_messages(broker: Broker, settings: Settings, queues: Sequence[str]) -> Iterator[StoredMessages]:
    """The unacknowledged messages and those in these queues. Raises BrokerUnavailable."""
    with link(broker, settings) as connection:
        channel: Any = connection.default_channel
        client: Any = redis.Redis(connection_pool=channel.pool)
        unacked = f"{channel.global_keyprefix}{channel.unacked_key}"
        delivered = (StoredMessage(value, None) for _, value in client.hscan_iter(unacked, count=SCANNED))
        lists = (StoredMessage(value, queue) for queue in queues for _, value in walk(client, lists_of(channel, queue)))
        try:
            yield StoredMessages(chain(delivered, lists))
        except redis.ResponseError as error:  # a key of another type, or one without permission
            raise broker_unavailable(broker, f"does not let messages be read ({short_error(error)})") from error


_CELERY_NAMES = {"uuid": "id", "name": "task", "args": "argsrepr", "kwargs": "kwargsrepr"}


class Headers(msgspec.Struct, frozen=True, rename=_CELERY_NAMES):
    """The headers of a task's message (protocol 2), under the names of the same fields in Celery's events."""

    uuid: str
    name: str
    args: str | None = None
    kwargs: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    retries: int | None = None
    eta: str | None = None
    expires: str | None = None


class LocatedMessage(NamedTuple):
    """A task's message; ``queue`` is None where it is delivered and not acknowledged."""

    headers: Headers
    queue: str | None


class Survey(NamedTuple):
    """Messages by the ids of their tasks. ``whole``: nothing was left out of the search."""

    messages: dict[str, LocatedMessage]
    whole: bool


class _WithHeaders(msgspec.Struct):
    headers: Headers


_read_headers = msgspec.json.Decoder(_WithHeaders).decode


def survey(broker: Broker, settings: Settings, queues: Collection[str]) -> Survey:
    """All messages of these queues and the unacknowledged ones, where they can be read in place.

    Raises BrokerUnavailable.
    """
    if not can_read_messages(broker):
        return Survey({}, whole=False)
    located: dict[str, LocatedMessage] = {}
    with stored_messages(broker, settings, sorted(queues)) as messages:
        for stored in messages:
            try:
                headers = _read_headers(stored.unwrap()[0]).headers
            except (ValueError, TypeError):  # not a task's message
                continue
            located[headers.uuid] = LocatedMessage(headers, stored.queue)
    return Survey(located, messages.whole)


_read_entry = msgspec.json.Decoder(tuple[msgspec.Raw, str | None, str | None]).decode


def _message_of(stored: StoredMessage, ids: Collection[str]) -> tuple[str, Message] | None:
    """The task's id and message, where it is one of these; ``None`` also where it is not a task's message."""
    try:
        payload, exchange, key = stored.unwrap()
        task_id = task_id_of(payload)
        if task_id is None or task_id not in ids:
            return None
        return task_id, of_payload(payload, stored.queue, exchange, key)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def of_payload(payload: bytes, queue: str | None, exchange: str | None = None, key: str | None = None) -> Message:
    """A message as virtual transports store it: JSON around a body in base64.

    Raises ValueError, LookupError, TypeError or AttributeError where it is none.
    """
    stored = json.loads(payload)
    properties = stored["properties"]
    encoded = properties.get("body_encoding") == "base64"
    body = b64decode(stored["body"]) if encoded else str(stored["body"]).encode()
    delivery = properties.get("delivery_info") or {}
    routing_key = key or delivery.get("routing_key")
    exchange = exchange if exchange is not None else delivery.get("exchange")
    message = Message(
        why=UNACKED if queue is None else WAITING,
        size=len(body),
        headers=dumps(stored["headers"]),
        properties=_properties(properties),
        body=body,
        content_type=stored.get("content-type"),
        content_encoding=stored.get("content-encoding"),
        exchange=exchange,
        routing_key=routing_key,
        # Sent to the default exchange, the key is the queue's name; else the hash does not say.
        queue=queue or (None if exchange else routing_key),
    )
    return with_links(message)


def find_by_delivery(broker: Broker, settings: Settings, task_id: str, queue: str) -> FoundMessages:
    """One task's message on RabbitMQ: messages of the queue are delivered until it is found, and requeued.

    Raises BrokerUnavailable, NotFound and Unsupported as ``AmqpMessages`` does.
    """
    with closing(AmqpMessages(broker, settings, queue).deliveries(MOST_DELIVERED)) as messages:
        for number, message in enumerate(messages, 1):
            headers = message.properties.get("application_headers") or {}
            if headers.get("id") == task_id:
                return FoundMessages({task_id: _of_amqp(message, queue)}, whole=True)
            if number == MOST_DELIVERED:
                return FoundMessages({}, whole=not message.delivery_info["message_count"])
    return FoundMessages({}, whole=True)


def _of_amqp(message: Any, queue: str) -> Message:
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
    given = message.properties
    found = Message(
        why=READ,
        size=len(body),
        headers=dumps(given.get("application_headers") or {}),
        properties=_properties(given),
        body=body,
        content_type=given.get("content_type"),
        content_encoding=given.get("content_encoding"),
        exchange=message.delivery_info.get("exchange"),
        routing_key=message.delivery_info.get("routing_key"),
        queue=queue,
    )
    return with_links(found)


def of_removed(removed: Any, queue: str) -> tuple[str, Message] | None:
    """The task's id and message, from what ``QueueMessages`` has removed; ``None`` where it is not a task's message."""
    try:
        found = of_payload(removed, queue) if isinstance(removed, bytes) else _of_amqp(removed, queue)
        task_id = json.loads(found.headers).get("id")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return (task_id, msgspec.structs.replace(found, why=REMOVED)) if isinstance(task_id, str) and task_id else None


def _properties(given: Mapping[str, Any]) -> str:
    return str(dumps({name: value for name, value in given.items() if name not in LEFT_OUT}))
