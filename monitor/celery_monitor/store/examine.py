"""Looks at the database for doctor, without making, migrating or writing it."""

import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from celery_monitor.core.checks import RecordFacts
from celery_monitor.errors import MonitorError
from celery_monitor.records.receiver import ReceiverHealth
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, connect_only
from celery_monitor.store.health import recorded_receivers
from celery_monitor.store.series import read_name_totals
from celery_monitor.store.tasks.page import read_longest_running
from celery_monitor.store.tasks.rows import numbers_of
from celery_monitor.store.workers import read_workers

BUSY_SECONDS = 2.0
SEEN_DAYS = 7


def look_at_record(url: str, cluster: str) -> RecordFacts:
    """What can be told without changing anything. Raises SettingsError for an address that cannot be one."""
    with closing(connect_only(url)) as store:
        if store.is_sqlite:
            return _sqlite(store, cluster)
        return _postgresql(store, cluster)


def _sqlite(store: Store, cluster: str) -> RecordFacts:
    file = Path(str(store.engine.url.database)).absolute()
    version = sqlite3.sqlite_version_info
    if not file.parent.is_dir():
        return RecordFacts(product="sqlite", version=version, exists=False, refusal=f"there is no folder {file.parent}")
    free = shutil.disk_usage(file.parent).free
    if not file.exists():
        refusal = None if os.access(file.parent, os.W_OK) else f"{file.parent} may not be written"
        return RecordFacts(product="sqlite", version=version, exists=False, refusal=refusal, free_bytes=free)
    refusal = _refusal_of(file)
    said = _said(store, cluster) if _is_ours(file) else RecordedReceiver()
    return said.fill(RecordFacts(product="sqlite", version=version, refusal=refusal, free_bytes=free))


def _is_ours(file: Path) -> bool:
    """In the mode in which we write: to open another file would change it."""
    with suppress(OSError), file.open("rb") as opened:
        return opened.read(20)[18:] == b"\x02\x02"
    return False


def _refusal_of(file: Path) -> str | None:
    """Begins to write and takes it back."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return str(error)
    return None


def _postgresql(store: Store, cluster: str) -> RecordFacts:
    try:
        with store.engine.connect() as connection:
            number = int(str(connection.exec_driver_sql("SHOW server_version_num").scalar()))
            rights = "SELECT current_setting('transaction_read_only'), has_schema_privilege(current_schema(), 'CREATE')"
            read_only, may_create = connection.exec_driver_sql(rights).one()
    except SQLAlchemyError as error:
        text = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        return RecordFacts(product="postgresql", refusal=text)
    refusal = None
    if read_only == "on":
        refusal = "the server is read-only (a replica, or default_transaction_read_only)"
    elif not may_create:
        refusal = "the user may not create tables in its schema"
    version = (number // 10000, number % 10000)
    return _said(store, cluster).fill(RecordFacts(product="postgresql", version=version, refusal=refusal))


class RecordedReceiver(NamedTuple):
    """What the record knows of the cluster."""

    events_off: Sequence[str] = ()
    events_on: Sequence[str] = ()
    longest_run: float | None = None
    longest_eta: float | None = None
    receiver: ReceiverHealth | None = None

    def fill(self, facts: RecordFacts) -> RecordFacts:
        return replace(facts, **self._asdict())


def _said(store: Store, cluster: str) -> RecordedReceiver:
    """Nothing where the record is empty, of another version of this program, or no record."""
    try:
        workers = read_workers(store, cluster)
        run, eta = _longest(store, cluster)
        receiver = next((each for each in recorded_receivers(store, time.time()) if each.cluster == cluster), None)
    except (MonitorError, SQLAlchemyError):
        return RecordedReceiver()
    on, off = _with_events(workers, on=True), _with_events(workers, on=False)
    return RecordedReceiver(off, on, run, eta, receiver)


def _with_events(workers: Sequence[Worker], *, on: bool) -> list[str]:
    return [worker.hostname for worker in workers if worker.events_enabled is on]


def _longest(store: Store, cluster: str) -> tuple[float | None, float | None]:
    """Seconds that tasks run (99 of 100 of each name, and what runs now), and that they wait for their ETA."""
    now = time.time()
    totals = read_name_totals(store, since=now - SEEN_DAYS * 86400, until=now, cluster=cluster)
    runs = [each.run.p99 for each in totals if each.run is not None]
    running = read_longest_running(store, cluster=cluster, limit=1)
    runs += [now - task.started for task in running if task.started is not None]
    table = schema.task.c
    with store.read() as connection:
        ahead = sa.select(sa.func.max(table.eta - table.received))
        ours = table.cluster_id.in_(numbers_of(connection, cluster))
        scheduled = table.state == schema.STATE_CODES[TaskState.SCHEDULED]
        eta: float | None = connection.execute(ahead.where(ours, scheduled)).scalar()
    return max(runs, default=None), eta
