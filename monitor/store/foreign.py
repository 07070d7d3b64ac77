"""Databases that are somebody else's: only read, with limits, and nothing is made in them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.exc import SQLAlchemyError

from monitor.errors import SettingsError

CONNECT_SECONDS = 5
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql", "mariadb": "mariadb"}


class ForeignUnreadable(Exception):
    """A database that cannot be read; says which, without its password, and why."""


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    """A connection that only reads. Raises SettingsError for what is no address, ForeignUnreadable for the rest."""
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
    """Seconds of a time; SQLite has it as text. ``zone`` is that of a time which names none."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return None
    if not isinstance(moment, datetime):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def _engine(url: str) -> Engine:
    try:
        given = make_url(url)
    except (ArgumentError, ValueError):  # the texts of these may repeat the password
        raise SettingsError("the address cannot be parsed; use sqlite:///file.db or postgresql://host/name") from None
    kind = "postgresql" if given.drivername == "postgres" else given.drivername.partition("+")[0]
    try:
        return _sqlite(given) if kind == "sqlite" else _served(given, DRIVERS[kind])
    except KeyError:
        known = ", ".join(("sqlite", *DRIVERS))
        raise SettingsError(f"a database of kind {kind!r} is not read; known are {known}") from None
    except (ImportError, NoSuchModuleError) as error:
        raise SettingsError(f"{kind} needs a driver that is not installed here: {error}") from None


def _served(given: sa.URL, driver: str) -> Engine:
    if driver in {"mysql", "mariadb"} and "+" in given.drivername:
        driver = given.drivername  # the one that the application uses
    patience = {"connect_timeout": CONNECT_SECONDS}
    return sa.create_engine(
        given.set(drivername=driver), poolclass=sa.NullPool, connect_args=patience, hide_parameters=True
    )


def _sqlite(given: sa.URL) -> Engine:
    file = f"file:{quote(given.database or '')}"
    readonly = given.set(drivername="sqlite", database=file, query={"mode": "ro", "uri": "true"})
    engine = sa.create_engine(
        readonly, poolclass=sa.NullPool, connect_args={"timeout": CONNECT_SECONDS}, hide_parameters=True
    )

    @sa.event.listens_for(engine, "connect")
    def _lenient(connection: Any, _record: object) -> None:
        # One text that is not UTF-8 would fail the whole answer.
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
