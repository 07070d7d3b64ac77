"""A receiver with its sampler and its reconciler, on a real broker and a database of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from celery_monitor.brokers.remote import Remote
from celery_monitor.brokers.transports import make_probe
from celery_monitor.errors import NotFound
from celery_monitor.receiver.ingest import Receiver
from celery_monitor.receiver.pace import Pace
from celery_monitor.receiver.reconcile import Reconciler
from celery_monitor.receiver.sampler import Sampler
from celery_monitor.receiver.sources import make_source
from celery_monitor.records.event import Event
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.worker import Worker
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.queues import read_queues
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.workers import read_workers
from tests.databases import empty_record
from tests.receiver.sources.conftest import delete_queue
from tests.workers import wait_for

CLUSTER = "shop"


@dataclass
class Watching:
    """What watches one broker."""

    store: Store
    receiver: Receiver
    sampler: Sampler
    reconciler: Reconciler
    notices: list[str] = field(default_factory=list)
    concluded: list[Event] = field(default_factory=list)  # all that was found out by judging

    def task(self, task_id: str) -> Task | None:
        try:
            return read_task(self.store, task_id, CLUSTER)
        except NotFound:
            return None

    def worker(self, hostname: str) -> Worker | None:
        return next((each for each in read_workers(self.store, CLUSTER) if each.hostname == hostname), None)

    def queue(self, name: str) -> Queue | None:
        return next((each for each in read_queues(self.store, CLUSTER) if each.name == name), None)

    def wait_for_state(self, task_id: str, state: TaskState) -> Task:
        def reached() -> Task | None:
            task = self.task(task_id)
            return task if task is not None and task.state is state else None

        task: Task = wait_for(reached, what=f"{state} of {task_id}")
        return task


@contextmanager
def watching(url: str, directory: Path, **changes: object) -> Iterator[Watching]:
    """Everything a receiver process runs, in threads, on a fresh SQLite file."""
    given: dict[str, object] = {"node_id": f"test-{uuid4().hex[:8]}", "sample_seconds": 0.3, "inspect_seconds": 2.0}
    given["spool_dir"] = f"{directory}/spool"
    settings = Settings(**{**given, **changes})  # type: ignore[arg-type]
    broker = Broker(CLUSTER, url)
    store = open_store(empty_record(directory, f"{uuid4().hex}.db"))
    pace = Pace()
    receiver = Receiver(store, make_source(broker, settings), CLUSTER, settings, pace=pace)
    remote = Remote(broker, settings)
    notices: list[str] = []
    sampler = Sampler(store, CLUSTER, make_probe(broker, settings), remote, settings, notices.append, pace=pace)
    receiver.on_new_worker(sampler.wake)
    concluded: list[Event] = []

    def conclude(delivery: Delivery) -> None:
        concluded.extend(delivery.events)
        receiver.conclude(delivery)

    reconciler = Reconciler(store, CLUSTER, remote, lambda: receiver.health, conclude, pace=pace)
    stop = threading.Event()
    runs = (receiver.run, sampler.run, sampler.run_queues, sampler.run_schedules, reconciler.run)
    threads = [threading.Thread(target=each, args=(stop,)) for each in runs]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: receiver.health.connected, what="the connection of the receiver")
        yield Watching(store, receiver, sampler, reconciler, notices, concluded)
    finally:
        stop.set()
        pace.wake()
        for thread in threads:
            thread.join(60)
        store.close()
        if url.startswith("amqp"):  # or it would store the events of every later test, for a day
            delete_queue(f"celeryev.{settings.node_id}")
