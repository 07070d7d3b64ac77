"""Events per CPU-second: our receiver, Flower, and the bare limit, on the same stream in the same run.

    python benchmarks/bench_ingest.py [--events N] [--rounds N] [--redis URL] [--amqp URL]

The limit decodes the same bytes and puts the same rows into the same tables by executemany, and does nothing else.
CPU time is that of the process and its children, from /proc, without their start.
"""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measuring import columns, cpu_seconds, ended, headed, options, row, running, until, urls
from benchmarks.peer import flower
from benchmarks.stream import NAMES, WORKERS, AmqpPublisher, Message, RedisPublisher, heartbeat, messages, publisher
from celery_monitor.receiver.decode import decode
from celery_monitor.receiver.sources.redis import unwrap
from celery_monitor.store import schema
from celery_monitor.store.engine import PreparedStatement, Store, open_store
from celery_monitor.store.receivers import read_receiver_records
from celery_monitor.store.tasks.rows import TASK_COLUMNS

BATCH_EVENTS = 5000
SETTLE_SECONDS = 1.5
NODE = "bench-ingest"


def spent(cpu: Callable[[], float], send: Callable[[], object], finished: Callable[[], bool]) -> float:
    """CPU-seconds from the first event until all have arrived."""
    time.sleep(SETTLE_SECONDS)
    before = cpu()
    send()
    until(finished, "consuming the stream", 0.25)
    return cpu() - before


def ours(url: str, stream: list[Message], directory: Path) -> tuple[float, str]:
    """CPU-seconds of our receiver, everything on, and the database that it made."""
    database = f"sqlite:///{directory}/record.db"
    command = [
        sys.executable,
        "-m",
        "celery_monitor",
        "receive",
        "--broker",
        url,
        "--database",
        database,
        "--node-id",
        NODE,
    ]
    events = _count(stream)
    forget_queue(url)  # it has kept what Flower was sent
    with closing(open_store(database)) as store, publisher(url) as sender, running(command, directory) as process:
        until(lambda: any(each.connected for each in read_receiver_records(store)), "connecting")
        sender.publish(heartbeat())
        until(lambda: _received(store) >= len(WORKERS), "the first event")
        goal = _received(store) + events
        seconds = spent(
            lambda: cpu_seconds(process.pid), lambda: sender.publish(stream), lambda: _received(store) >= goal
        )
        dropped = sum(each.dropped_total for each in read_receiver_records(store))
        if dropped or _received(store) > goal + 100:
            raise RuntimeError(f"{dropped} events were dropped; {_received(store)} came for {goal}")
    return seconds, database


def forget_queue(url: str) -> None:
    with publisher(url) as sender:
        if isinstance(sender, AmqpPublisher):
            sender.delete_queue(f"celeryev.{NODE}")


def _received(store: Store) -> int:
    return sum(each.events_total for each in read_receiver_records(store))


def flowers(url: str, stream: list[Message], directory: Path) -> float:
    """CPU-seconds of Flower."""
    events = _count(stream)
    with publisher(url) as sender, flower(url, sender, directory, most_tasks=events) as seen:
        goal = seen.events + events
        return spent(lambda: seen.cpu_seconds, lambda: sender.publish(stream), lambda: seen.events >= goal)


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
        insert = PreparedStatement(store, schema.task.insert(), TASK_COLUMNS)
        before = time.process_time()
        for number, at in enumerate(range(0, len(rows), per_batch)):
            start = number * messages_per_batch
            for body in bodies[start : start + messages_per_batch]:
                plain = unwrap(body) if redis else body
                assert isinstance(plain, bytes)
                decode(plain)
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
                found["Flower"].append(count / flowers(url, stream, Path(folder)))
    forget_queue(url)
    return {name: statistics.median(values) for name, values in found.items() if values}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("redis", "amqp"))
    parser.add_argument("--per-message", type=int, nargs="*", default=[10, 1])
    parser.add_argument("--without-flower", action="store_true")
    given = parser.parse_args()
    headed(f"Ingest: {given.events:,} events, {len(NAMES)} names, {len(WORKERS)} workers; median of {given.rounds}")
    print("events per CPU-second\n")
    columns("broker", "events in a message", "ours", "Flower", "limit", "ours / Flower", "ours / limit")
    for url in urls(given):
        for per_message in given.per_message:
            found = measure(url, per_message, given.events, given.rounds, beside_flower=not given.without_flower)
            ratio = f"{found['ours'] / found['Flower']:.1f}" if "Flower" in found else "not measured"
            peer = f"{found['Flower']:,.0f}" if "Flower" in found else "not measured"
            of_limit = f"{found['ours'] / found['limit']:.2f}"
            speeds = (f"{found['ours']:,.0f}", peer, f"{found['limit']:,.0f}")
            row(url.partition(":")[0], per_message, *speeds, ratio, of_limit)
    ended()


if __name__ == "__main__":
    main()
