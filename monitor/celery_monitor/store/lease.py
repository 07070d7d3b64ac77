"""The lease on one cluster's record: one receiver has it and writes, the others stand by.

On PostgreSQL it is an advisory lock of the session through which the receiver writes: losing the session loses the lock
and the open transaction, so two never write at once. A standby ends a session that was silent for ``SILENT_SECONDS``:
its receiver is stopped or disconnected. (PostgreSQL's idle time-outs do not run after a pipeline, which psycopg uses
for many rows: found on 15.) On SQLite it is a lock file beside the record, released when its process is killed; the
library filelock would leave the file behind.
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
from celery_monitor.store.engine import CHANNEL, LOCK_TIMEOUT_SECONDS, Store, with_own_connections


class FileLock:
    """Locks ``path`` between acquire() and release(). Not for folders shared by several machines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        return self._handle is not None

    def acquire(self) -> bool:
        """False where another process holds it. Raises OSError where the file cannot be created."""
        while self._handle is None:
            # For reading: a read-only file can be locked, too.
            handle = os.open(self.path, os.O_RDONLY | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            if self._is_still_there(handle):
                self._handle = handle
            else:  # its previous holder deleted it between our two calls
                os.close(handle)
        return True

    def release(self) -> None:
        """Unlocks and deletes the file."""
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
KEEPALIVE_SECONDS = 0.5  # between two signs of life of an idle session
# Against a network that drops packets.
SESSION = {
    "tcp_keepalives_idle": "1",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "3s",
}
# The session with the lock, since when it is in its state, and whether the server waits for it.
HOLDER = text(
    "SELECT a.pid, a.state_change, a.wait_event = 'ClientRead' AS silent FROM pg_locks l JOIN pg_stat_activity a"
    " USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database"
    " WHERE datname = current_database()) AND l.objsubid = 1"
    " AND l.classid::bigint = (CAST(:number AS bigint) >> 32) & 4294967295"
    " AND l.objid::bigint = CAST(:number AS bigint) & 4294967295"
)

log = logging.getLogger(__name__)


class Lease(Protocol):
    """The right of one receiver to write the record of a cluster."""

    store: Store  # to write through; refuses when the lease is lost

    def acquire(self) -> bool:
        """False where another receiver has it. Raises StoreUnavailable."""

    def close(self) -> None:
        """Releases it."""


def make_lease(store: Store, cluster: str) -> Lease:
    """The lease on a cluster's record, not acquired yet."""
    return FileLease(store, cluster) if store.is_sqlite else SessionLease(store, cluster)


class FileLease:
    """On SQLite, which only one machine writes."""

    def __init__(self, store: Store, cluster: str) -> None:
        self.store = with_own_connections(store)
        self._lock = FileLock(Path(f"{store.engine.url.database}.{cluster}.lock"))

    def acquire(self) -> bool:
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

    def acquire(self) -> bool:
        return self._leased.acquire()

    def close(self) -> None:
        self._leased.release()


class LeasedStore(Store):
    """Writes through the session that has the lock; reads through the pool."""

    def __init__(self, store: Store, cluster: str) -> None:
        super().__init__(store.engine)
        self._cluster = cluster
        self._connection: Connection | None = None
        self._using = threading.RLock()
        self._released = threading.Event()
        self._silent: tuple[object, float] | None = None  # state of another silent session, and since when

    @property
    def has_lease(self) -> bool:
        connection = self._connection
        if connection is None or connection.invalidated:
            return False
        driver = connection.connection.driver_connection
        return driver is not None and not driver.closed  # COPY bypasses SQLAlchemy

    @contextmanager
    def begin(self, lock_timeout: float = LOCK_TIMEOUT_SECONDS) -> Iterator[Connection]:  # noqa: ARG002  for SQLite
        """A write transaction of the session with the lock. Raises LeaseLost and StoreUnavailable."""
        with self._using, self._store_errors("write"):
            connection = self._locked_connection()
            with connection.begin():
                yield connection
                connection.exec_driver_sql(f"NOTIFY {CHANNEL}")

    def ensure_lease(self) -> None:
        with self._using, self._store_errors("write"):
            self._locked_connection()

    def acquire(self) -> bool:
        """False where another session has the lock. Raises StoreUnavailable."""
        with self._using, self._store_errors("lock"):
            if not self.has_lease:
                self.release()
                self._lock()
            return self.has_lease

    def release(self) -> None:
        """Closes the session, which releases the lock."""
        self._released.set()
        with self._using:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(SQLAlchemyError):
                    connection.invalidate()  # the pool must not get its time-outs
                connection.close()

    def _locked_connection(self) -> Connection:
        if not self.acquire() or self._connection is None:
            raise LeaseLost(f"another receiver writes the record of {self._cluster} now; this one stands by")
        return self._connection

    def _lock(self) -> None:
        connection = self.engine.connect()
        try:
            with connection.begin():
                number = self._number(connection)
                locked = connection.execute(select(func.pg_try_advisory_lock(number))).scalar()
                if not locked:
                    self._end_silent_holder(connection, number)
            if not locked:
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
        threading.Thread(target=self._keep_alive, args=(self._released,), name="keep-lease", daemon=True).start()

    def _end_silent_holder(self, connection: Connection, number: int) -> None:
        """Ends the session with the lock where it has been silent for too long."""
        holder = connection.execute(HOLDER, {"number": number}).first()
        if holder is None or not holder.silent:
            self._silent = None
            return
        session = (holder.pid, holder.state_change)
        if self._silent is None or self._silent[0] != session:
            self._silent = (session, time.monotonic())
        elif time.monotonic() - self._silent[1] >= SILENT_SECONDS:
            log.warning("the receiver that writes the record of %s is silent; its session is ended", self._cluster)
            connection.execute(select(func.pg_terminate_backend(holder.pid)))
            self._silent = None

    def _number(self, connection: Connection) -> int:
        """The number of the lock. A lock is of the whole database, a record of one schema."""
        schema = connection.execute(select(func.current_schema())).scalar()
        name = f"celery-monitor receiver {schema} {self._cluster}"
        return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)

    def _keep_alive(self, released: threading.Event) -> None:
        """Keeps an idle session from looking silent. Errors are left to the next write."""
        while not released.wait(KEEPALIVE_SECONDS):
            if self._using.acquire(blocking=False):
                try:
                    if self.has_lease and self._connection is not None and not released.is_set():
                        with suppress(SQLAlchemyError), self._connection.begin():
                            self._connection.exec_driver_sql("SELECT 1")
                finally:
                    self._using.release()


def _set(connection: Connection, name: str, value: str) -> None:
    """Sets a parameter of the session, if this server has it."""
    with suppress(SQLAlchemyError), connection.begin():
        connection.execute(select(func.set_config(name, value, False)))
