"""Alerts of real workers on a real broker, from the cause to what Alertmanager gets; the log has the seconds."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import datetime
from typing import Any

import pytest

from celery_monitor.core.alerts.kinds import DEFAULT_RULES
from celery_monitor.records.alert import Channel, Rule, Severity
from celery_monitor.store.alerts.facts import BEGAN
from celery_monitor.store.alerts.rules import add_channel, save_rule
from celery_monitor.store.engine import Store, open_store, put_value
from tests.alerts.listener import Listener, listening
from tests.databases import empty_record
from tests.faults.receivers import CLUSTER, Record, receiving
from tests.workers import Worker, running_worker, wait_for

log = logging.getLogger(__name__)
FAST = {"for_seconds": 0.0, "cooldown": 0.0}


class Shop:
    """A worker, a receiver in its own process, and a listener that is its only channel."""

    def __init__(self, store: Store, worker: Worker, there: Listener) -> None:
        self.store = store
        self.worker = worker
        self.there = there

    def rule(self, kind: str, **fields: Any) -> None:
        save_rule(self.store, Rule(name=kind, kind=kind, severity=Severity.CRITICAL, **{**FAST, **fields}))

    def wait_for(self, kind: str, state: str, since: float, words: str = "", seconds: float = 90) -> str:
        """The sentence of an alert that was sent; logs the seconds since the cause."""

        def arrived() -> str | None:
            for request in list(self.there.requests):
                for alert in request.json:
                    over = datetime.fromisoformat(alert["endsAt"]).timestamp() <= time.time()
                    text = str(alert["annotations"]["summary"])
                    if alert["labels"]["kind"] == kind and over == (state == "resolved") and words in text:
                        return text
            return None

        text: str = wait_for(arrived, seconds, f"{kind} {state}")
        log.info("%s %s %.1f s after its cause: %s", kind, state, time.time() - since, text)
        return text


@pytest.fixture(scope="module")
def shop(redis_service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("alerts")
    database = empty_record(folder)
    with ExitStack() as stack:
        there = stack.enter_context(listening())
        store = stack.enter_context(closing(open_store(database)))
        with store.begin() as connection:
            put_value(store, connection, f"{BEGAN}{CLUSTER}", "0.0")
        for rule in DEFAULT_RULES.values():  # each test has a rule of its own, without patience
            save_rule(store, Rule(name=rule.name, kind=rule.kind, enabled=False))
        # It groups for itself, so no digest waits, and the seconds are those of the alert alone.
        add_channel(store, Channel(name="team", kind="alertmanager", url=there.address))
        worker = stack.enter_context(running_worker(redis_service, concurrency=2))
        options = ("--sample-seconds", "0.5", "--inspect-seconds", "2", "--public-url", "https://m.example.com")
        program = stack.enter_context(receiving(redis_service, database, folder, "receiver", *options))
        Record(store).wait_for_leader(program)
        yield Shop(store, worker, there)


def test_new_failure_and_many_failures(shop: Shop) -> None:
    shop.rule("new failure")
    shop.rule("many failures", bound=7.0)
    since = time.time()
    for _ in range(12):
        shop.worker.send("fail", "no stock")
    assert "basic.fail" in shop.wait_for("new failure", "firing", since)
    assert "12 failures in 15 min" in shop.wait_for("many failures", "firing", since, "12 failures")


def test_queue_depth_and_one_without_consumer(shop: Shop) -> None:
    shop.rule("queue without consumer", scope="queue:orphan-*")
    shop.rule("queue depth", bound=5.0, scope="queue:orphan-*")
    since = time.time()
    for number in range(9):
        shop.worker.send("add", number, 1, queue="orphan-alerts")
    assert "orphan-alerts has" in shop.wait_for("queue without consumer", "firing", since)
    shop.wait_for("queue depth", "firing", since)
    with shop.worker.app.connection_for_write() as connection:
        connection.default_channel.queue_purge("orphan-alerts")
    since = time.time()
    shop.wait_for("queue depth", "resolved", since)
    shop.wait_for("queue without consumer", "resolved", since)


def test_task_that_runs_long_and_one_that_does_not_succeed(shop: Shop) -> None:
    shop.rule("slow run", bound=0.05, scope="name:basic.sleep")
    shop.rule("no success", window=60.0, scope="name:basic.nightly")
    since = time.time()
    for _ in range(20):
        shop.worker.send("sleep", 0.2)
    assert "basic.nightly has not succeeded for" in shop.wait_for("no success", "firing", since)
    assert "basic.sleep: p95 run time is 0.2 s" in shop.wait_for("slow run", "firing", since)


def test_worker_that_is_killed_is_silent_and_its_task_lost(shop: Shop) -> None:
    """The last test of the worker: it is gone then."""
    for kind in ("silent worker", "tasks lost"):
        shop.rule(kind)
    shop.worker.send("sleep", 600)
    wait_for(lambda: "basic.sleep" in shop.worker.log, 30, "the start of the task")
    shop.worker.kill()
    since = time.time()
    shop.wait_for("silent worker", "firing", since)
    with running_worker(shop.worker.app.conf.broker_url, hostname=shop.worker.hostname):
        since = time.time()
        shop.wait_for("silent worker", "resolved", since)
        assert "1 task is lost" in shop.wait_for("tasks lost", "firing", since)
