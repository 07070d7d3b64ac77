"""Control, retry and purge on SQS, SQL and files, where celery_monitor_capture's queues carry events and commands."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import celery_monitor_capture
import pytest
from starlette.testclient import TestClient

from celery_monitor.brokers.event_queue.post import control_queue
from celery_monitor.brokers.remote import Remote
from celery_monitor.brokers.transports import make_probe
from celery_monitor.control.queues import PurgeQueue
from celery_monitor.control.retry import RetryTask
from celery_monitor.control.revoke import RevokeTask
from celery_monitor.control.workers import GrowPool, RateLimit, ShutDownWorker
from celery_monitor.doctor import examine, lines
from celery_monitor.errors import Conflict
from celery_monitor.records.task import TaskState
from celery_monitor.records.user import Actor, Role
from celery_monitor.store.tasks.detail import read_message, read_task
from celery_monitor.web.app import create_app
from tests.apps import queued
from tests.apps.basic import make_app
from tests.conftest import AWS_VARIABLE
from tests.control.test_retry_exact_live import assert_same
from tests.control.watch import CLUSTER, Watch, make_settings, watching
from tests.workers import Worker, running_worker, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # kombu's, for SQL
ADMIN = Actor("ada", Role.ADMIN)
NO_WAIT = {"wait_time_seconds": 0}  # while a request waits, moto keeps a processor busy


@contextmanager
def shop(
    url: str, directory: Path, *, options: dict[str, Any] | None = None, **given: Any
) -> Iterator[tuple[Watch, Worker]]:
    """A watched worker with the plug-in, and a sender with it."""
    config = {"broker_transport_options": options if options is not None else NO_WAIT, **given.pop("config", {})}
    settings = {
        "broker_options": NO_WAIT if options is None else options,
        "source": "queue" if options is not None else "auto",
    }
    with (
        watching(url, directory, **settings) as watch,
        running_worker(url, app="tests.apps.queued", config=config, **given) as worker,
    ):
        celery_monitor_capture.install(worker.app, event_queue=True)
        watch.wait_for_worker(worker)
        yield watch, worker


@pytest.fixture(params=["sqs", "sqlalchemy", "filesystem"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, Any] | None]:
    monkeypatch.setenv(queued.FORCED_VARIABLE, "celery-monitor-events")
    if request.param == "sqs":
        return request.getfixturevalue("sqs_url"), None
    if request.param == "sqlalchemy":
        return f"sqla+sqlite:///{tmp_path}/broker.db", {}
    folder, control = tmp_path / "messages", tmp_path / "folder-of-exchanges"
    folder.mkdir()
    control.mkdir()
    names = ("data_folder_in", "data_folder_out")
    return "filesystem://", {"control_folder": str(control), **dict.fromkeys(names, str(folder))}


def test_tasks_are_seen_controlled_and_retried(place: tuple[str, dict[str, Any] | None], tmp_path: Path) -> None:
    url, options = place
    with shop(url, tmp_path, options=options) as (watch, worker):
        done = watch.wait_for(worker.send("add", 1, 2), TaskState.SUCCESS)
        sent = wait_for(lambda: read_task(watch.store, done.id, CLUSTER).sent, what="its sending, of another process")
        assert sent <= (done.finished or 0.0)
        failed = watch.wait_for(worker.send("fail_once", f"{tmp_path}/once", 7), TaskState.FAILURE)
        wait_for(lambda: read_message(watch.store, failed), what="its message")
        (result,) = watch.perform(RetryTask(cluster=CLUSTER, id=failed.id)).results
        assert (result.outcome, result.fidelity) == ("done", "exact")
        watch.wait_for(str(result.new_id), TaskState.SUCCESS)
        assert json.loads(Path(f"{tmp_path}/once.ran").read_text("utf-8")) == [[7], {}]
        limited = watch.perform(RateLimit(cluster=CLUSTER, workers=(worker.hostname,), task="basic.add", rate="1/h"))
        assert limited.outcome == "done"
        waiting = worker.send("add", 3, 4, countdown=3600)
        watch.wait_for(waiting, TaskState.SCHEDULED)
        watch.perform(RevokeTask(cluster=CLUSTER, id=waiting))
        running = worker.send("sleep", 600)
        watch.wait_for(running, TaskState.STARTED)
        watch.perform(RevokeTask(cluster=CLUSTER, id=running, terminate=True))
        assert watch.wait_for(running, TaskState.REVOKED)


def test_a_retry_on_sqs_has_the_same_bytes_and_keeps_its_fifo_group(
    sqs_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shop(sqs_url, tmp_path, queue="orders.fifo") as (watch, worker):
        args = ("a" * 3000, ["é", None, {"k": 1.5}])
        first = worker.send(
            "fail_once", f"{tmp_path}/once", *args, MessageGroupId="customer-7", MessageDeduplicationId="order-31"
        )
        failed = watch.wait_for(first, TaskState.FAILURE)
        before = wait_for(lambda: read_message(watch.store, failed), what="its message")
        Path(f"{tmp_path}/once").unlink()  # it fails once more, so that its message is captured again
        (result,) = watch.perform(RetryTask(cluster=CLUSTER, id=failed.id)).results
        again = watch.wait_for(str(result.new_id), TaskState.FAILURE)
        after = wait_for(lambda: read_message(watch.store, again), what="its message")
        given = json.loads(before.properties)
        assert (given["MessageGroupId"], given["MessageDeduplicationId"]) == ("customer-7", "order-31")
        assert json.loads(after.properties)["MessageGroupId"] == "customer-7"
        assert after.body == before.body
        assert json.loads(after.properties).get("MessageDeduplicationId") != "order-31"  # SQS would drop it


def test_each_message_retried_on_sqs_is_the_same_to_the_byte(sqs_url: str, tmp_path: Path) -> None:
    with shop(sqs_url, tmp_path, config={"accept_content": ["json", "msgpack"]}) as (watch, worker):
        for form, options in {
            "json": {},
            "zlib": {"compression": "zlib"},
            "msgpack": {"serializer": "msgpack"},
        }.items():
            path = tmp_path / form
            failed = watch.wait_for(worker.send("fail_once", str(path), "é" * 2000, **options), TaskState.FAILURE)
            before = wait_for(lambda task=failed: read_message(watch.store, task), what="its message")
            path.unlink()
            (result,) = watch.perform(RetryTask(cluster=CLUSTER, id=failed.id)).results
            again = watch.wait_for(str(result.new_id), TaskState.FAILURE)
            after = wait_for(lambda task=again: read_message(watch.store, task), what="its message")
            assert_same(before, after, failed.id, again.id)


def test_depth_in_flight_and_purge(sqs_url: str, tmp_path: Path) -> None:
    with shop(sqs_url, tmp_path, concurrency=1, pool="solo") as (watch, worker):
        probe = make_probe(watch.settings.broker[0], watch.settings)
        queue = "nobody-consumes"
        assert [each.ready for each in probe.sample([queue])] == [None]
        assert queue not in names_of_queues(sqs_url)  # measuring makes none
        sent = [worker.send("add", number, 1, queue=queue) for number in range(23)]
        for task_id in sent:
            watch.wait_for(task_id, TaskState.PENDING)
        probe.close()
        (found,) = probe.sample([queue])
        assert (found.ready, found.unacked, found.oldest) == (23, 0, None)
        probe.close()
        performed = watch.perform(PurgeQueue(cluster=CLUSTER, queue=queue, confirm=queue), ADMIN)
        assert performed.details["purged"] == 23
        for task_id in sent:
            watch.wait_for(task_id, TaskState.REVOKED)


def test_a_worker_deletes_its_control_queue_when_it_is_shut_down(sqs_url: str, tmp_path: Path) -> None:
    with shop(sqs_url, tmp_path) as (watch, worker):
        name = control_queue("celery-monitor-events", worker.hostname)
        assert name in names_of_queues(sqs_url)
        grown = watch.perform(GrowPool(cluster=CLUSTER, workers=(worker.hostname,), number=1))
        assert "From 2 to 3 processes" in grown.results[0].message
        watch.perform(ShutDownWorker(cluster=CLUSTER, workers=(worker.hostname,), confirm=worker.hostname), ADMIN)
        worker.process.wait(60)
        assert name not in names_of_queues(sqs_url)


def test_without_the_plug_in_nobody_answers_and_why_is_said(sqs_url: str, tmp_path: Path) -> None:
    with watching(sqs_url, tmp_path) as watch, running_worker(sqs_url) as worker:
        remote = Remote(watch.settings.broker[0], watch.settings)
        assert remote.ask("ping", {}, [worker.hostname], 0.1) == {}
        assert remote.ask("ping") == {}
        assert control_queue("celery-monitor-events", worker.hostname) not in names_of_queues(sqs_url)


def names_of_queues(url: str) -> list[str]:
    client = boto3.client("sqs", endpoint_url=url.replace("sqs://test:test@", "http://"))
    return [address.rpartition("/")[2] for address in client.list_queues().get("QueueUrls", ())]


@pytest.mark.aws
def test_everything_on_a_real_sqs(tmp_path: Path) -> None:
    """Costs a fraction of a cent. Its queues have names of their own, and are deleted."""
    prefix = {"queue_name_prefix": f"celery-monitor-test-{uuid4().hex[:8]}-"}
    url = os.environ[AWS_VARIABLE]
    try:
        with shop(url, tmp_path, options=prefix) as (watch, worker):
            watch.wait_for(worker.send("add", 1, 2), TaskState.SUCCESS)
            failed = watch.wait_for(worker.send("fail_once", f"{tmp_path}/once", 7), TaskState.FAILURE)
            before = wait_for(lambda: read_message(watch.store, failed), what="its message")
            (result,) = watch.perform(RetryTask(cluster=CLUSTER, id=failed.id)).results
            assert (result.outcome, result.fidelity) == ("done", "exact")
            watch.wait_for(str(result.new_id), TaskState.SUCCESS)
            assert before.body is not None
            limit = RateLimit(cluster=CLUSTER, workers=(worker.hostname,), task="basic.add", rate="1/h")
            assert watch.perform(limit).outcome == "done"
    finally:
        client = boto3.client("sqs")
        for address in client.list_queues(QueueNamePrefix=prefix["queue_name_prefix"]).get("QueueUrls", ()):
            client.delete_queue(QueueUrl=address)


def test_doctor_prints_the_line_to_add_where_no_worker_has_the_plug_in(sqs_url: str, tmp_path: Path) -> None:
    settings = make_settings(sqs_url, tmp_path, broker_options=NO_WAIT)
    with running_worker(sqs_url, config={"broker_transport_options": NO_WAIT}):
        text = "\n".join(lines(examine(settings)))
    assert "plug-in: No worker with celery_monitor_capture answered." in text
    assert "celery_monitor_capture.install(app)" in text
    renamed = "\n".join(lines(examine(make_settings(sqs_url, tmp_path, event_queue="shop-events"))))
    assert 'celery_monitor_capture.install(app, event_queue="shop-events")' in renamed


def test_doctor_finds_workers_with_the_plug_in(sqs_url: str, tmp_path: Path) -> None:
    with shop(sqs_url, tmp_path) as (watch, worker):
        text = "\n".join(lines(examine(watch.settings)))
    assert f"workers: 1 answered: {worker.hostname}." in text
    assert "exact retries: All workers use celery_monitor_capture." in text
    assert "plug-in" not in text


def test_a_revoke_that_nobody_receives_says_why(sqs_url: str, tmp_path: Path) -> None:
    with watching(sqs_url, tmp_path, broker_options=NO_WAIT) as watch:
        app = make_app(sqs_url, broker_transport_options=NO_WAIT)
        celery_monitor_capture.install(app)
        task_id = app.send_task("shop.pay", queue="orders").id  # by a sender with the plug-in; no worker has it
        watch.wait_for(task_id, TaskState.PENDING)
        with pytest.raises(Conflict, match="only workers with celery_monitor_capture receive commands"):
            watch.perform(RevokeTask(cluster=CLUSTER, id=task_id))
        with TestClient(create_app(watch.settings), base_url="http://127.0.0.1") as client:
            page = client.get(f"/tasks/{task_id}").text
            assert "No Revoke button: Over sqs Celery has no remote control" in page
            assert "/revoke" not in page
