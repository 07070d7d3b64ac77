"""The receiver as a whole: real workers, brokers that go away, databases that refuse."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from celery import Celery

from celery_monitor.errors import NotFound
from celery_monitor.receiver import ingest, pace
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import note_use, read_gaps, read_receiver_records
from celery_monitor.store.tasks.page import count_states
from celery_monitor.store.workers import read_workers
from celery_monitor.store.writer import Writer
from tests.factories import make_event
from tests.receiver.conftest import RunReceiver, connected, health, task
from tests.servers import free_port
from tests.workers import running_worker, wait_for


def ended(store: Store, task_id: str) -> bool:
    try:
        return task(store, task_id).state.finished
    except NotFound:
        return False


def test_what_real_workers_do_is_stored(broker_url: str, receiving: RunReceiver, store: Store) -> None:
    with receiving(broker_url) as receiver, running_worker(broker_url) as worker:
        wait_for(connected(receiver))
        sent = {"add": (2, 3), "fail": (), "retry_then_succeed": ()}
        ids = {name: worker.send(name, *args) for name, args in sent.items()}
        wait_for(lambda: all(ended(store, each) for each in ids.values()))
    added, failed, retried = (task(store, ids[name]) for name in ("add", "fail", "retry_then_succeed"))
    assert (added.state, added.result, added.args, added.queue) == (TaskState.SUCCESS, "5", "(2, 3)", worker.queue)
    assert failed.state is TaskState.FAILURE
    assert failed.traceback is not None
    assert "Traceback" in failed.traceback
    assert retried.state is TaskState.SUCCESS
    assert [run.retries for run in retried.runs] == list(range(len(retried.runs)))
    assert len(retried.runs) > 1
    assert [each.hostname for each in read_workers(store)] == [worker.hostname]
    assert health(store).events_total >= 9


def test_events_sent_while_away_are_kept_by_rabbitmq(amqp_url: str, receiving: RunReceiver, store: Store) -> None:
    with running_worker(amqp_url) as worker:
        with receiving(amqp_url) as receiver:
            wait_for(connected(receiver))
        task_id = worker.send("add", 2, 3)
        wait_for(lambda: "succeeded in" in worker.log)
        assert not ended(store, task_id)
        with receiving(amqp_url):
            wait_for(lambda: ended(store, task_id))
    assert read_gaps(store, since=0.0) == []


def test_being_away_from_redis_is_a_gap(redis_url: str, receiving: RunReceiver, store: Store) -> None:
    with receiving(redis_url) as receiver:
        wait_for(connected(receiver))
        wait_for(lambda: read_receiver_records(store) and health(store).connected)
    assert read_gaps(store, since=0.0) == []
    assert not health(store).connected
    stopped = time.time()
    with receiving(redis_url):
        wait_for(lambda: read_gaps(store, since=0.0))
    (gap,) = read_gaps(store, since=0.0)
    assert gap.ended is not None
    assert gap.began <= stopped < gap.ended <= time.time()
    assert "not running" in gap.cause


def test_events_that_follow_others_gather_for_one_transaction(
    redis_url: str, receiving: RunReceiver, store: Store
) -> None:
    with receiving(redis_url, batch_seconds=5.0, batch_events=2) as receiver:
        wait_for(connected(receiver))
        send_event(redis_url, "31")
        wait_for(lambda: ended(store, "31"))
        sent = time.time()
        send_event(redis_url, "32")
        wait_for(lambda: receiver._source.last_received_at > sent)
        alone = ended(store, "32")
        send_event(redis_url, "33")
        wait_for(lambda: ended(store, "32"))
        assert (alone, ended(store, "33")) == (False, True)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis server of the test's own, that it may stop."""
    port = free_port()
    with start_redis(port, tmp_path) as process:
        yield f"redis://127.0.0.1:{port}/3", process
        process.send_signal(signal.SIGKILL)


def start_redis(port: int, folder: Path) -> subprocess.Popen[bytes]:
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: _answers(port))
    return process


def _answers(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_a_broker_that_restarts_is_waited_for(
    own_redis: tuple[str, subprocess.Popen[bytes]], receiving: RunReceiver, store: Store, tmp_path: Path
) -> None:
    url, process = own_redis
    port = int(url.split(":")[2].split("/")[0])
    with receiving(url) as receiver:
        wait_for(connected(receiver))
        wait_for(lambda: read_receiver_records(store) and health(store).connected)
        process.kill()
        process.wait()
        wait_for(lambda: "refused" in (health(store).error or ""))
        assert not health(store).connected
        wait_for(lambda: read_gaps(store, since=0.0))
        assert read_gaps(store, since=0.0)[0].ended is None
        again = start_redis(port, tmp_path)
        try:
            wait_for(lambda: health(store).connected)
            wait_for(lambda: read_gaps(store, since=0.0)[0].ended is not None)
            send_event(url, "77")
            wait_for(lambda: ended(store, "77"))
        finally:
            again.kill()
            again.wait()


def test_a_lost_broker_is_reported_at_once_though_nobody_uses_the_dashboard(
    own_redis: tuple[str, subprocess.Popen[bytes]],
    receiving: RunReceiver,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "USE_SECONDS", 0.0)
    monkeypatch.setattr(pace, "UNUSED_FACTOR", 1e6)
    url, process = own_redis
    with closing(pace.Pace(store)) as unused, receiving(url, unused):
        wait_for(lambda: read_receiver_records(store) and health(store).connected)
        process.kill()
        wait_for(lambda: not health(store).connected)
        assert health(store).report_seconds == 1e6


@pytest.mark.parametrize("end", ["use", "task", "late", "stop"])
def test_heartbeats_gather_while_nothing_happens_and_are_stored_as_soon_as_anything_does(
    broker_url: str, receiving: RunReceiver, store: Store, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(pace, "USE_SECONDS", 0.0)
    monkeypatch.setattr(pace, "IDLE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(ingest, "IDLE_GATHER_SECONDS", 3600.0)
    freq = 0.01 if end == "late" else 3600.0

    def stored() -> float:
        return max((each.last_heartbeat or 0.0 for each in read_workers(store, "shop")), default=0.0)

    with (
        closing(pace.Pace(store)) as unused,
        receiving(broker_url, unused) as receiver,
        Celery(broker=broker_url) as app,
    ):
        wait_for(connected(receiver))
        with app.events.default_dispatcher(hostname="worker1@shop") as dispatcher:
            dispatcher.send("worker-heartbeat", freq=3600.0, active=0, processed=0)
            first = wait_for(stored)
            dispatcher.send("worker-heartbeat", freq=freq, active=0, processed=0)
            if end != "late":  # then it may be stored by now
                wait_for(lambda: receiver.last_heartbeat("worker1@shop") > first)
                assert stored() == first
                assert health(store).lag_seconds is not None
            monkeypatch.setattr(pace, "USE_SECONDS", 60.0)
            monkeypatch.setattr(pace, "IDLE_AFTER_SECONDS", 60.0)
            if end == "use":
                note_use(store)
            elif end == "task":
                dispatcher.send("task-succeeded", uuid="77", result="1", runtime=0.5)
        if end != "stop":
            wait_for(lambda: stored() > first)
    assert stored() > first


def send_event(url: str, task_id: str) -> None:
    with Celery(broker=url) as app, app.events.default_dispatcher(hostname="worker1@shop") as dispatcher:
        dispatcher.send("task-succeeded", uuid=task_id, result="1", runtime=0.5)


def test_old_tasks_are_deleted_while_events_never_pause(redis_url: str, receiving: RunReceiver, store: Store) -> None:
    stop = threading.Event()
    sender = threading.Thread(target=send_without_pause, args=(redis_url, stop))
    with receiving(redis_url, keep_tasks=20) as receiver:
        wait_for(connected(receiver))
        sender.start()
        try:
            wait_for(lambda: stored(store) > 0)
            wait_for(lambda: health(store).events_total > 100 and stored(store) < health(store).events_total / 2)
        finally:
            stop.set()
            sender.join()


def send_without_pause(url: str, stop: threading.Event) -> None:
    """A batch or more in every tenth of a second: there is never a second in which nothing is stored."""
    number = 0
    with Celery(broker=url) as app, app.events.default_dispatcher(hostname="worker1@shop") as dispatcher:
        while not stop.wait(0.05):
            number += 1
            dispatcher.send("task-succeeded", uuid=f"order-{number}", result="1", runtime=0.5)


def stored(store: Store) -> int:
    return sum(count_states(store).values())


def test_a_receiver_that_starts_before_its_broker_waits(receiving: RunReceiver, store: Store, tmp_path: Path) -> None:
    port = free_port()
    with receiving(f"redis://127.0.0.1:{port}/0") as receiver:
        wait_for(lambda: read_receiver_records(store))
        assert not health(store).connected
        process = start_redis(port, tmp_path)
        try:
            wait_for(connected(receiver))
        finally:
            process.kill()
            process.wait()


def test_a_database_that_refuses_for_a_while_loses_nothing(
    redis_url: str, receiving: RunReceiver, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(redis_url) as receiver:
        wait_for(connected(receiver))
        with store.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE task RENAME TO hidden")
            connection.exec_driver_sql("ALTER TABLE receiver RENAME TO hidden_too")
        for number in range(20):
            send_event(redis_url, f"order-{number}")
        wait_for(lambda: "no such table: task" in caplog.text)
        with store.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO task")
            connection.exec_driver_sql("ALTER TABLE hidden_too RENAME TO receiver")
        wait_for(lambda: all(ended(store, f"order-{number}") for number in range(20)))
    assert health(store).dropped_total == 0


def test_one_event_that_cannot_be_stored_does_not_hold_up_the_rest(
    redis_url: str, receiving: RunReceiver, store: Store
) -> None:
    with store.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON task WHEN NEW.result = '13' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with receiving(redis_url) as receiver:
        wait_for(connected(receiver))
        with Celery(broker=redis_url) as app, app.events.default_dispatcher(hostname="worker1@shop") as dispatcher:
            for number in range(30):
                dispatcher.send("task-succeeded", uuid=f"order-{number}", result=str(number), runtime=0.5)
        wait_for(lambda: ended(store, "order-29"))
        wait_for(lambda: health(store).dropped_total == 1)
        wait_for(lambda: read_gaps(store, since=0.0))
    assert [ended(store, f"order-{number}") for number in (12, 13, 14)] == [True, False, True]
    assert read_gaps(store, since=0.0)[0].dropped == 1


def test_old_tasks_go_while_events_come_without_a_pause(redis_url: str, receiving: RunReceiver, store: Store) -> None:
    old = [make_event("task-succeeded", uuid=f"old-{number}", timestamp=1000.0 + number) for number in range(2500)]
    recent = Settings(keep_succeeded_days=1e6)
    Writer(store, "shop", recent).write([Delivery(events=old, arrived=time.time())])
    with receiving(redis_url, keep_tasks=31, keep_succeeded_days=1e6) as receiver:
        wait_for(connected(receiver))

        def few_are_left() -> bool:
            send_event(redis_url, f"new-{time.monotonic()}")
            return sum(count_states(store).values()) <= 1031

        wait_for(few_are_left)
