"""Receivers without a dashboard: ``python -m celery_monitor receive`` as processes, to kill and to cut off."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from celery_monitor.receiver.standby import MARGIN_SECONDS
from celery_monitor.records.receiver import ReceiverHealth, StandbyReceiver
from celery_monitor.records.task import TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import read_receiver_records, read_standby_receivers
from celery_monitor.store.tasks.page import count_states
from tests.faults.dashboard import STOP_SECONDS
from tests.test_cli import await_end, environ, members
from tests.workers import wait_for

CLUSTER = "shop"


@dataclass
class Program:
    """A running ``receive`` with the process that it supervises."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def has(self, pid: int | None) -> bool:
        return pid in members(self.process.pid)

    def kill(self) -> None:
        """As when its machine dies: nothing of it is left, and nothing starts it again."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)


@contextmanager
def receiving(broker_url: str, database: str, directory: Path, name: str, *options: str) -> Iterator[Program]:
    """``receive`` on a folder of its own; ended with all its processes."""
    folder = directory / name
    folder.mkdir()
    command = [sys.executable, "-m", "celery_monitor", "receive", "--broker", f"{CLUSTER}={broker_url}"]
    command += ["--database", database, "--node-id", f"test-{directory.name}", *options]
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Program(process, folder / "log")
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await_end(process.pid)


@dataclass
class Record:
    """What the database says of the one cluster."""

    store: Store

    def health(self) -> ReceiverHealth | None:
        return next(iter(read_receiver_records(self.store)), None)

    def leader(self) -> ReceiverHealth | None:
        health = self.health()
        return health if health is not None and health.connected else None

    def wait_for_leader(self, program: Program) -> ReceiverHealth:
        """The health that this program has written."""

        def leads() -> ReceiverHealth | None:
            health = self.leader()
            return health if health is not None and program.has(health.pid) else None

        try:
            led: ReceiverHealth = wait_for(leads, what="the lead")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.health()}\n{program.log[-3000:]}") from None
        return led

    def wait_for_standby(self, program: Program) -> StandbyReceiver:
        """Until it has listened for so long that nothing from before it did can be missing."""

        def stands_by() -> StandbyReceiver | None:
            waiting = [each for each in read_standby_receivers(self.store, 0.0) if each.listening]
            long = [each for each in waiting if time.time() - each.since > MARGIN_SECONDS + 2]
            return next((each for each in long if program.has(each.pid)), None)

        try:
            found: StandbyReceiver = wait_for(stands_by, what="a receiver that stands by")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{program.log[-3000:]}") from None
        return found

    def counts(self) -> dict[TaskState, int]:
        return {state: count for state, count in count_states(self.store).items() if count}

    def wait_for_counts(self, expected: dict[TaskState, int]) -> None:
        try:
            wait_for(lambda: self.counts() == expected, what=f"{expected}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.counts()}, {self.health()}") from None

    def earlier_runs(self) -> int:
        """Runs beyond the first of each task."""
        with self.store.read() as connection:
            return int(connection.execute(select(func.count()).select_from(schema.run)).scalar_one())
