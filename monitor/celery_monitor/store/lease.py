"""The right to write one cluster's record: one receiver has it, the others stand by.

On PostgreSQL it is an advisory lock of the very session through which the receiver writes: who loses the session
loses the lock and the open transaction with it, so two never write at once. A session of which the server hears
nothing for ``SILENT_SECONDS`` is ended by who stands by: its receiver is stopped, or cut off without a word.
(PostgreSQL's own idle time-outs do not count after a pipeline, as psycopg sends for many rows: seen on 15.) On SQLite
it is a lock file beside the record, free at once when its process is killed. The library filelock leaves its file
behind.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from celery_monitor.errors import LeaseLost, StoreUnavailable
from celery_monitor.store.engine import CHANNEL, LOCK_TIMEOUT_SECONDS, Store, apart


class FileLock:
    """Holds ``path`` between acquire() and release(). Not for folders that several machines share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        return self._handle is not None

    def acquire(self) -> bool:
        """False where another holds it. Raises OSError where the file cannot be made."""
        while self._handle is None:
            # Only read: a file that may not be written can be held all the same.
            handle = os.open(self.path, os.O_RDONLY | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            if self._is_still_there(handle):
                self._handle = handle
            else:  # it was deleted between our two calls, by who held it before
                os.close(handle)
        return True

    def release(self) -> None:
        """Lets others have it, and leaves no file behind."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                self.path.unlink()
            os.close(handle)

    def _is_still_there(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False


SILENT_SECONDS = 3.0
KEEP_SECONDS = 0.5  # how often the server hears of a session that has nothing to write
# A network that swallows packets.
SESSION = {
    "tcp_keepalives_idle": "1",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "3s",
}
# Who has the lock, since when its session is in this state, and whether the server waits for it to say something.
HOLDER = text(
    "SELECT a.pid, a.state_change, a.wait_event = 'ClientRead' AS unheard FROM pg_locks l JOIN pg_stat_activity a"
    " USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database"
    " WHERE datname = current_database()) AND l.objsubid = 1"
    " AND l.classid::bigint = (CAST(:number AS bigint) >> 32) & 4294967295"
    " AND l.objid::bigint = CAST(:number AS bigint) & 4294967295"
)

log = logging.getLogger(__name__)


class Lease(Protocol):
    """What one receiver of a cluster holds."""

    store: Store  # to write through; it refuses when the lease is lost

    def take(self) -> bool:
        """False where another receiver holds it. Raises StoreUnavailable."""

    def close(self) -> None:
        """Lets others have it."""


def lease_of(store: Store, cluster: str) -> Lease:
    """The lease of a cluster's record; not held yet."""
    return FileLease(store, cluster) if store.is_sqlite else SessionLease(store, cluster)


class FileLease:
    """On SQLite, which one machine alone writes."""

    def __init__(self, store: Store, cluster: str) -> None:
        self.store = apart(store)
        self._lock = FileLock(Path(f"{store.engine.url.database}.{cluster}.lock"))

    def take(self) -> bool:
        try:
            return self._lock.acquire()
        except OSError as error:
            raise StoreUnavailable(
                f"cannot write {self._lock.path}: {error.strerror}; give this user the right to write its folder"
            ) from error

    def close(self) -> None:
        self._lock.release()
        self.store.close()


class SessionLease:
    """On PostgreSQL."""

    def __init__(self, store: Store, cluster: str) -> None:
        self._leased = LeasedStore(store, cluster)
        self.store: Store = self._leased

    def take(self) -> bool:
        return self._leased.take()

    def close(self) -> None:
        self._leased.release()


class LeasedStore(Store):
    """Writes through the one session that holds the lock; reads as others do."""

    def __init__(self, store: Store, cluster: str) -> None:
        super().__init__(store.engine)
        self._cluster = cluster
        self._connection: Connection | None = None
        self._using = threading.RLock()
        self._released = threading.Event()
        self._unheard: tuple[object, float] | None = None  # what the holder's session was last seen at, and since when

    @property
    def held(self) -> bool:
        connection = self._connection
        if connection is None or connection.invalidated:
            return False
        driver = connection.connection.driver_connection
        return driver is not None and not driver.closed  # COPY speaks to it behind SQLAlchemy's back

    @contextmanager
    def begin(self, patience: float = LOCK_TIMEOUT_SECONDS) -> Iterator[Connection]:  # noqa: ARG002  is SQLite's
        """A write transaction of the session that holds the lock. Raises LeaseLost and StoreUnavailable."""
        with self._using, self._reported("write"):
            connection = self._hold()
            with connection.begin():
                yield connection
                connection.exec_driver_sql(f"NOTIFY {CHANNEL}")

    def hold(self) -> None:
        with self._using, self._reported("write"):
            self._hold()

    def take(self) -> bool:
        """False where another session has the lock. Raises StoreUnavailable."""
        with self._using, self._reported("lock"):
            if not self.held:
                self.release()
                self._take()
            return self.held

    def release(self) -> None:
        """Ends the session, and with it the lock."""
        self._released.set()
        with self._using:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(SQLAlchemyError):
                    connection.invalidate()  # its time-outs are not for the pool
                connection.close()

    def _hold(self) -> Connection:
        if not self.take() or self._connection is None:
            raise LeaseLost(f"another receiver writes the record of {self._cluster} now; this one stands by")
        return self._connection

    def _take(self) -> None:
        connection = self.engine.connect()
        try:
            with connection.begin():
                number = self._number(connection)
                taken = connection.execute(select(func.pg_try_advisory_lock(number))).scalar()
                if not taken:
                    self._judge(connection, number)
            if not taken:
                connection.close()
                return
            for name, value in SESSION.items():
                _set(connection, name, value)
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        self._connection = connection
        self._released = threading.Event()
        threading.Thread(target=self._keep, args=(self._released,), name="keep-lease", daemon=True).start()

    def _judge(self, connection: Connection, number: int) -> None:
        """Ends the session that holds the lock where the server has heard nothing of it for too long."""
        holder = connection.execute(HOLDER, {"number": number}).first()
        if holder is None or not holder.unheard:
            self._unheard = None
            return
        seen = (holder.pid, holder.state_change)
        if self._unheard is None or self._unheard[0] != seen:
            self._unheard = (seen, time.monotonic())
        elif time.monotonic() - self._unheard[1] >= SILENT_SECONDS:
            log.warning("the receiver that writes the record of %s is silent; its session is ended", self._cluster)
            connection.execute(select(func.pg_terminate_backend(holder.pid)))
            self._unheard = None

    def _number(self, connection: Connection) -> int:
        """The number of the lock. Locks are the database's, records a schema's."""
        schema = connection.execute(select(func.current_schema())).scalar()
        name = f"celery-monitor receiver {schema} {self._cluster}"
        return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)

    def _keep(self, released: threading.Event) -> None:
        """Lets the server hear of a session that is not in use. What fails here, the next writer finds out."""
        while not released.wait(KEEP_SECONDS):
            if self._using.acquire(blocking=False):
                try:
                    if self.held and self._connection is not None and not released.is_set():
                        with suppress(SQLAlchemyError), self._connection.begin():
                            self._connection.exec_driver_sql("SELECT 1")
                finally:
                    self._using.release()


def _set(connection: Connection, name: str, value: str) -> None:
    """A setting of the session, where this server knows it."""
    with suppress(SQLAlchemyError), connection.begin():
        connection.execute(select(func.set_config(name, value, False)))
