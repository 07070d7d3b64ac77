"""Receivers that share the tasks of a cluster, told as one. No I/O, no clock."""

from collections.abc import Sequence

import msgspec

from monitor.records import ReceiverHealth
from monitor.records import ReceiverShard


def combined(spoken: Sequence[ReceiverHealth]) -> ReceiverHealth:
    """All receivers of a cluster as one; it is no better off than the worst of them.

    What the one that spoke last says of their number holds: rows of another number are of an earlier time.
    """
    last = max(spoken, key=lambda each: each.updated_at or 0.0)
    shards = {each.shard: each for each in spoken if each.shards == last.shards and each.shard <= each.shards}
    if last.shards == 1:
        return last
    parts = tuple(_part(number, shards.get(number)) for number in range(1, last.shards + 1))
    lags = [part.lag_seconds for part in parts]
    known = list(shards.values())
    return msgspec.structs.replace(
        shards.get(1, last),
        connected=all(part.connected for part in parts),
        error="; ".join(_said(part, last.shards) for part in parts if part.error or part.connected is None) or None,
        unwritten=next((each.unwritten for each in known if each.unwritten), None),
        last_event_at=max((each.last_event_at for each in known if each.last_event_at is not None), default=None),
        lag_seconds=None if None in lags else max(lag for lag in lags if lag is not None),
        events_total=sum(each.events_total for each in known),
        dropped_total=sum(each.dropped_total for each in known),
        malformed_total=max(each.malformed_total for each in known),  # each receiver gets all of them
        unknown_total=max(each.unknown_total for each in known),
        updated_at=last.updated_at,
        notices=tuple(text for each in known for text in each.notices),
        refused=tuple({each: None for part in known for each in part.refused}),  # each receiver gets all of them
        helpers=tuple(helper for each in known for helper in each.helpers),
        parts=parts,
    )


def silent_parts(health: ReceiverHealth, before: float) -> list[ReceiverShard]:
    """Those of several receivers that have said nothing since then."""
    return [part for part in health.parts if part.updated_at is None or part.updated_at < before]


def _part(number: int, said: ReceiverHealth | None) -> ReceiverShard:
    if said is None:
        return ReceiverShard(shard=number)
    names = (name for name in ReceiverShard.__struct_fields__ if name != "shard")
    return ReceiverShard(shard=number, **{name: getattr(said, name) for name in names})


def _said(part: ReceiverShard, total: int) -> str:
    return f"receiver {part.shard}/{total}: {part.error or 'has never run'}"
