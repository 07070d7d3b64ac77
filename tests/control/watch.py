"""A cluster under watch for tests: a real source feeding a real record, and a controller beside them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery_monitor.control.bulk import BulkCommand
from celery_monitor.control.commands import Command, Performed
from celery_monitor.control.perform import Controller
from celery_monitor.errors import NotFound
from celery_monitor.receiver.sources import make_source
from celery_monitor.records.job import Job
from celery_monitor.records.page import Action
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.page import count_states
from celery_monitor.store.workers import read_workers
from celery_monitor.store.writer import Writer
from tests.databases import empty_record
from tests.workers import Worker, wait_for

CLUSTER = "shop"
OPERATOR = Actor("olga", Role.OPERATOR)


@dataclass
class Watch:
    """What a test needs of a watched cluster."""

    store: Store
    settings: Settings

    def perform(self, command: Command, actor: Actor = OPERATOR) -> Performed:
        return Controller(self.store, self.settings).perform(actor, command)

    def preview(self, command: BulkCommand, actor: Actor = OPERATOR) -> Job:
        return Controller(self.store, self.settings).preview(actor, command)

    def wait_for(self, task_id: str, *states: TaskState) -> Task:
        """The task, once the record has it in one of these states."""

        def found() -> Task | None:
            try:
                return read_task(self.store, task_id, CLUSTER)
            except NotFound:
                return None

        def reached() -> Task | None:
            return task if (task := found()) and task.state in states else None

        try:
            task: Task = wait_for(reached, what=f"{task_id} as {', '.join(states)}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {found()}") from None
        return task

    def wait_for_worker(self, worker: Worker) -> None:
        def known() -> bool:
            return worker.hostname in {each.hostname for each in read_workers(self.store, CLUSTER)}

        wait_for(known, what=f"{worker.hostname} in the record")

    def last_action(self) -> Action:
        return read_actions(self.store, limit=1).items[0]

    def action_count(self) -> int:
        return len(read_actions(self.store, limit=100).items)

    def task_count(self) -> int:
        return sum(count_states(self.store, CLUSTER).values())


def make_settings(broker_url: str, directory: Path, **given: object) -> Settings:
    values: dict[str, object] = {
        "broker": (Broker(CLUSTER, broker_url),),
        "database": f"sqlite:///{directory}/record.db",
        "node_id": f"watch-{directory.name}",
        "event_queue_ttl": 60.0,
        **given,
    }
    return Settings(**values)  # type: ignore[arg-type]


@contextmanager
def watching(broker_url: str, directory: Path, **given: object) -> Iterator[Watch]:
    """Events of the broker go into a record of their own until the end of the block."""
    settings = make_settings(broker_url, directory, **given)
    empty_record(directory)
    store = open_store(settings.database)
    source = make_source(settings.broker[0], settings)
    source.connect()
    stop = threading.Event()

    def feed() -> None:
        writer = Writer(store, CLUSTER, settings)
        while not stop.is_set():
            delivery = source.read(0.05)
            if delivery.events:
                writer.write([delivery])
            source.acknowledge()
            writer.conclude_removals(time.time())

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield Watch(store, settings)
    finally:
        stop.set()
        thread.join()
        source.close()
        store.close()
