"""Revoking by stamp against real workers: the command goes to all of them, so each test has none but its own."""

from pathlib import Path
from typing import Any

import pytest

from celery_monitor.control.revoke import RevokeStamped
from celery_monitor.errors import Conflict
from celery_monitor.records.task import TaskState
from tests.control.test_workers_live import outcome_of
from tests.control.watch import CLUSTER, watching
from tests.workers import running_worker


def test_tasks_with_a_stamp_are_revoked(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        watch.wait_for_worker(worker)
        outcome, message = outcome_of(watch, RevokeStamped(cluster=CLUSTER, workers=(), header="batch", stamps=("b7",)))
        assert (outcome, "skip tasks with this stamp" in message) == ("done", True)
        assert watch.last_action().target == "batch=b7"
        stamped = worker.send("add", 1, 2, headers={"stamps": {"batch": ["b7"]}, "stamped_headers": ["batch"]})
        watch.wait_for(stamped, TaskState.REVOKED)
        watch.wait_for(worker.send("add", 1, 2), TaskState.SUCCESS)


def test_running_task_with_a_stamp_is_terminated(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url) as worker:
        watch.wait_for_worker(worker)
        headers: dict[str, Any] = {"stamps": {"batch": ["b8"]}, "stamped_headers": ["batch"]}
        running = worker.send("sleep", 30, headers=headers)
        watch.wait_for(running, TaskState.STARTED)
        command = RevokeStamped(
            cluster=CLUSTER, workers=(), header="batch", stamps=("b8",), terminate=True, signal="SIGKILL"
        )
        outcome, message = outcome_of(watch, command)
        assert (outcome, "Running ones are terminated" in message) == ("done", True)
        watch.wait_for(running, TaskState.REVOKED)


def test_nobody_to_hear_of_a_stamp(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, pytest.raises(Conflict, match="No worker is up"):
        watch.perform(RevokeStamped(cluster=CLUSTER, workers=(), header="batch", stamps=("b7",)))
