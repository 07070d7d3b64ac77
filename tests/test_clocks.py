"""A worker's clock that is set while it runs: its times go on as before."""

import pytest

from monitor.clocks import Clocks
from monitor.records import Event
from tests.factories import NOW
from tests.factories import make_event

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
