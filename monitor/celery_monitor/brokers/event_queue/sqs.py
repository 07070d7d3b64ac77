"""Queues of SQS: what their attributes say, and purging.

SQS tells numbers of messages, approximately, and no ages: ApproximateAgeOfOldestMessage is a metric of CloudWatch. It
shows a message only by delivering it, which hides it from workers and counts towards its dead-letter limit.
"""

import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Any

from kombu import Connection

from celery_monitor.brokers.connection import bounded, link
from celery_monitor.brokers.event_queue.post import SqsQueue, find_sqs_queue, open_envelope
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
