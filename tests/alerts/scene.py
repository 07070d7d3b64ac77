"""A record whose rules are judged at given times, as the thread of a receiver judges them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import structs

from celery_monitor.alerts.judge import Judge
from celery_monitor.core.alerts.kinds import DEFAULT_RULES
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.records.alert import Alert, Channel, Rule
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.alerts.facts import BEGAN
from celery_monitor.store.alerts.rules import add_channel, save_rule
from celery_monitor.store.engine import Store, open_store, put_value
from celery_monitor.store.workers import change_workers
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id

CLUSTER = "shop"
DAY = 86400.0
ROUND_SECONDS = 40.0


class Scene:
    """The cluster ``shop``, whose record is a day old, and whose one worker is up."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._number = 0
        with store.begin() as connection:
            put_value(store, connection, f"{BEGAN}{CLUSTER}", repr(NOW - DAY))
        self.write(make_event("worker-heartbeat", hostname="worker1@shop", timestamp=NOW, freq=2.0, active=1))

    def write(self, *events: Event, at: float = NOW, **health: object) -> None:
        """Stores events that came at that time, and what the receiver reports then."""
        given = {"connected": True, "updated_at": at, "last_event_at": at, "lag_seconds": 0.2, **health}
        report = ReceiverHealth(cluster=CLUSTER, **given)  # type: ignore[arg-type]
        Writer(self.store, CLUSTER, Settings()).write([Delivery(events=list(events), arrived=at)], report)

    def run_tasks(self, count: int, at: float, *, failed: int = 0, wait: float = 0.25, run: float = 0.5) -> None:
        """Tasks of shop.pay that end at that time; ``failed`` of them fail."""
        events = []
        for number in range(count):
            self._number += 1
            known: dict[str, object] = {"uuid": make_id(self._number), "hostname": "worker1@shop"}
            began = at - run
            events.append(make_event("task-received", timestamp=began - wait, name="shop.pay", args="()", **known))
            events.append(make_event("task-started", timestamp=began, **known))
            if number < failed:
                trace = "Traceback (most recent call last):\n  File shop/pay.py, in charge\nTimeoutError: 30 s"
                failure = {"exception": "TimeoutError('30 s')", "traceback": trace}
                events.append(make_event("task-failed", timestamp=at, **failure, **known))
            else:
                events.append(make_event("task-succeeded", timestamp=at, runtime=run, result="1", **known))
        self.write(*events, at=at)

    def change_worker(self, status: WorkerStatus, **fields: object) -> None:
        def change(worker: Worker) -> Worker:
            return structs.replace(worker, status=status, **fields)

        change_workers(self.store, CLUSTER, ["worker1@shop"], change)

    def rule(self, name: str, **fields: object) -> Rule:
        """A default rule, changed on the page."""
        return save_rule(self.store, structs.replace(DEFAULT_RULES[name], **fields))

    def channel(self, **fields: object) -> Channel:
        given: dict[str, object] = {"name": "team", "kind": "webhook", "url": "http://127.0.0.1:1/", **fields}
        return add_channel(self.store, Channel(**given))  # type: ignore[arg-type]

    def judge(self, at: float) -> list[Alert]:
        """One round, with a receiver that is caught up; what it makes fire or end."""
        return Judge(self.store, CLUSTER, Settings(), HelperFailures()).judge(at)

    def hold(self, begin: float, seconds: float, refresh: Callable[[float], object] | None = None) -> list[Alert]:
        """Rounds for so long; ``refresh`` writes what is measured again and again."""
        found = []
        for number in range(int(seconds // ROUND_SECONDS) + 1):
            at = begin + number * ROUND_SECONDS
            self.write(at=at)
            if refresh is not None:
                refresh(at)
            found += self.judge(at)
        return found


@contextmanager
def scene(database: str) -> Iterator[Scene]:
    """The scene on an empty record."""
    store = open_store(database)
    yield Scene(store)
    store.close()
