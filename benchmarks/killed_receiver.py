"""Kills the receiver with -9 at random while events come, and compares the record with what was sent.

``python benchmarks/killed_receiver.py --broker amqp://localhost --tasks 200000 --kills 20``
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from benchmarks.stream import EVENTS_OF_A_TASK
from benchmarks.stream import Message
from benchmarks.stream import messages
from benchmarks.stream import publisher
from monitor.records import TaskState
from monitor.store import queries
from monitor.store.engine import Store
from monitor.store.engine import open_store

PER_MESSAGE = 10
DONE_SECONDS = 300


def ledger(sent: list[Message]) -> dict[TaskState, int]:
    """How many of the tasks that are sent end in which way."""
    events = [event for _, body in sent for event in json.loads(body)]
    ends = {"task-succeeded": TaskState.SUCCESS, "task-failed": TaskState.FAILURE}
    found = [ends[event["type"]] for event in events if event["type"] in ends]
    return {state: found.count(state) for state in ends.values()}


def send(url: str, sent: list[Message], rate: float) -> None:
    began = time.monotonic()
    with publisher(url) as out:
        for at in range(0, len(sent), 20):
            out.publish(sent[at : at + 20])
            time.sleep(max(0.0, began + at * PER_MESSAGE / rate - time.monotonic()))


def kill_at_random(log: Path, kills: int, sending: threading.Thread, pause: float) -> int:
    """Each time another process of the receiver, once it is at work; gives how often."""
    killed: set[int] = set()
    while len(killed) < kills and sending.is_alive():
        pids = [int(each) for each in re.findall(r"receiver of shop runs as process (\d+)", log.read_text())]
        if not pids or pids[-1] in killed:
            time.sleep(0.05)
            continue
        time.sleep(random.uniform(0.2, pause))  # also while it connects, reads and writes
        os.kill(pids[-1], signal.SIGKILL)
        killed.add(pids[-1])
    return len(killed)


def stored(store: Store) -> dict[TaskState, int]:
    return {state: count for state, count in queries.state_counts(store).items() if count}


def run(options: argparse.Namespace, folder: Path) -> bool:
    database = options.database or f"sqlite:///{folder}/record.db"
    node = f"bench-{uuid4().hex[:8]}"
    sent = messages(options.tasks * EVENTS_OF_A_TASK, PER_MESSAGE)
    expected = ledger(sent)
    command = [sys.executable, "-m", "monitor", "receive", "--broker", f"shop={options.broker}", "--node-id", node]
    with closing(open_store(database)) as store, (folder / "log").open("wb") as log:
        receiver = subprocess.Popen([*command, "--database", database], cwd=folder, stdout=log, stderr=log)
        try:
            while not any(each.connected for each in queries.health(store)):
                time.sleep(0.1)
            began = time.monotonic()
            sending = threading.Thread(target=send, args=(options.broker, sent, options.rate))
            sending.start()
            kills = kill_at_random(folder / "log", options.kills, sending, options.pause)
            sending.join()
            deadline = time.monotonic() + DONE_SECONDS
            while stored(store) != expected and time.monotonic() < deadline:
                time.sleep(0.5)
            seconds = time.monotonic() - began
            now = time.time()
            series = queries.series(store, since=now - 86400, until=now)
            counted = sum(bucket.succeeded + bucket.failed for bucket in series.buckets)
            gaps = [gap for gap in queries.gaps(store, 0.0) if gap.dropped != 0]
        finally:
            receiver.terminate()
            receiver.wait(30)
    print(f"{kills} kills in {seconds:.0f} s, {options.tasks} tasks, {len(sent) * PER_MESSAGE} events")
    print(f"sent   {expected}\nstored {stored_once(database)}\ncharts count {counted} ends; {len(gaps)} gaps")
    return stored_once(database) == expected and counted == sum(expected.values()) and not gaps


def stored_once(database: str) -> dict[TaskState, int]:
    with closing(open_store(database)) as store:
        return stored(store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default="amqp://guest:guest@127.0.0.1:5672//")
    parser.add_argument("--database", help="an empty one; an SQLite file in a temporary folder when not given")
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=3000.0, help="events per second")
    parser.add_argument("--pause", type=float, default=4.0, help="longest seconds between start and kill")
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if run(parser.parse_args(), Path(folder)) else 1)


if __name__ == "__main__":
    main()
