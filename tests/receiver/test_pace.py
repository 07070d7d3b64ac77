"""The pauses of a receiver, with and without somebody who uses the dashboard."""

from collections.abc import Callable, Iterator
from threading import Event, Thread

import pytest

from celery_monitor.receiver import pace
from celery_monitor.receiver.pace import IDLE_FACTOR, UNUSED_BATCH_SECONDS, UNUSED_FACTOR, Pace
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.receivers import note_use
from tests.workers import wait_for


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = open_store(database_url)
    yield store
    store.close()


@pytest.fixture
def unused(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pace]:
    """The pace after a while without anybody; the next use counts for a minute."""
    monkeypatch.setattr(pace, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(pace, "USE_SECONDS", 0.0)
    found = Pace(store)
    monkeypatch.setattr(pace, "USE_SECONDS", 60.0)
    found.look()
    yield found
    found.close()


def wait_for_look(pace: Pace, condition: Callable[[], object]) -> None:
    """Looks until it is true: PostgreSQL notifies a moment after the commit."""

    def looked() -> object:
        pace.look()
        return condition()

    wait_for(looked, what="a look that finds the use")


def wait_for_use(pace: Pace) -> None:
    wait_for_look(pace, lambda: pace.used)


def test_pauses_are_long_until_somebody_uses_the_dashboard(store: Store, unused: Pace) -> None:
    before = unused.used, unused.pause(2.0), unused.batch_seconds(0.1)
    note_use(store)
    wait_for_use(unused)
    assert before == (False, 2.0 * UNUSED_FACTOR, UNUSED_BATCH_SECONDS)
    assert (unused.used, unused.pause(2.0), unused.batch_seconds(0.1)) == (True, 2.0, 0.1)


def test_without_news_pauses_are_longer_until_there_are_some(unused: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = unused.idle, unused.pause(2.0)
    monkeypatch.setattr(pace, "IDLE_AFTER_SECONDS", 0.0)
    unused.news()
    idle = unused.idle, unused.pause(2.0)
    monkeypatch.setattr(pace, "IDLE_AFTER_SECONDS", 60.0)
    unused.news()
    assert before == (False, 2.0 * UNUSED_FACTOR)
    assert idle == (True, 2.0 * IDLE_FACTOR)
    assert (unused.idle, unused.pause(2.0)) == before


def test_a_use_is_read_only_after_a_commit(store: Store, unused: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Store] = []
    monkeypatch.setattr(pace, "last_use", reads.append)
    for _ in range(3):
        unused.look()
    assert reads == []
    note_use(store)
    wait_for_look(unused, lambda: reads)
    assert reads == [store]


def test_a_new_receiver_starts_as_though_the_dashboard_were_used(store: Store) -> None:
    assert Pace(store).used


def test_a_use_before_the_receiver_started_does_not_count_again(store: Store, unused: Pace) -> None:
    note_use(store)
    wait_for_use(unused)
    until = unused._used_until
    unused.look()
    assert unused._used_until == until


def test_a_longer_batch_time_is_never_shortened(unused: Pace) -> None:
    assert unused.batch_seconds(7.0) == 7.0


@pytest.mark.parametrize("why", ["stop", "event", "use", "news"])
def test_a_wait_ends_at_once(store: Store, unused: Pace, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "IDLE_AFTER_SECONDS", 0.0)
    unused.news()
    monkeypatch.setattr(pace, "IDLE_AFTER_SECONDS", 60.0)
    stop, event, ended = Event(), Event(), Event()

    def wait() -> None:
        unused.wait(stop, 3600.0, event)
        ended.set()

    thread = Thread(target=wait, daemon=True)
    thread.start()
    wait_for(lambda: unused._changed._waiters)  # type: ignore[attr-defined]
    assert not ended.is_set()
    if why == "use":
        note_use(store)
        unused.look()
    elif why == "news":
        unused.news()
    else:
        {"stop": stop, "event": event}[why].set()
        unused.wake()
    assert ended.wait(60)
    thread.join(60)


def test_a_wait_says_whether_to_stop() -> None:
    stop = Event()
    assert not Pace().wait(stop, 0.0)
    stop.set()
    assert Pace().wait(stop, 3600.0)
