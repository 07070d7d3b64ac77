"""Alerts and their messages.

A transition and its messages are stored in one transaction, under the condition that nobody has stored it before; a
message is claimed in another one before it is sent. So one alert is sent once, however many receivers there are. A
message whose sender died is *unconfirmed*: it may have arrived, so it is never sent again.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, or_, select, update

from celery_monitor.core.alerts.judging import DIGEST_SECONDS, Standing, gets
from celery_monitor.records.alert import (
    Alert,
    AlertState,
    Change,
    Channel,
    Notification,
    NotificationState,
    Transition,
)
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.terms import cluster_id, cluster_ids

SAVE_SECONDS = 20.0  # how often an alert is stored that only goes on
CLAIM_SECONDS = 90.0  # longer than sending takes
KEEP_SECONDS = 90 * 86400.0
KEEP_ALERTS = 20_000
MOST_WAITING = 2000
DIED = "the process ended while sending; the message may have arrived"
_pack = msgspec.msgpack.Encoder().encode
_alert_of = msgspec.msgpack.Decoder(Alert).decode
_table = schema.alert
_messages = schema.alert_message


def read_standing(store: Store, cluster: str, since: float) -> dict[str, Standing]:
    """The pending and firing alerts by rule, and when each subject last fired, after ``since``."""
    alerts: dict[str, dict[str, Alert]] = defaultdict(dict)
    fired: dict[str, dict[str, float]] = defaultdict(dict)
    with store.read() as connection:
        mine = _table.c.cluster_id.in_(cluster_ids(connection, cluster))
        for row in connection.execute(select(_table).where(mine, _table.c.resolved_at.is_(None))):
            alerts[row.rule][row.subject] = _alert(row)
        last = select(_table.c.rule, _table.c.subject, func.max(_table.c.fired_at).label("at"))
        last = last.where(mine, _table.c.fired_at > since).group_by(_table.c.rule, _table.c.subject)
        for row in connection.execute(last):
            fired[row.rule][row.subject] = row.at
    return {rule: Standing(alerts[rule], fired[rule]) for rule in {*alerts, *fired}}


def save_changes(store: Store, cluster: str, changes: Iterable[Change], channels: Sequence[Channel]) -> list[Alert]:
    """Stores what one judgement has changed, and a message of each transition for every channel that gets it.

    Returns the alerts that have fired or ended by it. What another receiver has stored before is left alone.
    """
    changes = [each for each in changes if _is_due(each)]
    if not changes:
        return []
    stored = []
    with store.begin() as connection:
        number = cluster_id(store, connection, cluster)
        for change in changes:
            alert = _save(store, connection, number, change)
            if alert is None:
                continue
            if change.transition is not None:
                _add_messages(store, connection, alert, change.transition, channels)
            if change.transition is not None or alert.state is AlertState.RESOLVED:
                stored.append(alert)
    return stored


def _is_due(change: Change) -> bool:
    alert = change.alert
    new = not alert.id or change.removed or change.transition or alert.state is AlertState.RESOLVED
    return bool(new) or alert.judged_at - alert.stored_at >= SAVE_SECONDS


def _save(store: Store, connection: Connection, cluster: int, change: Change) -> Alert | None:
    """The alert as it is stored; ``None`` where another receiver was first."""
    alert = change.alert
    if change.removed:
        connection.execute(delete(_table).where(_table.c.id == alert.id, _table.c.state == AlertState.PENDING.value))
        return None
    alert = msgspec.structs.replace(alert, stored_at=alert.judged_at)
    values = {
        "state": alert.state.value,
        "fired_at": alert.fired_at,
        "resolved_at": alert.resolved_at,
        "record": _pack(alert),
    }
    if not alert.id:
        new = {"cluster_id": cluster, "rule": alert.rule, "subject": alert.measured.subject, **values}
        statement = store.insert(_table).values(new).on_conflict_do_nothing().returning(_table.c.id)
        number = connection.execute(statement).scalar()
    else:
        before = AlertState.PENDING if change.transition == "fired" else alert.state
        if alert.state is AlertState.RESOLVED:
            before = AlertState.FIRING
        changed = update(_table).where(_table.c.id == alert.id, _table.c.state == before.value)
        number = connection.execute(changed.values(values).returning(_table.c.id)).scalar()
    return None if number is None else msgspec.structs.replace(alert, id=number)


def _add_messages(
    store: Store, connection: Connection, alert: Alert, transition: Transition, channels: Sequence[Channel]
) -> None:
    """A resolved message goes to the channels that get the first one."""
    if transition == "resolved":
        first = select(_messages.c.channel_id).where(
            _messages.c.alert_id == alert.id, _messages.c.transition == "fired"
        )
        wanted = list(connection.execute(first).scalars())
    else:
        wanted = [each.id for each in channels if gets(each, alert)]
    at = alert.judged_at
    state = NotificationState.WAITING.value
    rows = [
        {"channel_id": each, "alert_id": alert.id, "transition": transition, "state": state}
        | {"created_at": at, "due_at": at}
        for each in wanted
    ]
    if rows:
        connection.execute(store.insert(_messages).on_conflict_do_nothing(), rows)


def read_alerts(
    store: Store,
    *,
    cluster: str | None = None,
    states: Collection[AlertState] = (AlertState.FIRING,),
    before: int | None = None,
    limit: int = 100,
) -> list[Alert]:
    """Alerts in these states, the latest first; ``before`` continues after the one with that number."""
    with store.read() as connection:
        wanted: list[ColumnElement[bool]] = [
            _table.c.cluster_id.in_(cluster_ids(connection, cluster)),
            _table.c.state.in_([each.value for each in states]),
        ]
        if before is not None:
            wanted.append(_table.c.id < before)
        statement = select(_table).where(*wanted).order_by(_table.c.id.desc()).limit(limit)
        return [_alert(row) for row in connection.execute(statement)]


def count_firing(store: Store, cluster: str | None = None) -> int:
    """The number of firing alerts."""
    with store.read() as connection:
        mine = _table.c.cluster_id.in_(cluster_ids(connection, cluster))
        firing = _table.c.state == AlertState.FIRING.value, _table.c.resolved_at.is_(None)
        return int(connection.execute(select(func.count()).where(mine, *firing)).scalar_one())


def _alert(row: Row[Any]) -> Alert:
    return msgspec.structs.replace(_alert_of(row.record), id=row.id)


# Messages


def add_test(store: Store, channel: int, at: float) -> int:
    """A test message, to be sent as all others are; returns its number."""
    values = {"channel_id": channel, "transition": "test", "state": NotificationState.WAITING.value}
    with store.begin() as connection:
        statement = store.insert(_messages).values(**values, created_at=at, due_at=at).returning(_messages.c.id)
        return int(connection.execute(statement).scalar_one())


def read_messages(
    store: Store, *, states: Collection[NotificationState] | None = None, number: int | None = None, limit: int = 50
) -> list[Notification]:
    """Messages in these states, or the one of this number, the latest first."""
    statement = select(_messages, _table.c.record).outerjoin(_table, _table.c.id == _messages.c.alert_id)
    if states is not None:
        statement = statement.where(_messages.c.state.in_([each.value for each in states]))
    if number is not None:
        statement = statement.where(_messages.c.id == number)
    with store.read() as connection:
        rows = connection.execute(statement.order_by(_messages.c.id.desc()).limit(limit)).all()
    return [_notification(row) for row in rows]


def read_waiting(store: Store, now: float) -> dict[int, list[Notification]]:
    """Messages that are due, by channel, the oldest first."""
    found: dict[int, list[Notification]] = defaultdict(list)
    due = and_(_messages.c.state == NotificationState.WAITING.value, _messages.c.due_at <= now)
    statement = select(_messages, _table.c.record).outerjoin(_table, _table.c.id == _messages.c.alert_id)
    with store.read() as connection:
        for row in connection.execute(statement.where(due).order_by(_messages.c.id).limit(MOST_WAITING)):
            found[row.channel_id].append(_notification(row))
    return found


def _notification(row: Row[Any]) -> Notification:
    alert = None if row.record is None else msgspec.structs.replace(_alert_of(row.record), id=row.alert_id)
    copied = ("id", "transition", "created_at", "due_at", "attempts", "sent_at", "error")
    return Notification(
        **{name: getattr(row, name) for name in copied},
        channel=row.channel_id,
        alert=alert,
        state=NotificationState(row.state),
    )


def recent_batches(store: Store, now: float) -> Mapping[int, int]:
    """How many messages each channel got, or may have got, in the last DIGEST_SECONDS."""
    since = now - DIGEST_SECONDS
    sent = or_(_messages.c.sent_at > since, _messages.c.claimed_at > since)
    statement = select(_messages.c.channel_id, func.count(_messages.c.batch.distinct()).label("number"))
    statement = statement.where(sent, _messages.c.transition != "test").group_by(_messages.c.channel_id)
    with store.read() as connection:
        return {row.channel_id: int(row.number) for row in connection.execute(statement)}


def claim(store: Store, numbers: Sequence[int], batch: str, now: float) -> set[int]:
    """Marks messages as being sent by us; returns those that nobody else has claimed."""
    waiting = _messages.c.state == NotificationState.WAITING.value
    values = {"state": NotificationState.SENDING.value, "batch": batch, "claimed_at": now}
    statement = update(_messages).where(_messages.c.id.in_(numbers), waiting)
    with store.begin() as connection:
        claimed = statement.values(**values, attempts=_messages.c.attempts + 1).returning(_messages.c.id)
        return set(connection.execute(claimed).scalars())


def end_batch(
    store: Store,
    channel: int,
    batch: str,
    state: NotificationState,
    now: float,
    *,
    error: str | None = None,
    due_at: float | None = None,
    digest: bool = False,
) -> None:
    """Stores the fate of a batch; ``due_at``: when it is tried again."""
    values: dict[str, object] = {"state": state.value, "error": error}
    if due_at is not None:
        values["due_at"] = due_at
    status: dict[str, object] = {"error": error}
    if state is NotificationState.SENT:
        values["sent_at"] = status["sent_at"] = now
    if digest:
        status["digest_at"] = now
    with store.begin() as connection:
        connection.execute(update(_messages).where(_messages.c.batch == batch).values(values))
        connection.execute(update(schema.alert_channel).where(schema.alert_channel.c.id == channel).values(status))


def settle_claims(store: Store, now: float) -> int:
    """Messages whose sender has died become unconfirmed; returns how many."""
    dead = and_(_messages.c.state == NotificationState.SENDING.value, _messages.c.claimed_at < now - CLAIM_SECONDS)
    with store.read() as connection:
        if connection.execute(select(_messages.c.id).where(dead).limit(1)).first() is None:
            return 0
    with store.begin() as connection:
        values = {"state": NotificationState.UNCONFIRMED.value, "error": DIED}
        return int(connection.execute(update(_messages).where(dead).values(values)).rowcount)


def delete_old_alerts(store: Store, now: float) -> None:
    """Deletes old alerts that are over, and their messages."""
    with store.begin() as connection:
        newest = connection.execute(select(func.max(_table.c.id))).scalar() or 0
        over = _table.c.resolved_at.is_not(None)
        old = select(_table.c.id).where(
            over, or_(_table.c.resolved_at < now - KEEP_SECONDS, _table.c.id <= newest - KEEP_ALERTS)
        )
        connection.execute(delete(_messages).where(_messages.c.alert_id.in_(old)))
        connection.execute(delete(_table).where(_table.c.id.in_(old)))
        ended = _messages.c.alert_id.is_(None), _messages.c.created_at < now - KEEP_SECONDS
        connection.execute(delete(_messages).where(*ended))
