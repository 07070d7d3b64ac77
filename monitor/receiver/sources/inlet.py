"""Where the drain reads: the broker's socket itself, or the process that empties it for us (siphon.py)."""

import logging
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from contextlib import suppress
from pathlib import Path
from typing import IO
from typing import NamedTuple
from typing import Protocol
from typing import TypeVar

from monitor.errors import BrokerUnavailable
from monitor.receiver.helpers import FEWEST_FAILURES
from monitor.receiver.helpers import SIPHON
from monitor.receiver.helpers import Helpers
from monitor.receiver.sources import siphon

READ_BYTES = siphon.READ_BYTES
LEAVE_SECONDS = 1.0  # for what the broker still says after we said goodbye
STEADY_SECONDS = 60.0  # after which a process that was started again counts as working
LAST_SECONDS = 4.0  # for what the other process still holds

log = logging.getLogger(__name__)


class Closable(Protocol):
    """What is to be closed."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


@contextmanager
def closed_by_error(opened: C) -> Iterator[C]:
    """Whatever goes wrong inside, what was opened is not left to the garbage collector."""
    try:
        yield opened
    except BaseException:
        opened.close()
        raise


class Piece(NamedTuple):
    """Bytes as they came, and when."""

    arrived: float
    data: bytes


class Inlet(Protocol):
    """Something that poll() can watch, and what came through it."""

    def fileno(self) -> int:
        """What to watch."""

    def receive(self) -> list[Piece]:
        """What has come, without waiting; raises OSError or EOFError when there is no more."""

    def last(self) -> Iterator[Piece]:
        """What counts of what still comes once we have said goodbye."""

    def close(self) -> None:
        """Let go of all but the broker's socket."""


class Direct:
    """The broker's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> list[Piece]:
        data = self._read()
        return [Piece(time.time(), data)] if data else []

    def _read(self) -> bytes:
        self._sock.setblocking(False)
        chunks: list[bytes] = []
        try:
            while chunk := self._sock.recv(READ_BYTES):
                chunks.append(chunk)
                # TLS holds decrypted bytes that poll() does not see: ask again until it has no more.
                if not isinstance(self._sock, ssl.SSLSocket) or sum(map(len, chunks)) >= READ_BYTES:
                    return b"".join(chunks)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b"".join(chunks)
        raise EOFError("the broker closed the connection")

    def last(self) -> Iterator[Piece]:
        # To close a socket with unread bytes resets it, and the last acknowledgement may go with it.
        self._sock.settimeout(LEAVE_SECONDS)
        deadline = time.monotonic() + LEAVE_SECONDS
        while self._sock.recv(READ_BYTES) and time.monotonic() < deadline:
            pass
        return iter(())

    def close(self) -> None:
        """There is nothing else."""


class Siphoned:
    """A process that empties the socket, which nobody else may read then, and passes on what came, with its time.

    ``room`` is how many bytes may wait with it: in a file without a name in ``directory`` or beside it, or, where none
    can be made, few in memory. Raises OSError where the process cannot be started.
    """

    def __init__(self, sock: socket.socket, directory: Path, room: int, helpers: Helpers | None = None) -> None:
        self._helpers = helpers or Helpers()
        self._steady_at = time.monotonic() + STEADY_SECONDS if self._helpers.failures(SIPHON) else None
        sock.setblocking(False)  # for both of us
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._rest = bytearray()
        self._end: Exception | None = None
        with closed_by_error(self._ours), theirs, _nameless(directory, room) as file:
            handles = (sock.fileno(), theirs.fileno(), file.fileno() if file else -1)
            command = [sys.executable, "-I", "-S", siphon.__file__, *map(str, handles), str(room)]
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                command, stdin=subprocess.DEVNULL, pass_fds=[each for each in handles if each >= 0]
            )

    def fileno(self) -> int:
        return self._ours.fileno()

    def receive(self) -> list[Piece]:
        try:
            data = self._ours.recv(READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise self._end or self._ended()
        if self._steady_at is not None and time.monotonic() > self._steady_at:
            self._steady_at = None
            self._helpers.works(SIPHON)
        self._rest += data
        return self._pieces()

    def _ended(self) -> BrokerUnavailable:
        text = f"the process that reads the broker's socket ended by itself ({self._ending()})"
        self._helpers.failed(SIPHON, text)
        return BrokerUnavailable(f"{text}; a new connection is opened")

    def _ending(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(LEAVE_SECONDS)
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "it has closed its end"

    def _pieces(self) -> list[Piece]:
        found: list[Piece] = []
        start, size = 0, siphon.HEAD.size
        while len(self._rest) - start >= size:
            arrived, length, code = siphon.HEAD.unpack_from(self._rest, start)
            if start + size + length > len(self._rest):
                break
            if not length:
                self._end = OSError(code, os.strerror(code)) if code else EOFError("the broker closed the connection")
            else:
                found.append(Piece(arrived, bytes(self._rest[start + size : start + size + length])))
            start += size + length
        del self._rest[:start]
        return found

    def last(self) -> Iterator[Piece]:
        # What has arrived at the other process is with us as much as if it were here.
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        deadline = time.monotonic() + LAST_SECONDS
        while self._end is None and (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            yield from self.receive()

    def close(self) -> None:
        self._ours.close()  # of which it dies
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _nameless(directory: Path, room: int) -> AbstractContextManager[IO[bytes] | None]:
    """A file that nobody else sees; ``None`` where events shall not wait on disk, or cannot.

    The spool makes its folder when the first events wait there; until then, beside it.
    """
    if room:
        with suppress(OSError):
            return tempfile.TemporaryFile(dir=directory if directory.is_dir() else directory.parent)
    return nullcontext()


def open_inlet(sock: socket.socket, directory: Path, room: int, helpers: Helpers | None = None) -> Inlet:
    """The inlet that loses least: what TLS has decrypted only this process knows.

    Where the process cannot be started, or has ended by itself twice, a thread reads instead.
    """
    helpers = helpers or Helpers()
    if isinstance(sock, ssl.SSLSocket):
        return Direct(sock)
    if helpers.failures(SIPHON) >= FEWEST_FAILURES:
        log.warning("the broker's socket is read by a thread, since the process for it ended by itself repeatedly")
        return Direct(sock)
    try:
        return Siphoned(sock, directory, room, helpers)
    except OSError as error:
        for _ in range(FEWEST_FAILURES):  # there will be no second attempt on this connection
            helpers.failed(SIPHON, error)
        log.warning("the broker's socket is read by a thread, since no process can be started for it: %s", error)
        return Direct(sock)
