"""Workers: clocks that are set while they run, and several processes with one node name."""

import msgspec
import pytest

from celery_monitor.core.workers import (
    Clocks,
    OwnClock,
    after_setting,
    duplicate_pids,
    fold_worker,
    is_skewed,
    process_of,
    process_state,
    task_process_state,
)
from celery_monitor.records.event import Event
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from tests.factories import NOW, make_event, make_run, make_task

SKEW = 0.02


def beat(number: int, stamp: float, pid: int = 4711) -> Event:
    return make_event("worker-heartbeat", timestamp=stamp, clock=number, pid=pid)


def corrected_time(clocks: Clocks, number: int, stamp: float, arrived: float, pid: int = 4711) -> float:
    return clocks.corrected(beat(number, stamp, pid), arrived, {"worker1@shop": SKEW}).timestamp


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_times_go_on_as_before_a_jump_and_after_the_way_back(jump: float) -> None:
    clocks = Clocks()
    for number in range(1, 4):
        assert corrected_time(clocks, number, NOW + number, NOW + number + SKEW) == NOW + number
    for number in range(4, 8):
        assert corrected_time(clocks, number, NOW + number + jump, NOW + number + SKEW) == pytest.approx(NOW + number)
    assert clocks.jump_of("worker1@shop", 4711) == pytest.approx(jump)
    assert corrected_time(clocks, 8, NOW + 8, NOW + 8 + SKEW) == pytest.approx(NOW + 8)
    assert clocks.jump_of("worker1@shop", 4711) == pytest.approx(0.0, abs=1e-3)


def test_a_backlog_a_late_event_and_a_receiver_whose_clock_went_back_are_no_jump() -> None:
    clocks = Clocks()
    for number in range(1, 100):  # of an hour, read at once
        assert corrected_time(clocks, number, NOW + 40 * number, NOW + 4000) == NOW + 40 * number
    assert corrected_time(clocks, 50, NOW + 2000, NOW + 4001) == NOW + 2000
    assert corrected_time(clocks, 100, NOW + 3962, NOW + 400) == NOW + 3962
    assert clocks.jump_of("worker1@shop", 4711) == 0.0


def test_a_new_process_begins_with_its_own_clock() -> None:
    clocks = Clocks()
    corrected_time(clocks, 1, NOW, NOW)
    corrected_time(clocks, 2, NOW + 3601, NOW + 1)
    assert corrected_time(clocks, 1, NOW + 3602, NOW + 2, pid=4712) == NOW + 3602
    clocks.restore("worker2@shop", 31, 3600.0)
    assert clocks.jump_of("worker2@shop", 31) == 3600.0
    assert clocks.jump_of("worker2@shop", 32) == 0.0


def test_a_jump_within_a_delivery_is_no_steady_clock() -> None:
    clocks = Clocks()
    assert not clocks.steady([beat(1, NOW)])  # nothing is known yet
    corrected_time(clocks, 1, NOW, NOW + SKEW)
    assert clocks.steady([beat(2, NOW + 1), beat(3, NOW + 2)])
    assert not clocks.steady([beat(4, NOW + 3), beat(5, NOW - 3600)])
    assert corrected_time(clocks, 4, NOW + 3, NOW + 3 + SKEW) == NOW + 3
    assert corrected_time(clocks, 5, NOW - 3596, NOW + 4 + SKEW) == pytest.approx(NOW + 4)
    assert not clocks.steady([beat(6, NOW - 3595)])


def known_worker() -> Worker:
    """Heard for ten seconds, ``SKEW`` after each of its beats."""
    worker = None
    for number in range(0, 10, 2):
        worker = fold_worker(worker, beat(number, NOW + number), "shop", NOW + number + SKEW)
    assert worker is not None
    return worker


def test_workers_are_heard_at_once_after_our_clock_went_back() -> None:
    """Also by a receiver that was started anew, and knows nothing of its clock's past."""
    worker = fold_worker(known_worker(), beat(10, NOW + 10), "shop", NOW + 10 + SKEW - 3600)
    assert worker.last_heartbeat == pytest.approx(NOW + 10 + SKEW - 3600)
    offline = make_event("worker-offline", timestamp=NOW + 11, clock=11, pid=4711)
    assert fold_worker(worker, offline, "shop", NOW + 11 + SKEW - 3600).status is WorkerStatus.OFFLINE


def test_workers_are_heard_at_once_after_all_clocks_went_back() -> None:
    worker = fold_worker(known_worker(), beat(10, NOW + 10 - 3600), "shop", NOW + 10 + SKEW - 3600)
    assert worker.last_heartbeat == pytest.approx(NOW + 10 + SKEW - 3600)
    successor = fold_worker(known_worker(), beat(1, NOW + 10 - 3600, pid=99), "shop", NOW + 10 + SKEW - 3600)
    assert successor.pid == 99


def test_an_event_that_comes_late_or_again_is_still_older() -> None:
    worker = known_worker()
    offline = make_event("worker-offline", timestamp=NOW + 7, clock=7, pid=4711)
    assert fold_worker(worker, offline, "shop", NOW + 7 + SKEW) is worker
    late = fold_worker(worker, beat(3, NOW + 3, pid=99), "shop", NOW + 3 + SKEW)
    assert [each.pid for each in late.others] == [99]  # another process of the name, and not the present one
    assert msgspec.structs.replace(late, others=()) == worker
    assert duplicate_pids(late) == ()


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 7.0])
def test_what_is_known_of_a_worker_is_told_by_the_clock_as_it_was_set(seconds: float) -> None:
    worker = after_setting(known_worker(), seconds)
    for number in range(10, 20, 2):
        worker = fold_worker(worker, beat(number, NOW + number), "shop", NOW + number + SKEW + seconds)
        assert worker.last_heartbeat == pytest.approx(NOW + number + SKEW + seconds)
    assert worker.skew == pytest.approx(SKEW + seconds)
    assert is_skewed(worker)
    together = make_worker_whose_clock_was_set_too(worker, seconds)
    assert not is_skewed(together)


def make_worker_whose_clock_was_set_too(worker: Worker, seconds: float) -> Worker:
    return msgspec.structs.replace(worker, jump=seconds)


def test_our_own_clock_is_set_and_what_arrived_before_is_read_again() -> None:
    own = OwnClock(NOW, 50.0)
    assert own.jump(NOW + 10.4, 60.0) == 0.0  # drift
    assert own.current(NOW + 9, NOW + 10) == NOW + 9
    assert own.jump(NOW + 3611, 61.0) == pytest.approx(3599.6)
    assert own.current(NOW + 10.9, NOW + 3611) == pytest.approx(NOW + 3610.5)
    assert own.current(NOW + 3610.9, NOW + 3611) == NOW + 3610.9
    assert own.jump(NOW + 12, 62.0) == pytest.approx(-3600)
    assert own.current(NOW + 3611.5, NOW + 12) == pytest.approx(NOW + 11.5)
    assert own.current(NOW + 11.9, NOW + 12) == NOW + 11.9
    assert own.current(NOW - 3000, NOW + 13) == NOW - 3000  # from the disk, long after


def folded(*events: tuple[str, float, int], worker: Worker | None = None) -> Worker:
    """The worker after these: kind, seconds and process."""
    for kind, second, pid in events:
        freq = None if kind == "offline" else 3.0
        event = make_event(f"worker-{kind}", timestamp=NOW + second, pid=pid, freq=freq, active=pid % 7)
        worker = fold_worker(worker, event, "shop", NOW + second + 0.1)
    assert worker is not None
    return worker


def test_processes_that_beat_in_turn_are_two_and_neither_takes_the_name() -> None:
    worker = folded(*(("heartbeat", second, 31 + second % 2) for second in range(12)))
    assert duplicate_pids(worker) == (31, 32)
    assert (worker.pid, worker.active) == (32, 4)
    assert process_state(worker, 31) == "online"
    other = process_of(worker, 31)
    assert other is not None
    assert (other.active, other.last_heartbeat) == (3, NOW + 10.1)


def test_restart_is_no_second_process() -> None:
    worker = folded(("heartbeat", 0, 31), ("heartbeat", 3, 31), ("online", 4, 32), ("heartbeat", 6, 31))
    assert worker.pid == 32
    worker = folded(*(("heartbeat", second, 32) for second in range(7, 25, 3)), worker=worker)
    assert duplicate_pids(worker) == ()
    assert process_state(worker, 31) == "silent"


def test_goodbye_of_the_old_process_is_not_the_new_ones() -> None:
    worker = folded(("heartbeat", 0, 31), ("online", 4, 32), ("offline", 5, 31), ("heartbeat", 7, 32))
    assert (worker.pid, worker.status) == (32, WorkerStatus.ONLINE)
    assert process_state(worker, 31) == "shutting down"
    assert duplicate_pids(folded(*(("heartbeat", second, 32) for second in range(9, 30, 3)), worker=worker)) == ()


def test_goodbye_before_the_new_process_is_kept() -> None:
    worker = folded(("heartbeat", 0, 31), ("offline", 5, 31))
    assert (worker.status, process_state(worker, 31)) == (WorkerStatus.OFFLINE, "shutting down")
    worker = folded(("online", 9, 32), worker=worker)
    assert (worker.pid, worker.status) == (32, WorkerStatus.ONLINE)
    assert process_state(worker, 31) == "shutting down"
    assert process_state(worker, 31, NOW + 500) == "shutting down"
    assert process_state(worker, 31, NOW + 700) == "offline"
    moved = after_setting(worker, 60.0)
    assert moved.others[0].offline_at == NOW + 65.1


def test_last_task_event_of_a_process_that_said_goodbye_does_not_bring_it_back() -> None:
    worker = folded(("heartbeat", 0, 31), ("offline", 5, 31))
    event = make_event("task-succeeded", timestamp=NOW + 20, pid=31)
    assert fold_worker(worker, event, "shop", NOW + 20).status is WorkerStatus.OFFLINE
    after = fold_worker(folded(("online", 9, 32), worker=worker), event, "shop", NOW + 20)
    assert (after.pid, process_state(after, 31)) == (32, "shutting down")


def test_second_process_takes_the_name_when_the_first_falls_silent() -> None:
    worker = folded(*(("heartbeat", second, 31 + second % 2) for second in range(12)))
    worker = folded(*(("heartbeat", second, 31) for second in range(12, 24)), worker=worker)
    assert worker.pid == 31
    assert process_state(worker, 32) == "silent"
    assert duplicate_pids(worker) == ()


def test_second_process_takes_the_name_when_the_first_says_goodbye() -> None:
    worker = folded(*(("heartbeat", second, 31 + second % 2) for second in range(12)), ("offline", 12, 32))
    assert worker.status is WorkerStatus.OFFLINE
    worker = folded(("heartbeat", 14, 31), worker=worker)
    assert (worker.pid, worker.status, process_state(worker, 32)) == (31, WorkerStatus.ONLINE, "shutting down")


def test_state_of_the_holder_is_of_the_process_that_has_the_task() -> None:
    worker = folded(("heartbeat", 0, 31), ("online", 4, 32), ("offline", 5, 31))
    task = make_task(runs=[make_run(pid=31)])
    assert task_process_state(task, [worker]) == "shutting down"
    assert task_process_state(make_task(runs=[make_run(pid=32)]), [worker]) == "online"
    assert task_process_state(task, []) is None
    assert task_process_state(make_task(state=TaskState.SUCCESS, runs=[make_run(pid=31)]), [worker]) is None
