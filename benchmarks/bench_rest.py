"""What it costs to keep: CPU and memory of the whole product with one worker and nobody looking, beside Flower.

    python benchmarks/bench_rest.py [--seconds N] [--rounds N] [--only redis|amqp]

Each in turn watches the same real worker, first while nothing runs, then at 7 tasks a second (21 events). CPU is the
share of one core that all its processes use, by the scheduler's count; memory is the sum of their proportional set
sizes, which counts shared pages once.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import measuring
from benchmarks.measuring import children, columns, ended, headed, row, running, text_at, until, urls
from tests.servers import free_port
from tests.workers import Worker, running_worker

TASKS_PER_SECOND = 7
SETTLE_SECONDS = 30.0  # after the start; somebody who looked counts for 15 s
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


@contextmanager
def ours(url: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    port = free_port()
    database = f"sqlite:///{directory}/record.db"
    command = [
        sys.executable,
        "-m",
        "celery_monitor",
        "serve",
        "--broker",
        url,
        "--port",
        str(port),
        "--database",
        database,
    ]
    with running(command, directory) as process:
        until(lambda: text_at(f"http://127.0.0.1:{port}/healthcheck"), "the start")
        yield process


@contextmanager
def flower(url: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    port = free_port()
    command = [sys.executable, "-m", "celery", "-b", url, "flower", "--address=127.0.0.1", f"--port={port}"]
    with running(command, directory) as process:
        until(lambda: text_at(f"http://127.0.0.1:{port}/healthcheck"), "the start")
        yield process


def measure(name: str, url: str, worker: Worker, seconds: float) -> None:
    with TemporaryDirectory() as folder, {"ours": ours, "Flower": flower}[name](url, Path(folder)) as process:
        time.sleep(SETTLE_SECONDS)
        at_rest = share(process.pid, seconds)
        with sending(worker):
            time.sleep(SETTLE_SECONDS / 10)
            at_work = share(process.pid, seconds)
        pids = processes(process.pid)
        broker = url.partition(":")[0]
        row(broker, name, f"{at_rest:.2f} %", f"{at_work:.2f} %", f"{proportional(pids):.0f} MB", len(pids))


def main() -> None:
    parser = measuring.options(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", help="redis or amqp")
    given = parser.parse_args()
    headed("At rest")
    columns("broker", "who", "CPU at rest", f"CPU at {TASKS_PER_SECOND} tasks/s", "memory", "processes")
    for url in urls(given):
        with running_worker(url, concurrency=1) as worker:
            for _ in range(given.rounds):
                for name in ("ours", "Flower"):
                    measure(name, url, worker, given.seconds)
    ended()


if __name__ == "__main__":
    main()
