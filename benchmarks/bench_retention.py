"""Whether deletion keeps pace: python benchmarks/bench_retention.py [--tasks N] [--seconds N] [--surplus N].

A record that already has more tasks than it may keep; a receiver of its own process on Redis; a publisher that sends
5,000 events a second. The lag is looked at from outside, many times a second: how old the newest event is that the
database shows. At the end the counters are compared with the rows.
"""

import argparse
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from uuid import UUID

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import msgspec
import sqlalchemy as sa

from benchmarks.measuring import (
    cpu_seconds,
    running,
    until,
)
from benchmarks.record import (
    CLUSTER,
    EVENTS_A_SECOND,
    timed_fill,
)
from benchmarks.stream import (
    NAMES,
    WORKERS,
    RedisPublisher,
)
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.receivers import read_receiver_records
from celery_monitor.store.tasks.page import count_states

TICK = 0.05
LOOK_SECONDS = 0.1
_encode = msgspec.json.encode


def publish(url: str, stop: threading.Event) -> None:
    """5,000 events a second, stamped when they are sent: 5 % of the tasks fail."""
    dice, at, number = Random(time.time()), time.monotonic(), 0
    with closing(RedisPublisher(url)) as sender:
        while not stop.is_set():
            events = []
            for _ in range(int(EVENTS_A_SECOND * TICK) // 3):
                number += 1
                events += task_events(number, dice)
            packed = [("task.multi", _encode(events[start : start + 10])) for start in range(0, len(events), 10)]
            sender.publish(packed)
            at += int(EVENTS_A_SECOND * TICK) // 3 * 3 / EVENTS_A_SECOND
            time.sleep(max(0.0, at - time.monotonic()))


def task_events(number: int, dice: Random) -> list[dict[str, object]]:
    uuid, now = str(UUID(int=dice.getrandbits(128), version=4)), time.time()
    worker = WORKERS[number % len(WORKERS)]
    head = {"hostname": worker, "uuid": uuid, "utcoffset": 0, "pid": 4000, "clock": number}
    body = {"name": dice.choice(NAMES), "args": f"({number}, 'EUR')", "kwargs": "{'card': 'visa', 'amount': 31}"}
    failed = {"type": "task-failed", "exception": "TimeoutError('no answer')", "traceback": "TimeoutError"}
    ended = failed if dice.random() < 0.05 else {"type": "task-succeeded", "result": "'OK'", "runtime": 0.03}
    return [
        {**head, **body, "type": "task-received", "root_id": uuid, "retries": 0, "timestamp": now},
        {**head, "type": "task-started", "timestamp": now},
        {**head, **ended, "timestamp": now},
    ]


class Watch:
    """Looks at the record from outside while a receiver writes it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lags: list[float] = []

    def run(self, stop: threading.Event) -> None:
        newest = sa.select(schema.task.c.sort_time).order_by(schema.task.c.sort_time.desc()).limit(1)
        while not stop.is_set():
            with self._store.read() as connection:
                self.lags.append(time.time() - connection.execute(newest).scalar_one())
            time.sleep(LOOK_SECONDS)


def counted(store: Store) -> int:
    return sum(count_states(store).values())


def size(store: Store) -> int:
    """Bytes of the file, or of the tables with their indexes."""
    if store.is_sqlite:
        file = Path(store.engine.url.database or "")
        return sum(each.stat().st_size for each in (file, Path(f"{file}-wal")) if each.exists())
    with store.read() as connection:
        names = ", ".join(f"'{each}'" for each in schema.metadata.tables)
        of_schema = "relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
        total = f"SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND {of_schema}"
        return int(connection.exec_driver_sql(total if names else "").scalar_one())


def rows(store: Store) -> int:
    with store.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(schema.task)).scalar_one())


def received(store: Store) -> int:
    return sum(each.events_total for each in read_receiver_records(store))


def run(given: argparse.Namespace, store: Store, folder: Path) -> None:
    before, tasks, bytes_before = received(store), counted(store), size(store)
    keep = ["--keep-tasks", str(tasks - given.surplus), "--spool-dir", str(folder)]
    broker = ["--broker", f"{CLUSTER}={given.redis}", "--database", given.database, "--node-id", "bench-retention"]
    command = [sys.executable, "-m", "celery_monitor", "receive", *broker, *keep]
    stop = threading.Event()
    sender = subprocess.Popen([sys.executable, __file__, "--publish", "--redis", given.redis])
    watch = Watch(store)
    try:
        with running(command, folder) as process:
            until(lambda: received(store) > before, "the first event")
            time.sleep(5.0)  # what came while it connected
            watcher = threading.Thread(target=watch.run, args=(stop,))
            watcher.start()
            start, events, there, cpu = time.monotonic(), received(store), counted(store), cpu_seconds(process.pid)
            marks = observe(store, given, start)
            seconds = time.monotonic() - start
            events, cpu = received(store) - events, cpu_seconds(process.pid) - cpu
            stop.set()
            watcher.join()
            left = counted(store)
    finally:
        sender.terminate()
        sender.wait()
    report(store, watch, marks, seconds, events, cpu, (tasks, there, left), (bytes_before, size(store)))


def observe(store: Store, given: argparse.Namespace, start: float) -> list[tuple[float, int, int]]:
    """Every ten seconds: when, how many tasks there are, how large the file is."""
    marks = []
    while (passed := time.monotonic() - start) < given.seconds:
        marks.append((passed, counted(store), size(store)))
        time.sleep(min(10.0, max(0.1, given.seconds - passed)))
    return marks


def report(
    store: Store,
    watch: Watch,
    marks: list[tuple[float, int, int]],
    seconds: float,
    events: int,
    cpu: float,
    tasks: tuple[int, int, int],
    sizes: tuple[int, int],
) -> None:
    lags = sorted(watch.lags)
    deleted = tasks[1] - tasks[2] + events / 3
    print("| tasks before | after | events/s | tasks deleted/s | lag p50 | p99 | largest | MB before | after | CPU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    p99 = lags[int(len(lags) * 0.99)]
    print(
        f"| {tasks[0]:,} | {tasks[2]:,} | {events / seconds:,.0f} | {deleted / seconds:,.0f} |"
        f" {statistics.median(lags):.2f} s | {p99:.2f} s | {lags[-1]:.2f} s |"
        f" {sizes[0] / 1e6:,.0f} | {sizes[1] / 1e6:,.0f} | {cpu / seconds:.0%} |"
    )
    print("\n| after s | tasks | MB |\n|---|---|---|")
    for passed, number, bytes_ in marks:
        print(f"| {passed:.0f} | {number:,} | {bytes_ / 1e6:,.0f} |")
    print(
        f"\nrows {rows(store):,}, counters {counted(store):,}; load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--surplus", type=int, default=200_000, help="tasks that are too many at the beginning")
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--redis", default=os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15"))
    options.add_argument("--database", help="a record to fill, or one that this has filled")
    options.add_argument("--publish", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.publish:
        publish(given.redis, threading.Event())
        return
    with TemporaryDirectory() as folder:
        given.database = given.database or f"sqlite:///{folder}/record.db"
        with closing(open_store(given.database)) as store:
            print(f"Retention at {EVENTS_A_SECOND:,} events/s; Python {platform.python_version()}, ", end="")
            print(f"SQLite {sqlite3.sqlite_version}, {urlsplit(given.redis).scheme}, {store.engine.dialect.name}")
            if not counted(store):
                print(f"filled with {given.tasks:,} tasks in {timed_fill(store, given.tasks):.0f} s", flush=True)
            run(given, store, Path(folder))


if __name__ == "__main__":
    main()
