"""The process that empties the broker's socket: whatever this one does, and not longer than it lives."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from monitor.errors import BrokerUnavailable
from monitor.receiver.sources.inlet import Piece
from monitor.receiver.sources.inlet import Siphoned
from tests.receiver.sources.conftest import MakeSource
from tests.receiver.traffic import numbered
from tests.receiver.traffic import publisher
from tests.receiver.traffic import read_all
from tests.receiver.traffic import read_for
from tests.workers import wait_for

ROOM = 200_000_000
BLOCK = bytes(range(256)) * 4096
Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Ours and the broker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20)
        yield ours, theirs


@pytest.fixture
def siphoned(ends: Ends, tmp_path: Path) -> Iterator[Callable[..., Siphoned]]:
    made: list[Siphoned] = []

    def make(room: int = ROOM) -> Siphoned:
        made.append(Siphoned(ends[0], tmp_path, room))
        return made[-1]

    yield make
    for each in made:
        each.close()


def processes() -> list[int]:
    """Of ours, those that read a socket for us."""
    own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = [int(each) for path in own for each in path.read_text().split()]
    return [each for each in found if b"siphon.py" in Path(f"/proc/{each}/cmdline").read_bytes()]


def come(inlet: Siphoned, size: int) -> list[Piece]:
    pieces: list[Piece] = []
    while sum(len(each.data) for each in pieces) < size:
        ready, _, _ = select.select([inlet], [], [], 20)
        assert ready
        pieces += inlet.receive()
    return pieces


def test_a_socket_is_emptied_while_this_process_reads_nothing(ends: Ends, siphoned: Callable[..., Siphoned]) -> None:
    inlet = siphoned()
    before = time.time()
    for _ in range(60):
        ends[1].sendall(BLOCK)
    sent = time.time()
    time.sleep(0.3)
    pieces = come(inlet, 60 * len(BLOCK))
    assert b"".join(each.data for each in pieces) == BLOCK * 60
    times = [each.arrived for each in pieces]
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] < sent + 0.3  # when it came, not when it was passed on


def test_beyond_the_bound_the_socket_is_left_alone_and_nothing_is_lost(
    ends: Ends, siphoned: Callable[..., Siphoned]
) -> None:
    inlet = siphoned(room=5_000_000)
    ends[1].settimeout(1)
    sent = bytearray()
    with suppress(TimeoutError):
        while len(sent) < 60_000_000:
            sent += BLOCK[: ends[1].send(BLOCK)]
    assert 5_000_000 <= len(sent) < 20_000_000
    assert b"".join(each.data for each in come(inlet, len(sent))) == sent


def test_without_room_on_disk_little_waits_in_memory(ends: Ends, siphoned: Callable[..., Siphoned]) -> None:
    inlet = siphoned(room=0)
    ends[1].sendall(b"one")
    assert [each.data for each in come(inlet, 3)] == [b"one"]


def test_the_end_of_the_connection_is_said_after_what_it_brought(ends: Ends, siphoned: Callable[..., Siphoned]) -> None:
    inlet = siphoned()
    ends[1].sendall(BLOCK)
    ends[1].close()
    assert b"".join(each.data for each in come(inlet, len(BLOCK))) == BLOCK
    with pytest.raises(EOFError, match="the broker closed the connection"):
        wait_for(lambda: inlet.receive() and False, 10)


def test_what_had_arrived_when_we_leave_is_still_given(ends: Ends, siphoned: Callable[..., Siphoned]) -> None:
    inlet = siphoned()
    ends[1].sendall(BLOCK * 30)
    ends[1].close()
    assert sum(len(each.data) for each in inlet.last()) == len(BLOCK) * 30


def test_it_ends_when_it_is_let_go_of(siphoned: Callable[..., Siphoned]) -> None:
    inlet = siphoned()
    wait_for(processes, 20)  # Popen returns when exec has closed its pipe: what it runs is not to be seen yet
    (pid,) = processes()
    inlet.close()
    assert pid not in processes()


PARENT = """
import socket, sys, time
from pathlib import Path
from monitor.receiver.sources.inlet import Siphoned
ours, theirs = socket.socketpair()
inlet = Siphoned(ours, Path(sys.argv[1]), 1000)
print(inlet._process.pid, flush=True)
time.sleep(60)
"""


def test_it_dies_with_a_receiver_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: not alive(pid), 10, "its end")


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_group_that_is_told_to_end_leaves_it_until_the_receiver_lets_go(
    ends: Ends, siphoned: Callable[..., Siphoned]
) -> None:
    inlet = siphoned()
    ends[1].sendall(b"one")
    come(inlet, 3)  # it runs
    (pid,) = processes()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    ends[1].sendall(b"two")
    assert [each.data for each in come(inlet, 3)] == [b"two"]


def test_its_death_is_a_lost_connection_and_the_next_one_reads_again(redis_url: str, source_of: MakeSource) -> None:
    source = source_of(redis_url, source="redis")
    (pid,) = processes()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BrokerUnavailable, match="reads the broker's socket ended by itself"):
        read_for(source, 20)
    source.connect()
    assert source.missed
    with publisher(redis_url) as publish:
        publish.send("task.received", numbered(12))
    assert [event.clock for event in read_all(source, 1)] == [12]
    assert len(processes()) == 1
