"""Other people's projects as they write them, with real workers: found under -A, watched, retried, and results read."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from celery_monitor.brokers.application import broker_of, read_application
from celery_monitor.brokers.results import ResultReader
from celery_monitor.settings import Settings
from tests.test_cli import environ, fetch, members, running
from tests.workers import wait_for

PROJECTS = Path(__file__).parent / "projects"
SERVE, CELERY = "serve", "celery"


@dataclass(frozen=True)
class Project:
    """``backend``: how its results are said to be kept, and whether they are read."""

    folder: str
    app: str
    queue: str
    command: str
    backend: str
    is_read: bool = True


# Together they are started by both commands; each has a key prefix and a default queue of its own.
DJANGO = Project("django_shop", "shop", "shop-orders", CELERY, "django-db in sqlite:///")
ALL = (
    DJANGO,
    Project("flask_shop", "make_celery", "flask-orders", SERVE, "db+sqlite:///"),
    Project("flask_shop", "older", "older-orders", CELERY, "redis://"),
    Project("upper", "upper", "upper-orders", SERVE, "redis://"),
    Project("plain", "plain:app", "plain-orders", CELERY, "rpc://", is_read=False),
)


@dataclass
class Shop:
    """A project with a worker that runs."""

    project: Project
    home: Path
    variables: dict[str, str]
    log: Path

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A program of this environment, in the project's folder."""
        env = environ(**self.variables)
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.home, env=env, capture_output=True, text=True, timeout=60, check=False)

    def pay(self, directory: Path, order: str) -> str:
        """Sent from beside us: by Django, whose results need a Django that is set up, else by the celery command."""
        arguments = json.dumps([str(directory), order])
        if (self.home / "manage.py").exists():
            send = f"from shop.tasks import pay; print(pay.delay(*{arguments}).id)"
            done = self.call("manage.py", "shell", "-v0", "-c", send)
        else:
            done = self.call("-m", "celery", "-A", self.project.app, "call", "shop.pay", "--args", arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]


@contextmanager
def open_shop(project: Project, redis_url: str, directory: Path) -> Iterator[Shop]:
    home = directory / project.folder
    shutil.copytree(PROJECTS / project.folder, home)
    shop = Shop(project, home, {"SHOP_BROKER": redis_url, "SHOP_DIRECTORY": str(directory)}, directory / "worker.log")
    if (home / "manage.py").exists():
        assert shop.call("manage.py", "migrate", "-v0").returncode == 0
    command = [sys.executable, "-m", "celery", "-A", project.app, "worker", "-E", "-P", "threads", "-c", "2"]
    with shop.log.open("wb") as log:
        worker = subprocess.Popen(
            [*command, "-n", "till@shop", "-l", "INFO", "--without-gossip", "--without-mingle"],
            cwd=home,
            env=environ(**shop.variables),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: b"till@shop ready." in shop.log.read_bytes() or worker.poll() is not None)
        assert worker.poll() is None, shop.log.read_text()
        yield shop
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(60)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.loads(answer.read()))


def task(address: str, task_id: str, state: str) -> dict[str, Any]:
    """The task once it is in this state."""

    def found() -> dict[str, Any] | None:
        query = quote(f'id:"{task_id}" state:{state}')
        items = json.loads(fetch(f"{address}api/v1/tasks?q={query}"))["items"]
        return items[0] if items else None

    return dict(wait_for(found, what=f"{task_id} {state}"))


def holders(group: int, file: Path) -> list[int]:
    """Processes of a group that have a file open."""
    found = []
    for pid in members(group):
        with suppress(OSError):
            if any(each.resolve() == file for each in Path(f"/proc/{pid}/fd").iterdir()):
                found.append(pid)
    return found


@pytest.mark.parametrize("project", ALL, ids=lambda each: each.app)
def test_project_is_watched_as_it_is_configured(project: Project, redis_url: str, tmp_path: Path) -> None:
    arguments = ("celery_monitor", "serve", "-A", project.app) if project.command == SERVE else ()
    arguments = arguments or ("celery", "-A", project.app, "monitor")
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    with open_shop(project, redis_url, tmp_path) as shop:
        with running((*arguments, "--port", "0"), shop.home, **shop.variables) as (program, address):
            connected = f"{address}api/v1/health"
            wait_for(lambda: json.loads(fetch(connected))["items"][0]["connected"], what="the connection")
            assert (tmp_path / "imported").exists()
            assert holders(program.pid, tmp_path / "imported") == []
            failed_id = shop.pay(ledger, "order 17")
            failed = task(address, failed_id, "failed")
            assert (failed["name"], failed["queue"], failed["worker"]) == ("shop.pay", project.queue, "till@shop")
            assert failed["sent"] is not None  # the application's task-sent events are seen, with its prefix
            wait_for(lambda: json.loads(fetch(f"{address}api/v1/queues"))["items"], what="the queue")
            sent = post(f"{address}api/v1/tasks/{failed_id}/retry", {"confirm": True})
            paid = task(address, sent["id"], "succeeded")
            assert paid["result"] == "{'paid': 'order 17'}"
            backend = json.loads(fetch(connected))["items"][0]["result_backend"]
            assert backend["address"].startswith(project.backend)
            assert backend["readable"] is project.is_read
        if project.is_read:
            results_are_read(shop, failed_id, sent["id"])
        if project is DJANGO:
            doctor_says(shop)


def results_are_read(shop: Shop, failed: str, paid: str) -> None:
    """As the receiver does where it missed an end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shop.home)
        for name, value in shop.variables.items():
            patch.setenv(name, value)
        application = read_application(shop.project.app)
    settings = Settings(application=application)
    ends = ResultReader(broker_of(application), settings).of([failed, paid, "nobody's"])
    assert ends is not None
    assert ends.keys() == {failed, paid}
    assert (ends[paid].event, ends[paid].result) == ("task-succeeded", "{'paid': 'order 17'}")
    assert (ends[failed].event, ends[failed].exception) == (
        "task-failed",
        "ValueError('the card of order 17 was refused')",
    )
    assert "in pay" in (ends[failed].traceback or "")


def doctor_says(shop: Shop) -> None:
    done = shop.call("-m", "celery_monitor", "doctor", "-A", shop.project.app, "--json")
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["workers"]["what"] == "1 answered: till@shop."
    assert found["sent events"]["level"] == "ok"
    assert found["application"]["what"] == f"The configuration of {shop.project.app} is used."
    assert found["result backend"]["level"] == "ok"
    assert shop.project.backend in found["result backend"]["what"]
