from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, or_, select

from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.retention.expiry import DAY_SECONDS, RESERVE_PAGES, Retention, StepSize
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id
from tests.store.test_writer import counts, deliver, one_task, write

SETTINGS = Settings(keep_succeeded_days=2.0, keep_failed_days=10.0, keep_tasks=1000)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = open_store(database_url)
    ages = {"succeeded": 1, "failed": 1}
    number = 0
    for end in ages:
        for age in (1, 3, 11):
            number += 1
            write(store, *one_task(number, end, at=-age * DAY_SECONDS))
    yield store
    store.close()


def assert_counters_are_right(store: Store) -> None:
    """What task_count says is what is in the lists."""
    table = schema.task.c
    places = (table.state, table.name_id, table.queue_id, table.worker_id)
    known = or_(
        table.sent.is_not(None), table.received.is_not(None), table.started.is_not(None), table.ended.is_not(None)
    )
    with store.read() as connection:
        listed = {
            row[:4]: row[4] for row in connection.execute(select(*places, func.count()).where(known).group_by(*places))
        }
        count = schema.task_count.c
        kept = select(count.state, count.name_id, count.queue_id, count.worker_id, count["count"])
        counted = {row[:4]: row[4] for row in connection.execute(kept) if row[4]}
    assert counted == listed


def test_failures_outlive_successes(store: Store) -> None:
    assert len(Retention(store, "shop", SETTINGS).delete_expired(NOW).keys) == 3
    assert counts(store) == {"succeeded": 1, "failed": 2}


def test_a_second_step_finds_nothing_more(store: Store) -> None:
    retention = Retention(store, "shop", SETTINGS)
    retention.delete_expired(NOW)
    assert retention.delete_expired(NOW).keys == []
    # The failure that was kept and the younger success have come of age.
    assert len(retention.delete_expired(NOW + 9 * DAY_SECONDS).keys) == 2


def test_too_many_tasks_lose_the_oldest_successes(store: Store) -> None:
    keep = Settings(keep_tasks=4, keep_succeeded_days=100.0, keep_failed_days=100.0)
    assert len(Retention(store, "shop", keep).delete_expired(NOW).keys) == 2
    assert counts(store) == {"succeeded": 1, "failed": 3}
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.task)).scalar() == 4


def test_failures_leave_room_for_successes(store: Store) -> None:
    write(store, *(event for number in range(20, 30) for event in one_task(number, "failed", at=-100.0)))
    keep = Settings(keep_tasks=8, keep_succeeded_days=100.0, keep_failed_days=100.0)
    retention = Retention(store, "shop", keep)
    while retention.delete_expired(NOW).more:
        pass
    assert counts(store) == {"succeeded": 2, "failed": 6}
    write(store, *one_task(33), *one_task(34))
    retention.delete_expired(NOW)
    assert counts(store) == {"succeeded": 2, "failed": 6}
    assert_counters_are_right(store)


def test_a_task_of_which_only_its_loss_is_recorded_expires_and_no_counter_is_wrong(store: Store) -> None:
    lost = [make_event("task-lost", timestamp=NOW - 12 * DAY_SECONDS, uuid=make_id(number)) for number in (50, 51)]
    write(store, *lost)
    Retention(store, "shop", SETTINGS).delete_expired(NOW)
    assert_counters_are_right(store)
    assert counts(store) == {"succeeded": 1, "failed": 2}


def test_many_steps_delete_all_that_is_old_and_the_counters_agree(store: Store) -> None:
    old = -3 * DAY_SECONDS
    for start in range(100, 1500, 200):
        events = [one_task(each, ("succeeded", "failed")[each % 5 == 0], at=old) for each in range(start, start + 200)]
        write(store, *(event for task in events for event in task))
    retention = Retention(store, "shop", SETTINGS)
    sizes = []
    while (step := retention.delete_expired(NOW)).more:
        sizes.append(len(step.keys))
    assert len(sizes) > 1
    assert counts(store) == {"succeeded": 1, "failed": 282}
    assert_counters_are_right(store)


def test_a_deleted_task_that_goes_on_is_a_new_one(store: Store) -> None:
    """The writer has it in memory, and would change a row that is gone."""
    received, started, _ = one_task(60, at=-11 * DAY_SECONDS)
    writer = Writer(store, "shop", SETTINGS)
    writer.write(deliver(received))
    step = Retention(store, "shop", SETTINGS).delete_expired(NOW)
    writer.forget_deleted(step.keys, counters=step.counters)
    writer.write(deliver(started))
    assert read_task(store, make_id(60)).state is TaskState.STARTED
    assert_counters_are_right(store)


@pytest.mark.slow
def test_freed_space_of_a_file_is_given_back(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/large.db")
    for start in range(1000, 1060):
        write(store, *one_task(start, at=-3 * DAY_SECONDS, result="x" * 290))
    with store.begin() as connection:  # as many pages as 100,000 tasks have
        connection.exec_driver_sql("CREATE TABLE filler AS SELECT zeroblob(4000000) AS x FROM task LIMIT 10")
        connection.exec_driver_sql("DROP TABLE filler")
    retention = Retention(store, "shop", SETTINGS)
    while retention.delete_expired(NOW).more:
        pass
    with store.read() as connection:
        free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
    store.close()
    assert free <= RESERVE_PAGES


def test_a_pace_comes_near_its_time() -> None:
    pace = StepSize(0.1, 100, 1000)
    for _ in range(9):
        pace.record(pace.number / 5000)
    assert 400 <= pace.number <= 500
    pace.record(60.0)
    assert 100 <= pace.number <= 125
    for _ in range(9):
        pace.record(0.0)
    assert pace.number == 1000


def test_another_clusters_tasks_are_left_alone(store: Store) -> None:
    assert Retention(store, "mail", SETTINGS).delete_expired(NOW).keys == []
    assert sum(counts(store).values()) == 6


def test_rollups_outlive_their_tasks(store: Store) -> None:
    Retention(store, "shop", SETTINGS).delete_expired(NOW)
    with store.read() as connection:
        table = schema.rollup
        kept = connection.execute(select(table.c.resolution, func.sum(table.c.received)).group_by(table.c.resolution))
        assert {resolution: int(count) for resolution, count in kept} == {60: 4, 3600: 6, 86400: 6}
