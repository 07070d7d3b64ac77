"""A bounded, append-only file of raw messages: what cannot be folded yet waits here, not in growing memory.

Messages come back in the order in which they were put in. What was appended survives the death of this process (not
that of the machine: nothing is synced); what was read and not committed comes again in the next one.
"""

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 1024 * 1024  # a file is deleted once all of it is committed
MOST_RECORD_BYTES = 1 << 30  # a length beyond it is damage
_HEAD = struct.Struct(">IId")  # bytes behind it, their checksum, time of arrival
_LENGTH = struct.Struct(">I")
_POSITION = struct.Struct(">QQI")  # segment, offset, checksum of both
_NOTHING = 0xFFFFFFFF  # instead of a length: a message that could not be unwrapped
_SUFFIX = ".spool"


class Record(NamedTuple):
    """Messages that arrived together; ``damaged`` instead where a crash left no readable record."""

    arrived: float
    bodies: list[bytes | None]
    damaged: bool = False


class Spool:
    """Segments in a folder of its own. For one process; the caller keeps its threads apart.

    With ``claims`` the folder is this process's as long as it lives. Where another has it, ``<folder>.2`` is taken, and
    so on: beside a receiver that writes, others stand by.
    """

    def __init__(self, directory: Path, limit: int, *, claims: bool = False) -> None:
        self._directory = self._base = directory
        self._claims = claims
        self._claimed: int | None = None
        self._limit = limit
        self._sizes: dict[int, int] = {}  # of the segments that exist
        self._writing: int | None = None
        self._written = 0
        self._read_at = (0, 0)  # segment and offset
        self._committed = (0, 0)
        self._handles: dict[int, int] = {}
        self._failed = False
        self._claim()
        self._find()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(self._sizes.values())

    @property
    def empty(self) -> bool:
        """Everything was read."""
        segment, offset = self._read_at
        return all(number < segment or (number == segment and size <= offset) for number, size in self._sizes.items())

    def append(self, arrived: float, bodies: Sequence[bytes | None]) -> bool:
        """Keeps messages; False where the bound is reached or the disk refuses."""
        payload = _pack(bodies)
        size = _HEAD.size + len(payload)
        if self.size + size > self._limit:
            return False
        record = _HEAD.pack(len(payload), zlib.crc32(payload), arrived) + payload
        try:
            self._write(record)
        except OSError as error:
            if not self._failed:
                log.error("events cannot wait in %s: %s", self._directory, error)
            self._failed = True
            return False
        self._failed = False
        return True

    def read(self) -> Record | None:
        """The next messages, or ``None`` where all were read."""
        while not self.empty:
            segment, offset = self._read_at
            if segment not in self._sizes or offset >= self._sizes[segment]:
                self._read_at = (min(number for number in self._sizes if number > segment), 0)
                continue
            record, end = self._record(segment, offset)
            self._read_at = (segment, end)
            return record
        return None

    def next_arrived(self) -> float | None:
        """When the next messages arrived; 0 where that cannot be read, ``None`` where there are none."""
        if self.empty:
            return None
        segment, offset = self._read_at
        if offset >= self._sizes.get(segment, 0):
            segment, offset = min(number for number in self._sizes if number > segment), 0
        try:
            return float(_HEAD.unpack(os.pread(self._handle(segment), _HEAD.size, offset))[2])
        except (OSError, struct.error):
            return 0.0

    def commit(self) -> None:
        """Everything that read() gave is stored elsewhere: it need not come again."""
        if self._committed == self._read_at:
            return
        segment, offset = self._committed = self._read_at
        place = _POSITION.pack(segment, offset, zlib.crc32(f"{segment} {offset}".encode()))
        with suppress(OSError):  # then it comes again, which changes nothing
            self._position.write_bytes(place)
        done = [number for number in self._sizes if number < segment or (number == segment and self.empty)]
        for number in done:  # what is written next goes into a new one
            self._delete(number)

    def close(self) -> None:
        """Lets go of the files; what they hold stays."""
        for number in list(self._handles):
            os.close(self._handles.pop(number))

    @property
    def _position(self) -> Path:
        return self._directory / "position"

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}{_SUFFIX}"

    def _find(self) -> None:
        """What an earlier process has left."""
        if not self._directory.is_dir():
            return
        self._sizes = {int(path.stem): path.stat().st_size for path in sorted(self._directory.glob(f"*{_SUFFIX}"))}
        # Without a position everything comes again. Numbers go on behind it, also where no segment is left.
        with suppress(OSError, struct.error):
            segment, offset, checksum = _POSITION.unpack(self._position.read_bytes())
            if checksum == zlib.crc32(f"{segment} {offset}".encode()):
                self._read_at = self._committed = (segment, offset)
        if not self.empty:
            log.info("events wait in %s: %d bytes", self._directory, self.size)

    def _claim(self) -> None:
        """Takes the first folder that no other process has; one that nobody has made is claimed when it is made."""
        while self._claims and self._claimed is None and self._directory.is_dir():
            handle = os.open(self._directory, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._claimed = handle
            except BlockingIOError:
                os.close(handle)
                number = int(self._directory.suffix[1:] or 1) if self._directory != self._base else 1
                self._directory = self._base.with_name(f"{self._base.name}.{number + 1}")

    def _make(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = self._directory
        self._claim()
        if self._directory != before:
            self._make()

    def _handle(self, number: int) -> int:
        if number not in self._handles:
            self._make()
            self._handles[number] = os.open(self._path(number), os.O_RDWR | os.O_CREAT, 0o600)
        return self._handles[number]

    def _write(self, record: bytes) -> None:
        # Never behind the rest of an earlier process: its last record may be half a one.
        if self._writing not in self._sizes or self._written >= SEGMENT_BYTES:
            newest = max([*self._sizes, self._read_at[0], self._writing or 0])
            self._writing, self._written = newest + 1, 0
        number = self._writing or 0
        handle = self._handle(number)
        self._sizes.setdefault(number, 0)
        rest = memoryview(record)
        try:
            while rest:
                done = os.pwrite(handle, rest, self._written)
                self._written += done
                rest = rest[done:]
        except OSError:
            self._written = self._sizes[number]
            with suppress(OSError):  # what is torn is written over, or found damaged by the next process
                os.ftruncate(handle, self._written)
            raise
        self._sizes[number] = self._written

    def _record(self, segment: int, offset: int) -> tuple[Record, int]:
        end = self._sizes[segment]
        try:
            handle = self._handle(segment)
            length, checksum, arrived = _HEAD.unpack(os.pread(handle, _HEAD.size, offset))
            start = offset + _HEAD.size
            payload = os.pread(handle, length, start) if length <= min(end - start, MOST_RECORD_BYTES) else b""
            if len(payload) == length and zlib.crc32(payload) == checksum:
                return Record(arrived, _unpack(payload)), start + length
        except (OSError, struct.error) as error:
            log.warning("%s: %s", self._path(segment), error)
        log.warning(
            "%s is damaged from byte %d on; %d bytes are passed over", self._path(segment), offset, end - offset
        )
        return Record(self._path(segment).stat().st_mtime, [], damaged=True), end

    def _delete(self, number: int) -> None:
        handle = self._handles.pop(number, None)
        if handle is not None:
            os.close(handle)
        self._path(number).unlink(missing_ok=True)
        del self._sizes[number]


def _pack(bodies: Iterable[bytes | None]) -> bytes:
    parts: list[bytes] = []
    for body in bodies:
        parts += (_LENGTH.pack(_NOTHING),) if body is None else (_LENGTH.pack(len(body)), body)
    return b"".join(parts)


def _unpack(payload: bytes) -> list[bytes | None]:
    bodies: list[bytes | None] = []
    at = 0
    while at < len(payload):
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        if length == _NOTHING:
            bodies.append(None)
        else:
            bodies.append(payload[at : at + length])
            at += length
    return bodies
