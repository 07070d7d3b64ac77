"""Events per CPU-second: our receiver, Flower, and the bare limit, on the same stream in the same run.

    python benchmarks/bench_ingest.py [--events N] [--rounds N] [--redis URL] [--amqp URL]

The limit decodes the same bytes and puts the same rows into the same tables by executemany, and does nothing else.
CPU time is that of the process and its children, from /proc, without their start.
"""

import argparse
import os
import platform
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.stream import NAMES  # noqa: E402
from benchmarks.stream import WORKERS  # noqa: E402
from benchmarks.stream import AmqpPublisher  # noqa: E402
from benchmarks.stream import Message  # noqa: E402
from benchmarks.stream import RedisPublisher  # noqa: E402
from benchmarks.stream import messages  # noqa: E402
from benchmarks.stream import publisher  # noqa: E402
from monitor.receiver.decode import decode  # noqa: E402
from monitor.receiver.sources.redis import unwrap  # noqa: E402
from monitor.store import queries  # noqa: E402
from monitor.store import schema  # noqa: E402
from monitor.store.engine import Prepared  # noqa: E402
from monitor.store.engine import Store  # noqa: E402
from monitor.store.engine import open_store  # noqa: E402
from monitor.store.rows import TASK_COLUMNS  # noqa: E402

BATCH_EVENTS = 5000
PATIENCE_SECONDS = 300.0
SETTLE_SECONDS = 1.5
NODE = "bench-ingest"
TICKS = os.sysconf("SC_CLK_TCK")
Publisher = RedisPublisher | AmqpPublisher


def cpu_seconds(pid: int) -> float:
    """Of a process and its living children; on Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = [
        each for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(cpu_seconds(int(each)) for each in children)


@contextmanager
def running(command: list[str], directory: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    paths = {"PYTHONPATH": f"{ROOT}:{directory}"}
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | paths | environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def until(done: Callable[[], bool], what: str, pause: float = 0.1) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {PATIENCE_SECONDS:.0f} s")
        time.sleep(pause)


def heartbeat() -> list[Message]:
    body = '{{"type": "worker-heartbeat", "hostname": "{}", "timestamp": {}, "pid": 1, "clock": 1, "freq": 2}}'
    return [("worker.heartbeat", body.format(worker, time.time()).encode()) for worker in WORKERS]


def spent(process: subprocess.Popen[bytes], send: Callable[[], object], finished: Callable[[], bool]) -> float:
    """CPU-seconds from the first event until all have arrived."""
    time.sleep(SETTLE_SECONDS)
    before = cpu_seconds(process.pid)
    send()
    until(finished, "consuming the stream", 0.25)
    return cpu_seconds(process.pid) - before


def ours(url: str, stream: list[Message], directory: Path) -> tuple[float, str]:
    """CPU-seconds of our receiver, everything on, and the database that it made."""
    database = f"sqlite:///{directory}/record.db"
    command = [sys.executable, "-m", "monitor", "receive", "--broker", url, "--database", database, "--node-id", NODE]
    events = _count(stream)
    forget_queue(url)  # it has kept what Flower was sent
    with closing(open_store(database)) as store, publisher(url) as sender, running(command, directory) as process:
        until(lambda: any(each.connected for each in queries.health(store)), "connecting")
        sender.publish(heartbeat())
        until(lambda: _received(store) >= len(WORKERS), "the first event")
        goal = _received(store) + events
        seconds = spent(process, lambda: sender.publish(stream), lambda: _received(store) >= goal)
        dropped = sum(each.dropped_total for each in queries.health(store))
        if dropped or _received(store) > goal + 100:
            raise RuntimeError(f"{dropped} events were dropped; {_received(store)} came for {goal}")
    return seconds, database


def forget_queue(url: str) -> None:
    with publisher(url) as sender:
        if isinstance(sender, AmqpPublisher):
            sender.delete_queue(f"celeryev.{NODE}")


def _received(store: Store) -> int:
    return sum(each.events_total for each in queries.health(store))


def flower(url: str, stream: list[Message], directory: Path) -> float:
    """CPU-seconds of Flower. Its queue is given a longer life, so that RabbitMQ keeps what it has not read yet."""
    (directory / "watched.py").write_text(
        f"from celery import Celery\napp = Celery(broker={url!r})\napp.conf.event_queue_ttl = 3600.0\n"
        "app.conf.event_queue_expires = 3600.0\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    metrics = f"http://127.0.0.1:{port}/metrics"
    options = [f"--port={port}", "--address=127.0.0.1", f"--max_tasks={len(stream) * 10}"]
    command = [sys.executable, "-m", "celery", "-A", "watched", "flower", *options]
    events = _count(stream)
    with publisher(url) as sender, running(command, directory) as process:

        def sees_workers() -> bool:
            sender.publish(heartbeat())
            return "flower_worker_online" in _text(metrics) and WORKERS[0] in _text(metrics)

        until(sees_workers, "Flower's start", 0.5)
        return spent(process, lambda: sender.publish(stream), lambda: _flower_total(_text(metrics)) >= events)


def _text(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def _flower_total(metrics: str) -> int:
    lines = [line for line in metrics.splitlines() if line.startswith("flower_events_total{")]
    return round(sum(float(line.rpartition(" ")[2]) for line in lines))


def limit(url: str, stream: list[Message], directory: Path, database: str) -> float:
    """CPU-seconds for decoding the same bytes and inserting the rows that our receiver made of them."""
    with closing(open_store(database)) as made, made.read() as connection:
        task = schema.task
        rows = [tuple(row) for row in connection.execute(task.select().order_by(task.c.id))]
    with publisher(url) as sender:
        redis = isinstance(sender, RedisPublisher)
        bodies = [sender.envelope(each)[1] if isinstance(sender, RedisPublisher) else each[1] for each in stream]
    per_batch = max(1, len(rows) * BATCH_EVENTS // _count(stream))
    messages_per_batch = max(1, len(bodies) * per_batch // len(rows))
    with closing(open_store(f"sqlite:///{directory}/limit.db")) as store:
        insert = Prepared(store, schema.task.insert(), TASK_COLUMNS)
        before = time.process_time()
        for number, at in enumerate(range(0, len(rows), per_batch)):
            start = number * messages_per_batch
            for body in bodies[start : start + messages_per_batch]:
                decode((unwrap(body) or b"") if redis else body)
            with store.begin() as connection:
                insert.run(connection, rows[at : at + per_batch])
        return time.process_time() - before


def _count(stream: list[Message]) -> int:
    return sum(len(decode(body)[0]) for _, body in stream)


def measure(url: str, per_message: int, events: int, rounds: int, *, beside_flower: bool) -> dict[str, float]:
    """Events per CPU-second, the median of the rounds."""
    found: dict[str, list[float]] = {"ours": [], "Flower": [], "limit": []}
    for each in range(rounds):
        stream = messages(events, per_message, seed=each)
        count = _count(stream)
        with TemporaryDirectory() as folder:
            seconds, database = ours(url, stream, Path(folder))
            found["ours"].append(count / seconds)
            found["limit"].append(count / limit(url, stream, Path(folder), database))
            if beside_flower:
                found["Flower"].append(count / flower(url, stream, Path(folder)))
    forget_queue(url)
    return {name: statistics.median(values) for name, values in found.items() if values}


def machine() -> str:
    names = ("celery", "kombu", "redis", "hiredis", "amqp", "msgspec", "SQLAlchemy", "flower")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    python, sqlite = platform.python_version(), sqlite3.sqlite_version
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {python}, SQLite {sqlite}, {versions}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--events", type=int, default=60_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--redis", default=os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15"))
    options.add_argument("--amqp", default=os.environ.get("TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//"))
    options.add_argument("--only", choices=("redis", "amqp"))
    options.add_argument("--per-message", type=int, nargs="*", default=[10, 1])
    options.add_argument("--without-flower", action="store_true")
    given = options.parse_args()
    print(f"Ingest: {given.events:,} events, {len(NAMES)} names, {len(WORKERS)} workers; median of {given.rounds}")
    print(machine())
    print("\nevents per CPU-second\n")
    print("| broker | events in a message | ours | Flower | limit | ours / Flower | ours / limit |")
    print("|---|---|---|---|---|---|---|")
    for url in [each for each in (given.redis, given.amqp) if not given.only or each.startswith(given.only)]:
        for per_message in given.per_message:
            row: dict[str, Any] = measure(
                url, per_message, given.events, given.rounds, beside_flower=not given.without_flower
            )
            ratio = f"{row['ours'] / row['Flower']:.1f}" if "Flower" in row else ""
            print(
                f"| {url.partition(':')[0]} | {per_message} | {row['ours']:,.0f} | {row.get('Flower', 0):,.0f} |"
                f" {row['limit']:,.0f} | {ratio} | {row['ours'] / row['limit']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
