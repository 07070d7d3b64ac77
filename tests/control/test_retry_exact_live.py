"""Exact retry against real workers: the message that runs the second time is the one that ran the first time."""

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord

from celery_monitor.control.retry import RetryTask, RetryTasks
from celery_monitor.core.arguments import judge
from celery_monitor.core.message import facts
from celery_monitor.errors import ConfirmationRequired
from celery_monitor.records.event import Message
from celery_monitor.records.task import Task, TaskState
from celery_monitor.store.tasks.detail import read_lineage, read_message
from tests.apps.order import Order
from tests.control.conftest import Workers
from tests.control.test_retry_live import make_value
from tests.control.watch import CLUSTER, Watch, watching
from tests.workers import Worker, running_worker, wait_for

PICKLE = {"task_serializer": "pickle", "accept_content": ["json", "pickle"], "result_serializer": "pickle"}
MSGPACK = {"accept_content": ["json", "msgpack"]}
CAPTURED = "tests.apps.captured"
RECEIVE = "TEST_APP_ON_RECEIVE"


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a worker that accepts pickle start where the tests run as root, as in a container."""
    monkeypatch.setenv("C_FORCE_ROOT", "1")


@dataclass
class Shop:
    """A watched worker that captures."""

    watch: Watch
    worker: Worker

    def fail(self, name: str, *args: Any, **options: Any) -> Task:
        """The failed task, once the record has its message, and its sending: that event has a connection of its own."""
        task_id = self.worker.send(name, *args, **options)

        def recorded() -> Task | None:
            task = self.watch.wait_for(task_id, TaskState.FAILURE)
            return task if task.sent is not None else None

        task: Task = wait_for(recorded, what="its sending")
        self.message(task)
        return task

    def message(self, task: Task) -> Message:
        found: Message = wait_for(lambda: read_message(self.watch.store, task), what="its message")
        return found

    def retry(self, task: Task, **given: Any) -> str:
        performed = self.watch.perform(RetryTask(cluster=CLUSTER, id=task.id, **given))
        (result,) = performed.results
        assert (result.outcome, result.fidelity) == ("done", given.pop("fidelity", "exact"))
        assert result.new_id
        return result.new_id


@contextmanager
def shop(url: str, directory: Path, config: dict[str, Any] | None = None, **given: Any) -> Iterator[Shop]:
    with watching(url, directory) as watch, running_worker(url, app=CAPTURED, config=config, **given) as worker:
        yield Shop(watch, worker)


@contextmanager
def shared_shop(url: str, directory: Path, workers: Workers) -> Iterator[Shop]:
    """``shop`` with the worker of other tests."""
    with watching(url, directory) as watch:
        yield Shop(watch, workers(url, app=CAPTURED))


def headers_of(message: Message) -> dict[str, Any]:
    headers: dict[str, Any] = json.loads(message.headers)
    return headers


def assert_same(first: Message, second: Message, old_id: str, new_id: str) -> None:
    """All but the id is equal; by the bytes, not by what they mean."""
    assert first.body is not None
    assert second.body is not None
    assert hashlib.sha256(second.body).hexdigest() == hashlib.sha256(first.body).hexdigest()
    before, after = headers_of(first), headers_of(second)
    assert (before["id"], after["id"]) == (old_id, new_id)
    expected = {name: new_id if value == old_id else value for name, value in before.items()}
    assert after == expected
    assert (second.content_type, second.content_encoding) == (first.content_type, first.content_encoding)
    assert (second.exchange, second.routing_key, second.queue) == (first.exchange, first.routing_key, first.queue)
    properties, again = json.loads(first.properties), json.loads(second.properties)
    assert again == {**properties, "correlation_id": new_id}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_runs_again_is_the_same_to_the_byte(
    broker_url: str, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each form of body on its way: the second message is captured on its receipt and compared with the first."""
    monkeypatch.setenv(RECEIVE, "1")
    with shop(broker_url, tmp_path, {**MSGPACK, "accept_content": ["json", "pickle", "msgpack"]}, pool=pool) as it:
        order = Order(31)
        forms: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
            "json": ("fail_once", ("a" * 3000, ["é", None, {"k": 1.5}]), {"kwargs": {"it's": "a\\b", "secret": "x"}}),
            "pickle": ("pay_order", (order,), {"serializer": "pickle"}),
            "gzip": ("fail_once", ("long " * 500,), {"compression": "gzip"}),
            "msgpack": ("fail_once", ("x", 2), {"serializer": "msgpack"}),
            "priority": ("fail_once", (1,), {"priority": 6, "headers": {"tenant": "acme"}, "shadow": "shown"}),
        }
        for form, (name, args, options) in forms.items():
            task = it.fail(name, str(tmp_path / form), *args, **options)
            first = it.message(task)
            assert judge(task, first).fidelity == "exact"
            new_id = it.retry(task)
            again = it.watch.wait_for(new_id, TaskState.SUCCESS)
            second = it.message(again)
            assert_same(first, second, task.id, new_id)
            assert (again.queue, again.retries) == (it.worker.queue, 0)
            if form == "priority":
                assert facts(second).priority == 6
                assert headers_of(second)["tenant"] == "acme"
                assert (facts(second).name, again.name) == ("basic.fail_once", "shown")


def test_the_monitor_needs_nothing_of_what_a_pickled_body_is_made_of(redis_url: str, tmp_path: Path) -> None:
    """A process that has the record and the broker, and cannot import the user's code."""
    program = """
import sys
sys.modules["tests.apps.order"] = None
from pathlib import Path
from celery_monitor.control.commands import Actor, Role
from celery_monitor.control.retry import RetryTask
from celery_monitor.control.perform import Controller
from celery_monitor.settings import (Settings)
from celery_monitor.settings.values import (Broker)
from celery_monitor.store.engine import open_store
database, url, task_id = sys.argv[1:]
settings = Settings(broker=(Broker("shop", url),), database=database)
performed = Controller(open_store(database), settings).perform(
    Actor("olga", Role.OPERATOR), RetryTask(cluster="shop", id=task_id))
assert sys.modules["tests.apps.order"] is None
print(performed.results[0].new_id)
"""
    with shop(redis_url, tmp_path, PICKLE) as it:
        task = it.fail("pay_order", str(tmp_path / "order"), Order(47))
        given = [it.watch.settings.database, redis_url, task.id]
        ran = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True, check=True)
        again = it.watch.wait_for(ran.stdout.strip(), TaskState.SUCCESS)
        assert again.result == "47"


def test_the_rest_of_a_chain_and_the_callbacks_run(broker_url: str, tmp_path: Path, workers: Workers) -> None:
    with shared_shop(broker_url, tmp_path, workers) as it:
        app, queue = it.worker.app, it.worker.queue

        def signature(name: str, *args: Any) -> Any:
            return app.signature(f"basic.{name}", args=args, options={"queue": queue})

        done = {name: tmp_path / name for name in ("chained", "called", "errors")}
        head = signature("fail_once", str(tmp_path / "once"), 7)
        head.link(signature("mark", str(done["called"])))
        head.link_error(app.signature("basic.mark", args=(str(done["errors"]),), immutable=True, queue=queue))
        result = chain(head, signature("mark", str(done["chained"])), app=app).apply_async()
        task = it.watch.wait_for(result.parent.id, TaskState.FAILURE)
        message = it.message(task)
        assert (message.chain, message.callbacks, message.errbacks) == (1, 1, 1)
        wait_for(done["errors"].exists, what="that the errback ran")
        assert not done["chained"].exists()
        new_id = it.retry(task)
        it.watch.wait_for(new_id, TaskState.SUCCESS)
        for name in ("chained", "called"):
            wait_for(done[name].exists, what=f"that {name} ran")


def test_an_edited_message_keeps_its_links_and_headers(redis_url: str, tmp_path: Path, workers: Workers) -> None:
    with shared_shop(redis_url, tmp_path, workers) as it:
        called = tmp_path / "called"
        link = it.worker.app.signature("basic.mark", args=(str(called),), options={"queue": it.worker.queue})
        given = {"link": link, "compression": "gzip", "headers": {"tenant": "acme"}}
        task = it.fail("fail_once", str(tmp_path / "once"), "wrong", **given)
        typed = json.dumps([str(tmp_path / "once"), "right"])
        performed = it.watch.perform(RetryTask(cluster=CLUSTER, id=task.id, args=typed))
        (result,) = performed.results
        assert result.fidelity == "edited"
        again = it.watch.wait_for(str(result.new_id), TaskState.SUCCESS)
        assert again.result == "[['right'], {}]"
        assert "right" in str(again.args)
        wait_for(called.exists, what="that the callback ran")


def test_the_same_id_is_sent_again_once_its_hazard_was_seen(broker_url: str, tmp_path: Path, workers: Workers) -> None:
    with shared_shop(broker_url, tmp_path, workers) as it:
        task = it.fail("fail_once", str(tmp_path / "once"), 5)
        with pytest.raises(ConfirmationRequired, match="overwrites its record"):
            it.retry(task, same_id=True)
        assert it.retry(task, same_id=True, confirm=True) == task.id
        again = it.watch.wait_for(task.id, TaskState.SUCCESS)
        assert [run.outcome for run in again.runs] == ["failed", "succeeded"]
        lineage = read_lineage(it.watch.store, again)
        assert (lineage.retry_of, lineage.retried_as) == (None, ())
        assert it.watch.last_action().parameters["same_id"] is True


def test_another_queue_and_a_countdown_are_taken(redis_url: str, tmp_path: Path, workers: Workers) -> None:
    with shared_shop(redis_url, tmp_path, workers) as it, running_worker(redis_url, app=CAPTURED) as other:
        it.watch.wait_for(other.send("fail"), TaskState.FAILURE)
        task = it.fail("fail_once", str(tmp_path / "once"), 5, expires=30)
        new_id = it.retry(task, queue=other.queue, countdown=1.5)
        assert it.watch.wait_for(new_id, TaskState.SCHEDULED).expires is None
        again = it.watch.wait_for(new_id, TaskState.SUCCESS)
        assert again.worker == other.hostname


def test_a_task_that_celery_retried_begins_anew(redis_url: str, tmp_path: Path, workers: Workers) -> None:
    with shared_shop(redis_url, tmp_path, workers) as it:
        task = it.fail("retry_then_fail", 2)
        assert task.retries == 2
        assert facts(it.message(task)).name == "basic.retry_then_fail"
        assert headers_of(it.message(task))["retries"] == 2
        new_id = it.retry(task)
        again = it.watch.wait_for(new_id, TaskState.FAILURE)
        assert [run.retries for run in again.runs] == [0, 1, 2]
        assert (again.root_id, again.parent_id) == (new_id, None)


def test_rejected_and_revoked_messages_are_kept(broker_url: str, tmp_path: Path, workers: Workers) -> None:
    with shared_shop(broker_url, tmp_path, workers) as it:
        rejected = it.watch.wait_for(it.worker.send("reject"), TaskState.FAILURE, TaskState.REJECTED)
        assert it.message(rejected).why == "failed"
        expired = it.worker.send("echo", 31, countdown=1.2, expires=1)
        task = it.watch.wait_for(expired, TaskState.REVOKED)
        assert it.message(task).why == "revoked"
        assert it.watch.wait_for(it.retry(task), TaskState.SUCCESS).result == "[(31,), {}]"
        overrun = it.watch.wait_for(it.worker.send("overrun", 30), TaskState.FAILURE)
        assert it.message(overrun).why == "failed"


def test_a_task_whose_worker_was_killed_is_sent_again_if_it_was_captured_on_receipt(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RECEIVE, "1")
    with watching(redis_url, tmp_path) as watch:
        with running_worker(redis_url, app=CAPTURED) as worker:
            running = worker.send("sleep", 20)
            task = watch.wait_for(running, TaskState.STARTED)
            worker.kill()
        message = wait_for(lambda: read_message(watch.store, task), what="its message")
        assert (message.why, judge(task, message).args_value) == ("received", [20])


def test_a_body_that_is_too_large_is_said_with_its_size(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_CAPTURE_MAX_BYTES", "2000")
    with shop(redis_url, tmp_path) as it:
        small = it.fail("fail", "a" * 1500)
        large = it.fail("fail", "a" * 2500)
        assert judge(small, it.message(small)).fidelity == "exact"
        judged = judge(large, it.message(large))
        assert judged.fidelity == "unknown"
        assert "too large to keep" in judged.reason
        assert it.message(large).body is None
        assert 2500 < it.message(large).size < 2700


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_capture_that_breaks_harms_no_task(
    redis_url: str, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_APP_BROKEN_CAPTURE", "1")
    monkeypatch.setenv(RECEIVE, "1")
    with shop(redis_url, tmp_path, pool=pool) as it:
        failed = it.watch.wait_for(it.worker.send("fail"), TaskState.FAILURE)
        assert it.watch.wait_for(it.worker.send("add", 3, 4), TaskState.SUCCESS).result == "7"
        assert read_message(it.watch.store, failed) is None
        wait_for(lambda: "could not be captured" in it.worker.log, what="the warning")
        assert it.worker.log.count("could not be captured") == 1


@pytest.mark.parametrize("pool", ["solo", "gevent"])
def test_the_other_pools_capture_as_well(broker_url: str, pool: str, tmp_path: Path) -> None:
    if pool == "gevent":
        pytest.importorskip("gevent")
    with shop(broker_url, tmp_path, pool=pool) as it:
        task = it.fail("fail_once", str(tmp_path / "once"), 5)
        assert it.watch.wait_for(it.retry(task), TaskState.SUCCESS).result == "[[5], {}]"


def test_events_that_were_turned_on_later_capture_too(redis_url: str, tmp_path: Path) -> None:
    with shop(redis_url, tmp_path, events=False) as it:
        it.worker.app.control.enable_events(destination=[it.worker.hostname], reply=True)
        it.fail("fail", f"order {uuid4()}")


def test_several_are_sent_again_without_a_question(redis_url: str, tmp_path: Path, workers: Workers) -> None:
    with shared_shop(redis_url, tmp_path, workers) as it:
        tasks = [it.fail("fail_once", str(tmp_path / str(number)), number) for number in range(3)]
        performed = it.watch.perform(RetryTasks(cluster=CLUSTER, ids=tuple(task.id for task in tasks)))
        assert {(result.outcome, result.fidelity) for result in performed.results} == {("done", "exact")}
        for result in performed.results:
            it.watch.wait_for(str(result.new_id), TaskState.SUCCESS)


def test_capture_loads_nothing_of_the_dashboard() -> None:
    program = "import sys, celery_monitor_capture; print({each.partition('.')[0] for each in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(ran.stdout))
    assert "celery_monitor_capture" in loaded
    assert not loaded & {"celery_monitor", "msgspec", "sqlalchemy", "starlette"}


def test_the_line_of_configuration_is_what_the_application_has() -> None:
    program = "from tests.apps.captured import app; print(app.conf.task_annotations)"
    found = subprocess.check_output(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], text=True, timeout=60
    )
    assert ast.literal_eval(found) == {"*": {"Request": "celery_monitor_capture:Request"}}


def test_a_member_of_a_chord_runs_again_and_its_body_stays_failed(redis_url: str, tmp_path: Path) -> None:
    with shop(redis_url, tmp_path, {"result_backend": redis_url}) as it:
        queue, summed = it.worker.queue, tmp_path / "summed"
        members = [
            it.worker.app.signature("basic.fail_once", args=(str(tmp_path / "once"), 5), queue=queue),
            it.worker.app.signature("basic.add", args=(3, 4), queue=queue),
        ]
        body = it.worker.app.signature("basic.mark", args=(str(summed),), queue=queue)
        result = chord(members, body, app=it.worker.app).apply_async()
        task = it.watch.wait_for(result.parent.results[0].id, TaskState.FAILURE)
        message = it.message(task)
        assert (message.chord, facts(message).group_index) == ("basic.mark", 0)
        assert facts(message).group == result.parent.id
        with pytest.raises(ConfirmationRequired, match=r"chord body basic\.mark stays failed"):
            it.retry(task)
        it.watch.wait_for(it.retry(task, confirm=True), TaskState.SUCCESS)
        assert result.state == "FAILURE"
        assert not summed.exists()
        it.worker.app.backend.result_consumer.stop()
        it.worker.app.backend.client.connection_pool.disconnect()


def test_any_arguments_that_json_carries_run_again_equal(broker_url: str, tmp_path: Path, workers: Workers) -> None:
    """Two hundred generated ones, a part of which events cannot tell."""
    random = Random(47)
    with shared_shop(broker_url, tmp_path, workers) as it:
        sent: dict[str, tuple[list[Any], dict[str, Any]]] = {}
        for number in range(200):
            args = [make_value(random) for _ in range(random.randint(0, 3))]
            kwargs = {random.choice("xyz"): make_value(random) for _ in range(random.randint(0, 2))}
            task_id = it.worker.send("fail_once", str(tmp_path / str(number)), *args, kwargs=kwargs)
            sent[task_id] = ([str(tmp_path / str(number)), *args], kwargs)
        again: dict[str, str] = {}
        for task_id in sent:
            task = it.watch.wait_for(task_id, TaskState.FAILURE)
            it.message(task)
            again[task_id] = it.retry(task)
        for task_id, (args, kwargs) in sent.items():
            it.watch.wait_for(again[task_id], TaskState.SUCCESS)
            wait_for(Path(f"{args[0]}.ran").exists, what="what the second run got")
            assert json.loads(Path(f"{args[0]}.ran").read_text(encoding="utf-8")) == [args[1:], kwargs]
