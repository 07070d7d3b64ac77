"""Publishing many tasks so that it is always certain whether the broker has them, even after a crash.

A batch has a token. It is published atomically with a mark that contains the token: on Redis in one MULTI/EXEC, on
RabbitMQ in one transaction of the channel. After a crash the next process checks the mark (``settle``). Where it is
missing, publishing the batch later is prevented at the same time: on Redis by a mark that forbids it, on RabbitMQ by an
exclusive queue that only one connection can own. So a process that was only suspended publishes nothing late.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from amqp.exceptions import ChannelError, PreconditionFailed, ResourceLocked
from amqp.exceptions import NotFound as DestinationNotFound
from celery import Celery
from kombu import Connection, Producer

from celery_monitor.brokers.connection import app_for, link, short_error
from celery_monitor.brokers.lazy import redis
from celery_monitor.brokers.publish import Copy, Publisher, Route, TaskCall
from celery_monitor.errors import BrokerUnavailable, NotTaken, TakenUnknown
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

log = logging.getLogger(__name__)

BATCH = 500  # tasks that one batch holds at most
PREFIX = "celery-monitor.bulk."  # of the names of marks
MARK_SECONDS = 7 * 86_400  # until a mark expires; a crashed job is resumed within seconds
HEARTBEAT_SECONDS = 60.0  # after two of them RabbitMQ releases the lock of a machine that is gone
SENT, NEVER = b"sent", b"never"


@dataclass(frozen=True, slots=True)
class Sending:
    """The result of a batch: the calls that were refused, with the reason; all others were accepted, unless ``doubt``
    says why that is unknown."""

    refused: dict[str, str] = field(default_factory=dict)
    doubt: str | None = None


class Batches(Publisher):
    """On any transport: one task at a time, as nothing shows afterwards whether it arrived."""

    size = 1

    def __init__(self, app: Celery, connection: Connection, job: str) -> None:
        self.job = job
        self.checked: set[Route] = set()  # routes that lead to a queue
        super().__init__(app, connection)

    def send_all(self, token: str, calls: Sequence[TaskCall | Copy]) -> Sending:  # noqa: ARG002
        """Raises BrokerUnavailable when nothing was sent, and TakenUnknown: then call ``settle``."""
        (call,) = calls
        try:
            self.send(call)
        except NotTaken as error:
            return Sending({call.id: error.message})
        return Sending()

    def settle(self, token: str) -> bool | None:  # noqa: ARG002
        """Whether the broker has the batch of this token, now and for ever; ``None``: that cannot be found out."""
        return None

    def beat(self) -> None:
        """Keeps the connection alive; to be called every few seconds while nothing is sent."""

    def end(self) -> None:
        """Deletes the job's mark at the broker."""

    def _announce_all(
        self, calls: Sequence[TaskCall | Copy], events: Sequence[dict[str, object]], channel: Any
    ) -> None:
        """One message with Celery's task-sent event of each call."""
        dispatcher = self.app.events.Dispatcher(
            self.connection,
            channel=channel,
            enabled=True,
            buffer_while_offline=False,
            buffer_group={"task"},
            buffer_limit=len(calls) + 1,
        )
        for call, event in zip(calls, events, strict=True):
            where = {"queue": call.route.queue, "exchange": call.route.exchange, "routing_key": call.route.routing_key}
            dispatcher.send("task-sent", **event, **where)
        dispatcher.flush()

    def _refusal(self, call: TaskCall | Copy) -> str | None:
        """Why this call cannot be sent: a virtual transport silently drops messages without a bound queue."""
        if call.route in self.checked:
            return None
        try:
            self._reachable(call)
        except NotTaken as error:
            return error.message
        self.checked.add(call.route)
        return None

    def _publish_all(self, calls: Sequence[TaskCall | Copy]) -> list[dict[str, object]]:
        """Returns the task-sent events."""
        events = []
        for call in calls:
            prepared = self._prepare(call)
            self._publish(self._reachable(call), prepared)
            events.append(prepared.event)
        return events


class _Recorder:
    """Replaces kombu's Redis client while messages are built: writes are recorded, reads are executed."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self.commands: list[tuple[str, str, object]] = []

    def lpush(self, key: str, value: object) -> None:
        self.commands.append(("LPUSH", key, value))

    def publish(self, topic: str, value: object) -> None:
        self.commands.append(("PUBLISH", topic, value))

    def pexpire(self, key: str, value: object) -> None:
        self.commands.append(("PEXPIRE", key, value))

    def pipeline(self) -> "nullcontext[_Recorder]":
        return nullcontext(self)

    def execute(self) -> None:
        """Nothing: all recorded commands are executed in one transaction later."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)


class RedisBatches(Batches):
    """Messages, events and the mark are one MULTI/EXEC."""

    size = BATCH

    def __init__(self, app: Celery, connection: Connection, job: str) -> None:
        super().__init__(app, connection, job)
        channel = self.producer.channel
        # kombu's own client prefixes some commands and not others; this one prefixes none.
        self.client = redis.Redis(connection_pool=channel.pool)
        self.prefix = channel.global_keyprefix or ""
        self.last: str | None = None

    def send_all(self, token: str, calls: Sequence[TaskCall | Copy]) -> Sending:
        missing = {call.id: why for call in calls if (why := self._refusal(call))}
        commands = self._commands([call for call in calls if call.id not in missing])
        mark = self._mark(token)
        try:
            with self.client.pipeline(transaction=True) as pipe:
                pipe.watch(mark)  # type: ignore[no-untyped-call]
                if pipe.get(mark) is not None:
                    raise TakenUnknown(f"The batch {token} was settled by another process meanwhile.")
                pipe.multi()
                pipe.set(mark, SENT, ex=MARK_SECONDS)
                if self.last:
                    pipe.delete(self.last)  # its outcomes are stored: it is never settled again
                for name, key, value in commands:
                    pipe.execute_command(name, f"{self.prefix}{key}", value)  # type: ignore[no-untyped-call]
                pipe.execute()
        except redis.WatchError as error:
            raise TakenUnknown(f"The batch {token} was settled by another process meanwhile.") from error
        except redis.ResponseError as error:  # out of memory, read-only: nothing was executed
            raise BrokerUnavailable(f"Redis refuses messages: {short_error(error)}.") from error
        except self.lost as error:
            raise TakenUnknown(f"The connection was lost while a batch was sent ({short_error(error)}).") from error
        self.last = mark
        return Sending(missing)

    def _commands(self, calls: Sequence[TaskCall | Copy]) -> list[tuple[str, str, object]]:
        channel = self.producer.channel
        recorder = _Recorder(channel.client)
        channel.conn_or_acquire = lambda client=None: nullcontext(client or recorder)
        try:
            self._announce_all(calls, self._publish_all(calls), channel)
        finally:
            del channel.conn_or_acquire
        return recorder.commands

    def settle(self, token: str) -> bool:
        mark = self._mark(token)
        if self.client.set(mark, NEVER, nx=True, ex=MARK_SECONDS):
            return False
        return self.client.get(mark) == SENT

    def end(self) -> None:
        if self.last:
            self.client.delete(self.last)

    def _mark(self, token: str) -> str:
        return f"{self.prefix}{PREFIX}{token}"


class AmqpBatches(Batches):
    """Messages, events and the mark are one transaction of the channel; the mark is the last message of a queue."""

    size = BATCH

    def __init__(self, app: Celery, connection: Connection, job: str) -> None:
        self.refused: dict[str, str] = {}
        self.mark, self.lock = f"{PREFIX}{job}", f"{PREFIX}{job}.lock"
        super().__init__(app, connection, job)
        self.plain = connection.channel()  # without transactions
        self._lock()

    def _lock(self) -> None:
        try:
            self.plain.queue_declare(self.lock, exclusive=True, auto_delete=False)
        except ResourceLocked as error:
            raise BrokerUnavailable(
                "The previous process of this job is still connected to RabbitMQ; "
                "the job continues when that connection ends."
            ) from error
        arguments = {"x-max-length": 1, "x-expires": MARK_SECONDS * 1000, "x-queue-type": "classic"}
        self.plain.queue_declare(self.mark, durable=True, auto_delete=False, arguments=arguments)

    def _producer(self) -> Producer:
        channel = self.connection.channel()
        channel.tx_select()
        return Producer(channel, auto_declare=False, on_return=self._refuse)

    def _refuse(self, error: Exception, _exchange: str, _routing_key: str, message: Any) -> None:
        self.refused[message.properties["correlation_id"]] = f"The broker has no queue for it: {short_error(error)}"

    def send_all(self, token: str, calls: Sequence[TaskCall | Copy]) -> Sending:
        missing = {call.id: why for call in calls if (why := self._refusal(call))}
        sendable = [call for call in calls if call.id not in missing]
        self.refused = {}
        if not sendable:
            return Sending(missing)
        channel = self.producer.channel
        try:
            self._announce_all(sendable, self._publish_all(sendable), channel)
            self.producer.publish(token, routing_key=self.mark, delivery_mode=2, serializer="json", retry=False)
            channel.tx_commit()
        except PreconditionFailed as error:
            self.producer = self._producer()  # RabbitMQ closes a channel after an error
            return Sending(
                missing, doubt=f"RabbitMQ accepted a part of a batch and does not say which: {short_error(error)}"
            )
        except (*self.refusals, *self.lost) as error:
            raise TakenUnknown(f"The connection was lost while a batch was sent ({short_error(error)}).") from error
        return Sending(missing | self.refused)

    def _refusal(self, call: TaskCall | Copy) -> str | None:
        """Checked before anything is sent: a missing queue or exchange would roll back the whole batch."""
        route = call.route
        if route in self.checked:
            return None
        channel = self.connection.channel()
        try:
            if route.queue is not None:
                channel.queue_declare(route.queue, passive=True)
            else:
                channel.exchange_declare(route.exchange, "direct", passive=True)
        except DestinationNotFound:
            return f"The broker has no {route}"
        except ChannelError as error:  # it exists, and we have no permission to check it
            log.debug("cannot check %s: %s", route, short_error(error))
        finally:
            channel.close()
        self.checked.add(route)
        return None

    def settle(self, token: str) -> bool:
        found = self.plain.basic_get(self.mark, no_ack=False)
        if found is None:
            return False
        self.plain.basic_reject(found.delivery_tag, requeue=True)
        return bool(found.body.strip('"') == token)

    def beat(self) -> None:
        self.plain.queue_declare(self.lock, passive=True)

    def end(self) -> None:
        self.plain.queue_delete(self.mark)


KINDS: dict[str, type[Batches]] = {"redis": RedisBatches, "amqp": AmqpBatches}


@contextmanager
def batches(broker: Broker, settings: Settings, job: str) -> Iterator[Batches]:
    """Publishes the batches of one job on an open connection. Raises BrokerUnavailable."""
    with link(broker, settings, heartbeat=HEARTBEAT_SECONDS, confirm_publish=False) as connection:
        kind = KINDS.get(connection.transport.driver_type, Batches)
        yield kind(app_for(broker, settings), connection, job)
