"""Two receivers on one record: one writes, the other stands by and takes over without loss or doubles."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from celery_monitor.records.task import TaskState
from celery_monitor.store.engine import open_store
from celery_monitor.store.receivers import read_gaps, read_standby_receivers
from celery_monitor.store.rollups.series import read_series
from tests.faults.receivers import Record, receiving
from tests.receiver.sources.conftest import delete_queue
from tests.servers import proxy
from tests.workers import Worker, running_worker, wait_for

TASKS = 300
log = logging.getLogger(__name__)
FAILING_EACH = 10


@pytest.fixture
def record(database_url: str) -> Iterator[Record]:
    with closing(open_store(database_url)) as store:
        yield Record(store)


@pytest.fixture(autouse=True)
def queue(broker_url: str, tmp_path: Path) -> Iterator[None]:
    yield
    if broker_url.startswith("amqp"):
        delete_queue(f"celeryev.test-{tmp_path.name}")


def send(worker: Worker, count: int) -> dict[TaskState, int]:
    """Tasks that go on running while something else happens; what is to be stored of them."""
    for number in range(count):
        if number % FAILING_EACH:
            worker.send("add", number, 1)
        else:
            worker.send("fail", f"no order {number}")
    failed = -(-count // FAILING_EACH)
    return {TaskState.FAILURE: failed, TaskState.SUCCESS: count - failed}


def kept_everything(record: Record, expected: dict[TaskState, int]) -> None:
    record.wait_for_counts(expected)
    health = record.health()
    assert health is not None
    assert (health.dropped_total, health.malformed_total) == (0, 0)
    assert [gap for gap in read_gaps(record.store, 0.0) if gap.dropped != 0] == []
    assert record.earlier_runs() == 0
    now = time.time()
    series = read_series(record.store, since=now - 900, until=now)
    assert sum(bucket.succeeded for bucket in series.buckets) == expected[TaskState.SUCCESS]
    assert sum(bucket.failed for bucket in series.buckets) == expected[TaskState.FAILURE]


def test_killed_receiver_is_followed_by_the_one_that_stands_by(
    broker_url: str, database_url: str, record: Record, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(receiving(broker_url, database_url, tmp_path, "first"))
        record.wait_for_leader(first)
        second = stack.enter_context(receiving(broker_url, database_url, tmp_path, "second"))
        standby = record.wait_for_standby(second)
        worker = stack.enter_context(running_worker(broker_url))
        expected = send(worker, TASKS)
        wait_for(lambda: record.counts().get(TaskState.FAILURE), what="the first failure")
        killed = time.monotonic()
        first.kill()
        assert record.wait_for_leader(second).pid == standby.pid
        log.info("took over %.2f s after the death", time.monotonic() - killed)
        kept_everything(record, expected)
        assert read_standby_receivers(record.store, 0.0) == []
        assert "took over at" in " ".join((record.health() or pytest.fail("no health")).notices)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_receiver_that_loses_its_database_is_followed_and_then_stands_by(
    broker_url: str, database_url: str, record: Record, tmp_path: Path
) -> None:
    port = urlsplit(database_url).port or 5432
    with ExitStack() as stack:
        between = stack.enter_context(proxy(port))
        user = urlsplit(database_url).netloc.rpartition("@")[0]
        far = urlsplit(database_url)._replace(netloc=f"{user}@127.0.0.1:{between.port}").geturl()
        first = stack.enter_context(receiving(broker_url, far, tmp_path, "first"))
        record.wait_for_leader(first)
        second = stack.enter_context(receiving(broker_url, database_url, tmp_path, "second"))
        record.wait_for_standby(second)
        worker = stack.enter_context(running_worker(broker_url))
        expected = send(worker, TASKS)
        wait_for(lambda: record.counts().get(TaskState.FAILURE), what="the first failure")
        cut = time.monotonic()
        if broker_url.startswith("redis"):
            between.fall_silent()  # the server gives up the session by itself
        else:
            between.close()
        record.wait_for_leader(second)
        log.info("took over %.2f s after the cut", time.monotonic() - cut)
        kept_everything(record, expected)
        between.close()
        stack.enter_context(proxy(port, port=between.port))
        record.wait_for_standby(first)
        record.wait_for_leader(second)
        kept_everything(record, expected)
        second.kill()
        record.wait_for_leader(first)
        again = send(worker, 50)
        kept_everything(record, {state: expected[state] + again[state] for state in expected})
