"""RabbitMQ: queue depths and the messages of a queue.

Depths come from passive declarations and, where its address is set, from the management API. RabbitMQ shows a message
only by delivering it, so messages are received and requeued at once (the management API does the same and needs a
plug-in). A requeued message keeps its place where nothing was delivered meanwhile, is flagged *redelivered* from then
on, and a quorum queue counts a delivery.
"""

import base64
import json
import logging
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from time import time
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from amqp.exceptions import ChannelError
from amqp.exceptions import NotFound as QueueMissing
from amqp.exceptions import NotFound as QueueNotFound
from kombu import Connection

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.connection import link, short_error
from celery_monitor.brokers.queues import (
    LONGEST_NAME,
    Declarations,
    GenericProbe,
    QueueHeads,
    QueueMessage,
    QueueMessages,
    ReadMessages,
    describe,
    digest_of,
)
from celery_monitor.errors import NotFound, Unsupported
from celery_monitor.records.queue import Queue
from celery_monitor.settings import Broker, Settings

API_SECONDS = 2.0
_log = logging.getLogger(__name__)


class AmqpProbe(GenericProbe):
    """Ready and consumers from a passive declaration, unacknowledged from the management API.

    AMQP does not show the head of a queue without taking it. A queue has had the same head since it was first seen
    with messages if nothing was delivered meanwhile: its count of deliveries (management API) stood still, or it had
    no consumer and never shrank. Otherwise ``oldest`` is unknown.
    """

    _heads: QueueHeads | None = None
    _api_failed = False

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        self._heads = self._heads or QueueHeads()
        told = self._ask_api(connection)
        with Declarations(connection) as declarations:
            return [self._queue(declarations, name, told.get(name, {})) for name in queue_names]

    def _queue(self, declarations: Declarations, name: str, told: dict[str, object]) -> Queue:
        declared = declarations.ask(name)
        queue = Queue(cluster=self.broker.cluster, name=name, unacked=_whole(told.get("messages_unacknowledged")))
        if declared:
            queue.ready, queue.consumers = declared.message_count, declared.consumer_count
            queue.oldest = self._oldest(queue, told)
        return queue

    def _oldest(self, queue: Queue, told: dict[str, object]) -> float | None:
        heads = self._heads or QueueHeads()
        if not queue.ready:
            return heads.see(queue.name, None, time())
        stats = told.get("message_stats")
        delivered = _whole(stats.get("deliver_get", 0)) if isinstance(stats, dict) else None
        if delivered is not None:
            return heads.see(queue.name, ("delivered", delivered), time(), queue.ready)
        if queue.consumers == 0:
            return heads.see(queue.name, "unconsumed", time(), queue.ready)
        return heads.see(queue.name, None, time())

    def _ask_api(self, connection: Connection) -> dict[str, dict[str, object]]:
        """By queue, what the management API tells; nothing where there is none, or it fails (logged once)."""
        if self.settings.broker_api is None:
            return {}
        vhost = connection.virtual_host or "/"
        try:
            rows = ask_management(self.settings.broker_api, vhost)
        except (OSError, ValueError) as error:
            if not self._api_failed:
                _log.warning("the management API of RabbitMQ does not answer: %s. Check --broker-api.", error)
            self._api_failed = True
            return {}
        self._api_failed = False
        return {str(row.get("name")): row for row in rows if isinstance(row, dict)}


def queue_is_missing(broker: Broker, settings: Settings, name: str) -> bool:
    """Whether RabbitMQ says that it has no such queue; what it refuses to tell for another reason is not missing.

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


def ask_management(api: str, vhost: str) -> list[object]:
    """What the management API tells of the queues of a virtual host. Raises OSError and ValueError."""
    return _get(f"{api.rstrip('/')}/queues/{quote(vhost, safe='')}")


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _get(url: str) -> list[object]:
    """The JSON list at an http address; user and password in it become basic authentication."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise ValueError("its address must begin with http:// or https://")
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit((parts.scheme, host, parts.path, "", "")))  # noqa: S310
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_header("Authorization", "Basic " + base64.b64encode(user).decode())
    with urllib.request.urlopen(request, timeout=API_SECONDS) as answer:  # noqa: S310
        found = json.load(answer)
    if not isinstance(found, list):
        raise ValueError("it answered something else than a list of queues")  # noqa: TRY004
    return found


MOST_BYTES = 32_000_000  # held for one reading
MOST_HELD_UNACKED = 500  # messages held while the one to throw away is looked for
READ_HAZARD = (
    "RabbitMQ shows no message without delivering it. These were taken and put back at once: they are marked as "
    "redelivered from now on, may stand in another order if workers took messages meanwhile, and a quorum queue "
    "counts this as a delivery towards its delivery limit."
)


class AmqpMessages(QueueMessages):
    """basic.get without acknowledgement on a channel of its own, whose end puts everything back."""

    def read(self, limit: int) -> ReadMessages:
        found: list[QueueMessage] = []
        size = 0
        more = False
        with self._channel() as channel:
            for message in self._taken(channel, limit):
                found.append(self._describe(message))
                size += len(message.body)
                more = bool(message.delivery_info["message_count"])
                if size > MOST_BYTES:
                    break
        return ReadMessages(messages=tuple(found), more=more, hazard=READ_HAZARD if found else None)

    def delete(self, digest: str) -> Any:
        """Acknowledges that one, and gives it; those before it are put back, with what reading does to them."""
        with self._channel() as channel:
            for message in self._taken(channel, MOST_HELD_UNACKED):
                if self._describe(message).digest == digest:
                    channel.basic_ack(message.delivery_tag)
                    return message
        raise NotFound(
            f"It is not among the next {MOST_HELD_UNACKED} messages of {self.queue}: a worker may have taken it."
        )

    def taken(self, limit: int) -> Generator[Any]:
        """The next messages as the library has them; all are put back when the caller has seen enough."""
        with self._channel() as channel:
            yield from self._taken(channel, limit)

    def purge(self, see: Callable[[Any], bool]) -> int:
        """Removes every message, and gives their number. ``see`` gets each until it has seen enough.

        RabbitMQ does not tell what it purges: so messages are received, one by one, and the rest is purged.
        """
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
            except QueueMissing:
                raise NotFound(f"RabbitMQ has no queue {self.queue!r}.") from None
            except ChannelError as error:
                raise Unsupported(
                    f"RabbitMQ refuses this for the queue {self.queue!r}: {short_error(error)}"
                ) from error

    def _taken(self, channel: Any, limit: int) -> Iterator[Any]:
        """What is not acknowledged when the channel ends, however it ends, is put back by RabbitMQ itself."""
        for _ in range(limit):
            message = channel.basic_get(self.queue, no_ack=False)
            if message is None:
                return
            yield message

    def _describe(self, message: Any) -> QueueMessage:
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        properties = message.properties
        headers = properties.get("application_headers") or {}
        identity = str(headers.get("id") or properties.get("correlation_id") or "")
        envelope = {**properties, "headers": headers, "redelivered": message.delivery_info.get("redelivered")}
        return describe(body, envelope, digest_of(body, identity.encode()), self.redactor)
