"""Lists of tasks, page by page: from a cursor on, along the index of the plan, within a budget of rows.

Also the counts by state and the longest running tasks of the overview.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    and_,
    cast,
    collate,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    union,
    union_all,
)

from celery_monitor.core.filters.parser import UNHANDLED, Filter, parse
from celery_monitor.core.filters.terms import GROUPS_BY_WORD
from celery_monitor.errors import InvalidInput
from celery_monitor.records.page import Count, ListPage
from celery_monitor.records.task import Task, TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, force_index_scans, numbers
from celery_monitor.store.schema import STATE_CODES, STATES
from celery_monitor.store.tasks.counts import estimate, total, totals_by
from celery_monitor.store.tasks.keys import Cursor, read_cursor, write_cursor
from celery_monitor.store.tasks.plan import Plan, plan_from_counts, plan_from_terms
from celery_monitor.store.tasks.rows import load_tasks
from celery_monitor.store.tasks.where import (
    WAIT,
    Resolved,
    few_retried,
    resolve,
    retried_tasks,
    where,
    where_counts,
)
from celery_monitor.store.terms import cluster_ids

COUNT_LIMIT = 10_000
COUNTED_ROWS = 10_000  # that are read to count beside a page, where these have the page itself
SORTED_ROWS = 20_000  # the newest, of which a list in another order is made
MOST_ROWS = 1000
CHUNK = 1000  # tasks that an export reads at once
NEWEST_FIRST = "-received"
Position = tuple[float, int]  # of a row in the list: (sort_time, id)
_task = schema.task.c
_place = tuple_(_task.sort_time, _task.id)
_measures: dict[str, ColumnElement[float]] = {
    "state": _task.state,
    "runtime": _task.runtime,
    "wait": WAIT,
    "retries": _task.retries,
    "sent": _task.sent,
    "started": _task.started,
    "finished": _task.ended,
}
NAME_SORTS = ("name", "queue", "worker")
SORTS = (*NAME_SORTS, *_measures)
_UNKNOWN_LAST = 1e300  # sorts unknown values last in both directions


@dataclass(frozen=True)
class Selection:
    """The tasks that match a filter: the plan to reach their rows, and the condition on each row."""

    plan: Plan
    where: ColumnElement[bool]
    counted: ColumnElement[bool] | None  # the whole filter on task_count, where that has all columns

    def positions(
        self,
        limit: int,
        *,
        after: Position | None = None,
        before: Position | None = None,
        search_limit: Position | None = None,
        also: Sequence[ColumnElement[Any]] = (),
    ) -> Select[Any]:
        """Matching rows, newest first: those older than ``after``, or the nearest newer than ``before``.

        Columns are sort_time, id and ``also``.
        """
        plan = self.plan
        span = (after, before, search_limit)
        branches = [self._branch(each, limit, *span) for each in plan.branches]
        if plan.extra_rows and search_limit is not None:
            branches.append(self._branch(numbers(_task.id, plan.extra_rows), limit, after, before, None))
        branches = [each.add_columns(*also) for each in branches]
        if not branches:
            return select(_task.sort_time, _task.id, *also).where(literal(value=False))
        if len(branches) == 1:
            return branches[0]
        join = union if plan.extra_rows else union_all  # only extra rows can be on two branches
        rows = join(*(select(each.subquery()) for each in branches)).subquery()
        return select(*rows.c).order_by(*_order(rows.c.sort_time, rows.c.id, before)).limit(limit)

    def _branch(
        self,
        branch: ColumnElement[bool],
        limit: int,
        after: Position | None,
        before: Position | None,
        search_limit: Position | None,
    ) -> Select[tuple[float, int]]:
        statement = select(_task.sort_time, _task.id).where(branch, self.where)
        if after is not None:
            statement = statement.where(_place < _at(after))
        if before is not None:
            statement = statement.where(_place > _at(before))
        if search_limit is not None:  # above when newer rows are read
            far = _at(search_limit)
            statement = statement.where(_place >= far if before is None else _place <= far)
        if self.plan.low is not None:
            statement = statement.where(_task.sort_time >= self.plan.low.value)
        if self.plan.high is not None:
            statement = statement.where(_task.sort_time <= self.plan.high.value)
        return statement.order_by(*_order(_task.sort_time, _task.id, before)).limit(limit)

    def search_limit(
        self, connection: Connection, *, after: Position | None = None, before: Position | None = None
    ) -> Position | None:
        """Where reading must stop to stay within the plan's budget; ``None``: nowhere.

        Each of several branches has its share, and the nearest stop counts: the others have fewer rows up to there.
        """
        plan = self.plan
        if not plan.bounded or not plan.branches:
            return None
        share = plan.budget // len(plan.branches)
        untested = replace(self, where=true())
        stops = []
        for each in plan.branches:
            statement = untested._branch(each, 1, after, before, None).offset(share)
            stops += [(row.sort_time, row.id) for row in connection.execute(statement)]
        return (max if before is None else min)(stops, default=None)

    def within(self, rows: int) -> "Selection":
        """The same with a budget of at most so many rows."""
        return replace(self, plan=replace(self.plan, most=rows))

    def count(self, connection: Connection, enough: int | None = None) -> Count:
        """How many tasks match: exact from the counters where possible, else counted up to COUNT_LIMIT.

        With ``enough``, the count may end after COUNTED_ROWS rows if more tasks than that were found.
        """
        if self.plan.matching is not None:
            return Count(self.plan.matching)
        if self.counted is not None:
            return Count(total(connection, self.counted))
        if enough is not None and self.plan.bounded:
            found = self.within(COUNTED_ROWS).count(connection)
            if found.exact or found.value > enough:
                return found
        end = self.search_limit(connection)
        rows = self.positions(COUNT_LIMIT + 1, search_limit=end).subquery()
        return _capped(connection.execute(select(func.count()).select_from(rows)).scalar_one(), end)


def select_tasks(connection: Connection, filter: Filter, need: int) -> Selection:  # noqa: A002
    """The matching tasks, about ``need`` of which will be read in this transaction."""
    force_index_scans(connection)
    return select_resolved(connection, resolve(connection, filter.terms), need)


def select_resolved(connection: Connection, tree: Resolved, need: int) -> Selection:
    """The tasks that match conditions which were resolved in this transaction."""
    plan = plan_from_terms(tree, need)
    if plan is None:
        counts = estimate(connection, where_counts(tree.only(tree.counted)))
        plan = plan_from_counts(tree, need, counts)
    counted = where_counts(tree) if tree.is_counted else None
    return Selection(plan, where(tree.only(plan.rest)), counted)


def find_tasks(
    store: Store,
    filter: Filter,  # noqa: A002
    *,
    sort: str = NEWEST_FIRST,
    limit: int = 50,
    cursor: str | None = None,
    tracebacks: bool = False,
) -> ListPage[Task]:
    """One page of matching tasks, with their count. Each has its latest run only, without traceback unless asked for.

    ``sort`` is a key of SORTS, descending with ``-`` before it. Raises InvalidInput for an invalid cursor, sort or
    limit.
    """
    key = sort.removeprefix("-")
    if key not in {"received", *SORTS}:
        allowed = ", ".join(["received", *SORTS])
        raise InvalidInput(f"tasks cannot be sorted by {sort!r}; allowed are {allowed}, each with - for descending")
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidInput(f"a page has 1 to {MOST_ROWS} tasks, not {limit}")
    place = read_cursor(cursor, sort, by_text=key in NAME_SORTS) if cursor is not None else None
    with store.read() as connection:
        found = select_tasks(connection, filter, limit + 1)
        if key == "received":
            counting = place is None and found.counted is None
            part = _by_time(connection, found, sort, limit, place, counting=counting)
        else:
            part = _by_key(connection, found, sort, limit, place)
        return ListPage(
            items=load_tasks(connection, part.rows, tracebacks=tracebacks),
            next=write_cursor(part.next) if part.next else None,
            previous=write_cursor(part.previous) if part.previous else None,
            count=found.count(connection, limit) if part.total is None else part.total,
            searched=Count(part.searched) if part.searched else None,
        )


def count_tasks(store: Store, filter: Filter) -> Count:  # noqa: A002
    """How many tasks match: exact from the counters where possible, else counted up to 10,000."""
    with store.read() as connection:
        return select_tasks(connection, filter, COUNT_LIMIT).count(connection)


def iterate_tasks(store: Store, filter: Filter, *, tracebacks: bool = False) -> Iterator[list[Task]]:  # noqa: A002
    """Every matching task, newest first, as lists of at most CHUNK, without tracebacks unless asked for.

    For exports of any size. Each list is a short transaction: a long one would keep the database from cleaning up
    while the browser reads. So a task that is received meanwhile may be missing. A list may be empty: no row within
    the budget of one request matched.
    """
    place: Cursor | None = None
    while True:
        with store.read() as connection:
            found = select_tasks(connection, filter, CHUNK + 1)
            part = _by_time(connection, found, NEWEST_FIRST, CHUNK, place, counting=False)
            tasks = load_tasks(connection, part.rows, tracebacks=tracebacks)
        yield tasks
        place = part.next
        if place is None:
            return


class PagePart(NamedTuple):
    """The rows of a page in order, and the cursors of the next and previous page."""

    rows: list[int]
    next: Cursor | None
    previous: Cursor | None
    searched: int | None  # rows, if the search ended at the budget
    total: Count | None  # of all matches, if they were counted too


def _by_time(
    connection: Connection, found: Selection, sort: str, limit: int, place: Cursor | None, *, counting: bool
) -> PagePart:
    """A page in the order of time. Its order and the cursor's direction decide whether older or newer rows are read.

    ``counting``: page and count are one statement.
    """
    forward = place is None or place.direction == "next"
    older = forward == (sort == NEWEST_FIRST)
    at: Position | None = (float(place.key), place.id) if place else None if older else (float("-inf"), -1)
    after, before = (at, None) if older else (None, at)
    most = COUNT_LIMIT if counting else limit
    if counting and found.plan.bounded:
        rows, end = _read(connection, found.within(COUNTED_ROWS), most, after, before)
    if not counting or not found.plan.bounded or (end is not None and len(rows) <= limit):
        rows, end = _read(connection, found, most, after, before)
    far = rows[limit - 1] if len(rows) > limit else end
    near = (rows[0] if rows else at) if place is not None else None
    beside = _cursors(sort, far, near, forward=forward)
    shown = [row for _, row in (rows[:limit] if forward else rows[:limit][::-1])]
    searched = found.plan.budget if len(rows) <= limit and end is not None else None
    return PagePart(shown, *beside, searched, _capped(len(rows), end) if counting else None)


def _read(
    connection: Connection, found: Selection, most: int, after: Position | None, before: Position | None
) -> tuple[list[Position], Position | None]:
    """One row more than ``most`` of those within the budget, and where reading stopped."""
    end = found.search_limit(connection, after=after, before=before)
    statement = found.positions(most + 1, after=after, before=before, search_limit=end)
    return [(row.sort_time, row.id) for row in connection.execute(statement)], end


def _by_key(connection: Connection, found: Selection, sort: str, limit: int, place: Cursor | None) -> PagePart:
    """A page in another order, of the newest rows within the budget, which the cursor remembers."""
    found = replace(found, plan=replace(found.plan, bounded=True, most=SORTED_ROWS))
    end = place.search_limit if place else found.search_limit(connection)
    newest = found.positions(found.plan.budget, search_limit=end).subquery()
    descending, forward = sort.startswith("-"), place is None or place.direction == "next"
    key = _sort_key(sort.removeprefix("-"), descending, connection.dialect.name == "sqlite")
    statement = select(key.label("key"), _task.id).join(newest, newest.c.id == _task.id)
    down = descending == forward
    if place is not None:
        at = tuple_(literal(place.key, key.type), literal(place.id, _task.id.type))
        here = tuple_(key, _task.id)
        statement = statement.where(here < at if down else here > at)
    order = (key.desc(), _task.id.desc()) if down else (key.asc(), _task.id.asc())
    rows = [(row.key, row.id) for row in connection.execute(statement.order_by(*order).limit(limit + 1))]
    far = rows[limit - 1] if len(rows) > limit else None
    near = rows[0] if rows and place is not None else None
    beside = _cursors(sort, far, near, forward=forward, search_limit=end)
    shown = [row for _, row in (rows[:limit] if forward else rows[:limit][::-1])]
    return PagePart(shown, *beside, searched=found.plan.budget if end is not None else None, total=None)


def _cursors(
    sort: str,
    far: tuple[float | str, int] | None,
    near: tuple[float | str, int] | None,
    *,
    forward: bool,
    search_limit: Position | None = None,
) -> tuple[Cursor | None, Cursor | None]:
    """The cursors of the next and of the previous page; ``far`` is where reading ended, ``near`` where it began."""
    ahead, behind = (far, near) if forward else (near, far)
    return (
        Cursor(sort, "next", *ahead, search_limit) if ahead else None,
        Cursor(sort, "previous", *behind, search_limit) if behind else None,
    )


def _sort_key(name: str, descending: bool, is_sqlite: bool) -> ColumnElement[float] | ColumnElement[str]:
    """The value to sort by; never NULL, and in the same order on both databases."""
    if name in _measures:
        last = -_UNKNOWN_LAST if descending else _UNKNOWN_LAST
        return func.coalesce(cast(_measures[name], Double), last)
    term = schema.term.c
    text = select(term.text).where(term.id == _task[f"{name}_id"]).scalar_subquery()
    return collate(func.coalesce(text, ""), "BINARY" if is_sqlite else "C")


def _capped(found: int, end: Position | None) -> Count:
    return Count(min(found, COUNT_LIMIT), exact=end is None and found <= COUNT_LIMIT)


def _at(position: Position) -> ColumnElement[tuple[float, int]]:
    return tuple_(literal(position[0], _task.sort_time.type), literal(position[1], _task.id.type))


def _order(
    sort_time: ColumnElement[float], key: ColumnElement[int], before: Position | None
) -> tuple[ColumnElement[float], ColumnElement[int]]:
    return (sort_time.desc(), key.desc()) if before is None else (sort_time.asc(), key.asc())


_RECENT = 10_000
_FAILURE = STATE_CODES[TaskState.FAILURE]


def count_states(store: Store, cluster: str | None = None) -> dict[TaskState, int]:
    """The number of tasks in each state; every state is there."""
    with store.read() as connection:
        where = schema.task_count.c.cluster_id.in_(cluster_ids(connection, cluster))
        found = totals_by(connection, "state", where)
    return {state: found.get(code, 0) for code, state in STATES.items()}


def count_unhandled(store: Store, cluster: str | None, now: float) -> Count:
    """Failed tasks that still need attention: those that the filter UNHANDLED matches.

    All failed ones, by the counters, less those that somebody retried, muted or resolved. Where these are too many to
    read, counted up to 10,000.
    """
    with store.read() as connection:
        clusters = cluster_ids(connection, cluster)
        handled = _count_handled(connection, clusters)
        if handled is not None:
            counts = schema.task_count.c
            failed = total(connection, and_(counts.cluster_id.in_(clusters), counts.state == _FAILURE))
            return Count(failed - handled)
    return count_tasks(store, parse(UNHANDLED, now).in_cluster(cluster))


def _count_handled(connection: Connection, clusters: Sequence[int]) -> int | None:
    """Failed tasks that were retried or are in a muted or resolved group; ``None`` where they are too many to read."""
    if not few_retried(connection, clusters):
        return None
    group = schema.failure_group.c
    words = [state.value for word in ("muted", "resolved") for state in GROUPS_BY_WORD[word]]
    groups = connection.execute(select(group.id).where(group.cluster_id.in_(clusters), group.state.in_(words)))
    branches = [*retried_tasks(clusters, is_sqlite=connection.dialect.name == "sqlite")]
    if settled := groups.scalars().all():
        branches.append(and_(_task.failure_group_id.is_not(None), numbers(_task.failure_group_id, settled)))
    failed = (_task.state + literal_column("0")) == _FAILURE  # no index of states: the branches have theirs
    parts = [select(_task.id).where(each, failed).limit(COUNT_LIMIT + 1).subquery() for each in branches]
    if not parts:
        return 0
    rows = union(*(select(each) for each in parts)).subquery()
    found: int = connection.execute(select(func.count()).select_from(rows)).scalar_one()
    return found if found <= COUNT_LIMIT else None


def read_longest_running(store: Store, *, cluster: str | None = None, limit: int = 10) -> list[Task]:
    """Running tasks, the earliest start first; of the 10,000 running tasks that were received first."""
    running: ColumnElement[int] = literal_column(str(STATE_CODES[TaskState.STARTED]))
    partial = _task.state != literal_column(str(STATE_CODES[TaskState.SUCCESS]))
    with store.read() as connection:
        oldest = select(_task.id, _task.started).where(and_(_task.state == running, partial))
        if cluster is not None:
            clusters = cluster_ids(connection, cluster)
            oldest = oldest.where((_task.cluster_id + literal_column("0")).in_(clusters))
        rows = oldest.order_by(_task.sort_time, _task.id).limit(_RECENT).subquery().c
        statement = select(rows.id).where(rows.started.is_not(None)).order_by(rows.started, rows.id).limit(limit)
        return load_tasks(connection, list(connection.execute(statement).scalars()))
