"""What it costs to keep: CPU and memory of the whole product with one worker and nobody looking, and its start.

Beside Flower, with the ratio of both in the last line of each round.

    python benchmarks/bench_rest.py [--seconds N] [--settle N] [--rounds N] [--only redis|amqp]

Each in turn watches the same real worker, first while nothing runs, then at 7 tasks a second (21 events). CPU is the
share of one core that all its processes use, by the scheduler's count; memory is the sum of their proportional set
sizes, which counts shared pages once; the start is the time until the first page is there, on a new record. Ours is
idle from about 50 s after its start on, so each is left alone for --settle seconds first.
"""

import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import measuring
from benchmarks.measuring import children, columns, ended, headed, row, running, text_at, until, urls
from tests.servers import free_port
from tests.workers import Worker, running_worker

TASKS_PER_SECOND = 7
SETTLE_SECONDS = 75.0  # after the start: for 15 s it counts as used, and without news for 30 s it is idle
WARM_SECONDS = 5.0  # of work, before it is measured
NANOSECONDS = 1e9
KIBIBYTE, MEGABYTE = 1024, 1_000_000


def processes(pid: int) -> list[int]:
    """A process and all below it."""
    return [pid, *(each for child in children(pid) for each in processes(child))]


def cpu_used(pids: list[int]) -> float:
    """Seconds of CPU of all their threads."""
    threads = (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / NANOSECONDS


def proportional(pids: list[int]) -> float:
    """MB of memory."""
    rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids)
    return (
        sum(int(line.split()[1]) for lines in rollups for line in lines if line.startswith("Pss:"))
        * KIBIBYTE
        / MEGABYTE
    )


def share(pid: int, seconds: float) -> float:
    """Percent of a core, over this time."""
    pids = processes(pid)
    before, began = cpu_used(pids), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_used(pids) - before) / (time.monotonic() - began)


@contextmanager
def sending(worker: Worker) -> Iterator[None]:
    """A task every seventh of a second."""
    over = threading.Event()

    def send() -> None:
        while not over.wait(1 / TASKS_PER_SECOND):
            worker.send("add", 1, 2)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Run(NamedTuple):
    """A running program, and the seconds until its first page was there."""

    process: subprocess.Popen[bytes]
    start: float


@contextmanager
def started(command: list[str], port: int, directory: Path) -> Iterator[Run]:
    began = time.monotonic()
    with running([sys.executable, "-m", *command], directory) as process:
        until(lambda: text_at(f"http://127.0.0.1:{port}/"), "the first page", pause=0.01)
        yield Run(process, time.monotonic() - began)


def ours(url: str, port: int, directory: Path) -> list[str]:
    record = f"sqlite:///{directory}/record.db"
    return ["celery_monitor", "serve", "--broker", url, "--port", str(port), "--database", record]


def flower(url: str, port: int, directory: Path) -> list[str]:
    return ["celery", "-b", url, "flower", "--address=127.0.0.1", f"--port={port}", f"--db={directory}/flower"]


PROGRAMS = {"ours": ours, "Flower": flower}


class Cost(NamedTuple):
    """What a row shows."""

    rest: float
    work: float
    memory: float
    processes: int
    start: float


def measure(name: str, url: str, worker: Worker, given: Namespace) -> Cost:
    port = free_port()
    with TemporaryDirectory() as folder, started(PROGRAMS[name](url, port, Path(folder)), port, Path(folder)) as run:
        pid = run.process.pid
        time.sleep(given.settle)
        at_rest = share(pid, given.seconds)
        with sending(worker):
            time.sleep(WARM_SECONDS)
            at_work = share(pid, given.seconds)
        pids = processes(pid)
        return Cost(at_rest, at_work, proportional(pids), len(pids), run.start)


def show(broker: str, name: str, cost: Cost) -> None:
    rest, work = f"{cost.rest:.2f} %", f"{cost.work:.2f} %"
    row(broker, name, rest, work, f"{cost.memory:.0f} MB", cost.processes, f"{cost.start:.1f} s")


def main() -> None:
    parser = measuring.options(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, help="seconds before the first measurement")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", help="redis or amqp")
    given = parser.parse_args()
    headed("At rest")
    columns("broker", "who", "CPU at rest", f"CPU at {TASKS_PER_SECOND} tasks/s", "memory", "processes", "first page")
    for url in urls(given):
        with running_worker(url, concurrency=1) as worker:
            for _ in range(given.rounds):
                costs = {name: measure(name, url, worker, given) for name in PROGRAMS}
                broker = url.partition(":")[0]
                for name, cost in costs.items():
                    show(broker, name, cost)
                pairs = zip(costs["ours"], costs["Flower"], strict=True)
                row(broker, "ours / Flower", *(f"{mine / theirs:.2f}" for mine, theirs in pairs))
    ended()


if __name__ == "__main__":
    main()
