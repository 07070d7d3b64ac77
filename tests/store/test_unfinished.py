"""What workers hold: the newest of each state, and of whom not all was read."""

import pytest

from celery_monitor.records.receiver import Delivery
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.unfinished import MOST_RECEIVED, MOST_STARTED, read_active_tasks
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id


def fill(store: Store, state: str, most: int) -> list[Worker]:
    """Five tasks of one worker that are older than the ``most`` of another but for one; two of a third are newest."""
    writer = Writer(store, "shop", Settings())
    names = ["old@shop"] * 5 + ["new@shop"] * (most - 3) + ["few@shop"] * 2
    events = [
        make_event(f"task-{state}", uuid=make_id(number), hostname=name, name="shop.pick", timestamp=NOW + number / 100)
        for number, name in enumerate(names)
    ]
    writer.write([Delivery(events, NOW + 60)])
    return [
        Worker(cluster="shop", hostname=name, status=WorkerStatus.ONLINE)
        for name in ("old@shop", "new@shop", "few@shop")
    ]


@pytest.mark.parametrize(("state", "most"), [("started", MOST_STARTED), ("received", MOST_RECEIVED)])
def test_workers_with_more_tasks_than_were_read_are_named(store: Store, state: str, most: int) -> None:
    held = read_active_tasks(store, fill(store, state, most), NOW + 100)
    partly = {"started": held.partly_started, "received": held.partly_received}
    assert partly.pop(state) == {("shop", "old@shop")}
    assert not any(partly.values())
    assert [task.worker for task in held.tasks].count("old@shop") == 1
    assert [task.worker for task in held.tasks].count("few@shop") == 2


def test_where_all_tasks_were_read_no_worker_is_named(store: Store) -> None:
    held = read_active_tasks(store, fill(store, "started", 20), NOW + 100)
    assert [task.worker for task in held.tasks].count("old@shop") == 5
    assert held.partly_started == held.partly_received == frozenset()
