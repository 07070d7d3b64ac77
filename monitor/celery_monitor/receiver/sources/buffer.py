"""Buffers data that has arrived from a broker and is not stored yet: in memory, then in files, in order, with a limit.

A reader (a process for Redis, a thread elsewhere) reads the broker's socket into its Buffer and passes the data on
through a pipe; the receiver reports through the same pipe what it has stored.

Run as a script, this file is the process that reads the socket of a Redis. A thread would wait for the interpreter
whenever another thread stores, a tenth of a second or more on a busy machine: long enough for Redis to close the
connection at 32 MB of unread data. The process is started with ``-I -S`` and imports nothing of ours.
"""

import fcntl
import json
import logging
import os
import select
import signal
import struct
import sys
import time
import zlib
from binascii import a2b_base64
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

READ_BYTES = 1024 * 1024
SEGMENT_BYTES = 16 * 1024 * 1024  # a file is deleted once all of it is committed
MOST_RECORD_BYTES = 1 << 30  # a greater length means damage
AWAY_SECONDS = 1.0  # the database is away if records wait longer in memory
PING_AFTER_SECONDS = 3.0
DEAD_AFTER_SECONDS = 9.0
PING = b"*1\r\n$4\r\nPING\r\n"
MESSAGE = b"*4\r\n$8\r\npmessage\r\n"  # the beginning of each message of a subscription; JSON contains no line ends
CLOSED = "the broker closed the connection"
NICENESS = -10  # if permitted
# Kinds of records, and of frames in the pipe.
DATA, RESTART, DAMAGED, END = range(4)
FRAME = struct.Struct("=BIddI")  # kind, length of the data, time of arrival, kept until, events dropped before it
COMMITTED = struct.Struct("=Q")  # from the receiver: how many records are stored
_HEAD = struct.Struct(">BIId")  # kind, length of the data, checksum, time of arrival
_POSITION = struct.Struct(">QQI")  # segment, offset, checksum of both
_SUFFIX = ".segment"

Position = tuple[int, int]  # segment and offset


class Record(NamedTuple):
    """Bytes that arrived together.

    RESTART, without bytes: the next record does not continue the last one. DAMAGED: a crash left no readable bytes.
    """

    arrived: float
    data: bytes
    kind: int = DATA


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Spool:
    """Records in segments, which are append-only files in one folder, at most ``limit`` bytes. For one thread.

    Appended records survive the death of this process (not of the machine: nothing is synced); records that were read
    and not committed are read again by the next process. A folder belongs to one process at a time: if another has it,
    ``<folder>.2`` is used, and so on, as other receivers may stand by.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = self._base = directory
        self._limit = limit
        self._claimed: int | None = None
        self._sizes: dict[int, int] = {}  # of the segments that exist
        self._writing: int | None = None
        self._committed: Position = (0, 0)
        self._handles: dict[int, int] = {}
        self._failed = False
        self.position: Position = (0, 0)  # behind the last record that was read
        self._claim()
        self._find()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(self._sizes.values())

    @property
    def empty(self) -> bool:
        """Whether everything was read."""
        return self.unread is None

    def append(self, record: Record) -> bool:
        """Keeps a record; False where the limit is reached or writing fails."""
        if record.data and self.size + _HEAD.size + len(record.data) > self._limit:
            return False
        # Not to a segment of an earlier process, whose last record may be incomplete. Nor to one that was read to its
        # end: later records may wait in memory, and insert() needs a free number for them.
        if self._writing not in self._sizes or self.empty or self._sizes[self._writing] >= SEGMENT_BYTES:
            self._writing = self._next_number()
        return self._write(self._writing, _packed(record))

    def insert(self, records: Iterable[Record], before: int | None) -> None:
        """Keeps records in front of the run of segments that begins with ``before``; ``None``: behind all of them."""
        self._write(self._next_number() if before is None else before - 1, b"".join(map(_packed, records)))

    @property
    def unread(self) -> int | None:
        """The first segment that was not read to its end."""
        segment, offset = self.position
        if self._sizes.get(segment, 0) > offset:
            return segment
        # A full disk may leave a segment without a byte.
        return min((each for each, size in self._sizes.items() if each > segment and size), default=None)

    def read(self) -> Record | None:
        """The next record; ``None`` if all were read."""
        number = self.unread
        if number is None:
            return None
        segment, offset = self.position
        record, end = self._record(number, offset if number == segment else 0)
        self.position = (number, end)
        return record

    def commit(self, position: Position) -> None:
        """Everything before ``position`` is stored in the database, and need not be read again."""
        if self._committed == position:
            return
        segment, offset = self._committed = position
        place = _POSITION.pack(segment, offset, zlib.crc32(f"{segment} {offset}".encode()))
        # If this fails, records are read and stored again, which changes nothing.
        with suppress(OSError), open(self._position_file, "wb", opener=_open_private) as file:
            file.write(place)
        all_read = self.empty and position == self.position
        done = [number for number in self._sizes if number < segment or (number == segment and all_read)]
        for number in done:  # the next record goes into a new one
            self._delete(number)

    def close(self) -> None:
        """Closes the files and releases the folder to the next process."""
        for number in list(self._handles):
            os.close(self._handles.pop(number))
        if self._claimed is not None:
            os.close(self._claimed)
            self._claimed = None

    @property
    def _position_file(self) -> Path:
        return self._directory / "position"

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}{_SUFFIX}"

    def _find(self) -> None:
        """Finds what an earlier process has left."""
        if self._claimed is None:
            return
        self._sizes = {int(path.stem): path.stat().st_size for path in self._directory.glob(f"*{_SUFFIX}")}
        # Without a position everything is read again. Numbers continue behind it even if no segment is left.
        with suppress(OSError, struct.error):
            segment, offset, checksum = _POSITION.unpack(self._position_file.read_bytes())
            if checksum == zlib.crc32(f"{segment} {offset}".encode()):
                self.position = self._committed = (segment, offset)
        if not self.empty:
            log.info("events wait in %s: %d bytes", self._directory, self.size)

    def _claim(self) -> None:
        """Locks the first folder that no other process has; one that does not exist is locked when it is created."""
        number = 1
        while self._claimed is None and self._directory.is_dir():
            handle = os.open(self._directory, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._claimed = handle
            except BlockingIOError:
                os.close(handle)
                number += 1
                self._directory = self._base.with_name(f"{self._base.name}.{number}")

    def _make(self) -> None:
        while self._claimed is None:
            for folder in (*reversed(self._directory.parents), self._directory):
                if not folder.is_dir():
                    folder.mkdir(0o700, exist_ok=True)
            self._claim()

    def _handle(self, number: int) -> int:
        if number not in self._handles:
            self._make()
            self._handles[number] = os.open(self._path(number), os.O_RDWR | os.O_CREAT, 0o600)
        return self._handles[number]

    def _next_number(self) -> int:
        return max([*self._sizes, self.position[0], self._writing or 0]) + 2

    def _write(self, number: int, data: bytes) -> bool:
        size = self._sizes.get(number, 0)
        try:
            handle = self._handle(number)
            self._sizes.setdefault(number, size)
            self._write_at(handle, size, data)
        except OSError as error:
            if not self._failed:
                log.error("events cannot wait in %s: %s", self._directory, error)
            self._failed = True
            return False
        self._sizes[number] = size + len(data)
        self._failed = False
        return True

    def _write_at(self, handle: int, size: int, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.pwrite(handle, rest, size + len(data) - len(rest)) :]
        except OSError:
            with suppress(OSError):  # else an incomplete record is overwritten, or found damaged by the next process
                os.ftruncate(handle, size)
            raise

    def _record(self, segment: int, offset: int) -> tuple[Record, int]:
        end = self._sizes[segment]
        path = self._path(segment)
        try:
            handle = self._handle(segment)
            kind, length, checksum, arrived = _HEAD.unpack(os.pread(handle, _HEAD.size, offset))
            start = offset + _HEAD.size
            data = os.pread(handle, length, start) if length <= min(end - start, MOST_RECORD_BYTES) else b""
            if len(data) == length and zlib.crc32(data) == checksum:
                return Record(arrived, data, kind), start + length
        except (OSError, struct.error) as error:
            log.warning("%s: %s", path, error)
        log.warning("%s is damaged from byte %d on; %d bytes are skipped", path, offset, end - offset)
        return Record(path.stat().st_mtime, b"", DAMAGED), end

    def _delete(self, number: int) -> None:
        handle = self._handles.pop(number, None)
        if handle is not None:
            os.close(handle)
        self._path(number).unlink(missing_ok=True)
        del self._sizes[number]


def _packed(record: Record) -> bytes:
    return _HEAD.pack(record.kind, len(record.data), zlib.crc32(record.data), record.arrived) + record.data


class Buffer:
    """Records on their way to the receiver: ``limit`` bytes in memory, or half of it and then the spool.

    They are sent in their order of arrival. With a spool, a sent record is kept until it is committed. The receiver
    counts records from the first of a connection: ``before`` of them came from another buffer.
    """

    def __init__(self, limit: int, spool: Spool | None = None, before: int = 0) -> None:
        self._limit = limit
        self._spool = spool
        self._memory: deque[Record] = deque()
        self._size = 0  # bytes in memory that wait
        self._behind: deque[Record] = deque()  # in memory, after what waits on a full disk
        self._sent: deque[Record | Position] = deque()  # not committed: from memory, or how far the spool was read
        self._committed = before
        self._out = memoryview(b"")
        self._end: str | None = None
        self._dropped = 0
        self.last_received_at = time.time()
        self._ended = False
        if spool is not None and not spool.empty:
            # Some of it may be stored already, and its last message may be incomplete.
            self._frame(Record(self.last_received_at, b"", RESTART))
            self._sent.append(spool.position)
            spool.append(Record(self.last_received_at, b"", RESTART))

    @property
    def full(self) -> bool:
        """Whether to stop reading from a broker that keeps the rest."""
        return self._size >= self._limit

    @property
    def waits(self) -> bool:
        """Whether there is something to send."""
        ending = self._end is not None and not self._ended
        return bool(self._out or self._memory or self._behind or self._on_disk or ending)

    @property
    def _on_disk(self) -> bool:
        return self._spool is not None and not self._spool.empty

    def put(self, data: bytes, arrived: float | None = None) -> bool:
        """Keeps what has just arrived; False where there is no room."""
        self.last_received_at = time.time() if arrived is None else arrived
        if not data:
            return True
        record = Record(self.last_received_at, data)
        if self._spool is not None and not self._behind and self._should_spool(record) and self._spool.append(record):
            return True
        if self._size and self._size + len(data) > self._limit:
            return False
        self._keep_in_memory(record)
        return True

    def keep(self, data: bytes) -> None:
        """Keeps what a broker that keeps the rest has delivered, beyond the limit if need be."""
        if not self.put(data):
            self.put_last(data)

    def put_last(self, data: bytes) -> None:
        """Keeps what put() refused, beyond the limit: the end of a message that has begun."""
        if data:
            self._keep_in_memory(Record(self.last_received_at, data))

    def _keep_in_memory(self, record: Record) -> None:
        (self._behind if self._behind or self._on_disk else self._memory).append(record)
        self._size += len(record.data)

    def drop(self, events: int) -> None:
        """Counts events that are lost for lack of room."""
        self._dropped += events

    def end(self, reason: str) -> None:
        """No more data will come; the receiver gets the reason after all records."""
        self._end = reason

    def send(self, out: int) -> None:
        """Sends what ``out`` accepts without waiting; raises OSError if nobody reads it."""
        while self._out or self._next():
            try:
                done = os.write(out, self._out)
            except BlockingIOError:
                return
            self._out = self._out[done:]

    def commit(self, number: int) -> None:
        """The first ``number`` records that were sent are stored."""
        position = None
        for _ in range(min(number - self._committed, len(self._sent))):
            sent = self._sent.popleft()
            if not isinstance(sent, Record):
                position = sent
        self._committed = max(number, self._committed)
        if position is not None and self._spool is not None:
            self._spool.commit(position)

    def close(self) -> None:
        """Writes all that is not stored to the spool, for the next process."""
        if self._spool is None:
            return
        run: list[Record] = []  # from memory, between records in segments
        for each in (*self._sent, *self._memory):
            if isinstance(each, Record):
                run.append(each)
            elif run:
                self._spool.insert(run, before=each[0])
                run = []
        if run:
            self._spool.insert(run, before=self._spool.unread)
        if self._behind:
            self._spool.insert(self._behind, before=None)
        self._spool.close()

    def _should_spool(self, record: Record) -> bool:
        if self._on_disk:
            return True  # to keep the order
        away = bool(self._memory) and record.arrived - self._memory[0].arrived > AWAY_SECONDS
        return away or self._size + len(record.data) > self._limit // 2

    def _next(self) -> bool:
        """Frames the next record; False if there is none."""
        if not self._memory and not self._on_disk:
            self._memory, self._behind = self._behind, self._memory
        if self._memory:
            record = self._memory.popleft()
            self._size -= len(record.data)
            self._keep_sent(record)
        elif self._spool is not None and (read := self._spool.read()) is not None:
            record = read
            self._keep_sent(self._spool.position)
        elif self._end is not None and not self._ended:
            record = Record(self.last_received_at, self._end.encode(), END)
            self._ended = True
        else:
            return False
        self._frame(record)
        return True

    def _keep_sent(self, sent: Record | Position) -> None:
        if self._spool is not None:
            self._sent.append(sent)

    def _frame(self, record: Record) -> None:
        # Everything that arrived earlier is on disk, or was sent.
        in_memory = self._memory or self._behind
        kept = in_memory[0].arrived if in_memory else self.last_received_at
        head = FRAME.pack(record.kind, len(record.data), record.arrived, kept, self._dropped)
        self._dropped = 0
        self._out = memoryview(head + record.data)


class Socket(Protocol):
    """A broker's socket, which poll() can watch."""

    def fileno(self) -> int: ...

    def read(self) -> bytes:
        """What has arrived, without waiting; b"" for nothing. Raises OSError at the end."""

    def send(self, data: bytes) -> None: ...


class Stream(Protocol):
    """The protocol of a broker's connection."""

    errors: tuple[type[Exception], ...]  # that end the connection
    tick_seconds: float
    keeps_events: bool  # the broker keeps what is not read

    def receive(self, data: bytes) -> None:
        """Puts received data into the buffer."""

    def tick(self, idle: float) -> bytes:
        """What to send now, ``idle`` seconds after the last data; raises OSError if the peer is dead."""

    def commit(self, number: int) -> None:
        """The receiver has stored everything up to this number."""

    def resume(self) -> None:
        """There may be room in the buffer again."""


def pump(broker: Socket, out: int, stream: Stream, buffer: Buffer) -> None:
    """Reads ``broker`` to its end and passes everything on until the receiver closes ``out``."""
    poll = select.poll()
    last_byte = last_tick = time.monotonic()
    ended = False
    timeout = 0.0  # TLS may have decrypted the first bytes already, which poll() does not see
    while True:
        paused = stream.keeps_events and buffer.full
        poll.register(out, select.POLLIN | (select.POLLOUT if buffer.waits else 0))
        if ended or paused:
            with suppress(KeyError):
                poll.unregister(broker)
        else:
            poll.register(broker, select.POLLIN)
        ready = dict(poll.poll(timeout))
        now = time.monotonic()
        committed = bool(ready.get(out, 0) & ~select.POLLOUT)
        if committed and not read_commits(out, stream.commit):
            return
        try:
            if (broker.fileno() in ready or not timeout) and (data := broker.read()):
                last_byte = now
                stream.receive(data)
            if not ended and (committed or now - last_tick >= stream.tick_seconds):
                last_tick, last_byte = now, now if paused else last_byte
                broker.send(stream.tick(now - last_byte))
        except stream.errors as error:
            ended = True
            buffer.end(str(error) or type(error).__name__)
        with suppress(BrokenPipeError):  # which poll() reports next
            buffer.send(out)
        stream.resume()
        timeout = stream.tick_seconds * 1000


def read_commits(out: int, commit: Callable[[int], None]) -> bool:
    """Passes on what the receiver reports as stored; False if it has closed the pipe."""
    size = COMMITTED.size
    try:
        data = os.read(out, 4096 // size * size)
    except BlockingIOError:
        return True
    except OSError:
        return False
    for (number,) in COMMITTED.iter_unpack(data[: len(data) // size * size]):
        commit(number)
    return bool(data)


class RedisStream:
    """The stream of a Redis subscription. For lack of room, whole messages are dropped and their events counted."""

    errors: tuple[type[Exception], ...] = (OSError,)
    tick_seconds = 1.0
    keeps_events = False

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._refused = b""  # by the buffer: the end of a message, or the beginning of one while dropping
        self._dropping = False

    def receive(self, data: bytes) -> None:
        if not self._refused and self._buffer.put(data):
            return
        self._refused += data
        if not self._dropping:
            rest, begin, following = self._refused.partition(MESSAGE)
            if begin:  # the last message in the buffer is completed
                self._dropping = True
                self._buffer.put_last(rest)
                self._refused = begin + following
        if self._dropping:
            _, *messages, last = self._refused.split(MESSAGE)
            self._buffer.drop(sum(map(count_events, messages)))
            self._refused = MESSAGE + last  # which may be incomplete
        self.resume()

    def resume(self) -> None:
        if self._refused and self._buffer.put(self._refused):
            self._refused, self._dropping = b"", False

    def tick(self, idle: float) -> bytes:
        return ping(idle)

    def commit(self, number: int) -> None:
        self._buffer.commit(number)


def ping(idle: float) -> bytes:
    """What to send to a Redis that has been silent for so long; raises TimeoutError if it must be dead."""
    if idle > DEAD_AFTER_SECONDS:
        raise TimeoutError(f"no answer for {idle:.0f} s")
    return PING if idle >= PING_AFTER_SECONDS else b""


def count_events(message: bytes) -> int:
    """How many events a message has, without its MESSAGE prefix; one in another format than JSON counts as one."""
    try:
        *_, length, payload = message.split(b"\r\n", 5)
        envelope = json.loads(payload[: int(length[1:])])
        encoded = envelope["properties"].get("body_encoding") == "base64"
        events = json.loads(a2b_base64(envelope["body"]) if encoded else envelope["body"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 1
    return len(events) if isinstance(events, list) else 1


class _Descriptor:
    """The inherited socket."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def read(self) -> bytes:
        try:
            data = os.read(self._number, READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise ConnectionError(CLOSED)
        return data

    def send(self, data: bytes) -> None:
        with suppress(BlockingIOError):  # the broker does not read
            os.write(self._number, data)


def read_redis(broker: Socket, out: int, limit: int, directory: Path, room: int, before: int = 0) -> None:
    """Reads a Redis until it or the receiver ends; leaves in ``directory`` what the receiver has not stored."""
    buffer = Buffer(limit, Spool(directory, room) if room else None, before)
    stream = RedisStream(buffer)
    try:
        pump(broker, out, stream, buffer)
        with suppress(OSError):  # what has arrived until now
            stream.receive(broker.read())
    finally:
        buffer.close()


def main(broker: int, out: int, limit: int, directory: Path, room: int, before: int) -> None:
    """The process that reads a Redis."""
    # Signals go to the receiver's whole process group: pass on what has arrived until the receiver closes the pipe.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICENESS)
    os.set_blocking(out, False)
    read_redis(_Descriptor(broker), out, limit, directory, room, before)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
