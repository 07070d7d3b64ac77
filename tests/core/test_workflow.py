from typing import Any

import pytest

from celery_monitor.core.workflow import (
    FEW,
    PAGE_ROWS,
    Opened,
    build,
    critical_path,
    rows_to,
    state_of,
    tree_rows,
    waiting_for,
)
from celery_monitor.records.task import Step, TaskState

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
