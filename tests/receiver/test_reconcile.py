"""Workers that die, and what becomes of their tasks: on real brokers with real workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from celery_monitor.brokers.examine import examine_broker
from celery_monitor.brokers.remote import Remote
from celery_monitor.core.workers import duplicate_pids, process_state
from celery_monitor.receiver.reconcile import DEAF_SECONDS, Reconciler
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.task import Outcome, TaskState
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import open_store
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.workers import read_worker
from celery_monitor.store.writer import Writer
from tests.conformance.recorder import END
from tests.databases import empty_record
from tests.factories import NOW, make_event, make_id
from tests.receiver.traffic import publisher
from tests.receiver.watching import watching
from tests.workers import ROOT, running_worker, wait_for

LATE = {"task_acks_late": True, "worker_prefetch_multiplier": 1}
HOSTNAME = "worker7@shop"


class Judged:
    """A reconciler that is stepped by hand, on a broker where no worker answers."""

    def __init__(self, url: str, directory: Path) -> None:
        settings = Settings()
        self.store = open_store(empty_record(directory))
        self.writer = Writer(self.store, "shop", settings)
        self.health = ReceiverHealth(cluster="shop", connected=True, lag_seconds=0.1)
        self.concluded: list[Event] = []
        remote = Remote(Broker("shop", url), settings)
        self.reconciler = Reconciler(self.store, "shop", remote, lambda: self.health, self._conclude)

    def _conclude(self, delivery: Delivery) -> None:
        self.concluded += delivery.events
        self.writer.write([delivery])

    def receive(self, type: str, at: float, pid: int = 31, **fields: object) -> None:  # noqa: A002
        event = make_event(type, timestamp=at, hostname=HOSTNAME, pid=pid, **fields)
        self.writer.write([Delivery(events=[event], arrived=at)])

    def step(self, now: float, **health: object) -> None:
        self.health = msgspec.structs.replace(self.health, updated_at=now, **health)
        self.reconciler.step(now)

    def status(self) -> WorkerStatus:
        return read_worker(self.store, HOSTNAME, "shop").status

    def state(self, task_id: str) -> TaskState:
        return read_task(self.store, task_id, "shop").state


@pytest.fixture
def judged(redis_url: str, tmp_path: Path) -> Iterator[Judged]:
    judged = Judged(redis_url, tmp_path)
    yield judged
    judged.store.close()


def begin(judged: Judged) -> str:
    """A worker that beats every 3 s, and a task that it runs."""
    task_id = make_id()
    judged.receive("worker-heartbeat", NOW, freq=3.0)
    judged.receive("task-received", NOW, uuid=task_id, name="shop.pay.charge")
    judged.receive("task-started", NOW + 1, uuid=task_id)
    return task_id


def test_silence_counts_only_while_the_receiver_listened(judged: Judged) -> None:
    task_id = begin(judged)
    judged.step(NOW + 900)  # it has just begun
    judged.step(NOW + 903)
    assert judged.status() is WorkerStatus.ONLINE
    judged.step(NOW + 906)
    assert judged.status() is WorkerStatus.SILENT
    assert judged.state(task_id) is TaskState.STARTED
    judged.step(NOW + 909)
    judged.step(NOW + 910)
    assert judged.status() is WorkerStatus.OFFLINE
    assert judged.state(task_id) is TaskState.LOST
    [event] = judged.concluded
    assert event.exception is not None
    assert "its last heartbeat came 909 s ago (one is due every 3 s)" in event.exception


def test_each_change_of_a_status_is_passed_on(judged: Judged) -> None:
    changes: list[WorkerStatus] = []
    judged.reconciler.on_change(lambda: changes.append(judged.status()))
    begin(judged)
    for seconds in (900, 903, 906, 909, 910):
        judged.step(NOW + seconds)
    assert changes == [WorkerStatus.SILENT, WorkerStatus.OFFLINE]


def test_late_heartbeat_and_no_answer_is_silence_but_nobody_is_gone_for_that(judged: Judged) -> None:
    task_id = begin(judged)
    judged.step(NOW)
    for seconds in (1.0, 3.0, 3.5, 4.5, 5.5, 6.5):  # one beat is due every 3 s, and after 7 it could be gone
        judged.step(NOW + seconds)
        assert judged.status() is (WorkerStatus.ONLINE if seconds < 3.7 else WorkerStatus.SILENT), seconds
    assert judged.state(task_id) is TaskState.STARTED


@pytest.mark.parametrize("health", [{"lag_seconds": 9.0}, {"lag_seconds": None}, {"connected": False}])
def test_receiver_that_is_behind_or_cut_off_accuses_nobody(judged: Judged, health: dict[str, object]) -> None:
    begin(judged)
    for second in range(900, 960, 4):
        judged.step(NOW + second, **health)
    assert judged.status() is WorkerStatus.ONLINE
    judged.step(NOW + 958, connected=True, lag_seconds=0.2)
    judged.step(NOW + 959.5)
    assert judged.status() is WorkerStatus.ONLINE
    assert judged.concluded == []


def test_receiver_that_was_suspended_begins_to_listen_anew(judged: Judged) -> None:
    begin(judged)
    for second in (1, 2, 3, 300, 302):
        judged.step(NOW + second)
    assert judged.status() is WorkerStatus.ONLINE


def test_who_waits_for_answers_is_not_suspended(judged: Judged) -> None:
    begin(judged)
    for number in (1, 2, 3):  # each is asked for its task, and keeps us waiting for 2 s
        for kind, more in (("worker-heartbeat", {"freq": 900.0}), ("task-received", {}), ("task-started", {})):
            uuid = None if kind.startswith("worker") else make_id()
            event = make_event(kind, timestamp=NOW, hostname=f"deaf{number}@shop", uuid=uuid, **more)
            judged.writer.write([Delivery(events=[event], arrived=NOW)])
    judged.step(NOW + 900)
    judged.step(NOW + 903)
    judged.step(NOW + 903 + DEAF_SECONDS + 1.5)
    assert judged.status() is WorkerStatus.SILENT


def test_a_clock_that_is_set_back_does_not_put_off_judging(judged: Judged) -> None:
    begin(judged)
    for second in (3600, 3601):
        judged.step(NOW + second)
    for second in (0, 2, 4):
        judged.step(NOW + second)
    assert judged.status() is WorkerStatus.SILENT


def test_receiver_that_waits_for_its_database_accuses_nobody(judged: Judged) -> None:
    begin(judged)
    judged.step(NOW + 1)
    for second in range(2, 60):
        judged.reconciler.step(NOW + second)  # it says nothing of itself meanwhile
    assert judged.status() is WorkerStatus.ONLINE


def test_two_processes_of_one_name_are_judged_each_by_its_own_heartbeats(judged: Judged) -> None:
    task_id = begin(judged)
    for second in range(20):
        judged.receive("worker-heartbeat", NOW + second, pid=31 + second % 2, freq=3.0, active=4)
        judged.step(NOW + second)
    worker = read_worker(judged.store, HOSTNAME, "shop")
    assert duplicate_pids(worker) == (31, 32)
    assert worker.pid == 32
    assert [(each.pid, each.active, each.last_heartbeat) for each in worker.others] == [(31, 4, NOW + 18)]
    assert judged.state(task_id) is TaskState.STARTED
    for second in range(20, 28):
        judged.receive("worker-heartbeat", NOW + second, pid=32, freq=3.0)
        judged.step(NOW + second)
    assert judged.state(task_id) is TaskState.LOST
    assert judged.concluded[0].exception == (
        f"{HOSTNAME} (process 31) is gone: its last heartbeat came 8 s ago (one is due every 3 s), "
        "and process 32 has taken its place"
    )


def beat_until(judged: Judged, since: int, until: int) -> None:
    """The new process of a restart sends heartbeats, and the reconciler looks."""
    for at in range(since, until, 3):
        judged.receive("worker-heartbeat", NOW + at, pid=32, freq=3.0)
        judged.step(NOW + at)


def test_process_that_said_goodbye_ends_what_it_runs_and_is_presumed_killed_much_later(judged: Judged) -> None:
    first, second = begin(judged), make_id()
    judged.receive("task-received", NOW + 1, uuid=second)
    judged.receive("task-started", NOW + 1, uuid=second)
    judged.receive("worker-offline", NOW + 2)
    judged.receive("worker-online", NOW + 3, pid=32, freq=3.0)  # a rolling restart
    beat_until(judged, 3, 30)
    assert process_state(read_worker(judged.store, HOSTNAME, "shop"), 31) == "shutting down"
    judged.receive("task-succeeded", NOW + 300, uuid=first, runtime=299.0)  # a sign of life
    beat_until(judged, 300, 312)
    assert judged.state(first) is TaskState.SUCCESS
    beat_until(judged, 880, 898)
    assert judged.state(second) is TaskState.STARTED
    beat_until(judged, 898, 916)
    assert judged.state(second) is TaskState.LOST
    [event] = judged.concluded
    assert event.exception is not None
    assert "worker7@shop (process 31) shut down 90" in event.exception
    assert "After 10 min it is presumed killed" in event.exception


def test_task_that_usually_takes_long_is_waited_for_longer_after_a_goodbye(judged: Judged) -> None:
    for _ in range(20):  # the usual run of this name takes 500 s
        before = make_id()
        judged.receive("task-received", NOW - 900, uuid=before, name="shop.pay.charge")
        judged.receive("task-started", NOW - 900, uuid=before)
        judged.receive("task-succeeded", NOW - 400, uuid=before, runtime=500.0)
    task_id = begin(judged)
    judged.receive("worker-offline", NOW + 2)
    for at in (*range(600, 625, 4), *range(960, 985, 4)):
        judged.step(NOW + at)
    assert judged.state(task_id) is TaskState.STARTED
    for at in range(1050, 1080, 4):
        judged.step(NOW + at)
    assert judged.state(task_id) is TaskState.LOST


def test_late_end_takes_a_lost_task_back(judged: Judged) -> None:
    task_id = begin(judged)
    for second in range(1, 14):
        judged.step(NOW + second)
    assert judged.state(task_id) is TaskState.LOST
    judged.receive("task-succeeded", NOW + 15, uuid=task_id, result="'paid'", runtime=14.0)
    judged.receive("worker-heartbeat", NOW + 16, freq=3.0)
    assert judged.state(task_id) is TaskState.SUCCESS
    assert judged.status() is WorkerStatus.ONLINE


def test_worker_without_heartbeats_is_judged_by_its_last_event(judged: Judged) -> None:
    task_id = make_id()
    judged.receive("task-received", NOW, uuid=task_id, name="shop.pay.charge")
    judged.receive("task-started", NOW + 1, uuid=task_id)
    for second in range(1, 120):
        judged.step(NOW + second)
    task = read_task(judged.store, task_id, "shop")
    assert task.state is TaskState.LOST
    assert "its last event came" in (task.exception or "")


def test_killed_worker_loses_its_task_and_a_redelivery_takes_it_back(amqp_url: str, tmp_path: Path) -> None:
    with watching(amqp_url, tmp_path) as watch, running_worker(amqp_url, concurrency=1, config=LATE) as worker:
        task_id = worker.send("sleep", 3)
        watch.wait_for_state(task_id, TaskState.STARTED)
        worker.kill()
        lost = watch.wait_for_state(task_id, TaskState.LOST)
        assert lost.run is not None
        assert lost.run.outcome is Outcome.LOST
        assert lost.exception is not None
        assert f"{worker.hostname} (process {worker.pid}) is gone" in lost.exception
        assert "did not answer 2 pings" in lost.exception
        dead = watch.worker(worker.hostname)
        assert dead is not None
        assert dead.status is WorkerStatus.OFFLINE
        with running_worker(amqp_url, queue=worker.queue, hostname="second@shop", config=LATE):
            again = watch.wait_for_state(task_id, TaskState.SUCCESS)
        assert [run.worker for run in again.runs] == [worker.hostname, "second@shop"]
        assert again.runs[0].outcome is Outcome.LOST


@pytest.mark.slow
def test_task_of_a_process_whose_name_another_has_taken_is_lost(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, concurrency=1) as worker:
        task_id = worker.send("sleep", 60)
        watch.wait_for_state(task_id, TaskState.STARTED)
        worker.kill()
        with running_worker(redis_url, queue=worker.queue, hostname=worker.hostname) as second:
            lost = watch.wait_for_state(task_id, TaskState.LOST)
            assert lost.exception is not None
            assert f"(process {worker.pid}) is gone" in lost.exception
            wait_for(lambda: (found := watch.worker(worker.hostname)) and found.pid == second.pid)
            back = watch.worker(worker.hostname)
            assert back is not None
            assert back.status is WorkerStatus.ONLINE


@pytest.mark.slow
def test_stopped_worker_that_goes_on_finds_its_tasks_again(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, concurrency=1) as worker:
        release = tmp_path / "release"
        running, waiting = worker.send("hold", str(release)), worker.send("add", 3, 4)
        watch.wait_for_state(running, TaskState.STARTED)
        watch.wait_for_state(waiting, TaskState.RECEIVED)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            watch.wait_for_state(running, TaskState.LOST)
            watch.wait_for_state(waiting, TaskState.LOST)
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        watch.wait_for_state(running, TaskState.STARTED)
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.status is WorkerStatus.ONLINE)
        release.touch()
        done = watch.wait_for_state(waiting, TaskState.SUCCESS)
        assert [run.outcome for run in done.runs] == [Outcome.SUCCEEDED]


@pytest.mark.slow
def test_busy_solo_worker_is_silent_and_loses_nothing(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, pool="solo", concurrency=1) as worker:
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.pool == "solo")
        task_id = worker.send("sleep", 12)  # it keeps the events of the task to itself until it is done
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.status is WorkerStatus.SILENT)
        done = watch.wait_for_state(task_id, TaskState.SUCCESS)
        assert [run.outcome for run in done.runs] == [Outcome.SUCCEEDED]
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.status is WorkerStatus.ONLINE)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_worker_in_warm_shutdown_loses_no_task(broker_url: str, tmp_path: Path, pool: str) -> None:
    with (
        watching(broker_url, tmp_path) as watch,
        recording(broker_url, tmp_path / "events.ndjson") as recorded,
        running_worker(broker_url, pool=pool, concurrency=1) as worker,
    ):
        done, running = worker.send("add", 3, 4), worker.send("sleep", 14)
        watch.wait_for_state(done, TaskState.SUCCESS)
        watch.wait_for_state(running, TaskState.STARTED)
        worker.process.terminate()
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.status is WorkerStatus.OFFLINE)
        gone = watch.worker(worker.hostname)
        assert gone is not None
        assert process_state(gone, worker.pid) == "shutting down"
        worker.process.wait(60)
        assert worker.log.count(" succeeded in ") == 2
        # Now and then a worker of Celery 5.7 with a prefork pool ends before it has sent its last event. Then nobody
        # knows how the task ended, and it must not be called lost.
        if ("task-succeeded", running) in recorded():
            ended = watch.wait_for_state(running, TaskState.SUCCESS)
            assert [run.outcome for run in ended.runs] == [Outcome.SUCCEEDED]
        else:
            assert watch.wait_for_state(running, TaskState.STARTED).runs[0].outcome is None
        assert watch.wait_for_state(done, TaskState.SUCCESS).runs[0].outcome is Outcome.SUCCEEDED
        assert watch.concluded == []


@contextmanager
def recording(url: str, file: Path) -> Iterator[Callable[[], set[tuple[str, str | None]]]]:
    """A second recorder, of kombu alone; gives (type, task id) of all events up to the moment when it is asked."""
    command = [sys.executable, "-m", "tests.conformance.recorder", url, str(file)]
    recorder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert recorder.stdout is not None
    assert recorder.stdout.readline() == "ready\n"

    def recorded() -> set[tuple[str, str | None]]:
        with publisher(url) as publish:
            publish.send("conformance.end", json.dumps({"type": END, "timestamp": time.time(), "hostname": "test"}))
        recorder.wait(60)
        events = [json.loads(line)["event"] for line in file.read_text(encoding="utf-8").splitlines()]
        return {(event["type"], event.get("uuid")) for event in events}

    try:
        yield recorded
    finally:
        recorder.kill()
        recorder.wait()
        recorder.stdout.close()


@pytest.mark.slow
def test_two_workers_of_one_name_lose_no_task(redis_url: str, tmp_path: Path) -> None:
    with (
        watching(redis_url, tmp_path) as watch,
        running_worker(redis_url, concurrency=1, hostname="dup@shop") as first,
        running_worker(redis_url, concurrency=1, hostname="dup@shop") as second,
    ):
        release = tmp_path / "release"
        tasks = [each.send("hold", str(release)) for each in (first, second)]
        for task_id in tasks:
            watch.wait_for_state(task_id, TaskState.STARTED)

        def both() -> bool:
            worker = watch.worker("dup@shop")
            pids = duplicate_pids(worker) if worker is not None else ()
            return pids == tuple(sorted((first.pid, second.pid)))

        both_queues = {first.queue, second.queue}
        consumers: set[int | None] = set()  # of all samples until both were asked

        def counted() -> bool:
            found = [watch.queue(name) for name in both_queues]
            consumers.update(each.consumers for each in found if each is not None)
            return all(each is not None and each.consumers for each in found)

        wait_for(counted, what="the consumers of both queues")
        assert consumers == {None, 1}
        wait_for(both, what="two processes of one name")
        wait_for(lambda: (found := watch.worker("dup@shop")) and set(found.queues or ()) == both_queues)
        assert examine_broker(Broker("shop", redis_url), Settings(), seconds=0.1).answers == {"dup@shop": 2}
        second.app.control.add_consumer(second.queue)  # both processes get it
        wait_for(lambda: (found := watch.queue(second.queue)) and found.consumers == 2, what="two consumers")
        release.touch()
        ended = [watch.wait_for_state(task_id, TaskState.SUCCESS) for task_id in tasks]
        assert {task.runs[0].pid for task in ended} == {first.pid, second.pid}
        assert watch.concluded == []
