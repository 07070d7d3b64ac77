"""Kills the receiver with -9 at random while events come, and compares the record with what was sent.

``python benchmarks/killed_receiver.py --broker amqp://localhost --tasks 200000 --kills 20``
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from benchmarks.stream import EVENTS_OF_A_TASK, Message, messages, publisher
from celery_monitor.records.task import TaskState
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.receivers import read_gaps, read_receiver_records
from celery_monitor.store.rollups.series import read_series
from celery_monitor.store.tasks.page import count_states

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


class Receivers:
    """One receiver at a time, in a process group of its own; the next starts as soon as one is killed."""

    def __init__(self, command: list[str], folder: Path, store: Store) -> None:
        self._command = command
        self._folder = folder
        self._store = store
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Until it is connected."""
        began = time.time()
        while not any(
            each.connected and (each.updated_at or 0.0) > began for each in read_receiver_records(self._store)
        ):
            time.sleep(0.05)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def kill_at_random(receivers: Receivers, kills: int, sending: threading.Thread, pause: float) -> int:
    """Gives how often it killed."""
    for number in range(kills):
        receivers.wait()
        time.sleep(random.uniform(0.0, pause))
        if not sending.is_alive():
            return number
        receivers.kill()
        receivers.start()
    return kills


def stored(store: Store) -> dict[TaskState, int]:
    return {state: count for state, count in count_states(store).items() if count}


def run(options: argparse.Namespace, folder: Path) -> bool:
    database = options.database or f"sqlite:///{folder}/record.db"
    node = f"bench-{uuid4().hex[:8]}"
    sent = messages(options.tasks * EVENTS_OF_A_TASK, PER_MESSAGE)
    expected = ledger(sent)
    command = [
        sys.executable,
        "-m",
        "celery_monitor",
        "receive",
        "--broker",
        f"shop={options.broker}",
        "--node-id",
        node,
    ]
    with closing(open_store(database)) as store:
        receivers = Receivers([*command, "--database", database], folder, store)
        try:
            receivers.wait()
            began = time.monotonic()
            sending = threading.Thread(target=send, args=(options.broker, sent, options.rate))
            sending.start()
            kills = kill_at_random(receivers, options.kills, sending, options.pause)
            sending.join()
            deadline = time.monotonic() + DONE_SECONDS
            while stored(store) != expected and time.monotonic() < deadline:
                time.sleep(0.5)
            seconds = time.monotonic() - began
            now = time.time()
            series = read_series(store, since=now - 86400, until=now)
            counted = sum(bucket.succeeded + bucket.failed for bucket in series.buckets)
            gaps = [gap for gap in read_gaps(store, 0.0) if gap.dropped != 0]
        finally:
            receivers.end()
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
