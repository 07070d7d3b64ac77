"""Events from any broker through kombu, in a thread of its own so that heartbeats go out and buffers stay empty."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu import Connection, Consumer, Exchange, Queue
from kombu.exceptions import KombuError
from kombu.message import Message

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.connection import CONNECT_SECONDS, app_for, explained, keep_compressed
from celery_monitor.receiver.decode import json_of
from celery_monitor.receiver.sources.amqp import HEARTBEAT_SECONDS, declare, open_connection, queue_name, remember
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.sources.buffer import Buffer, Spool, read_commits
from celery_monitor.receiver.sources.reader import Packed, ReaderThread, events_in, pack
from celery_monitor.records.receiver import RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

DRAIN_SECONDS = 0.1
FANOUT_TRANSPORTS = frozenset({"redis", "gcpubsub"})  # celery/events/event.py, get_exchange


class KombuSource(Source):
    """Any transport that carries events. We decode the bodies, as kombu's receiver would adjust timestamps."""

    name = "kombu"

    def __init__(self, broker: Broker, settings: Settings) -> None:
        super().__init__(broker, settings)
        self.keeps_events = transport_of(broker.url) == "amqp"
        self._app = app_for(broker, settings)

    def connect(self) -> None:
        self.close()
        reading = KombuReading(self.keeps_events, self._new_buffer())
        with explained(self._url):
            connection = open_connection(self._app.connection_for_read(heartbeat=HEARTBEAT_SECONDS))
            try:
                consumer = self._consume(connection, reading.arrived)
            except BaseException:
                connection.collect()
                reading.close()
                raise
        thread = ReaderThread(self._url, lambda out: reading.run(out, connection, consumer))
        self._read_from(thread, Packed(), refused=reading.refused)
        thread.start()

    def _new_buffer(self) -> Buffer:
        limit, room = self._settings.buffer_bytes, 0 if self.keeps_events else self._settings.spool_bytes
        return Buffer(limit, Spool(self._folder, room) if room else None)

    def _consume(self, connection: Connection, arrived: Callable[[Message], None]) -> Consumer:
        if self.keeps_events:
            return self._consume_kept(connection, arrived)
        queue = event_queue(connection, self._app, self._settings)
        consumer = Consumer(keep_compressed(connection.channel()), [queue], no_ack=True, on_message=arrived)
        consumer.consume()
        if connection.transport.driver_type == "redis":
            subscribe(consumer.channel)
        return consumer

    def _consume_kept(self, connection: Connection, arrived: Callable[[Message], None]) -> Consumer:
        declared = declare(connection.connection, self._app, self._settings)
        queue = Queue(declared.name, no_declare=True, consumer_arguments=None)
        consumer = Consumer(keep_compressed(declared.channel), [queue], on_message=arrived)
        consumer.consume()
        remember(declared)
        self.missed = declared.missed
        return consumer


def event_queue(connection: Connection, app: Celery, settings: Settings) -> Queue:
    """The receiver's queue on a virtual transport, declared as celery.events declares its own."""
    kind = "fanout" if connection.transport.driver_type in FANOUT_TRANSPORTS else "topic"
    return Queue(
        queue_name(app, settings),
        exchange=Exchange(app.conf.event_exchange, type=kind),
        routing_key="#",
        auto_delete=True,
        durable=False,
    )


def subscribe(channel: Any) -> None:
    """Subscribes at Redis and waits for the confirmation. Raises TimeoutError.

    kombu subscribes only when it first waits for messages, in our thread: events that workers send before would be
    missed although the source is connected.
    """
    channel.connection.cycle.on_poll_start()  # kombu/transport/redis.py
    for _ in channel.subclient.patterns:
        if channel.subclient.get_message(timeout=CONNECT_SECONDS) is None:
            raise TimeoutError(f"Redis did not confirm the subscription within {CONNECT_SECONDS:g} s")


class KombuReading:
    """Puts kombu's messages into the buffer, acknowledges, sends heartbeats. For a thread of its own."""

    def __init__(self, keeps_events: bool, buffer: Buffer) -> None:
        self._keeps_events = keeps_events
        self._buffer = buffer
        self._channel: Any = None
        self.refused: set[RefusedEvents] = set()

    def arrived(self, message: Message) -> None:
        body = json_of(message)
        if self._keeps_events:
            self._buffer.keep(pack([body], self.refused))
        elif not self._buffer.put(pack([body], self.refused)):
            self._buffer.drop(events_in(body))

    def close(self) -> None:
        """Leaves what the receiver has not stored on disk."""
        self._buffer.close()

    def run(self, out: int, connection: Connection, consumer: Consumer) -> None:
        errors = (OSError, KombuError, *connection.connection_errors, *connection.channel_errors)
        self._channel = consumer.channel
        try:
            self._loop(out, connection, errors)
        finally:
            with suppress(*errors):  # the connection may be broken
                consumer.cancel()
            with suppress(*errors):
                connection.release()
            with suppress(*errors):
                connection.collect()
            self.close()

    def _loop(self, out: int, connection: Connection, errors: tuple[type[Exception], ...]) -> None:
        heartbeats = connection.supports_heartbeats and connection.get_heartbeat_interval()
        poll = select.poll()
        ended = False
        while True:
            paused = ended or (self._keeps_events and self._buffer.full)
            poll.register(out, select.POLLIN | (select.POLLOUT if self._buffer.waits else 0))
            ready = dict(poll.poll(DRAIN_SECONDS * 1000 if paused else 0))
            try:
                if ready.get(out, 0) & ~select.POLLOUT and not read_commits(out, self.commit):
                    return
                if heartbeats and not ended:
                    connection.heartbeat_check()
                if not paused:
                    self._drain(connection)
            except errors as error:
                ended = True
                self._buffer.end(str(error) or type(error).__name__)
            with suppress(BrokenPipeError):  # which poll() reports next
                self._buffer.send(out)

    def _drain(self, connection: Connection) -> None:
        with suppress(socket.timeout):
            connection.drain_events(timeout=DRAIN_SECONDS)
            self._buffer.last_received_at = time.time()

    def commit(self, number: int) -> None:
        """The receiver has stored so many messages, or records of the buffer where the broker keeps no events."""
        if self._keeps_events:
            self._channel.basic_ack(number, multiple=True)
        else:
            self._buffer.commit(number)
