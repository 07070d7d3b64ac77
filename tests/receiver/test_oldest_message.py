"""How old the oldest message of a queue is, by what its broker shows and what the record has."""

import time
from collections.abc import Iterator

import pytest

from celery_monitor.core.waits import Senders
from celery_monitor.receiver.oldest_message import OldestMessages
from celery_monitor.records.event import Event
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.writer import Writer
from tests.factories import make_event, make_id

NOW = time.time()


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    yield opened
    opened.close()


def write(store: Store, *events: Event) -> None:
    Writer(store, "shop", Settings()).write([Delivery(list(events), NOW)])


def sent(number: int, ago: float) -> Event:
    known = {"uuid": make_id(number), "name": "shop.pay", "queue": "payments", "hostname": "gen7@till"}
    return make_event("task-sent", timestamp=NOW - ago, **known)


def look(store: Store, senders: Senders | None = None, **known: object) -> tuple[float | None, bool]:
    """Seconds, and whether they are exact."""
    queue = Queue(cluster="shop", name="payments", **known)  # type: ignore[arg-type]
    [found] = OldestMessages(store, "shop", senders).of([queue], {"worker1@shop": 0.0}, NOW)
    return (None if found.oldest is None else round(NOW - found.oldest, 3), found.oldest_exact)


def test_head_that_the_broker_shows_is_as_old_as_the_record_says(store: Store) -> None:
    write(store, sent(1, 60), sent(2, 26))
    assert look(store, ready=2, heads=(make_id(1),)) == (60.0, True)
    assert look(store, ready=1, heads=(make_id(2),), oldest=NOW - 1.3) == (26.0, True)
    assert look(store, ready=1, heads=(make_id(9),), oldest=NOW - 1.3) == (1.3, False)
    assert look(store, ready=1, heads=(None,)) == (None, False)
    assert look(store, ready=0) == (None, False)


def test_oldest_of_several_priorities_is_exact_where_all_heads_are_known(store: Store) -> None:
    write(store, sent(1, 60), sent(2, 26))
    assert look(store, ready=2, heads=(make_id(2), make_id(1))) == (60.0, True)
    assert look(store, ready=2, heads=(make_id(2), make_id(9))) == (26.0, False)


def test_retry_that_waits_is_as_old_as_the_end_of_the_run_before(store: Store) -> None:
    known = {"uuid": make_id(1), "hostname": "worker1@shop"}
    write(
        store,
        sent(1, 300),
        make_event("task-received", timestamp=NOW - 200, name="shop.pay", retries=0, **known),
        make_event("task-started", timestamp=NOW - 199, **known),
        make_event("task-retried", timestamp=NOW - 40, exception="E()", traceback="T", **known),
    )
    assert look(store, ready=1, heads=(make_id(1),)) == (40.0, True)
    assert look(store, ready=1) == (40.0, True)


def test_broker_that_shows_no_head_is_believed_where_its_messages_are_those_of_the_record(store: Store) -> None:
    write(store, sent(1, 60), sent(2, 26), sent(3, 5))
    assert look(store, ready=3) == (60.0, True)
    assert look(store, ready=2) == (26.0, False)  # one is gone, and at worst it was the first
    assert look(store, ready=4, oldest=NOW - 9) == (9.0, False)


def test_nothing_is_inferred_where_tasks_come_of_whose_sending_nobody_tells(store: Store) -> None:
    known = {"uuid": make_id(7), "hostname": "worker1@shop"}
    received = make_event("task-received", timestamp=NOW - 9, name="shop.pay", retries=0, **known)
    write(store, sent(1, 60), received, make_event("task-started", timestamp=NOW - 8, **known))
    assert look(store, ready=1) == (None, False)
    assert look(store, ready=1, heads=(make_id(1),)) == (60.0, True)


def test_clock_of_the_client_is_taken_into_account(store: Store) -> None:
    write(store, sent(1, -600))  # its clock is ahead
    assert look(store, ready=1, heads=(make_id(1),), oldest=NOW - 2) == (2.0, False)
    senders = Senders()
    senders.observe("gen7@till", NOW + 600, NOW - 30)
    assert look(store, senders, ready=1, heads=(make_id(1),)) == (30.0, True)
