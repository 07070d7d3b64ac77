"""A receiver that runs in a thread, as it does in its process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celery_monitor.receiver.ingest import Receiver
from celery_monitor.receiver.pace import Pace
from celery_monitor.receiver.sources import make_source
from celery_monitor.records.receiver import ReceiverHealth
from celery_monitor.records.task import Task
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.receivers import read_receiver_records
from celery_monitor.store.tasks.detail import read_task
from tests.receiver.sources.conftest import delete_queue

RunReceiver = Callable[..., AbstractContextManager[Receiver]]  # an address, a pace, and settings by their names


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    store = open_store(sqlite_url)
    yield store
    store.close()


@pytest.fixture
def receiving(store: Store, tmp_path: Path) -> Iterator[RunReceiver]:
    """``with receiving(url) as receiver``: it receives into ``store``; started again, it is the same receiver."""
    node_id = f"test-{uuid4().hex[:10]}"
    urls = set()

    @contextmanager
    def run(url: str, pace: Pace | None = None, **more: Any) -> Iterator[Receiver]:
        urls.add(url)
        settings = Settings(node_id=node_id, spool_dir=f"{tmp_path}/spool", **{"batch_seconds": 0.05} | more)
        receiver = Receiver(store, make_source(Broker("shop", url), settings), "shop", settings, pace=pace)
        stop = threading.Event()
        thread = threading.Thread(target=receiver.run, args=(stop,))
        thread.start()
        try:
            yield receiver
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive()

    yield run
    for url in urls:
        if url.startswith("amqp"):
            delete_queue(f"celeryev.{node_id}")


def connected(receiver: Receiver) -> Callable[[], bool]:
    return lambda: receiver.health.connected


def health(store: Store) -> ReceiverHealth:
    return read_receiver_records(store)[0]


def task(store: Store, task_id: str) -> Task:
    return read_task(store, task_id)
