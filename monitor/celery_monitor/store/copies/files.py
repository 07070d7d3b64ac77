"""A record in one SQLite file: reading it unchanged, checking it, and replacing one by another in one step."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from urllib.parse import quote

import sqlalchemy as sa

from celery_monitor.errors import Conflict, InvalidInput, StoreUnavailable
from celery_monitor.files import BESIDE
from celery_monitor.store import migrations
from celery_monitor.store.lease import FileLock

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
