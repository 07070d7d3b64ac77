"""The tables of django-celery-beat in somebody else's database: only read (django_celery_beat/models.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from datetime import datetime
from typing import Any
from typing import NamedTuple
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import SQLAlchemyError

from monitor.errors import SettingsError
from monitor.errors import StoreUnavailable
from monitor.store.engine import driver_url

MOST_ENTRIES = 10_000
CONNECT_SECONDS = 5
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


def read_periodic_tasks(url: str) -> list[PeriodicTask]:
    """Every periodic task. Raises SettingsError for what is no address, StoreUnavailable where it cannot be read."""
    engine = _engine(url)
    try:
        with _reading(engine) as connection:
            return [_periodic_task(row) for row in connection.execute(_statement()).mappings()]
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        where = engine.url.render_as_string(hide_password=True)
        raise StoreUnavailable(
            f"cannot read the schedule of django-celery-beat in {where}: {cause}; check --beat-database, and that "
            "its migrations were run there"
        ) from error
    finally:
        engine.dispose()


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


def _periodic_task(row: Any) -> PeriodicTask:
    kind = next((kind for kind in _KINDS if row[f"{kind}_id"] is not None), None)
    when = {} if kind is None else {name: row[f"{kind}_{name}"] for name in _KINDS[kind]}
    if "clocked_time" in when:
        when["clocked_time"] = _time(when["clocked_time"])
    told = {name: row[name] for name in _TASK}
    for name in ("start_time", "last_run_at"):
        told[name] = _time(told[name])
    for name in ("enabled", "one_off"):
        told[name] = bool(told[name])
    return PeriodicTask(**told, kind=kind, when=when)


def _time(value: object) -> float | None:
    """SQLite has it as text; without a zone it is UTC, as Django writes it with USE_TZ."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return None
    if not isinstance(moment, datetime):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _engine(url: str) -> Engine:
    try:
        parsed = driver_url(make_url(url))
    except (ArgumentError, ValueError):
        raise SettingsError(
            "beat_database: the address cannot be parsed; use sqlite:///file.db or postgresql://host/name"
        ) from None
    if parsed.get_backend_name() == "sqlite":
        file = f"file:{quote(parsed.database or '')}"
        arguments: dict[str, Any] = {"timeout": CONNECT_SECONDS}
        parsed = parsed.set(database=file, query={"mode": "ro", "uri": "true"})
    else:
        arguments = {"connect_timeout": CONNECT_SECONDS}
    return sa.create_engine(parsed, poolclass=sa.NullPool, connect_args=arguments, hide_parameters=True)


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as plain:
        if engine.dialect.name == "sqlite":
            yield plain
            return
        connection = plain.execution_options(postgresql_readonly=True)
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {CONNECT_SECONDS * 1000}")
        yield connection
