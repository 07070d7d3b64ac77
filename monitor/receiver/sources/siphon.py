"""A process of its own that does nothing but empty a broker's socket: run as a script, with four numbers.

A thread that is to empty it waits for the interpreter whenever another thread stores, and where the machine is busy
that takes a tenth of a second and more each time: long enough for Redis to cut us off at its 32 MB. This process
shares no interpreter. It imports next to nothing, understands nothing of what it reads, and passes it on with the time
of its arrival. What the receiver does not take at once waits in a file without a name, in memory where there is none;
beyond the bound the socket is left alone. It ends when the receiver's end of ``out`` is closed, by its death too.
"""

import os
import select
import signal
import struct
import sys
import time
from collections import deque
from contextlib import suppress

HEAD = struct.Struct("=dIi")  # time of arrival, bytes behind it, and where there are none: the errno of the end, or 0
READ_BYTES = 1024 * 1024
MEMORY_BYTES = 4 * 1024 * 1024  # from here on the file takes what comes
FILE_READ_BYTES = 256 * 1024
NICER = -10  # where we may


class Backlog:
    """Bytes that wait, first in, first out: the oldest in memory, what came later in the file, if there is one."""

    def __init__(self, file: int | None, limit: int) -> None:
        self._file = file
        self._limit = MEMORY_BYTES if file is None else max(limit, MEMORY_BYTES)
        self._memory: deque[memoryview] = deque()
        self._held = 0  # bytes in memory
        self._read = self._written = 0  # how far the file was read and written
        self._refused = b""  # by the disk, behind all that waits

    @property
    def full(self) -> bool:
        return bool(self._refused) or self._held + self._written >= self._limit

    @property
    def empty(self) -> bool:
        return not (self._memory or self._read < self._written or self._refused)

    def put(self, piece: bytes) -> None:
        if self._file is not None and (self._written or self._held >= MEMORY_BYTES):
            try:
                self._append(self._file, piece)
            except OSError:
                self._refused += piece
        else:
            self._hold(piece)

    def send(self, out: int) -> None:
        """Passes on what ``out`` takes without waiting; raises OSError where nobody reads it any more."""
        while not self.empty:
            if not self._memory:
                self._hold(self._next())
            try:
                done = os.write(out, self._memory[0])
            except BlockingIOError:
                return
            self._held -= done
            rest = self._memory.popleft()[done:]
            if rest:
                self._memory.appendleft(rest)

    def _hold(self, piece: bytes) -> None:
        self._memory.append(memoryview(piece))
        self._held += len(piece)

    def _append(self, file: int, piece: bytes) -> None:
        at, rest = self._written, memoryview(piece)
        while rest:
            done = os.pwrite(file, rest, at)
            at, rest = at + done, rest[done:]
        self._written = at

    def _next(self) -> bytes:
        if self._file is None or self._read == self._written:
            piece, self._refused = self._refused, b""
            return piece
        piece = os.pread(self._file, min(FILE_READ_BYTES, self._written - self._read), self._read)
        self._read += len(piece)
        if self._read == self._written:
            self._read = self._written = 0
            os.ftruncate(self._file, 0)
        return piece


def pump(broker: int, out: int, backlog: Backlog) -> None:
    """Reads ``broker`` to its end, and passes everything on. Raises OSError when nobody takes it any more."""
    ended = False
    poll = select.poll()
    while not (ended and backlog.empty):
        poll.register(out, 0 if backlog.empty else select.POLLOUT)
        if ended or backlog.full:
            with suppress(KeyError):
                poll.unregister(broker)
        else:
            poll.register(broker, select.POLLIN)
        ready = dict(poll.poll())
        if ready.get(out, 0) & (select.POLLHUP | select.POLLERR):
            return
        if broker in ready:
            ended = take(broker, backlog)
        backlog.send(out)


def take(broker: int, backlog: Backlog) -> bool:
    """Reads once; says whether the connection has ended."""
    code = 0
    try:
        data = os.read(broker, READ_BYTES)
    except BlockingIOError:
        return False
    except OSError as error:
        data, code = b"", error.errno or 0
    backlog.put(HEAD.pack(time.time(), len(data), code) + data)
    return not data


def main(broker: int, out: int, file: int, limit: int) -> None:
    # Who stops the receiver stops its whole group: what has arrived is passed on until the receiver lets go.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICER)
    os.set_blocking(out, False)
    with suppress(OSError):
        pump(broker, out, Backlog(file if file >= 0 else None, limit))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
