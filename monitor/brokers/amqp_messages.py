"""The messages of a queue on RabbitMQ. It shows none without delivering it: they are taken, and put back at once.

The management API does the same and needs a plug-in. Put back, a message stands in its old place where nothing was
delivered meanwhile, carries the mark *redelivered* from then on, and a quorum queue counts a delivery.
"""

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amqp.exceptions import ChannelError
from amqp.exceptions import NotFound as QueueMissing

from monitor.brokers.link import link
from monitor.brokers.link import said
from monitor.brokers.message import QueueMessage
from monitor.brokers.message import Reading
from monitor.brokers.message import describe
from monitor.brokers.message import digest_of
from monitor.errors import NotFound
from monitor.errors import Unsupported
from monitor.redact import Redactor
from monitor.settings import Broker
from monitor.settings import Settings

MOST_BYTES = 32_000_000  # held for one reading
MOST_SEARCHED = 500  # messages held while the one to throw away is looked for
READ_HAZARD = (
    "RabbitMQ shows no message without delivering it. These were taken and put back at once: they are marked as "
    "redelivered from now on, may stand in another order if workers took messages meanwhile, and a quorum queue "
    "counts this as a delivery towards its delivery limit."
)


class AmqpMessages:
    """basic.get without acknowledgement on a channel of its own, whose end puts everything back."""

    def __init__(self, broker: Broker, settings: Settings, queue: str, redactor: Redactor) -> None:
        self.broker = broker
        self.settings = settings
        self.queue = queue
        self.redactor = redactor

    def read(self, limit: int) -> Reading:
        found: list[QueueMessage] = []
        size = 0
        more = False
        with self._channel() as channel:
            for message in self._taken(channel, limit):
                found.append(self._describe(message))
                size += len(message.body)
                more = bool(message.delivery_info["message_count"])
                if size > MOST_BYTES:
                    break
        return Reading(messages=tuple(found), more=more, hazard=READ_HAZARD if found else None)

    def delete(self, digest: str) -> Any:
        """Acknowledges that one, and gives it; those before it are put back, with what reading does to them."""
        with self._channel() as channel:
            for message in self._taken(channel, MOST_SEARCHED):
                if self._describe(message).digest == digest:
                    channel.basic_ack(message.delivery_tag)
                    return message
        raise NotFound(
            f"It is not among the next {MOST_SEARCHED} messages of {self.queue}: a worker may have taken it."
        )

    def taken(self, limit: int) -> Generator[Any]:
        """The next messages as the library has them; all are put back when the caller has seen enough."""
        with self._channel() as channel:
            yield from self._taken(channel, limit)

    def purge(self, see: Callable[[Any], bool]) -> int:
        """Removes every message, and gives their number. ``see`` gets each until it has seen enough.

        RabbitMQ does not tell what it purges: so messages are received, one by one, and the rest is purged.
        """
        number = 0
        with self._channel() as channel:
            while (message := channel.basic_get(self.queue, no_ack=True)) is not None:
                number += 1
                if not see(message):
                    break
            return number + int(channel.queue_purge(self.queue))

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with link(self.broker, self.settings) as connection:
            try:
                with connection.channel() as channel:
                    yield channel
            except QueueMissing:
                raise NotFound(f"RabbitMQ has no queue {self.queue!r}.") from None
            except ChannelError as error:
                raise Unsupported(f"RabbitMQ refuses this for the queue {self.queue!r}: {said(error)}") from error

    def _taken(self, channel: Any, limit: int) -> Iterator[Any]:
        """What is not acknowledged when the channel ends, however it ends, is put back by RabbitMQ itself."""
        for _ in range(limit):
            message = channel.basic_get(self.queue, no_ack=False)
            if message is None:
                return
            yield message

    def _describe(self, message: Any) -> QueueMessage:
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        properties = message.properties
        headers = properties.get("application_headers") or {}
        identity = str(headers.get("id") or properties.get("correlation_id") or "")
        envelope = {**properties, "headers": headers, "redelivered": message.delivery_info.get("redelivered")}
        return describe(body, envelope, digest_of(body, identity.encode()), self.redactor)
