"""Sending a task by name, without its code, and knowing whether the broker took it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from amqp.exceptions import MessageNacked
from celery import Celery
from kombu import Connection, Producer
from kombu.exceptions import InconsistencyError, KombuError, SerializationError

from celery_monitor.brokers.connection import CONFIRM_SECONDS, app_for, link, lost, short_error
from celery_monitor.errors import NotTaken, TakenUnknown
from celery_monitor.settings import Broker, Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message goes. The empty exchange takes a queue's name as its routing key."""

    exchange: str
    routing_key: str

    @property
    def queue(self) -> str | None:
        return None if self.exchange else self.routing_key

    def __str__(self) -> str:
        return f"queue {self.queue}" if self.queue else f"exchange {self.exchange} with key {self.routing_key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCall:
    """A task to be run: protocol 2 with JSON, no retries yet, no expiry, no links."""

    id: str
    name: str
    args: list[object]
    kwargs: dict[str, object]
    route: Route
    countdown: float | None = None
    root_id: str | None = None
    parent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A message to be sent as it is. ``queue`` is where it goes if its route leads nowhere from here."""

    id: str
    route: Route
    queue: str | None
    body: bytes
    content_type: str
    content_encoding: str | None
    headers: dict[str, Any]
    properties: dict[str, Any]


class _Ready(NamedTuple):
    """What a producer is given, and the task-sent event that tells of it."""

    body: object
    how: dict[str, Any]  # kombu does not serialise what has a content type
    headers: dict[str, Any]
    properties: dict[str, Any]
    event: dict[str, object]


class Publisher:
    """Sends calls over one open connection."""

    def __init__(self, app: Celery, connection: Connection) -> None:
        self.app = app
        self.connection = connection
        self.returned: list[str] = []
        self.no = (*connection.channel_errors, MessageNacked, SerializationError)
        self.lost = lost(connection)
        self.producer = self._producer()

    def send(self, call: TaskCall | Copy) -> None:
        """Returns when the broker has the message; raises NotTaken, or TakenUnknown when it did not answer."""
        ready = self._ready(call)
        self.returned.clear()
        route = call.route
        try:
            route = self._reachable(call)
            self._publish(route, ready)
        except self.no as error:
            self.producer = self._producer()  # RabbitMQ closes the channel of one who errs
            raise NotTaken(f"The broker refused the message for {route}: {short_error(error)}") from error
        except self.lost as error:
            raise TakenUnknown(
                f"The connection was lost while the message went to {route} ({short_error(error)}): "
                "it may have arrived. Look for the new task before sending it again"
            ) from error
        if self.returned:
            raise NotTaken(f"The broker has no {route}: {self.returned[0]}. Name a queue that exists")
        self._announce(route, ready.event)

    def _ready(self, call: TaskCall | Copy) -> _Ready:
        return self._copy(call) if isinstance(call, Copy) else self._message(call)

    def _reachable(self, call: TaskCall | Copy) -> Route:
        """A virtual transport drops in silence what its table of bindings has no queue for."""
        route, channel = call.route, self.producer.channel
        if not route.exchange or not hasattr(channel, "get_table"):
            return route
        try:
            table = channel.get_table(route.exchange)
            found = channel.typeof(route.exchange).lookup(table, route.exchange, route.routing_key, None)
        except (KeyError, InconsistencyError):
            found = None
        if found:
            return route
        if isinstance(call, Copy) and call.queue:
            return Route("", call.queue)
        raise NotTaken(f"The broker has no queue bound to {route}. Name a queue that exists")

    def _copy(self, copy: Copy) -> _Ready:
        headers = copy.headers
        event = {
            "uuid": copy.id,
            "root_id": headers.get("root_id"),
            "parent_id": headers.get("parent_id"),
            "name": headers.get("shadow") or headers.get("task"),
            "args": headers.get("argsrepr"),
            "kwargs": headers.get("kwargsrepr"),
            "retries": headers.get("retries"),
            "eta": headers.get("eta"),
            "expires": headers.get("expires"),
        }
        how = {"content_type": copy.content_type, "content_encoding": copy.content_encoding}
        return _Ready(copy.body, how, headers, {"delivery_mode": 2, **copy.properties}, event)

    def _message(self, call: TaskCall) -> _Ready:
        message = self.app.amqp.as_task_v2(
            call.id,
            call.name,
            call.args,
            call.kwargs,
            countdown=call.countdown,
            root_id=call.root_id,
            parent_id=call.parent_id,
            create_sent_event=True,
        )
        properties = {"delivery_mode": 2, **message.properties}
        return _Ready(message.body, {"serializer": "json"}, message.headers, properties, message.sent_event)

    def _publish(self, route: Route, ready: _Ready) -> None:
        self.producer.publish(
            ready.body,
            exchange=route.exchange,
            routing_key=route.routing_key,
            headers=ready.headers,
            **ready.how,
            mandatory=True,  # RabbitMQ drops what no queue takes, unless told to give it back
            confirm_timeout=CONFIRM_SECONDS,
            retry=False,
            **ready.properties,
        )

    def _producer(self) -> Producer:
        channel = self.connection.channel()
        has_returns = hasattr(channel, "events")  # py-amqp's; virtual transports take whatever they are given
        return Producer(channel, auto_declare=False, on_return=self._on_return if has_returns else None)

    def _on_return(self, error: Exception, *_message: object) -> None:
        self.returned.append(short_error(error))

    def _announce(self, route: Route, event: dict[str, object]) -> None:
        """Celery's own task-sent, for us and every other monitor: the new task is seen before a worker takes it."""
        where = {"queue": route.queue, "exchange": route.exchange, "routing_key": route.routing_key}
        dispatcher = self.app.events.Dispatcher(enabled=False, buffer_while_offline=False)
        try:
            dispatcher.publish("task-sent", {**event, **where}, self.producer)
        except (*self.lost, *self.no, KombuError) as error:
            log.warning("task %s was sent, its task-sent event was not: %s", event["uuid"], short_error(error))


@contextmanager
def publisher(broker: Broker, settings: Settings) -> Iterator[Publisher]:
    """A publisher on an open connection; BrokerUnavailable before anything is sent when there is none."""
    with link(broker, settings) as connection:
        yield Publisher(app_for(broker, settings), connection)
