"""Trees of tasks: which there are lately, and the steps of one."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import and_
from sqlalchemy import func
from sqlalchemy import literal_column
from sqlalchemy import or_
from sqlalchemy import select

from monitor.errors import NotFound
from monitor.records import Page
from monitor.records import Step
from monitor.records import TaskState
from monitor.records import WorkflowSummary
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.keys import in_tree
from monitor.store.keys import span_of
from monitor.store.keys import to_key
from monitor.store.load import cluster_names
from monitor.store.load import numbers_of
from monitor.store.load import storable
from monitor.store.page import Cursor
from monitor.store.page import read_cursor
from monitor.store.page import write_cursor
from monitor.store.rows import STATES
from monitor.store.stuck import waiting_of
from monitor.store.terms import texts
from monitor.workflow import state_of

SEARCHED = 20_000  # of the newest tasks, for the list of workflows
MOST_STEPS = 20_000
_SORT = "workflows"
_zero: ColumnElement[int] = literal_column("0")
_task = schema.task.c
_columns = (
    _task.key, _task.root, _task.parent, _task.state, _task.name_id, _task.queue_id, _task.worker_id,
    _task.sent, _task.received, _task.started, _task.ended, _task.eta, _task.seen, _task.id, _task.cluster_id,
)  # fmt: skip


def workflows(
    store: Store, *, cluster: str | None = None, limit: int = 50, cursor: str | None = None
) -> Page[WorkflowSummary]:
    """Root tasks with tasks under them, those first that were heard of last; of the newest 20,000 tasks."""
    place = read_cursor(cursor, _SORT, by_text=False) if cursor is not None else None
    with store.read() as connection:
        newest = select(_task.root, _task.seen, _task.id, _task.cluster_id).order_by(_task.seen.desc(), _task.id.desc())
        if cluster is not None:
            newest = newest.where((_task.cluster_id + _zero).in_(numbers_of(connection, cluster)))
        rows = newest.limit(SEARCHED).subquery().c
        last = func.max(rows.seen)
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
    return Page(items=items, next=write_cursor(Cursor(_SORT, "next", end.last, end.id)) if end is not None else None)


def steps(store: Store, root_id: str, cluster: str | None = None) -> tuple[str, list[Step], bool]:
    """The cluster, the root and every task under it, the oldest first; and whether that is all.

    The root's step is the first; its state is ``None`` where it is not in the record. Raises NotFound.
    """
    key = to_key(root_id) if storable(root_id) else b""
    with store.read() as connection:
        clusters = numbers_of(connection, cluster)
        own = select(*_columns).where(_task.cluster_id.in_(clusters), _task.key == key)
        inside = and_(in_tree(span_of(key)), (_task.cluster_id + _zero).in_(clusters))
        members = select(*_columns).where(inside).order_by(_task.seen, _task.id).limit(MOST_STEPS + 1)
        rows = [*connection.execute(own).all(), *connection.execute(members).all()] if key else []
        if not rows:
            raise NotFound(f"no task of a workflow {root_id!r} is in the record; it may be too old", id=root_id)
        number = rows[0].cluster_id  # of clusters that share an id, the one of its root
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
    waiting = waiting_of(connection, [(root.cluster_id, bytes(root.root)) for root in roots])
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


_known_id = lru_cache(maxsize=256)(from_key)  # thousands have one parent
