"""Copies a whole record to another database: backup, restore, and the move between SQLite and PostgreSQL.

The copy shows one moment, while receivers go on writing. It appears when it is complete: as a file that is renamed, or
in one transaction.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkstemp
from typing import Any, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Connection

from celery_monitor.errors import Conflict, InvalidInput, StoreUnavailable, Unsupported
from celery_monitor.files import BESIDE
from celery_monitor.store import migrations, schema
from celery_monitor.store.engine import PreparedStatement, Store, connect_only, open_store
from celery_monitor.store.lease import FileLock, make_lease
from celery_monitor.store.retention.partitions import (
    CLUSTER_BITS,
    KEPT_OFFSET,
    LEAST,
    create_partition,
    first_id,
    partitions,
)
from celery_monitor.store.schema import CLUSTER_SHIFT

_HEADER = b"SQLite format 3\0"
_PAGE_SIZE = slice(16, 18)  # https://sqlite.org/fileformat.html#the_database_header
_PAGES = slice(28, 32)
_LARGEST_PAGE = 65_536  # stored as 1
_BUSY_SECONDS = 10.0
_CLOSING_SECONDS = 1.0  # for a process that ends just now


def read_only(file: Path) -> sqlite3.Connection:
    """Opens a file without changing it or its rights. Raises sqlite3.Error."""
    address = f"file:{quote(str(file.absolute()))}?mode=ro"
    return sqlite3.connect(address, uri=True, isolation_level=None, timeout=_BUSY_SECONDS)


def engine_of(file: Path) -> sa.Engine:
    """An engine that reads a file without changing it."""
    return sa.create_engine("sqlite://", creator=lambda: read_only(file), poolclass=sa.NullPool)


def check_record(file: Path) -> str:
    """The revision of a record's tables. Raises InvalidInput unless it is a record that this version can read."""
    check_complete(file)
    try:
        with file_errors(file, "read"), engine_of(file).connect() as connection:
            revision = migrations.revision_of(connection)
    except sa.exc.DBAPIError as error:
        raise InvalidInput(f"{file} cannot be read as a record: {error.orig}") from error
    if revision is None:
        raise InvalidInput(f"{file} is an SQLite database, but not a record of celery-monitor")
    return check_revision(str(file), revision)


def check_revision(shown: str, revision: str) -> str:
    """Raises InvalidInput for tables of a newer version."""
    if revision > migrations.head():
        raise InvalidInput(
            f"{shown} was written by a newer version of celery-monitor (tables {revision}; this version knows "
            f"{migrations.head()}); install that version"
        )
    return revision


def check_complete(file: Path) -> None:
    """Raises InvalidInput for what is no SQLite database, and for one that was cut off."""
    try:
        with file.open("rb") as opened:
            head = opened.read(100)
        size = file.stat().st_size
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from error
    if not head.startswith(_HEADER):
        raise InvalidInput(f"{file} is not a backup of celery-monitor: it is no SQLite database")
    page = int.from_bytes(head[_PAGE_SIZE])
    expected = int.from_bytes(head[_PAGES]) * (_LARGEST_PAGE if page == 1 else page)
    if size < expected and not file.with_name(f"{file.name}-wal").exists():
        raise InvalidInput(f"{file} is incomplete: {size:,} of {expected:,} bytes; use another backup")


def check_intact(file: Path, shown: Path) -> None:
    """Reads all pages. Raises InvalidInput where some are damaged; ``shown`` is the name in the message."""
    try:
        with closing(read_only(file)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise InvalidInput(f"{shown} is damaged ({found.splitlines()[-1]}); use another backup")


def clone(source: Path, target: Path) -> None:
    """Copies a file that may be in use, as it was at one moment. Writers go on meanwhile: SQLite's online backup."""
    with file_errors(target, "write"), closing(read_only(source)) as origin, closing(sqlite3.connect(target)) as copy:
        origin.backup(copy)  # all pages at once: one snapshot, which later commits do not change


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A private file beside ``target`` that takes its place when it is complete; an error leaves nothing behind."""
    try:
        handle, name = mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
    except OSError as error:
        raise StoreUnavailable(f"cannot write {target}: {error.strerror}; choose another folder") from error
    os.close(handle)
    made = Path(name)
    try:
        yield made
        _finish(made)
        for suffix in BESIDE[1:]:  # of the file that is replaced; SQLite would apply them to the new one
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        made.replace(target)
        _sync(target.absolute().parent)
    except OSError as error:
        raise StoreUnavailable(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        for suffix in BESIDE:
            made.with_name(made.name + suffix).unlink(missing_ok=True)


def _finish(file: Path) -> None:
    """One file without a WAL beside it, on the disk."""
    with file_errors(file, "write"), closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    _sync(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def unused(file: Path) -> Iterator[None]:
    """Keeps receivers away from the record in ``file``. Raises Conflict where a process uses it."""
    with ExitStack() as locks:
        for path in file.absolute().parent.glob(f"{file.name}.*.lock"):
            lock = FileLock(path)
            locks.callback(lock.release)
            if not lock.acquire():
                cluster = path.name.removeprefix(f"{file.name}.").removesuffix(".lock")
                raise Conflict(f"the receiver of {cluster} writes {file}; end it first")
        check_unused(file)
        yield


def check_unused(file: Path) -> None:
    """Raises Conflict where another process has the file open: SQLite leaves its WAL mode only without others."""
    if not file.exists():
        return
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(file, timeout=_CLOSING_SECONDS)) as connection:
        deadline = time.monotonic() + _CLOSING_SECONDS
        while _is_open_elsewhere(connection):
            if time.monotonic() > deadline:
                raise Conflict(f"a process has {file} open; end celery-monitor and what else reads it first")


def _is_open_elsewhere(connection: sqlite3.Connection) -> bool:
    """A damaged file raises sqlite3.DatabaseError; nobody can use it."""
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return True
    return bool(mode == "wal")


@contextmanager
def file_errors(file: Path, verb: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable(f"cannot {verb} {file}: {error}; check its disk and its rights") from error


CHUNK = 500  # rows in memory; one may have a message of some hundred kilobytes
LOCK_TIMEOUT = "5s"  # of PostgreSQL, for readers of a record that is replaced
_TABLES = tuple(schema.metadata.sorted_tables)
_NUMBERS = {schema.task: 0, schema.run: 0}  # tables with the number of a task's row, and its position
_REPLACE = "give --replace to delete what it has"

Rows = list[tuple[Any, ...]]


class Copied(NamedTuple):
    """What a copy has."""

    tasks: int
    target: str  # without a password


def save_backup(database: str, file: Path) -> Copied:
    """Copies the record to a new SQLite file. Raises Conflict where the file exists, StoreUnavailable."""
    if file.exists():
        raise Conflict(f"{file} exists; choose another name for the backup")
    return copy_record(database, sqlite_address(file))


def restore_backup(file: Path, database: str, *, replace: bool) -> Copied:
    """Makes a backup the record. Raises InvalidInput for an unusable file, Conflict where the record is in use."""
    return copy_record(sqlite_address(file), database, replace=replace)


def sqlite_address(file: Path) -> str:
    return sa.URL.create("sqlite", database=str(file)).render_as_string()


def copy_record(source: str, target: str, *, replace: bool = False) -> Copied:
    """Copies all rows of one database to another, which must be empty or is replaced.

    Raises SettingsError for an invalid address, InvalidInput for a source that is no record of this version or an older
    one, Conflict where the target is in use or not empty, Unsupported, and StoreUnavailable.
    """
    with closing(connect_only(source)) as origin, closing(connect_only(target)) as end:
        source_file, target_file = _file_of(origin), _file_of(end)
        shown = end.engine.url.render_as_string(hide_password=True)
        if source_file is None and target_file is None:
            raise Unsupported("copy PostgreSQL to PostgreSQL with pg_dump and pg_restore")
        if source_file is not None:
            revision = check_record(source_file)
            if target_file is not None:
                _file_to_file(source_file, target_file, replace=replace)
            else:
                _file_to_server(source_file, revision, target, replace=replace)
        else:
            _server_to_file(origin, Path(str(target_file)), replace=replace)
        return Copied(_count_tasks(target_file or end), shown)


def _file_of(store: Store) -> Path | None:
    return Path(str(store.engine.url.database)) if store.is_sqlite else None


def _count_tasks(copied: Path | Store) -> int:
    engine = engine_of(copied) if isinstance(copied, Path) else copied.engine
    with engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.sum(schema.task_count.c.count))).scalar() or 0)


def _file_to_file(source: Path, target: Path, *, replace: bool) -> None:
    with _replacing(target, replace=replace) as made:
        clone(source, made)
        check_intact(made, source)


def _file_to_server(source: Path, revision: str, target: str, *, replace: bool) -> None:
    with ExitStack() as stack:
        if revision != migrations.head():
            source = _migrated(source, Path(stack.enter_context(TemporaryDirectory(prefix="celery-monitor-"))))
        check_intact(source, source)
        with closing(connect_only(target)) as before:
            _check_server(before, stack, replace=replace)
        store = stack.enter_context(closing(open_store(target)))
        with file_errors(source, "read"), engine_of(source).connect() as origin, store.begin() as connection:
            origin.exec_driver_sql("BEGIN")  # one snapshot
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            _clear_server(connection)
            for table in _TABLES:
                _insert(store, connection, table, _server_rows(table, origin))
            _reserve_numbers(connection)
            _set_sequences(connection)
            connection.exec_driver_sql("ANALYZE")


def _server_to_file(origin: Store, target: Path, *, replace: bool) -> None:
    with origin.read() as snapshot:
        shown = origin.engine.url.render_as_string(hide_password=True)
        revision = migrations.revision_of(snapshot)
        if revision is None:
            raise InvalidInput(f"{shown} has no record of celery-monitor")
        if check_revision(shown, revision) != migrations.head():
            raise Conflict(f"{shown} has the tables of an older version; start this version on it once, or use pg_dump")
        with _replacing(target, replace=replace) as made, closing(open_store(sqlite_address(made))) as store:
            for table in _TABLES:
                with store.begin() as connection:
                    connection.execute(sa.delete(table))
                    _insert(store, connection, table, _file_rows(table, snapshot))


@contextmanager
def _replacing(target: Path, *, replace: bool) -> Iterator[Path]:
    """A new file for the record ``target``, which nobody uses and which is empty or may be replaced."""
    with unused(target):
        if not replace and _file_has_rows(target):
            raise Conflict(f"{target} is not empty; {_REPLACE}")
        with new_file(target) as made:
            yield made
            check_unused(target)


def _migrated(source: Path, folder: Path) -> Path:
    """A copy of an older record with the tables of this version."""
    copy = folder / "record.db"
    clone(source, copy)
    check_intact(copy, source)
    open_store(sqlite_address(copy)).close()
    return copy


def _file_has_rows(file: Path) -> bool:
    """Whether a file has a record with rows, or anything else that is not ours to delete."""
    if not file.exists() or not file.stat().st_size:
        return False
    try:
        with engine_of(file).connect() as connection:
            strangers = set(sa.inspect(connection).get_table_names()) - {*schema.metadata.tables, "alembic_version"}
            return bool(strangers) or _has_rows(connection)
    except sa.exc.DBAPIError:  # damaged, or no database
        return True


def _has_rows(connection: Connection) -> bool:
    """Whether any table but ``meta`` has a row; opening a record writes there."""
    there = [each for each in _TABLES if each is not schema.meta and sa.inspect(connection).has_table(each.name)]
    return any(connection.execute(sa.select(sa.literal(1)).select_from(each).limit(1)).first() for each in there)


def _check_server(store: Store, stack: ExitStack, *, replace: bool) -> None:
    """Keeps receivers away until ``stack`` ends. Raises Conflict where the record is in use or not empty."""
    with store.read() as connection:
        if not sa.inspect(connection).has_table(schema.cluster.name):
            return
        clusters = list(connection.execute(sa.select(schema.cluster.c.name)).scalars())
        is_empty = not _has_rows(connection)
    for cluster in clusters:
        lease = make_lease(store, cluster)
        stack.callback(lease.close)
        if not lease.acquire():
            raise Conflict(f"the receiver of {cluster} writes this record; end it first")
    if not replace and not is_empty:
        shown = store.engine.url.render_as_string(hide_password=True)
        raise Conflict(f"{shown} is not empty; {_REPLACE}")


def _clear_server(connection: Connection) -> None:
    """Deletes all rows, and the partitions of tasks except the kept one."""
    for cluster in connection.execute(sa.select(schema.cluster.c.id)).scalars().all():
        for partition in partitions(connection, cluster):
            for table in _NUMBERS:
                connection.exec_driver_sql(f"DROP TABLE {table.name}{partition.suffix}")
    connection.exec_driver_sql(f"TRUNCATE {', '.join(table.name for table in _TABLES)}")


def _insert(store: Store, connection: Connection, table: sa.Table, chunks: Iterable[Rows]) -> None:
    insert = PreparedStatement(store, sa.insert(table), table.columns.keys())
    for rows in chunks:
        try:
            insert.run(connection, rows)
        except StoreUnavailable as error:
            raise type(error)(f"table {table.name}: {error.message}") from error


def _rows(table: sa.Table, connection: Connection) -> Iterator[Rows]:
    """All rows of a table, some at a time."""
    streamed = connection.execution_options(yield_per=CHUNK).execute(sa.select(table))
    for chunk in streamed.partitions():
        yield [tuple(row) for row in chunk]


def _server_rows(table: sa.Table, origin: Connection) -> Iterator[Rows]:
    """Rows for PostgreSQL, whose kept partition has room for the numbers that tasks have on SQLite."""
    for rows in _rows(table, origin):
        if table in _NUMBERS and any(row[_NUMBERS[table]] >= first_id(1) for row in rows):
            raise Unsupported(f"a record of more than {(1 << CLUSTER_BITS) - 1} clusters cannot move to PostgreSQL")
        yield rows


def _file_rows(table: sa.Table, origin: Connection) -> Iterator[Rows]:
    """Rows for SQLite, where the clusters share one range of numbers."""
    position = _NUMBERS.get(table)
    for rows in _rows(table, origin):
        if position is None:
            yield rows
        else:
            yield [(*row[:position], sqlite_number(row[position]), *row[position + 1 :]) for row in rows]


def sqlite_number(number: int) -> int:
    """The number on SQLite of a task's row that PostgreSQL has in a partition or moved to the kept one."""
    whole = number if number >= 0 else number + KEPT_OFFSET
    cluster, local = whole >> CLUSTER_SHIFT, whole & (first_id(1) - 1)
    return first_id(cluster >> CLUSTER_BITS) + local


def _reserve_numbers(connection: Connection) -> None:
    """New tasks get larger numbers than those that came from SQLite: their partition begins behind them."""
    task = schema.task.c
    newest = sa.select(task.cluster_id, sa.func.max(task.id)).group_by(task.cluster_id)
    for cluster, number in connection.execute(newest).all():
        after = (number >> CLUSTER_BITS) + 1
        create_partition(connection, cluster, first_id(cluster) + (after << CLUSTER_BITS), LEAST)


def _set_sequences(connection: Connection) -> None:
    """Numbers that the server assigns go on after the largest."""
    for table in _TABLES:
        if "id" not in table.columns:
            continue
        sequence = connection.execute(sa.select(sa.func.pg_get_serial_sequence(table.name, "id"))).scalar()
        largest = connection.execute(sa.select(sa.func.max(table.c.id))).scalar() if sequence else None
        if largest is not None:
            connection.execute(sa.select(sa.func.setval(sequence, largest)))
