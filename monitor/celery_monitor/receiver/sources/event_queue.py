"""Events from the queue of celery_monitor_capture, for brokers that carry none: SQS, Kafka, Azure, SQL and others.

A message is a batch of events. It is acknowledged after the commit, so what a killed receiver had read is delivered
again; an event that is stored twice changes nothing. A header counts what its sender had to drop.
"""

import select
import threading
import time
from collections import deque
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any

from kombu import Connection, Consumer
from kombu import Queue as BrokerQueue
from kombu.exceptions import KombuError
from kombu.message import Message

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.connection import app_for, aws_refusal, bounded, explained, keep_compressed, short_error
from celery_monitor.brokers.event_queue.post import SqsQueue, find_sqs_queue, open_envelope
from celery_monitor.errors import Unsupported
from celery_monitor.receiver.decode import Content, json_of, to_json
from celery_monitor.receiver.sources.amqp import open_connection
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.sources.buffer import Buffer, read_commits
from celery_monitor.receiver.sources.kombu import KombuReading
from celery_monitor.receiver.sources.reader import Body, Packed, ReaderThread, pack
from celery_monitor.records.receiver import RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

# kombu deletes a message there when it reads it: what a killed receiver had read is lost.
READING_DELETES = frozenset({"filesystem", "sqla", "sqlalchemy", "azurestoragequeues", "memory"})
READERS = 2  # threads that ask SQS for messages
MOST_MESSAGES = 10  # of one request
LONGEST_WAIT = 20  # seconds for messages, in one request
REST_SECONDS = 1.0  # after a request without messages, if none is to wait
# After which SQS delivers a message again that was not deleted: when a receiver was killed. A database that is away
# for longer means that events are read twice.
HIDDEN_SECONDS = 30
POLL_SECONDS = 0.05
DELETE_SECONDS = 1.0  # until messages are deleted that are too few for a whole request
MOST_DROPPED = 10**9


class QueueSource(Source):
    """The plug-in's queue, on any transport; on SQS without kombu's consumer, which neither waits nor batches."""

    name = "queue"
    keeps_events = True

    def __init__(self, broker: Broker, settings: Settings) -> None:
        super().__init__(broker, settings)
        self._app = app_for(broker, settings)
        self._transport = transport_of(broker.url)
        self._queue = settings.event_queue

    def connect(self) -> None:
        self.close()
        with explained(self._url):
            connection = open_connection(bounded(self._app.connection_for_read(heartbeat=0)))
            try:
                reading = self._reading(connection)
            except BaseException:
                connection.collect()
                raise
        self.missed = self._transport in READING_DELETES
        thread = ReaderThread(self._url, reading.run)
        self._read_from(thread, Packed(), refused=reading.refused)
        thread.start()

    def _reading(self, connection: Connection) -> "SqsReading | QueueReading":
        buffer = Buffer(self._settings.buffer_bytes)
        channel = connection.channel()
        if self._transport != "sqs":
            return QueueReading(buffer, connection, channel, self._queue)
        found = find_sqs_queue(channel, self._queue)
        if found is None:
            if channel.predefined_queues:
                raise Unsupported(
                    f"the queue {self._queue} is not among the predefined_queues of --broker-options; add it there and "
                    "in the workers' broker_transport_options"
                )
            BrokerQueue(self._queue)(channel).declare()
            found = find_sqs_queue(channel, self._queue)
            if found is None:
                raise ConnectionError(f"the queue {self._queue} was created, and cannot be found yet")
        return SqsReading(buffer, found, min(int(channel.wait_time_seconds), LONGEST_WAIT))


class QueueReading(KombuReading):
    """Reads the queue through kombu. For a thread of its own."""

    def __init__(self, buffer: Buffer, connection: Connection, channel: Any, queue: str) -> None:
        super().__init__(True, buffer)
        self._connection = connection
        self._unacknowledged: deque[Message] = deque()
        self._acknowledged = 0
        self._consumer = Consumer(keep_compressed(channel), [BrokerQueue(queue)], on_message=self.arrived)
        self._consumer.consume()

    def run(self, out: int, *_: object) -> None:
        super().run(out, self._connection, self._consumer)

    def arrived(self, message: Message) -> None:
        self._unacknowledged.append(message)
        self._buffer.drop(dropped_before(message.headers or {}))
        self._buffer.keep(pack([json_of(message)], self.refused))

    def commit(self, number: int) -> None:
        while self._acknowledged < number:
            self._unacknowledged.popleft().ack()
            self._acknowledged += 1


def read_body(text: str) -> tuple[Body, int]:
    """The events of a message of SQS, and how many its sender dropped before. Never raises."""
    try:
        envelope = open_envelope(text)
        body = envelope.content
    except (ValueError, RecursionError):
        return None, 0
    headers = envelope.headers or {}
    given = (envelope.content_type, headers.get("compression"), headers.get("hostname"))
    return to_json(body, Content(*(None if each is None else str(each) for each in given))), dropped_before(headers)


def dropped_before(headers: dict[str, Any]) -> int:
    """How many events the sender of a message dropped since its last one."""
    number = headers.get("dropped")
    return min(number, MOST_DROPPED) if type(number) is int and number > 0 else 0


class SqsReading:
    """Asks SQS for messages in several threads, and deletes those that are stored. For a thread of its own."""

    def __init__(self, buffer: Buffer, queue: SqsQueue, wait_seconds: int) -> None:
        self._buffer = buffer
        self._queue = queue
        self._wait_seconds = wait_seconds
        self._arrived: Queue[list[dict[str, Any]] | Exception] = Queue(READERS)
        self._over = threading.Event()
        self._handles: deque[str] = deque()  # of messages that are not deleted
        self._read = self._stored = self._deleted = 0
        self._delete_at = 0.0
        self.refused: set[RefusedEvents] = set()

    def run(self, out: int) -> None:
        for number in range(READERS):
            threading.Thread(target=self._ask, name=f"sqs-{number}", daemon=True).start()
        try:
            self._loop(out)
            with suppress(OSError, KombuError, aws_refusal()):  # they are delivered again
                self._delete(all_of_them=True)
        finally:
            self._over.set()

    def _loop(self, out: int) -> None:
        poll = select.poll()
        ended = False
        while True:
            poll.register(out, select.POLLIN | (select.POLLOUT if self._buffer.waits else 0))
            ready = dict(poll.poll(0 if self._arrived.full() else POLL_SECONDS * 1000))
            if ready.get(out, 0) & ~select.POLLOUT and not read_commits(out, self.commit):
                return
            try:
                if not ended:
                    self._delete()
                    self._take()
            except Exception as error:  # noqa: BLE001 - of boto3, whose errors have no common base
                ended = True
                self._over.set()
                self._buffer.end(short_error(error))
            with suppress(BrokenPipeError):  # which poll() reports next
                self._buffer.send(out)

    def commit(self, number: int) -> None:
        """So many messages are stored."""
        self._stored = max(number, self._stored)

    def _take(self) -> None:
        while not self._buffer.full:
            try:
                arrived = self._arrived.get_nowait()
            except Empty:
                return
            if isinstance(arrived, Exception):
                raise arrived
            self._buffer.last_received_at = time.time()
            for message in arrived:
                body, dropped = read_body(message["Body"])
                self._handles.append(message["ReceiptHandle"])
                self._buffer.drop(dropped)
                self._buffer.keep(pack([body], self.refused))

    def _delete(self, *, all_of_them: bool = False) -> None:
        """A message that cannot be deleted any more is delivered again, which changes nothing."""
        now = time.monotonic()
        while (due := self._stored - self._deleted) > 0:
            if due < MOST_MESSAGES and now < self._delete_at and not all_of_them:
                return
            handles = [self._handles.popleft() for _ in range(min(due, MOST_MESSAGES))]
            entries = [{"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(handles)]
            self._queue.client.delete_message_batch(QueueUrl=self._queue.url, Entries=entries)
            self._deleted += len(handles)
        self._delete_at = now + DELETE_SECONDS

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                answer = self._queue.client.receive_message(
                    QueueUrl=self._queue.url,
                    MaxNumberOfMessages=MOST_MESSAGES,
                    WaitTimeSeconds=self._wait_seconds,
                    VisibilityTimeout=HIDDEN_SECONDS,
                )
                arrived = answer.get("Messages", [])
            except Exception as error:  # noqa: BLE001 - of boto3
                self._hand_over(error)
                return
            if arrived and not self._hand_over(arrived):
                self._release(arrived)
            if not arrived and not self._wait_seconds:
                self._over.wait(REST_SECONDS)

    def _hand_over(self, arrived: list[dict[str, Any]] | Exception) -> bool:
        while not self._over.is_set():
            with suppress(Full):
                self._arrived.put(arrived, timeout=POLL_SECONDS)
                return True
        return False

    def _release(self, messages: list[dict[str, Any]]) -> None:
        """Makes messages visible that came after the end."""
        for message in messages:
            with suppress(Exception):  # then they become visible later
                self._queue.client.change_message_visibility(
                    QueueUrl=self._queue.url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
                )
