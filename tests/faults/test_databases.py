"""A record that cannot be written for a while: said everywhere, readable, and nothing lost when it can be again."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.dashboard import Dashboard, serving
from tests.workers import Worker, running_worker, wait_for

UNWRITTEN = "cannot be written"
SMALL_DISK = "12m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk of the test's own")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no disk of the test's own can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def works(dashboard: Dashboard, worker: Worker) -> str:
    task_id = worker.send("add", 2, 3)
    dashboard.wait_for_state(task_id, "SUCCESS")
    return task_id


def says_that_it_is_not_written(dashboard: Dashboard, *why: str, task_id: str) -> None:
    """The pages answer meanwhile, for reading."""
    dashboard.says(UNWRITTEN, *why)
    error = dashboard.health()["error"]
    assert all(word in error for word in why)
    wait_for(lambda: all(word in dashboard.log for word in why), what=f"{why} in the log")
    dashboard.says("basic.add", path="/tasks")
    dashboard.says("basic.add", path=f"/tasks/{task_id}")


def catches_up(dashboard: Dashboard, succeeded: int, failed: int) -> None:
    expected = {"succeeded": succeeded, "failed": failed, "unfinished": 0}
    try:
        wait_for(lambda: dashboard.counts(*expected) == expected, what=f"{expected}")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {dashboard.counts(*expected)}\n{dashboard.log[-3000:]}") from None
    dashboard.no_longer_says(UNWRITTEN)
    health = dashboard.health()
    assert (health["error"], health["dropped_total"], health["malformed_total"]) == (None, 0, 0)
    assert health["gaps"] == []
    assert dashboard.unexpected() == []


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program holds the database."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def test_a_locked_database_is_waited_for(redis_url: str, tmp_path: Path) -> None:
    with serving(redis_url, tmp_path) as dashboard, running_worker(redis_url) as worker:
        first = works(dashboard, worker)
        with locked(dashboard.database):
            _send(worker, 60, 20)
            says_that_it_is_not_written(dashboard, "database is locked", task_id=first)
            wait_for(lambda: dashboard.log.count("events wait") > 2, what="more attempts")
        catches_up(dashboard, 61, 20)


def _send(worker: Worker, good: int, bad: int) -> None:
    for number in range(good):
        worker.send("add", number, 1)
    for number in range(bad):
        worker.send("fail", f"no order {number}")
    wait_for(lambda: worker.log.count(" raised unexpected: ") >= bad, what="the end of all tasks")


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    """``unwritable(True)``: nobody may write the record, not even root or who has it open already."""

    def switch(on: bool) -> None:
        files = [str(each) for each in tmp_path.glob("record.db*") if not each.name.endswith("-shm")]
        done = subprocess.run(["chattr", "+i" if on else "-i", *files], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"only root, on a file system that knows it, can forbid writing: {done.stderr.strip()}")

    yield switch
    switch(False)


@pytest.mark.skipif(shutil.which("chattr") is None, reason="there is no chattr on PATH")
def test_a_file_that_may_not_be_written_is_waited_for(
    redis_url: str, unwritable: Callable[[bool], None], tmp_path: Path
) -> None:
    with serving(redis_url, tmp_path) as dashboard, running_worker(redis_url) as worker:
        first = works(dashboard, worker)
        unwritable(True)
        _send(worker, 60, 20)
        # A connection opened before gets another error than one opened since: how many are open is chance.
        says_that_it_is_not_written(dashboard, "write the file", task_id=first)
        unwritable(False)
        catches_up(dashboard, 61, 20)


def test_processes_that_start_while_the_file_may_not_be_written_wait_too(
    amqp_url: str, unwritable: Callable[[bool], None], tmp_path: Path
) -> None:
    with serving(amqp_url, tmp_path) as dashboard, running_worker(amqp_url) as worker:
        first = works(dashboard, worker)
        unwritable(True)
        for job in ("receiver", "web"):
            dashboard.kill(job)
        _send(worker, 60, 20)
        says_that_it_is_not_written(dashboard, "readonly", task_id=first)
        unwritable(False)
        catches_up(dashboard, 61, 20)


def test_a_full_disk_is_waited_for(broker_url: str, disk: Path, tmp_path: Path) -> None:
    with serving(broker_url, disk, log=tmp_path) as dashboard, running_worker(broker_url) as worker:
        first = works(dashboard, worker)
        filler = disk / "filler"
        _fill(filler)
        _send(worker, 600, 200)
        says_that_it_is_not_written(dashboard, "full", task_id=first)
        filler.unlink()
        catches_up(dashboard, 601, 200)


def _fill(filler: Path) -> None:
    block = bytes(4096)
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(block for _ in iter(int, 1))
