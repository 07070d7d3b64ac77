"""Partitions of PostgreSQL: whole ones go at once, what lives longer is moved, and nothing is counted wrong."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import func, select

from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.retention.expiry import DAY_SECONDS, Retention
from celery_monitor.store.retention.partitions import create_partition, first_id, partitions
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.terms import cluster_id
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id
from tests.store.test_messages import captured
from tests.store.test_retention import assert_counters_are_right
from tests.store.test_writer import counts, deliver, one_task, write

SETTINGS = Settings(keep_succeeded_days=2.0, keep_failed_days=10.0, keep_tasks=1000)
OLD = -3 * DAY_SECONDS


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    """With two small partitions of ``shop`` before those that the writer makes."""
    store = open_store(postgres_url)
    with store.begin() as connection:
        number = cluster_id(store, connection, "shop")
        for low in (0, 50):
            create_partition(connection, number, first_id(number) + (low << 6), 50)
    yield store
    store.close()


def fill(store: Store, first: int, last: int, at: float = OLD) -> None:
    """Tasks of these numbers, a second apart; every tenth has failed."""
    tasks = [one_task(each, "succeeded" if each % 10 else "failed", at=at + each) for each in range(first, last + 1)]
    Writer(store, "shop", SETTINGS).write(deliver(*(event for task in tasks for event in task)))


def suffixes(store: Store) -> list[str]:
    with store.read() as connection:
        return [each.suffix for each in partitions(connection, 1)]


def clean(store: Store, settings: Settings = SETTINGS) -> list[int]:
    """All steps; how many tasks each dropped."""
    retention, dropped = Retention(store, "shop", settings), []
    for _ in range(50):
        step = retention.delete_expired(NOW)
        dropped.append(step.dropped)
        if not step.more:
            return [each for each in dropped if each]
    raise AssertionError("retention comes to no end")


def in_kept(store: Store) -> int:
    with store.read() as connection:
        return connection.execute(select(func.count()).where(schema.task.c.id < 0)).scalar_one()


def test_full_partitions_go_at_once_and_failures_stay(store: Store) -> None:
    fill(store, 1, 130)
    assert counts(store) == {"succeeded": 117, "failed": 13}
    assert len(clean(store)) == 2
    assert len(suffixes(store)) == 1
    assert counts(store) == {"failed": 13}
    assert in_kept(store) >= 9
    assert_counters_are_right(store)


def test_young_partitions_stay(store: Store) -> None:
    fill(store, 1, 130, at=-100.0)
    assert clean(store) == []
    assert counts(store) == {"succeeded": 117, "failed": 13}


def test_a_surplus_goes_when_it_is_a_partition(store: Store) -> None:
    fill(store, 1, 130, at=-100.0)
    assert clean(store, Settings(keep_tasks=90, keep_succeeded_days=100.0, keep_failed_days=100.0)) == []
    assert sum(clean(store, Settings(keep_tasks=78, keep_succeeded_days=100.0, keep_failed_days=100.0))) == 45
    assert counts(store)["failed"] == 13
    assert_counters_are_right(store)


def test_a_partition_that_took_days_is_deleted_task_by_task(store: Store) -> None:
    tasks = [one_task(number, at=OLD + number * DAY_SECONDS / 20) for number in range(1, 61)]
    write(store, *(event for task in tasks for event in task))
    assert clean(store) == []
    assert counts(store) == {"succeeded": 41}
    assert_counters_are_right(store)


def test_a_kept_failure_has_its_runs_and_its_key(store: Store) -> None:
    retried = make_event("task-retried", timestamp=NOW + OLD + 2, uuid=make_id(7), exception="KeyError('a')")
    write(store, *one_task(7, at=OLD)[:2], retried)
    again = make_event("task-received", timestamp=NOW + OLD + 9, uuid=make_id(7), name="shop.pay", retries=1)
    write(store, again, make_event("task-failed", timestamp=NOW + OLD + 10, uuid=make_id(7), exception="KeyError('b')"))
    fill(store, 100, 210)
    clean(store)
    found = read_task(store, make_id(7))
    assert found.pk is not None
    assert found.pk < 0
    assert [run.exception for run in found.runs] == ["KeyError('a')", "KeyError('b')"]


def test_an_unfinished_task_goes_on_after_it_was_moved(store: Store) -> None:
    received, started, ended = one_task(7, at=OLD)
    writer = Writer(store, "shop", SETTINGS)
    writer.write(deliver(received, started))
    fill(store, 100, 210)
    retention = Retention(store, "shop", SETTINGS)
    for _ in range(20):
        step = retention.delete_expired(NOW)
        writer.forget_deleted(step.keys, counters=step.counters)
    writer.write(deliver(ended))
    assert read_task(store, make_id(7)).state is TaskState.SUCCESS
    assert_counters_are_right(store)


def test_a_task_that_is_moved_while_somebody_reads_its_partition_goes_on(store: Store) -> None:
    received, started, ended = one_task(7, at=OLD)
    writer = Writer(store, "shop", SETTINGS)
    writer.write(deliver(received, started))
    fill(store, 100, 210)
    retention = Retention(store, "shop", SETTINGS)
    with store.read() as reader:
        reader.execute(select(func.count()).select_from(schema.task))
        retired = retention.delete_expired(NOW)
        writer.forget_deleted(retired.keys, counters=retired.counters)
    assert retired.dropped == 0
    assert in_kept(store) == 6
    writer.write(deliver(ended))
    assert read_task(store, make_id(7)).state is TaskState.SUCCESS
    assert_counters_are_right(store)


def test_an_event_that_comes_again_finds_its_task_in_an_older_partition(store: Store) -> None:
    fill(store, 1, 130, at=-100.0)
    before = counts(store)
    write(store, *one_task(3, at=-97.0), *one_task(131))
    assert counts(store) == before | {"succeeded": before["succeeded"] + 1}
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.task)).scalar_one() == 131


def test_while_somebody_reads_a_partition_it_is_not_counted_again_and_again(store: Store) -> None:
    fill(store, 1, 130)
    counted: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        counted.extend([statement] if "GROUP BY cluster_id" in statement else [])

    retention = Retention(store, "shop", SETTINGS)
    sa.event.listen(store.engine, "before_cursor_execute", note)
    try:
        with store.read() as reader:
            reader.execute(select(func.count()).select_from(schema.task))
            for _ in range(4):
                assert retention.delete_expired(NOW).dropped == 0
        assert counted == []
        assert len(clean(store)) == 2
        assert len(counted) == 2
    finally:
        sa.event.remove(store.engine, "before_cursor_execute", note)
    assert counts(store) == {"failed": 13}
    assert_counters_are_right(store)


def test_messages_go_with_their_partition(store: Store) -> None:
    fill(store, 1, 130)
    write(store, captured(3))
    clean(store, Settings(keep_succeeded_days=2.0, keep_failed_days=10.0, keep_message_days=100.0))
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.message)).scalar_one() == 0


def test_there_is_room_before_it_is_needed(store: Store) -> None:
    writer = Writer(store, "shop", SETTINGS)
    writer.write(deliver(*one_task(1)))
    assert len(suffixes(store)) == 3
    for start in range(0, 12_000, 3000):
        writer.write(deliver(*(one_task(number)[0] for number in range(start + 100, start + 3100))))
    assert len(suffixes(store)) == 4
    assert sum(counts(store).values()) == 12_001
