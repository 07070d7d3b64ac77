"""Beat's schedule: from the application, from the configuration that workers report, or from RedBeat's keys in
Redis.

A worker reports its schedules as text: ``2.0``, ``0:00:30``, ``<freq: 30.00 seconds>``, ``<crontab: 30 7 * * monday
(m/h/dM/MY/d)>``; the legend in parentheses gives the order of the fields, which differs between versions.

RedBeat (redbeat/schedulers.py, decoder.py) has a sorted set of all entries by due time; each entry is a hash
of two JSON texts, ``definition`` and ``meta``; the running beat has a lock that expires. All of it is only read.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery.schedules import ParseException, crontab_parser

from celery_monitor.brokers.connection import application_of, link
from celery_monitor.brokers.lazy import redis
from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.untrusted import CUT, REPLACED, NotJson, decode_json, plain_value
from celery_monitor.records.application import Application, Unread
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.settings import SETTINGS, Settings
from celery_monitor.settings.values import Broker

CRONTAB = re.compile(r"<crontab: (.+) \(([mhdMY/]+)\)>")
_FIELD = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]|\S+")
_FREQUENCY = re.compile(r"<freq: (.+)>")
_CLOCK = re.compile(r"(?:(-?\d{1,12}) days?, )?(\d{1,12}):(\d\d):(\d\d(?:\.\d+)?)")
HALF = "its name or task has a lone surrogate (half a character), or bytes that are not UTF-8"
_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
# The fields of a legend: our name, the number of values, and the first value.
_FIELDS = {
    "m": ("minutes", 60, 0),
    "h": ("hours", 24, 0),
    "d": ("weekdays", 7, 0),
    "dM": ("days", 31, 1),
    "MY": ("months", 12, 1),
}


class ReadEntries(NamedTuple):
    """The entries of one source, and the name and reason of each that cannot be read."""

    entries: list[ScheduleEntry]
    unread: list[Unread]


def entries_of_app(application: Application, cluster: str, redactor: Redactor, now: float) -> ReadEntries:
    """The entries of the user's application."""
    zone = timezone_of(application.setting)
    unread = list(application.unread)
    if (reason := application.problems.get("tasks")) is not None:
        unread.append(Unread(name="", reason=f"entries that task modules add may be missing: {reason}"))
    unread += [
        Unread(name=entry.name, reason=HALF) for entry in application.entries if _is_half(entry.name, entry.task)
    ]
    entries = [
        ScheduleEntry(
            cluster=cluster,
            name=entry.name,
            task=entry.task,
            timezone=zone,
            queue=entry.queue,
            source="app",
            reported_at=now,
            **_texts("args", entry.args, entry.args_json, redactor),
            **_texts("kwargs", entry.kwargs, entry.kwargs_json, redactor),
            **_masked(read_schedule(entry.when), redactor),
        )
        for entry in application.entries
        if not _is_half(entry.name, entry.task)
    ]
    return ReadEntries(entries, unread)


def _masked(schedule: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    """A schedule whose own text, of a kind of the user's, may have secrets as arguments do."""
    return {**schedule, "schedule": redactor.text(schedule["schedule"])}


def _is_half(name: str, task: str) -> bool:
    """Whether a part of what identifies an entry could not be read: another entry may have the same name now."""
    return REPLACED in name or REPLACED in task


def entries_of_conf(conf: Mapping[str, Any], cluster: str, redactor: Redactor, now: float) -> ReadEntries:
    """The entries in a worker's reply to ``conf``."""
    schedule = conf.get("beat_schedule")
    zone = timezone_of(conf.get)
    found = ReadEntries([], [])
    for name, entry in schedule.items() if isinstance(schedule, Mapping) else ():
        try:
            fields = _fields(str(name), entry, redactor)
        except (TypeError, ValueError, OverflowError) as error:
            found.unread.append(Unread(name=str(name), reason=str(error)))
        else:
            found.entries.append(
                ScheduleEntry(
                    cluster=cluster, name=str(name), timezone=zone, source="workers", reported_at=now, **fields
                )
            )
    return found


def _fields(name: str, entry: object, redactor: Redactor) -> dict[str, Any]:
    """Fields of ScheduleEntry. Raises TypeError or ValueError with the reason."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("task"), str):
        raise TypeError("it names no task")
    if _is_half(name, entry["task"]):
        raise ValueError(HALF)
    args, kwargs = entry.get("args") or (), entry.get("kwargs") or {}
    if not isinstance(args, (list, tuple)):
        raise TypeError(f"its args are of type {type(args).__name__}, not a list")
    if not isinstance(kwargs, Mapping):
        raise TypeError(f"its kwargs are of type {type(kwargs).__name__}, not a dictionary")
    if entry.get("schedule") is None:
        raise TypeError("it has no schedule")
    options = entry.get("options")
    queue = options.get("queue") if isinstance(options, Mapping) else None
    return {
        "task": entry["task"],
        "queue": queue if isinstance(queue, str) else None,
        **arguments(list(args), dict(kwargs), redactor),
        **_masked(read_schedule(entry.get("schedule")), redactor),
    }


def schedule_of_django(kind: str | None, when: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule of django-celery-beat as fields of ScheduleEntry; ``when`` has the columns of its kind.

    Raises TypeError, ValueError or AttributeError for values that the model does not allow.
    """
    if kind == "interval":
        number, unit = when["every"], when["period"]
        size = {"microseconds": 1e-6}.get(unit) or _UNITS.get(unit.rstrip("s"))
        return {"schedule": f"{number} {unit}", "every": number * size if size and number > 0 else None}
    if kind == "crontab":
        names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        return {**crontab_fields([str(when[name]) for name in names]), "timezone": str(when["timezone"])}
    if kind == "clocked":
        return {"schedule": "clocked", "once_at": when["clocked_time"]}
    if kind == "solar":
        return {"schedule": f"solar: {when['event']} at {float(when['latitude']):g}, {float(when['longitude']):g}"}
    return {"schedule": "no schedule"}


def read_schedule(schedule: object) -> dict[str, Any]:
    """A schedule as fields of ScheduleEntry; only its text where its kind is unknown."""
    if isinstance(schedule, timedelta):
        return {"schedule": str(schedule), "every": schedule.total_seconds()}
    text = str(schedule) if isinstance(schedule, (str, int, float)) else repr(schedule)
    if (match := CRONTAB.fullmatch(text)) is not None:
        return {"schedule": text, **_crontab(match[1], match[2])}
    return {"schedule": text, "every": _seconds(text)}


def crontab_fields(fields: Sequence[str]) -> dict[str, Any]:
    """A crontab as fields of ScheduleEntry, from its five texts: minute, hour, day of month, month, day of week."""
    parts = [re.sub(r"\s", "", field) or "*" for field in fields]
    text = f"<crontab: {' '.join(parts)} (m/h/dM/MY/d)>"
    return read_schedule(text)


def arguments(args: list[Any], kwargs: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    """The arguments of a task as fields of ScheduleEntry."""
    positional = _texts("args", repr(tuple(args)), _json(args), redactor)
    return {**positional, **_texts("kwargs", repr(kwargs), _json(kwargs), redactor)}


def arguments_of_json(args: str, kwargs: str, redactor: Redactor) -> dict[str, Any]:
    """``arguments`` from two JSON texts; invalid JSON is shown as it is, and cannot be sent."""
    try:
        listed, named = decode_json(args or "[]"), decode_json(kwargs or "{}")
    except NotJson:
        listed, named = None, None
    if not isinstance(listed, list) or not isinstance(named, dict):
        return {"args": redactor.text(args), "kwargs": redactor.text(kwargs)}
    return arguments(listed, named, redactor)


def _crontab(fields: str, legend: str) -> dict[str, tuple[int, ...]]:
    parts, names = _FIELD.findall(fields), legend.split("/")
    if len(parts) != len(names) or set(names) != set(_FIELDS):
        return {}
    found = {}
    for name, part in zip(names, parts, strict=True):
        field, most, first = _FIELDS[name]
        try:
            found[field] = tuple(sorted(crontab_parser(most, first).parse(re.sub(r"[{}\[\]\s]", "", part))))
        except (ParseException, ValueError):
            return {}
    return found


def _seconds(text: str) -> float | None:
    if (frequency := _FREQUENCY.fullmatch(text)) is not None:
        number, _, unit = frequency[1].partition(" ")
        size = _UNITS.get(unit.rstrip("s"))
        return float(number) * size if size and re.fullmatch(r"\d{1,15}(\.\d{1,15})?", number) else None
    if (clock := _CLOCK.fullmatch(text)) is not None:
        return int(clock[1] or 0) * 86400 + int(clock[2]) * 3600 + int(clock[3]) * 60 + float(clock[4])
    return float(text) if re.fullmatch(r"\d{1,15}(\.\d{1,15})?", text) and float(text) > 0 else None


def timezone_of(setting: Callable[[str], object]) -> str | None:
    """Celery's rule: the configured one, else UTC unless ``enable_utc`` is off, which means local time."""
    zone = setting("timezone")
    if zone:
        return str(zone)
    utc = setting("enable_utc")
    return "UTC" if utc or utc is None else None


def _json(value: object) -> str | None:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return None


def _texts(field: str, text: str, whole: str | None, redactor: Redactor) -> dict[str, Any]:
    """Masked as in events, and as JSON where nothing was masked."""
    masked = redactor.text(text)
    exact = masked == text and REPLACED not in text and CUT not in text  # else it was not kept as it was
    return {field: masked, f"{field}_json": whole if exact else None}


TRANSPORTS = frozenset({"redis", "sentinel"})
MOST_ENTRIES = 10_000
CRONTAB_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")


class RedBeat(NamedTuple):
    """The content of RedBeat's keys. ``lock_seconds``: until beat's lock expires; ``None``: there is no lock."""

    entries: list[ScheduleEntry]
    lock_seconds: float | None
    unread: list[Unread]


class RedBeatContext(NamedTuple):
    """Common to all entries of one reading. ``timezone``: of the crontabs, ``None`` if unknown."""

    cluster: str
    redactor: Redactor
    timezone: str | None
    now: float


def read_redbeat(broker: Broker, settings: Settings, reading: RedBeatContext) -> RedBeat:
    """All entries of RedBeat in one Redis, and its lock. Raises BrokerUnavailable."""
    prefix = prefix_of(settings)
    with link(broker, settings) as connection:
        client = redis.Redis(connection_pool=connection.channel().pool)  # kombu's own client would prefix the keys
        pipeline = client.pipeline(transaction=False)
        pipeline.zrange(f"{prefix}:schedule", 0, MOST_ENTRIES - 1, withscores=True)
        pipeline.zcard(f"{prefix}:schedule")
        pipeline.pttl(f"{prefix}:lock")
        due, count, lock = pipeline.execute()
        for key, _ in due:
            pipeline.hmget(key, "definition", "meta")
        texts = pipeline.execute(raise_on_error=False) if due else []  # one key may be of another kind
    found = RedBeat([], lock / 1000 if lock >= 0 else None, [])
    for stored, (key, score) in zip(texts, due, strict=True):
        try:
            found.entries.append(read_entry(stored, score, reading))
        except (TypeError, ValueError, OverflowError, RecursionError, redis.RedisError) as error:
            name = plain_value(key.decode("utf-8", "replace")).removeprefix(prefix)
            found.unread.append(Unread(name=name, reason=plain_value(str(error)) or type(error).__name__))
    if count > len(due):
        found.unread.append(Unread(name="", reason=f"{count - len(due):,} more: only {MOST_ENTRIES:,} are read"))
    return found


def prefix_of(settings: Settings) -> str:
    """The prefix from the option, else the application's."""
    application = application_of(settings)
    own = application.setting("redbeat_key_prefix") if application is not None else None
    default = SETTINGS["redbeat_key_prefix"].default
    return str(own) if own and settings.redbeat_key_prefix == default else settings.redbeat_key_prefix


def read_entry(stored: Any, due: float, reading: RedBeatContext) -> ScheduleEntry:
    """An entry from its two texts. Raises TypeError, ValueError, OverflowError, RecursionError or RedisError."""
    if isinstance(stored, redis.RedisError):
        raise stored
    if stored[0] is None:
        raise ValueError("its key is gone, or has no definition")
    definition, meta = _object("definition", stored[0]), _object("meta", stored[1] or b"{}")
    name, task = definition.get("name"), definition.get("task")
    if not isinstance(name, str) or not isinstance(task, str):
        raise TypeError("its definition has no name, or names no task")
    if _is_half(name, task):
        raise ValueError(HALF)
    options = definition.get("options")
    queue = options.get("queue") if isinstance(options, dict) else None
    total = meta.get("total_run_count")
    if isinstance(total, str):  # so is a number beyond bounds
        raise TypeError("its total_run_count is not a number, or too large")
    return ScheduleEntry(
        cluster=reading.cluster,
        name=name,
        task=task,
        timezone=reading.timezone,
        queue=queue if isinstance(queue, str) else None,
        source="redbeat",
        reported_at=reading.now,
        enabled=definition.get("enabled") is not False,
        beat_last_at=_time(meta.get("last_run_at")) if total else None,  # before the first run: when it was saved
        beat_next_at=due if due > 0 else None,  # -1: never again
        total=total if isinstance(total, int) and total >= 0 else None,
        **_arguments(definition, reading.redactor),
        **_masked(_schedule(definition.get("schedule")), reading.redactor),
    )


def _arguments(definition: Mapping[str, Any], redactor: Redactor) -> dict[str, Any]:
    args, kwargs = definition.get("args"), definition.get("kwargs")
    # RedBeat sends what has a __type__ as a Python object, which JSON cannot express.
    plain = "__type__" not in json.dumps([args, kwargs])
    args, kwargs = [] if args is None else args, {} if kwargs is None else kwargs
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise TypeError("its args are not a list, or its kwargs not an object")
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
    fields = [f"{name}={value}" for name, value in schedule.items() if value is not None and name != "__type__"]
    return {"schedule": f"{kind or 'unknown'}: {' '.join(fields)}"}


def _field(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _object(field: str, text: bytes) -> dict[str, Any]:
    try:
        found = decode_json(text)
    except NotJson as error:
        raise ValueError(f"its {field} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise TypeError(f"its {field} is not a JSON object")
    return found


def _time(value: object) -> float | None:
    """From RedBeat's form: the fields of a datetime, with a zone's name or its offset in seconds."""
    if not isinstance(value, dict) or value.pop("__type__", None) != "datetime":
        return None
    zone = value.pop("timezone", "UTC")
    try:
        offset = ZoneInfo(zone) if isinstance(zone, str) else timezone(timedelta(seconds=float(zone)))
        return datetime(**value, tzinfo=offset).timestamp()
    except (TypeError, ValueError, OSError, OverflowError, ZoneInfoNotFoundError):
        return None
