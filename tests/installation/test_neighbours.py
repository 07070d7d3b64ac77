"""A project whose packages have common names, beside the installed product: neither gets in the other's way."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from tests.test_cli import ANSWER_SECONDS, await_end, environ, fetch, running
from tests.workers import wait_for

pytestmark = pytest.mark.timeout(300)  # the first test makes the environment

PACKAGES = ("monitor", "static", "templates", "tests")
APPLICATION = """
from celery import Celery
app = Celery("project", broker={url!r}, include=[each + ".tasks" for each in {packages}])
app.conf.broker_connection_retry_on_startup = True
"""
TASKS = """
from pathlib import Path
from celery import shared_task

@shared_task(name="{package}.write")
def write(file):
    Path(file).write_text(__file__)
"""
START_SECONDS = 60


@pytest.fixture
def project(redis_url: str, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for package in PACKAGES:
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
        (folder / package / "tasks.py").write_text(TASKS.format(package=package), encoding="utf-8")
    (folder / "project.py").write_text(APPLICATION.format(url=redis_url, packages=PACKAGES), encoding="utf-8")
    return folder


def content(file: Path) -> str:
    return file.read_text("utf-8", "replace") if file.exists() else ""


@contextmanager
def working(command: list[str], project: Path, queue: str) -> Iterator[None]:
    """A worker of the project."""
    log_file = project.with_name("worker.log")
    command += ["-A", "project", "worker", "-c", "1", "-l", "INFO", "-Q", queue, "-n", f"{queue}@project"]
    with log_file.open("wb") as log:
        worker = subprocess.Popen(
            command, cwd=project, env=environ(PYTHONPATH=""), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: worker.poll() is not None or "ready." in content(log_file), START_SECONDS, "the worker")
        assert worker.poll() is None, content(log_file)
        assert "Error" not in content(log_file)
        yield
    finally:
        worker.terminate()
        try:
            worker.wait(ANSWER_SECONDS)
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
        await_end(worker.pid)


@pytest.mark.parametrize("start", ["celery", "python -m celery"])
def test_a_worker_runs_the_tasks_of_its_own_packages(
    start: str, newest: Path, project: Path, redis_url: str, tmp_path: Path
) -> None:
    command = [str(newest.with_name("celery"))] if start == "celery" else [str(newest), "-m", "celery"]
    queue = f"project-{uuid4().hex[:8]}"
    with working(command, project, queue), Celery("sender", broker=redis_url, set_as_current=False) as app:
        for package in PACKAGES:
            app.send_task(f"{package}.write", [str(tmp_path / package)], queue=queue)
        for package in PACKAGES:
            written = wait_for(partial(content, tmp_path / package), ANSWER_SECONDS, package)
            assert Path(written) == project / package / "tasks.py"


def test_the_dashboard_starts_in_the_folder_of_the_project(newest: Path, project: Path) -> None:
    command = ("celery", "-A", "project", "monitor", "--port", "0")
    with running(command, project, newest, PYTHONPATH="") as (_, address):
        assert "<html" in fetch(address)
        wait_for(lambda: json.loads(fetch(f"{address}api/v1/health"))["items"][0]["connected"], ANSWER_SECONDS)
