"""Measures queues on RabbitMQ: passive declarations, and the management API where its address is given."""

import base64
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Sequence
from time import time
from urllib.parse import quote
from urllib.parse import unquote
from urllib.parse import urlsplit
from urllib.parse import urlunsplit

from amqp.exceptions import NotFound
from kombu import Connection

from monitor.brokers.connection import transport_of
from monitor.brokers.generic import LONGEST_NAME
from monitor.brokers.generic import Declarations
from monitor.brokers.generic import GenericProbe
from monitor.brokers.heads import Heads
from monitor.brokers.link import link
from monitor.records import Queue
from monitor.settings import Broker
from monitor.settings import Settings

API_SECONDS = 2.0
_log = logging.getLogger(__name__)


class AmqpProbe(GenericProbe):
    """Ready and consumers from a passive declaration, unacknowledged from the management API.

    AMQP does not show the head of a queue without taking it. A queue has had the same head since it was first seen
    with messages if nothing was delivered meanwhile: its count of deliveries (management API) stood still, or it had
    no consumer and never shrank. Otherwise ``oldest`` is unknown.
    """

    _heads: Heads | None = None
    _api_failed = False

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        self._heads = self._heads or Heads()
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
        heads = self._heads or Heads()
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
        except NotFound:
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
