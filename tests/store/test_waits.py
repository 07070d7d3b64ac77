"""What a task waited is one number everywhere: in Python, in filters and sorts, in rollups, on both databases."""

import random
from typing import Any

import pytest
import sqlalchemy as sa

from celery_monitor.core.filters.parser import parse
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import Task
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.rollups.flows import read_waits
from celery_monitor.store.rollups.series import read_name_totals, read_series
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.page import find_tasks
from celery_monitor.store.writer import Writer
from tests.core.test_waits import CLIENT
from tests.factories import NOW, make_event, make_id

MINUTE = NOW // 60 * 60
SPAN: dict[str, Any] = {"since": MINUTE - 3600, "until": MINUTE + 3600}


def write(store: Store, *events: Event) -> None:
    arrived = max(event.timestamp for event in events)
    Writer(store, "shop", Settings()).write([Delivery(list(events), arrived)])


def ran(number: int, *, sent: float | None, received: float = NOW, wait: float = 0.5, **fields: object) -> list[Event]:
    """A task of the queue ``payments``; where nobody tells that it was sent, its queue is unknown."""
    task_id = make_id(number)
    told = make_event("task-sent", uuid=task_id, timestamp=sent, hostname=CLIENT, queue="payments", name="shop.pay")
    return [
        *([told] if sent is not None else []),
        make_event("task-received", uuid=task_id, timestamp=received, name="shop.pay", **fields),
        make_event("task-started", uuid=task_id, timestamp=received + wait),
    ]


def some_life(chance: random.Random, number: int) -> list[Event]:
    """Any task: sent or not, with an ETA or not, retried, delivered twice, by clocks that are off."""
    task_id, at = make_id(number), NOW + chance.uniform(0, 3000)
    events = []
    if chance.random() < 0.7:
        sent = at - chance.choice((0.0, 0.3, 70.0, -0.01, -500.0))
        events.append(make_event("task-sent", uuid=task_id, timestamp=sent, hostname=CLIENT, queue="payments"))
    for retries in chance.choice(((0,), (0, 1), (0, 0), (0, 1, 1, 2))):
        eta = chance.choice((None, None, "2026-05-28T20:30:00+00:00", "2026-05-28T20:50:00+00:00"))
        events.append(make_event("task-received", uuid=task_id, timestamp=at, retries=retries, eta=eta))
        if chance.random() < 0.9:
            events.append(make_event("task-started", uuid=task_id, timestamp=at + chance.uniform(0, 30)))
        end = chance.choice(("task-retried", "task-succeeded", "task-lost", None))
        at += 31
        if end is not None:
            events.append(make_event(end, uuid=task_id, timestamp=at, exception="E()", traceback="T"))
        at += chance.uniform(0, 90)
    chance.shuffle(events)
    return events


def find(store: Store, query: str, sort: str = "-received") -> list[Task]:
    page = find_tasks(store, parse(query, NOW), sort=sort, limit=200)
    assert page.next is None
    return page.items


def test_filters_and_sorts_agree_with_what_is_shown(store: Store) -> None:
    chance = random.Random(20_26)
    write(store, *(event for number in range(150) for event in some_life(chance, number)))
    tasks = find(store, "")
    waits = {task.id: task.wait for task in tasks}
    kinds = {task.wait_since for task in tasks}
    assert kinds == {"sent", "eta", "retry", "received", None}
    for limit in (0.5, 5.0, 40.0, 130.0):
        expected = {each for each, wait in waits.items() if wait is not None and wait > limit}
        assert {task.id for task in find(store, f"wait:>{limit}s")} == expected
    order = [task.wait for task in find(store, "", "-wait")]
    assert order == sorted((wait for wait in order if wait is not None), reverse=True) + [None] * order.count(None)


def test_every_run_keeps_what_was_found_out_of_it(store: Store) -> None:
    """A task that is read from the database and changed again goes out of the counters as it had come in."""
    chance = random.Random(11)
    for number in range(12):
        for event in some_life(chance, number):
            write(store, event)
    runs = [run for task in find(store, "") for run in read_task(store, task.id).runs if run.wait is not None]
    since_receipt = 0.0
    for bucket in read_series(store, **SPAN).buckets:
        begun = [run for run in runs if bucket.at <= (run.started or 0.0) < bucket.at + 60]
        assert (bucket.wait is None) == (not begun)
        since_receipt += bucket.wait.since_receipt * len(begun) if bucket.wait else 0.0
    assert round(since_receipt, 6) == sum(run.wait_since == "received" for run in runs) > 0


def test_percentiles_count_from_sending_and_say_what_is_counted_from_receipt(store: Store) -> None:
    write(store, *(event for n in range(30) for event in ran(n, sent=NOW - 60)))
    [wait] = read_waits(store, since=MINUTE - 300).values()
    assert wait.p95 == pytest.approx(60.5, rel=0.02)
    assert wait.since_receipt == 0.0
    write(store, *(event for n in range(30, 40) for event in ran(n, sent=None)))
    [bucket] = [each for each in read_series(store, **SPAN).buckets if each.wait]
    assert bucket.wait is not None
    assert bucket.wait.since_receipt == 0.25
    [total] = read_name_totals(store, **SPAN)
    assert total.wait is not None
    assert total.wait.since_receipt == 0.25


def test_late_task_sent_moves_the_wait_in_the_rollups(store: Store) -> None:
    sent, *rest = ran(1, sent=NOW - 60)
    write(store, *rest)
    write(store, sent)
    [bucket] = [each for each in read_series(store, **SPAN).buckets if each.wait]
    assert bucket.wait is not None
    assert bucket.wait.p50 == pytest.approx(60.5, rel=0.02)
    assert bucket.wait.since_receipt == 0.0


def test_rollups_of_an_older_version_are_counted_from_receipt(store: Store) -> None:
    write(store, *(event for n in range(3) for event in ran(n, sent=None)))
    with store.begin() as connection:
        connection.execute(sa.update(schema.rollup).values(since_receipt=None))
    write(store, *ran(3, sent=NOW - 60))
    with store.begin() as connection:
        connection.execute(sa.update(schema.rollup).where(schema.rollup.c.queue_id == 0).values(since_receipt=None))
    [bucket] = [each for each in read_series(store, **SPAN).buckets if each.wait]
    assert bucket.wait is not None
    assert bucket.wait.since_receipt == 0.75


def test_task_stored_by_an_older_version_keeps_its_wait(store: Store) -> None:
    write(store, *ran(1, sent=NOW - 60))
    with store.begin() as connection:
        connection.execute(sa.update(schema.task).values(ready=None))
    [task] = find(store, "wait:<1s")
    assert (task.wait, task.wait_since) == (0.5, "received")
