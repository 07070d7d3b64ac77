"""SQS: receivers that are killed, and an endpoint that is dead. What is recorded equals a ledger kept by the tasks."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import celery_monitor_capture
import pytest
import redis

from celery_monitor.records.task import TaskState
from celery_monitor.store.engine import open_store
from tests.apps.ledger import LEDGER_VARIABLE
from tests.faults.receivers import Record, receiving
from tests.servers import SqsServer, proxy
from tests.workers import running_worker, wait_for

TASKS = int(os.environ.get("TEST_LEDGER_TASKS", "1000"))
KILLS = 10
SENDERS = 4
CHUNK = 50  # tasks; TASKS is a multiple of KILLS times this
FAILING_EACH = 20  # one in so many
APPLICATION = "tests.apps.queued"
NO_WAIT = {"wait_time_seconds": 0}  # while a request waits, moto keeps a processor busy
OPTIONS = ("--broker-options", json.dumps(NO_WAIT))
CONFIG = {"broker_transport_options": NO_WAIT}
STEPS, STEP_SECONDS = 600, 0.1  # a minute


@pytest.fixture
def book(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv(LEDGER_VARIABLE, redis_url)
    with redis.Redis.from_url(redis_url) as client:
        yield client


def entered(book: Any) -> int:
    return int(book.hlen("ledger:failed") + book.hlen("ledger:succeeded"))


@pytest.mark.timeout(1200)
def test_receivers_that_are_killed_lose_no_event(sqs_url: str, book: Any, sqlite_url: str, tmp_path: Path) -> None:
    store = open_store(sqlite_url)
    record = Record(store)
    sent: list[str] = []
    queue = "ledger"

    def few_wait() -> bool:
        return len(sent) - entered(book) < CHUNK

    with (
        running_worker(sqs_url, app=APPLICATION, queue=queue, hostname="one@shop", config=CONFIG) as worker,
        running_worker(sqs_url, app=APPLICATION, queue=queue, hostname="two@shop", config=CONFIG),
        ThreadPoolExecutor(SENDERS) as senders,  # each request takes a while
    ):
        celery_monitor_capture.install(worker.app)
        for kill in range(KILLS):
            with receiving(sqs_url, sqlite_url, tmp_path, f"receiver-{kill}", *OPTIONS) as program:
                record.wait_for_leader(program)
                for first in range(kill * TASKS // KILLS, (kill + 1) * TASKS // KILLS, CHUNK):
                    # The time of each request to moto grows with the number of messages that wait.
                    wait_for(few_wait)
                    fails = [number % FAILING_EACH == 0 for number in range(first, first + CHUNK)]
                    sent.extend(senders.map(lambda each: worker.send("entry", each), fails))
                program.kill()
        wait_for(lambda: entered(book) == TASKS, 60 + TASKS / 20, "the end of all tasks")
        with receiving(sqs_url, sqlite_url, tmp_path, "last", *OPTIONS) as program:
            record.wait_for_leader(program)
            failed = len(book.hgetall("ledger:failed"))
            assert failed == TASKS // FAILING_EACH
            expected = {TaskState.FAILURE: failed, TaskState.SUCCESS: TASKS - failed}
            record.wait_for_counts(expected)
    ids = {key.decode() for outcome in ("failed", "succeeded") for key in book.hkeys(f"ledger:{outcome}")}
    assert ids == set(sent)
    ran = sum(int(runs) for outcome in ("failed", "succeeded") for runs in book.hvals(f"ledger:{outcome}"))
    assert TASKS + record.earlier_runs() == ran
    health = record.health()
    assert health is not None
    assert health.dropped_total == health.malformed_total == 0
    store.close()


def test_no_task_waits_for_a_dead_endpoint(
    sqs_url: str, sqs_service: SqsServer, book: Any, tmp_path: Path, sqlite_url: str
) -> None:
    """Of the events: the tasks' own broker answers all the time, else Celery itself would wait."""
    with proxy(sqs_service.port) as events:
        config = {**CONFIG, "capture_event_broker": f"sqs://test:test@127.0.0.1:{events.port}"}
        with running_worker(sqs_url, app=APPLICATION, concurrency=2, config=config) as worker:
            worker.send("entry", False)
            wait_for(lambda: entered(book) == 1)
            events.fall_silent()
            events.cut()
            worker.send("steps", STEPS, STEP_SECONDS)
            for number in range(STEPS):
                worker.send("entry", number % 2 == 0)
            wait_for(lambda: entered(book) == STEPS + 1, 200, "the tasks while the endpoint is dead")
            wait_for(lambda: book.llen("ledger:steps") == STEPS, 200, "the steps while the endpoint is dead")
            events.wake()
            store = open_store(sqlite_url)
            with receiving(sqs_url, sqlite_url, tmp_path, "receiver", *OPTIONS):
                expected = {TaskState.FAILURE: STEPS // 2, TaskState.SUCCESS: STEPS // 2 + 2}
                Record(store).wait_for_counts(expected)
            store.close()
