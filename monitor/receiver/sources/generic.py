"""Events from any broker through kombu, in a thread of its own so that heartbeats go out and buffers stay empty."""

import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu import Connection
from kombu import Consumer
from kombu import Exchange
from kombu import Queue
from kombu.message import Message

from monitor.brokers.connection import CONNECT_SECONDS
from monitor.brokers.connection import app_for
from monitor.brokers.connection import explained
from monitor.brokers.connection import require_events
from monitor.brokers.connection import unavailable
from monitor.errors import BrokerUnavailable
from monitor.receiver.sources.amqp import HEARTBEAT_SECONDS
from monitor.receiver.sources.amqp import open_connection
from monitor.receiver.sources.base import Inbox
from monitor.receiver.sources.base import spool_of
from monitor.receiver.sources.content import body_of
from monitor.receiver.sources.queue import declare
from monitor.receiver.sources.queue import queue_name
from monitor.receiver.sources.queue import remember
from monitor.records import Delivery
from monitor.settings import Broker
from monitor.settings import Settings

log = logging.getLogger(__name__)

DRAIN_SECONDS = 0.1
FANOUT_TRANSPORTS = frozenset({"redis", "gcpubsub"})  # celery/events/event.py, get_exchange


class KombuSource:
    """Any transport that carries events. Bodies are decoded by us: kombu's receiver would adjust timestamps."""

    name = "kombu"

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._url = broker.url
        self._settings = settings
        self.keeps_events = require_events(broker.url) == "amqp"
        self.missed = True
        self._app = app_for(broker, settings)
        self._spool = None if self.keeps_events else spool_of(broker, settings)
        self._inbox = self._new_inbox()
        self._thread: KombuThread | None = None

    def _new_inbox(self) -> Inbox:
        return Inbox(
            self._settings.buffer_bytes,
            drops=not self.keeps_events,
            spool=self._spool,
        )

    @property
    def heard_at(self) -> float:
        return self._inbox.heard_at

    @property
    def kept_until(self) -> float | None:
        return None if self.keeps_events else self._inbox.kept_until

    @property
    def waits(self) -> bool:
        return self._inbox.waits

    def connect(self) -> None:
        self.close()
        self._inbox = self._new_inbox()
        with explained(self._url):
            connection = open_connection(self._app.connection_for_read(heartbeat=HEARTBEAT_SECONDS))
            try:
                consumer = self._consume(connection)
            except BaseException:
                connection.collect()
                raise
        self._thread = KombuThread(self._url, connection, consumer, self._inbox, acknowledges=self.keeps_events)
        self._thread.start()

    def _consume(self, connection: Connection) -> Consumer:
        if self.keeps_events:
            return self._consume_kept(connection)
        queue = event_queue(connection, self._app, self._settings)
        consumer = self._started(Consumer(connection.channel(), [queue], no_ack=True, on_message=self._arrived))
        if connection.transport.driver_type == "redis":
            subscribe(consumer.channel)
        return consumer

    def _consume_kept(self, connection: Connection) -> Consumer:
        declared = declare(connection.connection, self._app, self._settings)
        queue = Queue(declared.name, no_declare=True, consumer_arguments=None)
        consumer = self._started(Consumer(declared.channel, [queue], on_message=self._arrived))
        remember(declared)
        self.missed = declared.missed
        return consumer

    def _started(self, consumer: Consumer) -> Consumer:
        consumer.consume()
        return consumer

    def _arrived(self, message: Message) -> None:
        self._inbox.put([body_of(message)])

    def read(self, timeout: float) -> Delivery:
        try:
            return self._inbox.take(timeout, self._settings.batch_events, self._settings.batch_seconds)
        except BrokerUnavailable:
            self.close()
            raise

    def acknowledge(self) -> None:
        if self._thread:
            self._thread.committed = self._inbox.messages_taken
        self._inbox.commit()

    def discard(self, before: float) -> None:
        self._inbox.discard(before)

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread:
            thread.stop()
            if self.keeps_events:
                self._inbox.forget()
            else:
                self._inbox.close()


def event_queue(connection: Connection, app: Celery, settings: Settings) -> Queue:
    """The receiver's queue on a transport that kombu emulates, declared as celery.events declares its own."""
    kind = "fanout" if connection.transport.driver_type in FANOUT_TRANSPORTS else "topic"
    return Queue(
        queue_name(app, settings),
        exchange=Exchange(app.conf.event_exchange, type=kind),
        routing_key="#",
        auto_delete=True,
        durable=False,
    )


def subscribe(channel: Any) -> None:
    """Subscribes at Redis and waits until it says so; TimeoutError if it does not.

    kombu does that when it first waits for messages, in our thread: what workers send until then would be missed by a
    source that calls itself connected.
    """
    channel.connection.cycle.on_poll_start()  # kombu/transport/redis.py
    for _ in channel.subclient.patterns:
        if channel.subclient.get_message(timeout=CONNECT_SECONDS) is None:
            raise TimeoutError(f"Redis did not confirm the subscription within {CONNECT_SECONDS:g} s")


class KombuThread(threading.Thread):
    """Owns a kombu connection: drains it into the inbox, acknowledges, keeps heartbeats going."""

    def __init__(
        self, url: str, connection: Connection, consumer: Consumer, inbox: Inbox, *, acknowledges: bool
    ) -> None:
        super().__init__(name="drain-kombu", daemon=True)
        self._url = url
        self._connection = connection
        self._consumer = consumer
        self._inbox = inbox
        self._acknowledges = acknowledges
        self._acknowledged = 0
        self.committed = 0
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)

    def run(self) -> None:
        try:
            with explained(self._url):
                self._loop()
                self._acknowledge()
        except BrokerUnavailable as error:
            self._inbox.fail(error)
        except Exception as error:
            # A thread that died in silence would look like a quiet broker.
            log.exception("reading through kombu failed")
            self._inbox.fail(unavailable(self._url, error))
        finally:
            self._release()

    def _loop(self) -> None:
        heartbeats = self._connection.supports_heartbeats and self._connection.get_heartbeat_interval()
        while not self._stopping.is_set():
            self._acknowledge()
            if heartbeats:
                self._connection.heartbeat_check()
            if self._acknowledges and self._inbox.full:
                self._stopping.wait(DRAIN_SECONDS)
                continue
            with suppress(socket.timeout):
                self._connection.drain_events(timeout=DRAIN_SECONDS)
                self._inbox.heard_at = time.time()

    def _acknowledge(self) -> None:
        committed: int = self.committed
        if self._acknowledges and committed > self._acknowledged:
            self._acknowledged = committed
            channel: Any = self._consumer.channel
            channel.basic_ack(committed, multiple=True)

    def _release(self) -> None:
        errors = (OSError, *self._connection.connection_errors, *self._connection.channel_errors)
        with suppress(*errors):  # a broken connection cannot say goodbye
            self._consumer.cancel()
        with suppress(*errors):
            self._connection.release()
        with suppress(*errors):
            self._connection.collect()
