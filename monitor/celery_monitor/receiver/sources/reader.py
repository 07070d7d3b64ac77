"""The receiver's side of the process or thread that reads a broker's socket, whatever the store does meanwhile.

Redis closes the connection of a subscriber with 32 MB of unread data, RabbitMQ that of one that sends no heartbeats. So
the socket is read and heartbeats are sent elsewhere (buffer.py); the data from the pipe is decoded here.
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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from celery_monitor.brokers.connection import unavailable
from celery_monitor.errors import BrokerUnavailable
from celery_monitor.receiver.decode import count, decode
from celery_monitor.receiver.helper_failures import SOCKET_PROCESS, HelperFailures
from celery_monitor.receiver.sources import buffer
from celery_monitor.receiver.sources.buffer import COMMITTED, DAMAGED, DATA, END, FRAME, Record, Spool
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, RefusedEvents
from celery_monitor.settings import Settings

log = logging.getLogger(__name__)

LEAVE_SECONDS = 1.0  # for the broker to close the connection after us
END_SECONDS = 10.0  # for a reader to write to disk what is not stored
STEADY_SECONDS = 60.0  # after which a restarted process counts as working
SEND_SECONDS = 5.0
DISCARD_SECONDS = 0.05  # for the next record to come through the pipe
# So much in one read of the socket is a burst. The reading thread then gets the interpreter to itself for a while.
BURST_BYTES = 256 * 1024
BURST_SECONDS = 0.02
QUIET_BYTES = 64 * 1024  # as much in one read of the receiver itself, and a process reads from then on
YIELD_SECONDS = 0.3  # at most, before each batch
MOST_REFUSED = 20  # senders that are reported
BATCH_BYTES = 16 * 1024 * 1024  # decoded and stored at once, as a traceback has no limit of its own
NO_EVENTS = b"[]"  # in place of a refused body
NO_JSON = b""  # in place of a body that could not be unwrapped; counts as malformed
_LENGTH = struct.Struct(">I")

# JSON, or an envelope around it; refused; None: could not be unwrapped.
Body = bytes | RefusedEvents | None


@contextmanager
def closed_by_error(opened: socket.socket) -> Iterator[socket.socket]:
    """Closes the socket if an exception is raised inside."""
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
                # poll() does not see bytes that TLS has decrypted: read until there are none.
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
        """Called by the thread that stores: waits while a burst is read."""
        latest = time.monotonic() + YIELD_SECONDS
        while self._burst_at + BURST_SECONDS > time.monotonic() < latest:
            time.sleep(BURST_SECONDS / 2)

    def close(self) -> None:
        """Waits for the broker to close, too: closing a socket with unread data would reset the connection."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.settimeout(LEAVE_SECONDS)
            deadline = time.monotonic() + LEAVE_SECONDS
            while self._sock.recv(buffer.READ_BYTES) and time.monotonic() < deadline:
                pass
        self._sock.close()


class ReadingWorker(Protocol):
    """The thread or process that reads the broker."""

    pipe: socket.socket

    def made_progress(self) -> None:
        """Data came from it."""

    def failure(self) -> BrokerUnavailable:
        """Why it ended without an END frame."""

    def stop(self) -> None:
        """Waits for its end; the pipe is closed already."""


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
            # A thread that died unnoticed would look like a broker without events.
            log.exception("reading from the broker failed")
            self._error = error
        finally:
            self._theirs.close()

    def made_progress(self) -> None: ...

    def failure(self) -> BrokerUnavailable:
        return unavailable(self._url, self._error or ConnectionError(buffer.CLOSED))

    def stop(self) -> None:
        self.join(END_SECONDS)


class SocketProcess:
    """A process that reads the socket of a Redis (buffer.py). Raises OSError where it cannot be started."""

    def __init__(
        self, sock: socket.socket, settings: Settings, folder: Path, helpers: HelperFailures, before: int = 0
    ) -> None:
        self._helpers = helpers
        self._steady_at = time.monotonic() + STEADY_SECONDS if helpers.failures(SOCKET_PROCESS) else None
        self.pipe, theirs = _pipe()
        with closed_by_error(self.pipe), theirs:
            sock.setblocking(False)
            handles = (sock.fileno(), theirs.fileno())
            given = (*handles, settings.buffer_bytes, folder, settings.spool_bytes, before)
            command = [sys.executable, "-I", "-S", buffer.__file__, *map(str, given)]
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                command, stdin=subprocess.DEVNULL, pass_fds=handles
            )

    def made_progress(self) -> None:
        if self._steady_at is not None and time.monotonic() > self._steady_at:
            self._steady_at = None
            self._helpers.succeeded(SOCKET_PROCESS)

    def failure(self) -> BrokerUnavailable:
        text = f"the process that reads the broker's socket ended unexpectedly ({self._exit()})"
        self._helpers.failed(SOCKET_PROCESS, text)
        return BrokerUnavailable(f"{text}; a new connection is opened")

    def _exit(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(LEAVE_SECONDS)
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "it has closed the pipe"

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
    """Parses the bytes of records into messages."""

    @property
    def pending(self) -> bool:
        """A message has begun that is not complete."""

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The messages that are complete now; raises OSError for an error reply of the broker."""

    def restart(self) -> None:
        """The next bytes do not continue the last ones: skip to the first message."""


class Packed:
    """Complete messages in records that pack() made."""

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
    """Messages as the bytes of one record; the senders of refused ones are added to ``refused``."""
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
    """Adds up to MOST_REFUSED senders."""
    if len(refused) < MOST_REFUSED:
        refused.add(sender)


def events_in(body: Body) -> int:
    """How many events a message contains."""
    return count(body) if isinstance(body, bytes) else 1


class Frame(NamedTuple):
    """The head of a record in the pipe; its data follows."""

    kind: int
    length: int
    arrived: float
    kept_until: float
    dropped: int


class Reader:
    """Decodes what a ReadingWorker has read into Deliveries."""

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
        self._messages = messages
        self._settings = settings
        self._unwrap = unwrap
        self._rest = bytearray()
        self._head: Frame | None = None
        self._poll = select.poll()
        self._attach(worker)
        self._records = self._dropped = 0
        self._end: BrokerUnavailable | None = None
        self._refused = set() if refused is None else refused  # the worker adds to it
        self.complete_records = 0  # whose messages were all read
        self.messages_read = 0
        self.last_received_at = self.kept_until = time.time()

    def _attach(self, worker: ReadingWorker) -> None:
        self._worker = worker
        self._pipe = worker.pipe
        self._poll.register(self._pipe, select.POLLIN)

    @property
    def waits(self) -> bool:
        """Something can be read at once."""
        return self._next_arrived(0.0) is not None

    def read(self, timeout: float) -> Delivery:
        """Decodes up to about ``batch_events`` events or BATCH_BYTES that arrived within ``batch_seconds``.

        Waits up to ``timeout`` seconds for the first. Raises BrokerUnavailable once everything was read.
        """
        deadline = time.monotonic() + timeout
        while (first := self._next_arrived(max(0.0, deadline - time.monotonic()))) is not None:
            delivery = self._batch(first)
            if delivery.events or delivery.malformed or delivery.dropped or delivery.refused:
                return delivery  # else it was the reply to a ping, or a part of a message
        if self._end is not None:
            raise self._end
        return Delivery([], time.time(), 0)

    def _batch(self, first: float) -> Delivery:
        events: list[Event] = []
        malformed = size = 0
        arrived: float | None = first
        # A Delivery has one time of arrival: what arrived much later goes into the next.
        while arrived is not None and arrived <= first + self._settings.batch_seconds:
            frame, bodies = self._pop()
            malformed += self._decode(bodies, events) + (frame.kind == DAMAGED)
            size += frame.length
            more = len(events) < self._settings.batch_events and size < BATCH_BYTES
            arrived = self._next_arrived(0.0) if more else None
        dropped, self._dropped = self._dropped, 0
        return Delivery(events, first, malformed, dropped, refused=self._take_refused())

    def discard(self, before: float) -> None:
        """Drops what arrived before; raises BrokerUnavailable as read() does."""
        while (arrived := self._next_arrived(DISCARD_SECONDS)) is not None and arrived < before:
            self._pop()
        if self._end is not None:
            raise self._end

    def commit(self, number: int) -> None:
        """Reports to the worker how many records (or messages, if it counts these) are stored."""
        self._report(number)

    def _report(self, number: int) -> None:
        with suppress(OSError):  # the pipe is full, and a later commit includes this one; or the worker has ended
            self._pipe.send(COMMITTED.pack(number))

    def close(self) -> None:
        self._pipe.close()
        self._worker.stop()

    def _next_arrived(self, timeout: float) -> float | None:
        """When the next record arrived; ``None`` if none comes within ``timeout`` seconds, or the worker has ended."""
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
        """The next record, if it is complete."""
        if self._head is None:
            if len(self._rest) < FRAME.size:
                return None
            self._head = Frame(*FRAME.unpack_from(self._rest))
        if len(self._rest) < FRAME.size + self._head.length:
            return None
        if self._head.kind == END:
            self.last_received_at = max(self.last_received_at, self._head.arrived)
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
            self._worker.made_progress()
        else:
            self._end = self._worker.failure()

    def _pop(self) -> tuple[Frame, Sequence[bytes]]:
        frame, self._head = self._head, None
        assert frame is not None  # noqa: S101
        end = FRAME.size + frame.length
        data = bytes(memoryview(self._rest)[FRAME.size : end])
        del self._rest[:end]
        self.last_received_at = max(self.last_received_at, frame.arrived)
        self.kept_until = frame.kept_until
        self._dropped += frame.dropped
        self._records += 1
        if frame.kind != DATA:
            self._messages.restart()
        bodies = self._feed(data)
        if not self._messages.pending:
            self.complete_records = self._records
        elif bodies:  # the incomplete one begins in this record
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
        self.messages_read += len(bodies)
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


class OwnSocket:
    """A Redis's socket, which the receiver reads between its batches. What is not stored is kept for the spool."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.pipe = sock
        self._unstored: deque[Record] = deque()
        self.records = 0  # that were read
        self._looked_at = self._last_byte = time.monotonic()
        self._received_at = time.time()

    def made_progress(self) -> None: ...

    def failure(self) -> BrokerUnavailable:
        raise AssertionError("its frames say why it ended")

    def stop(self) -> None:
        self.pipe.close()

    def read(self) -> tuple[bytes, int]:
        """What has arrived, as frames, and the number of its bytes."""
        try:
            data = self.pipe.recv(buffer.READ_BYTES)
        except BlockingIOError:
            return b"", 0
        except OSError as error:
            return self._ended(error), 0
        if not data:
            return self._ended(ConnectionError(buffer.CLOSED)), 0
        self._looked_at = self._last_byte = time.monotonic()
        self.records += 1
        self._received_at = time.time()
        record = Record(self._received_at, data)
        self._unstored.append(record)
        return FRAME.pack(DATA, len(data), record.arrived, record.arrived, 0) + data, len(data)

    def tick(self) -> bytes:
        """Asks a silent Redis whether it lives; the last frame if it does not."""
        now, looked_at = time.monotonic(), self._looked_at
        self._looked_at = now
        if now - looked_at > buffer.PING_AFTER_SECONDS:  # its answer may wait in the socket
            self._last_byte = now
        try:
            if question := buffer.ping(now - self._last_byte):
                self.pipe.send(question)
        except BlockingIOError:
            return b""
        except OSError as error:
            return self._ended(error)
        return b""

    def commit(self, number: int) -> None:
        """So many records are stored."""
        while self._unstored and self.records - len(self._unstored) < number:
            self._unstored.popleft()

    def take_unstored(self) -> list[Record]:
        """The records that are not stored, and what has arrived since."""
        if self.pipe.fileno() >= 0:
            self.read()
        found = list(self._unstored)
        self._unstored.clear()
        return found

    def _ended(self, error: OSError) -> bytes:
        """The last frame. What is missing began when anything last came, not when that was noticed."""
        text = (str(error) or type(error).__name__).encode()
        return FRAME.pack(END, len(text), self._received_at, self._received_at, 0) + text


class QuietReader(Reader):
    """Has a SocketProcess read the socket; reads it itself, between batches, as long as none can be started."""

    def __init__(
        self,
        url: str,
        own: OwnSocket,
        messages: MessageFormat,
        settings: Settings,
        unwrap: Callable[[bytes], Body],
        folder: Path,
        start: Callable[[socket.socket, int], SocketProcess],
    ) -> None:
        super().__init__(url, own, messages, settings, unwrap)
        self._own = own
        self._folder = folder
        self._start = start
        self._alone = True  # no process was started
        self._lock = threading.Lock()

    def read(self, timeout: float) -> Delivery:
        with self._lock:
            if self._alone:
                self._rest += self._own.tick()
        return super().read(timeout)

    def hand_over(self) -> None:
        """From now on a process reads the socket. Thread-safe, and may be called again."""
        with self._lock:
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._alone or self._end is not None:
            return
        try:
            process = self._start(self._own.pipe, self._own.records)
        except OSError as error:
            log.warning("the broker's socket is read between batches, as no process can be started for it: %s", error)
            return
        self._alone = False
        self._poll.unregister(self._own.pipe)
        self._attach(process)

    def _receive(self) -> None:
        with self._lock:
            if self._alone:
                frames, size = self._own.read()
                self._rest += frames
                if size >= QUIET_BYTES:
                    self._hand_over()
                return
        super()._receive()

    def _report(self, number: int) -> None:
        self._own.commit(number)
        if not self._alone:
            super()._report(number)

    def close(self) -> None:
        with self._lock:
            if not self._alone:
                self._own.stop()
                super().close()  # waits until the process has written what it has
            unstored = self._own.take_unstored()
            self._own.stop()
            self._alone, self._end = False, self._end or unavailable(self._url, ConnectionError(buffer.CLOSED))
        if unstored and self._settings.spool_bytes:
            spool = Spool(self._folder, self._settings.spool_bytes)
            spool.insert(unstored, before=spool.unread)
            spool.close()
