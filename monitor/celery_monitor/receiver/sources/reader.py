"""The receiver's end of what reads a broker's socket: a process or a thread, whatever the store does meanwhile.

Redis closes the connection of a subscriber that lets 32 MB pile up, RabbitMQ that of one that sends no heartbeat. So
the socket is read, split where necessary, and answered elsewhere (buffer.py); what comes through the pipe is decoded
here.
"""

import logging
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from celery_monitor.brokers.connection import unavailable
from celery_monitor.errors import BrokerUnavailable
from celery_monitor.receiver.decode import count, decode
from celery_monitor.receiver.helper_failures import SOCKET_PROCESS, HelperFailures
from celery_monitor.receiver.sources import buffer
from celery_monitor.receiver.sources.buffer import COMMITTED, DAMAGED, DATA, END, FRAME
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, RefusedEvents
from celery_monitor.settings import Settings

log = logging.getLogger(__name__)

LEAVE_SECONDS = 1.0  # for what the broker still says after we said goodbye
END_SECONDS = 10.0  # for a reader to leave on disk what is not stored
STEADY_SECONDS = 60.0  # after which a process that was started again counts as working
SEND_SECONDS = 5.0
DISCARD_SECONDS = 0.05  # until the next record has come through the pipe
# So much in one read of the socket is a burst. The reading thread then gets the interpreter for itself for a while.
BURST_BYTES = 256 * 1024
BURST_SECONDS = 0.02
YIELD_SECONDS = 0.3  # at most, before each batch
MOST_REFUSED = 20  # senders that are named
BATCH_BYTES = 16 * 1024 * 1024  # decoded and stored at once; a traceback has no bound of its own
NO_EVENTS = b"[]"  # instead of a body that is refused
NO_JSON = b""  # instead of one that could not be unwrapped, and malformed as it
_LENGTH = struct.Struct(">I")

# JSON, or an envelope around it; what is refused; None: it could not be unwrapped.
Body = bytes | RefusedEvents | None


@contextmanager
def closed_by_error(opened: socket.socket) -> Iterator[socket.socket]:
    """Whatever goes wrong inside, what was opened is not left to the garbage collector."""
    try:
        yield opened
    except BaseException:
        opened.close()
        raise


class BrokerSocket:
    """A broker's socket, read by a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._burst_at = 0.0

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> bytes:
        self._sock.setblocking(False)
        chunks: list[bytes] = []
        size = 0
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while chunk := self._sock.recv(buffer.READ_BYTES):
                chunks.append(chunk)
                size += len(chunk)
                # TLS holds decrypted bytes that poll() does not see: ask again until it has no more.
                if not isinstance(self._sock, ssl.SSLSocket) or size >= buffer.READ_BYTES:
                    break
            if not chunk and not chunks:
                raise ConnectionError(buffer.CLOSED)
        if size >= BURST_BYTES:
            self._burst_at = time.monotonic()
        return b"".join(chunks)

    def send(self, data: bytes) -> None:
        if data:
            self._sock.settimeout(SEND_SECONDS)
            self._sock.sendall(data)

    def yield_to_reader(self) -> None:
        """Called by the thread that stores: wait while a burst is read."""
        latest = time.monotonic() + YIELD_SECONDS
        while self._burst_at + BURST_SECONDS > time.monotonic() < latest:
            time.sleep(BURST_SECONDS / 2)

    def close(self) -> None:
        """Say goodbye and wait for the broker's: to close a socket with unread bytes resets it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.settimeout(LEAVE_SECONDS)
            deadline = time.monotonic() + LEAVE_SECONDS
            while self._sock.recv(buffer.READ_BYTES) and time.monotonic() < deadline:
                pass
        self._sock.close()


class ReadingWorker(Protocol):
    """What reads the broker for us."""

    pipe: socket.socket

    def works(self) -> None:
        """Something came from it."""

    def failure(self) -> BrokerUnavailable:
        """Why it has ended without saying so."""

    def stop(self) -> None:
        """Wait for its end; the pipe is closed."""


class ReaderThread(threading.Thread):
    """Runs ``run`` with its end of the pipe."""

    def __init__(self, url: str, run: Callable[[int], None]) -> None:
        super().__init__(name="reader", daemon=True)
        self._url = url
        self._read = run
        self._error: Exception | None = None
        self.pipe, self._theirs = _pipe()

    def run(self) -> None:
        try:
            self._read(self._theirs.fileno())
        except Exception as error:
            # A thread that died in silence would look like a quiet broker.
            log.exception("reading from the broker failed")
            self._error = error
        finally:
            self._theirs.close()

    def works(self) -> None: ...

    def failure(self) -> BrokerUnavailable:
        return unavailable(self._url, self._error or ConnectionError(buffer.CLOSED))

    def stop(self) -> None:
        self.join(END_SECONDS)


class SocketProcess:
    """A process that reads the socket of a Redis (buffer.py), which nobody else may read then.

    Raises OSError where it cannot be started.
    """

    def __init__(self, sock: socket.socket, settings: Settings, folder: Path, helpers: HelperFailures) -> None:
        self._helpers = helpers
        self._steady_at = time.monotonic() + STEADY_SECONDS if helpers.failures(SOCKET_PROCESS) else None
        self.pipe, theirs = _pipe()
        with closed_by_error(self.pipe), theirs:
            sock.setblocking(False)
            handles = (sock.fileno(), theirs.fileno())
            given = (*handles, settings.buffer_bytes, folder, settings.spool_bytes)
            command = [sys.executable, "-I", "-S", buffer.__file__, *map(str, given)]
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                command, stdin=subprocess.DEVNULL, pass_fds=handles
            )

    def works(self) -> None:
        if self._steady_at is not None and time.monotonic() > self._steady_at:
            self._steady_at = None
            self._helpers.works(SOCKET_PROCESS)

    def failure(self) -> BrokerUnavailable:
        text = f"the process that reads the broker's socket ended by itself ({self._ending()})"
        self._helpers.failed(SOCKET_PROCESS, text)
        return BrokerUnavailable(f"{text}; a new connection is opened")

    def _ending(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(LEAVE_SECONDS)
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "it has closed its end"

    def stop(self) -> None:
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pipe() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


class MessageFormat(Protocol):
    """Bytes of records, in their order, to messages."""

    @property
    def pending(self) -> bool:
        """A message has begun that is not complete."""

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The messages that are complete now; raises OSError where the broker refuses something."""

    def restart(self) -> None:
        """What comes next does not continue what came before: skip to the first message."""


class Packed:
    """Whole messages, as pack() makes a record of them."""

    @property
    def pending(self) -> bool:
        return False

    def feed(self, data: bytes) -> list[bytes]:
        bodies: list[bytes] = []
        at, end, size, length = 0, len(data), _LENGTH.size, _LENGTH.unpack_from
        while at < end:
            start = at + size
            at = start + length(data, at)[0]
            bodies.append(data[start:at])
        return bodies

    def restart(self) -> None: ...


def pack(bodies: Iterable[Body], refused: set[RefusedEvents]) -> bytes:
    """Messages as the bytes of one record; who sent what is refused is added to ``refused``."""
    parts: list[bytes] = []
    for each in bodies:
        body = each
        if body is None:
            body = NO_JSON
        elif isinstance(body, RefusedEvents):
            note_refused(refused, body)
            body = NO_EVENTS
        parts += (_LENGTH.pack(len(body)), body)
    return b"".join(parts)


def note_refused(refused: set[RefusedEvents], sender: RefusedEvents) -> None:
    """Up to MOST_REFUSED of them."""
    if len(refused) < MOST_REFUSED:
        refused.add(sender)


def events_in(body: Body) -> int:
    """How many events a message holds."""
    return count(body) if isinstance(body, bytes) else 1


class Frame(NamedTuple):
    """A record as it came through the pipe; ``data`` is still there."""

    kind: int
    length: int
    arrived: float
    kept_until: float
    dropped: int


class Reader:
    """Gives Deliveries of what a worker reads."""

    def __init__(
        self,
        url: str,
        worker: ReadingWorker,
        messages: MessageFormat,
        settings: Settings,
        unwrap: Callable[[bytes], Body] = lambda body: body,
        refused: set[RefusedEvents] | None = None,
    ) -> None:
        self._url = url
        self._worker = worker
        self._pipe = worker.pipe
        self._messages = messages
        self._settings = settings
        self._unwrap = unwrap
        self._rest = bytearray()
        self._head: Frame | None = None
        self._poll = select.poll()
        self._poll.register(self._pipe, select.POLLIN)
        self._records = self._dropped = 0
        self._end: BrokerUnavailable | None = None
        self._refused = set() if refused is None else refused  # the worker adds to it
        self.complete_records = 0  # of which all messages were taken that begin in them
        self.messages_taken = 0
        self.heard_at = self.kept_until = time.time()

    @property
    def waits(self) -> bool:
        """Something can be taken at once."""
        return self._next_arrived(0.0) is not None

    def take(self, timeout: float) -> Delivery:
        """Decode what is there, up to about ``batch_events`` or BATCH_BYTES that came within ``batch_seconds``.

        Waits up to ``timeout`` seconds for the first. Raises BrokerUnavailable once everything was taken.
        """
        deadline = time.monotonic() + timeout
        while (first := self._next_arrived(max(0.0, deadline - time.monotonic()))) is not None:
            delivery = self._batch(first)
            if delivery.events or delivery.malformed or delivery.dropped or delivery.refused:
                return delivery  # the answer to a ping, or a part of a message, is none
        if self._end is not None:
            raise self._end
        return Delivery([], time.time(), 0)

    def _batch(self, first: float) -> Delivery:
        events: list[Event] = []
        malformed = size = 0
        arrived: float | None = first
        # One Delivery has one time of arrival: what came much later goes into the next.
        while arrived is not None and arrived <= first + self._settings.batch_seconds:
            frame, bodies = self._pop()
            malformed += self._decode(bodies, events) + (frame.kind == DAMAGED)
            size += frame.length
            more = len(events) < self._settings.batch_events and size < BATCH_BYTES
            arrived = self._next_arrived(0.0) if more else None
        dropped, self._dropped = self._dropped, 0
        return Delivery(events, first, malformed, dropped, refused=self._take_refused())

    def discard(self, before: float) -> None:
        """Drop what arrived before; raises BrokerUnavailable as take() does."""
        while (arrived := self._next_arrived(DISCARD_SECONDS)) is not None and arrived < before:
            self._pop()
        if self._end is not None:
            raise self._end

    def commit(self, number: int) -> None:
        """Tell the worker that so many records, or messages where it counts these, are stored."""
        with suppress(OSError):  # full of earlier ones, so that a later one will do; or the worker has ended
            self._pipe.send(COMMITTED.pack(number))

    def close(self) -> None:
        self._pipe.close()
        self._worker.stop()

    def _next_arrived(self, timeout: float) -> float | None:
        """When the next record arrived; ``None`` where none comes within ``timeout`` seconds, or none any more."""
        deadline = time.monotonic() + timeout
        while self._end is None:
            if (frame := self._complete()) is not None:
                return frame.arrived
            left = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(left * 1000):
                return None
            self._receive()
        return None

    def _complete(self) -> Frame | None:
        """The next record, if all of it is here."""
        if self._head is None:
            if len(self._rest) < FRAME.size:
                return None
            self._head = Frame(*FRAME.unpack_from(self._rest))
        if len(self._rest) < FRAME.size + self._head.length:
            return None
        if self._head.kind == END:
            self.heard_at = max(self.heard_at, self._head.arrived)
            text = self._rest[FRAME.size :].decode()
            self._end = unavailable(self._url, ConnectionError(text))
            return None
        return self._head

    def _receive(self) -> None:
        try:
            data = self._pipe.recv(buffer.READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if data:
            self._rest += data
            self._worker.works()
        else:
            self._end = self._worker.failure()

    def _pop(self) -> tuple[Frame, Sequence[bytes]]:
        frame, self._head = self._head, None
        assert frame is not None  # noqa: S101
        end = FRAME.size + frame.length
        data = bytes(memoryview(self._rest)[FRAME.size : end])
        del self._rest[:end]
        self.heard_at = max(self.heard_at, frame.arrived)
        self.kept_until = frame.kept_until
        self._dropped += frame.dropped
        self._records += 1
        if frame.kind != DATA:
            self._messages.restart()
        bodies = self._feed(data)
        if not self._messages.pending:
            self.complete_records = self._records
        elif bodies:  # the one that is not complete begins in this record
            self.complete_records = self._records - 1
        return frame, bodies

    def _feed(self, data: bytes) -> Sequence[bytes]:
        try:
            return self._messages.feed(data)
        except OSError as error:
            self._end = unavailable(self._url, error)
            return []

    def _decode(self, bodies: Sequence[bytes], events: list[Event]) -> int:
        malformed = 0
        self.messages_taken += len(bodies)
        for wrapped in bodies:
            body = self._unwrap(wrapped)
            if body is None:
                malformed += 1
            elif isinstance(body, RefusedEvents):
                note_refused(self._refused, body)
            else:
                decoded, bad = decode(body)
                events += decoded
                malformed += bad
        return malformed

    def _take_refused(self) -> tuple[RefusedEvents, ...]:
        if not self._refused:
            return ()
        refused = tuple(self._refused)
        self._refused -= set(refused)
        return refused
