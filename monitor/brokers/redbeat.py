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
from redis.exceptions import RedisError

from monitor.application import Unread
from monitor.brokers.application import application_of
from monitor.brokers.beat import arguments
from monitor.brokers.beat import crontab_fields
from monitor.brokers.link import link
from monitor.records import ScheduleEntry
from monitor.redact import Redactor
from monitor.settings import SETTINGS
from monitor.settings import Broker
from monitor.settings import Settings

TRANSPORTS = frozenset({"redis", "sentinel"})
MOST_ENTRIES = 10_000
CRONTAB_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")


class RedBeat(NamedTuple):
    """What its keys hold. ``lock_seconds``: for how long beat still holds its lock; ``None``: nobody does."""

    entries: list[ScheduleEntry]
    lock_seconds: float | None
    unread: list[Unread]


class Reading(NamedTuple):
    """What every entry of one reading has: ``timezone`` is that of the crontabs, ``None`` if not known."""

    cluster: str
    redactor: Redactor
    timezone: str | None
    now: float


def read_redbeat(broker: Broker, settings: Settings, reading: Reading) -> RedBeat:
    """Everything of RedBeat in one Redis. Raises BrokerUnavailable."""
    prefix = prefix_of(settings)
    with link(broker, settings) as connection:
        client = Redis(connection_pool=connection.channel().pool)  # kombu's own client would prefix the keys
        pipeline = client.pipeline(transaction=False)
        pipeline.zrange(f"{prefix}:schedule", 0, MOST_ENTRIES - 1, withscores=True)
        pipeline.zcard(f"{prefix}:schedule")
        pipeline.pttl(f"{prefix}:lock")
        due, count, lock = pipeline.execute()
        for key, _ in due:
            pipeline.hmget(key, "definition", "meta")
        texts = pipeline.execute(raise_on_error=False) if due else []  # one key may be of another kind
    found = RedBeat([], lock / 1000 if lock >= 0 else None, [])
    for two, (key, score) in zip(texts, due, strict=True):
        try:
            found.entries.append(read_entry(two, score, reading))
        except (TypeError, ValueError, RecursionError, RedisError) as error:
            name = key.decode("utf-8", "replace").removeprefix(prefix)
            found.unread.append(Unread(name=name, reason=str(error) or type(error).__name__))
    if count > len(due):
        found.unread.append(Unread(name="", reason=f"{count - len(due):,} more: only {MOST_ENTRIES:,} are read"))
    return found


def prefix_of(settings: Settings) -> str:
    """The prefix that is given, else the application's."""
    application = application_of(settings)
    own = application.setting("redbeat_key_prefix") if application is not None else None
    default = SETTINGS["redbeat_key_prefix"].default
    return str(own) if own and settings.redbeat_key_prefix == default else settings.redbeat_key_prefix


def read_entry(stored: Any, due: float, reading: Reading) -> ScheduleEntry:
    """One entry of its two texts. Raises TypeError, ValueError, RecursionError or RedisError where it is none."""
    if isinstance(stored, RedisError):
        raise stored
    if stored[0] is None:
        raise ValueError("its key is gone, or has no definition")
    told, ran = _object("definition", stored[0]), _object("meta", stored[1] or b"{}")
    name, task = told.get("name"), told.get("task")
    if not isinstance(name, str) or not isinstance(task, str):
        raise TypeError("its definition has no name, or names no task")
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
    args, kwargs = [] if args is None else args, {} if kwargs is None else kwargs
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise TypeError("its args are no list, or its kwargs no object")
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


def _object(field: str, text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"its {field} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise TypeError(f"its {field} is JSON, and not an object")
    return found


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
