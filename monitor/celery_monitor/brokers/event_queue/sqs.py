"""SQS: finding a queue, what its attributes say, purging, and messages as kombu writes them.

SQS tells numbers of messages, approximately, and no ages: ApproximateAgeOfOldestMessage is a metric of CloudWatch. It
shows a message only by delivering it, which hides it from workers and counts towards its dead-letter limit.
"""

import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from kombu import Connection

from celery_monitor.brokers.connection import bounded, link
from celery_monitor.brokers.queues import GenericProbe, QueueMessages, ReadMessages
from celery_monitor.errors import NotFound, Unsupported
from celery_monitor.records.queue import Queue

KEPT_SECONDS = 5.0  # for which an answer is used: each question is a request that is paid for
MOST_MESSAGES = 10  # of one request
HIDDEN_SECONDS = 30  # of messages that are received to be deleted
READY, UNACKED = "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"
ONLY_DELIVERS = (
    "SQS shows a message only by delivering it, which hides it from workers and counts towards its dead-letter limit; "
    "so messages of its queues are not read or deleted one by one."
)


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


class Envelope(msgspec.Struct):
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


_decode_envelope = msgspec.json.Decoder(Envelope).decode


def open_envelope(text: str) -> Envelope:
    """The message in the text of a message of SQS. Raises ValueError and RecursionError."""
    return _decode_envelope(text if text.startswith("{") else b64decode(text))


def in_envelope(body: object, queue: str, headers: Mapping[str, object]) -> str:
    """JSON as the text of a message of SQS that kombu reads."""
    delivery = {"exchange": "", "routing_key": queue}
    envelope = Envelope(
        body=b64encode(msgspec.json.encode(body)).decode(),
        content_type="application/json",
        content_encoding="utf-8",
        headers=dict(headers),
        properties={"body_encoding": "base64", "delivery_info": delivery, "delivery_tag": str(uuid4()), "priority": 0},
    )
    return b64encode(msgspec.json.encode(envelope)).decode()


class SqsProbe(GenericProbe):
    """Visible messages, and those in flight: received by a worker and not deleted."""

    _channel: Any = None
    _queues: dict[str, SqsQueue]
    _answers: dict[str, tuple[float, Queue]]

    def new_connection(self) -> Connection:
        return bounded(super().new_connection())

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        if self._channel is None:
            self._channel = connection.channel()
            self._queues, self._answers = {}, {}
        now = time.monotonic()
        return [self._answer(name, now) for name in queue_names]

    def close(self) -> None:
        self._channel = None
        super().close()

    def _answer(self, name: str, now: float) -> Queue:
        at, answer = self._answers.get(name, (0.0, None))
        if answer is None or now - at >= KEPT_SECONDS:
            answer = self._ask(name)
            self._answers[name] = (now, answer)
        return answer

    def _ask(self, name: str) -> Queue:
        queue = self._queues.get(name) or find_sqs_queue(self._channel, name)
        if queue is None:
            return Queue(cluster=self.broker.cluster, name=name)
        try:
            answer = queue.client.get_queue_attributes(QueueUrl=queue.url, AttributeNames=[READY, UNACKED])
        except queue.client.exceptions.QueueDoesNotExist:
            self._queues.pop(name, None)
            return Queue(cluster=self.broker.cluster, name=name)
        self._queues[name] = queue
        found = answer["Attributes"]
        return Queue(cluster=self.broker.cluster, name=name, ready=int(found[READY]), unacked=int(found[UNACKED]))


class SqsMessages(QueueMessages):
    """Purging of a queue."""

    def read(self, limit: int) -> ReadMessages:  # noqa: ARG002
        raise Unsupported(ONLY_DELIVERS)

    def delete(self, digest: str) -> Any:  # noqa: ARG002
        raise Unsupported(ONLY_DELIVERS)

    def purge(self, see: Callable[[Any], bool]) -> int:
        """Receives and deletes what is visible; of what is too much for that, PurgeQueue tells the number only."""
        with link(self.broker, self.settings) as connection:
            queue = find_sqs_queue(connection.default_channel, self.queue)
            if queue is None:
                raise NotFound(f"SQS has no queue {self.queue}.")
            deleted = 0
            while messages := self._receive(queue):
                entries = [
                    {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                    for number, message in enumerate(messages)
                ]
                queue.client.delete_message_batch(QueueUrl=queue.url, Entries=entries)
                deleted += len(messages)
                if not all([see(_payload(message["Body"])) for message in messages]):  # noqa: C419 - it sees them all
                    return deleted + self._purge_rest(queue)
            return deleted

    def _receive(self, queue: SqsQueue) -> list[dict[str, Any]]:
        answer = queue.client.receive_message(
            QueueUrl=queue.url, MaxNumberOfMessages=MOST_MESSAGES, WaitTimeSeconds=1, VisibilityTimeout=HIDDEN_SECONDS
        )
        found: list[dict[str, Any]] = answer.get("Messages", [])
        return found

    def _purge_rest(self, queue: SqsQueue) -> int:
        answer = queue.client.get_queue_attributes(QueueUrl=queue.url, AttributeNames=[READY])
        rest = int(answer["Attributes"][READY])
        try:
            queue.client.purge_queue(QueueUrl=queue.url)
        except queue.client.exceptions.PurgeQueueInProgress:
            self.after_purge = (
                f" About {rest} remain: SQS purges a queue once in 60 seconds, and it was purged before. Purge it "
                "again in a minute."
            )
            return 0
        self.after_purge = (
            " SQS takes up to 60 seconds to delete the rest, and deletes with it what is in flight or sent meanwhile."
        )
        return rest


def _payload(text: str) -> bytes:
    """The message as other virtual transports store it."""
    try:
        open_envelope(text)
    except (ValueError, RecursionError):
        return text.encode()
    return text.encode() if text.startswith("{") else b64decode(text)
