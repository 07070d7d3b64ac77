"""What RedBeat is to send: read from its keys in Redis, and nothing is written there.

A sorted set has the key of every entry with the time at which it is due; each entry is a hash of two JSON texts,
``definition`` and ``meta``; a lock that expires is held by the beat that sends (redbeat/schedulers.py, decoder.py).
"""

import json
from collections.abc import Mapping
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any
from typing import NamedTuple
from zoneinfo import ZoneInfo
from zoneinfo import ZoneInfoNotFoundError

from redis import Redis

from monitor.brokers.beat import arguments
from monitor.brokers.beat import crontab_fields
from monitor.brokers.link import link
from monitor.records import ScheduleEntry
from monitor.redact import Redactor
from monitor.settings import Broker
from monitor.settings import Settings

TRANSPORTS = frozenset({"redis", "sentinel"})
MOST_ENTRIES = 10_000
CRONTAB_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")


class RedBeat(NamedTuple):
    """What its keys hold. ``lock_seconds``: for how long beat still holds its lock; ``None``: nobody does."""

    entries: list[ScheduleEntry]
    lock_seconds: float | None
    unread: int = 0  # entries that are no entries, or too many


class Reading(NamedTuple):
    """What every entry of one reading has: ``timezone`` is that of the crontabs, ``None`` if not known."""

    cluster: str
    redactor: Redactor
    timezone: str | None
    now: float


def read_redbeat(broker: Broker, settings: Settings, reading: Reading) -> RedBeat:
    """Everything of RedBeat in one Redis. Raises BrokerUnavailable."""
    prefix = settings.redbeat_key_prefix
    with link(broker, settings) as connection:
        client = Redis(connection_pool=connection.channel().pool)  # kombu's own client would prefix the keys
        pipeline = client.pipeline(transaction=False)
        pipeline.zrange(f"{prefix}:schedule", 0, MOST_ENTRIES - 1, withscores=True)
        pipeline.zcard(f"{prefix}:schedule")
        pipeline.pttl(f"{prefix}:lock")
        due, count, lock = pipeline.execute()
        for key, _ in due:
            pipeline.hmget(key, "definition", "meta")
        texts = pipeline.execute() if due else []
    found = [read_entry(two[0], two[1], score, reading) for two, (_, score) in zip(texts, due, strict=True)]
    entries = [entry for entry in found if entry is not None]
    return RedBeat(entries, lock / 1000 if lock >= 0 else None, count - len(entries))


def read_entry(definition: bytes | None, meta: bytes | None, due: float, reading: Reading) -> ScheduleEntry | None:
    """One entry; ``None`` where it is none."""
    told, ran = _object(definition), _object(meta)
    name, task = told.get("name"), told.get("task")
    if not isinstance(name, str) or not isinstance(task, str):
        return None
    options = told.get("options")
    queue = options.get("queue") if isinstance(options, dict) else None
    total = ran.get("total_run_count")
    return ScheduleEntry(
        cluster=reading.cluster,
        name=name,
        task=task,
        timezone=reading.timezone,
        queue=queue if isinstance(queue, str) else None,
        source="redbeat",
        heard_at=reading.now,
        enabled=told.get("enabled") is not False,
        told_last=_time(ran.get("last_run_at")) if total else None,  # until it ran, when it was saved
        told_next=due if due > 0 else None,  # -1: never again
        total=total if isinstance(total, int) else None,
        **_arguments(told, reading.redactor),
        **_schedule(told.get("schedule")),
    )


def _arguments(told: Mapping[str, Any], redactor: Redactor) -> dict[str, Any]:
    args, kwargs = told.get("args"), told.get("kwargs")
    # What RedBeat marks with __type__ it sends as an object of Python: JSON would not say the same.
    plain = "__type__" not in json.dumps([args, kwargs])
    args, kwargs = args if isinstance(args, list) else [], kwargs if isinstance(kwargs, dict) else {}
    found = arguments(args, kwargs, redactor)
    return found if plain else {**found, "args_json": None, "kwargs_json": None}


def _schedule(schedule: object) -> dict[str, Any]:
    if not isinstance(schedule, dict):
        return {"schedule": str(schedule)}
    kind = schedule.get("__type__")
    every = schedule.get("every")
    if kind == "interval" and isinstance(every, (int, float)) and every > 0:
        return {"schedule": f"{every:g}", "every": float(every)}
    if kind == "crontab":
        return crontab_fields([_field(schedule.get(name, "*")) for name in CRONTAB_FIELDS])
    known = [f"{name}={value}" for name, value in schedule.items() if value is not None and name != "__type__"]
    return {"schedule": f"{kind or 'unknown'}: {' '.join(known)}"}


def _field(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _object(text: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(text or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _time(value: object) -> float | None:
    """RedBeat's own form: the fields of a datetime, with a zone's name or its offset in seconds."""
    if not isinstance(value, dict) or value.pop("__type__", None) != "datetime":
        return None
    zone = value.pop("timezone", "UTC")
    try:
        offset = ZoneInfo(zone) if isinstance(zone, str) else timezone(timedelta(seconds=float(zone)))
        return datetime(**value, tzinfo=offset).timestamp()
    except (TypeError, ValueError, OSError, OverflowError, ZoneInfoNotFoundError):
        return None
