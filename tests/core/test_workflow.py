from typing import Any

import pytest

from celery_monitor.core.workflow import (
    FEW,
    PAGE_ROWS,
    ActiveTask,
    Opened,
    SlowWorkflow,
    StalledWorker,
    Usual,
    build,
    critical_path,
    long_tasks,
    may_be_busy,
    rows_to,
    slow_workflows,
    stalled_workers,
    state_of,
    tree_rows,
    waiting_for,
)
from celery_monitor.records.task import Step, TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from tests.factories import NOW

DONE = TaskState.SUCCESS


def step(number: int, parent: int | None = 0, **more: object) -> Step:
    given: dict[str, object] = {"name": "shop.pick", "state": DONE, "started": 50.0 + number, "ended": 90.0 + number}
    parent_id = None if parent is None else f"s{parent}"
    return Step(id=f"s{number}", parent_id=parent_id, **{**given, **more})  # type: ignore[arg-type]


def ids(found: list[Step]) -> list[str]:
    return [each.id for each in found]


def test_subtrees_are_counted_with_their_top() -> None:
    tree = build([step(0, None), step(1), step(2, 1, state=TaskState.FAILURE), step(3, 1)])
    assert tree.below["s1"] == {DONE: 2, TaskState.FAILURE: 1}
    assert sum(tree.below["s0"].values()) == 4


def test_who_has_no_known_parent_hangs_on_the_root_and_is_marked() -> None:
    tree = build([step(0, None), step(1, 77), step(2, None), step(3, 3)])
    assert tree.children == {"s0": ["s1", "s2", "s3"]}
    assert tree.detached == {"s1", "s2", "s3"}
    assert [row.detached for row in tree_rows(tree)] == [False, True, True, True]


def test_circle_of_parents_is_shown_once() -> None:
    tree = build([step(0, None), step(1, 2), step(2, 1), step(3, 2)])
    assert sorted(row.step.id for row in tree_rows(tree)) == ["s0", "s1", "s2", "s3"]


def test_root_that_is_not_in_the_record_has_no_state() -> None:
    tree = build([Step(id="s0"), step(1)])
    assert tree.below["s0"] == {None: 1, DONE: 1}


def test_critical_path_of_a_finished_workflow_leads_to_its_end() -> None:
    tree = build([step(0, None), step(1), step(2, 1, ended=500.0), step(3)])
    assert ids(critical_path(tree)) == ["s0", "s1", "s2"]


def test_critical_path_of_an_unfinished_one_leads_to_what_was_not_heard_of_for_longest() -> None:
    stuck: dict[str, Any] = {"state": TaskState.STARTED, "ended": None}
    tree = build([step(0, None), step(1, started=70.0, **stuck), step(2, 3, started=60.0, **stuck), step(3)])
    assert ids(critical_path(tree)) == ["s0", "s3", "s2"]


def test_waiting_tells_state_name_and_queue() -> None:
    waits: dict[str, Any] = {"state": TaskState.PENDING, "queue": "orders", "started": None, "ended": None}
    tree = build([step(0, None), step(1, **waits), step(2, **waits), step(3)])
    assert waiting_for(tree) == [(TaskState.PENDING, "shop.pick", "orders", 2)]


def test_tasks_that_run_are_one_kind_whatever_queue_they_came_by() -> None:
    runs: dict[str, Any] = {"state": TaskState.STARTED, "ended": None}
    tree = build([step(0, None), step(1, queue="orders", **runs), step(2, queue="returns", **runs)])
    assert waiting_for(tree) == [(TaskState.STARTED, "shop.pick", None, 2)]


def test_many_children_of_one_name_are_one_line_until_opened() -> None:
    many = [step(number) for number in range(1, 10_001)]
    tree = build([step(0, None), *many, step(10_001, name="shop.add_up")])
    folded = tree_rows(tree)
    assert [(row.bundle, row.tasks) for row in folded] == [(False, 10_002), (True, 10_000), (False, 1)]
    opened = tree_rows(tree, Opened("s0", "shop.pick", 300))
    assert [row.step.id for row in opened[2:4]] == ["s301", "s302"]
    assert (len(opened), opened[1].opened, opened[-1].step.name) == (3 + PAGE_ROWS, True, "shop.add_up")


def test_few_children_are_shown_one_by_one() -> None:
    tree = build([step(0, None), *(step(number) for number in range(1, FEW + 1))])
    assert len(tree_rows(tree)) == FEW + 1


def test_search_keeps_the_tasks_above() -> None:
    tree = build([step(0, None), step(1), step(2, 1), step(3, 2), *(step(number, 2) for number in range(4, 20))])
    assert [(row.step.id, row.depth) for row in rows_to(tree, ["s17", "gone"])] == [
        ("s0", 0),
        ("s1", 1),
        ("s2", 2),
        ("s17", 3),
    ]


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ("SUCCESS STARTED PENDING", "running"),
        ("FAILURE STARTED", "running"),
        ("SUCCESS RECEIVED", "waiting"),
        ("FAILURE LOST RETRY", "waiting"),
        ("SUCCESS SCHEDULED", "waiting"),
        ("SUCCESS FAILURE LOST", "lost"),
        ("SUCCESS FAILURE REVOKED", "failed"),
        ("REJECTED REVOKED SUCCESS", "rejected"),
        ("SUCCESS REVOKED", "revoked"),
        ("SUCCESS SUCCESS", "succeeded"),
    ],
)
def test_a_workflow_has_the_state_of_what_goes_on_in_it_else_of_its_worst_end(states: str, state: str) -> None:
    assert state_of([TaskState(each) for each in states.split()]) == state


def test_a_task_that_is_not_in_the_record_says_nothing_of_the_workflow() -> None:
    assert state_of([None, TaskState.SUCCESS]) == "succeeded"
    assert state_of([None]) is None


USUAL = {"shop.pick": Usual(40, 0.5), "shop.report": Usual(40, 20.0), "shop.rare": Usual(4, 0.5)}


def worker(**fields: object) -> Worker:
    known = {"cluster": "shop", "hostname": "pick@shop", "status": WorkerStatus.ONLINE, "pool_size": 2, "active": 2}
    return Worker(**{**known, **fields})  # type: ignore[arg-type]


def active_task(
    seconds: float, name: str = "shop.pick", root: str | None = None, *, started: bool = True
) -> ActiveTask:
    return ActiveTask("shop", "pick@shop", name, NOW - seconds, started, root)


def stalled(*tasks: ActiveTask, **fields: object) -> list[StalledWorker]:
    return stalled_workers([worker(**fields)], tasks, USUAL, NOW)


def test_full_pool_of_unusually_long_tasks_is_suspect() -> None:
    assert stalled(active_task(4.0), active_task(9.0)) == [StalledWorker("pick@shop", 9.0, 2, True, 0.5)]


def test_worker_that_has_taken_tasks_and_starts_none_is_suspect() -> None:
    waiting = active_task(4.0, started=False)
    assert stalled(waiting, active=0) == [StalledWorker("pick@shop", 4.0, 1, False)]
    assert stalled(waiting, active_task(6.0), active=1) == [StalledWorker("pick@shop", 6.0, 1, True, 0.5)]


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        [active_task(2.0), active_task(2.9)],
        [active_task(4.0)],  # there is room for another
        [active_task(4.0), active_task(0.2)],  # one of its processes works
        [active_task(30.0, "shop.report"), active_task(9.0)],  # usual for the first
        [active_task(30.0, "shop.new"), active_task(9.0), active_task(20.0, started=False)],  # nobody knows
        [active_task(30.0, "shop.rare"), active_task(9.0)],  # too few to know
        [active_task(2.0, started=False)],
    ],
)
def test_nobody_is_accused_of_what_is_usual_or_not_known(tasks: list[ActiveTask]) -> None:
    assert stalled(*tasks) == []


def test_heartbeat_that_says_less_is_busy_is_believed() -> None:
    assert stalled(active_task(4.0), active_task(9.0), active=0) == []  # their ends were missed, or are never sent


def test_heartbeat_that_tells_of_more_tasks_than_are_known_accuses_nobody() -> None:
    assert stalled(active_task(4.0), active_task(9.0), active=3) == []
    assert stalled(active_task(4.0, started=False), active=1) == []


def test_tasks_that_were_not_all_read_are_counted_as_at_least_so_many() -> None:
    waiting = [active_task(seconds, started=False) for seconds in (4.0, 6.0)]
    many = stalled_workers([worker(active=0)], waiting, USUAL, NOW, frozenset({("shop", "pick@shop")}))
    assert many == [StalledWorker("pick@shop", 6.0, 2, False, at_least=True)]


@pytest.mark.parametrize("status", [WorkerStatus.SILENT, WorkerStatus.OFFLINE])
def test_of_who_is_silent_more_is_known_than_that(status: WorkerStatus) -> None:
    assert stalled(active_task(4.0), active_task(9.0), status=status) == []


def test_workflow_waits_for_its_longest_task() -> None:
    tasks = [
        active_task(4.0, root="r1"),
        active_task(9.0, root="r1"),
        active_task(9.0),
        active_task(2.0, root="r2"),
        active_task(7.0, "shop.new", "r3"),
    ]
    assert slow_workflows([*tasks, active_task(30.0, "shop.report", "r4")], USUAL, NOW) == [
        SlowWorkflow("r1", "shop.pick", 9.0, 0.5, "pick@shop"),
        SlowWorkflow("r3", "shop.new", 7.0, None, "pick@shop"),
    ]


def test_only_a_solo_pool_may_be_busy_instead_of_silent() -> None:
    assert may_be_busy(worker(pool="solo", status=WorkerStatus.SILENT))
    assert not may_be_busy(worker(pool="solo", status=WorkerStatus.OFFLINE))
    assert not may_be_busy(worker(pool="prefork", status=WorkerStatus.SILENT))


def test_a_task_far_beyond_what_is_usual_is_named_with_its_process() -> None:
    tasks = [active_task(9.0), active_task(30.0, root="r1"), active_task(2.0), active_task(30.0, "shop.new")]
    assert [
        (each.hostname, each.name, each.seconds, each.usual, each.root_id) for each in long_tasks(tasks, USUAL, NOW)
    ] == [
        ("pick@shop", "shop.pick", 30.0, 0.5, "r1"),
        ("pick@shop", "shop.pick", 9.0, 0.5, None),
    ]
