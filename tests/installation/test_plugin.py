"""The worker plug-in in the environment of a project of its own: old pins, and a package called ``monitor``."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from celery_monitor.control.retry import RetryTask
from celery_monitor.records.task import TaskState
from celery_monitor.store.tasks.detail import read_message
from tests.control.watch import CLUSTER, watching
from tests.installation.environments import (
    OLDEST_WORKER,
    find_python,
    install_alone,
    make_environment,
)
from tests.test_cli import ANSWER_SECONDS, await_end, environ
from tests.workers import wait_for

pytestmark = pytest.mark.timeout(300)  # the environment is made here

PYTHONS = ("3.11", "3.10", "3.9")  # for which pycurl has wheels
# For kombu 5.2: pycurl has wheels in newer versions only, and later boto3 speaks JSON to SQS, which it cannot.
FOR_SQS = ("boto3<1.28", "pycurl", "urllib3<2")
APPLICATION = """
import celery_monitor_capture
from celery import Celery

app = Celery("project", broker={url!r}, include=["monitor.tasks"])
app.conf.broker_transport_options = {{"wait_time_seconds": 0}} if {url!r}.startswith("sqs") else {{}}
celery_monitor_capture.install(app)
"""
TASKS = """
import os
from celery import shared_task

@shared_task(name="monitor.charge")
def charge(path, *args):
    if not os.path.exists(path):
        open(path, "x").close()
        raise ConnectionError("the bank is closed")
    with open(path, "w") as file:
        file.write("%s %r" % (__file__, args))
"""


def content_of(environment: Path) -> dict[str, str]:
    """Each file of an environment, but what Python compiles."""
    files = (each for each in environment.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
    return {str(each.relative_to(environment)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


@pytest.fixture(scope="module")
def project_python(capture_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a project with its own pins, into which the plug-in was installed."""
    home = tmp_path_factory.mktemp("project") / "environment"
    python = make_environment(home, find_python(PYTHONS), *OLDEST_WORKER, *FOR_SQS)
    before = content_of(home)
    install_alone(python, capture_wheel)  # which also checks that all it requires is there
    after = content_of(home)
    assert {name: after.get(name) for name in before} == before
    added = {name.partition("site-packages/")[2].partition("/")[0] for name in after.keys() - before.keys()}
    assert added == {"celery_monitor_capture", next(each for each in added if each.endswith(".dist-info"))}
    return python


@contextmanager
def working(python: Path, project: Path, queue: str) -> Iterator[None]:
    log_file = project.with_name("worker.log")
    command = [str(python), "-m", "celery", "-A", "project", "worker", "-E", "-c", "1", "-l", "INFO", "-Q", queue]
    with log_file.open("wb") as log:
        worker = subprocess.Popen(
            [*command, "-n", f"{queue}@project"],
            cwd=project,
            env=environ(PYTHONPATH=""),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(lambda: worker.poll() is not None or b" ready." in log_file.read_bytes(), what="the worker")
        assert worker.poll() is None, log_file.read_text("utf-8", "replace")
        yield
    finally:
        worker.terminate()
        try:
            worker.wait(ANSWER_SECONDS)
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
        await_end(worker.pid)


@pytest.mark.parametrize("broker", ["redis_url", "sqs_url"])
def test_a_task_of_the_projects_own_monitor_package_is_retried_exactly(
    broker: str, request: pytest.FixtureRequest, project_python: Path, tmp_path: Path
) -> None:
    url: str = request.getfixturevalue(broker)
    project, queue, path = tmp_path / "project", f"project-{uuid4().hex[:8]}", str(tmp_path / "charged")
    (project / "monitor").mkdir(parents=True)
    (project / "monitor" / "__init__.py").touch()
    (project / "monitor" / "tasks.py").write_text(TASKS, encoding="utf-8")
    (project / "project.py").write_text(APPLICATION.format(url=url), encoding="utf-8")
    options = {"wait_time_seconds": 0} if broker == "sqs_url" else {}
    with (
        watching(url, tmp_path, broker_options=options) as watch,
        working(project_python, project, queue),
        Celery("sender", broker=url, set_as_current=False) as sender,
    ):
        sender.conf.task_send_sent_event = True
        sent = sender.send_task("monitor.charge", [path, "é" * 3000, 7], queue=queue).id
        failed = watch.wait_for(sent, TaskState.FAILURE)
        message = wait_for(lambda: read_message(watch.store, failed), what="its message")
        assert message.body is not None
        (result,) = watch.perform(RetryTask(cluster=CLUSTER, id=sent)).results
        assert (result.outcome, result.fidelity) == ("done", "exact")
        watch.wait_for(str(result.new_id), TaskState.SUCCESS)
    assert Path(path).read_text("utf-8") == f"{project / 'monitor' / 'tasks.py'} {('é' * 3000, 7)!r}"
