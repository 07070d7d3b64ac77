from collections.abc import Iterator

import pytest
from sqlalchemy import func
from sqlalchemy import select

from monitor.settings import Settings
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.engine import open_store
from monitor.store.retention import DAY_SECONDS
from monitor.store.retention import Retention
from tests.factories import NOW
from tests.store.test_writer import counts
from tests.store.test_writer import one_task
from tests.store.test_writer import write

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


def test_failures_outlive_successes(store: Store) -> None:
    assert Retention(store, "shop", SETTINGS).step(NOW) == 3
    assert counts(store) == {"succeeded": 1, "failed": 2}


def test_a_second_step_finds_nothing_more(store: Store) -> None:
    retention = Retention(store, "shop", SETTINGS)
    retention.step(NOW)
    assert retention.step(NOW) == 0
    # The failure that was passed over is looked at again later; the younger success goes.
    assert retention.step(NOW + 9 * DAY_SECONDS) == 1


def test_too_many_tasks_lose_the_oldest_successes(store: Store) -> None:
    keep = Settings(keep_tasks=4, keep_succeeded_days=100.0, keep_failed_days=100.0)
    assert Retention(store, "shop", keep).step(NOW) == 2
    assert counts(store) == {"succeeded": 1, "failed": 3}
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.task)).scalar() == 4


def test_another_clusters_tasks_are_left_alone(store: Store) -> None:
    assert Retention(store, "mail", SETTINGS).step(NOW) == 0
    assert sum(counts(store).values()) == 6


def test_rollups_outlive_their_tasks(store: Store) -> None:
    Retention(store, "shop", SETTINGS).step(NOW)
    with store.read() as connection:
        table = schema.rollup
        kept = connection.execute(select(table.c.resolution, func.sum(table.c.received)).group_by(table.c.resolution))
        assert {resolution: int(count) for resolution, count in kept} == {60: 4, 3600: 6, 86400: 6}
