"""A small record of a shop's cluster, and the application that shows it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from argon2 import PasswordHasher
from starlette.applications import Starlette

from celery_monitor.records.event import Event
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import save_queues
from celery_monitor.store.receivers import close_gap, open_gap
from celery_monitor.store.writer import Writer
from celery_monitor.web.app import create_app
from tests.factories import make_event, make_id

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
BASE = "http://127.0.0.1:5757"
PROBABLE = make_id(101)  # failed; its arguments can be read back
TRUNCATED = make_id(102)  # failed; its arguments were cut
SUCCEEDED = make_id(103)
RUNNING = make_id(104)
ODD = "shop/odd ü?id#100%/retry"
TRACEBACK = 'Traceback (most recent call last):\n  File "/srv/shop/pay.py", line 7, in charge\nTimeoutError: 30 s\n'


def user(name: str, role: str, password: str) -> str:
    """An entry of ``basic_auth`` whose hash is quick to check."""
    return f"{name}:{role}:{QUICK.hash(password)}"


@contextmanager
def serving(settings: Settings, database_url: str) -> Iterator[Starlette]:
    """The dashboard on this database."""
    app = create_app(replace(settings, database=database_url))
    yield app
    app.state.runner.stop()
    app.state.store.close()


def events_of(
    task_id: str,
    at: float,
    end: str | None = None,
    args: str = "(31, 'EUR')",
    kwargs: str | None = "{}",
    **more: object,
) -> list[Event]:
    """A task that was sent, received and started, and perhaps ended."""
    known = {"uuid": task_id, "name": "shop.pay.charge", "args": args, "kwargs": kwargs, "retries": 0}
    events = [
        make_event("task-sent", timestamp=at, hostname="gen7@web", queue="payments", routing_key="payments", **known),
        make_event("task-received", timestamp=at + 0.5, **known),
        make_event("task-started", timestamp=at + 1.5, uuid=task_id),
    ]
    if end:
        events.append(make_event(f"task-{end}", timestamp=at + 3.5, uuid=task_id, **more))
    return events


def fill(store: Store, now: float | None = None) -> None:
    """Five tasks of the cluster ``shop``, its worker, queue and receiver."""
    now = time.time() if now is None else now
    failed = {"exception": "TimeoutError('30 s')", "traceback": TRACEBACK}
    events = [
        make_event("worker-online", timestamp=now - 60, freq=2.0, sw_ver="5.7.0"),
        *events_of(PROBABLE, now - 50, "failed", **failed),
        *events_of(TRUNCATED, now - 40, "failed", args="('aaa...',)", **failed),
        *events_of(SUCCEEDED, now - 30, "succeeded", result="'paid'", runtime=1.75),
        *events_of(RUNNING, now - 20),
        *events_of(ODD, now - 10, "succeeded", result="None", runtime=2.0),
    ]
    health = ReceiverHealth(cluster="shop", connected=True, source="redis", last_event_at=now - 7, events_total=19)
    Writer(store, "shop", Settings()).write([Delivery(events=events, arrived=now)], health)
    save_queues(store, "shop", [Queue(cluster="shop", name="payments", ready=12, sampled_at=now)], now)
    gap = open_gap(store, "shop", now - 500, "broker was away")
    close_gap(store, gap, now - 450, dropped=3)
