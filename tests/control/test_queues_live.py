"""Pause, resume, read, purge, throw away and run, against real workers and queues on both brokers."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from celery_monitor.control import queues
from celery_monitor.control.commands import Performed
from celery_monitor.control.perform import Controller
from celery_monitor.control.queues import DeleteMessage, PauseQueue, PurgeQueue, QueueCommand, ReadQueue, ResumeQueue
from celery_monitor.control.retry import RetryTask
from celery_monitor.control.run import RunTask
from celery_monitor.errors import ConfirmationRequired, Conflict, Forbidden, InvalidInput, NotFound
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import TaskState
from celery_monitor.records.user import Actor, Role
from celery_monitor.store.engine import open_store
from celery_monitor.store.queues import read_pauses
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.writer import Writer
from tests.apps.basic import make_app
from tests.control.watch import CLUSTER, Watch, make_settings, watching
from tests.factories import make_event
from tests.workers import running_worker

ADMIN = Actor("root", Role.ADMIN)


@pytest.fixture
def watch(broker_url: str, tmp_path: Path) -> Iterator[Watch]:
    with watching(broker_url, tmp_path) as watch:
        yield watch


@contextmanager
def queue_without_worker(url: str, **config: object) -> Iterator[tuple[Celery, str]]:
    app = make_app(url, **config)
    name = f"idle-{uuid4().hex[:8]}"
    with app.connection_for_write() as connection:
        app.amqp.queues.add(name)
        app.amqp.queues[name](connection.default_channel).declare()
        try:
            yield app, name
        finally:
            connection.default_channel.queue_delete(name)
            app.close()


def send(app: Celery, queue: str, *args: object, **options: object) -> str:
    return str(app.send_task("shop.pay", args, queue=queue, **options).id)


def url_of(watch: Watch) -> str:
    return watch.settings.broker[0].url


def read(watch: Watch, queue: str, limit: int = 50) -> Performed:
    return watch.perform(ReadQueue(cluster=CLUSTER, queue=queue, limit=limit))


def test_queue_is_paused_on_all_its_workers_and_resumed(watch: Watch) -> None:
    url = url_of(watch)
    with running_worker(url) as one, running_worker(url, queue=one.queue, hostname="second@shop") as two:
        for worker in (one, two):
            watch.wait_for_worker(worker)
        to: dict[str, Any] = {"cluster": CLUSTER, "queue": one.queue}
        paused = watch.perform(PauseQueue(**to, reason="the bank is away"))
        assert (paused.outcome, len(paused.results)) == ("done", 2)
        pause = read_pauses(watch.store)[CLUSTER, one.queue]
        assert (pause.by, pause.reason) == ("olga", "the bank is away")
        assert set(pause.workers) == {one.hostname, two.hostname}
        waiting = one.send("add", 2, 3)
        watch.wait_for(waiting, TaskState.PENDING)
        with pytest.raises(Conflict, match="nothing to pause"):
            watch.perform(PauseQueue(**to))
        assert read_task(watch.store, waiting).state is TaskState.PENDING
        resumed = watch.perform(ResumeQueue(**to))
        assert (resumed.outcome, len(resumed.results)) == ("done", 2)
        assert read_pauses(watch.store) == {}
        watch.wait_for(waiting, TaskState.SUCCESS)
        with pytest.raises(Conflict, match="not paused from here"):
            watch.perform(ResumeQueue(**to))


def test_worker_that_died_in_the_pause_is_still_noted_as_stopped(watch: Watch) -> None:
    with running_worker(url_of(watch)) as worker:
        watch.wait_for_worker(worker)
        to: dict[str, Any] = {"cluster": CLUSTER, "queue": worker.queue}
        watch.perform(PauseQueue(**to))
        worker.kill()
        resumed = watch.perform(ResumeQueue(**to))
        assert resumed.outcome == "unconfirmed"
        assert read_pauses(watch.store)[CLUSTER, worker.queue].workers == (worker.hostname,)


def test_messages_are_read_in_order_and_stay(watch: Watch) -> None:
    with queue_without_worker(url_of(watch)) as (app, queue):
        ids = [send(app, queue, number) for number in range(5)]
        performed = read(watch, queue, 3)
        assert performed.reading is not None
        assert [message.id for message in performed.reading.messages] == ids[:3]
        assert performed.reading.more
        first = performed.reading.messages[0]
        assert (first.task, first.args, first.kwargs, first.body) == ("shop.pay", "[0]", "{}", None)
        again = read(watch, queue).reading
        assert again is not None
        assert [message.id for message in again.messages] == ids
        assert [message.digest for message in again.messages[:3]] == [m.digest for m in performed.reading.messages]
        assert (again.hazard is not None) == url_of(watch).startswith("amqp")
        assert watch.last_action().action == "queue.read"


def test_secrets_are_masked_and_pickle_is_bytes(watch: Watch) -> None:
    with queue_without_worker(url_of(watch)) as (app, queue):
        app.send_task("shop.pay", (), {"password": "hunter2", "amount": 31}, queue=queue)
        app.send_task("shop.pay", ({"password": "hunter2"},), queue=queue, serializer="pickle", argsrepr="(...)")
        reading = read(watch, queue).reading
        assert reading is not None
        plain, pickled = reading.messages
        assert "31" in str(plain.kwargs)
        assert pickled.content_type == "application/x-python-serialize"
        assert str(pickled.body).startswith("\\x80")
        assert "hunter2" not in repr(reading)


def test_one_message_is_thrown_away_and_no_other(watch: Watch) -> None:
    with queue_without_worker(url_of(watch)) as (app, queue):
        ids = [send(app, queue, number) for number in range(4)]
        reading = read(watch, queue).reading
        assert reading is not None
        command = DeleteMessage(cluster=CLUSTER, queue=queue, digest=reading.messages[1].digest, id=ids[1])
        with pytest.raises(Forbidden):
            watch.perform(command)
        assert watch.perform(command, ADMIN).message == f"Message deleted; task {ids[1]} revoked."
        left = read(watch, queue).reading
        assert left is not None
        assert [message.id for message in left.messages] == [ids[0], ids[2], ids[3]]
        with pytest.raises(NotFound, match="a worker may have received it"):
            watch.perform(command, ADMIN)


def test_purge_wants_the_name_and_tells_how_many(watch: Watch) -> None:
    with queue_without_worker(url_of(watch)) as (app, queue):
        for number in range(3):
            send(app, queue, number)
        for wrong in (None, "", queue[:-1]):
            with pytest.raises(ConfirmationRequired, match="type its name"):
                watch.perform(PurgeQueue(cluster=CLUSTER, queue=queue, confirm=wrong), ADMIN)
        assert watch.action_count() == 0
        performed = watch.perform(PurgeQueue(cluster=CLUSTER, queue=queue, confirm=queue), ADMIN)
        assert performed.message.startswith(f"3 messages deleted from {queue}; 3 tasks revoked.")
        assert watch.last_action().parameters == {"purged": 3, "concluded": 3}
        reading = read(watch, queue).reading
        assert reading is not None
        assert reading.messages == ()


def test_tasks_whose_messages_are_removed_are_revoked_by_whom_and_can_be_retried(watch: Watch) -> None:
    with queue_without_worker(url_of(watch), task_send_sent_event=True) as (app, queue):
        deleted, *purged = (send(app, queue, number) for number in range(4))
        for task_id in (deleted, *purged):
            watch.wait_for(task_id, TaskState.PENDING)
        reading = read(watch, queue).reading
        assert reading is not None
        watch.perform(DeleteMessage(cluster=CLUSTER, queue=queue, digest=reading.messages[0].digest), ADMIN)
        task = read_task(watch.store, deleted)
        assert (task.state, task.exception) == (TaskState.REVOKED, f"message deleted from {queue} by root")
        watch.perform(PurgeQueue(cluster=CLUSTER, queue=queue, confirm=queue), ADMIN)
        for task_id in purged:
            task = read_task(watch.store, task_id)
            assert (task.state, task.exception) == (TaskState.REVOKED, f"queue {queue} purged by root")
        retried = watch.perform(RetryTask(cluster=CLUSTER, id=purged[1]))
        assert retried.results[0].fidelity == "exact"
        again = read(watch, queue).reading
        assert again is not None
        assert [(message.id, message.args) for message in again.messages] == [(retried.results[0].new_id, "[2]")]


def test_purge_without_a_receiver_says_that_the_record_does_not_show_it_yet(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "CONCLUDE_SECONDS", 0.2)
    settings = make_settings(redis_url, tmp_path)
    with queue_without_worker(redis_url) as (app, queue), closing(open_store(settings.database)) as store:
        waits = make_event("task-sent", uuid=send(app, queue, 1), name="shop.pay", queue=queue, timestamp=time.time())
        Writer(store, CLUSTER, settings).write([Delivery([waits], time.time())])
        command = PurgeQueue(cluster=CLUSTER, queue=queue, confirm=queue)
        message = Controller(store, settings).perform(ADMIN, command).message
        assert "1 task revoked. The record shows it once a receiver has stored it." in message
        assert Writer(store, CLUSTER, settings).conclude_removals(time.time()) == 1


def test_purge_of_more_than_is_read_says_so(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "MOST_READ", 2)
    with queue_without_worker(url_of(watch), task_send_sent_event=True) as (app, queue):
        ids = [send(app, queue, number) for number in range(3)]
        for task_id in ids:
            watch.wait_for(task_id, TaskState.PENDING)
        performed = watch.perform(PurgeQueue(cluster=CLUSTER, queue=queue, confirm=queue), ADMIN)
        assert performed.message.startswith(
            f"3 messages deleted from {queue}; 2 tasks revoked. 1 not read: the tasks are checked"
        )
        for task_id in ids[:2]:
            watch.wait_for(task_id, TaskState.REVOKED)
        assert read_task(watch.store, ids[2]).state is TaskState.PENDING


def test_priorities_of_redis_are_read_and_purged(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, queue_without_worker(redis_url) as (app, queue):
        later = send(app, queue, 1, priority=6)
        sooner = send(app, queue, 2, priority=0)
        reading = read(watch, queue).reading
        assert reading is not None
        assert [(message.id, message.priority) for message in reading.messages] == [(sooner, 0), (later, 6)]
        watch.perform(PurgeQueue(cluster=CLUSTER, queue=queue, confirm=queue), ADMIN)
        assert read(watch, queue).reading.messages == ()  # type: ignore[union-attr]


def test_queue_that_rabbitmq_does_not_have_is_not_found(amqp_url: str, tmp_path: Path) -> None:
    with watching(amqp_url, tmp_path) as watch:
        commands: list[QueueCommand] = [
            ReadQueue(cluster=CLUSTER, queue="no such queue"),
            PurgeQueue(cluster=CLUSTER, queue="no such queue", confirm="no such queue"),
        ]
        for command in commands:
            with pytest.raises(NotFound, match="has no queue"):
                watch.perform(command, ADMIN)


def test_registered_task_is_run(watch: Watch) -> None:
    with running_worker(url_of(watch)) as worker:
        watch.wait_for_worker(worker)
        watch.wait_for(worker.send("add", 1, 1), TaskState.SUCCESS)  # so that its queue is known
        to: dict[str, Any] = {"cluster": CLUSTER, "queue": worker.queue}
        performed = watch.perform(RunTask(**to, name="basic.echo", args='[7, "ü"]', kwargs='{"a": null}'))
        ran = watch.wait_for(performed.results[0].id, TaskState.SUCCESS)
        assert ran.result == "[(7, 'ü'), {'a': None}]"
        again = RunTask(**to, name="basic.add", args="[2, 3]", request_id="a form")
        first = watch.perform(again)
        watch.wait_for(first.results[0].id, TaskState.SUCCESS)
        assert "Already sent by this request" in watch.perform(again).message
        for wrong in ({"args": "7"}, {"args": "[1"}, {"kwargs": "[]"}, {"countdown": -1.0}):
            with pytest.raises(InvalidInput):
                watch.perform(RunTask(**{**to, "name": "basic.add", **wrong}))
        with pytest.raises(Conflict, match=r"No worker that answered has a task 'shop\.nope'"):
            watch.perform(RunTask(**to, name="shop.nope"))
        with pytest.raises(Conflict, match="Unknown queue 'nowhere'"):
            watch.perform(RunTask(cluster=CLUSTER, queue="nowhere", name="basic.add"))


def test_nothing_is_run_where_nobody_answers(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url) as worker:
        watch.wait_for_worker(worker)
        watch.wait_for(worker.send("add", 1, 1), TaskState.SUCCESS)
        worker.kill()
        with pytest.raises(Conflict, match="unknown which one has this task"):
            watch.perform(RunTask(cluster=CLUSTER, queue=worker.queue, name="basic.add"))
