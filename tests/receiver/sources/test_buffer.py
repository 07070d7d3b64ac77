"""Records that wait: in order, within a bound, through the death of the process and a full disk."""

import json
import os
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from celery_monitor.receiver.sources import buffer
from celery_monitor.receiver.sources.buffer import (
    DAMAGED,
    DATA,
    FRAME,
    MESSAGE,
    RESTART,
    Buffer,
    Record,
    RedisStream,
    Spool,
    count_events,
)
from tests.factories import NOW

LIMIT = 10_000_000
FULL_DEVICE = Path("/dev/full")


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "SEGMENT_BYTES", 200)


def rest(spool: Spool) -> Iterator[bytes]:
    while (record := spool.read()) is not None:
        yield record.data


def body(number: int) -> bytes:
    return b"body %06d" % number


def test_messages_come_back_in_order_while_others_are_put_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "shop", LIMIT)
    assert spool.empty
    got: list[bytes] = []
    for number in range(100):
        assert spool.append(Record(NOW + number, body(number)))
        if number % 3 == 0:
            record = spool.read()
            assert record is not None
            got.append(record.data)
            spool.commit(spool.position)
    got += rest(spool)
    spool.commit(spool.position)
    assert got == [body(number) for number in range(100)]
    assert spool.empty
    assert spool.size == 0
    assert list(tmp_path.glob("shop/*.segment")) == []


def test_time_of_arrival_and_kind_are_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    for record in (Record(NOW + 0.125, body(1)), Record(NOW + 0.25, b"", RESTART)):
        spool.append(record)
        assert spool.read() == record


def test_what_was_not_committed_comes_again_in_the_next_process(tmp_path: Path) -> None:
    first = Spool(tmp_path, LIMIT)
    for number in range(30):
        first.append(Record(NOW, body(number)))
    for _ in range(11):
        first.read()
    first.commit(first.position)
    for _ in range(5):
        first.read()
    first.close()
    second = Spool(tmp_path, LIMIT)
    second.append(Record(NOW, body(30)))
    assert list(rest(second)) == [body(number) for number in range(11, 31)]


def test_nothing_is_passed_over_after_everything_was_committed_once(tmp_path: Path) -> None:
    for life in range(3):
        spool = Spool(tmp_path, LIMIT)
        for number in range(20):
            spool.append(Record(NOW, body(number + life)))
        spool.close()
        again = Spool(tmp_path, LIMIT)
        assert list(rest(again)) == [body(number + life) for number in range(20)]
        again.commit(again.position)
        again.close()


def test_killed_while_it_writes_everything_that_was_kept_is_there(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from celery_monitor.receiver.sources.buffer import Record, Spool\n"
        f"spool = Spool(Path({str(tmp_path)!r}), {LIMIT * 100})\n"
        "number = 0\n"
        "while True:\n"
        "    assert spool.append(Record(1.5, b'body %06d' % number))\n"
        "    sys.stdout.write(f'{number}\\n'); sys.stdout.flush()\n"
        "    number += 1\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    kept = int([each for each in lines if each.endswith("\n")][-1])
    got = list(rest(Spool(tmp_path, LIMIT * 100)))
    assert got[: kept + 1] == [body(number) for number in range(kept + 1)]


def test_beyond_the_bound_it_refuses_until_something_is_committed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    kept = 0
    while spool.append(Record(NOW, body(kept))):
        kept += 1
    assert 10 < kept < 100
    assert spool.size <= 1000
    for _ in range(kept // 2):
        spool.read()
    spool.commit(spool.position)
    assert spool.append(Record(NOW, body(kept)))
    assert list(rest(spool)) == [body(number) for number in range(kept // 2, kept + 1)]


def test_a_torn_tail_is_counted_and_what_comes_after_it_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    for number in range(3):
        spool.append(Record(NOW, body(number)))
    spool.close()
    (segment,) = tmp_path.glob("*.segment")
    os.truncate(segment, segment.stat().st_size - 4)
    after = Spool(tmp_path, LIMIT)
    after.append(Record(NOW, body(3)))
    records = []
    while (record := after.read()) is not None:
        records.append(record)
    assert [(each.data, each.kind) for each in records] == [
        (body(0), DATA),
        (body(1), DATA),
        (b"", DAMAGED),
        (body(3), DATA),
    ]


def test_a_flipped_bit_is_never_taken_for_a_message(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    spool.append(Record(NOW, body(7)))
    (segment,) = tmp_path.glob("*.segment")
    data = bytearray(segment.read_bytes())
    data[-2] ^= 4
    segment.write_bytes(data)
    record = spool.read()
    assert record is not None
    assert (record.data, record.kind) == (b"", DAMAGED)


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="this system has no /dev/full")
def test_a_full_disk_refuses_and_is_used_again_once_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, LIMIT)
    spool.append(Record(NOW, body(0) * 20))
    (first,) = tmp_path.glob("*.segment")
    second = tmp_path / f"{int(first.stem) + 2:012d}.segment"
    second.symlink_to(FULL_DEVICE)  # the next segment: each write there says ENOSPC
    assert not spool.append(Record(NOW, body(1)))
    assert not spool.append(Record(NOW, body(1)))
    assert caplog.text.count("No space left") == 1
    assert list(rest(spool)) == [body(0) * 20]  # and no damaged record in the segment without a byte
    spool.close()
    second.unlink()
    assert spool.append(Record(NOW, body(2)))
    assert list(rest(spool)) == [body(2)]


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    spools = [Spool(tmp_path / "shop", 1000) for _ in range(2)]
    for number, spool in enumerate(spools):
        assert spool.append(Record(NOW, body(number)))
    spools.append(Spool(tmp_path / "shop", 1000))
    assert spools[2].append(Record(NOW, body(2)))
    assert [list(rest(spool)) for spool in spools] == [[body(0)], [body(1)], [body(2)]]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["shop", "shop.2", "shop.3"]
    spools[0].close()
    assert list(rest(Spool(tmp_path / "shop", 1000))) == [body(0)]


class Pipe:
    """Frames as the receiver gets them."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self.writing, False)
        self._got = b""

    def frames(self, buffer: Buffer) -> list[tuple[int, bytes, float, float, int]]:
        """All that waits: kind, data, time of arrival, kept until, dropped."""
        found = []
        while buffer.waits:
            buffer.send(self.writing)
            self._got += os.read(self._reading, 1 << 20)
            while len(self._got) >= FRAME.size:
                kind, length, arrived, kept, dropped = FRAME.unpack_from(self._got)
                end = FRAME.size + length
                if len(self._got) < end:
                    break
                found.append((kind, self._got[FRAME.size : end], arrived, kept, dropped))
                self._got = self._got[end:]
        return found

    def data(self, buffer: Buffer) -> list[bytes]:
        return [frame[1] for frame in self.frames(buffer) if frame[0] == DATA]

    def close(self) -> None:
        os.close(self._reading)
        os.close(self.writing)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with closing(Pipe()) as made:
        yield made


@pytest.mark.parametrize("sends_between", [False, True])
def test_from_memory_and_disk_it_comes_out_in_the_order_in_which_it_came(
    tmp_path: Path, pipe: Pipe, sends_between: bool
) -> None:
    buffer = Buffer(400, Spool(tmp_path, LIMIT))
    got: list[bytes] = []
    for number in range(200):
        assert buffer.put(body(number), NOW)
        if sends_between and number % 30 == 29:
            got += pipe.data(buffer)
    assert sends_between or sum(each.stat().st_size for each in tmp_path.glob("*.segment")) > 1800
    got += pipe.data(buffer)
    assert got == [body(number) for number in range(200)]
    buffer.commit(200)
    assert list(tmp_path.glob("*.segment")) == []


@pytest.mark.parametrize("committed", range(0, 41, 5))
def test_what_was_not_committed_comes_again_in_order(tmp_path: Path, pipe: Pipe, committed: int) -> None:
    buffer = Buffer(100, Spool(tmp_path, LIMIT))
    for number in range(30):  # from memory and from disk in turns
        buffer.put(body(number), NOW)
        if number % 10 == 9:
            assert len(pipe.data(buffer)) == 10
    for number in range(30, 40):
        buffer.put(body(number), NOW)
    buffer.commit(min(committed, 30))
    buffer.close()
    after = Buffer(100, Spool(tmp_path, LIMIT))
    after.put(body(40), NOW)
    frames = pipe.frames(after)
    assert frames[0][0] == RESTART
    assert [frame[1] for frame in frames if frame[0] == DATA] == [body(n) for n in range(min(committed, 30), 41)]
    after.commit(len(frames))
    assert list(tmp_path.glob("*.segment")) == []


@pytest.mark.parametrize("on_disk", [False, True])
def test_beyond_the_bound_nothing_is_kept_until_there_is_room(tmp_path: Path, pipe: Pipe, on_disk: bool) -> None:
    buffer = Buffer(100, Spool(tmp_path, 1000) if on_disk else None)
    kept = 0
    while buffer.put(body(kept), NOW):
        kept += 1
    assert (5 < kept < 10) != on_disk
    assert kept < 50
    assert buffer.full != on_disk or kept
    assert pipe.data(buffer) == [body(number) for number in range(kept)]
    buffer.commit(kept)
    assert buffer.put(body(kept), NOW)
    assert pipe.data(buffer) == [body(kept)]


def test_behind_a_disk_that_is_full_memory_is_used_and_the_order_kept(tmp_path: Path, pipe: Pipe) -> None:
    buffer = Buffer(2000, Spool(tmp_path / "shop", 400))
    kept = [number for number in range(220) if buffer.put(body(number), NOW)]
    assert kept == [*range(len(kept))]
    assert 2000 + 100 < len(kept) * len(body(0)) < 2000 + 400
    buffer.commit(len(sent := pipe.data(buffer)))
    assert sent == [body(number) for number in kept]
    assert buffer.put(body(7), NOW)
    assert pipe.data(buffer) == [body(7)]


def test_what_waits_long_in_memory_sends_the_rest_to_disk(tmp_path: Path) -> None:
    buffer = Buffer(1_000_000, Spool(tmp_path, LIMIT))
    buffer.put(body(1), NOW)
    buffer.put(body(2), NOW + 0.5)
    assert list(tmp_path.glob("*.segment")) == []
    buffer.put(body(3), NOW + 1.5)
    assert list(tmp_path.glob("*.segment")) != []


def test_what_is_in_memory_alone_is_not_kept_and_what_is_on_disk_is(tmp_path: Path, pipe: Pipe) -> None:
    buffer = Buffer(100, Spool(tmp_path, LIMIT))
    for number in range(10):
        buffer.put(body(number), NOW + number / 100)
    kept_until = [frame[3] for frame in pipe.frames(buffer)]
    assert kept_until == [NOW + 0.01, NOW + 0.02, NOW + 0.03] + [NOW + 0.09] * 7


def redis_message(*events: int) -> bytes:
    envelope = json.dumps(
        {"body": b64encode(json.dumps(events).encode()).decode(), "properties": {"body_encoding": "base64"}}
    ).encode()
    return MESSAGE + b"$1\r\np\r\n$1\r\nc\r\n$%d\r\n%s\r\n" % (len(envelope), envelope)


@pytest.mark.parametrize("size", [7, 100, 1000, 5000])
def test_for_want_of_room_whole_messages_are_dropped_and_their_events_counted(
    tmp_path: Path, pipe: Pipe, size: int
) -> None:
    stream_of_bytes = b"".join(redis_message(*range(number % 5)) for number in range(300)) + b"$5\r\nhello\r\n"
    buffer = Buffer(1000, Spool(tmp_path, 10_000))
    stream = RedisStream(buffer)
    got = b""
    dropped = passed = 0
    for at in range(0, len(stream_of_bytes), size):
        stream.receive(stream_of_bytes[at : at + size])
        if at // size % (20_000 // size + 1) == 20_000 // size:
            frames = pipe.frames(buffer)
            passed += len(frames)
            buffer.commit(passed)
            stream.resume()
            got += b"".join(frame[1] for frame in frames)
            dropped += sum(frame[4] for frame in frames)
    while frames := pipe.frames(buffer):
        passed += len(frames)
        buffer.commit(passed)
        stream.resume()
        got += b"".join(frame[1] for frame in frames)
        dropped += sum(frame[4] for frame in frames)
    messages = [redis_message(*range(number)) for number in range(5)]
    kept = sum(got.count(message) * number for number, message in enumerate(messages))
    assert sum(got.count(message) * len(message) for message in messages) >= len(got) - len(b"$5\r\nhello\r\n")
    assert kept + dropped == 600
    assert dropped > 50
    assert kept > 50


@pytest.mark.parametrize("message", [b"", b"$1", b"$1\r\np\r\n$1\r\nc\r\n$2\r\n[]\r\n", b"\r\n" * 9])
def test_what_is_no_message_of_events_counts_as_one(message: bytes) -> None:
    assert count_events(message) == 1
