"""What is too old, or too much, goes: a small chunk at a time, so that writing never waits for it.

Successes go first, failures stay longer. Counters over time (rollups) outlive the tasks they counted.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy import tuple_
from sqlalchemy import update

from monitor.records import TaskState
from monitor.settings import Settings
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.keys import from_key
from monitor.store.messages import delete_messages
from monitor.store.messages import expire_messages
from monitor.store.rollups import lock_counters
from monitor.store.schema import STATE_CODES
from monitor.store.terms import cluster_id

CHUNK = 1000
FREE_PAGES = 500  # given back to the file system at once
DAY_SECONDS = 86_400.0
RESTART_SECONDS = 600.0  # how often the search for old tasks begins again at the oldest
ROLLUP_DAYS = {60: 7, 3600: 90, 86400: 730}
SAMPLE_DAYS = 7
_SUCCESS = STATE_CODES[TaskState.SUCCESS]
_VICTIMS = select(
    schema.task.c.id,
    schema.task.c.seen,
    schema.task.c.cluster_id,
    schema.task.c.key,
    schema.task.c.state,
    schema.task.c.name_id,
    schema.task.c.queue_id,
    schema.task.c.worker_id,
)


class Retention:
    """Deletes for one cluster. Used by the thread that writes."""

    def __init__(self, store: Store, cluster: str, settings: Settings) -> None:
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._position = (0.0, 0)  # up to which old tasks were looked at
        self._restarted_at = time.monotonic()

    def step(self, now: float) -> int:
        """Deletes at most a chunk of tasks, old messages and old counters; gives the number of tasks deleted.

        Where it gives CHUNK there is more to do, of tasks or of messages. Raises StoreUnavailable.
        """
        if time.monotonic() - self._restarted_at > RESTART_SECONDS:
            self._position, self._restarted_at = (0.0, 0), time.monotonic()
        with self._store.begin() as connection:
            number = cluster_id(self._store, connection, self._cluster)
            gone = self._delete_old(connection, number, now)
            if gone < CHUNK:
                gone += self._delete_surplus(connection, number, CHUNK - gone)
            if gone < CHUNK and self._settings.shard.first:
                self._delete_counters(connection, number, now)
            expired = 0
            if self._settings.shard.first:
                expired = expire_messages(connection, number, self._settings, now, CHUNK)
        gone = max(gone, CHUNK if expired == CHUNK else 0)
        if (gone or expired) and self._store.is_sqlite:
            self._give_back()
        return gone

    def _delete_old(self, connection: Connection, number: int, now: float) -> int:
        """Walks from the oldest task on; what is kept longer is passed over and not looked at again for a while."""
        table = schema.task
        succeeded_before = now - self._settings.keep_succeeded_days * DAY_SECONDS
        others_before = now - self._settings.keep_failed_days * DAY_SECONDS
        statement = (
            _VICTIMS.where(
                tuple_(table.c.seen, table.c.id) > self._position, table.c.seen < max(succeeded_before, others_before)
            )
            .order_by(table.c.seen, table.c.id)
            .limit(CHUNK)
        )
        rows = connection.execute(statement).all()
        if rows:
            self._position = (rows[-1].seen, rows[-1].id)
        old = [
            row
            for row in rows
            if row.cluster_id == number
            and self._settings.shard.has(from_key(row.key))
            and row.seen < (succeeded_before if row.state == _SUCCESS else others_before)
        ]
        self._delete(connection, number, old)
        return len(old)

    def _delete_surplus(self, connection: Connection, number: int, limit: int) -> int:
        counts = schema.task_count
        total = connection.execute(select(func.sum(counts.c["count"])).where(counts.c.cluster_id == number)).scalar()
        shard = self._settings.shard
        surplus = min(-(-(int(total or 0) - self._settings.keep_tasks) // shard.total), limit)
        if surplus <= 0:
            return 0
        table = schema.task
        oldest = _VICTIMS.where(table.c.cluster_id == number).order_by(table.c.seen, table.c.id)
        oldest = oldest.limit(surplus * shard.total)
        rows = connection.execute(oldest.where(table.c.state == _SUCCESS)).all()
        if not rows:
            rows = connection.execute(oldest).all()
        rows = [row for row in rows if shard.has(from_key(row.key))][:surplus]
        self._delete(connection, number, rows)
        return len(rows)

    def _delete(self, connection: Connection, number: int, rows: Sequence[Any]) -> None:
        if not rows:
            return
        ids = [row.id for row in rows]
        connection.execute(delete(schema.run).where(schema.run.c.task_id.in_(ids)))
        connection.execute(delete(schema.task).where(schema.task.c.id.in_(ids)))
        keys = [row.key for row in rows]
        delete_messages(connection, number, keys)
        connection.execute(
            delete(schema.retry).where(schema.retry.c.cluster_id == number, schema.retry.c.key.in_(keys))
        )
        table = schema.task_count
        if self._settings.shard.total > 1:
            lock_counters(connection, number)
        for place, count in Counter((row.state, row.name_id, row.queue_id, row.worker_id) for row in rows).items():
            columns = (table.c.state, table.c.name_id, table.c.queue_id, table.c.worker_id)
            here = [column == value for column, value in zip(columns, place, strict=True)]
            changed = update(table).where(table.c.cluster_id == number, *here)
            connection.execute(changed.values({"count": table.c["count"] - count}))
        connection.execute(delete(table).where(table.c.cluster_id == number, table.c["count"] <= 0))

    def _delete_counters(self, connection: Connection, number: int, now: float) -> None:
        for resolution, days in ROLLUP_DAYS.items():
            before = now - days * DAY_SECONDS
            for table in (schema.rollup, schema.failure_rollup):
                connection.execute(delete(table).where(table.c.resolution == resolution, table.c.at < before))
        starts = schema.worker_start
        oldest = now - ROLLUP_DAYS[3600] * DAY_SECONDS
        connection.execute(delete(starts).where(starts.c.cluster_id == number, starts.c.at < oldest))
        samples = schema.queue_sample
        before = now - SAMPLE_DAYS * DAY_SECONDS
        connection.execute(delete(samples).where(samples.c.cluster_id == number, samples.c.at < before))

    def _give_back(self) -> None:
        connection = self._store.engine.raw_connection()
        try:
            connection.cursor().execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()
        finally:
            connection.close()
