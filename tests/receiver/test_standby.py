"""What a receiver finds that follows a dead one, and what it holds while it stands by."""

import time
from pathlib import Path

from monitor.receiver.hole import Hole
from monitor.receiver.sources.base import Inbox
from monitor.receiver.spool import Spool
from monitor.store import journal
from monitor.store import queries
from monitor.store.engine import Store
from tests.factories import NOW
from tests.receiver.conftest import RunReceiver
from tests.receiver.conftest import connected
from tests.receiver.conftest import wait_until
from tests.receiver.traffic import numbered


def test_gap_that_a_dead_receiver_left_open_is_ended_by_the_next(
    redis_url: str, receiving: RunReceiver, store: Store
) -> None:
    with receiving(redis_url) as receiver:
        wait_until(connected(receiver))
    journal.open_gap(store, "shop", NOW, "no connection to the broker: it was killed meanwhile")
    with receiving(redis_url) as receiver:
        wait_until(connected(receiver))
        wait_until(lambda: not queries.open_gaps(store, "shop"))
    (gap,) = queries.gaps(store, since=0.0)
    assert gap.began == NOW
    assert gap.ended is not None
    assert gap.ended > time.time() - 60
    assert gap.dropped is None


def test_gap_of_a_dead_receiver_has_nothing_missing_where_another_listened(store: Store) -> None:
    journal.open_gap(store, "shop", NOW, "no connection to the broker")
    hole = Hole(store, "shop", kept_by_broker=False)
    hole.open(NOW - 20, "the receiver was not running")
    hole.close(NOW - 10, missed=True)
    hole.forget(NOW - 5)  # by then the other one had stored everything
    hole.adopt(NOW + 30)
    hole.store()
    (gap,) = queries.gaps(store, since=0.0)
    assert (gap.began, gap.ended, gap.dropped) == (NOW, NOW + 30, 0)


def test_hole_before_the_standby_listened_is_a_gap_of_unknown_number(store: Store) -> None:
    hole = Hole(store, "shop", kept_by_broker=False)
    hole.open(NOW, "the receiver was not running")
    hole.close(NOW + 7, missed=True)
    hole.forget(NOW + 6)
    hole.store()
    (gap,) = queries.gaps(store, since=0.0)
    assert (gap.began, gap.ended, gap.dropped) == (NOW, NOW + 7, None)


def test_what_the_other_receiver_stored_is_let_go_of_in_memory_and_on_disk(tmp_path: Path) -> None:
    inbox = Inbox(4000, drops=True, spool=Spool(tmp_path / "shop", 100_000))
    for number in range(30):  # from half of the bound on they are on disk
        inbox.put([numbered(number).encode()])
    half = time.time()
    for number in range(30, 40):
        inbox.put([numbered(number).encode()])
    assert 0 < inbox.held_bytes <= 2000
    inbox.discard(half)
    assert inbox.held_bytes == 0
    left = []
    while batch := inbox.take(0.0, 100, 0.0).events:
        left += [event.uuid for event in batch]
    assert left == [f"task-{number}" for number in range(30, 40)]


def test_two_processes_never_share_a_spool(tmp_path: Path) -> None:
    first = Spool(tmp_path / "shop", 1000, claims=True)
    second = Spool(tmp_path / "shop", 1000, claims=True)
    assert first.append(NOW, [b"one"])
    assert second.append(NOW, [b"two"])
    third = Spool(tmp_path / "shop", 1000, claims=True)
    assert third.append(NOW, [b"three"])
    records = [spool.read() for spool in (first, second, third)]
    assert [record.bodies for record in records if record] == [[b"one"], [b"two"], [b"three"]]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["shop", "shop.2", "shop.3"]
