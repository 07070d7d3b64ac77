"""Bytes that wait for the receiver: in order, in memory, in the file, and where the disk refuses them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from monitor.receiver.sources.siphon import MEMORY_BYTES
from monitor.receiver.sources.siphon import Backlog

PIECE = 300_000
ROOM = 100 * PIECE
FULL_DEVICE = Path("/dev/full")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Two ends that do not wait."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def piece(number: int) -> bytes:
    return b"%07d" % number * (PIECE // 7)


def all_of(backlog: Backlog, pipe: tuple[int, int]) -> bytes:
    got = bytearray()
    while not backlog.empty:
        backlog.send(pipe[1])
        got += os.read(pipe[0], 1 << 20)
    return bytes(got)


@pytest.mark.parametrize("taken_between", [0, 3])
def test_what_waits_comes_out_in_the_order_in_which_it_went_in(pipe: tuple[int, int], taken_between: int) -> None:
    got = bytearray()
    with tempfile.TemporaryFile() as file:
        backlog = Backlog(file.fileno(), ROOM)
        for number in range(50):
            backlog.put(piece(number))
            for _ in range(taken_between):
                backlog.send(pipe[1])
                got += os.read(pipe[0], 1 << 20)
        got += all_of(backlog, pipe)
        assert os.fstat(file.fileno()).st_size == 0
    assert got == b"".join(map(piece, range(50)))


def test_from_its_bound_on_memory_does_not_grow(pipe: tuple[int, int]) -> None:
    with tempfile.TemporaryFile() as file:
        backlog = Backlog(file.fileno(), ROOM)
        for number in range(50):
            backlog.put(piece(number))
        assert os.fstat(file.fileno()).st_size > 50 * len(piece(0)) - MEMORY_BYTES - PIECE


@pytest.mark.parametrize("filed", [True, False])
def test_it_is_full_at_its_bound_and_not_before(pipe: tuple[int, int], filed: bool) -> None:
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile()).fileno() if filed else None
        backlog, count = Backlog(file, ROOM), 0
        while not backlog.full:
            backlog.put(piece(count))
            count += 1
        bound = ROOM if filed else MEMORY_BYTES
        assert (count - 1) * len(piece(0)) < bound <= count * len(piece(0))
        assert all_of(backlog, pipe) == b"".join(map(piece, range(count)))
        assert not backlog.full


def test_a_full_disk_loses_nothing_and_stops_the_reading(pipe: tuple[int, int]) -> None:
    with FULL_DEVICE.open("r+b", buffering=0) as full:
        backlog, count = Backlog(full.fileno(), ROOM), 0
        while not backlog.full:
            backlog.put(piece(count))
            count += 1
        assert all_of(backlog, pipe) == b"".join(map(piece, range(count)))
        assert MEMORY_BYTES < count * PIECE < MEMORY_BYTES + 3 * PIECE
        assert not backlog.full
