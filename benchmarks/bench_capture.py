"""What capture costs a worker: CPU per task, succeeded and failed, beside a plain worker in the same run.

    python benchmarks/bench_capture.py [--tasks N] [--rounds N] [--broker URL]

Each worker is one process (solo pool) with events on. The workers take turns, so that whatever else the machine does
hits all of them; the median round counts.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import redis

from tests.workers import Worker, running_worker

KINDS = {"plain": {}, "capture": {}, "on receive": {"TEST_APP_ON_RECEIVE": "1"}}
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(worker: Worker) -> float:
    fields = Path(f"/proc/{worker.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    os.environ.update(values)
    yield
    for name in values:
        del os.environ[name]


def microseconds_per_task(worker: Worker, client: "redis.Redis", task: str, argument: str, tasks: int) -> float:
    """CPU of the worker for so many tasks that wait for it already."""
    worker.app.control.cancel_consumer(worker.queue, destination=[worker.hostname], reply=True, timeout=5)
    for _ in range(tasks):
        worker.send(task, argument)
    before = cpu_seconds(worker)
    worker.app.control.add_consumer(worker.queue, destination=[worker.hostname], reply=True, timeout=5)
    while client.llen(worker.queue) or client.hlen("unacked"):
        time.sleep(0.02)
    return (cpu_seconds(worker) - before) / tasks * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--broker", default=os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15"))
    given = parser.parse_args()
    assert urlsplit(given.broker).scheme == "redis", "the end of a round is read from Redis"
    client = redis.Redis.from_url(given.broker)
    with ExitStack() as stack:
        workers = {}
        for kind, values in KINDS.items():
            with environment(values):
                app = "tests.apps.basic" if kind == "plain" else "tests.apps.captured"
                workers[kind] = stack.enter_context(running_worker(given.broker, app=app, pool="solo"))
        for title, task, argument in (
            ("succeeded, 1 kB", "echo", "x" * 1000),
            ("failed, 1 kB", "fail", "x" * 1000),
            ("failed, 100 kB", "fail", "x" * 100_000),
        ):
            tasks = given.tasks if "100" not in title else given.tasks // 5
            measured: dict[str, list[float]] = {kind: [] for kind in workers}
            for _ in range(given.rounds):
                for kind, worker in workers.items():
                    measured[kind].append(microseconds_per_task(worker, client, task, argument, tasks))
            medians = {kind: statistics.median(values) for kind, values in measured.items()}
            line = ", ".join(
                f"{kind} {value:.0f} us ({value / medians['plain']:.2f} x)" for kind, value in medians.items()
            )
            print(f"{title}: {line}")


if __name__ == "__main__":
    main()
