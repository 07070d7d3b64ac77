"""A burst: all of it encoded before, then written to the broker's sockets as fast as they take it.

Redis gets one stream of PUBLISH commands. RabbitMQ gets the frames of basic.publish over several connections, without
confirms: a worker's events all go over one of them, so that their order stays. Nobody waits for subscribers.
"""

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis
from amqp.method_framing import frame_writer

from benchmarks.stream import WORKERS, Message, RedisPublisher, amqp_connection, amqp_message

PIECE_BYTES = 8 * 1024 * 1024  # in one write
CONNECTIONS = 2  # to RabbitMQ, which reads each of them in a process of its own
SECONDS = 300.0  # that the broker may leave us waiting


class RedisBurst:
    """PUBLISH commands in one stream; ``send`` gives the seconds until Redis has answered the last of them."""

    def __init__(self, url: str, messages: Sequence[Message]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 6379)
        user = [unquote(each) for each in (parts.username, parts.password) if each]
        self._login = [_command("AUTH", *user)] if user else []
        with closing(RedisPublisher(url)) as publisher:
            commands = (_command("PUBLISH", *publisher.envelope(each)) for each in messages)
            self._pieces = list(_pieces(commands))
        self._answers = len(messages) + len(self._login)

    def send(self) -> float:
        with socket.create_connection(self._address, SECONDS) as sock:
            began, answered = time.monotonic(), 0
            for piece in [*self._login, *self._pieces]:
                sock.sendall(piece)
                answered += self._read(sock, socket.MSG_DONTWAIT)
            while answered < self._answers:
                answered += self._read(sock, 0)
            return time.monotonic() - began

    @staticmethod
    def _read(sock: socket.socket, flags: int) -> int:
        """The number of answers that have come: each is a line."""
        with suppress(BlockingIOError):
            data = sock.recv(1 << 20, flags)
            if not data or b"-" in data:
                raise ConnectionError(f"Redis refuses the burst: {data[:200]!r}")
            return data.count(b"\n")
        return 0


def _command(*words: str | bytes) -> bytes:
    return bytes(hiredis.pack_command(words))  # type: ignore[arg-type]  # it takes as many as there are


class _Recorder:
    """Takes the place of a transport, and keeps what is to be written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))


class _Lane:
    """One connection to RabbitMQ, with what goes over it."""

    def __init__(self, url: str, messages: Iterable[Message]) -> None:
        self._connection: Any = amqp_connection(url)
        self._channel = self._connection.channel()
        recorder = _Recorder()
        writes, self._connection._frame_writer = (
            self._connection._frame_writer,
            frame_writer(self._connection, recorder),
        )
        for key, body in messages:
            self._channel.basic_publish(amqp_message(body), exchange="celeryev", routing_key=key)
        self._connection._frame_writer = writes
        self._pieces = list(_pieces(recorder.written))

    def send(self) -> None:
        for piece in self._pieces:
            self._connection.transport.write(piece)
        # What is asked behind them is answered when they have been taken.
        self._channel.exchange_declare("celeryev", "topic", passive=True)

    def close(self) -> None:
        self._connection.close()


class AmqpBurst:
    """Frames over several connections; ``send`` gives the seconds until RabbitMQ has taken the last of them."""

    def __init__(self, url: str, messages: Sequence[Message], connections: int = CONNECTIONS) -> None:
        self._url = url
        self._streams: list[list[Message]] = [[] for _ in range(connections)]
        for number, message in enumerate(messages):  # workers take turns in them
            self._streams[number % len(WORKERS) % connections].append(message)

    def send(self) -> float:
        with ExitStack() as stack, ThreadPoolExecutor() as threads:
            lanes = [stack.enter_context(closing(_Lane(self._url, each))) for each in self._streams]
            began = time.monotonic()
            for sent in [threads.submit(lane.send) for lane in lanes]:
                sent.result()
            return time.monotonic() - began


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of at most PIECE_BYTES."""
    found: list[bytes] = []
    size = 0
    for chunk in chunks:
        if size + len(chunk) > PIECE_BYTES:
            yield b"".join(found)
            found, size = [], 0
        found.append(chunk)
        size += len(chunk)
    if found:
        yield b"".join(found)


def prepare(url: str, messages: Sequence[Message]) -> RedisBurst | AmqpBurst:
    """The burst for this broker."""
    return RedisBurst(url, messages) if url.startswith("redis") else AmqpBurst(url, messages)
