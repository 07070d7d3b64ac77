"""Workflows that stand still: some of their tasks have not ended, and for a while nothing was heard of any."""

from collections import Counter
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import and_
from sqlalchemy import func
from sqlalchemy import literal_column
from sqlalchemy import select

from monitor.records import TaskState
from monitor.records import Waiting
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.load import cluster_names
from monitor.store.load import numbers_of
from monitor.store.rows import STATES
from monitor.store.schema import STATE_CODES
from monitor.store.terms import texts

STILL_SECONDS = 60.0
WITHIN_SECONDS = 86400.0
MOST_SEARCHED = 500  # of each state, the newest
MOST_STUCK = 50  # as many, and there may be more
# What waits for its ETA does not stand still.
UNENDED = (TaskState.PENDING, TaskState.RECEIVED, TaskState.STARTED, TaskState.RETRY, TaskState.LOST)
_zero: ColumnElement[int] = literal_column("0")
_task = schema.task.c
_unended = [STATE_CODES[state] for state in UNENDED]
_in_tree = and_(_task.root.is_not(None), func.length(_task.root) > _zero)

Place = tuple[int, bytes]  # the cluster and the root


def stuck_workflows(store: Store, now: float, cluster: str | None = None) -> list[Waiting]:
    """Those of the last day, each with what most of its tasks wait for; the one that stood still longest first."""
    with store.read() as connection:
        roots = _candidates(connection, now, numbers_of(connection, cluster))
        rows = _kinds(connection, roots)
        heard = _last_heard(rows)
        found = _waiting(connection, [row for row in rows if heard[_place(row)] <= now - STILL_SECONDS])
        clusters = cluster_names(connection)
    still = [
        Waiting(cluster=clusters[place[0]], root_id=from_key(place[1]), since=heard[place], **found[place])
        for place in roots
        if place in found
    ]
    return sorted(still, key=lambda each: each.since)


def waiting_of(connection: Connection, places: Sequence[Place]) -> dict[Place, dict[str, Any]]:
    """Of each workflow the tasks that have not ended: how many, and the name and state of the most."""
    return _waiting(connection, _kinds(connection, places))


def _kinds(connection: Connection, places: Sequence[Place]) -> Sequence[Any]:
    """The tasks of workflows by name and state: how many, and when anything was heard of them."""
    if not places:
        return []
    moments = [func.max(_task[name]) for name in ("seen", "received", "started", "ended")]
    statement = (
        select(_task.cluster_id, _task.root, _task.name_id, _task.state, func.count(), *moments)
        .where(_in_tree, _task.root.in_([root for _, root in places]))
        .group_by(_task.cluster_id, _task.root, _task.name_id, _task.state)
    )
    wanted = set(places)
    return [row for row in connection.execute(statement) if _place(row) in wanted]


def _place(row: Any) -> Place:
    return row[0], bytes(row[1])


def _last_heard(rows: Sequence[Any]) -> dict[Place, float]:
    heard: dict[Place, float] = {}
    for row in rows:
        moments = [at for at in row[5:] if at is not None]
        heard[_place(row)] = max(heard.get(_place(row), 0.0), *moments)
    return heard


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
    for state in _unended:
        newest = (
            select(_task.cluster_id, _task.root)
            .where(_task.state == state, literal_column("state") != STATE_CODES[TaskState.SUCCESS])
            .where(_task.seen <= now - STILL_SECONDS, _task.seen > now - WITHIN_SECONDS)
            .order_by(_task.seen.desc(), _task.id.desc())
            .limit(MOST_SEARCHED)
            .subquery()
        ).c
        inside = select(newest.cluster_id, newest.root).distinct().where(func.length(newest.root) > 0)
        for row in connection.execute(inside.where(newest.cluster_id.in_(clusters))):
            found[row.cluster_id, bytes(row.root)] = None
    return list(found)[:MOST_STUCK]
