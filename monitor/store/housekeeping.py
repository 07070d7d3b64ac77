"""What retention does beside deleting tasks: old counters and samples go, freed space goes back, at a steady pace."""

import time

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Table
from sqlalchemy import and_
from sqlalchemy import delete
from sqlalchemy import select

from monitor.store import schema
from monitor.store.engine import Store

COUNTERS_SECONDS = 60.0  # between two looks for old counters
ROLLUP_DAYS = {60: 7, 3600: 90, 86400: 730}
SAMPLE_DAYS = 7
DAY_SECONDS = 86_400.0
SPANS = 60  # of counters, that are deleted at once
# Pages that are free are used again by what comes in: what is given back only to be asked for again costs twice.
RESERVE_SHARE, RESERVE_PAGES = 0.02, 1000
GIVE_BACK_SECONDS = 0.05


class Pace:
    """How much to do at once so that it takes about so many seconds."""

    def __init__(self, seconds: float, least: int, most: int) -> None:
        self._seconds, self._least, self._most = seconds, least, most
        self.number = least

    def took(self, seconds: float) -> None:
        """``number`` was done in so many seconds."""
        factor = min(2.0, max(0.25, self._seconds / max(seconds, 1e-6)))
        self.number = int(min(self._most, max(self._least, self.number * factor)))


class Counters:
    """Old counters over time, and old samples of queues."""

    def __init__(self) -> None:
        self._due = 0.0
        self.more = False

    def delete(self, connection: Connection, number: int, now: float) -> bool:
        """Deletes those of a few spans of time where it is due; whether there were any."""
        if time.monotonic() < self._due:
            return False
        oldest = []
        for resolution, days in ROLLUP_DAYS.items():
            for table in (schema.rollup, schema.failure_rollup):
                mine = table.c.resolution == resolution
                oldest.append(_delete_oldest(connection, table, mine, now - days * DAY_SECONDS, SPANS * resolution))
        starts = schema.worker_start
        before = now - ROLLUP_DAYS[3600] * DAY_SECONDS
        connection.execute(delete(starts).where(starts.c.cluster_id == number, starts.c.at < before))
        self.more = any(oldest) | _delete_samples(connection, number, now - SAMPLE_DAYS * DAY_SECONDS)
        self._due = time.monotonic() + (0.0 if self.more else COUNTERS_SECONDS)
        return self.more


def _delete_oldest(connection: Connection, table: Table, mine: ColumnElement[bool], before: float, span: int) -> bool:
    """Deletes what is older than ``before``, at most ``span`` seconds of it; whether there was any."""
    first = connection.execute(select(table.c.at).where(mine).order_by(table.c.at).limit(1)).scalar()
    if first is None or first >= before:
        return False
    connection.execute(delete(table).where(mine, table.c.at < min(before, first + span)))
    return True


def _delete_samples(connection: Connection, number: int, before: float) -> bool:
    """Queue by queue, as their index has them; whether there is more."""
    table = schema.queue_sample
    names = connection.execute(select(schema.queue.c.name).where(schema.queue.c.cluster_id == number)).scalars().all()
    found = False
    for name in names:
        mine = and_(table.c.cluster_id == number, table.c.name == name)
        found |= _delete_oldest(connection, table, mine, before, SPANS * 60)
    return found


class GiveBack:
    """Gives freed pages of a SQLite file back to the file system; PostgreSQL does that by itself, as far as it does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pace = Pace(GIVE_BACK_SECONDS, 50, 20_000)
        self.more = False

    def run(self) -> None:
        """Gives back what can be within GIVE_BACK_SECONDS, but for the reserve."""
        if not self._store.is_sqlite:
            return
        connection = self._store.engine.raw_connection()
        try:
            cursor = connection.cursor()
            free, pages = (cursor.execute(f"PRAGMA {each}").fetchone()[0] for each in ("freelist_count", "page_count"))
            surplus = free - max(RESERVE_PAGES, int(pages * RESERVE_SHARE))
            pages = min(max(surplus, 0), self._pace.number)
            if pages:
                began = time.perf_counter()
                # One step for each page, without a row: execute() would take the first step for the last.
                cursor.executescript(f"PRAGMA incremental_vacuum({pages})")
                self._pace.took(time.perf_counter() - began)
            self.more = surplus > pages
        finally:
            connection.close()
