"""Many failed tasks in a record, a queue that nobody serves, and a process that works at jobs until it is killed."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit
from uuid import uuid4

import redis
from kombu import Connection

from celery_monitor.control.bulk import BulkCommand, BulkRetry
from celery_monitor.control.jobs import Runner
from celery_monitor.control.perform import Controller
from celery_monitor.records.event import Event as TaskEvent
from celery_monitor.records.job import Job, JobState
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.jobs import read_job
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id
from tests.workers import wait_for

CLUSTER = "shop"
OLGA = Actor("olga", Role.OPERATOR)
ROOT = Path(__file__).parent.parent.parent


def failure(number: int, queue: str, name: str = "shop.charge", args: str | None = None) -> Iterator[TaskEvent]:
    """A task that was sent to the queue and failed."""
    given = {"uuid": make_id(number), "timestamp": NOW + number}
    texts = {"name": name, "args": args or f"({number},)", "kwargs": "{}", "retries": 0}
    yield make_event("task-sent", queue=queue, exchange="", routing_key=queue, **given, **texts)
    yield make_event("task-received", **given, **texts)
    yield make_event("task-failed", exception="ValueError('no')", traceback="...", **given)


class Shop:
    """A record and a broker on which one queue takes what is sent again."""

    def __init__(self, store: Store, settings: Settings, queue: str) -> None:
        self.store = store
        self.settings = settings
        self.queue = queue
        self.url = settings.broker[0].url
        self.controller = Controller(store, settings)

    def write(self, *events: TaskEvent) -> None:
        Writer(self.store, CLUSTER, self.settings).write([Delivery(events=list(events), arrived=NOW + 10**6)])

    def fail(self, first: int, last: int, **given: str) -> None:
        """Tasks with these numbers, both included, failed."""
        for start in range(first, last + 1, 500):
            numbers = range(start, min(start + 500, last + 1))
            self.write(*(event for number in numbers for event in failure(number, self.queue, **given)))

    def preview(self, command: BulkCommand) -> Job:
        return self.controller.preview(OLGA, command)

    def start(self, command: BulkCommand, actor: Actor = OLGA) -> Job:
        number = self.controller.perform(actor, command).details["job"]
        assert isinstance(number, int)
        return read_job(self.store, number)

    def retry(self, query: str = "state:failed", **given: object) -> Job:
        return self.start(BulkRetry(query=query, **given))  # type: ignore[arg-type]

    def job(self, job: Job) -> Job:
        return read_job(self.store, job.id)

    @contextmanager
    def running(self, lease_seconds: float = 3.0) -> Iterator[Runner]:
        runner = Runner(self.store, self.settings, lease_seconds)
        runner.start()
        try:
            yield runner
        finally:
            runner.stop()

    def wait(self, job: Job, *states: JobState, seconds: float = 60) -> Job:
        wanted = states or (JobState.DONE, JobState.ABORTED, JobState.FAILED)
        wait_for(lambda: self.job(job).state in wanted, seconds, f"job {job.id} as {', '.join(wanted)}")
        return self.job(job)

    def run(self, job: Job) -> Job:
        """Until the job has ended."""
        with self.running():
            return self.wait(job)

    def sent(self) -> Counter[str]:
        """The arguments of every message in the queue, and how often each is there."""
        if self.url.startswith("redis"):
            with closing(redis.Redis.from_url(self.url)) as client:
                ids = [json.loads(each)["headers"]["id"] for each in client.lrange(self.queue, 0, -1)]
                return Counter(ids)
        with Connection(self.url) as connection:
            channel = connection.channel()
            found = Counter[str]()
            while (message := channel.basic_get(self.queue, no_ack=False)) is not None:
                found[message.properties["application_headers"]["id"]] += 1
            channel.close()  # gives all of them back
        return found


@contextmanager
def open_shop(broker_url: str, database_url: str) -> Iterator[Shop]:
    queue = f"bulk-{uuid4().hex[:12]}"
    settings = Settings(broker=(Broker(CLUSTER, broker_url),), database=database_url)
    store = open_store(database_url)
    with queue_at(broker_url, queue):
        yield Shop(store, settings, queue)
    store.close()


@contextmanager
def queue_at(broker_url: str, queue: str) -> Iterator[None]:
    """A queue of RabbitMQ must be there before anything is sent to it."""
    if broker_url.startswith("redis"):
        yield
        return
    with Connection(broker_url) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, auto_delete=False)
        yield
        channel.queue_delete(queue)


@contextmanager
def other_process(settings: Settings, lease_seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Another web process that works at jobs; to be killed."""
    broker = settings.broker[0].url
    assert urlsplit(broker).scheme
    command = [sys.executable, "-m", "tests.control.bulk_shop", broker, settings.database, str(lease_seconds)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


if __name__ == "__main__":
    url, database, seconds = sys.argv[1:]
    given = Settings(broker=(Broker(CLUSTER, url),), database=database)
    Runner(open_store(database), given, float(seconds)).start()
    Event().wait()
