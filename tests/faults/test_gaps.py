"""A receiver that is killed with -9 while workers go on: what was missed is reconciled with who still knows it."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from celery_monitor.errors import NotFound
from celery_monitor.records.receiver import Gap
from celery_monitor.records.task import Task, TaskState
from celery_monitor.store.engine import open_store
from celery_monitor.store.receivers import read_gaps
from celery_monitor.store.tasks.detail import read_task
from tests.apps.ledger import LEDGER_VARIABLE
from tests.faults.receivers import CLUSTER, Record, receiving
from tests.receiver.sources.conftest import delete_queue
from tests.workers import running_worker, wait_for

TASKS = 200
FAILING_EACH = 10


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with closing(open_store(f"sqlite:///{tmp_path}/record.db")) as store:
        yield Record(store)


@pytest.fixture(autouse=True)
def queue(broker_url: str, tmp_path: Path) -> Iterator[None]:
    yield
    if broker_url.startswith("amqp"):
        delete_queue(f"celeryev.test-{tmp_path.name}")


def task(record: Record, task_id: str) -> Task | None:
    try:
        return read_task(record.store, task_id, CLUSTER)
    except NotFound:
        return None


def reconciled(record: Record) -> Gap | None:
    gaps = [gap for gap in read_gaps(record.store, 0.0) if gap.reconciliation is not None]
    return next((gap for gap in gaps if gap.reconciliation and gap.reconciliation.ended is not None), None)


def test_what_a_killed_receiver_missed_becomes_right_where_anybody_knows_it(
    broker_url: str, redis_url: str, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEDGER_VARIABLE, redis_url)
    keeps = broker_url.startswith("amqp")
    options = ("--result-backend", f"{CLUSTER}={redis_url}", "--sample-seconds", "0.5")
    database = f"sqlite:///{tmp_path}/record.db"
    idle = f"test-idle-{uuid4().hex[:8]}"
    with ExitStack() as stack:
        book: Any = stack.enter_context(closing(redis.Redis.from_url(redis_url)))
        first = stack.enter_context(receiving(broker_url, database, tmp_path, "first", *options))
        record.wait_for_leader(first)
        config = {"result_backend": redis_url}
        worker = stack.enter_context(running_worker(broker_url, app="tests.apps.ledger", concurrency=4, config=config))
        known = worker.send("sleep", 90)
        planned = worker.send("add", 1, 2, countdown=600)
        waiting = worker.send("add", 3, 4, queue=idle)
        for _ in range(3):
            worker.send("sleep", 4)
        sent = [worker.send("entry", number % FAILING_EACH == 0) for number in range(TASKS)]
        wait_for(lambda: sum(record.counts().values()) == TASKS + 6, what="all that was sent")
        first.kill()
        left = time.time()
        missed = worker.send("sleep", 80)
        missed_waiting = worker.send("add", 5, 6, queue=idle)
        missed_planned = worker.send("add", 7, 8, countdown=500)
        wait_for(lambda: book.hlen("ledger:failed") + book.hlen("ledger:succeeded") == TASKS, what="the ledger")
        good = TASKS - TASKS // FAILING_EACH + 3
        wait_for(lambda: worker.log.count("succeeded in") == good, what="the end of the three that sleep")
        back = time.time()
        second = stack.enter_context(receiving(broker_url, database, tmp_path, "second", *options))
        record.wait_for_leader(second)
        ended = {TaskState.FAILURE: book.hlen("ledger:failed"), TaskState.SUCCESS: book.hlen("ledger:succeeded") + 3}
        assert ended[TaskState.FAILURE] == TASKS // FAILING_EACH
        rest = {TaskState.STARTED: 2, TaskState.SCHEDULED: 2, TaskState.PENDING: 2}
        record.wait_for_counts(ended | rest)
        assert {each.decode() for each in book.hgetall("ledger:failed")} == {
            each for each in sent if (found := task(record, each)) and found.state is TaskState.FAILURE
        }
        states = {
            each: found.state
            for each in (known, missed, planned, missed_planned, waiting, missed_waiting)
            if (found := task(record, each))
        }
        assert list(states.values()) == [*[TaskState.STARTED] * 2, *[TaskState.SCHEDULED] * 2, *[TaskState.PENDING] * 2]
        if keeps:
            assert [gap for gap in read_gaps(record.store, 0.0) if gap.dropped != 0 and gap.began > left - 5] == []
        else:
            gap = wait_for(lambda: reconciled(record), what="the reconciliation")
            found = gap.reconciliation
            assert (found.backend, found.workers, found.queue) == (TASKS + 3, 2, 1)
            assert (found.lost, found.unknown, found.asked) == (0, 0, TASKS + 6)
            assert (found.discovered_on_workers, found.discovered_in_queues, found.complete) == (2, 1, True)
            running = task(record, missed)
            assert running is not None
            assert (running.name, running.args, running.worker) == ("basic.sleep", "(80,)", worker.hostname)
            assert running.started is not None
            assert left - 1 < running.started < back
            assert running.received is None
            assert running.discovered_at is not None
            assert task(record, known).discovered_at is None  # type: ignore[union-attr]
            held = task(record, missed_planned)
            assert held is not None
            assert (held.args, held.queue, held.eta is not None) == ("(7, 8)", worker.queue, True)
            lying = task(record, missed_waiting)
            assert lying is not None
            assert (lying.name, lying.args, lying.queue, lying.sent) == ("basic.add", "(5, 6)", idle, None)
        assert record.earlier_runs() == 0
        worker.kill()
        with worker.app.connection_for_write() as connection:
            connection.default_channel.queue_delete(idle)
