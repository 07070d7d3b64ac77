"""Commands to the workers' control queues, and their replies, where the broker has no broadcast.

celery_monitor_capture polls the control queues, and runs Celery's own commands. On SQS all of us share one queue for
replies, as a new queue takes a second until it can be used; elsewhere each question has a queue of its own.
"""

import hashlib
import json
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self
from uuid import uuid4

import msgspec
from kombu import Connection, Exchange, Producer, Queue

from celery_monitor.addresses import carries_events
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

LONGEST_NAME = 80  # of a queue of SQS


def uses_queues(broker: Broker, settings: Settings) -> bool:
    """Whether events and remote control go through queues of celery_monitor_capture."""
    return settings.source == "queue" or not carries_events(broker.url)


def control_prefix(event_queue: str) -> str:
    """What the names of the control queues begin with. As in celery_monitor_capture/control.py."""
    return f"{event_queue.removesuffix('.fifo')}-control-"


def control_queue(event_queue: str, hostname: str) -> str:
    """The control queue of a worker. As in celery_monitor_capture/control.py."""
    digest = hashlib.sha256(hostname.encode()).hexdigest()[:12]
    prefix = control_prefix(event_queue)
    readable = re.sub("[^A-Za-z0-9_-]", "_", hostname)[: LONGEST_NAME - len(prefix) - len(digest) - 1]
    return f"{prefix}{readable}-{digest}"


POLL_SECONDS = 0.1
WAIT_SECONDS = 2  # for messages, in one request to SQS
HIDDEN_SECONDS = 5  # of a reply that is being looked at
MOST_MESSAGES = 10  # of one request to SQS

Replies = Mapping[str, object]


class SqsQueue(NamedTuple):
    """A queue of SQS, and the client of boto3 that reaches it."""

    client: Any
    url: str


def find_sqs_queue(channel: Any, name: str) -> SqsQueue | None:
    """A queue by its name in Celery; ``None`` where it does not exist. ``channel`` is kombu's.

    kombu's own look-ups create what is missing.
    """
    if channel.predefined_queues:
        given = channel.predefined_queues.get(name)
        return SqsQueue(channel.sqs(queue=name), str(given["url"])) if given else None
    client = channel.sqs()
    try:
        found = client.get_queue_url(QueueName=channel.canonical_queue_name(name))
    except client.exceptions.QueueDoesNotExist:
        return None
    return SqsQueue(client, str(found["QueueUrl"]))


class SqsEnvelope(msgspec.Struct):
    """A message as kombu writes it for virtual transports."""

    body: str
    content_type: str | None = msgspec.field(default=None, name="content-type")
    content_encoding: str | None = msgspec.field(default=None, name="content-encoding")
    headers: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None

    @property
    def content(self) -> bytes:
        """The body. Raises ValueError."""
        encoded = (self.properties or {}).get("body_encoding") == "base64"
        return b64decode(self.body) if encoded else self.body.encode()


_decode_envelope = msgspec.json.Decoder(SqsEnvelope).decode


def open_envelope(text: str) -> SqsEnvelope:
    """The message in the text of a message of SQS. Raises ValueError and RecursionError."""
    return _decode_envelope(text if text.startswith("{") else b64decode(text))


def in_envelope(body: object, queue: str, headers: Mapping[str, object]) -> str:
    """JSON as the text of a message of SQS that kombu reads."""
    delivery = {"exchange": "", "routing_key": queue}
    envelope = SqsEnvelope(
        body=b64encode(msgspec.json.encode(body)).decode(),
        content_type="application/json",
        content_encoding="utf-8",
        headers=dict(headers),
        properties={"body_encoding": "base64", "delivery_info": delivery, "delivery_tag": str(uuid4()), "priority": 0},
    )
    return b64encode(msgspec.json.encode(envelope)).decode()


class QueuePost:
    """Sends one command and receives its replies, on any transport. It cannot find workers that are not named."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.channel: Any = connection.default_channel
        self.events = settings.event_queue
        self.ticket = str(uuid4())
        self.reply_queue = f"{control_prefix(self.events)}reply-{self.ticket}"

    def __enter__(self) -> Self:
        self._queue().declare()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue().delete()

    def send(
        self,
        body: Mapping[str, object],
        headers: Mapping[str, object],
        workers: Sequence[str],
        *,
        to_all: bool,  # noqa: ARG002
    ) -> int:
        """Sends a command to these workers, or to all that can be found; returns how many."""
        producer = Producer(self.channel, auto_declare=False)
        for worker in workers:
            queue = control_queue(self.events, worker)
            producer.publish(dict(body), routing_key=queue, headers=dict(headers), serializer="json", retry=False)
        return len(workers)

    def receive(self, seconds: float) -> Replies:
        """The replies that come next, by worker; none after so many seconds."""
        deadline = time.monotonic() + seconds
        while (message := self._queue().get(no_ack=False, accept=["json"])) is None:
            if time.monotonic() > deadline:
                return {}
            time.sleep(POLL_SECONDS)
        message.ack()
        return _replies(bytes(message.body) if not isinstance(message.body, str) else message.body)

    def _queue(self) -> Any:
        """Bound, as virtual transports delete no queue that they know no binding of."""
        name = self.reply_queue
        return Queue(name, Exchange(name, type="direct"), routing_key=name)(self.channel)


class SqsPost(QueuePost):
    """On SQS, where queues can be listed."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        super().__init__(connection, settings)
        self.reply_queue = f"{control_prefix(self.events)}replies"
        self._found: SqsQueue | None = None

    def __enter__(self) -> Self:
        self._found = find_sqs_queue(self.channel, self.reply_queue)
        if self._found is None and not self.channel.predefined_queues:
            self._queue().declare()
            self._found = find_sqs_queue(self.channel, self.reply_queue)
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(
        self, body: Mapping[str, object], headers: Mapping[str, object], workers: Sequence[str], *, to_all: bool
    ) -> int:
        if self._found is None:
            return 0
        names = {control_queue(self.events, worker) for worker in workers}
        queues = {name: queue for name in names if (queue := find_sqs_queue(self.channel, name)) is not None}
        if to_all:
            queues |= self._control_queues()
        for name, queue in queues.items():
            with suppress(queue.client.exceptions.QueueDoesNotExist):  # its worker has just ended
                queue.client.send_message(QueueUrl=queue.url, MessageBody=in_envelope(body, name, headers))
        return len(queues)

    def receive(self, seconds: float) -> Replies:
        if self._found is None:
            return {}
        client, url = self._found
        answer = client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=MOST_MESSAGES,
            WaitTimeSeconds=max(1, min(WAIT_SECONDS, int(seconds))),
            VisibilityTimeout=HIDDEN_SECONDS,
        )
        found: dict[str, object] = {}
        for message in answer.get("Messages", ()):
            ours, expired, body = self._open(message["Body"])
            handle = {"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]}
            if ours or expired:
                client.delete_message(**handle)
                found |= _replies(body) if ours else {}
            else:  # the answer to another question
                client.change_message_visibility(**handle, VisibilityTimeout=0)
        return found

    def _open(self, text: str) -> tuple[bool, bool, bytes]:
        try:
            envelope = open_envelope(text)
            body = envelope.content
        except (ValueError, RecursionError):
            return False, True, b""
        headers = envelope.headers or {}
        expires = headers.get("expires")
        expired = not isinstance(expires, (int, float)) or expires < time.time()
        return headers.get("ticket") == self.ticket, expired, body

    def _control_queues(self) -> dict[str, SqsQueue]:
        """Of all workers, also of those that were killed."""
        client = self.channel.sqs()
        prefix = self.channel.canonical_queue_name(control_prefix(self.events))
        found: dict[str, SqsQueue] = {}
        for page in client.get_paginator("list_queues").paginate(QueueNamePrefix=prefix):
            for url in page.get("QueueUrls", ()):
                name = str(url).rpartition("/")[2].removeprefix(self.channel.queue_name_prefix)
                if name != self.reply_queue:
                    found[name] = SqsQueue(client, str(url))
        return found


def _replies(body: bytes | str) -> Replies:
    try:
        replies = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return replies if isinstance(replies, dict) else {}
