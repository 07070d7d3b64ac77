"""What waits in a queue whose worker takes nothing for a while: on real brokers, with real workers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from celery_monitor.brokers.transports import messages_of
from celery_monitor.records.queue import Queue
from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.rollups.flows import read_waits
from tests.apps.basic import make_app
from tests.receiver.watching import CLUSTER, Watching, watching
from tests.workers import Worker, running_worker, wait_for

PAUSE = 3.0  # seconds
MOMENT = PAUSE / 2  # on a busy machine, between the reading of the clock and what follows


def still_consumes(worker: Worker) -> bool:
    """The worker answers before it has stopped; on Redis, what it had asked for before would still be given to it."""
    url = worker.app.conf.broker_url
    if url.startswith("redis"):
        with Redis.from_url(url) as client:
            database = str(client.get_connection_kwargs()["db"])
            return any("b" in each["flags"] and each["db"] == database for each in client.client_list())
    with worker.app.connection_for_read() as connection:
        return bool(connection.default_channel.queue_declare(worker.queue, passive=True).consumer_count)


@contextmanager
def paused(worker: Worker) -> Iterator[None]:
    def tell(command: str) -> None:
        answers = getattr(worker.app.control, command)(worker.queue, destination=[worker.hostname], reply=True, limit=1)
        assert answers

    tell("cancel_consumer")
    wait_for(lambda: not still_consumes(worker), what="the end of its consumer")
    try:
        yield
    finally:
        tell("add_consumer")


def measured(watch: Watching, worker: Worker, ready: int, *, exact: bool) -> Queue:
    """The queue, once it has been measured with so many messages, and the age of the oldest is so well known."""

    def found() -> Queue | None:
        queue = watch.queue(worker.queue)
        if queue is None or queue.ready != ready or queue.oldest is None or queue.oldest_exact != exact:
            return None
        return queue

    queue: Queue = wait_for(found, what=f"{ready} messages, of a known age")
    return queue


def pass_time(since: float) -> None:
    wait_for(lambda: time.time() > since + PAUSE)


def delete_head(url: str, worker: Worker) -> None:
    messages = messages_of(Broker(CLUSTER, url), Settings(), worker.queue)
    assert messages.delete(messages.read(1).messages[0].digest)


def test_what_waits_in_a_paused_queue_waits_since_it_was_sent(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        with paused(worker):
            first = time.time()
            worker.send("add", 0, 0)
            pass_time(first)
            second = time.time()
            rest = [worker.send("add", 1, number) for number in range(20)]
            retried = worker.send("retry_then_succeed", 1, 0.2)
            sent = time.time()
            queue = measured(watch, worker, 22, exact=True)
            assert queue.oldest == pytest.approx(first, abs=MOMENT)
            delete_head(broker_url, worker)
            # RabbitMQ does not show what is at the head, and nobody has told the record that a message was deleted.
            queue = measured(watch, worker, 21, exact=broker_url.startswith("redis"))
            assert queue.oldest == pytest.approx(second, abs=MOMENT)
            pass_time(sent)
        for each in rest:
            watch.wait_for_state(each, TaskState.SUCCESS)
        task = watch.wait_for_state(rest[0], TaskState.SUCCESS)
        assert (task.wait or 0.0) > PAUSE - 0.1
        assert task.wait_since == "sent"
        again = watch.wait_for_state(retried, TaskState.SUCCESS)
        assert [run.wait_since for run in again.runs] == ["sent", "retry"]
        assert (again.runs[0].wait or 0.0) > PAUSE - 0.1
        assert (again.wait or 0.0) < (again.runs[0].wait or 0.0)
        [wait] = read_waits(watch.store, since=first - 60).values()
        assert wait.p50 > PAUSE - 0.2
        assert wait.since_receipt == 0.0


def test_age_is_a_lower_bound_where_nobody_tells_when_messages_are_sent(broker_url: str, tmp_path: Path) -> None:
    config = {"task_send_sent_event": False}
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url, config=config) as worker:
        with make_app(broker_url) as telling:  # from then on the record knows of the queue
            known = telling.send_task("basic.add", (1, 1), queue=worker.queue)
            watch.wait_for_state(str(known.id), TaskState.SUCCESS)
        with paused(worker):
            sent = time.time()
            worker.send("add", 1, 2)
            queue = measured(watch, worker, 1, exact=False)
            assert queue.oldest is not None
            assert queue.oldest >= sent
