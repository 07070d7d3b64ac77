"""What is known of clusters beside their tasks: workers, queues, receivers, gaps, actions, names."""

from typing import Any

import msgspec
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Row
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import select

from monitor.errors import InvalidInput
from monitor.errors import NotFound
from monitor.records import UNSAID_SECONDS
from monitor.records import Action
from monitor.records import Gap
from monitor.records import Page
from monitor.records import Pause
from monitor.records import Queue
from monitor.records import QueueSample
from monitor.records import ReceiverEnding
from monitor.records import ReceiverHealth
from monitor.records import Reconciliation
from monitor.records import StandbyReceiver
from monitor.records import Worker
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.journal import ENDING
from monitor.store.journal import PAUSED
from monitor.store.journal import RISING
from monitor.store.journal import STANDBY
from monitor.store.journal import unpack_health
from monitor.store.journal import unpack_worker
from monitor.store.load import checked_time
from monitor.store.load import cluster_names
from monitor.store.load import numbers_of
from monitor.store.load import storable
from monitor.store.page import Cursor
from monitor.store.page import read_cursor
from monitor.store.page import write_cursor
from monitor.store.schema import TERM_KINDS

MOST_ROWS = 1000
_names = msgspec.json.Decoder(tuple[str, ...]).decode
_reconciliation = msgspec.json.Decoder(Reconciliation).decode
_parameters = msgspec.json.Decoder(dict[str, object]).decode


def clusters(store: Store) -> list[str]:
    """Every cluster that anything was heard of, in the order in which they came."""
    with store.read() as connection:
        return list(cluster_names(connection).values())


def workers(store: Store, cluster: str | None = None) -> list[Worker]:
    """Every worker known, by cluster and name."""
    table = schema.worker.c
    with store.read() as connection:
        wanted = table.cluster_id.in_(numbers_of(connection, cluster))
        rows = connection.execute(select(table.record).where(wanted).order_by(table.cluster_id, table.hostname))
        return [unpack_worker(record) for record in rows.scalars()]


def worker(store: Store, hostname: str, cluster: str | None = None) -> Worker:
    """Raises NotFound. Where several clusters have one of this name, the one heard of last."""
    table = schema.worker.c
    with store.read() as connection:
        wanted = (table.hostname == hostname, table.cluster_id.in_(numbers_of(connection, cluster)))
        rows = connection.execute(select(table.record).where(*wanted)).scalars() if storable(hostname) else ()
        found = [unpack_worker(record) for record in rows]
    if not found:
        raise NotFound(f"no worker {hostname!r} is known", hostname=hostname)
    return max(found, key=lambda each: each.last_heartbeat or 0.0)


def queues(store: Store, cluster: str | None = None) -> list[Queue]:
    """Every queue as last sampled, by cluster and name."""
    table = schema.queue
    with store.read() as connection:
        names = cluster_names(connection)
        wanted = table.c.cluster_id.in_(numbers_of(connection, cluster))
        rows = connection.execute(select(table).where(wanted).order_by(table.c.cluster_id, table.c.name)).all()
    return [_queue(row, names) for row in rows]


def rising(store: Store, cluster: str | None = None) -> set[tuple[str, str]]:
    """The queues that begin to grow, as cluster and name, by the samples of the last minute."""
    table = schema.meta.c
    statement = select(table.key, table.value).where(table.key.startswith(RISING, autoescape=True))
    with store.read() as connection:
        rows = connection.execute(statement).all()
    told = {row.key.removeprefix(RISING): msgspec.json.decode(row.value, type=list[str]) for row in rows}
    return {(place, name) for place, names in told.items() if cluster in (None, place) for name in names}


def _queue(row: Row[Any], names: dict[int, str]) -> Queue:
    return Queue(
        cluster=names[row.cluster_id],
        name=row.name,
        ready=row.ready,
        unacked=row.unacked,
        consumers=row.consumers,
        oldest=row.oldest,
        oldest_exact=row.oldest_exact,
        sampled_at=row.sampled_at,
        workers=_names(row.workers),
    )


def queue_history(store: Store, name: str, cluster: str, since: float) -> list[QueueSample]:
    """The queue minute by minute, the largest depth of each."""
    checked_time(since)
    if not storable(name):
        return []
    table = schema.queue_sample.c
    with store.read() as connection:
        wanted = (
            table.cluster_id.in_(numbers_of(connection, cluster)),
            table.name == name,
            table.at >= since // 60 * 60,
        )
        rows = connection.execute(
            select(table.at, table.ready, table.unacked, table.consumers, table.oldest)
            .where(*wanted)
            .order_by(table.at)
        )
        return [QueueSample(**row._mapping) for row in rows]


def is_level(store: Store, cluster: str, now: float) -> bool:
    """Silence means something: the receiver hears its broker, is not behind, and has said so a moment ago."""
    return any(each.cluster == cluster and each.is_level(now, UNSAID_SECONDS) for each in health(store))


def health(store: Store) -> list[ReceiverHealth]:
    """What the receiver of each cluster last reported of itself."""
    table = schema.receiver.c
    with store.read() as connection:
        rows = connection.execute(select(table.record).where(table.shard == 1).order_by(table.cluster_id))
        return [unpack_health(record) for record in rows.scalars()]


def receiver_health(store: Store, cluster: str) -> ReceiverHealth | None:
    """The same of one cluster; ``None`` before its first receiver has reported."""
    return next((each for each in health(store) if each.cluster == cluster), None)


def standbys(store: Store, since: float) -> list[StandbyReceiver]:
    """The receivers that stand by and have said so since then, by cluster and host."""
    table = schema.meta.c
    statement = select(table.value).where(table.key.startswith(STANDBY, autoescape=True)).order_by(table.key)
    with store.read() as connection:
        found = [msgspec.json.decode(text, type=StandbyReceiver) for text in connection.execute(statement).scalars()]
    return [each for each in found if each.updated_at >= since]


def endings(store: Store, since: float) -> list[ReceiverEnding]:
    """The receivers whose process ended by itself since then, by cluster."""
    table = schema.meta.c
    statement = select(table.value).where(table.key.startswith(ENDING, autoescape=True)).order_by(table.key)
    with store.read() as connection:
        found = [msgspec.json.decode(text, type=ReceiverEnding) for text in connection.execute(statement).scalars()]
    return [each for each in found if each.at >= since]


def open_gaps(store: Store, cluster: str) -> list[Gap]:
    """The gaps of a cluster that have not ended, the oldest first."""
    with store.read() as connection:
        found = gaps_between(connection, 0.0, None, cluster)
    return [gap for gap in found if gap.ended is None]


def gaps(store: Store, since: float, cluster: str | None = None) -> list[Gap]:
    """The gaps that reach into the time from ``since`` on, the oldest first."""
    with store.read() as connection:
        return gaps_between(connection, checked_time(since), None, cluster)


def gaps_between(connection: Connection, since: float, until: float | None, cluster: str | None) -> list[Gap]:
    """The same up to ``until``."""
    table = schema.gap
    wanted: list[ColumnElement[bool]] = [table.c.cluster_id.in_(numbers_of(connection, cluster))]
    wanted.append(or_(table.c.ended.is_(None), table.c.ended >= since))
    if until is not None:
        wanted.append(table.c.began < until)
    names = cluster_names(connection)
    rows = connection.execute(select(table).where(*wanted).order_by(table.c.began))
    return [
        Gap(
            cluster=names[row.cluster_id],
            began=row.began,
            ended=row.ended,
            cause=row.cause,
            dropped=row.dropped,
            id=row.id,
            reconciliation=_reconciliation(row.reconciliation) if row.reconciliation else None,
        )
        for row in rows
    ]


def pauses(store: Store, cluster: str | None = None) -> dict[tuple[str, str], Pause]:
    """The queues that are paused, by cluster and name."""
    table = schema.meta.c
    statement = select(table.value).where(table.key.startswith(PAUSED, autoescape=True))
    with store.read() as connection:
        found = [msgspec.json.decode(text, type=Pause) for text in connection.execute(statement).scalars()]
    return {(pause.cluster, pause.queue): pause for pause in found if cluster in (None, pause.cluster)}


def actions(
    store: Store,
    *,
    limit: int = 50,
    cursor: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    outcome: str | None = None,
    target: str | None = None,
    cluster: str | None = None,
) -> Page[Action]:
    """Who did what, the newest first. Raises InvalidInput for a cursor or a limit that cannot be."""
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidInput(f"a page has 1 to {MOST_ROWS} actions, not {limit}")
    place = read_cursor(cursor, "actions") if cursor is not None else None
    older = place is None or place.direction == "next"
    table = schema.action
    statement = select(table).order_by(table.c.id.desc() if older else table.c.id.asc()).limit(limit + 1)
    if place is not None:
        statement = statement.where(table.c.id < place.id if older else table.c.id > place.id)
    for column, value in ((table.c.actor, actor), (table.c.outcome, outcome), (table.c.target, target)):
        if value is not None:
            statement = statement.where(column == value)
    if action is not None:
        statement = statement.where(_named(table.c.action, action))
    with store.read() as connection:
        if cluster is not None:
            statement = statement.where(table.c.cluster_id.in_(numbers_of(connection, cluster)))
        names = cluster_names(connection)
        rows = connection.execute(statement).all()
    more, rows = len(rows) > limit, rows[:limit][:: 1 if older else -1]
    return Page(
        items=[_action(row, names) for row in rows],
        next=_beside("next", rows[-1]) if rows and (more or not older) else None,
        previous=_beside("previous", rows[0]) if rows and (more if not older else place is not None) else None,
    )


def _named(column: ColumnElement[str], action: str) -> ColumnElement[bool]:
    """``worker.shutdown``, or with ``worker.*`` every action on workers."""
    if action.endswith(".*"):
        return column.startswith(action[:-1], autoescape=True)
    return column == action


def _beside(direction: str, row: Row[Any]) -> str:
    return write_cursor(Cursor("actions", direction, row.id, row.id))  # type: ignore[arg-type]


def _action(row: Row[Any], names: dict[int, str]) -> Action:
    values = {**row._mapping}
    values["cluster"] = names.get(values.pop("cluster_id"))
    values["parameters"] = _parameters(values["parameters"])
    return Action(**values)


def terms(store: Store, kind: str, prefix: str, limit: int = 20) -> list[str]:
    """Known names of a kind that begin with the prefix, or else have it in them; for autocomplete."""
    if kind not in TERM_KINDS:
        raise InvalidInput(f"there are no names of kind {kind!r}; known are {', '.join(TERM_KINDS)}")
    if not storable(prefix):
        return []
    table = schema.term.c
    begins, inside = (
        func.lower(table.text).startswith if first else func.lower(table.text).contains for first in (1, 0)
    )
    text = prefix.lower()
    statement = select(table.text).where(table.kind == TERM_KINDS[kind], inside(text, autoescape=True))
    statement = statement.order_by(begins(text, autoescape=True).desc(), table.text).limit(limit)
    with store.read() as connection:
        return list(connection.execute(statement).scalars())
