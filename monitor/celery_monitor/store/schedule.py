"""Beat's schedule in the record, the runs of its entries, and missed and late runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, func, or_, select

from celery_monitor.core.filters.scope import HIDDEN
from celery_monitor.core.schedule import (
    EntryState,
    entries_alike,
    in_own_queue,
    judge,
    judge_alike,
    may_wait_in,
    own_runs,
)
from celery_monitor.errors import NotFound
from celery_monitor.records.schedule import BeatHealth, ScheduledRun, ScheduleEntry
from celery_monitor.records.task import Invocation
from celery_monitor.store import schema
from celery_monitor.store.accounts.limited import limited
from celery_monitor.store.engine import Store, put_value, read_value
from celery_monitor.store.queues import read_queues
from celery_monitor.store.receivers import read_gaps
from celery_monitor.store.schema import STATES
from celery_monitor.store.tasks.keys import from_key
from celery_monitor.store.tasks.rows import unpack_invocation
from celery_monitor.store.terms import cluster_id, cluster_ids, storable, texts

MOST_RUNS = 1000
_CHUNK = 500
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(ScheduleEntry).decode
_task = schema.task.c
_table = schema.schedule


def save_schedule(store: Store, cluster: str, entries: Sequence[ScheduleEntry], at: float) -> None:
    """Replaces all entries of the cluster."""
    unique = {entry.name.replace("\0", "\ufffd"): entry for entry in entries}
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        connection.execute(delete(_table).where(_table.c.cluster_id == number))
        rows = [{"cluster_id": number, "name": name, "record": _pack(entry)} for name, entry in unique.items()]
        if rows:
            connection.execute(_table.insert(), rows)
        put_value(store, connection, _reported_key(cluster), repr(at))


def read_entries(store: Store, cluster: str | None = None) -> list[ScheduleEntry]:
    """Every entry inside the scope, by cluster and name."""
    found = _inside(store, cluster)
    return found if store.limits.arguments else [_without_arguments(each) for each in found]


def _inside(store: Store, cluster: str | None) -> list[ScheduleEntry]:
    with store.read() as connection:
        wanted = _table.c.cluster_id.in_(cluster_ids(connection, cluster))
        rows = connection.execute(select(_table.c.record).where(wanted).order_by(_table.c.cluster_id, _table.c.name))
        found = [_unpack(record) for record in rows.scalars()]
    return [each for each in found if store.limits.scope.has_task(each.cluster, each.task, each.queue)]


def _without_arguments(entry: ScheduleEntry) -> ScheduleEntry:
    return msgspec.structs.replace(entry, args=HIDDEN, kwargs=HIDDEN, args_json=None, kwargs_json=None)


def schedule_entry(store: Store, name: str, cluster: str) -> ScheduleEntry:
    """One entry. Raises NotFound."""
    found = [entry for entry in read_entries(store, cluster) if entry.name == name]
    if not found:
        raise NotFound(f"the schedule of {cluster} has no entry {name!r}", name=name)
    return found[0]


def schedule_reported_at(store: Store, cluster: str) -> float | None:
    """When the schedule of a cluster was last reported; ``None``: never, so whether there is one is unknown."""
    value = read_value(store.whole, _reported_key(cluster)) if store.limits.scope.allows("cluster", cluster) else None
    return None if value is None else float(value)


def read_beat_health(store: Store, cluster: str) -> BeatHealth:
    """What the receiver last found out about beat."""
    value = read_value(store.whole, _beat_key(cluster)) if store.limits.scope.covers(cluster) else None
    return BeatHealth(cluster=cluster) if value is None else msgspec.json.decode(value, type=BeatHealth)


def save_beat_health(store: Store, health: BeatHealth) -> None:
    with store.begin() as connection:
        put_value(store, connection, _beat_key(health.cluster), msgspec.json.encode(health).decode())


class Runs(NamedTuple):
    """Tasks that may be runs of an entry, the newest first; tasks before ``since`` were not read."""

    runs: list[ScheduledRun]
    since: float


def read_entry_runs(store: Store, entry: ScheduleEntry, since: float, limit: int = MOST_RUNS) -> list[ScheduledRun]:
    """Tasks with the name and the arguments of an entry, the newest first, of the ``limit`` newest of that name."""
    return runs_of(store, entry.cluster, [entry], since, limit)[entry.name].runs


def runs_of(
    store: Store, cluster: str, entries: Sequence[ScheduleEntry], since: float, limit: int = MOST_RUNS
) -> dict[str, Runs]:
    """Runs of several entries of one cluster, by the names of entries."""
    by_task: dict[str, list[ScheduleEntry]] = {}
    for entry in entries:
        by_task.setdefault(entry.task, []).append(entry)
    # Runs are recognised by their arguments, and are shown without.
    with limited(store, replace(store.limits, arguments=True)).read() as connection:
        numbers = cluster_ids(connection, cluster)
        names = _name_ids(connection, [task for task in by_task if storable(task)])
        found: dict[str, tuple[Sequence[Any], float | None]] = {}
        for task, some in by_task.items():
            wanted = {"name": names.get(task), "since": since, "clusters": numbers, "most": limit}
            found[task] = _rows(connection, wanted, some) if task in names else ((), None)
        ids = {each for rows, _ in found.values() for row in rows for each in (row.client_id, row.queue_id)}
        text_of = texts(connection, ids)
        first = _first_messages(connection, [row.id for rows, _ in found.values() for row in rows if row.retries])
    runs = {}
    for entry in entries:
        rows, oldest = found[entry.task]
        mine = [_run(row, text_of, first.get(row.id)) for row in rows if _is_of(row, entry)]
        runs[entry.name] = Runs(mine, since if oldest is None else oldest)
    return runs


def _name_ids(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    term = schema.term.c
    wanted = select(term.text, term.id).where(term.kind == schema.TERM_KINDS["name"], term.text.in_(names))
    return {row.text: row.id for row in connection.execute(wanted)}


def _rows(
    connection: Connection, wanted: Mapping[str, object], entries: Sequence[ScheduleEntry]
) -> tuple[Sequence[Any], float | None]:
    """The newest tasks of a name with arguments of one of the entries; and the time of the oldest one that was read,
    if there are more."""
    args = sorted({form for entry in entries for form in _forms(entry.args)})
    kwargs = sorted({entry.kwargs for entry in entries})
    rows = connection.execute(_newest_runs, {**wanted, "wanted_args": args, "wanted_kwargs": kwargs}).all()
    edge = rows[0].oldest if rows[0].tasks == wanted["most"] else None
    return [row for row in rows if row.key is not None], edge


def _statement() -> Any:
    """Built once, as building it takes longer than running it."""
    newest = (
        select(
            *(_task.key, _task.sent, _task.sort_time, _task.state, _task.client_id, _task.queue_id),
            *(_task.args, _task.kwargs, _task.id, _task.retries),
        )
        .where(_task.name_id == bindparam("name"), _task.sort_time >= bindparam("since"))
        .where(_task.cluster_id.in_(bindparam("clusters", expanding=True)))
        .order_by(_task.sort_time.desc(), _task.id.desc())
        .limit(bindparam("most"))
        .cte("newest")
    )
    columns = newest.c
    edge = select(func.count().label("tasks"), func.min(columns.sort_time).label("oldest")).subquery("edge")
    mine = and_(
        or_(columns.args.is_(None), columns.args.in_(bindparam("wanted_args", expanding=True))),
        or_(columns.kwargs.is_(None), columns.kwargs.in_(bindparam("wanted_kwargs", expanding=True))),
    )
    both = edge.outerjoin(newest, mine)
    return select(newest, edge.c.tasks, edge.c.oldest).select_from(both).order_by(columns.sort_time.desc())


_newest_runs = _statement()


def _first_messages(connection: Connection, retried: Sequence[int]) -> dict[int, Invocation]:
    """The first messages of retried tasks, by row: the task's row has that of the retry, which a worker sent."""
    table = schema.run.c
    found: dict[int, Invocation] = {}
    for start in range(0, len(retried), _CHUNK):
        wanted = and_(table.task_id.in_(retried[start : start + _CHUNK]), table.ordinal == 0)
        for row in connection.execute(select(table.task_id, table.message).where(wanted)):
            if row.message is not None:
                found[row.task_id] = unpack_invocation(row.message)
    return found


def _run(row: Any, text_of: dict[int, str], first: Invocation | None) -> ScheduledRun:
    sent = row.sent if first is None else first.sent
    return ScheduledRun(
        id=from_key(row.key),
        at=sent if sent is not None else row.sort_time,
        by_receipt=sent is None,
        state=STATES[row.state],
        client=text_of.get(row.client_id) if first is None else first.client,
        queue=text_of.get(row.queue_id) if first is None else first.queue,
    )


def _is_of(row: Any, entry: ScheduleEntry) -> bool:
    return (row.args is None or row.args in _forms(entry.args)) and row.kwargs in {None, entry.kwargs}


def _forms(args: str) -> tuple[str, ...]:
    """Beat sends a list where others send a tuple: ``['a']`` and ``('a',)`` are the same arguments."""
    inside = args[1:-1].removesuffix(",")
    return f"[{inside}]", f"({inside})", f"({inside},)"


def _reported_key(cluster: str) -> str:
    return f"schedule asked: {cluster}"


def _beat_key(cluster: str) -> str:
    return f"beat: {cluster}"


WINDOW_SECONDS = 86400.0
LEAST_RUNS, ALL_RUNS = 50, 20_000  # of each entry, and of all together
STOPPED_ENTRIES = 2  # so many overdue entries mean that beat has stopped
LAST_SECONDS = 40 * 86400.0  # in which the last run is searched, where the window has none


class Scheduled(NamedTuple):
    """One entry and its state; ``known_until``: set where it is unknown what beat has sent since then."""

    entry: ScheduleEntry
    standing: EntryState
    known_until: float | None = None


def read_schedule(
    store: Store, cluster: str | None, now: float, known_until: Mapping[str, float], most: int = MOST_RUNS
) -> list[Scheduled]:
    """Every entry of the clusters with its state, from the tasks of its name in the last day: at most ``most`` of them,
    fewer where there are many entries.

    ``known_until`` has the clusters whose events are incomplete since then: nothing is overdue there.
    """
    found: list[Scheduled] = []
    by_cluster: dict[str, list[ScheduleEntry]] = {}
    for entry in _inside(store, cluster):
        by_cluster.setdefault(entry.cluster, []).append(entry)
    for name, entries in by_cluster.items():
        found += _of_cluster(store, name, entries, _Moment(now, known_until.get(name)), most)
    return found if store.limits.arguments else [each._replace(entry=_without_arguments(each.entry)) for each in found]


class _Moment(NamedTuple):
    now: float
    known_until: float | None  # ``None``: until now


def _of_cluster(
    store: Store, cluster: str, entries: list[ScheduleEntry], moment: _Moment, most: int
) -> list[Scheduled]:
    now, known_until = moment
    since = now - WINDOW_SECONDS
    gaps = read_gaps(store, since, cluster)
    runs = _runs(store, cluster, entries, now, max(LEAST_RUNS, min(most, ALL_RUNS // len(entries))))
    waiting = {queue.name: queue.ready for queue in read_queues(store, cluster)}
    by_name = {entry.name: in_own_queue(entry, entries, runs[entry.name].runs) for entry in entries}
    alike = entries_alike(entries, by_name)
    judged = own_runs(by_name, alike)
    found = []
    for entry in entries:
        mine, sure = judged[entry.name]
        recent = [run for run in mine if run.at >= since] or list(mine[:1])
        begin = max(since, runs[entry.name].since)
        until = now if known_until is None else known_until
        if others := alike[entry.name]:
            standing = judge_alike(entry, recent, gaps, begin, until, shared_with=others)
        else:
            standing = judge(entry, recent, gaps, begin, until, sure=sure)
        if known_until is not None:
            standing = _without_overdue(standing, known_until)
        elif standing.overdue is not None:
            standing = standing._replace(may_wait_in=may_wait_in(entry, standing.last, waiting))
        found.append(Scheduled(entry, standing, known_until))
    return found


def _without_overdue(standing: EntryState, known_until: float) -> EntryState:
    """Missed runs from before ``known_until`` count; whether it is overdue now is unknown."""
    if known_until <= standing.since:
        standing = standing._replace(missed=None, late=None)
    return standing._replace(overdue=None)


def all_overdue(rows: Sequence[Scheduled]) -> bool:
    """Whether all that beat is expected to send is overdue: then it seems to have stopped."""
    overdue = sum(row.standing.surely_overdue for row in rows)
    return overdue >= STOPPED_ENTRIES and overdue == sum(_expected(row) for row in rows)


def _expected(row: Scheduled) -> bool:
    return row.standing.last_at is not None and (row.standing.next is not None or row.standing.overdue is not None)


def _runs(store: Store, cluster: str, entries: Sequence[ScheduleEntry], now: float, most: int) -> dict[str, Runs]:
    since = now - WINDOW_SECONDS
    found = runs_of(store, cluster, entries, since, most)
    # Entries whose window was not read completely have no older runs to read.
    none = [entry for entry in entries if not found[entry.name].runs and found[entry.name].since <= since]
    return found | (runs_of(store, cluster, none, now - LAST_SECONDS, LEAST_RUNS) if none else {})
