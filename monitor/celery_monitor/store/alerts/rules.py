"""Rules of alerts and channels for their messages."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, update

from celery_monitor.core.alerts.kinds import DEFAULT_RULES, KINDS
from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.alert import Channel, Rule
from celery_monitor.store import schema
from celery_monitor.store.engine import Store

MOST_RULES = 200
MOST_CHANNELS = 50
_pack = msgspec.msgpack.Encoder().encode
_rule_of = msgspec.msgpack.Decoder(Rule).decode
_channel_of = msgspec.msgpack.Decoder(Channel).decode
_rules = schema.alert_rule
_channels = schema.alert_channel


def read_rules(store: Store) -> list[Rule]:
    """Every rule, by name: those of the file, of the page, and the defaults that neither of them replaces."""
    with store.read() as connection:
        return list(_read(connection).values())


def read_rule(store: Store, name: str) -> Rule:
    """One rule. Raises NotFound."""
    with store.read() as connection:
        return _one(connection, name)


def _read(connection: Connection) -> dict[str, Rule]:
    rows = connection.execute(select(_rules.c.record).order_by(_rules.c.source.desc())).scalars()  # page, then file
    stored = {rule.name: rule for rule in map(_rule_of, rows) if rule.kind in KINDS}
    return dict(sorted({**DEFAULT_RULES, **stored}.items()))


def _one(connection: Connection, name: str) -> Rule:
    found = _read(connection).get(name)
    if found is None:
        raise NotFound(f"There is no rule {name!r}; it may have been deleted.", name=name)
    return found


def save_rule(store: Store, rule: Rule) -> Rule:
    """Stores a rule of the page; it replaces the default of its name.

    Raises Conflict where the file has a rule of this name, or there are too many.
    """
    with store.begin() as connection:
        rules = _read(connection)
        before = rules.get(rule.name)
        _check_not_in_file(before)
        if before is None and len(rules) >= MOST_RULES:
            raise Conflict(f"There are {len(rules)} rules, the most allowed; delete one that is not needed.")
        _put(store, connection, msgspec.structs.replace(rule, source="page"))
    return rule


def delete_rule(store: Store, name: str) -> Rule:
    """Deletes a rule of the page; a default of its name applies again. Raises NotFound and Conflict."""
    with store.begin() as connection:
        rule = _one(connection, name)
        _check_not_in_file(rule)
        if rule.source == "default":
            raise Conflict(f"{name!r} is a default rule; disable it instead.", name=name)
        connection.execute(delete(_rules).where(_rules.c.name == name, _rules.c.source == "page"))
        return rule


def _check_not_in_file(rule: Rule | None) -> None:
    if rule is not None and rule.source == "file":
        raise Conflict(f"{rule.name!r} is in the rules file; change it there.", name=rule.name)


def save_file_rules(store: Store, rules: Sequence[Rule]) -> None:
    """Replaces the rules of the file."""
    with store.begin() as connection:
        connection.execute(delete(_rules).where(_rules.c.source == "file"))
        for rule in rules:
            _put(store, connection, msgspec.structs.replace(rule, source="file"))


def _put(store: Store, connection: Connection, rule: Rule) -> None:
    statement = store.insert(_rules).values(name=rule.name, source=rule.source, record=_pack(rule))
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name", "source"], set_={"record": statement.excluded.record})
    )


def read_channels(store: Store) -> list[Channel]:
    """Every channel, by name, with its secrets."""
    with store.read() as connection:
        rows = connection.execute(select(_channels).order_by(func.lower(_channels.c.name), _channels.c.id)).all()
    return [_channel(row) for row in rows]


def read_channel(store: Store, id: int) -> Channel:  # noqa: A002
    """One channel, with its secrets. Raises NotFound."""
    with store.read() as connection:
        return _one_channel(connection, id)


def add_channel(store: Store, channel: Channel) -> Channel:
    """Stores a new channel. Raises Conflict where the name is taken or there are too many."""
    statement = store.insert(_channels).values(name=channel.name, record=_pack(channel))
    with store.begin() as connection:
        count: int = connection.execute(select(func.count()).select_from(_channels)).scalar_one()
        if count >= MOST_CHANNELS:
            raise Conflict(f"There are {count} channels, the most allowed; delete one that is not needed.")
        added = statement.on_conflict_do_nothing(index_elements=["name"]).returning(_channels.c.id)
        number = connection.execute(added).scalar()
        if number is None:
            raise Conflict(f"There is a channel {channel.name!r} already; choose another name.", name=channel.name)
        return _one_channel(connection, number)


def change_channel(store: Store, id: int, **fields: object) -> Channel:  # noqa: A002
    """Changes fields of a channel, but not its name. Raises NotFound."""
    with store.begin() as connection:
        channel = msgspec.structs.replace(_one_channel(connection, id), **fields)
        connection.execute(update(_channels).where(_channels.c.id == id).values(record=_pack(channel)))
        return channel


def delete_channel(store: Store, id: int) -> Channel:  # noqa: A002
    """Deletes a channel with its messages, and returns it as it was. Raises NotFound."""
    with store.begin() as connection:
        channel = _one_channel(connection, id)
        connection.execute(delete(_channels).where(_channels.c.id == id))
        connection.execute(delete(schema.alert_message).where(schema.alert_message.c.channel_id == id))
        return channel


def _one_channel(connection: Connection, id: int) -> Channel:  # noqa: A002
    row = connection.execute(select(_channels).where(_channels.c.id == id)).first() if 0 < id < 2**31 else None
    if row is None:
        raise NotFound(f"There is no channel {id}; it may have been deleted.", id=id)
    return _channel(row)


def _channel(row: Row[Any]) -> Channel:
    changing = {name: getattr(row, name) for name in ("id", "sent_at", "digest_at", "error")}
    return msgspec.structs.replace(_channel_of(row.record), **changing)
