"""What RabbitMQ has said to have of the messages sent to it.

A connection that is closed sooner may take the last of them with it: a quorum queue has a message only when most of its
members do, which is after the publish was read.
"""

from typing import Any

MOST_OPEN = 5_000
WAIT_SECONDS = 120.0


class Confirms:
    """Publisher confirms of one py-amqp channel (RabbitMQ, "Consumer Acknowledgements and Publisher Confirms")."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._sent = 0
        self._open: dict[int, None] = {}  # delivery tags, the oldest first
        self._refused = 0
        channel.confirm_select()
        channel.events["basic_ack"].add(self._confirm)
        channel.events["basic_nack"].add(self._refuse)

    def sent(self) -> None:
        """To be called after each publish."""
        self._sent += 1
        self._open[self._sent] = None
        if len(self._open) > MOST_OPEN:
            self.wait(MOST_OPEN // 2)

    def wait(self, most: int = 0) -> None:
        """Until the broker has all but ``most``; TimeoutError where it says nothing for ``WAIT_SECONDS``."""
        while len(self._open) > most:
            self._channel.connection.drain_events(timeout=WAIT_SECONDS)
        if self._refused:
            raise AssertionError(f"the broker refused {self._refused} messages")

    def _confirm(self, tag: int, multiple: bool) -> None:
        if not multiple:
            self._open.pop(tag, None)
            return
        for each in list(self._open):
            if each > tag:
                break
            del self._open[each]

    def _refuse(self, tag: int, multiple: bool) -> None:
        self._refused += 1
        self._confirm(tag, multiple)
