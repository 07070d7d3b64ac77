"""Publishing a task by name, without its code, and with certainty whether the broker accepted it."""

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
from celery_monitor.errors import InvalidInput, NotTaken, TakenUnknown
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

# Of the options of apply_async, those of the message's delivery, and those that go into its headers.
PUBLISHING = ("queue", "exchange", "routing_key", "priority", "compression", "delivery_mode", "headers")
IN_HEADERS = ("countdown", "eta", "expires", "retries", "time_limit", "soft_time_limit", "ignore_result", "shadow")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message is published. With the empty exchange the routing key is the queue's name."""

    exchange: str
    routing_key: str

    @property
    def queue(self) -> str | None:
        return None if self.exchange else self.routing_key

    def __str__(self) -> str:
        return f"queue {self.queue}" if self.queue else f"exchange {self.exchange} with key {self.routing_key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCall:
    """A new task: protocol 2 with JSON, without retries, expiry or callbacks."""

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
    """A message to be published unchanged. ``queue`` is used if its route leads to no queue."""

    id: str
    route: Route
    queue: str | None
    body: bytes
    content_type: str
    content_encoding: str | None
    headers: dict[str, Any]
    properties: dict[str, Any]


class _Prepared(NamedTuple):
    """The arguments of a producer, and the task-sent event."""

    body: object
    encoding: dict[str, Any]  # kombu does not serialize a body that has a content type
    headers: dict[str, Any]
    properties: dict[str, Any]
    event: dict[str, object]


class Publisher:
    """Publishes tasks over one open connection."""

    def __init__(self, app: Celery, connection: Connection) -> None:
        self.app = app
        self.connection = connection
        self.returned: list[str] = []
        self.refusals = (*connection.channel_errors, MessageNacked, SerializationError)
        self.lost = lost(connection)
        self.producer = self._producer()

    def send(self, call: TaskCall | Copy) -> None:
        """Returns when the broker has the message. Raises NotTaken, and TakenUnknown when it did not confirm."""
        prepared = self._prepare(call)
        self.returned.clear()
        route = call.route
        try:
            route = self._reachable(call)
            self._publish(route, prepared)
        except self.refusals as error:
            self.producer = self._producer()  # RabbitMQ closes a channel after an error
            raise NotTaken(f"The broker refused the message for {route}: {short_error(error)}") from error
        except self.lost as error:
            raise TakenUnknown(
                f"The connection was lost while the message was sent to {route} ({short_error(error)}): "
                "it may have arrived. Look for the new task before sending it again"
            ) from error
        if self.returned:
            raise NotTaken(f"The broker has no {route}: {self.returned[0]}. Name a queue that exists")
        self._announce(route, prepared.event)

    def send_with_options(
        self, task_id: str, name: str, args: list[object], kwargs: dict[str, object], options: dict[str, Any]
    ) -> None:
        """As ``Celery.send_task`` does, which creates a queue that is missing. Raises as ``send``, and InvalidInput."""
        amqp = self.app.amqp
        try:
            routed = amqp.router.route(options, name, args, kwargs)
            publishing = {each: routed.pop(each) for each in PUBLISHING if each in routed}
            message = amqp.as_task_v2(task_id, name, args, kwargs, create_sent_event=True, **routed)
            amqp.send_task_message(self.producer, name, message, retry=False, serializer="json", **publishing)
        except self.refusals as error:
            raise NotTaken(f"The broker refused {name}: {short_error(error)}") from error
        except self.lost as error:
            raise TakenUnknown(f"The connection was lost while {name} was sent: it may have arrived") from error
        except (TypeError, ValueError, LookupError) as error:
            raise InvalidInput(f"{name} cannot be sent with these options: {short_error(error)}") from error

    def _prepare(self, call: TaskCall | Copy) -> _Prepared:
        return self._copy(call) if isinstance(call, Copy) else self._message(call)

    def _reachable(self, call: TaskCall | Copy) -> Route:
        """The route, or the queue of a Copy: a virtual transport silently drops messages without a bound queue.

        Raises NotTaken.
        """
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

    def _copy(self, copy: Copy) -> _Prepared:
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
        encoding = {"content_type": copy.content_type, "content_encoding": copy.content_encoding}
        return _Prepared(copy.body, encoding, headers, {"delivery_mode": 2, **copy.properties}, event)

    def _message(self, call: TaskCall) -> _Prepared:
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
        return _Prepared(message.body, {"serializer": "json"}, message.headers, properties, message.sent_event)

    def _publish(self, route: Route, prepared: _Prepared) -> None:
        self.producer.publish(
            prepared.body,
            exchange=route.exchange,
            routing_key=route.routing_key,
            headers=prepared.headers,
            **prepared.encoding,
            mandatory=True,  # else RabbitMQ drops a message without a bound queue
            confirm_timeout=CONFIRM_SECONDS,
            retry=False,
            **prepared.properties,
        )

    def _producer(self) -> Producer:
        channel = self.connection.channel()
        has_returns = hasattr(channel, "events")  # py-amqp's; virtual transports return nothing
        return Producer(channel, auto_declare=False, on_return=self._on_return if has_returns else None)

    def _on_return(self, error: Exception, *_message: object) -> None:
        self.returned.append(short_error(error))

    def _announce(self, route: Route, event: dict[str, object]) -> None:
        """Celery's task-sent event, for us and other monitors: the task shows up before a worker receives it."""
        where = {"queue": route.queue, "exchange": route.exchange, "routing_key": route.routing_key}
        dispatcher = self.app.events.Dispatcher(enabled=False, buffer_while_offline=False)
        try:
            dispatcher.publish("task-sent", {**event, **where}, self.producer)
        except (*self.lost, *self.refusals, KombuError) as error:
            log.warning("task %s was sent, its task-sent event was not: %s", event["uuid"], short_error(error))


@contextmanager
def publisher(broker: Broker, settings: Settings) -> Iterator[Publisher]:
    """A publisher on an open connection. Raises BrokerUnavailable before anything is sent."""
    with link(broker, settings) as connection:
        yield Publisher(app_for(broker, settings), connection)
