"""Messages that wait on disk: in order, within a bound, through the death of the process and a full disk."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.receiver import spool as spool_module
from monitor.receiver.sources.base import Inbox
from monitor.receiver.spool import Spool
from tests.factories import NOW
from tests.receiver.traffic import numbered

LIMIT = 10_000_000
FULL_DEVICE = Path("/dev/full")


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 200)


def rest(spool: Spool) -> Iterator[bytes | None]:
    while (record := spool.read()) is not None:
        yield from record.bodies


def body(number: int) -> bytes:
    return b"body %06d" % number


def test_messages_come_back_in_order_while_others_are_put_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "shop", LIMIT)
    assert spool.empty
    got: list[bytes | None] = []
    for number in range(100):
        assert spool.append(NOW + number, [body(number), None])
        if number % 3 == 0:
            record = spool.read()
            assert record is not None
            got += record.bodies
            spool.commit()
    got += rest(spool)
    spool.commit()
    assert got == [each for number in range(100) for each in (body(number), None)]
    assert spool.empty
    assert spool.size == 0
    assert list(tmp_path.glob("shop/*.spool")) == []


def test_the_time_of_arrival_is_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    assert spool.next_arrived() is None
    spool.append(NOW + 0.125, [body(1)])
    assert spool.next_arrived() == NOW + 0.125
    record = spool.read()
    assert record is not None
    assert record.arrived == NOW + 0.125


def test_what_was_not_committed_comes_again_in_the_next_process(tmp_path: Path) -> None:
    first = Spool(tmp_path, LIMIT)
    for number in range(30):
        first.append(NOW, [body(number)])
    for _ in range(11):
        first.read()
    first.commit()
    for _ in range(5):
        first.read()
    first.close()
    second = Spool(tmp_path, LIMIT)
    second.append(NOW, [body(30)])
    assert list(rest(second)) == [body(number) for number in range(11, 31)]


def test_nothing_is_passed_over_after_everything_was_committed_once(tmp_path: Path) -> None:
    for life in range(3):
        spool = Spool(tmp_path, LIMIT)
        for number in range(20):
            spool.append(NOW, [body(number + life)])
        spool.close()
        again = Spool(tmp_path, LIMIT)
        assert list(rest(again)) == [body(number + life) for number in range(20)]
        again.commit()
        again.close()


def test_killed_while_it_writes_everything_that_was_said_to_be_kept_is_there(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from monitor.receiver.spool import Spool\n"
        f"spool = Spool(Path({str(tmp_path)!r}), {LIMIT * 100})\n"
        "number = 0\n"
        "while True:\n"
        "    assert spool.append(1.5, [b'body %06d' % number] * 50)\n"
        "    sys.stdout.write(f'{number}\\n'); sys.stdout.flush()\n"
        "    number += 1\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    kept = int([each for each in said if each.endswith("\n")][-1])
    got = list(rest(Spool(tmp_path, LIMIT * 100)))
    assert got[: (kept + 1) * 50] == [body(number) for number in range(kept + 1) for _ in range(50)]


def test_beyond_the_bound_it_refuses_until_something_is_committed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    kept = 0
    while spool.append(NOW, [body(kept)]):
        kept += 1
    assert 10 < kept < 100
    assert spool.size <= 1000
    for _ in range(kept // 2):
        spool.read()
    spool.commit()
    assert spool.append(NOW, [body(kept)])
    assert list(rest(spool)) == [body(number) for number in range(kept // 2, kept + 1)]


def test_a_torn_tail_is_counted_and_what_comes_after_it_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    for number in range(3):
        spool.append(NOW, [body(number)])
    spool.close()
    (segment,) = tmp_path.glob("*.spool")
    os.truncate(segment, segment.stat().st_size - 4)
    after = Spool(tmp_path, LIMIT)
    after.append(NOW, [body(3)])
    records = []
    while (record := after.read()) is not None:
        records.append(record)
    assert [(each.bodies, each.damaged) for each in records] == [
        ([body(0)], False),
        ([body(1)], False),
        ([], True),
        ([body(3)], False),
    ]


def test_a_flipped_bit_is_never_taken_for_a_message(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LIMIT)
    spool.append(NOW, [body(7)])
    (segment,) = tmp_path.glob("*.spool")
    data = bytearray(segment.read_bytes())
    data[-2] ^= 4
    segment.write_bytes(data)
    record = spool.read()
    assert record is not None
    assert record.damaged
    assert record.bodies == []


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="this system has no /dev/full")
def test_a_full_disk_refuses_and_is_used_again_once_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, LIMIT)
    spool.append(NOW, [body(0)] * 20)
    (first,) = tmp_path.glob("*.spool")
    second = tmp_path / f"{int(first.stem) + 1:012d}.spool"
    second.symlink_to(FULL_DEVICE)  # the next segment: each write there says ENOSPC
    assert not spool.append(NOW, [body(1)])
    assert not spool.append(NOW, [body(1)])
    assert caplog.text.count("No space left") == 1
    spool.close()
    second.unlink()
    assert spool.append(NOW, [body(2)])
    assert list(rest(spool)) == [body(0)] * 20 + [body(2)]


def test_the_inbox_keeps_order_and_memory_when_nobody_takes(tmp_path: Path) -> None:
    inbox = Inbox(4000, drops=True, spool=Spool(tmp_path, LIMIT))
    for number in range(200):
        inbox.put([numbered(number).encode()])
    assert inbox.held_bytes <= 2000
    clocks: list[int | None] = []
    while len(clocks) < 200:
        delivery = inbox.take(1, 50, 10)
        clocks += [event.clock for event in delivery.events]
        assert delivery.dropped == 0
        inbox.put([])
        inbox.commit()
    assert clocks == list(range(200))


def test_what_memory_and_spool_cannot_hold_is_counted_exactly(tmp_path: Path) -> None:
    inbox = Inbox(4000, drops=True, spool=Spool(tmp_path, 6000))
    for number in range(200):
        inbox.put([f"[{numbered(number)}, {numbered(number)}]".encode()])
    kept = dropped = 0
    while (delivery := inbox.take(0.05, 50, 10)).events or delivery.dropped:
        kept += len(delivery.events)
        dropped += delivery.dropped
    assert kept + dropped == 400
    assert kept > 20
    assert dropped > 20


def test_a_database_that_is_away_sends_everything_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.receiver.sources.base.AWAY_SECONDS", 0.05)
    inbox = Inbox(1_000_000, drops=True, spool=Spool(tmp_path, LIMIT))
    inbox.put([numbered(1).encode()])
    time.sleep(0.1)
    inbox.put([numbered(2).encode()])
    assert not Spool(tmp_path, LIMIT).empty
    assert [event.clock for event in inbox.take(1, 50, 10).events] == [1, 2]


def test_what_nobody_took_waits_for_the_next_receiver(tmp_path: Path) -> None:
    inbox = Inbox(1_000_000, drops=True, spool=Spool(tmp_path, LIMIT))
    inbox.put([numbered(41).encode(), b"no event"])
    inbox.close()
    after = Inbox(1_000_000, drops=True, spool=Spool(tmp_path, LIMIT))
    delivery = after.take(1, 50, 10)
    assert [event.clock for event in delivery.events] == [41]
    assert delivery.malformed == 1
