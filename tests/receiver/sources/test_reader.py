"""What reads a broker's socket: a process, whatever this one does, or a thread, which never ends in silence."""

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from celery_monitor.errors import BrokerUnavailable
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.receiver.sources.buffer import END, FRAME, PING, Buffer, pump
from celery_monitor.receiver.sources.reader import (
    BrokerSocket,
    OwnSocket,
    Packed,
    Reader,
    ReaderThread,
    SocketProcess,
    pack,
)
from celery_monitor.receiver.sources.redis import RedisFormat
from celery_monitor.settings import Settings
from tests.receiver.sources.conftest import MakeSource
from tests.receiver.traffic import numbered, publisher, read_all, read_for, wait_until_read
from tests.workers import wait_for

Ends = tuple[socket.socket, socket.socket]
URL = "redis://127.0.0.1:6379/2"


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Ours and the broker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(60)
        yield ours, theirs


def message(number: int, length: int = 0) -> bytes:
    """An event as Redis sends it."""
    body = numbered(number).replace("shop.pay", "x" * length or "shop.pay").encode()
    return b"*4\r\n$8\r\npmessage\r\n$1\r\np\r\n$1\r\nc\r\n$%d\r\n%s\r\n" % (len(body), body)


def clocks(reader: Reader, count: int) -> list[int | None]:
    got: list[int | None] = []
    while len(got) < count and (delivery := reader.read(60)).events:
        got += [event.clock for event in delivery.events]
    return got


@pytest.fixture
def reading(ends: Ends, tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    """A process that reads our end; started again, in the same folder."""
    made: list[Reader] = []

    def make(sock: socket.socket = ends[0], **more: int) -> Reader:
        settings = Settings(batch_seconds=0.05, batch_events=100, **more)  # type: ignore[arg-type]
        worker = SocketProcess(sock, settings, tmp_path / "shop", HelperFailures())
        made.append(Reader(URL, worker, RedisFormat(), settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def unread(sock: socket.socket) -> int:
    """How many bytes wait in a socket."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def processes() -> list[int]:
    """Of ours, those that read a socket for us."""
    own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = [int(each) for path in own for each in path.read_text().split()]
    return [each for each in found if b"buffer.py" in Path(f"/proc/{each}/cmdline").read_bytes()]


def test_a_socket_is_emptied_while_this_process_reads_nothing(ends: Ends, reading: Callable[..., Reader]) -> None:
    reader = reading(buffer_bytes=1_000_000)
    before = time.time()
    for number in range(600):
        ends[1].sendall(message(number, 100_000))
    sent = time.time()
    delivery = reader.read(60)
    assert before <= delivery.arrived <= sent
    got = [event.clock for event in delivery.events]
    assert got + clocks(reader, 600 - len(got)) == list(range(600))


def test_beyond_the_bound_is_counted_and_nothing_else_is_lost(ends: Ends, reading: Callable[..., Reader]) -> None:
    reader = reading(buffer_bytes=100_000, spool_bytes=5_000_000)
    for number in range(600):
        ends[1].sendall(message(number, 100_000))
    got: list[int | None] = []
    dropped = 0
    while len(got) + dropped < 600:
        delivery = reader.read(60)
        got += [event.clock for event in delivery.events]
        dropped += delivery.dropped
        reader.commit(reader.complete_records)
    assert dropped > 300
    assert got == sorted(set(got), key=lambda clock: clock or 0)
    assert got[:40] == list(range(40))


def test_without_room_on_disk_little_waits_in_memory(
    ends: Ends, reading: Callable[..., Reader], tmp_path: Path
) -> None:
    reader = reading(spool_bytes=0)
    ends[1].sendall(message(1))
    assert clocks(reader, 1) == [1]
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_connection_is_reported_after_what_it_brought(
    ends: Ends, reading: Callable[..., Reader]
) -> None:
    reader = reading()
    ends[1].sendall(message(1) + message(2)[:50])
    ends[1].close()
    assert clocks(reader, 1) == [1]
    with pytest.raises(BrokerUnavailable, match="the broker closed the connection"):
        reader.read(60)


def test_what_had_arrived_and_is_not_stored_waits_for_the_next_process(
    ends: Ends, reading: Callable[..., Reader]
) -> None:
    reader = reading()
    whole = b"".join(map(message, range(100)))
    ends[1].sendall(whole[:5000])
    taken = clocks(reader, whole[:5000].count(b"uuid") - 1)
    reader.commit(reader.complete_records)
    ends[1].sendall(whole[5000:])
    clocks(reader, 1)
    reader.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        again = reading(ours)
        theirs.sendall(message(100))
        got = clocks(again, 1)
        while got[-1] != 100:
            got += clocks(again, 1)
    assert got == list(range(got[0] or 0, 101))
    assert (got[0] or 0) <= len(taken)


def test_what_another_receiver_has_stored_is_dropped(ends: Ends, reading: Callable[..., Reader]) -> None:
    reader = reading(buffer_bytes=100_000)
    for number in range(30):  # from half of the bound on they are on disk
        ends[1].sendall(message(number, 10_000))
    wait_for(lambda: not unread(ends[0]), what="the first piece in the process that reads")
    half = time.time() + 0.1  # the process notes the time of arrival a moment after it has read
    wait_for(lambda: time.time() > half)
    for number in range(30, 40):
        ends[1].sendall(message(number, 10_000))
    reader.discard(half)
    assert clocks(reader, 10) == list(range(30, 40))


def test_a_peer_that_sends_nothing_is_asked(ends: Ends, reading: Callable[..., Reader]) -> None:
    reader = reading()
    assert ends[1].recv(100) == PING
    ends[1].sendall(b"*3\r\n$4\r\npong\r\n$0\r\n\r\n")
    before = time.time()
    wait_for(lambda: reader.read(0.1).events or reader.last_received_at > before - 1)
    assert not reader.waits


def test_it_ends_when_it_is_let_go_of(reading: Callable[..., Reader]) -> None:
    reader = reading()
    wait_for(processes)  # Popen returns when exec has closed its pipe: what it runs is not to be seen yet
    (pid,) = processes()
    reader.close()
    assert pid not in processes()


PARENT = """
import socket, sys, time
from pathlib import Path
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.receiver.sources.reader import SocketProcess
from celery_monitor.settings import (Settings)
ours, theirs = socket.socketpair()
process = SocketProcess(ours, Settings(), Path(sys.argv[1]), HelperFailures())
print(process._process.pid, flush=True)
time.sleep(60)
"""


def test_it_dies_with_a_receiver_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "shop")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: not alive(pid), what="its end")


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_signal_to_the_group_leaves_it_until_the_receiver_lets_go(ends: Ends, reading: Callable[..., Reader]) -> None:
    reader = reading()
    ends[1].sendall(message(1))
    assert clocks(reader, 1) == [1]  # it runs
    (pid,) = processes()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    ends[1].sendall(message(2))
    assert clocks(reader, 1) == [2]


def test_its_death_is_a_lost_connection_and_the_next_one_reads_again(redis_url: str, source_of: MakeSource) -> None:
    source = source_of(redis_url, source="redis")
    source.guard()
    (pid,) = wait_for(processes)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BrokerUnavailable, match="reads the broker's socket ended unexpectedly"):
        read_for(source, 60)
    source.connect()
    assert source.missed
    source.guard()
    with publisher(redis_url) as publish:
        publish.send("task.received", numbered(12))
    assert [event.clock for event in read_all(source, 1)] == [12]
    assert len(processes()) == 1


def test_a_process_reads_from_the_start_and_nothing_is_missing(redis_url: str, source_of: MakeSource) -> None:
    source = source_of(redis_url, source="redis")
    with publisher(redis_url) as publish:
        for number in range(50):
            publish.send("task.received", numbered(number))
        few = [event.clock for event in read_all(source, 50)]
        assert len(processes()) == 1
        for number in range(50, 5000):
            publish.send("task.received", numbered(number))
    rest = [event.clock for event in read_all(source, 4950)]
    assert few + rest == list(range(5000))
    assert len(processes()) == 1


def test_what_is_not_stored_when_it_is_closed_is_read_again(redis_url: str, source_of: MakeSource) -> None:
    source = source_of(redis_url, source="redis")
    with publisher(redis_url) as publish:
        publish.send("task.received", numbered(1))
        assert [event.clock for event in read_all(source, 1)] == [1]
        source.acknowledge()
        publish.send("task.received", numbered(2))
        assert [event.clock for event in read_all(source, 1)] == [2]
        publish.send("task.received", numbered(3))
        wait_until_read(redis_url)
    source.close()
    source.connect()
    assert [event.clock for event in read_all(source, 2)] == [2, 3]
    assert len(processes()) == 1  # as it had something to read


class Lines:
    """A protocol of lines: each is a body, ``!`` breaks it; it sends ``to_send`` at a tick."""

    errors: tuple[type[Exception], ...] = (OSError,)
    tick_seconds = 0.2

    def __init__(self, buffer: Buffer, *, keeps_events: bool = False) -> None:
        self._buffer = buffer
        self.keeps_events = keeps_events
        self.to_send = b""
        self.committed = 0

    def receive(self, data: bytes) -> None:
        if b"!" in data:
            raise ZeroDivisionError("a bug")
        if data:
            self._buffer.put(pack(data.split(), set()))

    def tick(self, idle: float) -> bytes:
        sent, self.to_send = self.to_send, b""
        return sent

    def commit(self, number: int) -> None:
        self.committed = number
        self.to_send = b"now"

    def resume(self) -> None: ...


def reader_of(sock: socket.socket, lines: Lines, buffer: Buffer) -> Reader:
    thread = ReaderThread(URL, lambda out: pump(BrokerSocket(sock), out, lines, buffer))
    thread.start()
    return Reader(URL, thread, Packed(), Settings(batch_events=10, batch_seconds=0.1))


def test_a_bug_in_the_reader_is_logged_and_reported(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    buffer = Buffer(1000)
    with caplog.at_level(logging.ERROR), closing(reader_of(ends[0], Lines(buffer), buffer)) as reader:
        ends[1].sendall(b"!")
        with pytest.raises(BrokerUnavailable, match="a bug"):
            reader.read(5)
    assert "ZeroDivisionError" in caplog.text


def test_a_closed_connection_is_reported_after_what_it_brought(ends: Ends) -> None:
    buffer = Buffer(1000)
    with closing(reader_of(ends[0], Lines(buffer), buffer)) as reader:
        ends[1].sendall(b"one two")
        ends[1].close()
        assert reader.read(5).malformed == 2
        with pytest.raises(BrokerUnavailable, match="closed the connection"):
            reader.read(5)


def test_a_commit_is_acted_on_at_once(ends: Ends) -> None:
    buffer = Buffer(1000)
    lines = Lines(buffer)
    with closing(reader_of(ends[0], lines, buffer)) as reader:
        reader.commit(7)
        assert ends[1].recv(10) == b"now"
        assert lines.committed == 7


def test_a_full_buffer_pauses_reading_where_the_broker_keeps_the_rest(ends: Ends) -> None:
    buffer = Buffer(300)
    with closing(reader_of(ends[0], Lines(buffer, keeps_events=True), buffer)) as reader:
        ends[1].settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < 50_000_000:
                sent += ends[1].send(b"x " * 500)
        assert sent < 20_000_000
        while reader.messages_read * 2 < sent - 1000:
            reader.read(5)
        assert not buffer.full


def test_a_gap_begins_when_anything_last_came_and_not_when_the_end_was_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        own = OwnSocket(ours)
        theirs.send(b"+PONG\r\n")
        own.read()
        read_at = time.time()
        theirs.close()
        monkeypatch.setattr("time.time", lambda: read_at + 60)
        frame, _ = own.read()
    kind, _, arrived, kept_until, _ = FRAME.unpack_from(frame)
    assert kind == END
    assert arrived <= read_at
    assert kept_until <= read_at
