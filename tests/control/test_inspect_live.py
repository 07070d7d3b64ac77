"""What a real worker says of itself, and what is made of it when it says only part."""

import os
import signal
import time
from pathlib import Path

import pytest

from celery_monitor.control.inspect import query_worker, task_limits
from celery_monitor.errors import NotFound
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store.workers import read_worker
from tests.control.watch import CLUSTER, watching
from tests.workers import running_worker


def test_worker_tells_what_it_has_in_hand(broker_url: str, tmp_path: Path) -> None:
    config = {"task_soft_time_limit": 77, "security_key_password": "hunter2"}
    with (
        watching(broker_url, tmp_path) as watch,
        running_worker(broker_url, concurrency=1, config=config) as worker,
    ):
        watch.wait_for_worker(worker)
        release, sent = tmp_path / "release", time.time()
        running = worker.send("hold", str(release))
        watch.wait_for(running, TaskState.STARTED)
        held = worker.send("echo", {"password": "hunter2"}, countdown=500)
        watch.wait_for(held, TaskState.SCHEDULED)
        inside = query_worker(watch.settings, read_worker(watch.store, worker.hostname))
        (active,) = inside.active or ()
        assert (active.id, active.name, active.args) == (running, "basic.hold", f"('{release}',)")
        assert active.started is not None
        assert sent - 1 < active.started < time.time() + 1
        assert active.soft_limit == 77
        (scheduled,) = inside.scheduled or ()
        assert (scheduled.id, scheduled.eta is not None) == (held, True)
        assert inside.revoked == ()
        assert inside.stats is not None
        assert inside.stats["pool.max-concurrency"] == "1"
        assert inside.registered is not None
        assert inside.registered["basic.overrun"]["time_limit"] == "1"
        assert "hunter2" not in repr(inside)
        release.touch()


def test_one_argument_that_is_no_json_silences_that_answer_alone(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    pickle = {"accept_content": ["json", "pickle"]}
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, config=pickle) as worker:
        watch.wait_for_worker(worker)
        running = worker.send("echo", object, countdown=500, serializer="pickle")
        watch.wait_for(running, TaskState.SCHEDULED)
        inside = query_worker(watch.settings, read_worker(watch.store, worker.hostname))
        assert inside.active == ()
        assert inside.scheduled is None or inside.scheduled[0].id == running


def test_silent_worker_is_given_up(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url) as worker:
        watch.wait_for_worker(worker)
        known = read_worker(watch.store, worker.hostname)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            assert query_worker(watch.settings, known).silent
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        with pytest.raises(NotFound):
            query_worker(watch.settings, Worker(cluster="mail", hostname="a@mail", status=WorkerStatus.ONLINE))
        assert known.cluster == CLUSTER


def test_limits_behind_a_name_are_read() -> None:
    said = ["shop.mail", "shop.pay [rate_limit=10/m time_limit=30 soft_time_limit=2.5]"]
    assert task_limits(said) == {
        "shop.mail": {},
        "shop.pay": {"rate_limit": "10/m", "time_limit": "30", "soft_time_limit": "2.5"},
    }
    assert task_limits({"odd": 1}) == {}
