"""A record of many millions of tasks in minutes: some go through the receiver's own writer, then SQL copies their rows.

The copies have keys of their own and lie one after another in time, at 5,000 events a second, the last of them ending
now. Counters of tasks are those of all rows; counters over time are those of the tasks that were written alone.
"""

import time

import sqlalchemy as sa
from msgspec.structs import replace

from benchmarks.stream import messages
from celery_monitor.receiver.decode import decode
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.retention.partitions import CLUSTER_BITS, TaskIds
from celery_monitor.store.writer import Writer

CLUSTER = "default"
WRITTEN = 100_000  # tasks that go through the writer
EVENTS_A_SECOND = 5000
BATCH = 500  # messages
_TIMES = ("sort_time", "received", "started", "ended", "eta", "sent", "expires")


def write(store: Store, tasks: int, later: float, settings: Settings) -> None:
    """Puts this many tasks, received, started and ended, through the writer."""
    stream = messages(tasks * 3, 10)
    writer = Writer(store, CLUSTER, settings)
    for start in range(0, len(stream), BATCH):
        found = [event for _, body in stream[start : start + BATCH] for event in decode(body)[0]]
        events = [replace(event, timestamp=event.timestamp + later) for event in found]
        writer.write([Delivery(events, events[-1].timestamp)])


def fill(store: Store, tasks: int) -> None:
    """Makes a record of this many tasks, a multiple of WRITTEN."""
    copies = tasks // WRITTEN - 1
    span = WRITTEN * 3 / EVENTS_A_SECOND
    write(store, WRITTEN, -copies * span, Settings(keep_tasks=tasks))
    with store.engine.connect() as connection:
        if store.is_sqlite:
            for pragma in ("cache_size = -2000000", "synchronous = OFF", "wal_autocheckpoint = 100000"):
                connection.connection.cursor().execute(f"PRAGMA {pragma}")
        with connection.begin():
            last = connection.execute(sa.select(sa.func.max(schema.task.c.id))).scalar_one()
        numbers = TaskIds(store, tasks)
        for copy in range(1, copies + 1):
            with connection.begin():
                numbers.make_partitions(connection, 1, (copy + 1) * WRITTEN)
                connection.execute(_copy(store, last, copy * WRITTEN << CLUSTER_BITS, copy * span))
        with connection.begin():
            count = schema.task_count.c["count"]
            connection.execute(sa.update(schema.task_count).values({count: count * (copies + 1)}))
        connection.invalidate()  # its pragmas are not for the pool
    settle(store)


def settle(store: Store) -> None:
    """Leaves nothing for later that a database puts off: the file has all pages, the tables are analyzed."""
    connection = store.engine.raw_connection()
    if not store.is_sqlite:
        connection.driver_connection.autocommit = True  # type: ignore[union-attr]
    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)" if store.is_sqlite else "VACUUM (ANALYZE)")
    connection.invalidate()


def _copy(store: Store, last: int, further: int, later: float) -> sa.Insert:
    table = schema.task
    key = (
        sa.func.randomblob(16)
        if store.is_sqlite
        else sa.func.decode(sa.func.md5(sa.cast(sa.func.random(), sa.Text) + sa.cast(table.c.id, sa.Text)), "hex")
    )
    changed = {"id": table.c.id + further, "key": key} | {name: table.c[name] + later for name in _TIMES}
    rows = sa.select(*[changed.get(each.name, each).label(each.name) for each in table.c]).where(table.c.id <= last)
    return table.insert().from_select([each.name for each in table.c], rows)


def timed_fill(store: Store, tasks: int) -> float:
    """The seconds that it took."""
    began = time.perf_counter()
    fill(store, tasks)
    return time.perf_counter() - began
