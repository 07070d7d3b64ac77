"""RabbitMQ: queue depths and the messages of a queue.

Depths come from passive declarations and, where its address is set, from the management API. RabbitMQ shows a message
only by delivering it, so messages are received and requeued at once, as the management API does. A requeued message
keeps its position if nothing else was delivered meanwhile, is flagged *redelivered*, and a quorum queue counts a
delivery.
"""

import base64
import logging
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from time import time
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from amqp.exceptions import ChannelError
from amqp.exceptions import NotFound as QueueNotFound
from kombu import Connection

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.connection import link, short_error
from celery_monitor.brokers.queues import (
    LONGEST_NAME,
    GenericProbe,
    PassiveDeclarations,
    QueueMessage,
    QueueMessages,
    ReadMessages,
    describe,
    digest_of,
)
from celery_monitor.core.untrusted import LONGEST_JSON, decode_json
from celery_monitor.errors import NotFound, Unsupported
from celery_monitor.records.queue import Queue
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

API_SECONDS = 2.0
_log = logging.getLogger(__name__)


class AmqpProbe(GenericProbe):
    """Ready and consumers from a passive declaration, unacknowledged from the management API.

    AMQP does not show the head of a queue without delivering it. The head is the same as at an earlier sample if
    nothing was delivered meanwhile: the delivery counter of the management API did not change, or the queue had no
    consumer and never shrank. Otherwise ``oldest`` is unknown.
    """

    _api_failed = False

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        stats = self._queue_stats(connection)
        with PassiveDeclarations(connection) as declarations:
            return [self._queue(declarations, name, stats.get(name, {})) for name in queue_names]

    def _queue(self, declarations: PassiveDeclarations, name: str, stats: dict[str, object]) -> Queue:
        declared = declarations.declare(name)
        queue = Queue(cluster=self.broker.cluster, name=name, unacked=_integer(stats.get("messages_unacknowledged")))
        if declared:
            queue.ready, queue.consumers = declared.message_count, declared.consumer_count
            queue.oldest = self.heads.observe(name, _head_identity(queue, stats), time(), queue.ready)
        return queue

    def _queue_stats(self, connection: Connection) -> dict[str, dict[str, object]]:
        """Rows of the management API by queue; empty where none is configured, or it fails (logged once)."""
        if self.settings.broker_api is None:
            return {}
        try:
            rows = read_management_api(self.settings.broker_api, connection.virtual_host or "/")
        except (OSError, ValueError) as error:
            if not self._api_failed:
                _log.warning("the management API of RabbitMQ does not answer: %s. Check --broker-api.", error)
            self._api_failed = True
            return {}
        self._api_failed = False
        return {str(row.get("name")): row for row in rows if isinstance(row, dict)}


def _head_identity(queue: Queue, stats: dict[str, object]) -> object | None:
    """Equal as long as nothing was delivered from the queue; ``None``: unknown."""
    message_stats = stats.get("message_stats")
    delivered = _integer(message_stats.get("deliver_get", 0)) if isinstance(message_stats, dict) else None
    if not queue.ready:
        return None
    if delivered is not None:
        return "delivered", delivered
    return "unconsumed" if queue.consumers == 0 else None


def queue_is_missing(broker: Broker, settings: Settings, name: str) -> bool:
    """Whether RabbitMQ reports that the queue does not exist; False if it refuses for another reason.

    Raises BrokerUnavailable.
    """
    if transport_of(broker.url) != "amqp" or len(name.encode()) > LONGEST_NAME:
        return False
    with link(broker, settings) as connection:
        channel = connection.channel()
        try:
            channel.queue_declare(queue=name, passive=True)
        except QueueNotFound:
            return True
        except connection.channel_errors:
            return False
        channel.close()
        return False


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def read_management_api(api: str, vhost: str) -> list[object]:
    """The queues of a virtual host. User and password in the URL become basic authentication.

    Raises OSError and ValueError.
    """
    parts = urlsplit(f"{api.rstrip('/')}/queues/{quote(vhost, safe='')}")
    if parts.scheme not in {"http", "https"}:
        raise ValueError("the address must begin with http:// or https://")
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit((parts.scheme, host, parts.path, "", "")))  # noqa: S310
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_header("Authorization", "Basic " + base64.b64encode(user).decode())
    with urllib.request.urlopen(request, timeout=API_SECONDS) as response:  # noqa: S310
        queues = decode_json(response.read(LONGEST_JSON + 1))
    if not isinstance(queues, list):
        raise ValueError("the answer is not a list of queues")  # noqa: TRY004
    return queues


MOST_BYTES = 32_000_000  # of the messages of one reading
MOST_SEARCHED = 500  # messages that stay unacknowledged during a search
READ_HAZARD = (
    "RabbitMQ shows a message only by delivering it. These were received and requeued immediately: they are now "
    "flagged as redelivered, may be in another order if workers received messages meanwhile, and a quorum queue "
    "counts this as a delivery towards its delivery limit."
)


class AmqpMessages(QueueMessages):
    """basic.get without acknowledgement; RabbitMQ requeues everything when the channel is closed."""

    def read(self, limit: int) -> ReadMessages:
        found: list[QueueMessage] = []
        size = 0
        more = False
        with self._channel() as channel:
            for message in self._deliveries(channel, limit):
                found.append(self._describe(message))
                size += len(message.body)
                more = bool(message.delivery_info["message_count"])
                if size > MOST_BYTES:
                    break
        return ReadMessages(messages=tuple(found), more=more, hazard=READ_HAZARD if found else None)

    def delete(self, digest: str) -> Any:
        """Acknowledges that message and returns it; the messages before it are requeued."""
        with self._channel() as channel:
            for message in self._deliveries(channel, MOST_SEARCHED):
                if self._describe(message).digest == digest:
                    channel.basic_ack(message.delivery_tag)
                    return message
        raise self.not_found(MOST_SEARCHED)

    def deliveries(self, limit: int) -> Generator[Any]:
        """The next messages as py-amqp has them; all are requeued when the generator is closed."""
        with self._channel() as channel:
            yield from self._deliveries(channel, limit)

    def purge(self, see: Callable[[Any], bool]) -> int:
        """RabbitMQ does not report what it purges: messages are received one by one, and only the rest is purged."""
        number = 0
        with self._channel() as channel:
            while (message := channel.basic_get(self.queue, no_ack=True)) is not None:
                number += 1
                if not see(message):
                    break
            return number + int(channel.queue_purge(self.queue))

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with link(self.broker, self.settings) as connection:
            try:
                with connection.channel() as channel:
                    yield channel
            except QueueNotFound:
                raise NotFound(f"RabbitMQ has no queue {self.queue!r}.") from None
            except ChannelError as error:
                raise Unsupported(f"RabbitMQ refuses this for queue {self.queue!r}: {short_error(error)}") from error

    def _deliveries(self, channel: Any, limit: int) -> Iterator[Any]:
        for _ in range(limit):
            message = channel.basic_get(self.queue, no_ack=False)
            if message is None:
                return
            yield message

    def _describe(self, message: Any) -> QueueMessage:
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        properties = message.properties
        headers = properties.get("application_headers") or {}
        task_id = str(headers.get("id") or properties.get("correlation_id") or "")
        envelope = {**properties, "headers": headers, "redelivered": message.delivery_info.get("redelivered")}
        return describe(body, envelope, digest_of(body, task_id.encode()), self.redactor)
