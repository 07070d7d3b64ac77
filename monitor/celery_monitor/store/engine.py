"""The database: opening it, transactions, statements, and every difference between SQLite and PostgreSQL."""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from threading import current_thread, local
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
from celery_monitor.core.filters.scope import UNLIMITED, Limits
from celery_monitor.errors import SettingsError, StoreRefused, StoreUnavailable
from celery_monitor.files import make_private
from celery_monitor.store import migrations, schema

LOCK_TIMEOUT_SECONDS = 10
POLL_SECONDS = 0.05
CHANNEL = "celery_monitor"
FEW_ROWS = 20  # up to so many, one statement per row is quicker than COPY
_MIGRATION_LOCK = 0x63656C65  # any number that no other program is likely to lock

# Errors of values or statements. All others (disk full, locked, read-only, unreachable) are temporary.
_REFUSALS = (DataError, IntegrityError, ProgrammingError)

# To notice an unreachable server within seconds (libpq's names; tcp_user_timeout in milliseconds).
_TIMEOUTS = {
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


# sqlite3 searches an adapter for each None and bytes that it binds, which takes longer than binding it
# (CPython, Modules/_sqlite/statement.c, need_adapt). These adapters return the value itself.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(type(None), dict[None, None]().get)


class Store:
    """One database. Threads may share it; processes each open their own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._thread = local()  # its ``snapshot``: the connection of a block with several reads

    @property
    def limits(self) -> Limits:
        """What is shown of the record: all of it, except by the limited stores of accounts/limited.py."""
        return UNLIMITED

    @property
    def whole(self) -> "Store":
        """The store without limits. Whoever reads from it has to compare with ``limits``."""
        return self

    @contextmanager
    def begin(self, lock_timeout: float = LOCK_TIMEOUT_SECONDS) -> Iterator[Connection]:
        """A write transaction: committed at the end, rolled back by an exception.

        Raises StoreUnavailable when the database cannot be reached or written, or (SQLite) when others have locked
        it for ``lock_timeout`` seconds.
        """
        with self._store_errors("write"), self.engine.connect() as plain:
            connection = plain.execution_options(lock_timeout=lock_timeout)
            with connection.begin():
                if not self.is_sqlite:
                    yield connection
                    connection.exec_driver_sql(f"NOTIFY {CHANNEL}")
                    return
                file = self.engine.url.database
                _writing[file] = (current_thread().name, time.monotonic())
                try:
                    yield connection
                finally:
                    _writing.pop(file, None)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one snapshot."""
        shared = getattr(self._thread, "snapshot", None)
        if shared is not None:
            with self._store_errors("read"):
                yield shared
            return
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._store_errors("read"), self.engine.connect() as plain:
            connection = plain.execution_options(**level)
            with connection.begin():
                yield connection

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that this thread reads inside is one transaction: one snapshot, at a fraction of the cost."""
        with self.read() as connection:
            if hasattr(self._thread, "snapshot"):
                yield
                return
            self._thread.snapshot = connection
            try:
                yield
            finally:
                del self._thread.snapshot

    @property
    def has_lease(self) -> bool:
        """Whether a receiver may write here. Always, except for a store of lease.py whose session can be lost."""
        return True

    def ensure_lease(self) -> None:
        """Raises LeaseLost where another receiver has it, StoreUnavailable where the database cannot be asked."""

    def insert(self, table: sa.Table) -> Any:
        """An INSERT with the ``on_conflict_do_update`` of this dialect."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _store_errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, self.engine.dialect.loaded_dbapi.Error) as error:  # COPY bypasses SQLAlchemy
            raise unavailable(self.engine, verb, error) from error


def put_value(store: Store, connection: Connection, key: str, value: str) -> None:
    """Stores a text under a key, replacing the previous one, inside the caller's transaction."""
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
    """The texts whose keys begin with ``prefix``, by the rest of the key, in order of the keys."""
    table = schema.meta.c
    wanted = table.key.startswith(prefix, autoescape=True)
    with store.read() as connection:
        rows = connection.execute(sa.select(table.key, table.value).where(wanted).order_by(table.key)).all()
    return {row.key.removeprefix(prefix): row.value for row in rows}


class KeyTaken(StoreRefused):
    """A row with this key exists, or the row violates another constraint; the transaction is lost."""


class PreparedStatement:
    """A statement compiled once and run with plain tuples, without SQLAlchemy's cost per row.

    PostgreSQL is slow at one statement per row: many rows are sent by COPY, either into the table itself or into a
    temporary table, which a single statement then reads.
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
        """Executes it once per row; a row has the values of ``columns`` in order. Raises KeyTaken."""
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
    """``column IN values``. On PostgreSQL as one array: planning anew for each number of values is expensive."""
    if connection.dialect.name == "sqlite":
        return column.in_(values)
    return column == sa.any_(sa.literal(list(values), postgresql.ARRAY(column.type)))


def numbers(column: sa.ColumnElement[int], values: Iterable[int]) -> sa.ColumnElement[bool]:
    """``column IN (...)`` with the numbers in the SQL text: for partial indexes, and no limit of parameters applies."""
    listed = sorted(values)
    return column.in_(sa.bindparam(None, listed, expanding=True, literal_execute=True)) if listed else sa.false()


def force_index_scans(connection: Connection) -> None:
    """For this transaction. PostgreSQL does not know where a page ends, and would sometimes read and sort every row."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off"
        )


def position(connection: Connection, text: sa.ColumnElement[str], part: str) -> sa.ColumnElement[int]:
    """Where ``part`` begins in the text, counted from 1; 0 where the text does not contain it."""
    find = sa.func.instr if connection.dialect.name == "sqlite" else sa.func.strpos
    return find(text, part, type_=sa.Integer())


class Deletion:
    """Deletes the rows whose ``column`` has one of any number of values, and for which ``where`` holds."""

    def __init__(self, store: Store, column: sa.Column[Any], *where: sa.ColumnElement[bool]) -> None:
        one = sa.delete(column.table).where(column == sa.bindparam("one"), *where)
        self._delete_one = PreparedStatement(store, one, ["one"])
        many = sa.any_(sa.bindparam("many", type_=postgresql.ARRAY(column.type)))
        self._delete_many = None if store.is_sqlite else sa.delete(column.table).where(column == many, *where)

    def run(self, connection: Connection, values: Sequence[object]) -> None:
        if self._delete_many is not None:
            connection.execute(self._delete_many, {"many": list(values)})
        else:
            self._delete_one.run(connection, [(value,) for value in values])


def _by_copy(statement: Any, columns: Sequence[str], dialect: sa.Dialect) -> tuple[str, ...]:
    """The statements that replace ``statement`` for many rows, in order; the one with COPY is fed the rows."""
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
        str(sa.delete(stage).compile(dialect=dialect)),  # rows of an earlier run in this transaction
        f"COPY {stage.name} ({quoted}) FROM STDIN",
        str(staged.compile(dialect=dialect)),
    )


def _types(statement: Any, columns: Sequence[str]) -> dict[str, Any]:
    """Type of each value: that of the table's column of this name, else that of the parameter."""
    parameters = (part for part in visitors.iterate(statement) if isinstance(part, sa.BindParameter))
    types = {part.key: part.type for part in parameters if not isinstance(part.type, sa.types.NullType)}
    types |= {column.name: column.type for column in statement.table.columns}
    return {name: types[name] for name in columns}


def open_store(url: str) -> Store:
    """Opens the database and migrates its tables.

    Raises SettingsError for an invalid address, StoreUnavailable where the database cannot be opened.
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
    """The address without its password. Raises SettingsError for an invalid one."""
    engine = _engine(url)
    shown = engine.url.render_as_string(hide_password=True)
    engine.dispose()
    return shown


def connect_only(url: str) -> Store:
    """A store for reading, not migrated; the database need not exist. Raises SettingsError."""
    return Store(_engine(url))


def with_own_connections(store: Store) -> Store:
    """The same database through another pool: a heavy writer must not fill the page caches of SQLite's readers."""
    return Store(_engine(store.engine.url.render_as_string(hide_password=False)))


def unavailable(engine: Engine, verb: str, error: Exception) -> StoreUnavailable:
    """The driver's error with advice."""
    cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    where = engine.url.render_as_string(hide_password=True)
    kind = StoreRefused if isinstance(error, _REFUSALS) else StoreUnavailable
    advice = _lock_words(engine) if "locked" in cause else _advice(cause)
    return kind(f"cannot {verb} the database {where}: {masked(cause)}; {advice}")


_writing: dict[str | None, tuple[str, float]] = {}  # by SQLite file, the thread of this process that writes, and since


def _lock_words(engine: Engine) -> str:
    """Who has an SQLite file locked: often we ourselves, in another thread or process."""
    file = engine.url.database
    thread, since = _writing.get(file, ("", 0.0))
    if thread:
        return f"celery-monitor itself is writing ({thread}, for {time.monotonic() - since:.0f} s); this is tried again"
    pid = _pid_with_lock(file or "")
    if pid is None:
        return "another program or process of celery-monitor has it locked; end it if it does not finish"
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"celery_monitor" in command or b"celery-monitor" in command:
            return f"another process of celery-monitor is writing (process {pid}); this is tried again"
    return f"process {pid} has it locked: end it if it does not finish"


def _pid_with_lock(file: str) -> int | None:
    """The process that has a write lock on an SQLite file or its index of the WAL, where Linux says so."""
    with suppress(OSError, ValueError, IndexError):
        inodes = {str(path.stat().st_ino) for path in (Path(file), Path(f"{file}-shm")) if path.exists()}
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            _, _, _, access, pid, place, *_ = line.split()
            if access == "WRITE" and place.rpartition(":")[2] in inodes and int(pid) not in {os.getpid(), -1}:
                return int(pid)
    return None


def _advice(cause: str) -> str:
    by_word = {
        "full": "free space on its disk",
        "disk I/O": "check its disk, and that this user may write the file",
        "readonly": "give this user the right to write the file and its folder",
        "unable to open": "check that the folder exists and may be written",
        "malformed": "the file is damaged: move it away and restore a copy",
        "does not exist": "create it, or check --database",
        "password": "check user and password in --database",
        "refused": "start the server, or check --database",
    }
    return next((advice for word, advice in by_word.items() if word in cause), "check --database")


def driver_url(url: sa.URL) -> sa.URL:
    """The address with our driver. Raises SettingsError for an unsupported kind of database."""
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
            connect_args={name: value for name, value in _TIMEOUTS.items() if name not in parsed.query},
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

    @event.listens_for(engine, "do_connect")
    def protect(*_: object) -> None:
        if not url.query.get("uri"):  # an address for a file that we did not make
            make_private(Path(str(url.database)))

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
        # Upgrading a read lock later can fail at once, so a transaction that will write takes the write lock first.
        lock_timeout = connection.get_execution_options().get("lock_timeout")
        if lock_timeout is None:
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {lock_timeout * 1000:.0f}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @event.listens_for(engine, "handle_error")
    def reopen(context: sa.ExceptionContext) -> None:
        # SQLite opens a read-only file for reading, and such a connection can never write.
        if "readonly" in str(context.original_exception):
            context.is_disconnect = True

    return engine


def _migrate(store: Store) -> None:
    with store.engine.connect() as connection:
        revision = migrations.revision_of(connection)
    if revision == migrations.head():
        return
    if revision is not None and revision > migrations.head():
        raise SettingsError(
            f"database: a newer version of celery-monitor has changed its tables (to {revision}; this version knows "
            f"{migrations.head()}); install that version, or use another database"
        )
    with store.begin() as connection:  # on SQLite its lock keeps other processes out
        if not store.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        if store.is_sqlite and migrations.revision_of(connection) is None:
            migrations.create(connection)
        else:
            migrations.upgrade(connection)


def is_migrated(store: Store) -> bool:
    """Whether the tables are those of this version. Raises StoreUnavailable."""
    with store.read() as connection:
        return migrations.revision_of(connection) == migrations.head()


class Changes:
    """Waits for commits of other connections. For one thread; uses one connection."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection: Any = None
        self._version: object = None

    def wait(self, timeout: float) -> bool:
        """True as soon as there was a commit since the last call, False after ``timeout`` seconds.

        The first call always returns False. Raises StoreUnavailable; the next call connects again.
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
        if self._connection is None:  # raw: SQLAlchemy would open a transaction, which sees no change
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
            previous, self._version = self._version, version
            if previous is not None and version != previous:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(POLL_SECONDS, timeout))

    def _wait_postgresql(self, timeout: float) -> bool:
        connection = self._connect()
        first = list(connection.notifies(timeout=timeout, stop_after=1))
        rest = list(connection.notifies(timeout=0))  # several commits are one change
        return bool(first or rest)
