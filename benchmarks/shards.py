"""How fast receivers that share the tasks of one broker drain a backlog into one PostgreSQL, beside one alone.

``python benchmarks/shards.py --broker amqp://localhost --database postgresql://localhost/empty --shards 1 2``
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
from kombu import Connection

from benchmarks.stream import EVENTS_OF_A_TASK
from benchmarks.stream import messages
from benchmarks.stream import publisher
from monitor.shards import Shard
from monitor.store import queries
from monitor.store.engine import Store
from monitor.store.engine import open_store

DONE_SECONDS = 300
FIRST_SECONDS = 60


def start(
    options: argparse.Namespace, database: str, node: str, shards: int, folder: Path
) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "monitor", "receive", "--broker", f"shop={options.broker}", "--node-id", node]
    command += ["--database", database]
    started = []
    for number in range(1, shards + 1):
        with (folder / f"log{number}").open("ab") as log:
            share = ["--shard", f"{number}/{shards}"] if shards > 1 else []
            started.append(
                subprocess.Popen([*command, *share], cwd=folder, stdout=log, stderr=log, start_new_session=True)
            )
    return started


def end(receivers: list[subprocess.Popen[bytes]]) -> None:
    for receiver in receivers:
        receiver.send_signal(signal.SIGTERM)
    for receiver in receivers:
        receiver.wait(30)


def wait_connected(store: Store, since: float) -> None:
    deadline = time.monotonic() + FIRST_SECONDS
    while not any(each.connected and (each.updated_at or 0.0) > since for each in queries.health(store)):
        if time.monotonic() > deadline:
            raise TimeoutError("the receivers did not connect")
        time.sleep(0.1)


def drain(options: argparse.Namespace, database: str, shards: int, folder: Path) -> None:
    node = f"bench-{uuid4().hex[:8]}"
    tasks = options.events // EVENTS_OF_A_TASK
    sent = messages(options.events, options.per_message)
    with closing(open_store(database)) as store:
        receivers = start(options, database, node, shards, folder)
        wait_connected(store, time.time() - 30)
        end(receivers)  # their queues stay
        with publisher(options.broker) as out:
            out.publish(sent)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        receivers = start(options, database, node, shards, folder)
        first = 0.0
        while (stored := ended(store)) < tasks:
            if stored and not first:
                first = time.monotonic()
            if time.monotonic() - began > DONE_SECONDS:
                raise TimeoutError(f"{stored} of {tasks} tasks are stored")
            time.sleep(0.2)
        seconds = time.monotonic() - first
        end(receivers)
        delete_queues(options.broker, node, shards)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    print(
        f"{shards} receivers: {options.events} events in messages of {options.per_message} within {seconds:.1f} s"
        f" of the first ({options.events / seconds:,.0f} a second),"
        f" {cpu:.1f} CPU-seconds of the receivers with their start, load {os.getloadavg()[0]:.1f}"
    )


def delete_queues(url: str, node: str, shards: int) -> None:
    names = [f"celeryev.{node}{Shard(number, shards).suffix}" for number in range(1, shards + 1)]
    with Connection(url) as connection:
        for name in names:
            connection.default_channel.queue_delete(name)
            connection.default_channel.queue_delete(f"{name}.witness")


def ended(store: Store) -> int:
    return sum(count for state, count in queries.state_counts(store).items() if state.finished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default="amqp://guest:guest@127.0.0.1:5672//")
    parser.add_argument("--database", required=True, help="of PostgreSQL; each run has a schema of its own")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--per-message", type=int, default=10)
    options = parser.parse_args()
    for shards in options.shards:
        schema = f"bench_{uuid4().hex[:8]}"
        with psycopg.connect(options.database, autocommit=True) as connection, tempfile.TemporaryDirectory() as folder:
            connection.execute(f"CREATE SCHEMA {schema}")
            drain(options, f"{options.database}?options=-csearch_path%3D{schema}", shards, Path(folder))
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


if __name__ == "__main__":
    main()
