"""The tables of django-celery-beat in somebody else's database: only read (django_celery_beat/models.py)."""

from typing import Any
from typing import NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from monitor.errors import StoreUnavailable
from monitor.store.foreign import ForeignUnreadable
from monitor.store.foreign import epoch
from monitor.store.foreign import reading

MOST_ENTRIES = 10_000
_PREFIX = "django_celery_beat_"
_KINDS = {
    "interval": ("every", "period"),
    "crontab": ("minute", "hour", "day_of_month", "month_of_year", "day_of_week", "timezone"),
    "clocked": ("clocked_time",),
    "solar": ("event", "latitude", "longitude"),
}
_TASK = (
    "name", "task", "args", "kwargs", "queue", "enabled", "one_off", "start_time", "last_run_at", "total_run_count"
)  # fmt: skip


class PeriodicTask(NamedTuple):
    """One row, with the fields of its schedule; ``kind`` is ``None`` where it has none. Times are epoch seconds."""

    name: str
    task: str
    args: str
    kwargs: str
    queue: str | None
    enabled: bool
    one_off: bool
    start_time: float | None
    last_run_at: float | None
    total_run_count: int
    kind: str | None
    when: dict[str, Any]


def read_periodic_tasks(url: str, zone: str = "UTC") -> list[PeriodicTask]:
    """Every periodic task; ``zone`` is that of times which name none.

    Raises SettingsError for what is no address, StoreUnavailable where it cannot be read.
    """
    try:
        with reading(url) as connection:
            rows = connection.execute(_statement()).mappings().all()
    except ForeignUnreadable as error:
        raise StoreUnavailable(
            f"cannot read the schedule of django-celery-beat in {error}; check --beat-database, and that its "
            "migrations were run there"
        ) from error
    return [_periodic_task(row, ZoneInfo(zone)) for row in rows]


def _statement() -> sa.Select[Any]:
    tasks = _table("periodictask", ("id", *_TASK, *(f"{kind}_id" for kind in _KINDS)))
    joined: sa.FromClause = tasks
    columns: list[Any] = [tasks.c[name].label(name) for name in _TASK]
    for kind, names in _KINDS.items():
        table = _table(f"{kind}schedule", ("id", *names))
        joined = joined.outerjoin(table, table.c.id == tasks.c[f"{kind}_id"])
        columns += [table.c.id.label(f"{kind}_id"), *(table.c[name].label(f"{kind}_{name}") for name in names)]
    return sa.select(*columns).select_from(joined).order_by(tasks.c.id).limit(MOST_ENTRIES)


def _table(name: str, columns: tuple[str, ...]) -> sa.TableClause:
    return sa.table(f"{_PREFIX}{name}", *(sa.column(each) for each in columns))


def _periodic_task(row: Any, zone: ZoneInfo) -> PeriodicTask:
    kind = next((kind for kind in _KINDS if row[f"{kind}_id"] is not None), None)
    when = {} if kind is None else {name: row[f"{kind}_{name}"] for name in _KINDS[kind]}
    if "clocked_time" in when:
        when["clocked_time"] = epoch(when["clocked_time"], zone)
    told = {name: row[name] for name in _TASK}
    for name in ("start_time", "last_run_at"):
        told[name] = epoch(told[name], zone)
    for name in ("enabled", "one_off"):
        told[name] = bool(told[name])
    return PeriodicTask(**told, kind=kind, when=when)
