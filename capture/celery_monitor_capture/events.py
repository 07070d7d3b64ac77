"""Events through a queue, for brokers that carry none from one process to another: SQS, Kafka, Azure, SQL and others.

Celery publishes events to an exchange, which these transports route in the memory of the publishing process alone. So
``install`` replaces the application's event dispatcher: each process keeps its events in a bounded Outbox, whose thread
sends them in batches to one queue, over a connection of its own. Nothing that a task does waits for that thread. If the
broker is away or too slow, events are dropped, and their number is sent with the next batch.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import zlib
from collections import deque
from contextlib import suppress
from itertools import count
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.events.dispatcher import EventDispatcher
from celery.signals import worker_process_shutdown, worker_shutdown
from kombu import Connection, Producer, Queue
from kombu.utils.json import dumps

QUEUE_VARIABLE = "CELERY_CAPTURE_EVENT_QUEUE"
QUEUE_SETTING = "capture_event_queue"
BROKER_SETTING = "capture_event_broker"
DEFAULT_QUEUE = "celery-monitor-events"
MOST_EVENTS = 10_000  # that wait in one process
MOST_BYTES = 16 * 1024 * 1024
BATCH_EVENTS = 500
BATCH_BYTES = 96 * 1024
SMALL_BYTES = 2 * 1024  # what is smaller is not compressed
# Bytes of a body before kombu encodes it in base64, for SQS and Azure's queues even twice.
LARGEST = {"sqs": 140 * 1024, "azurestoragequeues": 34 * 1024, "azureservicebus": 180 * 1024}
# Else a request to a dead endpoint takes minutes. SQS waits up to 20 s for messages.
SQS_OPTIONS = {"client-config": {"connect_timeout": 5, "read_timeout": 25, "retries": {"max_attempts": 0}}}
GATHER_SECONDS = 0.1
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0)  # the last is repeated
FLUSH_SECONDS = 5.0  # at the end of a process

log = logging.getLogger(__name__)
_outboxes: dict[int, Outbox] = {}  # of this process, by application


def queue_name(app: Celery) -> str:
    """Where events are sent: by the environment, the setting, or the default."""
    return str(os.environ.get(QUEUE_VARIABLE) or app.conf.get(QUEUE_SETTING) or DEFAULT_QUEUE)


def connect(app: Celery) -> Connection:
    """A connection to the broker of the event queue, which is the application's unless a setting names another."""
    connection: Connection = app.connection_for_write(app.conf.get(BROKER_SETTING))
    if connection.transport.driver_type == "sqs":
        connection.transport_options = {**SQS_OPTIONS, **(connection.transport_options or {})}
    return connection


def carries_events(app: Celery) -> bool:
    """Whether the application's broker has fan-out, as Celery's own events and remote control need."""
    with app.connection_for_write() as connection:
        return bool(connection.supports_exchange_type("fanout"))


def dispatch_to_queue(app: Celery) -> None:
    """From now on the events of this application go to the queue; producers send ``task-sent``, too."""
    app.conf.task_send_sent_event = True
    app.events.dispatcher_cls = QueueDispatcher
    app.events.__dict__.pop("Dispatcher", None)


class QueueDispatcher(EventDispatcher):  # type: ignore[misc]  # celery has no types
    """Celery's dispatcher, which hands its events to the Outbox of the process."""

    DISABLED_TRANSPORTS: frozenset[str] = frozenset()

    def _publish(self, event: Any, *_: Any, **__: Any) -> None:
        outbox_of(self.app).put(list(event) if isinstance(event, (list, tuple)) else [event])


def outbox_of(app: Celery) -> Outbox:
    """The Outbox of this process."""
    return _outboxes.get(id(app)) or _outboxes.setdefault(id(app), Outbox(app))


def flush(seconds: float = FLUSH_SECONDS) -> bool:
    """Waits up to some seconds until the events of this process are sent; returns whether they are."""
    return all(each.flush(seconds) for each in list(_outboxes.values()))


class Outbox:
    """Events that wait to be sent. ``put`` never waits for the broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._queue = queue_name(app)
        self._sender = f"{os.getpid()}-{uuid4().hex[:12]}"
        self._sequence = count(1)
        self._waiting: deque[tuple[dict[str, Any], int]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._producer: Any = None

    def put(self, events: list[dict[str, Any]]) -> None:
        """Adds events, or counts them as dropped."""
        with self._changed:
            for event in events:
                size = _size(event)
                if len(self._waiting) < MOST_EVENTS and self._bytes + size <= MOST_BYTES:
                    self._waiting.append((event, size))
                    self._bytes += size
                else:
                    self._dropped += 1
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="celery-monitor-events", daemon=True)
                with suppress(RuntimeError):  # the interpreter is ending
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._waiting and self._thread is not None and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            return not self._waiting

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
            time.sleep(GATHER_SECONDS)
            batch = self._next()
            self._send(_texts(batch), str(batch[0].get("hostname", "")))
            with self._changed:
                for _ in batch:
                    self._bytes -= self._waiting.popleft()[1]
                self._changed.notify_all()

    def _next(self) -> list[dict[str, Any]]:
        """The next events, which are removed once they are sent."""
        batch: list[dict[str, Any]] = []
        length = 0
        with self._changed:
            for event, size in self._waiting:
                length += size
                if batch and (len(batch) >= BATCH_EVENTS or length > BATCH_BYTES):
                    break
                batch.append(event)
        return batch

    def _send(self, texts: list[str], hostname: str) -> None:
        """Sends events, however long the broker is away. Meanwhile others wait, or are dropped."""
        body = f"[{','.join(texts)}]".encode()
        headers = {"hostname": hostname, "sender": self._sender, "sequence": next(self._sequence)}
        if len(body) > SMALL_BYTES:
            body, headers["compression"] = zlib.compress(body, 1), "application/x-gzip"
        for attempt in count():
            sent = self._try(body, headers, attempt)
            if sent is False:
                self._send_parts(texts, hostname)
            if sent is not None:
                return

    def _try(self, body: bytes, headers: dict[str, Any], attempt: int) -> bool | None:
        """True: it was sent; False: it is too large; ``None``: the broker is away, also after some waiting."""
        try:
            if self._producer is None:
                self._open()
            if len(body) > LARGEST.get(self._producer.connection.transport.driver_type, len(body)):
                return False
            self._publish(body, headers)
        except Exception as error:  # noqa: BLE001 - of any transport's library
            self._close()
            if not attempt:
                log.warning("events wait, as they cannot be sent to %s: %s", self._queue, error)
            time.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            return None
        return True

    def _send_parts(self, texts: list[str], hostname: str) -> None:
        """Of a message that is too large. An event that is too large alone is dropped."""
        middle = len(texts) // 2
        if middle:
            self._send(texts[:middle], hostname)
            self._send(texts[middle:], hostname)
        else:
            with self._changed:
                self._dropped += 1

    def _open(self) -> None:
        self._connection = connect(self._app)
        channel = self._connection.channel()
        Queue(self._queue, routing_key=self._queue)(channel).declare()
        self._producer = Producer(channel, auto_declare=False)

    def _publish(self, body: bytes, headers: dict[str, Any]) -> None:
        dropped = self._dropped
        group = {"MessageGroupId": headers["hostname"]} if self._queue.endswith(".fifo") else {}
        self._producer.publish(
            body,
            routing_key=self._queue,  # at the default exchange
            content_type="application/json",
            content_encoding="utf-8",
            headers={**headers, "dropped": dropped},
            retry=False,
            **group,
        )
        with self._changed:
            self._dropped -= dropped

    def _close(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        with suppress(Exception):
            if connection is not None:
                connection.collect()


def _size(event: dict[str, Any]) -> int:
    """About how many bytes an event has. Its long parts are texts, and the body of a captured message."""
    message = event.get("message")
    more = message if isinstance(message, dict) else {}
    texts = (value for part in (event, more) for value in part.values() if isinstance(value, str))
    return 200 + sum(map(len, texts))


def _texts(events: list[dict[str, Any]]) -> list[str]:
    """The events as JSON."""
    return [text for text in map(_text, events) if text]


def _text(event: dict[str, Any]) -> str | None:
    """``None`` for a custom event whose fields JSON cannot hold; Celery would raise."""
    try:
        return str(dumps(event))
    except Exception as error:  # noqa: BLE001 - of the user's objects
        log.warning("an event %s cannot be sent: %s", event.get("type"), error)
        return None


def _at_end(**_: Any) -> None:
    flush()


os.register_at_fork(after_in_child=_outboxes.clear)  # threads do not survive a fork
atexit.register(flush)
worker_shutdown.connect(_at_end)
worker_process_shutdown.connect(_at_end)
