"""Which index is chosen, by the terms of a filter and by the task counts: without a database."""

import pytest

from celery_monitor.core.filters.parser import parse
from celery_monitor.core.filters.terms import Leaf, leaves
from celery_monitor.records.task import TaskState
from celery_monitor.store.schema import STATE_CODES
from celery_monitor.store.tasks import plan
from celery_monitor.store.tasks.counts import Estimate, Share
from celery_monitor.store.tasks.plan import plan_from_counts, plan_from_terms
from celery_monitor.store.tasks.where import Resolved
from tests.factories import NOW

DONE, FAILED, STARTED = (STATE_CODES[each] for each in (TaskState.SUCCESS, TaskState.FAILURE, TaskState.STARTED))
NAMES = frozenset({31, 32})


def resolved(text: str) -> Resolved:
    """As if every name in the filter stood for the numbers 31 and 32."""
    terms = parse(text, NOW).terms
    found: dict[Leaf, frozenset[int]] = {leaf: NAMES for term in terms for leaf in leaves(term)}
    return Resolved(terms, {1: "shop"}, is_sqlite=True, numbers=found)


def counts(states: dict[int, tuple[int, int]], names: dict[int, tuple[int, int]]) -> Estimate:
    """All tasks and those that match, by state and by name."""
    whole = Share(*(sum(column) for column in zip(*states.values(), strict=True)))
    by_state, by_name = ({key: Share(*pair) for key, pair in each.items()} for each in (states, names))
    return Estimate(whole, by_state, by_name)


@pytest.mark.parametrize(
    ("text", "index", "branches"),
    [
        ("", "task_seen", 1),
        ("runtime:>5s", "task_seen", 1),
        ("state:failed", "task_state", 1),
        ("-state:succeeded -state:failed", "task_state", 8),
        ("name:a runtime:>5s", "task_name", 2),
        ("group:17 name:a", "task_failure_group", 1),
        ("job:7 name:a", "task_key", 1),
        ("root:4f2a9c01* name:a", "task_root", 3),
    ],
)
def test_terms_that_name_an_index_need_no_counts(text: str, index: str, branches: int) -> None:
    found = plan_from_terms(resolved(text), 20)
    assert found is not None
    assert (found.index, len(found.branches)) == (index, branches)


@pytest.mark.parametrize("text", ["queue:a", "state:succeeded", "name:a queue:b", "name:a state:failed"])
def test_other_counted_terms_need_the_counts(text: str) -> None:
    assert plan_from_terms(resolved(text), 20) is None


def test_the_index_is_the_one_on_which_matching_tasks_are_dense() -> None:
    tree = resolved("queue:a")
    rare_name = counts({DONE: (90_000, 40), FAILED: (10_000, 2)}, {31: (50, 42), 7: (99_950, 0)})
    assert plan_from_counts(tree, 20, rare_name).index == "task_name"
    only_failed = counts({DONE: (90_000, 0), FAILED: (100, 42)}, {31: (50_000, 21), 7: (40_100, 21)})
    assert plan_from_counts(tree, 20, only_failed).index == "task_state"
    everywhere = counts({DONE: (900, 700), STARTED: (30, 20)}, dict.fromkeys(range(1, 63), (15, 12)))
    assert plan_from_counts(tree, 20, everywhere).index == "task_seen"


def test_counts_tell_how_many_match_only_where_they_know_every_term() -> None:
    found = counts({DONE: (900, 700), FAILED: (100, 31)}, {31: (500, 331), 32: (500, 400)})
    assert plan_from_counts(resolved("queue:a"), 20, found).matching == 731
    assert plan_from_counts(resolved("queue:a runtime:>5s"), 20, found).matching is None
    nothing = counts({DONE: (900, 0)}, {31: (900, 0)})
    assert plan_from_counts(resolved("queue:a runtime:>5s"), 20, nothing).branches == ()


def test_a_plan_is_bounded_where_enough_rows_may_be_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counts({DONE: (900, 9), FAILED: (100, 1)}, {31: (1000, 10)})
    assert not plan_from_counts(resolved("queue:a"), 5, found).bounded
    monkeypatch.setattr(plan, "BUDGET", 100)
    assert plan_from_counts(resolved("queue:a"), 5, found).bounded


def test_the_job_is_not_tested_again_on_rows_that_its_keys_led_to() -> None:
    found = plan_from_terms(resolved("name:a job:7 received:>-1h"), 20)
    assert found is not None
    assert list(map(str, found.rest)) == ["name:a", "received:>-1h"]
    assert found.low is not None
    assert found.low.value == NOW - 3600
