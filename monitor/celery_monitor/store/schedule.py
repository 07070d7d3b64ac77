"""Beat's schedule in the record, the tasks that it may have sent, and what was missed or late."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, func, or_, select

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
    """Puts these in the place of all that were known of the cluster."""
    unique = {entry.name.replace("\0", "\ufffd"): entry for entry in entries}
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        connection.execute(delete(_table).where(_table.c.cluster_id == number))
        rows = [{"cluster_id": number, "name": name, "record": _pack(entry)} for name, entry in unique.items()]
        if rows:
            connection.execute(_table.insert(), rows)
        put_value(store, connection, _asked_key(cluster), repr(at))


def read_entries(store: Store, cluster: str | None = None) -> list[ScheduleEntry]:
    """Every entry, by cluster and name."""
    with store.read() as connection:
        wanted = _table.c.cluster_id.in_(cluster_ids(connection, cluster))
        rows = connection.execute(select(_table.c.record).where(wanted).order_by(_table.c.cluster_id, _table.c.name))
        return [_unpack(record) for record in rows.scalars()]


def schedule_entry(store: Store, name: str, cluster: str) -> ScheduleEntry:
    """Raises NotFound."""
    found = [entry for entry in read_entries(store, cluster) if entry.name == name]
    if not found:
        raise NotFound(f"the schedule of {cluster} has no entry {name!r}", name=name)
    return found[0]


def schedule_heard_at(store: Store, cluster: str) -> float | None:
    """When the schedule of a cluster was last told; ``None``: never, so whether there is one is not known."""
    value = read_value(store, _asked_key(cluster))
    return None if value is None else float(value)


def read_beat_health(store: Store, cluster: str) -> BeatHealth:
    """What the receiver last found out of beat; nothing known where it never looked."""
    value = read_value(store, _beat_key(cluster))
    return BeatHealth(cluster=cluster) if value is None else msgspec.json.decode(value, type=BeatHealth)


def save_beat_health(store: Store, health: BeatHealth) -> None:
    with store.begin() as connection:
        put_value(store, connection, _beat_key(health.cluster), msgspec.json.encode(health).decode())


class Runs(NamedTuple):
    """The tasks that may be an entry's, the newest first; older ones than ``since`` were not looked at."""

    runs: list[ScheduledRun]
    since: float


def read_entry_runs(store: Store, entry: ScheduleEntry, since: float, limit: int = MOST_RUNS) -> list[ScheduledRun]:
    """Tasks with the name and the arguments of an entry, the newest first, of the ``limit`` newest of that name."""
    return runs_of(store, entry.cluster, [entry], since, limit)[entry.name].runs


def runs_of(
    store: Store, cluster: str, entries: Sequence[ScheduleEntry], since: float, limit: int = MOST_RUNS
) -> dict[str, Runs]:
    """The same for several entries of one cluster, by their names."""
    by_task: dict[str, list[ScheduleEntry]] = {}
    for entry in entries:
        by_task.setdefault(entry.task, []).append(entry)
    with store.read() as connection:
        numbers = cluster_ids(connection, cluster)
        names = _name_ids(connection, [task for task in by_task if storable(task)])
        found: dict[str, tuple[Sequence[Any], float | None]] = {}
        for task, some in by_task.items():
            wanted = {"name": names.get(task), "since": since, "clusters": numbers, "most": limit}
            found[task] = _rows(connection, wanted, some) if task in names else ((), None)
        ids = {each for rows, _ in found.values() for row in rows for each in (row.client_id, row.queue_id)}
        told = texts(connection, ids)
        first = _first_messages(connection, [row.id for rows, _ in found.values() for row in rows if row.retries])
    judged = {}
    for entry in entries:
        rows, oldest = found[entry.task]
        mine = [_run(row, told, first.get(row.id)) for row in rows if _is_of(row, entry)]
        judged[entry.name] = Runs(mine, since if oldest is None else oldest)
    return judged


def _name_ids(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    term = schema.term.c
    wanted = select(term.text, term.id).where(term.kind == schema.TERM_KINDS["name"], term.text.in_(names))
    return {row.text: row.id for row in connection.execute(wanted)}


def _rows(
    connection: Connection, wanted: Mapping[str, object], entries: Sequence[ScheduleEntry]
) -> tuple[Sequence[Any], float | None]:
    """Of the newest tasks of a name, those with arguments of one of the entries; and the time of the oldest that was
    looked at, where there are more."""
    args = sorted({form for entry in entries for form in _forms(entry.args)})
    kwargs = sorted({entry.kwargs for entry in entries})
    rows = connection.execute(_mine, {**wanted, "wanted_args": args, "wanted_kwargs": kwargs}).all()
    edge = rows[0].oldest if rows[0].looked_at == wanted["most"] else None
    return [row for row in rows if row.key is not None], edge


def _statement() -> Any:
    """Built once: to build it costs more than to run it."""
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
    told = newest.c
    edge = select(func.count().label("looked_at"), func.min(told.sort_time).label("oldest")).subquery("edge")
    mine = and_(
        or_(told.args.is_(None), told.args.in_(bindparam("wanted_args", expanding=True))),
        or_(told.kwargs.is_(None), told.kwargs.in_(bindparam("wanted_kwargs", expanding=True))),
    )
    both = edge.outerjoin(newest, mine)
    return select(newest, edge.c.looked_at, edge.c.oldest).select_from(both).order_by(told.sort_time.desc())


_mine = _statement()


def _first_messages(connection: Connection, retried: Sequence[int]) -> dict[int, Invocation]:
    """What beat sent, of tasks that were retried: the row of the task tells of the retry, which a worker sent."""
    table = schema.run.c
    found: dict[int, Invocation] = {}
    for start in range(0, len(retried), _CHUNK):
        wanted = and_(table.task_id.in_(retried[start : start + _CHUNK]), table.ordinal == 0)
        for row in connection.execute(select(table.task_id, table.message).where(wanted)):
            if row.message is not None:
                found[row.task_id] = unpack_invocation(row.message)
    return found


def _run(row: Any, told: dict[int, str], first: Invocation | None) -> ScheduledRun:
    sent = row.sent if first is None else first.sent
    return ScheduledRun(
        id=from_key(row.key),
        at=sent if sent is not None else row.sort_time,
        by_receipt=sent is None,
        state=STATES[row.state],
        client=told.get(row.client_id) if first is None else first.client,
        queue=told.get(row.queue_id) if first is None else first.queue,
    )


def _is_of(row: Any, entry: ScheduleEntry) -> bool:
    return (row.args is None or row.args in _forms(entry.args)) and row.kwargs in {None, entry.kwargs}


def _forms(args: str) -> tuple[str, ...]:
    """Beat sends a list where others send a tuple: ``['a']`` and ``('a',)`` are the same arguments."""
    inside = args[1:-1].removesuffix(",")
    return f"[{inside}]", f"({inside})", f"({inside},)"


def _asked_key(cluster: str) -> str:
    return f"schedule asked: {cluster}"


def _beat_key(cluster: str) -> str:
    return f"beat: {cluster}"


WINDOW_SECONDS = 86400.0
LEAST_RUNS, ALL_RUNS = 50, 20_000  # of each entry, and of all together
STOPPED_ENTRIES = 2  # entries overdue together say that beat itself has stopped
LAST_SECONDS = 40 * 86400.0  # how far back a last run is looked for, where the window has none


class Scheduled(NamedTuple):
    """One entry and how it does; ``known_until``: when it is not known what beat sent since then."""

    entry: ScheduleEntry
    standing: EntryState
    known_until: float | None = None


def read_schedule(
    store: Store, cluster: str | None, now: float, known_until: Mapping[str, float], most: int = MOST_RUNS
) -> list[Scheduled]:
    """Every entry of the clusters, judged by the last day and the newest tasks of its name: at most ``most``, fewer
    where there are many entries.

    ``known_until`` names the clusters of which the record does not know what was sent since then: there nothing is
    overdue.
    """
    found: list[Scheduled] = []
    by_cluster: dict[str, list[ScheduleEntry]] = {}
    for entry in read_entries(store, cluster):
        by_cluster.setdefault(entry.cluster, []).append(entry)
    for name, entries in by_cluster.items():
        found += _of_cluster(store, name, entries, _Moment(now, known_until.get(name)), most)
    return found


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
            standing = _unaccused(standing, known_until)
        elif standing.overdue is not None:
            standing = standing._replace(may_wait_in=may_wait_in(entry, standing.last, waiting))
        found.append(Scheduled(entry, standing, known_until))
    return found


def _unaccused(standing: EntryState, known_until: float) -> EntryState:
    """What it missed while the record could tell still counts; whether it is overdue now cannot be told."""
    if known_until <= standing.since:
        standing = standing._replace(missed=None, late=None)
    return standing._replace(overdue=None)


def all_overdue(rows: Sequence[Scheduled]) -> bool:
    """Everything that is expected of beat is overdue: it seems to have stopped."""
    overdue = sum(row.standing.surely_overdue for row in rows)
    return overdue >= STOPPED_ENTRIES and overdue == sum(_expected(row) for row in rows)


def _expected(row: Scheduled) -> bool:
    return row.standing.last_at is not None and (row.standing.next is not None or row.standing.overdue is not None)


def _runs(store: Store, cluster: str, entries: Sequence[ScheduleEntry], now: float, most: int) -> dict[str, Runs]:
    since = now - WINDOW_SECONDS
    found = runs_of(store, cluster, entries, since, most)
    # Where not all of the window was looked at, nothing older would be.
    none = [entry for entry in entries if not found[entry.name].runs and found[entry.name].since <= since]
    return found | (runs_of(store, cluster, none, now - LAST_SECONDS, LEAST_RUNS) if none else {})
