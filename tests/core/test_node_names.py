"""Processes under one node name: a restart, a warm shutdown, and two workers by mistake."""

from celery_monitor.core.workers import (
    after_setting,
    duplicate_pids,
    fold_worker,
    process_of,
    process_state,
    task_process_state,
)
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from tests.factories import NOW, make_event, make_run, make_task


def told(*events: tuple[str, float, int], worker: Worker | None = None) -> Worker:
    """The worker after these: kind, seconds and process."""
    for kind, second, pid in events:
        freq = None if kind == "offline" else 3.0
        event = make_event(f"worker-{kind}", timestamp=NOW + second, pid=pid, freq=freq, active=pid % 7)
        worker = fold_worker(worker, event, "shop", NOW + second + 0.1)
    assert worker is not None
    return worker


def test_processes_that_beat_in_turn_are_two_and_neither_takes_the_name() -> None:
    worker = told(*(("heartbeat", second, 31 + second % 2) for second in range(12)))
    assert duplicate_pids(worker) == (31, 32)
    assert (worker.pid, worker.active) == (32, 4)
    assert process_state(worker, 31) == "online"
    other = process_of(worker, 31)
    assert other is not None
    assert (other.active, other.last_heartbeat) == (3, NOW + 10.1)


def test_restart_is_no_second_process() -> None:
    worker = told(("heartbeat", 0, 31), ("heartbeat", 3, 31), ("online", 4, 32), ("heartbeat", 6, 31))
    assert worker.pid == 32
    worker = told(*(("heartbeat", second, 32) for second in range(7, 25, 3)), worker=worker)
    assert duplicate_pids(worker) == ()
    assert process_state(worker, 31) == "silent"


def test_goodbye_of_the_old_process_is_not_the_new_ones() -> None:
    worker = told(("heartbeat", 0, 31), ("online", 4, 32), ("offline", 5, 31), ("heartbeat", 7, 32))
    assert (worker.pid, worker.status) == (32, WorkerStatus.ONLINE)
    assert process_state(worker, 31) == "shutting down"
    assert duplicate_pids(told(*(("heartbeat", second, 32) for second in range(9, 30, 3)), worker=worker)) == ()


def test_goodbye_before_the_new_process_is_kept() -> None:
    worker = told(("heartbeat", 0, 31), ("offline", 5, 31))
    assert (worker.status, process_state(worker, 31)) == (WorkerStatus.OFFLINE, "shutting down")
    worker = told(("online", 9, 32), worker=worker)
    assert (worker.pid, worker.status) == (32, WorkerStatus.ONLINE)
    assert process_state(worker, 31) == "shutting down"
    assert process_state(worker, 31, NOW + 500) == "shutting down"
    assert process_state(worker, 31, NOW + 700) == "offline"
    moved = after_setting(worker, 60.0)
    assert moved.others[0].offline_at == NOW + 65.1


def test_last_task_event_of_a_process_that_said_goodbye_does_not_bring_it_back() -> None:
    worker = told(("heartbeat", 0, 31), ("offline", 5, 31))
    event = make_event("task-succeeded", timestamp=NOW + 20, pid=31)
    assert fold_worker(worker, event, "shop", NOW + 20).status is WorkerStatus.OFFLINE
    after = fold_worker(told(("online", 9, 32), worker=worker), event, "shop", NOW + 20)
    assert (after.pid, process_state(after, 31)) == (32, "shutting down")


def test_second_process_takes_the_name_when_the_first_falls_silent() -> None:
    worker = told(*(("heartbeat", second, 31 + second % 2) for second in range(12)))
    worker = told(*(("heartbeat", second, 31) for second in range(12, 24)), worker=worker)
    assert worker.pid == 31
    assert process_state(worker, 32) == "silent"
    assert duplicate_pids(worker) == ()


def test_second_process_takes_the_name_when_the_first_says_goodbye() -> None:
    worker = told(*(("heartbeat", second, 31 + second % 2) for second in range(12)), ("offline", 12, 32))
    assert worker.status is WorkerStatus.OFFLINE
    worker = told(("heartbeat", 14, 31), worker=worker)
    assert (worker.pid, worker.status, process_state(worker, 32)) == (31, WorkerStatus.ONLINE, "shutting down")


def test_state_of_the_holder_is_of_the_process_that_has_the_task() -> None:
    worker = told(("heartbeat", 0, 31), ("online", 4, 32), ("offline", 5, 31))
    task = make_task(runs=[make_run(pid=31)])
    assert task_process_state(task, [worker]) == "shutting down"
    assert task_process_state(make_task(runs=[make_run(pid=32)]), [worker]) == "online"
    assert task_process_state(task, []) is None
    assert task_process_state(make_task(state=TaskState.SUCCESS, runs=[make_run(pid=31)]), [worker]) is None
