"""Clocks that are set while they run, a worker's or our own: times go on as before, and nobody is accused."""

import msgspec
import pytest

from celery_monitor.core.workers import Clocks, OwnClock, after_setting, duplicate_pids, fold_worker, is_skewed
from celery_monitor.records.event import Event
from celery_monitor.records.worker import Worker, WorkerStatus
from tests.factories import NOW, make_event

SKEW = 0.02


def beat(number: int, stamp: float, pid: int = 4711) -> Event:
    return make_event("worker-heartbeat", timestamp=stamp, clock=number, pid=pid)


def heard(clocks: Clocks, number: int, stamp: float, arrived: float, pid: int = 4711) -> float:
    return clocks.corrected(beat(number, stamp, pid), arrived, {"worker1@shop": SKEW}).timestamp


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_times_go_on_as_before_a_jump_and_after_the_way_back(jump: float) -> None:
    clocks = Clocks()
    for number in range(1, 4):
        assert heard(clocks, number, NOW + number, NOW + number + SKEW) == NOW + number
    for number in range(4, 8):
        assert heard(clocks, number, NOW + number + jump, NOW + number + SKEW) == pytest.approx(NOW + number)
    assert clocks.jump_of("worker1@shop", 4711) == pytest.approx(jump)
    assert heard(clocks, 8, NOW + 8, NOW + 8 + SKEW) == pytest.approx(NOW + 8)
    assert clocks.jump_of("worker1@shop", 4711) == pytest.approx(0.0, abs=1e-3)


def test_a_backlog_a_late_event_and_a_receiver_whose_clock_went_back_are_no_jump() -> None:
    clocks = Clocks()
    for number in range(1, 100):  # of an hour, read at once
        assert heard(clocks, number, NOW + 40 * number, NOW + 4000) == NOW + 40 * number
    assert heard(clocks, 50, NOW + 2000, NOW + 4001) == NOW + 2000
    assert heard(clocks, 100, NOW + 3962, NOW + 400) == NOW + 3962
    assert clocks.jump_of("worker1@shop", 4711) == 0.0


def test_a_new_process_begins_with_its_own_clock() -> None:
    clocks = Clocks()
    heard(clocks, 1, NOW, NOW)
    heard(clocks, 2, NOW + 3601, NOW + 1)
    assert heard(clocks, 1, NOW + 3602, NOW + 2, pid=4712) == NOW + 3602
    clocks.restore("worker2@shop", 31, 3600.0)
    assert clocks.jump_of("worker2@shop", 31) == 3600.0
    assert clocks.jump_of("worker2@shop", 32) == 0.0


def test_a_jump_within_a_delivery_is_no_steady_clock() -> None:
    clocks = Clocks()
    assert not clocks.steady([beat(1, NOW)])  # nothing is known yet
    heard(clocks, 1, NOW, NOW + SKEW)
    assert clocks.steady([beat(2, NOW + 1), beat(3, NOW + 2)])
    assert not clocks.steady([beat(4, NOW + 3), beat(5, NOW - 3600)])
    assert heard(clocks, 4, NOW + 3, NOW + 3 + SKEW) == NOW + 3
    assert heard(clocks, 5, NOW - 3596, NOW + 4 + SKEW) == pytest.approx(NOW + 4)
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
