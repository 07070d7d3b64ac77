"""Which index a list walks. Chosen here by what the counts say, not by the database's guess.

A path is one or more branches, each a span of one index in the order (seen, id), so that a page is read by
walking each branch from the cursor on and stopping early.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from typing import NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import and_
from sqlalchemy import literal_column
from sqlalchemy import true

from monitor.filter_terms import All
from monitor.filter_terms import Any
from monitor.filter_terms import Expression
from monitor.filter_terms import Match
from monitor.filter_terms import Not
from monitor.filter_terms import Range
from monitor.filter_terms import Retried
from monitor.filter_terms import State
from monitor.filter_terms import Word
from monitor.filter_terms import leaves
from monitor.filter_values import NO
from monitor.filter_values import Limit
from monitor.filters import Filter
from monitor.records import TaskState
from monitor.store import cube
from monitor.store import ids
from monitor.store import schema
from monitor.store.compile import Resolved
from monitor.store.compile import condition
from monitor.store.compile import cube_condition
from monitor.store.compile import is_cube
from monitor.store.compile import job_of
from monitor.store.compile import numbers
from monitor.store.compile import resolve
from monitor.store.cube import Share
from monitor.store.job_members import just_those_of_job
from monitor.store.retries import few_retried
from monitor.store.schema import STATE_CODES

MOST_BRANCHES = 64
BUDGET = 50_000  # rows that one request looks at; where that may not be enough, the result says so
_SUCCESS = STATE_CODES[TaskState.SUCCESS]
_task = schema.task.c


@dataclass(frozen=True)
class Path:
    """How to reach the rows that a filter may match, and what is left to test on each."""

    index: str
    branches: tuple[ColumnElement[bool], ...]  # none: nothing can match
    where: ColumnElement[bool] | None = None
    cube: ColumnElement[bool] | None = None  # the whole filter on task_count, where that answers it
    matching: int | None = None  # the count by cube, where choosing the path has told it
    low: Limit | None = None  # of seen
    high: Limit | None = None
    bounded: bool = False  # may have to look at more rows than the budget
    besides: frozenset[int] = field(default_factory=frozenset)  # rows that match wherever they are

    @property
    def budget(self) -> int:
        """Rows looked at in one walk: fewer where they lie far apart in the table."""
        return BUDGET if self.index == "task_seen" else BUDGET // 2


def choose(connection: Connection, wanted: Filter, need: int) -> Path:
    """The path on which ``need`` rows are found by looking at the fewest."""
    if not wanted:
        return Path("task_seen", (true(),), cube=true())
    resolved = resolve(connection, wanted.expression)
    where = condition(wanted.expression, resolved)
    low, high = _seen_limits(wanted.terms)
    exact = cube_condition(wanted.expression, resolved) if is_cube(wanted.expression) else None
    job = next((each for each in wanted.terms if isinstance(each, Range) and each.field == "job"), None)
    if job is not None:
        rest = tuple(each for each in wanted.terms if each is not job)
        return _within((just_those_of_job(connection, job_of(job)),), rest, resolved, low, high)
    direct = _direct(wanted.terms, resolved)
    if direct is not None:
        return Path(*direct, where, low=low, high=high, bounded=True)
    if any(isinstance(each, Retried) and each.word != NO for each in wanted.terms):
        branches = few_retried(connection, list(resolved.clusters))
        if branches is not None:
            return _within(branches, wanted.terms, resolved, low, high)
    guess = _by_counts(connection, wanted.terms, resolved, need)
    return Path(
        guess.walked,
        guess.branches,
        where,
        cube=exact,
        matching=guess.matching if exact is not None else None,
        low=low,
        high=high,
        bounded=exact is None or guess.rows > BUDGET,
        besides=_rows_besides(wanted.terms, resolved),
    )


def on_cube(connection: Connection, wanted: Filter) -> ColumnElement[bool] | None:
    """The whole filter on task_count, where that answers it: then no path needs to be chosen to count."""
    if not wanted:
        return true()
    if not is_cube(wanted.expression):
        return None
    return cube_condition(wanted.expression, resolve(connection, wanted.expression))


def _seen_limits(terms: Iterable[Expression]) -> tuple[Limit | None, Limit | None]:
    """Where ``received`` is known, ``seen`` equals it."""
    lows = [each.interval.low for each in terms if isinstance(each, Range) and each.field == "received"]
    highs = [each.interval.high for each in terms if isinstance(each, Range) and each.field == "received"]
    low = max((each for each in lows if each), key=lambda each: (each.value, not each.inclusive), default=None)
    high = min((each for each in highs if each), key=lambda each: (each.value, each.inclusive), default=None)
    return low, high


def _direct(terms: Iterable[Expression], resolved: Resolved) -> tuple[str, tuple[ColumnElement[bool], ...]] | None:
    """The index that holds just the rows asked for, where a term names them."""
    for each in terms:
        if isinstance(each, Range) and each.field == "group" and each.interval.is_point:
            assert each.interval.low is not None  # noqa: S101 -- an interval has an end
            group: ColumnElement[int] = literal_column(str(int(each.interval.low.value)))
            return "task_failure_group", (and_(_task.failure_group_id.is_not(None), _task.failure_group_id == group),)
        if not isinstance(each, Match) or each.field not in {"id", "root", "parent"}:
            continue
        own = [numbers(_task.id, resolved.rows[each])] if resolved.rows.get(each) else []
        if each.field == "id" and each in resolved.rows:
            return "id", tuple(own)
        if each.field == "root":
            return "task_root", (
                *(and_(row, ids.alone()) for row in own),
                *(ids.in_tree(span) for span in ids.spans(each.pattern)),
            )
        if each in resolved.roots:
            trees = [ids.Span(root, root, len(root) == 16) for root in sorted(resolved.roots[each])]
            return "task_root", tuple(ids.in_tree(tree) for tree in trees)
    return None


def _within(
    branches: tuple[ColumnElement[bool], ...],
    rest: tuple[Expression, ...],
    resolved: Resolved,
    low: Limit | None,
    high: Limit | None,
) -> Path:
    """No index has tasks that are named by their keys (a job's, retried ones) in the order of a list, so all of them
    are read, and a floor would save nothing: it is found by reading them all. Where more than columns is tested on
    each, it saves that."""
    where = condition(All(rest), resolved) if rest else None
    return Path("task_key", branches, where, low=low, high=high, bounded=not all(map(is_cube, rest)))


class _Guess(NamedTuple):
    """``rows``: about how many are looked at before enough are found."""

    walked: str
    branches: tuple[ColumnElement[bool], ...]
    rows: int
    matching: int | None = None


def _by_counts(connection: Connection, terms: tuple[Expression, ...], resolved: Resolved, need: int) -> _Guess:
    counted = [each for each in terms if is_cube(each)]
    if not counted:
        return _Guess("task_seen", (true(),), need)
    states = _only_states(counted)
    if states is not None and _SUCCESS not in states:
        return _Guess("task_state", _state_branches(states), need)
    names = _only_names(counted, resolved)
    if names is not None and len(names) <= MOST_BRANCHES:
        return _Guess("task_name" if names else "none", _name_branches(names), need)
    found = cube.estimate(connection, cube_condition(All(tuple(counted)), resolved))
    matching = found.whole.matching
    if not matching:
        return _Guess("none", (), 0, 0)
    by_state = {key: share for key, share in found.states.items() if share.matching}
    by_name = {key: share for key, share in found.names.items() if share.matching}
    costs = {"task_seen": _cost([found.whole], need)}
    if _SUCCESS not in by_state:
        costs["task_state"] = _cost(by_state.values(), need)
    if len(by_name) <= MOST_BRANCHES:
        costs["task_name"] = _cost(by_name.values(), need)
    index = min(costs, key=lambda each: costs[each])
    if index == "task_state":
        return _Guess(index, _state_branches(by_state), costs[index], matching)
    if index == "task_name":
        return _Guess(index, _name_branches(by_name), costs[index], matching)
    return _Guess(index, (true(),), costs[index], matching)


def _cost(shares: Iterable[Share], need: int) -> int:
    """Rows looked at if those that match lie evenly among the others."""
    return sum(min(share.all, -(-need * share.all // share.matching)) + need for share in shares)


def _only_states(terms: list[Expression]) -> list[int] | None:
    """The states in which all the terms hold, where they are about states alone."""
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


def _only_names(terms: list[Expression], resolved: Resolved) -> frozenset[int] | None:
    """The names that all the terms allow, where each is one name, or one of several."""
    allowed = []
    for each in terms:
        options = each.terms if isinstance(each, Any) else (each,)
        if not all(isinstance(option, Match) and option.field == "name" for option in options):
            return None
        allowed.append(frozenset[int]().union(*(resolved.terms[leaf] for leaf in leaves(each))))
    return frozenset.intersection(*allowed)


def _name_branches(names: Iterable[int]) -> tuple[ColumnElement[bool], ...]:
    return tuple(numbers(_task.name_id, [key]) for key in sorted(names))


def _state_branches(states: Iterable[int]) -> tuple[ColumnElement[bool], ...]:
    """SQLite proves a partial index by its very words."""
    success = _task.state != literal_column(str(_SUCCESS))
    return tuple(and_(_task.state == literal_column(str(code)), success) for code in states)


def _rows_besides(terms: Iterable[Expression], resolved: Resolved) -> frozenset[int]:
    """Rows that a bare word names by their id: found even where the search for text does not reach."""
    named = [resolved.rows.get(each, frozenset()) for each in terms if isinstance(each, Word)]
    return frozenset[int]().union(*named)
