"""Databases of other programs, opened read-only and with limits: stored results and django-celery-beat's entries.

A row of Celery's database backend or of django-celery-results becomes the JSON that Celery's other backends store.
Pickled values are never opened: they are left out and named under ``unread``. Schedules are those of
django_celery_beat/models.py.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from celery_monitor.core.untrusted import decode_json, plain_value
from celery_monitor.errors import SettingsError, StoreUnavailable

CONNECT_SECONDS = 5
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql", "mariadb": "mariadb"}


class ForeignUnreadable(Exception):
    """A database cannot be read; the message has its address without password, and the cause."""


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    """A read-only connection. Raises SettingsError for an invalid address, else ForeignUnreadable."""
    engine = _engine(url)
    try:
        with _connected(engine) as connection:
            yield connection
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise ForeignUnreadable(f"{make_url(url).render_as_string(hide_password=True)}: {cause}") from error
    finally:
        engine.dispose()


def epoch(value: object, zone: ZoneInfo) -> float | None:
    """A time in epoch seconds; SQLite stores it as text. ``zone`` applies to times without one."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime):
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError, OSError):  # no time, or of the year 1 or 9999
        return None


def _engine(url: str) -> Engine:
    try:
        given = make_url(url)
    except (ArgumentError, ValueError):  # the texts of these may repeat the password
        raise SettingsError("the address cannot be parsed; use sqlite:///file.db or postgresql://host/name") from None
    kind = "postgresql" if given.drivername == "postgres" else given.drivername.partition("+")[0]
    try:
        return _sqlite(given) if kind == "sqlite" else _server(given, DRIVERS[kind])
    except KeyError:
        supported = ", ".join(("sqlite", *DRIVERS))
        raise SettingsError(f"databases of kind {kind!r} are not supported; supported are {supported}") from None
    except (ImportError, NoSuchModuleError) as error:
        raise SettingsError(f"{kind} needs a driver that is not installed here: {error}") from None


def _server(given: sa.URL, driver: str) -> Engine:
    if driver in {"mysql", "mariadb"} and "+" in given.drivername:
        driver = given.drivername  # the driver of the application
    timeout = {"connect_timeout": CONNECT_SECONDS}
    return sa.create_engine(
        given.set(drivername=driver), poolclass=sa.NullPool, connect_args=timeout, hide_parameters=True
    )


def _sqlite(given: sa.URL) -> Engine:
    file = f"file:{quote(given.database or '')}"
    readonly = given.set(drivername="sqlite", database=file, query={"mode": "ro", "uri": "true"})
    engine = sa.create_engine(
        readonly, poolclass=sa.NullPool, connect_args={"timeout": CONNECT_SECONDS}, hide_parameters=True
    )

    @sa.event.listens_for(engine, "connect")
    def _lenient(connection: Any, _record: object) -> None:
        # One text that is not UTF-8 would fail the whole statement.
        connection.text_factory = lambda text: text.decode("utf-8", "replace")

    return engine


@contextmanager
def _connected(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as plain:
        if engine.dialect.name != "postgresql":
            yield plain
            return
        connection = plain.execution_options(postgresql_readonly=True)
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {CONNECT_SECONDS * 1000}")
        yield connection


MOST_IDS = 500  # in one statement
JSON = "application/json"
# Our name of a field, and the columns of each kind of table.
_COMMON = {name: name for name in ("status", "result", "traceback", "date_done", "worker")}
CELERY = _COMMON | {name: name for name in ("name", "args", "kwargs", "queue")}
DJANGO = _COMMON | {
    **{name: f"task_{name}" for name in ("name", "args", "kwargs")},
    **{name: name for name in ("content_type", "content_encoding")},
}
ENCODED = ("result", "args", "kwargs")


class ResultTable(NamedTuple):
    """A table of results; ``timezone`` is that of its times, ``None`` where it is unknown."""

    url: str
    name: str
    columns: Mapping[str, str]
    timezone: str | None
    schema: str | None = None


def read_results(table: ResultTable, ids: Sequence[str]) -> dict[str, bytes]:
    """The stored results of these tasks, as JSON. Raises SettingsError, and StoreUnavailable if it cannot be read."""
    found = {}
    try:
        with reading(table.url) as connection:
            columns, zone = _columns(connection, table), _zone(connection, table)
            for begin in range(0, len(ids), MOST_IDS):
                rows = connection.execute(_statement(table, columns, ids[begin : begin + MOST_IDS]))
                for row in rows.mappings():
                    found[str(row["task_id"])] = json.dumps(plain_value(_meta(dict(row), zone))).encode()
    except ForeignUnreadable as error:
        raise StoreUnavailable(f"cannot read results in {error}") from error
    return found


def _columns(connection: Connection, table: ResultTable) -> dict[str, str]:
    """The existing columns: an extended backend has more."""
    existing = {each["name"] for each in sa.inspect(connection).get_columns(table.name, table.schema)}
    return {field: column for field, column in table.columns.items() if column in existing}


def _zone(connection: Connection, table: ResultTable) -> str | None:
    """Zone of the times: PostgreSQL converts Celery's, which have one, to its own zone, as the column has none."""
    if connection.dialect.name != "postgresql":
        return table.timezone
    return str(connection.exec_driver_sql("SHOW TimeZone").scalar())


def _statement(table: ResultTable, columns: Mapping[str, str], ids: Sequence[str]) -> sa.Select[Any]:
    source = sa.table(table.name, *(sa.column(each) for each in ("task_id", *columns.values())), schema=table.schema)
    wanted = [source.c[column].label(field) for field, column in columns.items()]
    return sa.select(source.c.task_id, *wanted).where(source.c.task_id.in_(ids))


def _meta(row: dict[str, Any], zone: str | None) -> dict[str, Any]:
    is_json = row.pop("content_type", JSON) == JSON
    encoding = row.pop("content_encoding", None)
    unread = []
    for field in ENCODED:
        if field not in row:
            continue
        try:
            row[field] = _decoded(row[field], encoding) if is_json else _refuse()
        except ValueError:  # pickled, or another serializer
            unread.append(field)
            del row[field]
    row["date_done"] = _moment(row.get("date_done"), zone)
    return {**row, "unread": unread} if unread else row


def _decoded(stored: object, encoding: str | None) -> Any:
    if stored is None:
        return None
    if isinstance(stored, memoryview):
        stored = bytes(stored)
    if not isinstance(stored, (str, bytes)):
        return _refuse()
    return decode_json(base64.b64decode(stored) if encoding == "binary" else stored)


def _refuse() -> Any:
    raise ValueError("not JSON")


def _moment(done: object, zone: str | None) -> str | None:
    """ISO in UTC; ``None`` where neither the time nor the table has a known zone."""
    parsed = _parsed(done)
    if parsed is None or (parsed.tzinfo is None and zone is None):
        return None
    try:
        at = epoch(parsed, ZoneInfo(zone or "UTC"))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _parsed(done: object) -> datetime | None:
    try:
        return datetime.fromisoformat(done) if isinstance(done, str) else done if isinstance(done, datetime) else None
    except ValueError:
        return None


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
    """One row with the fields of its schedule; ``kind`` is ``None`` without one. Times are epoch seconds."""

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
    """Every periodic task; ``zone`` applies to times without one.

    Raises SettingsError for an invalid address, StoreUnavailable if it cannot be read.
    """
    try:
        with reading(url) as connection:
            rows = connection.execute(_periodic_tasks_statement()).mappings().all()
    except ForeignUnreadable as error:
        raise StoreUnavailable(
            f"cannot read the schedule of django-celery-beat in {error}; check --beat-database, and that its "
            "migrations were run there"
        ) from error
    return [_periodic_task(row, ZoneInfo(zone)) for row in rows]


def _periodic_tasks_statement() -> sa.Select[Any]:
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
    fields = {name: row[name] for name in _TASK}
    for name in ("start_time", "last_run_at"):
        fields[name] = epoch(fields[name], zone)
    fields, when = plain_value(fields), plain_value(when)
    for name in ("enabled", "one_off"):
        fields[name] = bool(fields[name])
    return PeriodicTask(**fields, kind=kind, when=when)
