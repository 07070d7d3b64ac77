"""The demo, for real: broker, workers, beat, customers and dashboard; and nothing of it stays."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.test_cli import ANSWER_SECONDS, fetch, running
from tests.workers import wait_for


def descendants(pid: int) -> set[int]:
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def await_end(pids: set[int]) -> None:
    wait_for(lambda: not alive(pids), ANSWER_SECONDS, f"the end of {pids}")


def found(address: str, query: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(fetch(f"{address}api/v1/tasks?q={quote(query)}"))["items"]
    return items


def await_found(address: str, query: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = wait_for(lambda: found(address, query), ANSWER_SECONDS, f"a task that is {query}")
    return items


def await_workers(address: str, names: set[str]) -> None:
    def online() -> set[str]:
        workers = json.loads(fetch(f"{address}api/v1/workers"))["items"]
        return {each["hostname"].partition("@")[0] for each in workers}

    wait_for(lambda: online() == names, ANSWER_SECONDS, f"the workers {names}")


@pytest.fixture(params=["own redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    return "redis" if request.param == "own redis" else str(request.getfixturevalue("amqp_url"))


def test_the_demo_shows_work_and_leaves_nothing(broker: str, tmp_path: Path) -> None:
    scratch = tmp_path / ("long, %20#?" * 12)  # no socket could lie in it, and it is no address as it stands
    scratch.mkdir()
    here = tmp_path / "here"
    here.mkdir()
    options = ("celery_monitor", "demo", "--port", "0", "--broker", broker, "--rate", "11", "--failures", "0.3")
    with running(options, here, TMPDIR=str(scratch)) as (program, address):
        assert await_found(address, "state:succeeded")
        refused = await_found(address, "state:failed name:payments.charge")
        assert "CardRefused" in refused[0]["exception"]
        detail = json.loads(fetch(f"{address}api/v1/tasks/{refused[0]['id']}"))
        assert detail["arguments"]["fidelity"] == "exact"  # payments capture: see demo_workers/app.py
        await_workers(address, {"orders", "payments", "warehouse"})
        started = descendants(program.pid)
        assert len(started) > 10
        os.killpg(program.pid, signal.SIGINT)  # what Ctrl-C does
        assert program.wait(ANSWER_SECONDS) == 0
    await_end(started)
    assert not list(here.iterdir())
    assert not list(scratch.iterdir())


def test_killed_the_demo_takes_everything_with_it(tmp_path: Path) -> None:
    options = ("celery_monitor", "demo", "--port", "0", "--dir", "kept")
    with running(options, tmp_path) as (program, address):
        await_found(address, "state:succeeded")
        started = descendants(program.pid)
        program.kill()
        program.wait(ANSWER_SECONDS)
        await_end(started)
    assert {path.name for path in tmp_path.iterdir()} == {"kept"}
    assert (tmp_path / "kept" / "celery-monitor.db").exists()
