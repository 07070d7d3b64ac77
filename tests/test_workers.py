"""The tests' own workers: they come up on each broker, do what is asked, and leave nothing behind."""

import os

import pytest

from tests.workers import running_worker, wait_for


def test_worker_runs_a_task_and_ends_with_its_pool(broker_url: str) -> None:
    with running_worker(broker_url, concurrency=1) as worker:
        task_id = worker.send("add", 20, 22)
        wait_for(lambda: f"basic.add[{task_id}] succeeded" in worker.log, what="success in the worker's log")
    with pytest.raises(ProcessLookupError):
        os.killpg(worker.pid, 0)
