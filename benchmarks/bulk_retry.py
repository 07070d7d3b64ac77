"""One bulk job over many failed tasks, the web process killed with -9 three times in the middle.

The tasks themselves keep the ledger: each run enters its id, and afterwards every id stands there exactly once.

python benchmarks/bulk_retry.py redis://127.0.0.1:6379/4 100000 [--ledger redis://127.0.0.1:6379/5] [--together]

The dashboard runs as users run it: receiver and web process beside each other, which share one database. Workers start
when everything is sent, so that the rate is that of sending; with --together they run all the time.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from celery_monitor.control.bulk import BulkRetry
from celery_monitor.records.job import Job, JobOutcome, JobState
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import open_store
from celery_monitor.store.jobs import sent_as
from tests.apps.ledger import LEDGER_VARIABLE
from tests.control.bulk_shop import CLUSTER, Shop, queue_at
from tests.factories import make_id
from tests.faults.dashboard import Dashboard, serving
from tests.workers import running_worker, wait_for

KILLED_AT = (0.2, 0.5, 0.8)  # shares of the tasks that have their outcome
LONGEST_SECONDS = 1800
KEPT_DAYS = "36500"  # the failures are older than a dashboard keeps them
ENTERED = "ledger:succeeded"


def main(broker: str, ledger: str, number: int, *, together: bool) -> bool:
    os.environ[LEDGER_VARIABLE] = ledger
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bulk-retry-")))
        book = redis.Redis.from_url(ledger)
        stack.callback(book.close)
        stack.callback(book.delete, ENTERED)
        book.delete(ENTERED)
        shop = stack.enter_context(failed_tasks(broker, directory, number))
        dashboard = stack.enter_context(
            serving(broker, directory, "--no-enable-events", "--keep-failed-days", KEPT_DAYS)
        )
        if together:
            start_workers(stack, broker, shop.queue)
        job = confirmed(shop)
        idle = run(shop, dashboard, job)
        if not together:
            start_workers(stack, broker, shop.queue)
        return told(shop.job(job), book, idle, number)


def start_workers(stack: ExitStack, broker: str, queue: str) -> None:
    """Two real workers with the cheapest pool and without events: what they cost is not what is measured."""
    given: dict[str, Any] = {"pool": "solo", "events": False, "config": {"worker_prefetch_multiplier": 200}}
    for number in (1, 2):
        stack.enter_context(
            running_worker(broker, app="tests.apps.ledger", queue=queue, hostname=f"ledger{number}@shop", **given)
        )


@contextmanager
def failed_tasks(broker: str, directory: Path, number: int) -> Iterator[Shop]:
    """A record of tasks that failed, and will not fail again."""
    settings = Settings(broker=(Broker(CLUSTER, broker),), database=f"sqlite:///{directory}/record.db")
    store = open_store(settings.database)
    queue = f"bulk-{os.getpid()}"
    with queue_at(broker, queue):
        shop = Shop(store, settings, queue)
        began = time.monotonic()
        shop.fail(1, number, name="basic.entry", args="(False,)")
        print(f"{number} failed tasks written in {time.monotonic() - began:.1f} s", flush=True)
        yield shop
        store.close()


def confirmed(shop: Shop) -> Job:
    """The preview, and the yes to it."""
    began = time.monotonic()
    preview = shop.preview(BulkRetry(query="state:failed"))
    print(f"preview of {preview.total} in {time.monotonic() - began:.2f} s, {preview.preview.fidelity}", flush=True)
    return shop.start(BulkRetry(query="state:failed", job=preview.id))


def run(shop: Shop, dashboard: Dashboard, job: Job) -> float:
    """Kills the web process again and again; gives the seconds in which there was none at work."""
    idle = 0.0
    for share in KILLED_AT:
        wait_for(lambda: shop.job(job).position >= share * job.total, LONGEST_SECONDS, "progress")  # noqa: B023
        before = dashboard.kill("web")
        at, killed = shop.job(job).position, time.monotonic()
        wait_for(lambda: dashboard.pid("web") != before, 60, "another web process")  # noqa: B023
        wait_for(lambda: shop.job(job).position > at, 120, "the next process to go on")  # noqa: B023
        idle += time.monotonic() - killed
        print(f"killed process {before} at {at}; {time.monotonic() - killed:.1f} s later the next went on", flush=True)
    shop.wait(job, JobState.DONE, seconds=LONGEST_SECONDS)
    return idle


def told(job: Job, book: "redis.Redis", idle: float, number: int) -> bool:
    """Waits until the workers have nothing left, and reads what the tasks have entered."""
    began = time.monotonic()
    wait_for(lambda: int(book.hlen(ENTERED)) >= number, LONGEST_SECONDS, "the last run")
    ran = Counter({key.decode(): int(runs) for key, runs in book.hgetall(ENTERED).items()})  # type: ignore[union-attr]
    expected = {sent_as(job, make_id(each)) for each in range(1, number + 1)}
    twice = sum(runs > 1 for runs in ran.values())
    missed, strange = len(expected - set(ran)), len(set(ran) - expected)
    took = (job.ended or 0.0) - (job.started or 0.0)
    print(f"job {job.state}: {job.count(JobOutcome.DONE)} done, {job.left} left, killed {len(KILLED_AT)} times")
    print(f"{took:.1f} s from start to end, {idle:.1f} s of them until the next process went on")
    print(f"{number / (took - idle):.0f} tasks/s while one was at work, {number / took:.0f} over all")
    print(f"the workers ended {time.monotonic() - began:.1f} s later")
    print(f"ledger: {len(ran)} tasks ran, {twice} of them twice, {missed} missed, {strange} unknown")
    return not (twice or missed or strange) and job.count(JobOutcome.DONE) == number


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("broker")
    parser.add_argument("number", type=int)
    parser.add_argument("--ledger", help="a Redis database; else that of the broker")
    parser.add_argument("--together", action="store_true", help="workers run while the job does")
    given = parser.parse_args()
    sys.exit(not main(given.broker, given.ledger or given.broker, given.number, together=given.together))
