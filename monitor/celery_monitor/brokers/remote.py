"""Remote control with our own collection of replies (the wire protocol of kombu/pidbox.py).

kombu's own collects as many replies as there are destinations or waits for silence, and fails for all when one worker
replies in pickle. Here a command ends when all expected workers have replied, only JSON is read, and a reply that
cannot be read is reported as an error of its worker.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import KombuError
from kombu.message import Message

from celery_monitor.brokers.connection import app_for, link
from celery_monitor.brokers.event_queue.post import QueuePost, SqsPost, uses_queues
from celery_monitor.core.untrusted import plain_value, read_plain
from celery_monitor.errors import InvalidInput
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

FORBIDDEN = "election"  # of Celery's commands (celery/worker/control.py) the one that kills a lone worker
# What kombu raises for a reply in JSON that names a type with a bad value, or is nested too deeply.
UNDECODABLE = (KombuError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
QUEUE_SECONDS = 4.0  # for a reply through queues: a worker polls, and handles commands about once a second
REPLY_QUEUE_SECONDS = 60.0  # after which RabbitMQ deletes the reply queue of a process that died


@dataclass(frozen=True, slots=True)
class Reply:
    """What one worker replied: ``ok`` is the value, without Celery's ``{"ok": ...}`` around it."""

    worker: str
    ok: object | None = None
    error: str | None = None
    altered: bool = False  # a part of it could not be kept as it was


OnReply = Callable[[Reply], None]


class Remote:
    """Sends commands to the workers of one cluster. Each has its own connection, so threads may share this."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self.broker = broker
        self.settings = settings

    def ask(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        destination: Sequence[str] | None = None,
        timeout: float = 1.0,
        on_reply: OnReply | None = None,
        *,
        expected: Sequence[str] | None = None,
    ) -> dict[str, Reply]:
        """The replies by worker; waits until nobody has replied for ``timeout`` seconds.

        Without ``destination`` all workers are asked; once those in ``expected`` have replied, others are not waited
        for. Where the broker has no broadcast, commands go through queues of celery_monitor_capture, and take a second.
        Raises BrokerUnavailable, and InvalidInput for FORBIDDEN; workers refuse commands that do not exist.
        """
        if command == FORBIDDEN:
            raise InvalidInput(f"the remote command {command} is not sent: it ends a lone worker")
        awaited = tuple(destination if destination is not None else expected or ())
        if destination is not None and not awaited:
            return {}
        if uses_queues(self.broker, self.settings):
            return self._ask_through_queues(command, arguments, destination, awaited, timeout, on_reply)
        with link(self.broker, self.settings) as connection:
            mailbox = app_for(self.broker, self.settings).control.mailbox
            question = _Question(connection, (mailbox.exchange, mailbox.reply_exchange), awaited, on_reply)
            addressed = None if destination is None else list(awaited)
            return question.put({"method": command, "arguments": arguments or {}, "destination": addressed}, timeout)

    def _ask_through_queues(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        destination: Sequence[str] | None,
        awaited: tuple[str, ...],
        timeout: float,
        on_reply: OnReply | None,
    ) -> dict[str, Reply]:
        seconds = max(timeout, QUEUE_SECONDS)
        with link(self.broker, self.settings) as connection:
            post = (SqsPost if connection.transport.driver_type == "sqs" else QueuePost)(connection, self.settings)
            body = {
                "method": command,
                "arguments": arguments or {},
                "ticket": post.ticket,
                "reply_to": post.reply_queue,
            }
            headers = {"expires": time.time() + seconds}
            with post:
                awaiting = post.send(body, headers, awaited, to_all=destination is None)
                replies: dict[str, Reply] = {}
                silent_since = time.monotonic()
                while len(replies) < awaiting and (left := silent_since + seconds - time.monotonic()) > 0:
                    for worker, value in post.receive(left).items():
                        reply = _reply(str(plain_value(worker)), value)
                        replies[reply.worker] = reply
                        if on_reply:
                            on_reply(reply)
        return replies


class _Question:
    """One command and its replies, over one open connection."""

    def __init__(
        self,
        connection: Connection,
        exchanges: tuple[Exchange, Exchange],
        awaited: tuple[str, ...],
        on_reply: OnReply | None,
    ) -> None:
        self.connection = connection
        self.exchange, self.reply_exchange = exchanges
        self.awaited = awaited
        self.on_reply = on_reply
        self.ticket = str(uuid4())
        self.replies: dict[str, Reply] = {}
        self.unreadable: list[str] = []

    def put(self, body: Mapping[str, object], timeout: float) -> dict[str, Reply]:
        channel = self.connection.default_channel
        queue = self._reply_queue()(channel)
        queue.declare()
        try:
            with Consumer(channel, [queue], no_ack=True, accept=["json"], on_message=self._receive):
                self._publish(Producer(channel, auto_declare=False), body, timeout)
                self._collect(timeout)
        finally:
            queue.delete()
        return self._answered()

    def _reply_queue(self) -> Queue:
        return Queue(
            f"{self.ticket}.{self.reply_exchange.name}",
            exchange=self.reply_exchange,
            routing_key=self.ticket,
            durable=False,
            exclusive=True,
            auto_delete=True,
            expires=REPLY_QUEUE_SECONDS,
        )

    def _publish(self, producer: Producer, body: Mapping[str, object], timeout: float) -> None:
        reply_to = {"exchange": self.reply_exchange.name, "routing_key": self.ticket}
        producer.publish(
            {**body, "pattern": None, "matcher": None, "ticket": self.ticket, "reply_to": reply_to},
            exchange=self.exchange.name,
            declare=[self.exchange],
            headers={"clock": 0, "expires": time.time() + timeout},
            serializer="json",
            retry=False,
        )

    def _collect(self, timeout: float) -> None:
        silent_since = time.monotonic()
        received = 0
        while not self._complete() and (left := silent_since + timeout - time.monotonic()) > 0:
            try:
                self.connection.drain_events(timeout=left)
            except TimeoutError:
                return
            if received != len(self.replies) + len(self.unreadable):
                received = len(self.replies) + len(self.unreadable)
                silent_since = time.monotonic()

    def _complete(self) -> bool:
        return bool(self.awaited) and len(self._missing()) <= len(self.unreadable)

    def _missing(self) -> list[str]:
        return [worker for worker in self.awaited if worker not in self.replies]

    def _receive(self, message: Message) -> None:
        if message.headers.get("ticket", self.ticket) != self.ticket:
            return
        try:
            body = message.decode()
        except UNDECODABLE as error:
            self.unreadable.append(f"the reply is {message.content_type}, which is not read: {plain_value(str(error))}")
            return
        if not isinstance(body, dict):
            self.unreadable.append(f"the reply is a {type(body).__name__}, not a dictionary")
            return
        for worker, value in body.items():
            reply = _reply(str(plain_value(worker)), value)
            self.replies[reply.worker] = reply
            if self.on_reply:
                self.on_reply(reply)

    def _answered(self) -> dict[str, Reply]:
        """An unreadable reply has no worker: if as many workers are missing, it is attributed to them."""
        names = self._missing()
        if len(names) != len(self.unreadable):
            names = [f"unreadable reply {number}" for number, _ in enumerate(self.unreadable, 1)]
        unreadable = {name: Reply(name, error=why) for name, why in zip(names, self.unreadable, strict=True)}
        for reply in unreadable.values():
            if self.on_reply:
                self.on_reply(reply)
        return self.replies | unreadable


def _reply(worker: str, given: object) -> Reply:
    """The door for what workers say: only plain values within bounds go on from here."""
    value, altered = read_plain(given)
    if isinstance(value, dict) and len(value) == 1:
        if "error" in value:
            return Reply(worker, error=str(value["error"]), altered=altered)
        if "ok" in value:
            return Reply(worker, ok=value["ok"], altered=altered)
    return Reply(worker, ok=value, altered=altered)
