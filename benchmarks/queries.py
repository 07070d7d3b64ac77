"""How long the reads of a page take: python -m benchmarks.queries [--tasks N] [--database URL].

The tasks are put in by plain SQL, with the counters that the writer would have kept. Beside each p95 stands the
limit of the same machine: reading fifty rows by their numbers.
"""

import argparse
import os
import platform
import random
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa

from celery_monitor.core.filters.parser import parse
from celery_monitor.records.task import Outcome, TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import PreparedStatement, Store, open_store
from celery_monitor.store.rollups.failures import read_failure_groups
from celery_monitor.store.schema import OUTCOME_CODES, STATE_CODES
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.facets import read_facets
from celery_monitor.store.tasks.page import count_states, find_tasks
from celery_monitor.store.tasks.rows import TASK_COLUMNS

BEGIN = 1_780_000_000.0
NAMES, QUEUES, WORKERS, GROUPS = 500, 200, 300, 200
DONE, FAILED, STARTED, RETRY = (
    STATE_CODES[state] for state in (TaskState.SUCCESS, TaskState.FAILURE, TaskState.STARTED, TaskState.RETRY)
)
RARE_NAME, RARE_QUEUE, OLD_WORKER = NAMES, NAMES + QUEUES, NAMES + QUEUES + WORKERS
CHUNK = 20_000


def rows(count: int, shared: int) -> Iterator[tuple[object, ...]]:
    """Tasks at ten a second: 5 % failed, names by Zipf, a few of a rare queue, a worker seen only long ago.

    Each queue has ``shared`` workers.
    """
    dice = random.Random(31)
    names = dice.choices(range(NAMES), [1 / (1 + each) for each in range(NAMES)], k=count)
    for number in range(count):
        at = BEGIN + number / 10
        name = names[number]
        queue = NAMES + name % (QUEUES - 1)
        worker = NAMES + QUEUES + (queue * 7 + dice.randrange(shared)) % (WORKERS - 1)
        state = FAILED if dice.random() < 0.05 else DONE
        if number >= count - 30:
            state = STARTED if number % 3 else RETRY
        if number < 20:
            worker = OLD_WORKER - 1
        if number % (count // 7) == 5:
            name, queue = RARE_NAME - 1, RARE_QUEUE - 1
        outcome = {FAILED: OUTCOME_CODES[Outcome.FAILED], DONE: OUTCOME_CODES[Outcome.SUCCEEDED]}.get(state)
        bad = state == FAILED
        runtime = dice.expovariate(1)
        yield (
            number << 6 | 1, 1, dice.randbytes(16), state, at, name + 1, queue + 1, worker + 1, outcome, 0, 4711,
            at, at + 0.1, at + 0.1 + runtime if outcome else None, None, runtime if outcome else None, None, at - 0.01,
            None, 0, 0, 0, 0, 1 + number % GROUPS if bad else None, b"", None,
            f"({number}, 'EUR')", "{'card': 'visa', 'amount': 31}", None if bad else "'OK'",
            f"TimeoutError('read {number}')" if bad else None, "Traceback\n  File shop/pay.py" if bad else None,
            None, None,
        )  # fmt: skip


def seed(store: Store, count: int, shared: int) -> None:
    insert = PreparedStatement(store, schema.task.insert(), TASK_COLUMNS)
    counts: Counter[tuple[int, int, int, int]] = Counter()
    with store.begin() as connection:
        connection.execute(schema.cluster.insert().values(id=1, name="shop"))
        kinds = [(1, "shop.task", NAMES), (2, "queue", QUEUES), (3, "worker", WORKERS)]
        terms = [(kind, f"{text}{each}") for kind, text, number in kinds for each in range(number)]
        values = [{"id": at + 1, "kind": kind, "text": text} for at, (kind, text) in enumerate(terms)]
        connection.execute(schema.term.insert(), values)
        batch: list[tuple[object, ...]] = []
        for row in rows(count, shared):
            counts[row[3], row[5], row[6], row[7]] += 1  # type: ignore[index]
            batch.append(row)
            if len(batch) == CHUNK:
                insert.run(connection, batch)
                batch.clear()
        insert.run(connection, batch)
        columns = ("cluster_id", "state", "name_id", "queue_id", "worker_id", "count")
        cube = [dict(zip(columns, (1, *key, number), strict=True)) for key, number in counts.items()]
        connection.execute(schema.task_count.insert(), cube)
        groups = [
            {"id": 1 + each, "cluster_id": 1, "signature": bytes([each]), "exception_type": "TimeoutError",
             "message": "read <n>", "first_seen": BEGIN, "last_seen": BEGIN, "count": 1} for each in range(GROUPS)
        ]  # fmt: skip
        connection.execute(schema.failure_group.insert(), groups)
        spread = [
            {"resolution": step, "at": int(BEGIN + count / 10) // step * step - at * step, "group_id": 1 + group,
             "worker_id": 801, "count": 1} for step in (60, 3600, 86400) for group in range(GROUPS) for at in range(60)
        ]  # fmt: skip
        connection.execute(schema.failure_rollup.insert(), spread)
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))


def timed(call: Callable[[], object], times: int) -> tuple[float, float]:
    call()
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent), sorted(spent)[int(len(spent) * 0.95)]


LISTS = (
    "", "state:failed", "state:unfinished", "state:succeeded", "-state:succeeded", "name:shop.task3",
    "name:shop.task3 state:failed", "name:shop.task4* state:failed", "name:shop.task499", "queue:queue7",
    "queue:queue199", "worker:worker7", "worker:worker7 state:failed", "worker:worker299", "group:17",
    "state:failed received:>-1h", "received:>-1h", "received:>-1h queue:queue7", "runtime:>5s",
    "runtime:>5s state:failed",
    "exception:TimeoutError", "retries:>3", "EUR", "nothing-like-this", "kwargs.card:visa state:failed",
)  # fmt: skip


def measures(store: Store, count: int) -> Iterator[tuple[str, Callable[[], object]]]:
    now = BEGIN + count / 10
    first = find_tasks(store, parse("", now))
    some = first.items[25].id
    fifty = [each.pk for each in first.items]

    def by_number() -> object:
        with store.read() as connection:
            return connection.execute(sa.select(schema.task).where(schema.task.c.id.in_(fifty))).all()

    yield "limit: fifty rows by number", by_number
    yield "task", lambda: read_task(store, some)
    yield "by id", lambda: find_tasks(store, parse(f"id:{some}", now))
    yield "by bare id", lambda: find_tasks(store, parse(some, now))
    for text in LISTS:
        wanted = parse(text, now)
        yield f"list {text}", lambda wanted=wanted: find_tasks(store, wanted)  # type: ignore[misc]
    for text in ("", "state:failed", "runtime:>5s"):
        wanted = parse(text, now)
        cursor = find_tasks(store, wanted).next
        yield f"next {text}", lambda wanted=wanted, cursor=cursor: find_tasks(store, wanted, cursor=cursor)  # type: ignore[misc]
    for text in ("", "state:failed", "name:shop.task3 state:failed", "runtime:>5s"):
        wanted = parse(text, now)
        yield f"facets {text}", lambda wanted=wanted: read_facets(store, wanted)  # type: ignore[misc]
    for sort in ("-runtime", "name"):
        yield f"sort {sort}", lambda sort=sort: find_tasks(store, parse("", now), sort=sort)  # type: ignore[misc]
    yield "failure groups 24 h", lambda: read_failure_groups(store, since=now - 86400)
    yield "state counts", lambda: count_states(store)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--database", default="sqlite:///queries-bench.db")
    options.add_argument("--workers-per-queue", type=int, default=6)
    options.add_argument("--times", type=int, default=20)
    given = options.parse_args()
    store = open_store(given.database)
    with store.read() as connection:
        empty = connection.execute(sa.select(schema.task.c.id).limit(1)).first() is None
    if empty:
        began = time.perf_counter()
        seed(store, given.tasks, given.workers_per_queue)
        print(f"seeded {given.tasks:,} tasks in {time.perf_counter() - began:.0f} s")
    file = store.engine.url.database or ""
    if store.is_sqlite:
        print(f"{Path(file).stat().st_size / given.tasks:.0f} bytes per task, SQLite {sqlite3.sqlite_version}")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {given.times} times each; ms")
    print(f"{'':48} {'median':>8} {'p95':>8}")
    for name, call in measures(store, given.tasks):
        median, high = timed(call, given.times)
        print(f"{name:48} {median:8.1f} {high:8.1f}")


if __name__ == "__main__":
    main()
