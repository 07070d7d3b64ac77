"""Deletes what is too old or too much, in short steps, so that writing does not wait.

Succeeded tasks expire first, failed and unfinished ones later; roll-ups outlive the tasks that they count. PostgreSQL
drops whole partitions: see partitions.py.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Select,
    Table,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    union_all,
)

from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.actions import delete_old_actions
from celery_monitor.store.engine import Deletion, Store, force_index_scans
from celery_monitor.store.retention.partitions import FullPartition, PartitionDrops
from celery_monitor.store.rollups.counters import counting_tasks
from celery_monitor.store.schema import STATE_CODES
from celery_monitor.store.tasks.detail import expire_messages
from celery_monitor.store.terms import cluster_id

STEP_SECONDS = 0.15  # of the writing thread's time at once
LEAST, MOST = 200, 10_000  # tasks in a step
MESSAGES = 1000  # captured messages in a step
DAY_SECONDS = 86_400.0
OTHERS_SHARE = 0.75  # of keep_tasks, for failed and unfinished tasks at most
RESTART_SECONDS = 3600.0  # after which a scan begins again, for tasks that have ended since it passed them
AGE_SECONDS = 10.0  # a scan is repeated when tasks of so many seconds may have expired
COUNTERS_SECONDS = 60.0  # between two checks for old roll-ups
ROLLUP_DAYS = {60: 7, 3600: 90, 86400: 730}
SAMPLE_DAYS = 7
SPANS = 60  # buckets that are deleted at once
# Free pages are reused by new rows; returning pages that are needed again soon costs twice.
RESERVE_SHARE, RESERVE_PAGES = 0.02, 1000
VACUUM_SECONDS = 0.05
_ANY_TIME = float("inf")
_START = (float("-inf"), -1)
_SUCCESS = STATE_CODES[TaskState.SUCCESS]
_KEYED = (schema.message, schema.retry)  # tables that refer to tasks by key
_task = schema.task.c


class Deleted(NamedTuple):
    """What one step deleted."""

    keys: list[bytes]  # of tasks that were deleted one by one or moved to another partition
    dropped: int  # tasks that were dropped with their partition
    counters: bool  # roll-ups were deleted too
    more: bool  # there is more to delete now


class ExpiredTask(NamedTuple):
    """A task that may be deleted."""

    id: int
    sort_time: float
    cluster_id: int
    key: bytes
    earlier_runs: int
    counted: bool
    state: int
    name_id: int
    queue_id: int
    worker_id: int

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Where it counts in task_count."""
        return self.state, self.name_id, self.queue_id, self.worker_id


class StepSize:
    """Adapts the number of items of a step so that it takes about ``seconds``."""

    def __init__(self, seconds: float, least: int, most: int) -> None:
        self._seconds, self._least, self._most = seconds, least, most
        self.number = least

    def record(self, seconds: float) -> None:
        """Reports how long a step of ``number`` items took."""
        factor = min(2.0, max(0.25, self._seconds / max(seconds, 1e-6)))
        self.number = int(min(self._most, max(self._least, self.number * factor)))


class Retention:
    """Retention of one cluster. Used by the writing thread."""

    def __init__(self, store: Store, cluster: str, settings: Settings) -> None:
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._pace = StepSize(STEP_SECONDS, LEAST, MOST)
        self._succeeded = Scan(succeeded=True)
        self._others = Scan(succeeded=False)
        self._old_counters = OldCounters()
        self._actions_due = 0.0
        self._free_space = FreeSpace(store)
        self._count = counting_tasks(store)
        self._delete_tasks = Deletion(store, _task.id)
        self._delete_runs = Deletion(store, schema.run.c.task_id)
        self._partitions = PartitionDrops(self._count, self._delete_keyed)

    def delete_expired(self, now: float) -> Deleted:
        """Deletes what has expired, for about STEP_SECONDS. Raises StoreUnavailable."""
        began = time.perf_counter()
        with self._store.begin() as connection:
            number = cluster_id(self._store, connection, self._cluster)
            force_index_scans(connection)
            tasks = self._delete_tasks_due(connection, number, now)
            messages = expire_messages(connection, number, self._settings, now, MESSAGES)
            counters = not tasks.more and self._old_counters.delete(connection, number, now)
            if time.monotonic() >= self._actions_due:
                more = delete_old_actions(connection, now - self._settings.keep_action_days * DAY_SECONDS)
                self._actions_due = time.monotonic() + (0.0 if more else COUNTERS_SECONDS)
        if tasks.more and not tasks.dropped:  # dropping a partition says nothing about the cost of a task
            self._pace.record(time.perf_counter() - began)
        if tasks.keys or messages or counters or self._free_space.more:
            self._free_space.vacuum()
        more = tasks.more or messages == MESSAGES or self._old_counters.more or self._free_space.more
        return tasks._replace(counters=counters, more=more)

    def _delete_tasks_due(self, connection: Connection, number: int, now: float) -> Deleted:
        """A step towards dropping the oldest partition where it is due, else deletes the oldest tasks."""
        limit = self._pace.number
        oldest = self._partitions.oldest(connection, number)
        moved: list[bytes] = []
        if oldest is not None and self._is_due(connection, number, now, oldest):
            step = self._partitions.step(connection, number, oldest.partition, limit)
            if not step.blocked:
                return Deleted(step.moved, step.dropped, counters=False, more=True)
            moved = step.moved
        # Succeeded tasks younger than those of a full partition are deleted after it.
        before = _ANY_TIME if oldest is None else oldest.first
        expired, more = self._expired(connection, number, now, limit, before)
        self._delete(connection, number, expired)
        return Deleted([*moved, *(each.key for each in expired)], dropped=0, counters=False, more=more)

    def _is_due(self, connection: Connection, number: int, now: float, oldest: FullPartition) -> bool:
        if oldest.last < now - self._settings.keep_succeeded_days * DAY_SECONDS:
            return True
        return self._surplus(connection, number)[0] >= oldest.partition.tasks

    def _expired(
        self, connection: Connection, number: int, now: float, limit: int, before: float
    ) -> tuple[list[ExpiredTask], bool]:
        """At most ``limit`` expired tasks, and whether there are more; succeeded ones only from before ``before``."""
        old = now - self._settings.keep_succeeded_days * DAY_SECONDS
        expired, more = self._succeeded.next(connection, number, min(old, before), limit, limit)
        if not more:
            old = now - self._settings.keep_failed_days * DAY_SECONDS
            others, more = self._others.next(connection, number, old, limit, limit - len(expired))
            expired += others
        if more:
            return expired, True
        found, more = self._over_limit(connection, number, limit, len(expired), before)
        return expired + found, more

    def _over_limit(
        self, connection: Connection, number: int, limit: int, gone: int, before: float
    ) -> tuple[list[ExpiredTask], bool]:
        """The oldest tasks above ``keep_tasks``, where ``gone`` of this step's ``limit`` are deleted."""
        surplus, surplus_of_others = self._surplus(connection, number)
        surplus -= gone
        if surplus <= 0:
            return [], False
        room = min(surplus, limit - gone)
        choices = [(self._succeeded, room)]
        if before == _ANY_TIME:
            choices.append((self._others, room))
        if surplus_of_others > 0:
            choices.insert(0, (self._others, min(room, surplus_of_others)))
        for scan, wanted in choices:
            found, more = scan.next(connection, number, before, limit, wanted)
            if found or more:
                return found, surplus > len(found)
        if before == _ANY_TIME:
            for scan, _ in choices:
                scan.restart()
        return [], False

    def _surplus(self, connection: Connection, number: int) -> tuple[int, int]:
        """Number of tasks above ``keep_tasks``, and of tasks that have not succeeded above their share."""
        table = schema.task_count.c
        count = table["count"]
        others = func.sum(case((table.state != _SUCCESS, count), else_=0))
        row = connection.execute(select(func.sum(count), others).where(table.cluster_id == number)).one()
        total, other = (int(each or 0) for each in row)
        return total - self._settings.keep_tasks, other - int(self._settings.keep_tasks * OTHERS_SHARE)

    def _delete(self, connection: Connection, number: int, expired: Sequence[ExpiredTask]) -> None:
        if not expired:
            return
        self._delete_tasks.run(connection, sorted(each.id for each in expired))
        self._delete_runs.run(connection, sorted(each.id for each in expired if each.earlier_runs))
        self._delete_keyed(connection, number, sorted(each.key for each in expired))
        places = Counter(each.place for each in expired if each.counted)
        self._count.run(connection, [(number, *place, -count) for place, count in places.items()])

    def _delete_keyed(self, connection: Connection, number: int, keys: Sequence[bytes]) -> None:
        """Deletes messages and links of these tasks, from tables that have any of this cluster."""
        for table in _KEYED:
            mine = table.c.cluster_id == literal_column(str(number))
            if connection.execute(select(table.c.key).where(mine).limit(1)).first() is not None:
                Deletion(self._store, table.c.key, mine).run(connection, keys)


# A task of which only the loss was recorded is not counted; see Writer.
_COUNTED = or_(
    _task.sent.is_not(None),
    _task.worker_id != 0,
    *(each.is_not(None) for each in (_task.received, _task.started, _task.ended, _task.outcome, _task.retries)),
)
_COLUMNS = [_COUNTED.label(name) if name == "counted" else _task[name] for name in ExpiredTask._fields]


class Scan:
    """One pass over the tasks of a cluster in the order (sort_time, id), until it is restarted.

    Succeeded tasks are read along the index of all tasks, the others along the index of states.
    """

    def __init__(self, *, succeeded: bool) -> None:
        self._succeeded = succeeded
        self._statement = _oldest([true()] if succeeded else _branches_of_others())
        self.restart()

    def restart(self) -> None:
        """Begins again at the oldest task."""
        self._position = _START
        self._empty_before = float("-inf")  # no task is left that is older
        self._began_at = time.monotonic()

    def next(
        self, connection: Connection, cluster: int, before: float, most: int, wanted: int
    ) -> tuple[list[ExpiredTask], bool]:
        """At most ``wanted`` tasks from the next ``most`` that are older than ``before``; whether to continue."""
        if time.monotonic() - self._began_at > RESTART_SECONDS:
            self.restart()
        if not wanted:
            return [], True
        if before < self._empty_before + AGE_SECONDS:
            return [], False
        sort_time, number = self._position
        values = {"time_after": sort_time, "after": number, "before": before, "most": most}
        rows = [ExpiredTask(*row) for row in connection.execute(self._statement, values)]
        found = []
        for row in rows:
            self._position = (row.sort_time, row.id)
            if row.cluster_id == cluster and (row.state == _SUCCESS) is self._succeeded:
                found.append(row)
                if len(found) == wanted:
                    return found, True
        if len(rows) < most and before < _ANY_TIME:
            self._empty_before = before
        return found, len(rows) == most


def _branches_of_others() -> list[ColumnElement[bool]]:
    success = _task.state != literal_column(str(_SUCCESS))  # SQLite uses a partial index only for exactly its condition
    codes = [code for code in STATE_CODES.values() if code != _SUCCESS]
    return [and_(_task.state == literal_column(str(code)), success) for code in codes]


def _oldest(branches: Sequence[ColumnElement[bool]]) -> Select[Any]:
    place, most = tuple_(_task.sort_time, _task.id), bindparam("most", type_=Integer)
    start = tuple_(bindparam("time_after", type_=Double), bindparam("after", type_=BigInteger))
    parts = [
        select(*_COLUMNS)
        .where(branch, place > start, _task.sort_time < bindparam("before", type_=Double))
        .order_by(_task.sort_time, _task.id)
        .limit(most)
        for branch in branches
    ]
    if len(parts) == 1:
        return parts[0]
    rows = union_all(*(select(each.subquery()) for each in parts)).subquery()
    return select(rows).order_by(rows.c.sort_time, rows.c.id).limit(most)


class OldCounters:
    """Deletes old roll-ups, worker starts and samples of queues."""

    def __init__(self) -> None:
        self._due = 0.0
        self.more = False

    def delete(self, connection: Connection, number: int, now: float) -> bool:
        """Deletes some of them where it is time; whether there were any."""
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
    """Deletes rows older than ``before``, at most ``span`` seconds of them; whether there were any."""
    first = connection.execute(select(table.c.at).where(mine).order_by(table.c.at).limit(1)).scalar()
    if first is None or first >= before:
        return False
    connection.execute(delete(table).where(mine, table.c.at < min(before, first + span)))
    return True


def _delete_samples(connection: Connection, number: int, before: float) -> bool:
    """Deletes samples queue by queue, along their index; whether there were any."""
    table = schema.queue_sample
    names = connection.execute(select(schema.queue.c.name).where(schema.queue.c.cluster_id == number)).scalars().all()
    found = False
    for name in names:
        mine = and_(table.c.cluster_id == number, table.c.name == name)
        found |= _delete_oldest(connection, table, mine, before, SPANS * 60)
    return found


class FreeSpace:
    """Free pages of an SQLite file. PostgreSQL has VACUUM."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pace = StepSize(VACUUM_SECONDS, 50, 20_000)
        self.more = False

    def vacuum(self) -> None:
        """Returns pages above the reserve to the file system, for about VACUUM_SECONDS."""
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
                # One step per page, without a row: execute() would stop after the first step.
                cursor.executescript(f"PRAGMA incremental_vacuum({pages})")
                self._pace.record(time.perf_counter() - began)
            self.more = surplus > pages
        finally:
            connection.close()
