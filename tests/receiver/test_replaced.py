"""Tasks that go on under their id as another call, and runs that end in other ways than they report: real workers."""

from pathlib import Path

import pytest

from celery_monitor.core.arguments import judge
from celery_monitor.records.task import Outcome, Task, TaskState
from tests.receiver.watching import Watching, watching
from tests.workers import Worker, running_worker, wait_for

DONE = {TaskState.SUCCESS, TaskState.FAILURE, TaskState.REVOKED}


def _names(task: Task) -> list[str | None]:
    return [(run.invocation or task).name for run in task.runs]


def _ended(watch: Watching, task_id: str, runs: int, seconds: float = 30) -> Task:
    def reached() -> Task | None:
        task = watch.task(task_id)
        over = task is not None and task.state in DONE and len(task.runs) == runs
        return task if over and task is not None and task.runs[-1].ended is not None else None

    task: Task = wait_for(reached, seconds, f"the end of {task_id} after {runs} runs")
    return task


@pytest.mark.parametrize("sent_events", [True, False])
def test_replaced_tasks(redis_url: str, tmp_path: Path, sent_events: bool) -> None:
    config = {"task_send_sent_event": sent_events, "result_backend": redis_url}
    other_worker = running_worker(redis_url, config=config, concurrency=1)
    with (
        watching(redis_url, tmp_path) as watch,
        running_worker(redis_url, config=config) as worker,
        other_worker as other,
    ):
        sent = {
            "start": worker.send("start", "/data/a.csv"),
            "elsewhere": worker.send("start", "/data/b.csv", kwargs={"queue": other.queue}),
            "count_down": worker.send("count_down", 2),
            "start_group": worker.send("start_group"),
            "retry_then_replace": worker.send("retry_then_replace", "of /data/c.csv"),
        }
        runs = {"start": 2, "elsewhere": 2, "count_down": 3, "start_group": 2, "retry_then_replace": 3}
        found = {name: _ended(watch, task_id, runs[name]) for name, task_id in sent.items()}
    for name, task in found.items():
        assert task.root_id == sent[name], name
    start, elsewhere = found["start"], found["elsewhere"]
    assert (start.state, start.name, start.args) == (
        TaskState.FAILURE,
        "basic.fail_row",
        "('row 17', 'of /data/a.csv')",
    )
    assert judge(start).args_value == ["row 17", "of /data/a.csv"]
    assert _names(start) == ["basic.start", "basic.fail_row"]
    assert [run.outcome for run in start.runs] == [Outcome.REPLACED, Outcome.FAILED]
    assert start.runs[0].runtime_estimated
    assert (elsewhere.worker, elsewhere.runs[0].worker) == (other.hostname, worker.hostname)
    assert elsewhere.queue in ({other.queue} if sent_events else {other.queue, None})  # never the first call's
    assert [run.outcome for run in found["count_down"].runs] == [
        Outcome.REPLACED,
        Outcome.REPLACED,
        Outcome.SUCCEEDED,
    ]
    assert (found["count_down"].args, found["count_down"].result) == ("(0,)", "0")
    assert _names(found["start_group"]) == ["basic.start_group", "celery.accumulate"]
    assert [run.outcome for run in found["start_group"].runs] == [Outcome.REPLACED, Outcome.SUCCEEDED]
    assert [run.outcome for run in found["retry_then_replace"].runs] == [
        Outcome.RETRIED,
        Outcome.REPLACED,
        Outcome.FAILED,
    ]
    assert found["retry_then_replace"].name == "basic.fail_row"


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_greenlet_that_was_terminated_is_revoked_though_it_reports_success(
    pool: str, redis_url: str, tmp_path: Path
) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, pool=pool, concurrency=4) as worker:
        killed = _terminate_one(watch, worker)
    assert (killed.state, [run.outcome for run in killed.runs]) == (TaskState.REVOKED, [Outcome.REVOKED])
    assert (killed.runtime is not None, killed.runtime_estimated) == (True, True)


def test_second_delivery_to_one_process_is_a_run_of_its_own(redis_url: str, tmp_path: Path) -> None:
    options = {"visibility_timeout": 3, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    threads = running_worker(redis_url, pool="threads", config={"broker_transport_options": options})
    with watching(redis_url, tmp_path) as watch, threads as worker:
        twice = _ended(watch, worker.send("outlast", str(tmp_path)), 2, 60)
    first, second = twice.runs
    assert (first.result, second.result, first.pid) == ("'first'", "'second'", second.pid)
    assert first.started is not None
    assert second.started is not None
    assert first.started < second.started
    for run in twice.runs:
        assert run.ended == pytest.approx((run.started or 0) + (run.runtime or 0), abs=0.4)
        assert not run.runtime_estimated


def _terminate_one(watch: Watching, worker: Worker) -> Task:
    task_id = worker.send("sleep", 30)
    watch.wait_for_state(task_id, TaskState.STARTED)
    mark = worker.send("add", 1, 2)
    watch.wait_for_state(mark, TaskState.SUCCESS)
    worker.app.control.revoke(task_id, terminate=True)
    watch.wait_for_state(task_id, TaskState.REVOKED)
    mark = worker.send("add", 3, 4)  # behind the success that is reported of what was killed
    watch.wait_for_state(mark, TaskState.SUCCESS)
    task = watch.task(task_id)
    assert task is not None
    return task
