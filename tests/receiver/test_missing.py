"""Messages that are gone without an event, and those that are not: on real brokers, with a real worker."""

import time
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import redis
from celery import Celery

from monitor.brokers.depth import make_probe
from monitor.brokers.ends import Ends
from monitor.brokers.remote import Remote
from monitor.receiver.missing import AGAIN_SECONDS
from monitor.receiver.missing import LONGEST_REST
from monitor.receiver.missing import OLD_SECONDS
from monitor.receiver.missing import Missing
from monitor.records import Delivery
from monitor.records import Event
from monitor.records import TaskState
from monitor.settings import Broker
from monitor.settings import Settings
from monitor.store import queries
from monitor.store import standing
from tests.receiver.watching import CLUSTER
from tests.receiver.watching import Watching
from tests.receiver.watching import watching
from tests.workers import Worker
from tests.workers import running_worker
from tests.workers import wait_for

SENT = {"task_send_sent_event": True}


class Looking:
    """A worker, a watch on its broker, and a look for missing messages that is stepped by hand."""

    def __init__(self, watch: Watching, worker: Worker, url: str, **settings: object) -> None:
        self.watch = watch
        self.worker = worker
        self.idle = f"{worker.queue}-idle"  # nobody consumes it
        self.now = time.time() - LONGEST_REST
        self.concluded: list[Event] = []
        broker = Broker(CLUSTER, url)
        given = Settings(node_id="looking", **settings)  # type: ignore[arg-type]
        probe = make_probe(broker, given)
        self.missing = Missing(watch.store, Remote(broker, given), Ends(broker, given), probe, self._conclude)

    def _conclude(self, delivery: Delivery) -> None:
        self.concluded += delivery.events
        self.watch.receiver.conclude(delivery)

    def send(self, queue: str, *args: object, **options: object) -> str:
        """A task that waits, by the record."""
        task_id = self.worker.send("add", *args, queue=queue, **options)
        self.watch.wait_for_state(task_id, TaskState.PENDING)
        return task_id

    def look(self, later: float = OLD_SECONDS + 20.0) -> list[str]:
        """One round, so much later; the ids of the tasks of which anything was concluded."""
        before = len(self.concluded)
        workers = queries.workers(self.watch.store, CLUSTER)
        self.now = max(self.now + LONGEST_REST, time.time() + later)
        held = standing.holders(self.watch.store, CLUSTER)
        self.missing.step(workers, held, self.now)
        self.missing.step(workers, held, self.now + AGAIN_SECONDS)
        return [str(each.uuid) for each in self.concluded[before:]]


@contextmanager
def looking(url: str, directory: Path, **settings: object) -> Iterator[Looking]:
    config = SENT | {"result_backend": url} if "result_backend" in settings else SENT
    with watching(url, directory) as watch, running_worker(url, concurrency=1, config=config) as worker:
        looking = Looking(watch, worker, url, **settings)
        watch.wait_for_state(worker.send("add", 3, 4), TaskState.SUCCESS)
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.queues == (worker.queue,))
        with worker.app.connection_for_write() as connection:
            worker.app.amqp.queues.add(looking.idle)
            worker.app.amqp.queues[looking.idle](connection.default_channel).declare()
            try:
                yield looking
            finally:
                looking.missing.close()
                connection.default_channel.queue_delete(looking.idle)


def purge(worker: Worker, queue: str) -> None:
    with worker.app.connection_for_write() as connection:
        connection.default_channel.queue_purge(queue)


def test_messages_that_are_gone_are_found_out_and_what_waits_is_left_alone(broker_url: str, tmp_path: Path) -> None:
    with looking(broker_url, tmp_path) as here:
        refused = here.send(here.worker.queue, 1, 2, serializer="pickle")
        wait_for(lambda: "Received invalid task message" in here.worker.log or "ContentDisallowed" in here.worker.log)
        gone, expired = here.send(here.idle, 1, 2), here.send(here.idle, 3, 4, expires=20)
        purge(here.worker, here.idle)
        other = f"{here.idle}-2"
        here.worker.app.amqp.queues.add(other)
        waits = here.send(other, 5, 6)
        assert here.look(later=OLD_SECONDS - 20) == []  # too early
        assert sorted(here.look()) == sorted([refused, gone, expired])
        lost = here.watch.wait_for_state(refused, TaskState.LOST)
        assert lost.exception is not None
        assert f"no worker that consumes {here.worker.queue} has the task: checked twice, 5 s apart" in lost.exception
        assert "or a worker refused it" in lost.exception
        assert here.watch.wait_for_state(gone, TaskState.LOST).worker is None
        revoked = here.watch.wait_for_state(expired, TaskState.REVOKED)
        assert (revoked.exception or "").startswith("expired before a worker received it; its ")
        assert here.look() == []
        assert here.watch.task(waits).state is TaskState.PENDING  # type: ignore[union-attr]
        # By a sender without events: one stamped less than GONE_SECONDS after the first would be a second message.
        silent = Celery(broker=broker_url)
        silent.send_task("basic.add", (1, 2), queue=here.worker.queue, task_id=gone)
        silent.close()
        assert here.watch.wait_for_state(gone, TaskState.SUCCESS).result == "3"  # what was concluded is taken back
        purge(here.worker, other)


def test_nothing_is_concluded_where_a_worker_may_have_the_task(redis_url: str, tmp_path: Path) -> None:
    with looking(redis_url, tmp_path) as here:
        gone = here.send(here.idle, 1, 2)
        purge(here.worker, here.idle)
        busy = f"busy-{uuid4().hex[:6]}@shop"
        here.watch.hear("worker-heartbeat", busy)
        assert here.look() == []  # nobody knows which queues it consumes, and it does not answer
        here.watch.hear("worker-offline", busy)
        assert here.look() == []  # it may have run the task, and sent no event
        here.watch.hear("worker-offline", busy, processed=0)
        assert here.look() == [gone]


def test_end_that_the_result_backend_has_is_the_end(redis_url: str, tmp_path: Path) -> None:
    with looking(redis_url, tmp_path, result_backend=(Broker(CLUSTER, redis_url),)) as here:
        task_id = here.send(here.idle, 1, 2)
        purge(here.worker, here.idle)
        ran = here.worker.send("add", 1, 2)
        here.watch.wait_for_state(ran, TaskState.SUCCESS)
        key = here.worker.app.backend.get_key_for_task
        with closing(redis.Redis.from_url(redis_url)) as client:
            wait_for(lambda: client.copy(key(ran), key(task_id)))
        assert here.look() == [task_id]
        assert here.watch.wait_for_state(task_id, TaskState.SUCCESS).result == "3"


def test_task_that_a_stopped_worker_gave_back_waits_again(redis_url: str, tmp_path: Path) -> None:
    with looking(redis_url, tmp_path) as here:
        running, held = here.worker.send("sleep", 6), here.worker.send("add", 8, 9)
        here.watch.wait_for_state(running, TaskState.STARTED)
        here.watch.wait_for_state(held, TaskState.RECEIVED)
        here.worker.process.terminate()
        here.watch.wait_for_state(running, TaskState.SUCCESS)
        here.worker.process.wait(20)
        assert here.look(later=0.0) == [held]
        task = here.watch.wait_for_state(held, TaskState.PENDING)
        assert task.exception == (
            f"its worker shut down before it began the task; its message waits in {here.worker.queue}"
        )
        with running_worker(redis_url, queue=here.worker.queue, hostname="next@shop"):
            assert here.watch.wait_for_state(held, TaskState.SUCCESS).worker == "next@shop"
