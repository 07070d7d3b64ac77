"""A large, ugly record, and how long its pages take: python -m benchmarks.ugly [--tasks N] [--database URL].

1,000,000 tasks of a day go through the receiver's own writer: 500 task names, 200 queues, 300 workers, 50,000 failures
in 200 groups, one workflow of 10,000 children, 120 entries of a schedule. The record is filled once and then reused.
Then ``celery-monitor web`` serves it, and each page is asked for over one connection. ``--shots DIR``
takes a picture of each in both themes at three widths.
"""

import argparse
import http.client
import os
import platform
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from heapq import merge
from itertools import islice
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

from msgspec.structs import replace

from benchmarks.measuring import chromium, cpu_seconds
from celery_monitor.records.event import Event
from celery_monitor.records.page import Action
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.actions import record_action
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.queues import save_queues
from celery_monitor.store.receivers import save_health
from celery_monitor.store.rollups.failures import read_failure_groups
from celery_monitor.store.schedule import save_schedule
from celery_monitor.store.tasks.page import count_states
from celery_monitor.store.workers import save_workers
from celery_monitor.store.writer import Writer

CLUSTER = "shop"
NAMES, QUEUES, WORKERS, GROUPS, CHILDREN, ENTRIES, ACTIONS = 500, 200, 300, 200, 10_000, 120, 500
FAILED = 0.052  # of the tasks of the first GROUPS names
DAY = 86400.0
BATCH = 50_000
ERRORS = (
    "TimeoutError",
    "ConnectionResetError",
    "shop.errors.Declined",
    "KeyError",
    "billiard.exceptions.WorkerLostError",
)
PARTS = ("payments", "mail", "warehouse", "reports", "search", "import", "customers", "billing", "exports", "audit")
UGLY = ('<img src=x onerror="alert(1)">', "\u202egpj.exe", "a" * 300, "\U0001f9e8 wärehouse", "100%_'\"\\")
TRACEBACK = (
    'Traceback (most recent call last):\n  File "/srv/shop/{part}.py", line {line}, in step{line}\n    raise it\n'
)
ROOT_ID = str(UUID(int=31 << 64))
SHOWN = (
    ("overview", "/"),
    ("overview, 7 days", "/?range=7d"),
    ("tasks", "/tasks"),
    ("failed tasks", "/tasks?q=state:failed"),
    ("filtered", "/tasks?q=" + quote(f"name:{PARTS[3]}.* runtime:>2s -state:succeeded received:>-6h")),
    ("bare word", "/tasks?q=" + quote("EUR 77")),
    ("failures", "/failures"),
    ("a failure group", "/failures/17"),
    ("queues", "/queues"),
    ("a queue", "/queues/" + quote(f"{PARTS[7]}-7")),
    ("workers", "/workers"),
    ("a worker", "/workers/" + quote("worker7@shop")),
    ("workflows", "/workflows"),
    ("10,000 children", f"/workflows/{ROOT_ID}"),
    ("a task", f"/tasks/{ROOT_ID}"),
    ("schedule", "/schedule"),
    ("actions", "/actions"),
)


def names() -> list[str]:
    ugly = [f"{PARTS[0]}.{text}" for text in UGLY]
    plain = [f"{PARTS[each % len(PARTS)]}.step{each}" for each in range(NAMES - len(ugly))]
    return [*plain, *ugly]


def queue_name(number: int) -> str:
    return UGLY[number - QUEUES + len(UGLY)] if number >= QUEUES - len(UGLY) else f"{PARTS[number % 10]}-{number}"


def worker_name(number: int) -> str:
    return f"worker{number}@shop"


def life(number: int, at: float, dice: random.Random, known: list[str]) -> Iterator[Event]:
    """Sent, received, started and ended: one task."""
    name = min(int(dice.paretovariate(0.6)) - 1, NAMES * 4) % NAMES
    queue = (name * 7 + number % 2) % QUEUES
    worker = worker_name((queue * 3 + dice.randrange(6)) % WORKERS)
    uuid = str(UUID(int=dice.getrandbits(128), version=4))
    body = {"name": known[name], "args": f"({number}, 'EUR')", "kwargs": "{'card': 'visa'}", "retries": 0}
    yield from tell(uuid, at, worker, queue_name(queue), dice, body, number, name)


def tell(
    uuid: str, at: float, worker: str, queue: str, dice: random.Random, body: dict[str, object], number: int, group: int
) -> Iterator[Event]:
    def event(kind: str, late: float, **more: object) -> Event:
        clock = int((at + late - BEGAN) * 1000)
        known = {"hostname": worker, "pid": 77, "clock": clock, "uuid": uuid, **more}
        return Event(type=kind, timestamp=at + late, **known)  # type: ignore[arg-type]

    body = {"root_id": uuid, **body}
    yield event("task-sent", 0.0, hostname="gen9@web", queue=queue, **body)
    wait, runtime = dice.expovariate(1.0), dice.lognormvariate(-1.0, 1.5)
    yield event("task-received", 0.01, **body)
    if number % 997 == 0:
        return
    yield event("task-started", 0.01 + wait)
    if number % 499 == 0:
        return
    ended = 0.01 + wait + runtime
    if group < GROUPS and dice.random() < FAILED:
        part, line = PARTS[group % len(PARTS)], 10 + group
        told = f"{ERRORS[group % len(ERRORS)]}('step {chr(97 + group % 26)}{chr(97 + group // 26)} of order {number}')"
        yield event("task-failed", ended, exception=told, traceback=TRACEBACK.format(part=part, line=line) + told)
    else:
        yield event("task-succeeded", ended, result="'OK'", runtime=runtime)


BEGAN = time.time() - DAY


def workflow(at: float, dice: random.Random, known: list[str]) -> Iterator[Event]:
    """One root, 9,000 children and 1,000 children of one of them."""
    root = {"name": "reports.nightly", "args": "('all shops',)", "kwargs": "{}", "retries": 0, "root_id": ROOT_ID}
    yield from tell(ROOT_ID, at, worker_name(3), queue_name(3), dice, root, 1, GROUPS)
    for number in range(CHILDREN):
        parent = str(UUID(int=(31 << 64) + 5)) if number % 10 == 9 else ROOT_ID
        uuid = str(UUID(int=(31 << 64) + 1 + number))
        body = {"name": known[number % 7], "args": f"({number},)", "kwargs": "{}", "retries": 0}
        body |= {"root_id": ROOT_ID, "parent_id": parent}
        where = number % WORKERS
        yield from tell(
            uuid, at + 1 + number / 100, worker_name(where), queue_name(where % 150), dice, body, number + 1, number % 7
        )


def events(tasks: int) -> Iterator[Event]:
    """All of them in order of time, near enough."""
    dice, known = random.Random(31), names()
    lives = (life(number, BEGAN + number * DAY / tasks, dice, known) for number in range(tasks - CHILDREN - 1))
    extra = workflow(BEGAN + DAY - 900, random.Random(7), known)
    spread = (event for one in lives for event in one)
    return merge(spread, extra, key=lambda event: event.timestamp)


def fill(store: Store, tasks: int) -> None:
    writer = Writer(store, CLUSTER, Settings())
    stream = events(tasks)
    while batch := list(islice(stream, BATCH)):
        writer.write([Delivery(batch, batch[-1].timestamp)])
    for minute in range(0, 1440, 5):
        save_queues(store, CLUSTER, [sampled(each, minute) for each in range(QUEUES)], BEGAN + 60.0 * minute)
    for each in range(ACTIONS):
        verb, target = ("retry", "revoke", "purge")[each % 3], queue_name(each % QUEUES)
        told = Action(at=BEGAN + each * 100, actor=f"person{each % 9}", action=verb, cluster=CLUSTER, target=target)
        record_action(store, told)


def sampled(number: int, minute: int) -> Queue:
    ready = (number * 31 + minute * (number % 7)) % 4000 if number % 5 else 0
    consumers = 0 if number % 41 == 7 else 6
    return Queue(cluster=CLUSTER, name=queue_name(number), ready=ready, unacked=number % 9, consumers=consumers)


def freshen(store: Store) -> None:
    """What is of this minute: the receiver, the workers, the queues, the schedule."""
    now = time.time()
    with store.begin() as connection:
        save_workers(store, connection, 1, [worker(each, now) for each in range(WORKERS)])
    health = ReceiverHealth(cluster=CLUSTER, connected=True, source="redis", last_event_at=now, lag_seconds=0.1)
    save_health(store, replace(health, events_total=4_000_000, updated_at=now + 3600))
    queues = [replace(sampled(each, 1440), oldest=now - each * 17 - 5) for each in range(QUEUES)]
    save_queues(store, CLUSTER, queues, now)
    known = names()
    save_schedule(store, CLUSTER, [entry(each, known) for each in range(ENTRIES)], now)


def worker(number: int, now: float) -> Worker:
    gone = number % 29 == 0
    return Worker(
        cluster=CLUSTER,
        hostname=worker_name(number),
        status=WorkerStatus.OFFLINE if gone else WorkerStatus.SILENT if number % 53 == 0 else WorkerStatus.ONLINE,
        offline_at=now - 900 if gone else None,
        pid=77,
        first_seen=BEGAN,
        last_heartbeat=now - (900 if gone else 1),
        freq=2.0,
        skew=number % 3 / 100,
        active=number % 9,
        processed=number * 1000,
        loadavg=(0.5, 1.5, number / 40),
        sw_ident="py-celery",
        sw_ver="5.7.0" if number % 37 else "5.4.0",
        queues=tuple(queue_name((number // 3 + each) % QUEUES) for each in range(3)),
        pool="prefork",
        pool_size=8,
        prefetch=16,
        events_enabled=True,
    )


def entry(number: int, known: list[str]) -> ScheduleEntry:
    seconds = 60.0 * (number + 1)
    return ScheduleEntry(
        cluster=CLUSTER,
        name=f"{known[-1 - number % 9]} every {number + 1} minutes",
        task=known[number],
        schedule=str(seconds),
        every=seconds,
        args="(1, 'EUR')",
        args_json='[1, "EUR"]',
        kwargs_json="{}",
    )


@contextmanager
def served(database: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery_monitor", "web", "--broker", f"{CLUSTER}=redis://127.0.0.1:1/0"]
    process = subprocess.Popen([*command, "--database", database, "--port", str(port), "--log-level", "error"])
    try:
        for _ in range(300):
            try:
                with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                    connection.request("GET", "/healthcheck")
                    connection.getresponse().read()
                break
            except OSError:
                time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def measure(pid: int, port: int, times: int) -> None:
    print("| page | bytes | first ms | p50 ms | p95 ms | CPU ms |\n|---|---|---|---|---|---|")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        for title, path in SHOWN:
            spent, size, began = [], 0, 0.0
            for number in range(times + 1):
                if number == 1:
                    began = cpu_seconds(pid)
                at = time.perf_counter()
                connection.request("GET", path)
                answer = connection.getresponse()
                size = len(answer.read())
                spent.append((time.perf_counter() - at) * 1000)
                if answer.status != 200:
                    raise RuntimeError(f"{path} answered {answer.status}")
            first, rest = spent[0], sorted(spent[1:])
            cpu = (cpu_seconds(pid) - began) * 1000 / times
            high = rest[int(len(rest) * 0.95)]
            print(f"| {title} | {size:,} | {first:.0f} | {statistics.median(rest):.0f} | {high:.0f} | {cpu:.0f} |")


def shoot(port: int, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme)
            for title, path in SHOWN:
                page.goto(f"http://127.0.0.1:{port}{path}")
                for width in (1400, 768, 360):
                    page.set_viewport_size({"width": width, "height": 900})
                    page.wait_for_timeout(300)
                    page.screenshot(path=directory / f"{title.replace(' ', '-')}-{width}-{scheme}.png")
            page.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--database", default="sqlite:///ugly.db")
    options.add_argument("--times", type=int, default=20)
    options.add_argument("--port", type=int, default=5697)
    options.add_argument("--shots", type=Path)
    given = options.parse_args()
    store = open_store(given.database)
    if not any(count_states(store).values()):
        began = time.perf_counter()
        fill(store, given.tasks)
        print(f"filled in {time.perf_counter() - began:.0f} s")
    freshen(store)
    counts = count_states(store)
    groups = len(read_failure_groups(store, since=BEGAN - DAY, limit=1000))
    print(f"{sum(counts.values()):,} tasks, {counts[TaskState.FAILURE]:,} failures in {groups} groups")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    store.close()
    with served(given.database, given.port) as process:
        measure(process.pid, given.port, given.times)
        if given.shots:
            shoot(given.port, given.shots)


if __name__ == "__main__":
    main()
