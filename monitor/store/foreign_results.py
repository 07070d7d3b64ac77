"""Results in somebody else's database: the tables of Celery's database backend and of django-celery-results.

A row becomes the JSON that Celery's backends for Redis and the like store, so that both are read by one reader. What is
pickled is never opened: it is left out, and named under ``unread``.
"""

import base64
import json
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import UTC
from datetime import datetime
from typing import Any
from typing import NamedTuple
from zoneinfo import ZoneInfo
from zoneinfo import ZoneInfoNotFoundError

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from monitor.errors import StoreUnavailable
from monitor.store.foreign import ForeignUnreadable
from monitor.store.foreign import epoch
from monitor.store.foreign import reading

MOST_IDS = 500  # in one statement
JSON = "application/json"
# Our name of a field, and the columns of each kind of table.
CELERY = {
    "status": "status",
    "result": "result",
    "traceback": "traceback",
    "date_done": "date_done",
    "name": "name",
    "args": "args",
    "kwargs": "kwargs",
    "worker": "worker",
    "queue": "queue",
}
DJANGO = {
    "status": "status",
    "result": "result",
    "traceback": "traceback",
    "date_done": "date_done",
    "name": "task_name",
    "args": "task_args",
    "kwargs": "task_kwargs",
    "worker": "worker",
    "content_type": "content_type",
    "content_encoding": "content_encoding",
}
ENCODED = ("result", "args", "kwargs")


class ResultTable(NamedTuple):
    """A table of results; ``timezone`` is that of its times, ``None`` where it is not known."""

    url: str
    name: str
    columns: Mapping[str, str]
    timezone: str | None
    schema: str | None = None


def read_results(table: ResultTable, ids: Sequence[str]) -> dict[str, bytes]:
    """What is stored of these tasks, as JSON. Raises SettingsError, and StoreUnavailable where it cannot be read."""
    found = {}
    try:
        with reading(table.url) as connection:
            columns, zone = _columns(connection, table), _zone(connection, table)
            for begin in range(0, len(ids), MOST_IDS):
                rows = connection.execute(_statement(table, columns, ids[begin : begin + MOST_IDS]))
                for row in rows.mappings():
                    found[str(row["task_id"])] = json.dumps(_meta(dict(row), zone)).encode()
    except ForeignUnreadable as error:
        raise StoreUnavailable(f"cannot read results in {error}") from error
    return found


def _columns(connection: Connection, table: ResultTable) -> dict[str, str]:
    """Those that it has: an extended backend has more."""
    there = {each["name"] for each in sa.inspect(connection).get_columns(table.name, table.schema)}
    return {field: column for field, column in table.columns.items() if column in there}


def _zone(connection: Connection, table: ResultTable) -> str | None:
    """Celery writes times with the application's zone into a column without one: PostgreSQL turns them into its own."""
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
        except ValueError:  # pickled, or of another serialiser
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
    return json.loads(base64.b64decode(stored) if encoding == "binary" else stored)


def _refuse() -> Any:
    raise ValueError("not JSON")


def _moment(done: object, zone: str | None) -> str | None:
    """ISO in UTC; ``None`` where it names no zone and that of the table is not known."""
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
