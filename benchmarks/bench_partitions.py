"""What PostgreSQL holds and does: python benchmarks/bench_partitions.py --database postgresql://... [--tasks N].

Bytes of a task with its indexes, CPU of the server's process for each event and each task that is deleted, and pages
that a list and a task read. The database must be empty or one that this has filled. Run it with an older version of the
product beside it to compare.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import sqlalchemy as sa

from benchmarks.record import (
    CLUSTER,
    settle,
    timed_fill,
)
from benchmarks.stream import messages
from celery_monitor.core.filters.parser import parse
from celery_monitor.receiver.decode import decode
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.retention.expiry import Retention
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.keys import from_key
from celery_monitor.store.tasks.page import count_states, find_tasks
from celery_monitor.store.writer import Writer

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def server_pid(store: Store) -> int:
    """Of the one session that the pool hands out while nothing else uses it."""
    with store.read() as connection:
        return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())


def cost(store: Store, work: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds by the clock, of our CPU and of the server's process."""
    pid = server_pid(store)
    began, ours, theirs = time.perf_counter(), time.process_time(), cpu(pid)
    work()
    return time.perf_counter() - began, time.process_time() - ours, cpu(pid) - theirs


def ingest(store: Store, settings: Settings, tasks: int, batch: int) -> int:
    """Puts tasks through the writer, so many messages of ten events at once; the number of events."""
    stream = [decode(body)[0] for _, body in messages(tasks * 3, 10, seed=int(time.time()))]
    writer = Writer(store, CLUSTER, settings)
    for start in range(0, len(stream), batch):
        events = [event for each in stream[start : start + batch] for event in each]
        writer.write([Delivery(events, events[-1].timestamp)])
    return sum(len(each) for each in stream)


def clean(store: Store, settings: Settings, found: dict[str, float]) -> None:
    """Deletes what is too much, and says what the longest step took."""
    retention = Retention(store, CLUSTER, settings)
    while True:
        began = time.perf_counter()
        step = retention.delete_expired(time.time())
        found["longest"] = max(found.get("longest", 0.0), time.perf_counter() - began)
        found["one by one"] = found.get("one by one", 0) + len(step.keys)
        found["dropped"] = found.get("dropped", 0) + getattr(step, "dropped", 0)
        if not step.more:
            return


def size(store: Store) -> dict[str, int]:
    """Bytes of the tasks, their indexes, and all else."""
    kinds = "CASE WHEN t.relname ~ '^task(_kept|_[0-9]+_[0-9]+)?$' THEN 'task' ELSE 'rest' END"
    statement = (
        f"SELECT {kinds} AS kind, sum(pg_table_size(t.oid)) AS heap, sum(pg_indexes_size(t.oid)) AS indexes"
        " FROM pg_class t"
        " WHERE t.relkind = 'r' AND t.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
        " GROUP BY 1"
    )
    with store.read() as connection:
        rows = {row.kind: row for row in connection.exec_driver_sql(statement)}
    return {
        "rows of tasks": int(rows["task"].heap),
        "indexes of tasks": int(rows["task"].indexes),
        "all else": int(rows["rest"].heap + rows["rest"].indexes),
    }


def pages(store: Store, work: Callable[[], object]) -> int:
    """8 kB pages that the statements of this work touched."""
    touched = 0
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, sql: str, values: Any, *_: object) -> None:
        sent.append((sql, values))

    sa.event.listen(store.engine, "before_cursor_execute", note)
    work()
    sa.event.remove(store.engine, "before_cursor_execute", note)
    with store.engine.connect() as connection, connection.begin():
        for sql, values in sent:
            if sql.startswith("SET LOCAL"):
                connection.exec_driver_sql(sql)
            elif sql.lstrip().upper().startswith("SELECT"):
                plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", values).scalar_one()
                touched += plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
    return touched


def some_ids(store: Store, number: int) -> list[str]:
    table = schema.task.c
    with store.read() as connection:
        rows = connection.execute(sa.select(table.key).order_by(table.sort_time).limit(number)).scalars()
        return [from_key(each) for each in rows]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--database", default=os.environ.get("TEST_POSTGRES_URL"))
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--new", type=int, default=30_000, help="tasks that are stored to see what that costs")
    given = options.parse_args()
    if given.database is None:
        print("PostgreSQL: no --database and no TEST_POSTGRES_URL, so nothing is measured")
        return
    with closing(open_store(given.database)) as store:
        if not any(count_states(store).values()):
            print(f"filled with {given.tasks:,} tasks in {timed_fill(store, given.tasks):.0f} s")
        measure(store, given.new)
        print(f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")


def measure(store: Store, new: int) -> None:
    tasks = sum(count_states(store).values())
    for name, number in size(store).items():
        print(f"{name}: {number / 1e6:,.1f} MB, {number / tasks:.0f} bytes per task")
    settings = Settings(keep_tasks=tasks)
    for batch in (50, 500):
        events = 0

        def work(batch: int = batch) -> None:
            nonlocal events
            events = ingest(store, settings, new, batch)

        seconds, ours, theirs = cost(store, work)
        print(
            f"{batch * 10} events at once: {events / seconds:,.0f} events/s,"
            f" µs CPU per event: ours {ours / events * 1e6:.1f}, the server's {theirs / events * 1e6:.1f}"
        )
    ids = some_ids(store, 20)

    def show(text: str) -> Callable[[], object]:
        return lambda: find_tasks(store, parse(text, time.time()))

    def show_tasks() -> None:
        for each in ids:
            read_task(store, each)

    print(f"pages read: list {pages(store, show(''))}, failed tasks {pages(store, show('state:failed'))},", end=" ")
    print(f"a task {pages(store, show_tasks) / len(ids):.0f}")
    found: dict[str, float] = {}
    fewer = Settings(keep_tasks=tasks - tasks // 5)
    seconds, ours, theirs = cost(store, lambda: clean(store, fewer, found))
    gone = found["one by one"] + found["dropped"]
    print(
        f"deleted {found['dropped']:,.0f} with their partitions and {found['one by one']:,.0f} one by one (or moved): "
        f"{gone / seconds:,.0f} tasks/s, µs CPU per task: ours {ours / gone * 1e6:.1f},"
        f" the server's {theirs / gone * 1e6:.1f}; longest step {found['longest']:.2f} s"
    )
    before = sum(size(store).values())
    seconds, _, theirs = cost(store, lambda: settle(store))
    print(f"then VACUUM: {seconds:.1f} s; {before / 1e6:,.0f} MB before, {sum(size(store).values()) / 1e6:,.0f} after")


if __name__ == "__main__":
    main()
