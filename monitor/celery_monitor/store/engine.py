"""The database behind one door: every difference between SQLite and PostgreSQL stands here."""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql import visitors

from celery_monitor.addresses import masked
from celery_monitor.errors import SettingsError, StoreRefused, StoreUnavailable
from celery_monitor.store import migrations, schema

LOCK_TIMEOUT_SECONDS = 10
POLL_SECONDS = 0.05
CHANNEL = "celery_monitor"
FEW_ROWS = 20  # up to here one statement per row is quicker
_MIGRATION_LOCK = 0x63656C65  # any number that no other program is likely to lock

# What is wrong with the values or the statement; everything else (full, locked, read-only, away) passes.
_REFUSALS = (DataError, IntegrityError, ProgrammingError)

# A server that is gone without a word is noticed in seconds (libpq's names; tcp_user_timeout in milliseconds).
_PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 4000,
}

_SQLITE_PRAGMAS = (
    f"PRAGMA busy_timeout = {LOCK_TIMEOUT_SECONDS * 1000}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # a commit is acknowledged to the broker: it must survive a power cut
    "PRAGMA temp_store = MEMORY",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA wal_autocheckpoint = 4000",
)


# sqlite3 searches for an adapter of each None and each bytes that it binds, which takes longer than to bind it
# (CPython, Modules/_sqlite/statement.c, need_adapt). These adapters give the same value back.
_NOTHING: dict[None, None] = {}
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(type(None), _NOTHING.get)


class Store:
    """One database. Threads may share it; processes each open their own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"

    @contextmanager
    def begin(self, patience: float = LOCK_TIMEOUT_SECONDS) -> Iterator[Connection]:
        """A write transaction: committed at the end, rolled back by an exception.

        Raises StoreUnavailable when the database cannot be reached or written, or (SQLite) when others have held
        it for ``patience`` seconds.
        """
        with self._reported("write"), self.engine.connect() as plain:
            connection = plain.execution_options(patience=patience)
            with connection.begin():
                yield connection
                if not self.is_sqlite:
                    connection.exec_driver_sql(f"NOTIFY {CHANNEL}")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A snapshot: everything read inside is of one moment."""
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._reported("read"), self.engine.connect() as plain:
            connection = plain.execution_options(**level)
            with connection.begin():
                yield connection

    @property
    def held(self) -> bool:
        """Whether a receiver may write through this; see lease.py. No session can lose it here."""
        return True

    def hold(self) -> None:
        """Makes sure of it. Raises LeaseLost, and StoreUnavailable where that cannot be found out."""

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that knows ``on_conflict_do_update`` of this dialect."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _reported(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, self.engine.dialect.loaded_dbapi.Error) as error:  # COPY speaks to the driver itself
            raise unavailable(self.engine, verb, error) from error


def put_value(store: Store, connection: Connection, key: str, value: str) -> None:
    """Stores a text under a key, in the place of the one before, inside the caller's transaction."""
    statement = store.insert(schema.meta).values(key=key, value=value)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["key"], set_={"value": statement.excluded.value})
    )


def delete_value(store: Store, key: str) -> None:
    with store.begin() as connection:
        connection.execute(sa.delete(schema.meta).where(schema.meta.c.key == key))


def read_value(store: Store, key: str) -> str | None:
    with store.read() as connection:
        value: str | None = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.key == key)).scalar()
        return value


def read_values(store: Store, prefix: str) -> dict[str, str]:
    """The texts whose keys begin with ``prefix``, by the rest of the key, in its order."""
    table = schema.meta.c
    wanted = table.key.startswith(prefix, autoescape=True)
    with store.read() as connection:
        rows = connection.execute(sa.select(table.key, table.value).where(wanted).order_by(table.key)).all()
    return {row.key.removeprefix(prefix): row.value for row in rows}


class KeyTaken(StoreRefused):
    """A row with this key is there already, or breaks another rule of the database; the transaction is lost."""


class PreparedStatement:
    """A statement compiled once and run with plain tuples, without SQLAlchemy's cost per row.

    PostgreSQL is slow at one statement per row: many rows are sent by COPY, either into the table itself or into a
    temporary one from which a single statement takes them.
    """

    def __init__(self, store: Store, statement: Any, columns: Sequence[str]) -> None:
        dialect = store.engine.dialect
        compiled = statement.compile(dialect=dialect, column_keys=list(columns))
        self._sql = str(compiled)
        self._positions = compiled.positiontup
        self._columns = tuple(columns)
        self._driver_error = dialect.loaded_dbapi.IntegrityError
        self._copies = () if store.is_sqlite else _by_copy(statement, columns, dialect)

    def run(self, connection: Connection, rows: Sequence[tuple[object, ...]]) -> None:
        """Runs it once per row; each row has the values of ``columns`` in order. Raises KeyTaken."""
        if not rows:
            return
        try:
            if self._copies and len(rows) > FEW_ROWS:
                self._copy(connection, rows)
            else:
                connection.exec_driver_sql(self._sql, self._parameters(rows))
        except (IntegrityError, self._driver_error) as error:
            raise KeyTaken(f"the database refuses a row: {getattr(error, 'orig', None) or error}") from error

    def _parameters(self, rows: Sequence[tuple[object, ...]]) -> Any:
        if self._positions is None:
            return [dict(zip(self._columns, row, strict=True)) for row in rows]
        if tuple(self._positions) == self._columns:
            return list(rows)
        order = [self._columns.index(name) for name in self._positions]
        return [tuple([row[at] for at in order]) for row in rows]

    def _copy(self, connection: Connection, rows: Sequence[tuple[object, ...]]) -> None:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            for sql in self._copies:
                if not sql.startswith("COPY"):
                    cursor.execute(sql)
                    continue
                with cursor.copy(sql) as copy:
                    for row in rows:
                        copy.write_row(row)


def one_of(connection: Connection, column: sa.Column[Any], values: Sequence[object]) -> sa.ColumnElement[bool]:
    """That the column is one of these. PostgreSQL takes them as one value: a plan for each number of them is dear."""
    if connection.dialect.name == "sqlite":
        return column.in_(values)
    return column == sa.any_(sa.literal(list(values), postgresql.ARRAY(column.type)))


def numbers(column: sa.ColumnElement[int], values: Iterable[int]) -> sa.ColumnElement[bool]:
    """``column IN (...)`` with the numbers in the text: partial indexes need them there, and no limit counts them."""
    listed = sorted(values)
    return column.in_(sa.bindparam(None, listed, expanding=True, literal_execute=True)) if listed else sa.false()


def force_index_scans(connection: Connection) -> None:
    """For this transaction: PostgreSQL would now and then rather read every row and sort, for it does not know where
    a page stops."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off"
        )


def position(connection: Connection, text: sa.ColumnElement[str], part: str) -> sa.ColumnElement[int]:
    """Where ``part`` begins in the text, counted from 1; 0 where it is not in it."""
    find = sa.func.instr if connection.dialect.name == "sqlite" else sa.func.strpos
    return find(text, part, type_=sa.Integer())


class Deletion:
    """Deletes the rows of which ``column`` is one of many values, however many, and the rest is ``where``."""

    def __init__(self, store: Store, column: sa.Column[Any], *where: sa.ColumnElement[bool]) -> None:
        self._each = PreparedStatement(
            store, sa.delete(column.table).where(column == sa.bindparam("one"), *where), ["one"]
        )
        several = sa.bindparam("several", type_=postgresql.ARRAY(column.type))
        self._all = None if store.is_sqlite else sa.delete(column.table).where(column == sa.any_(several), *where)

    def run(self, connection: Connection, values: Sequence[object]) -> None:
        if self._all is not None:
            connection.execute(self._all, {"several": list(values)})
        else:
            self._each.run(connection, [(each,) for each in values])


def _by_copy(statement: Any, columns: Sequence[str], dialect: sa.Dialect) -> tuple[str, ...]:
    """What to run instead of ``statement`` for many rows, one after the other; COPY takes the rows."""
    names = ", ".join(columns)
    quoted = ", ".join(dialect.identifier_preparer.quote(name) for name in columns)
    if isinstance(statement, sa.Insert) and statement._post_values_clause is None:
        return (f"COPY {statement.table.name} ({quoted}) FROM STDIN",)
    types = _types(statement, columns)
    stage = sa.Table(
        f"stage_{blake2b(f'{statement} {names}'.encode(), digest_size=6).hexdigest()}",
        sa.MetaData(),
        *[sa.Column(name, types[name]) for name in columns],
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DELETE ROWS",
    )
    if isinstance(statement, sa.Insert):
        staged: Any = statement.from_select(list(columns), sa.select(stage))
    else:

        def from_stage(part: Any, **_: object) -> Any:
            return stage.c[part.key] if isinstance(part, sa.BindParameter) and part.key in types else None

        staged = cast("Any", visitors.replacement_traverse)(statement, {}, from_stage)
    return (
        str(CreateTable(stage, if_not_exists=True).compile(dialect=dialect)),
        str(sa.delete(stage).compile(dialect=dialect)),  # of an earlier run in this transaction
        f"COPY {stage.name} ({quoted}) FROM STDIN",
        str(staged.compile(dialect=dialect)),
    )


def _types(statement: Any, columns: Sequence[str]) -> dict[str, Any]:
    """Of the values: the type of the table's column of that name, else what the parameter was declared as."""
    parameters = (part for part in visitors.iterate(statement) if isinstance(part, sa.BindParameter))
    types = {part.key: part.type for part in parameters if not isinstance(part.type, sa.types.NullType)}
    types |= {column.name: column.type for column in statement.table.columns}
    return {name: types[name] for name in columns}


def open_store(url: str) -> Store:
    """Opens the database and brings its tables up to date.

    Raises SettingsError for an address that cannot be one, StoreUnavailable where it cannot be opened.
    """
    store = Store(_engine(url))
    try:
        _migrate(store)
    except DBAPIError as error:
        store.close()
        raise unavailable(store.engine, "open", error) from error
    except BaseException:
        store.close()
        raise
    return store


def database_without_password(url: str) -> str:
    """The address as it may be shown. Raises SettingsError for one that cannot be read."""
    engine = _engine(url)
    shown = engine.url.render_as_string(hide_password=True)
    engine.dispose()
    return shown


def connect_only(url: str) -> Store:
    """The database as it is, to be read; it need not be there. Raises SettingsError."""
    return Store(_engine(url))


def apart(store: Store) -> Store:
    """The same database through connections of its own.

    Who writes much must not fill the pages that SQLite keeps for the connections of others by turns.
    """
    return Store(_engine(store.engine.url.render_as_string(hide_password=False)))


def unavailable(engine: Engine, verb: str, error: Exception) -> StoreUnavailable:
    """What the driver said, with what to do."""
    cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    where = engine.url.render_as_string(hide_password=True)
    kind = StoreRefused if isinstance(error, _REFUSALS) else StoreUnavailable
    return kind(f"cannot {verb} the database {where}: {masked(cause)}; {_mend(cause)}")


def _mend(cause: str) -> str:
    known = {
        "full": "free space on its disk",
        "locked": "end the other program that holds it",
        "disk I/O": "check its disk, and that this user may write the file",
        "readonly": "give this user the right to write the file and its folder",
        "unable to open": "check that the folder exists and may be written",
        "malformed": "the file is damaged: move it away and restore a copy",
        "does not exist": "create it, or check --database",
        "password": "check user and password in --database",
        "refused": "start the server, or check --database",
    }
    return next((mend for word, mend in known.items() if word in cause), "check --database")


def driver_url(url: sa.URL) -> sa.URL:
    """The address with the driver that we use. Raises SettingsError for a kind of database that is not served."""
    if url.drivername in {"postgresql", "postgres"}:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "postgresql+psycopg"}:
        raise SettingsError("this kind of database is not supported; use sqlite:/// or postgresql://")
    return url


def _engine(url: str) -> Engine:
    try:
        parsed = driver_url(make_url(url))
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed)
        return sa.create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=10,
            pool_reset_on_return="rollback",
            hide_parameters=True,
            connect_args={name: value for name, value in _PATIENCE.items() if name not in parsed.query},
        )
    except (ArgumentError, NoSuchModuleError, ValueError):  # their texts may repeat the password
        raise SettingsError(
            "database: the address cannot be parsed; use sqlite:///file.db or postgresql://host/name"
        ) from None
    except ModuleNotFoundError:
        raise SettingsError("PostgreSQL needs its driver: pip install 'celery-monitor[postgresql]'") from None


def _sqlite_engine(url: sa.URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise SettingsError("the record must be a file, since two processes share it: sqlite:///celery-monitor.db")
    engine = sa.create_engine(
        url, pool_size=10, pool_use_lifo=True, connect_args={"check_same_thread": False}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own
        if connection.execute("PRAGMA page_count").fetchone() == (0,):
            # Only before the first table; later it would do nothing, and still need to write.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for pragma in _SQLITE_PRAGMAS:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that will write must say so first: upgrading a read lock later can fail at once.
        patience = connection.get_execution_options().get("patience")
        if patience is None:
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @event.listens_for(engine, "handle_error")
    def reopen(context: sa.ExceptionContext) -> None:
        # SQLite opens a file that may not be written for reading, and such a connection never writes again.
        if "readonly" in str(context.original_exception):
            context.is_disconnect = True

    return engine


def _migrate(store: Store) -> None:
    with store.engine.connect() as connection:
        if migrations.is_current(connection):
            return
    with store.begin() as connection:  # on SQLite this alone keeps a second process out
        if not store.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        migrations.upgrade(connection)


class Changes:
    """Tells when another connection has committed. For one thread; holds one connection."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection: Any = None
        self._version: object = None

    def wait(self, timeout: float) -> bool:
        """True as soon as somebody committed since the last call, False after ``timeout`` seconds.

        The first call tells nothing new and returns False at its end. Raises StoreUnavailable; the next
        call connects again.
        """
        try:
            return self._wait_sqlite(timeout) if self._store.is_sqlite else self._wait_postgresql(timeout)
        except (SQLAlchemyError, self._store.engine.dialect.loaded_dbapi.Error) as error:
            self.close()
            raise unavailable(self._store.engine, "watch", error) from error

    def close(self) -> None:
        connection, self._connection, self._version = self._connection, None, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _connect(self) -> Any:
        if self._connection is None:  # not SQLAlchemy's: it would hold a transaction, which sees no change
            self._connection = self._store.engine.raw_connection()
            if not self._store.is_sqlite:
                self._connection.driver_connection.autocommit = True
                self._connection.driver_connection.execute(f"LISTEN {CHANNEL}")
        return self._connection.driver_connection

    def _wait_sqlite(self, timeout: float) -> bool:
        connection = self._connect()
        deadline = time.monotonic() + timeout
        while True:
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            known, self._version = self._version, version
            if known is not None and version != known:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(POLL_SECONDS, timeout))

    def _wait_postgresql(self, timeout: float) -> bool:
        connection = self._connect()
        first = list(connection.notifies(timeout=timeout, stop_after=1))
        rest = list(connection.notifies(timeout=0))  # several commits are one change
        return bool(first or rest)
