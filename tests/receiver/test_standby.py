"""What a receiver finds that follows a dead one, and what it holds while it stands by."""

import time
from collections.abc import Callable

import msgspec
import pytest

from celery_monitor.receiver.ingest import Receiver
from celery_monitor.receiver.standby import GapTracker
from celery_monitor.records.receiver import ReceiverHealth
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import open_gap, read_gaps, read_open_gaps, read_receiver_health, save_health
from tests.factories import NOW
from tests.receiver.conftest import RunReceiver, connected
from tests.receiver.test_ingest import send_event
from tests.servers import free_port
from tests.workers import wait_for


def test_gap_that_a_dead_receiver_left_open_is_ended_by_the_next(
    redis_url: str, receiving: RunReceiver, store: Store
) -> None:
    with receiving(redis_url) as receiver:
        wait_for(connected(receiver))
    open_gap(store, "shop", NOW, "no connection to the broker: it was killed meanwhile")
    with receiving(redis_url) as receiver:
        wait_for(connected(receiver))
        wait_for(lambda: not read_open_gaps(store, "shop"))
    (gap,) = read_gaps(store, since=0.0)
    assert gap.began == NOW
    assert gap.ended is not None
    assert gap.ended > time.time() - 60
    assert gap.dropped is None


def test_gap_of_a_dead_receiver_has_nothing_missing_where_another_listened(store: Store) -> None:
    open_gap(store, "shop", NOW, "no connection to the broker")
    tracker = GapTracker(store, "shop", kept_by_broker=False)
    tracker.open(NOW - 20, "the receiver was not running")
    tracker.close(NOW - 10, missed=True)
    tracker.forget(NOW - 5)  # by then the other one had stored everything
    tracker.adopt(NOW + 30, listened=True)
    tracker.store()
    (gap,) = read_gaps(store, since=0.0)
    assert (gap.began, gap.ended, gap.dropped) == (NOW, NOW + 30, 0)


def test_every_open_gap_of_a_dead_receiver_is_closed(store: Store) -> None:
    for seconds in (1, 2, 3):
        open_gap(store, "shop", NOW + seconds, "no connection")
    tracker = GapTracker(store, "shop", kept_by_broker=False)
    tracker.open(NOW + 1.5, "the receiver was not running")
    tracker.adopt(NOW + 30, listened=False)
    tracker.close(NOW + 40, missed=True)
    tracker.store()
    gaps = [(gap.began, gap.ended, gap.dropped) for gap in read_gaps(store, since=0.0)]
    # Its own gap began no earlier than the first, and ends when events arrive again.
    assert gaps == [(NOW + 1, NOW + 40, None), (NOW + 2, NOW + 30, None), (NOW + 3, NOW + 30, None)]


def test_gap_before_the_standby_listened_is_a_gap_of_unknown_number(store: Store) -> None:
    tracker = GapTracker(store, "shop", kept_by_broker=False)
    tracker.open(NOW, "the receiver was not running")
    tracker.close(NOW + 7, missed=True)
    tracker.forget(NOW + 6)
    tracker.store()
    (gap,) = read_gaps(store, since=0.0)
    assert (gap.began, gap.ended, gap.dropped) == (NOW, NOW + 7, None)


@pytest.mark.parametrize(
    ("saved", "began"),
    [
        ({"updated_at": NOW}, NOW),
        ({"updated_at": NOW, "lag_seconds": 7.0}, NOW - 7),  # of an earlier version
        ({"updated_at": NOW, "lag_seconds": 300.0, "kept_until": NOW - 3}, NOW - 3),  # the rest of it was on disk
        ({"updated_at": NOW, "lag_seconds": 0.0, "kept_until": NOW - 11}, NOW - 11),
    ],
)
def test_gap_begins_with_the_oldest_event_that_died_with_the_receiver(
    saved: dict[str, float], began: float, redis_url: str, receiving: RunReceiver, store: Store
) -> None:
    save_health(store, msgspec.convert({"cluster": "shop", "connected": True} | saved, ReceiverHealth))
    with receiving(redis_url):
        wait_for(lambda: read_gaps(store, since=0.0))
    (gap,) = read_gaps(store, since=0.0)
    assert gap.began == began


def reports_error(receiver: Receiver, store: Store, saved: ReceiverHealth) -> Callable[[], bool]:
    return lambda: bool(receiver.health.error) and read_receiver_health(store, "shop") != saved


@pytest.mark.usefixtures("amqp_url")  # whose queue of this receiver goes at the end
def test_during_a_gap_nothing_is_kept_since_it_began(receiving: RunReceiver, store: Store) -> None:
    saved = ReceiverHealth(cluster="shop", connected=True, updated_at=NOW, lag_seconds=2.0)
    for broker in (f"redis://127.0.0.1:{free_port()}/0", f"amqp://127.0.0.1:{free_port()}//"):
        save_health(store, saved)
        with receiving(broker) as receiver:
            wait_for(reports_error(receiver, store, saved))
        health = read_receiver_health(store, "shop")
        assert health is not None
        assert health.kept_until == NOW - 2


def test_what_was_read_and_is_not_stored_is_not_kept(redis_url: str, receiving: RunReceiver, store: Store) -> None:
    with receiving(redis_url) as receiver:
        wait_for(connected(receiver))
        with store.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE task RENAME TO hidden")
            connection.exec_driver_sql("ALTER TABLE receiver RENAME TO hidden_too")
        send_event(redis_url, "order-1")
        first = time.time()
        wait_for(lambda: (receiver.health.updated_at or 0.0) > first + 1)
        kept_until = receiver.health.kept_until
        send_event(redis_url, "order-2")
        second = time.time()
        wait_for(lambda: (receiver.health.updated_at or 0.0) > second + 1)
        assert receiver.health.kept_until == kept_until  # since the first of them arrived
        with store.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO task")
            connection.exec_driver_sql("ALTER TABLE hidden_too RENAME TO receiver")
        wait_for(lambda: (receiver.health.kept_until or 0.0) > (kept_until or 0.0))
        wait_for(lambda: receiver.health.events_total == 2)
