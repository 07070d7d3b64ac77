"""What beat is to send, as it was last told, and which tasks it may have sent."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection
from sqlalchemy import and_
from sqlalchemy import bindparam
from sqlalchemy import delete
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import select

from monitor.errors import NotFound
from monitor.records import BeatHealth
from monitor.records import Invocation
from monitor.records import ScheduledRun
from monitor.records import ScheduleEntry
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.load import numbers_of
from monitor.store.load import storable
from monitor.store.rows import STATES
from monitor.store.rows import unpack_invocation
from monitor.store.terms import cluster_id
from monitor.store.terms import texts

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
        asked = store.insert(schema.meta).values(key=_asked_key(cluster), value=repr(at))
        connection.execute(asked.on_conflict_do_update(index_elements=["key"], set_={"value": asked.excluded.value}))


def schedule(store: Store, cluster: str | None = None) -> list[ScheduleEntry]:
    """Every entry, by cluster and name."""
    with store.read() as connection:
        wanted = _table.c.cluster_id.in_(numbers_of(connection, cluster))
        rows = connection.execute(select(_table.c.record).where(wanted).order_by(_table.c.cluster_id, _table.c.name))
        return [_unpack(record) for record in rows.scalars()]


def schedule_entry(store: Store, name: str, cluster: str) -> ScheduleEntry:
    """Raises NotFound."""
    found = [entry for entry in schedule(store, cluster) if entry.name == name]
    if not found:
        raise NotFound(f"the schedule of {cluster} has no entry {name!r}", name=name)
    return found[0]


def schedule_heard_at(store: Store, cluster: str) -> float | None:
    """When the schedule of a cluster was last told; ``None``: never, so whether there is one is not known."""
    with store.read() as connection:
        value = connection.execute(select(schema.meta.c.value).where(schema.meta.c.key == _asked_key(cluster))).scalar()
    return None if value is None else float(value)


def beat_health(store: Store, cluster: str) -> BeatHealth:
    """What the receiver last found out of beat; nothing known where it never looked."""
    with store.read() as connection:
        value = connection.execute(select(schema.meta.c.value).where(schema.meta.c.key == _beat_key(cluster))).scalar()
    return BeatHealth(cluster=cluster) if value is None else msgspec.json.decode(value, type=BeatHealth)


def save_beat_health(store: Store, health: BeatHealth) -> None:
    row = {"key": _beat_key(health.cluster), "value": msgspec.json.encode(health).decode()}
    with store.begin() as connection:
        insert = store.insert(schema.meta).values(**row)
        connection.execute(insert.on_conflict_do_update(index_elements=["key"], set_={"value": insert.excluded.value}))


class Runs(NamedTuple):
    """The tasks that may be an entry's, the newest first; older ones than ``since`` were not looked at."""

    runs: list[ScheduledRun]
    since: float


def entry_runs(store: Store, entry: ScheduleEntry, since: float, limit: int = MOST_RUNS) -> list[ScheduledRun]:
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
        numbers = numbers_of(connection, cluster)
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
            *(_task.key, _task.sent, _task.seen, _task.state, _task.client_id, _task.queue_id),
            *(_task.args, _task.kwargs, _task.id, _task.retries),
        )
        .where(_task.name_id == bindparam("name"), _task.seen >= bindparam("since"))
        .where(_task.cluster_id.in_(bindparam("clusters", expanding=True)))
        .order_by(_task.seen.desc(), _task.id.desc())
        .limit(bindparam("most"))
        .cte("newest")
    )
    told = newest.c
    edge = select(func.count().label("looked_at"), func.min(told.seen).label("oldest")).subquery("edge")
    mine = and_(
        or_(told.args.is_(None), told.args.in_(bindparam("wanted_args", expanding=True))),
        or_(told.kwargs.is_(None), told.kwargs.in_(bindparam("wanted_kwargs", expanding=True))),
    )
    both = edge.outerjoin(newest, mine)
    return select(newest, edge.c.looked_at, edge.c.oldest).select_from(both).order_by(told.seen.desc())


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
        at=sent if sent is not None else row.seen,
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
