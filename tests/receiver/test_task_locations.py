"""Started and waiting tasks of which no event comes: asked for on real brokers, with real workers."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis
from celery import Celery

from celery_monitor.brokers.remote import Remote
from celery_monitor.brokers.transports import make_probe
from celery_monitor.receiver.lost_tasks import AGAIN_SECONDS
from celery_monitor.receiver.task_locations import (
    LONGEST_REST,
    TIMES_SILENT,
    WAITING_SECONDS,
    StartedCheck,
    TaskLocations,
    WaitingCheck,
)
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.tasks.unfinished import tasks_by_process
from celery_monitor.store.workers import read_workers
from tests.factories import make_event
from tests.receiver.watching import CLUSTER, Watching, watching
from tests.workers import Worker, running_worker, wait_for

pytestmark = pytest.mark.timeout(180)
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
        self.probe = make_probe(broker, given)
        self.check = WaitingCheck(TaskLocations(watch.store, Remote(broker, given), self.probe, self._conclude))

    def _conclude(self, delivery: Delivery) -> None:
        self.concluded += delivery.events
        self.watch.receiver.conclude(delivery)

    def send(self, queue: str, *args: object, **options: object) -> str:
        """A task that waits, by the record."""
        task_id = self.worker.send("add", *args, queue=queue, **options)
        self.watch.wait_for_state(task_id, TaskState.PENDING)
        return task_id

    def look(self, later: float = WAITING_SECONDS + 20.0) -> list[str]:
        """One round, so much later; the ids of the tasks of which anything was concluded."""
        before = len(self.concluded)
        workers = read_workers(self.watch.store, CLUSTER)
        self.now = max(self.now + LONGEST_REST, time.time() + later)
        processes = tasks_by_process(self.watch.store, CLUSTER)
        self.check.step(workers, processes, self.now)
        self.check.step(workers, processes, self.now + AGAIN_SECONDS)
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
                looking.probe.close()
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
        assert here.look(later=WAITING_SECONDS - 20) == []  # too early
        assert sorted(here.look()) == sorted([refused, gone, expired])
        lost = here.watch.wait_for_state(refused, TaskState.LOST)
        assert lost.exception is not None
        assert f"no worker that consumes {here.worker.queue} has the task: checked twice, 5 s apart" in lost.exception
        assert "or a worker rejected it" in lost.exception
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
        release = tmp_path / "release"
        running, held = here.worker.send("hold", str(release)), here.worker.send("add", 8, 9)
        here.watch.wait_for_state(running, TaskState.STARTED)
        here.watch.wait_for_state(held, TaskState.RECEIVED)
        here.worker.process.terminate()
        wait_for(lambda: "Warm shutdown" in here.worker.log, what="the shutdown")
        release.touch()
        here.watch.wait_for_state(running, TaskState.SUCCESS)
        here.worker.process.wait(60)
        assert here.look(later=0.0) == [held]
        task = here.watch.wait_for_state(held, TaskState.PENDING)
        assert task.exception == (
            f"its worker shut down before starting the task; its message waits in {here.worker.queue}"
        )
        with running_worker(redis_url, queue=here.worker.queue, hostname="next@shop"):
            assert here.watch.wait_for_state(held, TaskState.SUCCESS).worker == "next@shop"


def ask(watch: Watching, check: StartedCheck, now: float) -> None:
    processes = tasks_by_process(watch.store, CLUSTER)
    check.step(read_workers(watch.store, CLUSTER), processes, now)


def ask_until_ended(watch: Watching, check: StartedCheck, task_id: str) -> None:
    """A worker may be too busy to answer: then it is asked again."""
    later = iter(range(110, 9000, 40))
    now = time.time()

    def ended() -> bool:
        ask(watch, check, now + next(later))
        task = watch.task(task_id)
        return task is not None and task.state is not TaskState.STARTED

    wait_for(ended, what=f"the end of {task_id}")


def make_check(url: str, watch: Watching, **settings: object) -> StartedCheck:
    given = Settings(**settings)  # type: ignore[arg-type]
    broker = Broker(CLUSTER, url)
    probe = make_probe(broker, given)
    return StartedCheck(TaskLocations(watch.store, Remote(broker, given), probe, watch.receiver.conclude))


def test_task_that_its_worker_no_longer_knows_is_lost_and_one_that_runs_is_not(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        ignored, running = worker.send("ignore"), worker.send("sleep", 100)
        begun = [watch.wait_for_state(each, TaskState.STARTED) for each in (ignored, running)]
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.pid)
        wait_for(lambda: "raised" in worker.log or "ignored" in worker.log, what="the end of the first")
        check = make_check(broker_url, watch)
        now = time.time()
        ask(watch, check, now + 20)  # too soon after the start
        ask(watch, check, now + 70)
        ask(watch, check, now + 80)  # too soon after the first question
        assert watch.wait_for_state(ignored, TaskState.STARTED).exception is None
        ask_until_ended(watch, check, ignored)
        lost = watch.wait_for_state(ignored, TaskState.LOST)
        assert lost.exception is not None
        assert f"{worker.hostname} (process {worker.pid}) is up and no longer has the task" in lost.exception
        ask(watch, check, now + 9000)
        ask(watch, check, now + 9100)
        assert watch.wait_for_state(running, TaskState.STARTED).exception is None
        late = make_event(
            "task-succeeded",
            timestamp=(begun[0].started or now) + 1,
            hostname=worker.hostname,
            pid=worker.pid,
            uuid=ignored,
            result="'late'",
        )
        watch.receiver.conclude(Delivery(events=[late], arrived=time.time()))
        assert watch.wait_for_state(ignored, TaskState.SUCCESS).result == "'late'"
        worker.kill()


def test_while_the_result_backend_is_silent_nothing_is_lost_at_once(redis_url: str, tmp_path: Path) -> None:
    away = (Broker(CLUSTER, "redis://127.0.0.1:1/0"),)
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url) as worker:
        ignored = worker.send("ignore")
        watch.wait_for_state(ignored, TaskState.STARTED)
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.pid)
        wait_for(lambda: "ignored" in worker.log, what="the end of the task")
        check, now = make_check(redis_url, watch, result_backend=away), time.time()
        for number in range(TIMES_SILENT - 1):
            ask(watch, check, now + 100 + 40 * number)
        watch.wait_for_state(worker.send("add", 1, 2), TaskState.SUCCESS)  # stored after what would be concluded
        assert watch.wait_for_state(ignored, TaskState.STARTED).exception is None
        ask_until_ended(watch, check, ignored)
        assert "the result backend does not answer" in (watch.wait_for_state(ignored, TaskState.LOST).exception or "")


def test_end_that_was_missed_is_taken_from_the_result_backend(redis_url: str, tmp_path: Path) -> None:
    config = {"result_backend": redis_url}
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, config=config) as worker:
        good, bad = worker.send("add", 20, 3), worker.send("fail", "no such order")
        ends = ((good, TaskState.SUCCESS), (bad, TaskState.FAILURE))
        known = {each: watch.wait_for_state(each, state) for each, state in ends}
        missed = {each: f"{each}-missed" for each in known}
        for each, name in missed.items():  # the same again, as when the ends had come in a gap
            started = (known[each].started or 0.0) + 1  # said after the result was stored, as of a short task
            events = [
                make_event(kind, timestamp=started, hostname=worker.hostname, pid=worker.pid, uuid=name, name="basic.x")
                for kind in ("task-received", "task-started")
            ]
            watch.receiver.conclude(Delivery(events=events, arrived=time.time()))
            backend = worker.app.backend
            with closing(redis.Redis.from_url(redis_url)) as client:
                client.copy(backend.get_key_for_task(each), backend.get_key_for_task(name))
            watch.wait_for_state(name, TaskState.STARTED)
        check = make_check(redis_url, watch, result_backend=(Broker(CLUSTER, redis_url),))
        ask_until_ended(watch, check, missed[bad])
        assert watch.wait_for_state(missed[good], TaskState.SUCCESS).result == "23"
        failed = watch.wait_for_state(missed[bad], TaskState.FAILURE)
        assert failed.exception == known[bad].exception
        assert "no such order" in (failed.traceback or "")
        assert len(failed.runs) == 1
