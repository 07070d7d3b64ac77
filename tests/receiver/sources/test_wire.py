"""The reading thread never ends in silence."""

import logging
import socket
import time
from collections.abc import Iterator

import pytest

from monitor.errors import BrokerUnavailable
from monitor.receiver.sources.base import Inbox
from monitor.receiver.sources.wire import Drain
from tests.workers import wait_for


class Lines:
    """A protocol of lines: each is a body, ``!`` breaks it, and it says what it was told to say."""

    def __init__(self) -> None:
        self.to_say = b""

    def feed(self, data: bytes) -> list[bytes | None]:
        if b"!" in data:
            raise ZeroDivisionError("a bug")
        return list(data.split())

    def tick(self, idle: float) -> bytes:
        said, self.to_say = self.to_say, b""
        return said

    def explain(self, error: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(f"explained: {error}")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        yield ours, theirs


def test_a_bug_in_the_reader_is_logged_and_said(
    ends: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(1000, drops=True)
    drain = Drain(ends[0], Lines(), inbox, drops=True)
    drain.start()
    with caplog.at_level(logging.ERROR):
        ends[1].sendall(b"!")
        with pytest.raises(BrokerUnavailable, match="explained: a bug"):
            inbox.take(5, 10, 0.1)
    assert "ZeroDivisionError" in caplog.text
    drain.wake()
    drain.stop()


def test_a_closed_connection_is_said_after_what_it_brought(ends: tuple[socket.socket, socket.socket]) -> None:
    inbox = Inbox(1000, drops=True)
    drain = Drain(ends[0], Lines(), inbox, drops=True)
    drain.start()
    ends[1].sendall(b"one two")
    ends[1].close()
    assert inbox.take(5, 10, 0.1).malformed == 2
    with pytest.raises(BrokerUnavailable, match="closed the connection"):
        inbox.take(5, 10, 0.1)
    drain.stop()


def test_wake_sends_at_once_and_stop_says_the_last_word(ends: tuple[socket.socket, socket.socket]) -> None:
    lines = Lines()
    drain = Drain(ends[0], lines, Inbox(1000, drops=True), drops=True)
    drain.start()
    lines.to_say = b"now"
    drain.wake()
    assert ends[1].recv(10) == b"now"
    lines.to_say = b"bye"
    ends[1].shutdown(socket.SHUT_WR)
    drain.stop()
    wait_for(lambda: not drain.is_alive(), 5)


def test_a_full_inbox_pauses_reading_where_the_broker_keeps_the_rest(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    inbox = Inbox(300, drops=False)
    drain = Drain(ends[0], Lines(), inbox, drops=False)
    drain.start()
    for _ in range(20):
        ends[1].sendall(b"x" * 300)
        time.sleep(0.02)
    assert inbox.full
    taken = 0
    while taken + inbox.messages_taken < 2:
        inbox.take(1, 1, 0.01)
    assert inbox.messages_taken >= 2
    drain.stop()
