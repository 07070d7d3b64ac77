"""A publisher announces a message for somebody's failed task, on real brokers with real workers that capture."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celery_monitor.control.arguments import look_up
from celery_monitor.control.bulk import DIFFERS, BulkRetry
from celery_monitor.control.retry import RetryTask, RetryTasks
from celery_monitor.core.arguments import Arguments
from celery_monitor.errors import ConfirmationRequired
from celery_monitor.records.event import Message
from celery_monitor.records.task import Task, TaskState
from celery_monitor.store.tasks.detail import read_message
from tests.control.test_retry_exact_live import CAPTURED, Shop, shop
from tests.control.watch import CLUSTER, Watch, watching
from tests.workers import Worker, running_worker, wait_for

KEY = "k3y of the shop"
PICKLE = "application/x-python-serialize"


def original(task: Task, worker: Worker) -> dict[str, Any]:
    """The event of an honest worker for basic.fail('order 31'), as anybody can build it who reads events."""
    headers = {"id": task.id, "task": task.name, "argsrepr": task.args, "kwargsrepr": task.kwargs, "retries": 0}
    return {
        "hostname": worker.hostname,
        "pid": task.run.pid if task.run else None,
        "headers": headers,
        "body": [["order 31"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
        "why": "failed",
        "as_sent": True,
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "properties": "{}",
        "exchange": "",
        "routing_key": worker.queue,
        "queue": worker.queue,
    }


def announce(by: Worker, task: Task, **changed: Any) -> None:
    """Publishes a capture-message event, as any publisher of the broker can."""
    message = {**original(task, by), **changed}
    hostname, pid, headers = (message.pop(name) for name in ("hostname", "pid", "headers"))
    body = json.dumps(message["body"]).encode()
    message |= {
        "headers": json.dumps(headers),
        "size": len(body),
        "body": base64.b64encode(body).decode(),
    }
    with by.app.connection_for_write() as connection:
        dispatcher = by.app.events.Dispatcher(connection, hostname=hostname, enabled=True)
        dispatcher.pid = pid
        dispatcher.send("capture-message", uuid=task.id, name=task.name, message=message)
        dispatcher.close()


def announced(watch: Watch, task: Task, number: int = 1) -> Message:
    def found() -> Message | None:
        message = read_message(watch.store, task)
        return message if message is not None and len(message.others) + 1 >= number else None

    message: Message = wait_for(found, what=f"{number} messages of {task.id}")
    return message


def known(watch: Watch, task: Task) -> Arguments:
    return look_up(watch.store, watch.settings, task).arguments


def with_header(name: str, value: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: {"headers": {**given["headers"], name: value}}


FORGED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "name": with_header("task", "basic.sleep"),
    "name behind a shadow": lambda given: {
        "headers": {**given["headers"], "task": "basic.sleep", "shadow": given["headers"]["task"]}
    },
    "args text": with_header("argsrepr", "('stolen',)"),
    "kwargs text": with_header("kwargsrepr", "{'to': 'me'}"),
    "id": with_header("id", "another"),
    "retries": with_header("retries", 3),
    "body": lambda given: {"body": [["stolen"], *given["body"][1:]]},
    "worker": lambda _: {"hostname": "evil@x"},
    "process": lambda _: {"pid": 7},
    "queue": lambda _: {"queue": "admin"},
    "routing key": lambda _: {"routing_key": "admin", "queue": "admin"},
    "exchange": lambda _: {"exchange": "celeryev"},
    "content type": lambda _: {"content_type": PICKLE},
}


def test_every_forged_field_alone_is_named_and_nothing_is_sent(broker_url: str, tmp_path: Path) -> None:
    """The worker does not capture, so the forged message is the only one."""
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        for field, forge in FORGED.items():
            task = watch.wait_for(worker.send("fail", "order 31"), TaskState.FAILURE)
            announce(worker, task, **forge(original(task, worker)))
            announced(watch, task)
            found = known(watch, task)
            assert (found.fidelity, found.source) == ("probable", "event"), field
            assert "which differs from its events" in str(found.warning), field
            with pytest.raises(ConfirmationRequired, match="which differs from its events") as refused:
                watch.perform(RetryTask(cluster=CLUSTER, id=task.id))
            assert refused.value.detail["fidelity"] == "probable"
            assert refused.value.detail["queue"] == worker.queue
            with pytest.raises(ConfirmationRequired) as refused:
                watch.perform(RetryTasks(cluster=CLUSTER, ids=(task.id,)))
            assert "which differs from its events" in str(refused.value.detail["warnings"])
        job = watch.preview(BulkRetry(query="name:basic.fail"))
        assert job.preview is not None
        assert job.preview.skipped == {DIFFERS: len(FORGED)}
        # Confirmed, what the events said is sent: to the task's own queue.
        (result,) = watch.perform(RetryTask(cluster=CLUSTER, id=task.id, confirm=True)).results
        again = watch.wait_for(str(result.new_id), TaskState.FAILURE)
        assert (again.name, again.args) == ("basic.fail", "['order 31']")
        assert "no such order" not in str(again.exception)


def test_message_from_elsewhere_does_not_replace_that_of_the_worker(broker_url: str, tmp_path: Path) -> None:
    with shop(broker_url, tmp_path) as it:
        forged: tuple[dict[str, Any], ...] = ({"hostname": "evil@x"}, {"body": [["stolen"], {}, {}]})
        for number, later in enumerate(forged):
            task = it.fail("fail_once", str(tmp_path / str(number)), 31)
            first = it.message(task)
            announce(it.worker, task, **later)
            both = announced(it.watch, task, 2)
            assert (both.body, both.worker) == (first.body, it.worker.hostname)
            found = known(it.watch, task)
            assert (found.fidelity, found.source) == ("exact", "capture")
            assert "which differs from its events" in str(found.warning)
            with pytest.raises(ConfirmationRequired, match="differs from its events"):
                it.retry(task)
            again = it.watch.wait_for(it.retry(task, confirm=True), TaskState.SUCCESS)
            assert again.result == "[[31], {}]"


def test_message_of_the_same_worker_with_other_headers_leaves_neither(broker_url: str, tmp_path: Path) -> None:
    """Everything that events say agrees; callbacks are in no event."""
    with shop(broker_url, tmp_path) as it:
        task = it.fail("fail", "order 31")
        it.message(task)
        announce(it.worker, task)
        announced(it.watch, task, 2)
        found = known(it.watch, task)
        assert found.fidelity == "probable"
        assert "Two different messages were announced for this task" in str(found.warning)


def test_unsigned_message_is_never_exact_with_a_key_and_signed_ones_are(
    broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    with watching(broker_url, tmp_path, capture_key=("older", KEY)) as watch:
        with running_worker(broker_url, app=CAPTURED) as worker:  # without the key
            task = watch.wait_for(worker.send("fail", "order 31"), TaskState.FAILURE)
            announced(watch, task)
            assert known(watch, task).fidelity == "probable"
            assert "is not signed, and capture_key is set" in str(known(watch, task).warning)
        monkeypatch.setenv("CELERY_CAPTURE_KEY_FILE", str(file))
        accepted = {"accept_content": ["json", "msgpack"]}
        with running_worker(broker_url, app=CAPTURED, config=accepted) as worker:
            it = Shop(watch, worker)
            for number, options in enumerate(({}, {"serializer": "msgpack"}, {"compression": "gzip"}, {"shadow": "x"})):
                task = it.fail("fail_once", str(tmp_path / str(number)), number, **options)
                assert (known(watch, task).fidelity, known(watch, task).warning) == ("exact", None)
                assert watch.wait_for(it.retry(task), TaskState.SUCCESS).result == f"[[{number}], {{}}]"
            replayed = watch.wait_for(worker.send("add", "a", 1), TaskState.FAILURE)
            signature = it.message(task).signature
            assert signature is not None
            announced(watch, replayed)
            announce(worker, replayed, signature={"time": signature.time, "mac": signature.mac})
            announced(watch, replayed, 2)
            found = known(watch, replayed)
            assert found.fidelity == "exact"  # the worker's own
            assert "its signature is not valid" in str(found.warning)


def test_event_does_not_set_what_the_monitor_records_of_a_message(redis_url: str, tmp_path: Path) -> None:
    """Who announced it, and that a message was read from the broker."""
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url) as worker:
        task = watch.wait_for(worker.send("fail", "order 31"), TaskState.FAILURE)
        announce(worker, task, why="waiting", body=[["stolen"], {}, {}])
        announce(
            worker, task, hostname="evil@x", worker=worker.hostname, args=task.args, kwargs=task.kwargs, more=False
        )
        message = announced(watch, task)
        assert (message.worker, message.why, message.others) == ("evil@x", "failed", ())
        assert known(watch, task).fidelity == "probable"


def test_queue_of_a_forged_message_is_not_used_where_no_event_names_one(redis_url: str, tmp_path: Path) -> None:
    config = {"task_send_sent_event": False}
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, config=config) as worker:
        task = watch.wait_for(worker.send("fail", "order 31"), TaskState.FAILURE)
        watch.wait_for_worker(worker)
        announce(worker, task, routing_key="admin", queue="admin")
        announced(watch, task)
        with pytest.raises(ConfirmationRequired, match="differs from its events") as refused:
            watch.perform(RetryTask(cluster=CLUSTER, id=task.id))
        assert refused.value.detail["queue"] == worker.queue
