"""Who may be stuck, by what their tasks usually take."""

import pytest

from celery_monitor.core.workflow import (
    ActiveTask,
    SlowWorkflow,
    StalledWorker,
    Usual,
    long_tasks,
    may_be_busy,
    slow_workflows,
    stalled_workers,
)
from celery_monitor.records.worker import Worker, WorkerStatus
from tests.factories import NOW

USUAL = {"shop.pick": Usual(40, 0.5), "shop.report": Usual(40, 20.0), "shop.rare": Usual(4, 0.5)}


def worker(**fields: object) -> Worker:
    known = {"cluster": "shop", "hostname": "pick@shop", "status": WorkerStatus.ONLINE, "pool_size": 2, "active": 2}
    return Worker(**{**known, **fields})  # type: ignore[arg-type]


def held(seconds: float, name: str = "shop.pick", root: str | None = None, *, started: bool = True) -> ActiveTask:
    return ActiveTask("shop", "pick@shop", name, NOW - seconds, started, root)


def stalled(*tasks: ActiveTask, **fields: object) -> list[StalledWorker]:
    return stalled_workers([worker(**fields)], tasks, USUAL, NOW)


def test_full_pool_of_unusually_long_tasks_is_suspect() -> None:
    assert stalled(held(4.0), held(9.0)) == [StalledWorker("pick@shop", 9.0, 2, True, 0.5)]


def test_worker_that_has_taken_tasks_and_starts_none_is_suspect() -> None:
    waiting = held(4.0, started=False)
    assert stalled(waiting, active=0) == [StalledWorker("pick@shop", 4.0, 1, False)]
    assert stalled(waiting, held(6.0), active=1) == [StalledWorker("pick@shop", 6.0, 1, True, 0.5)]


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        [held(2.0), held(2.9)],
        [held(4.0)],  # there is room for another
        [held(4.0), held(0.2)],  # one of its processes works
        [held(30.0, "shop.report"), held(9.0)],  # usual for the first
        [held(30.0, "shop.new"), held(9.0), held(20.0, started=False)],  # nobody knows
        [held(30.0, "shop.rare"), held(9.0)],  # too few to know
        [held(2.0, started=False)],
    ],
)
def test_nobody_is_accused_of_what_is_usual_or_not_known(tasks: list[ActiveTask]) -> None:
    assert stalled(*tasks) == []


def test_heartbeat_that_says_less_is_busy_is_believed() -> None:
    assert stalled(held(4.0), held(9.0), active=0) == []  # their ends were missed, or are never sent


def test_heartbeat_that_tells_of_more_tasks_than_are_known_accuses_nobody() -> None:
    assert stalled(held(4.0), held(9.0), active=3) == []
    assert stalled(held(4.0, started=False), active=1) == []


def test_tasks_that_were_not_all_read_are_counted_as_at_least_so_many() -> None:
    waiting = [held(seconds, started=False) for seconds in (4.0, 6.0)]
    many = stalled_workers([worker(active=0)], waiting, USUAL, NOW, frozenset({("shop", "pick@shop")}))
    assert many == [StalledWorker("pick@shop", 6.0, 2, False, at_least=True)]


@pytest.mark.parametrize("status", [WorkerStatus.SILENT, WorkerStatus.OFFLINE])
def test_of_who_is_silent_more_is_known_than_that(status: WorkerStatus) -> None:
    assert stalled(held(4.0), held(9.0), status=status) == []


def test_workflow_waits_for_its_longest_task() -> None:
    tasks = [held(4.0, root="r1"), held(9.0, root="r1"), held(9.0), held(2.0, root="r2"), held(7.0, "shop.new", "r3")]
    assert slow_workflows([*tasks, held(30.0, "shop.report", "r4")], USUAL, NOW) == [
        SlowWorkflow("r1", "shop.pick", 9.0, 0.5, "pick@shop"),
        SlowWorkflow("r3", "shop.new", 7.0, None, "pick@shop"),
    ]


def test_only_a_solo_pool_may_be_busy_instead_of_silent() -> None:
    assert may_be_busy(worker(pool="solo", status=WorkerStatus.SILENT))
    assert not may_be_busy(worker(pool="solo", status=WorkerStatus.OFFLINE))
    assert not may_be_busy(worker(pool="prefork", status=WorkerStatus.SILENT))


def test_a_task_far_beyond_what_is_usual_is_named_with_its_process() -> None:
    tasks = [held(9.0), held(30.0, root="r1"), held(2.0), held(30.0, "shop.new")]
    assert [
        (each.hostname, each.name, each.seconds, each.usual, each.root_id) for each in long_tasks(tasks, USUAL, NOW)
    ] == [
        ("pick@shop", "shop.pick", 30.0, 0.5, "r1"),
        ("pick@shop", "shop.pick", 9.0, 0.5, None),
    ]
