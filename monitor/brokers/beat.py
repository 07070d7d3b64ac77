"""What beat sends, and when: read from the application, or from what workers tell of their configuration.

A worker tells its schedules as text: ``2.0``, ``0:00:30``, ``<freq: 30.00 seconds>``, ``<crontab: 30 7 * * monday
(m/h/dM/MY/d)>``; the legend in parentheses says in which order its fields stand, which differs between versions.
"""

import json
import re
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from celery.schedules import ParseException
from celery.schedules import crontab_parser

from monitor.brokers.connection import load_app
from monitor.records import ScheduleEntry
from monitor.redact import Redactor

CRONTAB = re.compile(r"<crontab: (.+) \(([mhdMY/]+)\)>")
_FIELD = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\S+")
_FREQUENCY = re.compile(r"<freq: (.+)>")
_CLOCK = re.compile(r"(?:(-?\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
# The fields of a legend: what they are called here, how many values they have, and the first.
_FIELDS = {
    "m": ("minutes", 60, 0),
    "h": ("hours", 24, 0),
    "d": ("weekdays", 7, 0),
    "dM": ("days", 31, 1),
    "MY": ("months", 12, 1),
}


def entries_of_app(name: str, cluster: str, redactor: Redactor, now: float) -> list[ScheduleEntry]:
    """The entries of the user's application. Imports the user's code; raises SettingsError."""
    return _entries(load_app(name).conf, cluster, redactor, now, "app")


def entries_of_conf(conf: Mapping[str, Any], cluster: str, redactor: Redactor, now: float) -> list[ScheduleEntry]:
    """The entries in a worker's answer to ``conf``. What is no entry is passed over."""
    return _entries(conf, cluster, redactor, now, "workers")


def _entries(conf: Mapping[str, Any], cluster: str, redactor: Redactor, now: float, source: str) -> list[ScheduleEntry]:
    schedule = conf.get("beat_schedule")
    zone = timezone_of(conf)
    found = []
    for name, entry in schedule.items() if isinstance(schedule, Mapping) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("task"), str):
            options = entry.get("options")
            queue = options.get("queue") if isinstance(options, Mapping) else None
            args, kwargs = list(entry.get("args") or ()), dict(entry.get("kwargs") or {})
            found.append(
                ScheduleEntry(
                    cluster=cluster,
                    name=str(name),
                    task=entry["task"],
                    timezone=zone,
                    queue=queue if isinstance(queue, str) else None,
                    source="app" if source == "app" else "workers",
                    heard_at=now,
                    **arguments(args, kwargs, redactor),
                    **read_schedule(entry.get("schedule")),
                )
            )
    return found


def schedule_of_django(kind: str | None, when: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule of django-celery-beat as fields of ScheduleEntry; ``when`` are the columns of its kind."""
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
    """A schedule as fields of ScheduleEntry; one of an unknown kind has its text alone."""
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
    """What a task is to be called with, as fields of ScheduleEntry."""
    return {**_texts("args", tuple(args), args, redactor), **_texts("kwargs", kwargs, kwargs, redactor)}


def arguments_of_json(args: str, kwargs: str, redactor: Redactor) -> dict[str, Any]:
    """The same from two JSON texts; what is none is shown as it stands, and cannot be sent."""
    try:
        listed, named = json.loads(args or "[]"), json.loads(kwargs or "{}")
    except ValueError:
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
        return float(number) * size if size and re.fullmatch(r"[\d.]+", number) else None
    if (clock := _CLOCK.fullmatch(text)) is not None:
        return int(clock[1] or 0) * 86400 + int(clock[2]) * 3600 + int(clock[3]) * 60 + float(clock[4])
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0 else None


def timezone_of(conf: Mapping[str, Any]) -> str | None:
    """Celery's own rule: the one that is set, else UTC unless it is told to use local time."""
    zone = conf.get("timezone")
    if zone:
        return str(zone)
    return "UTC" if conf.get("enable_utc", True) else None


def _texts(field: str, shown: object, value: object, redactor: Redactor) -> dict[str, Any]:
    """As events show it, and as JSON where that says the same and has no secret."""
    text = repr(shown)
    masked = redactor.text(text)
    try:
        whole = json.dumps(value) if masked == text else None
    except (TypeError, ValueError):
        whole = None
    return {field: masked, f"{field}_json": whole}
