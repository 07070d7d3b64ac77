"""Workflows: the latest ones, their steps, and stalled ones."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, func, literal_column, or_, select

from celery_monitor.core.workflow import state_of
from celery_monitor.errors import NotFound
from celery_monitor.records.page import ListPage
from celery_monitor.records.task import Step, Task, TaskState, WaitingStep, WorkflowSummary
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import STATE_CODES, STATES
from celery_monitor.store.tasks.keys import Cursor, from_key, in_tree, read_cursor, span_of, to_key, write_cursor
from celery_monitor.store.terms import cluster_ids, cluster_names, storable, texts

STALLED_SECONDS = 60.0
WITHIN_SECONDS = 86400.0
MOST_SEARCHED = 500  # of each state, the newest
MOST_STUCK = 50  # if there are as many, there may be more
# Waiting for an ETA is not being stalled.
UNENDED = (TaskState.PENDING, TaskState.RECEIVED, TaskState.STARTED, TaskState.RETRY, TaskState.LOST)
_zero: ColumnElement[int] = literal_column("0")
_task = schema.task.c
_unended = [STATE_CODES[state] for state in UNENDED]
_in_tree = and_(_task.root.is_not(None), func.length(_task.root) > _zero)

Place = tuple[int, bytes]  # the cluster and the root


def read_stuck_workflows(store: Store, now: float, cluster: str | None = None) -> list[WaitingStep]:
    """Stalled workflows of the last day, each with the name of most unfinished tasks; the longest stalled first."""
    with store.read() as connection:
        roots = _candidates(connection, now, cluster_ids(connection, cluster))
        rows = _kinds(connection, roots)
        last_events = _last_events(rows)
        found = _waiting(connection, [row for row in rows if last_events[_place(row)] <= now - STALLED_SECONDS])
        clusters = cluster_names(connection)
    stalled = [
        WaitingStep(cluster=clusters[place[0]], root_id=from_key(place[1]), since=last_events[place], **found[place])
        for place in roots
        if place in found
    ]
    return sorted(stalled, key=lambda each: each.since)


def _kinds(connection: Connection, places: Sequence[Place]) -> Sequence[Any]:
    """The tasks of workflows by name and state: how many, and their latest times."""
    if not places:
        return []
    moments = [func.max(_task[name]) for name in ("sort_time", "received", "started", "ended")]
    statement = (
        select(_task.cluster_id, _task.root, _task.name_id, _task.state, func.count(), *moments)
        .where(_in_tree, _task.root.in_([root for _, root in places]))
        .group_by(_task.cluster_id, _task.root, _task.name_id, _task.state)
    )
    wanted = set(places)
    return [row for row in connection.execute(statement) if _place(row) in wanted]


def _place(row: Any) -> Place:
    return row[0], bytes(row[1])


def _last_events(rows: Sequence[Any]) -> dict[Place, float]:
    last: dict[Place, float] = {}
    for row in rows:
        moments = [at for at in row[5:] if at is not None]
        last[_place(row)] = max(last.get(_place(row), 0.0), *moments)
    return last


def _waiting(connection: Connection, rows: Sequence[Any]) -> dict[Place, dict[str, Any]]:
    kinds: dict[Place, Counter[tuple[int, int]]] = defaultdict(Counter)
    for row in rows:
        if row[3] in _unended:
            kinds[_place(row)][row[2], row[3]] += row[4]
    names = texts(connection, {name for counts in kinds.values() for name, _ in counts})
    return {place: _most(counts, names) for place, counts in kinds.items()}


def _most(counts: Counter[tuple[int, int]], names: dict[int, str]) -> dict[str, Any]:
    by_name: Counter[int] = Counter()
    for (name, _), number in counts.items():
        by_name[name] += number
    most = by_name.most_common(1)[0][0]
    state = max((number, state) for (name, state), number in counts.items() if name == most)[1]
    return {"name": names.get(most), "state": STATES[state], "tasks": counts.total(), "named": by_name[most]}


def _candidates(connection: Connection, now: float, clusters: Sequence[int]) -> list[Place]:
    found: dict[Place, None] = {}
    span = {"first": now - WITHIN_SECONDS, "last": now - STALLED_SECONDS, "clusters": list(clusters)}
    for statement in _candidate_statements():
        for row in connection.execute(statement, span):
            found[row.cluster_id, bytes(row.root)] = None
    return list(found)[:MOST_STUCK]


@cache
def _candidate_statements() -> list[Select[Any]]:
    """For each state. To build them takes longer than to run them, and the judge of alerts does every few seconds."""
    found = []
    for state in _unended:
        newest = (
            select(_task.cluster_id, _task.root)
            .where(_task.state == state, literal_column("state") != STATE_CODES[TaskState.SUCCESS])
            .where(_task.sort_time <= bindparam("last"), _task.sort_time > bindparam("first"))
            .order_by(_task.sort_time.desc(), _task.id.desc())
            .limit(MOST_SEARCHED)
            .subquery()
        ).c
        inside = select(newest.cluster_id, newest.root).distinct().where(func.length(newest.root) > 0)
        found.append(inside.where(newest.cluster_id.in_(bindparam("clusters", expanding=True))))
    return found


def read_children(store: Store, tasks: Sequence[Task]) -> dict[str, list[str]]:
    """The ids of the tasks that these have sent, by their ids; of the first MOST_STEPS."""
    roots = {to_key(each.root_id or each.id) for each in tasks}
    keys = {to_key(each.id) for each in tasks}
    found: dict[str, list[str]] = defaultdict(list)
    with store.read() as connection:
        statement = select(_task.key, _task.parent).where(_in_tree, _task.root.in_(roots), _task.parent.in_(keys))
        for row in connection.execute(statement.limit(MOST_STEPS)):
            found[from_key(row.parent)].append(from_key(row.key))
    return found


SEARCHED = 20_000  # of the newest tasks, for the list of workflows
MOST_STEPS = 20_000
_SORT = "workflows"
_columns = (
    _task.key, _task.root, _task.parent, _task.state, _task.name_id, _task.queue_id, _task.worker_id,
    _task.sent, _task.received, _task.started, _task.ended, _task.eta, _task.sort_time, _task.id, _task.cluster_id,
)  # fmt: skip


def read_workflows(
    store: Store, *, cluster: str | None = None, limit: int = 50, cursor: str | None = None
) -> ListPage[WorkflowSummary]:
    """Workflows, those with the latest tasks first; of the newest 20,000 tasks."""
    place = read_cursor(cursor, _SORT, by_text=False) if cursor is not None else None
    with store.read() as connection:
        columns = (_task.root, _task.sort_time, _task.id, _task.cluster_id)
        newest = select(*columns).order_by(_task.sort_time.desc(), _task.id.desc())
        if cluster is not None:
            newest = newest.where((_task.cluster_id + _zero).in_(cluster_ids(connection, cluster)))
        rows = newest.limit(SEARCHED).subquery().c
        last = func.max(rows.sort_time)
        found = (
            select(rows.cluster_id, rows.root, last.label("last"), func.max(rows.id).label("id"))
            .where(rows.root.is_not(None), func.length(rows.root) > 0)
            .group_by(rows.cluster_id, rows.root)
        )
        if place is not None:
            at = float(place.key)
            found = found.having(or_(last < at, and_(last == at, func.max(rows.id) < place.id)))
        roots = connection.execute(found.order_by(last.desc(), func.max(rows.id).desc()).limit(limit + 1)).all()
        items = _summaries(connection, roots[:limit])
    end = roots[limit - 1] if len(roots) > limit else None
    return ListPage(
        items=items, next=write_cursor(Cursor(_SORT, "next", end.last, end.id)) if end is not None else None
    )


def read_steps(store: Store, root_id: str, cluster: str | None = None) -> tuple[str, list[Step], bool]:
    """The cluster, the root and every task under it, the oldest first; and whether these are all.

    The root's step is the first; its state is ``None`` where it is not in the record. Raises NotFound.
    """
    key = to_key(root_id) if storable(root_id) else b""
    with store.read() as connection:
        clusters = cluster_ids(connection, cluster)
        own = select(*_columns).where(_task.cluster_id.in_(clusters), _task.key == key)
        inside = and_(in_tree(span_of(key)), (_task.cluster_id + _zero).in_(clusters))
        members = select(*_columns).where(inside).order_by(_task.sort_time, _task.id).limit(MOST_STEPS + 1)
        rows = [*connection.execute(own).all(), *connection.execute(members).all()] if key else []
        if not rows:
            raise NotFound(f"no task of a workflow {root_id!r} is in the record; it may have expired", id=root_id)
        number = rows[0].cluster_id  # where clusters share an id, that of the root
        rows = [row for row in rows if row[-1] == number]
        names = texts(connection, {each for row in rows for each in row[4:7]})
        cluster_name = cluster_names(connection)[number]
    found = {row[0]: _step(row, names) for row in rows[:MOST_STEPS]}
    root = found.pop(key, Step(id=root_id))
    return cluster_name, [root, *found.values()], len(rows) <= MOST_STEPS


def _summaries(connection: Connection, roots: Sequence[Any]) -> list[WorkflowSummary]:
    states: dict[tuple[int, bytes], dict[TaskState, int]] = defaultdict(dict)
    keys = [bytes(row.root) for row in roots]
    member = and_(_task.root.is_not(None), func.length(_task.root) > _zero, _task.root.in_(keys))
    counted = select(_task.cluster_id, _task.root, _task.state, func.count().label("n")).where(member)
    for row in connection.execute(counted.group_by(_task.cluster_id, _task.root, _task.state)):
        states[row.cluster_id, bytes(row.root)][STATES[row.state]] = row.n
    clusters = cluster_names(connection)
    waiting = _waiting(connection, _kinds(connection, [(root.cluster_id, bytes(root.root)) for root in roots]))
    own = select(*_columns).where(_task.cluster_id.in_(list(clusters)), _task.key.in_(keys))
    rows: dict[tuple[int, bytes], Any] = {(row.cluster_id, bytes(row.key)): row for row in connection.execute(own)}
    names = texts(connection, {each for row in rows.values() for each in (row.name_id, row.queue_id, row.worker_id)})
    found = []
    for root in roots:
        place = (root.cluster_id, bytes(root.root))
        own_row = rows.get(place)
        counts = dict(states[place])
        if own_row is not None:
            counts[STATES[own_row.state]] = counts.get(STATES[own_row.state], 0) + 1
        step = _step(own_row, names) if own_row is not None else Step(id=from_key(place[1]))
        waits = waiting.get(place)
        found.append(
            WorkflowSummary(
                root=step,
                cluster=clusters[root.cluster_id],
                states=counts,
                state=state_of(counts),
                last_seen=root.last,
                unended=waits["tasks"] if waits else 0,
                waits_for=waits["name"] if waits else None,
                waits_for_tasks=waits["named"] if waits else 0,
            )
        )
    return found


def _step(row: Any, names: dict[int, str]) -> Step:
    key, _, parent, state, name, queue, worker, sent, received, started, ended, eta, *_ = row
    return Step(
        id=from_key(key),
        parent_id=_known_id(parent) if parent is not None else None,
        name=names.get(name),
        state=STATES[state],
        queue=names.get(queue),
        worker=names.get(worker),
        sent=sent,
        received=received,
        started=started,
        ended=ended,
        eta=eta,
    )


_known_id = lru_cache(maxsize=256)(from_key)  # thousands of tasks have the same parent
