"""A gap that is reconciled step by step: on a real Redis, where a worker answers only if a test starts one."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import redis

from celery_monitor.brokers.remote import Remote
from celery_monitor.brokers.transports import make_probe
from celery_monitor.receiver.lost_tasks import AGAIN_SECONDS
from celery_monitor.receiver.reconcile import ARRIVAL_SECONDS, PATIENCE_SECONDS, GapCheck
from celery_monitor.receiver.task_locations import TaskLocations
from celery_monitor.records.receiver import Delivery, Gap, Reconciliation
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import open_store
from celery_monitor.store.receivers import close_gap, open_gap, read_gaps
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.workers import change_workers, read_workers
from celery_monitor.store.writer import Writer
from tests.databases import empty_record
from tests.factories import NOW, make_event, make_id
from tests.workers import running_worker

QUEUE = "payments"
BEGAN, ENDED = NOW - 100.0, NOW - 50.0
NOWHERE = "redis://127.0.0.1:1/0"
POLL = 2.0


class Recovering:
    """The record of a receiver, and one recovery after the other, stepped by hand."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.store = open_store(empty_record(directory))
        self.writer = Writer(self.store, "shop", Settings())
        self.now = NOW
        self.restart()

    def restart(self, *, keeps: bool = True, backend: str | None = None) -> None:
        """A new process; without ``keeps`` it is killed before anything that it concludes is stored."""
        broker = Broker("shop", self.url)
        settings = Settings(result_backend=(Broker("shop", backend or self.url),))
        conclude = self.write if keeps else lambda _: None
        probe = make_probe(broker, settings)
        self.check = GapCheck(TaskLocations(self.store, Remote(broker, settings), probe, conclude))

    def write(self, delivery: Delivery) -> None:
        self.writer.write([msgspec.structs.replace(delivery, concluded=True)])

    def receive(self, type: str, at: float, arrived: float | None = None, **fields: object) -> None:  # noqa: A002
        event = make_event(type, timestamp=at, **fields)
        self.writer.write([Delivery(events=[event], arrived=at if arrived is None else arrived)])

    def send(self, at: float = BEGAN - 10) -> str:
        """A task of which only its sender told."""
        task_id = make_id()
        self.receive("task-sent", at, uuid=task_id, hostname="web@shop", name="shop.pay", queue=QUEUE)
        return task_id

    def gap(self, began: float = BEGAN, ended: float = ENDED) -> int:
        number = open_gap(self.store, "shop", began, "no connection")
        close_gap(self.store, number, ended)
        return number

    def step(self, seconds: float) -> None:
        self.now += seconds
        self.check.step(read_workers(self.store, "shop"), self.now)

    def recheck(self, pause: float = AGAIN_SECONDS) -> None:
        """Both looks, and what is news in them."""
        for seconds in (POLL, pause, ARRIVAL_SECONDS):
            self.step(seconds)

    def gaps(self) -> list[Gap]:
        return read_gaps(self.store, 0.0)

    def finish(self) -> Reconciliation:
        for _ in range(60):
            self.step(1.0)
            found = self.gaps()[-1].reconciliation
            if found is not None and found.ended is not None:
                return found
        raise AssertionError(f"the reconciliation comes to no end: {self.gaps()}")

    def state(self, task_id: str) -> TaskState:
        return read_task(self.store, task_id, "shop").state


@pytest.fixture
def recovering(redis_url: str, tmp_path: Path) -> Iterator[Recovering]:
    recovering = Recovering(redis_url, tmp_path)
    yield recovering
    recovering.store.close()


def end_in_backend(url: str, task_id: str, at: float) -> None:
    done = datetime.fromtimestamp(at, UTC).isoformat()
    told = {"status": "SUCCESS", "result": 23, "date_done": done, "traceback": None, "task_id": task_id}
    with closing(redis.Redis.from_url(url)) as client:
        client.set(f"celery-task-meta-{task_id}", json.dumps(told))


def test_a_worker_that_is_silent_may_have_what_nobody_else_has(recovering: Recovering) -> None:
    """A solo pool neither beats nor answers while it runs a task, whose message it has acknowledged."""
    recovering.receive("worker-heartbeat", BEGAN, freq=2.0)
    task_id = recovering.send()
    change_workers(
        recovering.store,
        "shop",
        ["worker1@shop"],
        lambda worker: msgspec.structs.replace(worker, status=WorkerStatus.SILENT, pool="solo"),
    )
    recovering.gap()
    recovering.recheck(PATIENCE_SECONDS + 1)
    found = recovering.finish()
    assert (found.asked, found.lost, found.unknown, found.complete) == (1, 0, 1, False)
    assert recovering.state(task_id) is TaskState.PENDING


def test_workers_that_come_back_later_than_we_are_waited_for(recovering: Recovering) -> None:
    hostname = "late@shop"
    recovering.receive("worker-heartbeat", BEGAN, freq=2.0, hostname=hostname)
    task_id = recovering.send()
    recovering.gap()
    recovering.recheck()
    recovering.step(AGAIN_SECONDS)
    with running_worker(recovering.url, hostname=hostname):
        for _ in range(2):
            recovering.step(AGAIN_SECONDS)
        recovering.step(ARRIVAL_SECONDS)
        found = recovering.finish()
    assert (found.lost, found.unknown, found.complete) == (1, 0, True)
    assert recovering.state(task_id) is TaskState.LOST


def test_a_result_backend_that_does_not_answer_says_nothing_of_an_end(recovering: Recovering) -> None:
    recovering.restart(backend=NOWHERE)
    task_id = recovering.send()
    recovering.gap()
    recovering.recheck()
    for _ in range(5):
        recovering.step(1.0)
    assert recovering.gaps()[-1].reconciliation in (None, Reconciliation(began=NOW + POLL, position=(3, 0.0, 0)))
    recovering.step(PATIENCE_SECONDS)
    found = recovering.finish()
    assert (found.asked, found.lost, found.unknown, found.complete) == (1, 0, 1, False)
    assert recovering.state(task_id) is TaskState.PENDING


def test_a_result_backend_that_answers_late_is_waited_for(recovering: Recovering) -> None:
    recovering.restart(backend=NOWHERE)
    task_id = recovering.send()
    recovering.gap()
    recovering.recheck()
    for _ in range(6):
        recovering.step(1.0)
    end_in_backend(recovering.url, task_id, ENDED - 1)
    recovering.restart()  # with its address put right
    recovering.recheck()
    found = recovering.finish()
    assert (found.asked, found.backend, found.complete) == (1, 1, True)
    assert recovering.state(task_id) is TaskState.SUCCESS


def test_a_receiver_that_is_killed_in_the_middle_has_concluded_nothing_that_is_not_stored(
    recovering: Recovering,
) -> None:
    tasks = [recovering.send() for _ in range(3)]
    recovering.gap()
    recovering.restart(keeps=False)
    recovering.recheck()
    for _ in range(10):
        recovering.step(1.0)
    assert [recovering.state(each) for each in tasks] == [TaskState.PENDING] * 3
    recovering.restart()
    recovering.recheck()
    found = recovering.finish()
    assert (found.asked, found.lost, found.unknown) == (3, 3, 0)
    assert [recovering.state(each) for each in tasks] == [TaskState.LOST] * 3


def test_a_receiver_that_starts_anew_goes_on_where_the_last_one_was(
    recovering: Recovering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_monitor.receiver.reconcile.CHUNK", 2)
    for number in range(5):
        recovering.send(BEGAN - 20 + number)
    recovering.gap()
    recovering.recheck()
    while (found := recovering.gaps()[-1].reconciliation) is None or found.asked < 2:
        recovering.step(1.0)
    assert found.ended is None
    recovering.restart()
    recovering.recheck()
    found = recovering.finish()
    assert (found.asked, found.lost, found.unknown) == (5, 5, 0)


def test_what_was_sent_after_the_looks_is_not_missed_in_them(recovering: Recovering) -> None:
    """Its sender's clock is behind: by it, the task was sent long before the gap."""
    recovering.gap()
    recovering.receive("worker-heartbeat", BEGAN, freq=2.0)
    recovering.receive("worker-offline", BEGAN + 1)
    recovering.send(BEGAN - 50)  # so that the queue is known
    recovering.recheck()
    task_id = recovering.send(BEGAN - 3600)
    found = recovering.finish()
    assert (found.asked, found.lost) == (1, 1)
    assert recovering.state(task_id) is TaskState.PENDING


def test_what_was_lost_since_an_earlier_gap_is_asked_for_with_the_later_one(recovering: Recovering) -> None:
    task_id = make_id()
    for kind in ("task-received", "task-started"):
        recovering.receive(kind, BEGAN - 110, uuid=task_id, name="shop.pay")
    recovering.receive("worker-offline", BEGAN - 109)
    recovering.gap(BEGAN - 100, BEGAN - 90)
    recovering.step(POLL)
    recovering.receive("task-lost", BEGAN - 80, uuid=task_id, exception="worker1@shop is gone")
    recovering.gap()
    recovering.restart()
    end_in_backend(recovering.url, task_id, BEGAN - 95)
    recovering.recheck()
    recovering.restart()
    recovering.recheck()
    assert recovering.finish().backend == 1
    assert recovering.state(task_id) is TaskState.SUCCESS
