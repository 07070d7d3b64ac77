"""A worker whose clock is set by an hour while it works, as real brokers deliver its events."""

import json
import time
from pathlib import Path
from uuid import uuid4

import pytest

from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import WorkerStatus
from tests.receiver.traffic import Publisher, publisher
from tests.receiver.watching import Watching, watching
from tests.workers import wait_for

HOSTNAME = "jumping@shop"
BEFORE, AFTER = 6, 30  # rounds of 0.25 s
PAUSE = 0.25


class Jumping:
    """What a worker sends whose clock and zone can be set."""

    def __init__(self, publish: Publisher) -> None:
        self._publish = publish
        self._count = 0
        self.ahead = 0.0
        self.utcoffset = -1

    def say(self, kind: str, task_id: str | None = None, **fields: object) -> None:
        self._count += 1
        head = {"hostname": HOSTNAME, "pid": 4711, "clock": self._count, "utcoffset": self.utcoffset}
        event = {**head, "type": kind, "timestamp": time.time() + self.ahead, **fields}
        self._publish.send(kind.replace("-", "."), json.dumps(event | ({"uuid": task_id} if task_id else {})))

    def beat(self) -> None:
        """A heartbeat, and the pause until the next."""
        self.say("worker-heartbeat", freq=2.0, active=1, processed=self._count, sw_ident="py-celery")
        time.sleep(PAUSE)


@pytest.mark.parametrize("hours", [1, -1])
def test_an_hour_more_or_less_makes_nobody_silent_and_no_time_wrong(
    broker_url: str, hours: int, tmp_path: Path
) -> None:
    with watching(broker_url, tmp_path) as watch, publisher(broker_url) as publish:
        worker = Jumping(publish)
        worker.beat()
        wait_for(lambda: watch.worker(HOSTNAME), what="the worker")
        waiting, running, later = (str(uuid4()) for _ in range(3))
        begun = time.time()
        for each in (waiting, running):
            worker.say("task-received", each, name="shop.pay", retries=0)
        worker.say("task-started", running)
        for _ in range(BEFORE):
            worker.beat()
        wait_for(lambda: (task := watch.task(running)) and task.state is TaskState.STARTED)
        worker.ahead, worker.utcoffset = 3600.0 * hours, -1 - hours
        statuses = set()
        for number in range(AFTER):
            worker.beat()
            found = watch.worker(HOSTNAME)
            statuses.add(found.status if found else None)
            if number == AFTER // 2:
                worker.say("task-succeeded", running, result="'paid'", runtime=5.0)
                worker.say("task-started", waiting)
                worker.say("task-received", later, name="shop.pay", retries=0)
        worker.say("task-failed", waiting, exception="ValueError('no')", traceback="")
        worker.say("task-started", later)
        for each, state in (
            (running, TaskState.SUCCESS),
            (waiting, TaskState.FAILURE),
            (later, TaskState.STARTED),
        ):
            task = watch.wait_for_state(each, state)
            assert len(task.runs) == 1
            known = [at for at in (task.received, task.started, task.finished) if at is not None]
            assert known == sorted(known)
            assert begun - 1 < known[0] <= known[-1] < time.time() + 1
        waited = found_wait(watch, waiting)
        assert waited > (BEFORE + AFTER // 2) * PAUSE - 1
        assert watch.wait_for_state(running, TaskState.SUCCESS).runtime == 5.0
        assert statuses == {WorkerStatus.ONLINE}
        told = watch.worker(HOSTNAME)
        assert told is not None
        assert told.jump == pytest.approx(3600.0 * hours, abs=1.0)
        assert abs(told.skew or 0.0) < 2


def found_wait(watch: Watching, task_id: str) -> float:
    task = watch.task(task_id)
    assert task is not None
    assert task.wait is not None
    return task.wait


@pytest.mark.parametrize("hours", [1, -1])
def test_our_own_clock_may_be_set_and_nobody_is_silent(
    amqp_url: str, hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watching(amqp_url, tmp_path) as watch, publisher(amqp_url) as publish:
        worker = Jumping(publish)
        for _ in range(BEFORE):
            worker.beat()
        wait_for(lambda: watch.worker(HOSTNAME), what="the worker")
        true, seconds = time.time, 3600.0 * hours
        monkeypatch.setattr(time, "time", lambda: true() + seconds)
        worker.ahead = -seconds
        for _ in range(AFTER):
            worker.beat()
            found = watch.worker(HOSTNAME)
            assert found is not None
            assert found.status is WorkerStatus.ONLINE
        wait_for(lambda: (each := watch.worker(HOSTNAME)) and abs((each.last_heartbeat or 0.0) - time.time()) < 900)
        found = watch.worker(HOSTNAME)
        assert found is not None
        assert found.jump == 0.0, "it is not the worker's clock that was set"
