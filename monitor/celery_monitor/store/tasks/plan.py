"""Which index a list reads: chosen here by the counts of tasks, not by the database's estimates.

A plan has one or more branches, each a span of one index in the order (sort_time, id): a page is read along each branch
from the cursor on, and stops early.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, literal_column, true

from celery_monitor.core.filters.terms import (
    NO,
    All,
    Any,
    Expression,
    Limit,
    Match,
    Not,
    RetriedCondition,
    State,
    ValueRange,
    Word,
    leaves,
)
from celery_monitor.records.task import TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import numbers
from celery_monitor.store.schema import STATE_CODES
from celery_monitor.store.tasks.counts import Estimate, Share
from celery_monitor.store.tasks.keys import id_spans, in_tree, is_alone, span_of
from celery_monitor.store.tasks.where import Resolved, retried_tasks, tasks_of_job

MOST_BRANCHES = 64
BUDGET = 50_000  # rows that one request reads at most; the result says when it was not enough
_SUCCESS = STATE_CODES[TaskState.SUCCESS]
_task = schema.task.c
Branches = tuple[ColumnElement[bool], ...]
_EVERY_TASK: Branches = (true(),)


@dataclass(frozen=True)
class Plan:
    """How to reach the rows that may match a filter, and the conditions left to test on each."""

    index: str
    branches: Branches  # none: nothing can match
    rest: tuple[Expression, ...]  # conditions that the branches do not imply
    bounded: bool  # may have to read more rows than the budget
    low: Limit | None  # of sort_time
    high: Limit | None
    matching: int | None = None  # how many tasks match, where the counts say
    extra_rows: frozenset[int] = field(default_factory=frozenset)  # rows that match wherever they are
    most: int | None = None  # a lower budget, for counts, facets and sorted lists

    @property
    def budget(self) -> int:
        """Rows to read for one page: fewer where they are scattered over the table."""
        budget = BUDGET if self.index == "task_seen" else BUDGET // 2
        return budget if self.most is None else min(self.most, budget)


def plan_from_terms(tree: Resolved, need: int) -> Plan | None:
    """The plan, where the terms alone decide; ``None``: the counts must."""
    return _for_job(tree) or _for_ids(tree) or _for_retried(tree) or _for_states_or_names(tree, need)


def plan_from_counts(tree: Resolved, need: int, counts: Estimate) -> Plan:
    """The plan that finds ``need`` rows by reading the fewest: where matching rows are the densest.

    ``counts`` are for the counted terms.
    """
    matching = counts.whole.matching
    if not matching:
        return _in_order(tree, "none", (), 0, 0)
    by_state = {key: share for key, share in counts.states.items() if share.matching}
    by_name = {key: share for key, share in counts.names.items() if share.matching}
    costs = {"task_seen": _cost([counts.whole], need)}
    if _SUCCESS not in by_state:
        costs["task_state"] = _cost(by_state.values(), need)
    if len(by_name) <= MOST_BRANCHES:
        costs["task_name"] = _cost(by_name.values(), need)
    index = min(costs, key=lambda each: costs[each])
    branches = _EVERY_TASK
    if index == "task_state":
        branches = _state_branches(by_state)
    elif index == "task_name":
        branches = _name_branches(by_name)
    return _in_order(tree, index, branches, costs[index], matching)


def _for_job(tree: Resolved) -> Plan | None:
    for each in tree.terms:
        if isinstance(each, ValueRange) and each.field == "job":
            rest = tree.only(other for other in tree.terms if other is not each)
            return _by_keys(tree, rest, (tasks_of_job(each.interval.number, is_sqlite=tree.is_sqlite),))
    return None


def _for_retried(tree: Resolved) -> Plan | None:
    if tree.few_retried and any(isinstance(each, RetriedCondition) and each.word != NO for each in tree.terms):
        return _by_keys(tree, tree, retried_tasks(tree.clusters, is_sqlite=tree.is_sqlite))
    return None


def _by_keys(tree: Resolved, rest: Resolved, branches: Branches) -> Plan:
    """For tasks given by their keys (of a job, retried ones). No index has them in the order of a list, so all are
    read; a search limit saves only tests of other conditions."""
    return Plan("task_key", branches, rest.terms, not rest.is_counted, *_time_limits(tree.terms))


def _for_ids(tree: Resolved) -> Plan | None:
    """On the index of just these rows, where a term names them."""
    for each in tree.terms:
        found = _group_branches(each) if isinstance(each, ValueRange) else _id_branches(tree, each)
        if found is not None:
            return Plan(*found, tree.terms, True, *_time_limits(tree.terms))
    return None


def _group_branches(term: ValueRange) -> tuple[str, Branches] | None:
    if term.field != "group" or not term.interval.is_point:
        return None
    group: ColumnElement[int] = literal_column(str(term.interval.number))
    return "task_failure_group", (and_(_task.failure_group_id.is_not(None), _task.failure_group_id == group),)


def _id_branches(tree: Resolved, term: Expression) -> tuple[str, Branches] | None:
    if not isinstance(term, Match):
        return None
    own = [numbers(_task.id, tree.rows[term])] if tree.rows.get(term) else []
    if term.field == "id" and term in tree.rows:
        return "id", tuple(own)
    if term.field == "root":
        alone = [and_(row, is_alone()) for row in own]
        return "task_root", (*alone, *(in_tree(span) for span in id_spans(term.pattern)))
    if term in tree.roots:
        return "task_root", tuple(in_tree(span_of(root)) for root in sorted(tree.roots[term]))
    return None


def _for_states_or_names(tree: Resolved, need: int) -> Plan | None:
    """On the index of states or of names, if all counted terms are of these; without counted terms, of times."""
    if not tree.counted:
        return _in_order(tree, "task_seen", _EVERY_TASK, need)
    states = _only_states(tree.counted)
    if states is not None and _SUCCESS not in states:
        return _in_order(tree, "task_state", _state_branches(states), need)
    names = _only_names(tree.counted, tree)
    if names is not None and len(names) <= MOST_BRANCHES:
        return _in_order(tree, "task_name" if names else "none", _name_branches(names), need)
    return None


def _in_order(tree: Resolved, index: str, branches: Branches, rows: int, matching: int | None = None) -> Plan:
    """``rows``: about how many are read to find enough."""
    bounded = not tree.is_counted or rows > BUDGET
    limits = _time_limits(tree.terms)
    return Plan(
        index,
        branches,
        tree.terms,
        bounded,
        *limits,
        matching=matching if tree.is_counted else None,
        extra_rows=_extra_rows(tree),
    )


def _time_limits(terms: Iterable[Expression]) -> tuple[Limit | None, Limit | None]:
    """From conditions on ``received``, which ``sort_time`` equals where it is known."""
    received = [each.interval for each in terms if isinstance(each, ValueRange) and each.field == "received"]
    lows = [each.low for each in received if each.low]
    highs = [each.high for each in received if each.high]
    low = max(lows, key=lambda each: (each.value, not each.inclusive), default=None)
    high = min(highs, key=lambda each: (each.value, each.inclusive), default=None)
    return low, high


def _cost(shares: Iterable[Share], need: int) -> int:
    """Rows read if matching rows are spread evenly."""
    return sum(min(share.all, -(-need * share.all // share.matching)) + need for share in shares)


def _only_states(terms: Iterable[Expression]) -> list[int] | None:
    """The states in which all terms hold, if they are conditions on the state alone."""
    if not all(isinstance(leaf, State) for each in terms for leaf in leaves(each)):
        return None
    return [STATE_CODES[state] for state in TaskState if all(_holds(each, state) for each in terms)]


def _holds(expression: Expression, state: TaskState) -> bool:
    if isinstance(expression, All):
        return all(_holds(each, state) for each in expression.terms)
    if isinstance(expression, Any):
        return any(_holds(each, state) for each in expression.terms)
    if isinstance(expression, Not):
        return not _holds(expression.term, state)
    return isinstance(expression, State) and state in expression.states


def _only_names(terms: Iterable[Expression], tree: Resolved) -> frozenset[int] | None:
    """The names that all terms allow, if each is one name or a choice of names."""
    allowed = []
    for each in terms:
        options = each.terms if isinstance(each, Any) else (each,)
        if not all(isinstance(option, Match) and option.field == "name" for option in options):
            return None
        allowed.append(frozenset[int]().union(*(tree.numbers[leaf] for leaf in leaves(each))))
    return frozenset.intersection(*allowed)


def _name_branches(names: Iterable[int]) -> Branches:
    return tuple(numbers(_task.name_id, [key]) for key in sorted(names))


def _state_branches(states: Iterable[int]) -> Branches:
    """SQLite uses a partial index only for exactly its condition."""
    success = _task.state != literal_column(str(_SUCCESS))
    return tuple(and_(_task.state == literal_column(str(code)), success) for code in states)


def _extra_rows(tree: Resolved) -> frozenset[int]:
    """Rows whose id a bare word names: found even beyond the search limit."""
    named = [tree.rows.get(each, frozenset()) for each in tree.terms if isinstance(each, Word)]
    return frozenset[int]().union(*named)
