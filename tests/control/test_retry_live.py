"""Retry against real workers on both brokers."""

import json
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from celery_monitor.control.retry import RetryTask, RetryTasks
from celery_monitor.core.arguments import judge
from celery_monitor.errors import (
    ArgumentsUnknown,
    BrokerUnavailable,
    ConfirmationRequired,
    Conflict,
    InvalidInput,
    NotFound,
    NotTaken,
)
from celery_monitor.records.task import TaskState
from celery_monitor.settings.values import Broker
from celery_monitor.store.tasks.detail import read_lineage, read_task
from tests.apps.order import Order
from tests.control.conftest import Workers
from tests.control.watch import CLUSTER, Watch, make_settings, watching
from tests.workers import running_worker, wait_for

PICKLE = {"task_serializer": "pickle", "accept_content": ["json", "pickle"], "result_serializer": "pickle"}


@pytest.fixture
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a worker that accepts pickle start where the tests run as root, as in a container."""
    monkeypatch.setenv("C_FORCE_ROOT", "1")


def retry(task_id: str, **given: Any) -> RetryTask:
    return RetryTask(cluster=CLUSTER, id=task_id, **given)


def test_a_task_is_sent_again_with_equal_arguments_after_they_were_seen(
    broker_url: str, tmp_path: Path, workers: Workers
) -> None:
    with watching(broker_url, tmp_path) as watch:
        worker = workers(broker_url)
        old = worker.send("echo", 1, "x", None, kwargs={"k": [1, 2]})
        task = watch.wait_for(old, TaskState.SUCCESS)
        with pytest.raises(ConfirmationRequired) as asked:
            watch.perform(retry(old))
        assert (asked.value.detail["args"], asked.value.detail["kwargs"]) == ('[1, "x", null]', '{"k": [1, 2]}')
        assert asked.value.detail["fidelity"] == "probable"
        assert "repeats its work" in str(asked.value.detail["warning"])
        assert watch.action_count() == 0

        performed = watch.perform(retry(old, confirm=True, reason="card was charged back"))
        assert performed.outcome == "done"
        (result,) = performed.results
        assert result.new_id
        watch.wait_for(result.new_id, TaskState.SUCCESS)
        again = wait_for(lambda: (task := read_task(watch.store, result.new_id, CLUSTER)).queue and task)  # as sent
        assert (again.name, again.queue, again.args, again.kwargs) == (
            task.name,
            worker.queue,
            "[1, 'x', None]",
            task.kwargs,
        )
        assert again.result == task.result == "[(1, 'x', None), {'k': [1, 2]}]"
        assert again.retries == 0
        assert again.root_id == result.new_id

        lineage = read_lineage(watch.store, read_task(watch.store, old, CLUSTER))
        assert [(link.id, link.state, link.fidelity) for link in lineage.retried_as] == [
            (result.new_id, TaskState.SUCCESS, "probable")
        ]
        action = watch.last_action()
        assert (action.actor, action.action, action.target, action.outcome) == ("olga", "task.retry", old, "done")
        assert action.reason == "card was charged back"
        assert action.parameters["new_id"] == result.new_id


@pytest.mark.usefixtures("_as_root")
def test_arguments_that_the_events_do_not_show_whole_are_refused(
    broker_url: str, tmp_path: Path, workers: Workers
) -> None:
    with watching(broker_url, tmp_path) as watch:
        worker = workers(broker_url, config=PICKLE)
        cases: list[tuple[Any, ...]] = [("a" * 3000,), (list(range(2000)),), ("a" * 3000, 2), (Order(31),)]
        ids = [worker.send("echo", *args) for args in cases]
        ids.append(worker.send("echo", kwargs={"password": "s3cret"}))
        for task_id in ids:
            watch.wait_for(task_id, TaskState.SUCCESS, TaskState.FAILURE)
        before = watch.task_count()
        reasons = ["shortened", "shortened", "shortened", "other than plain values", "masked"]
        for number, (task_id, reason) in enumerate(zip(ids, reasons, strict=True), 1):
            with pytest.raises(ArgumentsUnknown, match=reason):
                watch.perform(retry(task_id, confirm=True))
            assert watch.last_action().outcome == "failed"
            assert watch.action_count() == number
        performed = watch.perform(RetryTasks(cluster=CLUSTER, ids=tuple(ids), confirm=True))
        assert performed.outcome == "failed"
        assert {result.outcome for result in performed.results} == {"skipped"}

        typed = watch.perform(retry(ids[0], args='["b"]', kwargs='{"n": 1}', confirm=True))
        new_id = typed.results[0].new_id
        assert new_id
        assert watch.wait_for(new_id, TaskState.SUCCESS).result == "[('b',), {'n': 1}]"
        assert typed.results[0].fidelity == "edited"
        assert watch.task_count() == before + 1


def test_several_are_sent_and_the_rest_is_skipped_with_its_reason(
    broker_url: str, tmp_path: Path, workers: Workers
) -> None:
    with watching(broker_url, tmp_path) as watch:
        worker = workers(broker_url)
        good = [worker.send("fail", f"order {number}") for number in range(3)]
        long = worker.send("fail", "a" * 3000)
        for task_id in (*good, long):
            watch.wait_for(task_id, TaskState.FAILURE)
        ids = (*good, long, "no such task", good[0])
        with pytest.raises(ConfirmationRequired) as asked:
            watch.perform(RetryTasks(cluster=CLUSTER, ids=ids))
        assert (asked.value.detail["sendable"], asked.value.detail["skipped"]) == (3, 2)
        assert asked.value.detail["fidelity"] == {"probable": 3}

        performed = watch.perform(RetryTasks(cluster=CLUSTER, ids=ids, confirm=True))
        outcomes = {result.id: result.outcome for result in performed.results}
        assert outcomes == {**dict.fromkeys(good, "done"), long: "skipped", "no such task": "skipped"}
        assert performed.message == "3 tasks retried, 2 skipped."
        for result in performed.results:
            if result.new_id:
                again = watch.wait_for(result.new_id, TaskState.FAILURE)
                assert again.args == f"['order {good.index(result.id)}']"


def make_value(random: Random, depth: int = 0) -> Any:
    """Something that JSON carries; now and then too long, too deep or with a trap in it."""
    leaves: list[Any] = [None, True, False, random.randint(-(10**20), 10**20), random.uniform(-1e6, 1e6), ""]
    leaves += ["".join(random.choices("abc é😀.,:[]{}()", k=random.randint(0, 9))) for _ in range(6)]
    leaves += [random.choice(["a" * random.randint(1000, 1040), "it's", "a\\b", "x\ny", "wait...", "word " * 250])]
    kind = random.random()
    if depth > 3 or kind < 0.6:
        return random.choice(leaves)
    if kind < 0.8:
        return [make_value(random, depth + 1) for _ in range(random.randint(0, 3))]
    return {random.choice("abcdef"): make_value(random, depth + 1) for _ in range(random.randint(0, 2))}


def test_two_hundred_generated_arguments_run_again_equal_or_are_refused(
    broker_url: str, tmp_path: Path, workers: Workers
) -> None:
    random = Random(31)
    with watching(broker_url, tmp_path) as watch:
        worker = workers(broker_url)
        sent: dict[str, tuple[list[Any], dict[str, Any]]] = {}
        for _ in range(200):
            args = [make_value(random) for _ in range(random.randint(0, 3))]
            kwargs = {random.choice("xyz"): make_value(random) for _ in range(random.randint(0, 2))}
            sent[worker.send("echo", *args, kwargs=kwargs)] = (args, kwargs)
        for task_id in sent:
            watch.wait_for(task_id, TaskState.SUCCESS)
        performed = watch.perform(RetryTasks(cluster=CLUSTER, ids=tuple(sent), confirm=True))
        again = {result.id: result.new_id for result in performed.results if result.new_id}
        assert {result.outcome for result in performed.results} == {"done", "skipped"}
        assert 50 < len(again) < 190
        for old, new in again.items():
            args, kwargs = sent[old]
            ran = watch.wait_for(new, TaskState.SUCCESS)
            assert ran.result == read_task(watch.store, old, CLUSTER).result
            assert json.dumps([judge(ran).args_value, judge(ran).kwargs_value]) == json.dumps([args, kwargs])
        assert watch.task_count() == len(sent) + len(again)


def test_a_double_click_sends_once(broker_url: str, tmp_path: Path, workers: Workers) -> None:
    with watching(broker_url, tmp_path) as watch:
        worker = workers(broker_url)
        earlier = worker.log.count("received")
        old = worker.send("fail")
        watch.wait_for(old, TaskState.FAILURE)
        first = watch.perform(retry(old, confirm=True, request_id="press 1"))
        second = watch.perform(retry(old, confirm=True, request_id="press 1"))
        assert first.results[0].new_id == second.results[0].new_id
        assert "Nothing was sent twice" in second.message
        third = watch.perform(retry(old, confirm=True, request_id="press 2"))
        assert third.results[0].new_id != first.results[0].new_id
        for performed in (first, third):
            watch.wait_for(str(performed.results[0].new_id), TaskState.FAILURE)
        assert watch.task_count() == 3
        assert worker.log.count("received") == earlier + 3


def test_a_task_that_still_runs_is_not_sent_again(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        release = tmp_path / "release"
        running = worker.send("hold", str(release))
        watch.wait_for(running, TaskState.STARTED)
        with pytest.raises(Conflict, match="is started: by its last event, it is running"):
            watch.perform(retry(running, confirm=True))
        release.touch()
        scheduled = worker.send("echo", countdown=30)
        watch.wait_for(scheduled, TaskState.SCHEDULED)
        with pytest.raises(Conflict, match="until its ETA"):
            watch.perform(retry(scheduled, confirm=True))


def test_an_eta_and_an_expiry_are_not_sent_again(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        old = worker.send("fail", countdown=0.3, expires=5)
        task = watch.wait_for(old, TaskState.FAILURE)
        assert task.eta
        assert task.expires
        performed = watch.perform(retry(old, confirm=True))
        again = watch.wait_for(str(performed.results[0].new_id), TaskState.FAILURE)
        assert (again.eta, again.expires) == (None, None)
        later = watch.perform(retry(old, confirm=True, countdown=30))
        assert watch.wait_for(str(later.results[0].new_id), TaskState.SCHEDULED).eta


def test_a_queue_that_nobody_knows_is_refused_and_another_known_one_is_taken(
    broker_url: str, tmp_path: Path, workers: Workers
) -> None:
    with watching(broker_url, tmp_path) as watch:
        worker, other = workers(broker_url), workers(broker_url, concurrency=1)
        old = worker.send("fail")
        watch.wait_for(old, TaskState.FAILURE)
        watch.wait_for(other.send("fail"), TaskState.FAILURE)
        with pytest.raises(Conflict, match="Unknown queue 'nowhere'") as caught:
            watch.perform(retry(old, confirm=True, queue="nowhere"))
        assert caught.value.detail["queues"] == sorted([worker.queue, other.queue])
        performed = watch.perform(retry(old, confirm=True, queue=other.queue))
        new_id = str(performed.results[0].new_id)
        # The event of its sending comes by another connection than those of the worker.
        again = wait_for(lambda: (task := watch.wait_for(new_id, TaskState.FAILURE)).queue and task, what="its queue")
        assert (again.queue, again.worker) == (other.queue, other.hostname)


def test_a_queue_that_is_unknown_is_asked_for(broker_url: str, tmp_path: Path) -> None:
    config = {"task_send_sent_event": False}
    queues = f"silent-{uuid4().hex[:8]},spare-{uuid4().hex[:8]}"
    with (
        watching(broker_url, tmp_path) as watch,
        running_worker(broker_url, queue=queues, hostname="two@shop", config=config) as worker,
    ):
        old = worker.send("fail", queue=queues.split(",")[0])
        task = watch.wait_for(old, TaskState.FAILURE)
        assert task.queue is None
        with pytest.raises(Conflict, match="is unknown: events name it only with"):
            watch.perform(retry(old, confirm=True))


def test_a_queue_that_is_gone_is_said_and_leaves_no_link(amqp_url: str, tmp_path: Path) -> None:
    with watching(amqp_url, tmp_path) as watch:
        with running_worker(amqp_url) as worker:
            old = worker.send("fail")
            watch.wait_for(old, TaskState.FAILURE)
        with pytest.raises(NotTaken, match="NO_ROUTE"):
            watch.perform(retry(old, confirm=True))
        assert watch.last_action().outcome == "failed"
        assert read_lineage(watch.store, read_task(watch.store, old, CLUSTER)).retried_as == ()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_down_is_said_and_recorded(
    scheme: str, redis_url: str, tmp_path: Path, workers: Workers
) -> None:
    with watching(redis_url, tmp_path) as watch:
        worker = workers(redis_url)
        old = worker.send("fail")
        watch.wait_for(old, TaskState.FAILURE)
        down = Broker(CLUSTER, f"{scheme}://olga:s3cret@127.0.0.1:1/0")
        gone = Watch(watch.store, make_settings(redis_url, tmp_path, broker=(down,)))
        with pytest.raises(BrokerUnavailable, match="nothing was sent") as caught:
            gone.perform(retry(old, confirm=True))
        assert "s3cret" not in caught.value.message
        action = watch.last_action()
        assert (action.outcome, action.message) == ("failed", caught.value.message)
        assert read_lineage(watch.store, read_task(watch.store, old, CLUSTER)).retried_as == ()


@pytest.mark.usefixtures("_as_root")
def test_a_worker_that_speaks_pickle_runs_what_is_sent_again(broker_url: str, tmp_path: Path, workers: Workers) -> None:
    with watching(broker_url, tmp_path) as watch:
        worker = workers(broker_url, config=PICKLE)
        old = worker.send("echo", 31, kwargs={"currency": "EUR"})
        watch.wait_for(old, TaskState.SUCCESS)
        performed = watch.perform(retry(old, confirm=True))
        again = watch.wait_for(str(performed.results[0].new_id), TaskState.SUCCESS)
        assert again.result == "[(31,), {'currency': 'EUR'}]"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (retry("no such task"), NotFound),
        (RetryTask(cluster="attic", id="x"), NotFound),
        (retry("x", countdown=-1), InvalidInput),
        (retry("x", countdown=float("nan")), InvalidInput),
        (retry("x\0y"), InvalidInput),
        (retry("x", reason="\ud800"), InvalidInput),
        (retry("x", reason="r" * 2001), InvalidInput),
        (RetryTasks(cluster=CLUSTER, ids=()), InvalidInput),
        (RetryTasks(cluster=CLUSTER, ids=tuple(str(number) for number in range(1001))), InvalidInput),
    ],
)
def test_what_cannot_be_understood_is_refused(
    command: RetryTask | RetryTasks, error: type[Exception], redis_url: str, tmp_path: Path
) -> None:
    with watching(redis_url, tmp_path) as watch, pytest.raises(error):
        watch.perform(command)
