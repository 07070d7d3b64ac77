"""Celery's own ways to fail, as a real worker reports them, get names that a person understands."""

import time
from pathlib import Path

import pytest

from celery_monitor.core.failures import signature
from celery_monitor.core.filters.parser import parse
from celery_monitor.records.task import TaskState
from celery_monitor.store.tasks.page import find_tasks
from tests.receiver.watching import Watching, watching
from tests.workers import running_worker


def _failed(watch: Watching, task_id: str) -> tuple[str, str, str | None]:
    task = watch.wait_for_state(task_id, TaskState.FAILURE)
    assert not str(task.exception).startswith("ExceptionWithTraceback")
    return signature(task.name, task.exception, task.traceback)[:3]


def test_each_way_to_fail_is_named(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, concurrency=2) as worker:
        sent = {name: worker.send(name) for name in ("fail", "crash", "overrun", "soft_overrun", "recurse")}
        sent["add"] = worker.send("add", 1, 2, 3)
        found = {name: _failed(watch, task_id) for name, task_id in sent.items()}
        tasks = {name: watch.task(task_id) for name, task_id in sent.items()}
        over = parse("runtime:>900ms", time.time())
        slow = {task.id for task in find_tasks(watch.store, over, limit=50).items}
    assert found == {
        "fail": ("ValueError", "no such order", "apps/basic.py in fail"),
        "crash": ("WorkerLostError", "its worker process died: signal 9 (SIGKILL)", None),
        "overrun": ("TimeLimitExceeded", "ran over its hard time limit and was killed", None),
        "soft_overrun": ("SoftTimeLimitExceeded", "ran over its soft time limit", "apps/basic.py in soft_overrun"),
        "recurse": ("RuntimeError", "the bottom", "apps/basic.py in _descend"),
        "add": ("TypeError", "add() takes <n> positional arguments but <n> were given", None),
    }
    estimated = {name for name, task in tasks.items() if task is not None and task.runtime_estimated}
    assert estimated == {"crash", "overrun"}
    overrun = tasks["overrun"]
    assert overrun is not None
    assert overrun.runtime == pytest.approx(1, abs=0.9)  # its hard limit; the event of its end names no time
    assert sent["overrun"] in slow
