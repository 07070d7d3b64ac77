"""What is known of a task from elsewhere than its events: its message in the broker, a result backend, its worker."""

import json
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from kombu import Connection

from celery_monitor.brokers import task_messages as held
from celery_monitor.brokers.task_messages import find_task_messages
from celery_monitor.control.arguments import FoundArguments, find_arguments, look_up
from celery_monitor.control.bulk import BulkRetry
from celery_monitor.control.commands import Target
from celery_monitor.control.queues import FindMessage
from celery_monitor.control.retry import RetryTask, RetryTasks
from celery_monitor.core.message import facts
from celery_monitor.errors import ConfirmationRequired, Conflict
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import Task, TaskState
from celery_monitor.settings.values import Broker
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.writer import Writer
from tests.apps.basic import make_app
from tests.apps.extended import PREFIX
from tests.apps.order import Order
from tests.control.watch import CLUSTER, Watch, watching
from tests.workers import running_worker, wait_for

LONG = "order " * 400  # longer than events tell
EVERYTHING = {"task_acks_late": True, "worker_prefetch_multiplier": 4}


@contextmanager
def sender(url: str, **config: Any) -> Iterator[Celery]:
    """An application that sends to a queue that nobody serves."""
    queue = f"idle-{uuid4().hex[:12]}"
    app = make_app(url, task_default_queue=queue, **config)
    try:
        yield app
    finally:
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(queue)
        app.close()


def found(watch: Watch, task: Task) -> FoundArguments:
    return find_arguments(Target(watch.store, watch.settings, watch.settings.broker[0]), task)


def lose(watch: Watch, task_id: str) -> Task:
    """As the receiver does when a worker is gone."""
    task = read_task(watch.store, task_id, CLUSTER)
    run = task.run
    event = Event(
        type="task-lost",
        timestamp=time.time(),
        hostname=run.worker if run and run.worker else "nobody@shop",
        pid=run.pid if run else None,
        uuid=task_id,
        exception="its worker is gone",
    )
    Writer(watch.store, CLUSTER, watch.settings).write([Delivery(events=[event], arrived=time.time())])
    return watch.wait_for(task_id, TaskState.LOST)


def payloads(url: str, queue: str) -> list[dict[str, Any]]:
    with closing(redis.Redis.from_url(url)) as client:
        keys = [key for key in client.keys(f"{queue}*") if client.type(key) == b"list"]
        return [json.loads(raw) for key in keys for raw in client.lrange(key, 0, -1)]


def test_a_message_that_waits_in_redis_is_known_exactly_and_stays(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, sender(redis_url) as app:
        queue = app.conf.task_default_queue
        others = [app.send_task("basic.echo", (number,)).id for number in range(30)]
        chained = app.signature("basic.mark", args=("x",), queue=queue)
        sent = app.send_task("basic.echo", (LONG, 31), priority=6, link=chained, compression="zlib")
        task = watch.wait_for(sent.id, TaskState.PENDING)
        it = found(watch, task)
        assert (it.arguments.fidelity, it.arguments.source) == ("exact", "queue")
        assert it.arguments.reason.startswith(f"original message, from the queue {queue}. A retry")
        assert it.arguments.args_value == [LONG, 31]
        assert it.message is not None
        assert (it.message.callbacks, facts(it.message).priority) == (1, 6)
        assert found(watch, watch.wait_for(others[29], TaskState.PENDING)).arguments.args_value == [29]
        assert len(payloads(redis_url, queue)) == 31
        retry = RetryTask(cluster=CLUSTER, id=sent.id, confirm=True)
        with pytest.raises(Conflict, match=f"the message was in {queue} just now"):
            watch.perform(retry)
        with redis.Redis.from_url(redis_url) as client:
            client.delete(f"{queue}\x06\x166")  # as whoever purges it does, without an event
        with pytest.raises(Conflict, match=f"the message was neither in {queue} nor unacknowledged just now"):
            watch.perform(retry)


@pytest.mark.usefixtures("_as_root")
def test_what_a_killed_worker_had_is_sent_again_to_the_byte(redis_url: str, tmp_path: Path) -> None:
    """Delivered, never acknowledged: Redis still has all of it, pickled or not."""
    config = {**EVERYTHING, "accept_content": ["json", "pickle"]}
    with watching(redis_url, tmp_path) as watch:
        with running_worker(redis_url, config=config, concurrency=1) as worker:
            ids = {
                "json": worker.send("sleep", 300, headers={"tenant": "acme"}, priority=3),
                "pickle": worker.send("echo", Order(31), serializer="pickle"),
                "long": worker.send("echo", LONG),
            }
            for task_id in ids.values():
                watch.wait_for(task_id, TaskState.RECEIVED, TaskState.STARTED)
            queue = worker.queue
            with closing(redis.Redis.from_url(redis_url)) as client:
                before = {(stored := json.loads(raw)[0])["headers"]["id"]: stored for raw in client.hvals("unacked")}
            worker.kill()
        for form, task_id in ids.items():
            task = lose(watch, task_id)
            it = found(watch, task)
            assert (it.arguments.fidelity, it.arguments.source) == ("exact", "unacked"), form
            assert "delivered to a worker and not acknowledged" in it.arguments.reason
            with pytest.raises(ConfirmationRequired, match="not acknowledged, and the broker will redeliver it"):
                watch.perform(RetryTask(cluster=CLUSTER, id=task_id))
            performed = watch.perform(RetryTask(cluster=CLUSTER, id=task_id, confirm=True))
            new_id = performed.results[0].new_id
            (again,) = [each for each in payloads(redis_url, queue) if each["headers"]["id"] == new_id]
            first = before[task_id]
            assert b64decode(again["body"]) == b64decode(first["body"])
            assert (again["content-type"], again["content-encoding"]) == (
                first["content-type"],
                first["content-encoding"],
            )
            expected = {name: new_id if value == task_id else value for name, value in first["headers"].items()}
            assert again["headers"] == expected
            assert again["properties"]["priority"] == first["properties"]["priority"]
            assert again["properties"]["delivery_info"]["routing_key"] == queue


def test_several_lost_ones_are_found_in_one_search_and_by_a_job(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch:
        with running_worker(redis_url, config={**EVERYTHING, "worker_prefetch_multiplier": 9}) as worker:
            ids = [worker.send("sleep", 300), worker.send("sleep", 300)]
            ids += [worker.send("echo", LONG, number) for number in range(4)]
            for task_id in ids:
                watch.wait_for(task_id, TaskState.RECEIVED, TaskState.STARTED)
            worker.kill()
        for task_id in ids:
            lose(watch, task_id)
        performed = watch.perform(RetryTasks(cluster=CLUSTER, ids=tuple(ids), confirm=True))
        assert [(each.outcome, each.fidelity) for each in performed.results] == [("done", "exact")] * 6
        target = Target(watch.store, watch.settings, watch.settings.broker[0])
        left_out = watch.preview(BulkRetry(cluster=CLUSTER, query="state:lost")).preview
        assert (left_out.sendable, left_out.retried) == (0, 6)
        preview = watch.preview(BulkRetry(cluster=CLUSTER, query="state:lost", include_retried=True))
        assert preview.preview.fidelity == {"exact": 6, "probable": 0, "unknown": 0}
        assert find_task_messages(target.broker, target.settings, {"no such task"}, []).messages == {}


def test_a_search_that_found_nothing_in_time_says_so(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MOST_READ", 7)
    with watching(redis_url, tmp_path) as watch, sender(redis_url) as app:
        ids = [app.send_task("basic.echo", (LONG, number)).id for number in range(9)]
        task = watch.wait_for(ids[8], TaskState.PENDING)
        watch.wait_for(ids[0], TaskState.PENDING)
        it = found(watch, task)
        assert it.arguments.fidelity == "unknown"
        assert "is not among the first 7 in the broker" in it.arguments.reason
        assert found(watch, read_task(watch.store, ids[0], CLUSTER)).arguments.fidelity == "exact"


def test_what_lies_beside_is_passed_over(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, sender(redis_url) as app:
        queue = app.conf.task_default_queue
        task_id = app.send_task("basic.echo", (LONG,)).id
        task = watch.wait_for(task_id, TaskState.PENDING)
        with closing(redis.Redis.from_url(redis_url)) as client:
            for junk in (b"no JSON", b"[]", b'{"headers": 5}', b'{"headers": {"id": "%s"}}' % task_id.encode()):
                client.rpush(queue, junk)
                client.hset("unacked", junk, junk)
        assert found(watch, task).arguments.args_value == [LONG]
        with closing(redis.Redis.from_url(redis_url)) as client:
            client.delete(queue)
            client.set(queue, "no list")
        it = found(watch, task)
        assert it.arguments.fidelity == "unknown"
        assert "could not be searched for the message" in it.arguments.reason


def test_rabbitmq_is_only_looked_into_when_somebody_asks(amqp_url: str, tmp_path: Path) -> None:
    """What a killed worker had stands in its queue again."""
    with watching(amqp_url, tmp_path) as watch, running_worker(amqp_url, config=EVERYTHING, concurrency=1) as worker:
        queue = worker.queue
        given = {"priority": 2, "compression": "zlib"}
        ids = [worker.send("sleep", 300), worker.send("echo", LONG, 1), worker.send("echo", LONG, 2, **given)]
        for task_id in ids:
            watch.wait_for(task_id, TaskState.RECEIVED, TaskState.STARTED)
        worker.kill()
        wait_for(lambda: ready(amqp_url, queue) == 3, what="that RabbitMQ has them again")
        lost = lose(watch, ids[2])
        assert found(watch, lost).arguments.fidelity == "unknown"

        performed = watch.perform(FindMessage(cluster=CLUSTER, id=lost.id, reason="its worker died"))
        assert performed.message == f"Message found in the queue {queue} and stored: a retry is exact."
        action = watch.last_action()
        assert (action.action, action.target, action.reason) == ("task.find_message", lost.id, "its worker died")
        wait_for(lambda: ready(amqp_url, queue) == 3, what="that they are put back")
        it = found(watch, lost)
        assert (it.arguments.fidelity, it.arguments.source) == ("exact", "queue")
        assert f"from the queue {queue} when it was last read" in it.arguments.reason
        with pytest.raises(ConfirmationRequired, match="was in the queue when last read"):
            watch.perform(RetryTask(cluster=CLUSTER, id=lost.id))
        new_id = watch.perform(RetryTask(cluster=CLUSTER, id=lost.id, confirm=True)).results[0].new_id
        with Connection(amqp_url) as connection:
            channel = connection.channel()
            waiting = [channel.basic_get(queue, no_ack=False) for _ in range(4)]
            assert channel.basic_get(queue) is None
            by_id = {each.properties["application_headers"]["id"]: each for each in waiting}
            first, again = by_id[lost.id], by_id[str(new_id)]
            channel.close()
        assert again.body == first.body
        assert again.properties["priority"] == 2
        assert again.properties["application_headers"]["compression"] == "application/x-gzip"
        assert set(by_id) == {*ids, new_id}


def ready(url: str, queue: str) -> int:
    with Connection(url) as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def test_what_rabbitmq_does_not_have_is_said(amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "MOST_DELIVERED", 2)
    with watching(amqp_url, tmp_path) as watch, sender(amqp_url) as app:
        queue = app.conf.task_default_queue
        ids = [app.send_task("basic.echo", (number,)).id for number in range(3)]
        watch.wait_for(ids[2], TaskState.PENDING)
        with pytest.raises(Conflict, match=f"not in the first 2 messages of the queue {queue}"):
            watch.perform(FindMessage(cluster=CLUSTER, id=ids[2]))
        with Connection(amqp_url) as connection:
            assert connection.default_channel.queue_purge(queue) == 3
        with pytest.raises(Conflict, match=f"not in the queue {queue}"):
            watch.perform(FindMessage(cluster=CLUSTER, id=ids[2]))
        assert watch.last_action().outcome == "failed"


def test_redis_has_nothing_to_be_taken_out(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, sender(redis_url) as app:
        task_id = app.send_task("basic.echo").id
        watch.wait_for(task_id, TaskState.PENDING)
        with pytest.raises(Conflict, match="found automatically"):
            watch.perform(FindMessage(cluster=CLUSTER, id=task_id))


@pytest.fixture
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a worker that accepts pickle start where the tests run as root, as in a container."""
    monkeypatch.setenv("C_FORCE_ROOT", "1")


def test_an_extended_result_backend_tells_what_events_cut(redis_url: str, tmp_path: Path) -> None:
    backend = (Broker(CLUSTER, redis_url),)
    with (
        watching(redis_url, tmp_path, result_backend=backend) as watch,
        running_worker(redis_url, config={"result_backend": redis_url, "result_extended": True}) as worker,
    ):
        task_id = worker.send("fail", LONG)
        task = watch.wait_for(task_id, TaskState.FAILURE)
        it = wait_for(lambda: read if (read := found(watch, task)).arguments.known else None)
        assert (it.arguments.fidelity, it.arguments.source) == ("probable", "result")
        assert (it.arguments.args_value, it.name) == ([LONG], "basic.fail")
        with pytest.raises(ConfirmationRequired) as asked:
            watch.perform(RetryTask(cluster=CLUSTER, id=task_id))
        assert (asked.value.detail["source"], asked.value.detail["fidelity"]) == ("result", "probable")
        assert watch.preview(BulkRetry(cluster=CLUSTER, query="state:failed")).preview.fidelity["probable"] == 1
        performed = watch.perform(RetryTasks(cluster=CLUSTER, ids=(task_id,), confirm=True))
        again = watch.wait_for(str(performed.results[0].new_id), TaskState.FAILURE)
        assert again.exception == task.exception

        away = replace(watch.settings, result_backend=(Broker(CLUSTER, "redis://127.0.0.1:1/0"),))
        it = find_arguments(Target(watch.store, away, watch.settings.broker[0]), task)
        assert (it.arguments.fidelity, it.arguments.args) == ("unknown", None)
        assert it.arguments.reason.endswith("the result backend does not answer")


def test_the_backend_of_the_application_is_used_with_its_prefix(redis_url: str, tmp_path: Path) -> None:
    config = {
        "result_backend": redis_url,
        "result_extended": True,
        "result_backend_transport_options": {"global_keyprefix": PREFIX},
        "task_send_sent_event": False,
    }
    with (
        watching(redis_url, tmp_path, app="tests.apps.extended") as watch,
        running_worker(redis_url, config=config) as worker,
    ):
        task = watch.wait_for(worker.send("fail", LONG), TaskState.FAILURE)
        assert task.queue is None
        it = wait_for(lambda: read if (read := found(watch, task)).arguments.known else None)
        assert (it.arguments.source, it.queue) == ("result", worker.queue)


def test_the_worker_tells_what_it_runs(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        watch.wait_for_worker(worker)
        task = watch.wait_for(worker.send("sleep", 30.5, argsrepr="<hidden>"), TaskState.STARTED)
        it = found(watch, task)
        assert (it.arguments.fidelity, it.arguments.source) == ("probable", "inspect")
        assert it.arguments.args_value == [30.5]
        assert it.arguments.reason.startswith(f"from {worker.hostname}, where the task is active")
        assert look_up(watch.store, watch.settings, task).arguments == it.arguments
        worker.kill()
        assert look_up(watch.store, watch.settings, task).arguments == it.arguments  # remembered for two seconds
        assert "did not report them" in found(watch, task).arguments.reason


def test_a_cluster_that_is_not_watched_any_more_still_shows_its_record(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, sender(redis_url) as app:
        task = watch.wait_for(app.send_task("basic.echo", (31,)).id, TaskState.PENDING)
        elsewhere = replace(watch.settings, broker=(Broker("attic", redis_url),))
        assert look_up(watch.store, elsewhere, task).arguments.source == "event"
