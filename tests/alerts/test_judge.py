"""The threads of judge and sender while nobody uses the dashboard: what they do at once, and what after a pause."""

import threading
import time
from collections.abc import Iterator

import pytest

from celery_monitor.alerts import judge as judging
from celery_monitor.alerts.judge import Judge
from celery_monitor.alerts.sender import AlertSender
from celery_monitor.receiver import pace
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.receiver.pace import Pace
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.settings import Settings
from tests.alerts.listener import Listener, listening
from tests.alerts.scene import CLUSTER, Scene, scene
from tests.workers import wait_for

HOUR = 3600.0


class Watch:
    """Both threads on a record whose receiver is caught up, and a channel that gets their messages."""

    def __init__(self, shop: Scene, there: Listener, judge: Judge) -> None:
        self.shop = shop
        self.there = there
        self.judge = judge

    def wait_for(self, kind: str) -> None:
        wait_for(lambda: kind in [alert["kind"] for each in self.there.requests for alert in each.json["alerts"]])


@pytest.fixture
def watch(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Without a use of the dashboard the threads pause for an hour; the first round has fired the rule of the disk."""
    monkeypatch.setattr(pace, "UNUSED_FACTOR", HOUR)
    monkeypatch.setattr(judging, "UNUSED_SECONDS", HOUR)
    monkeypatch.setattr(pace, "USE_SECONDS", 0.0)
    stop = threading.Event()
    with scene(sqlite_url) as shop, listening() as there:
        unused = Pace(shop.store)
        shop.channel(url=there.address)
        shop.rule("Disk nearly full", bound=1e9)
        shop.write(at=time.time(), report_seconds=HOUR)
        judge = Judge(shop.store, CLUSTER, Settings(), HelperFailures(), unused)
        sender = AlertSender(shop.store, CLUSTER, Settings(), HelperFailures(), unused)
        judge.on_message(sender.wake)
        threads = [threading.Thread(target=each, args=(stop,)) for each in (sender.run, judge.run)]
        for thread in threads:
            thread.start()
        watch = Watch(shop, there, judge)
        try:
            watch.wait_for("disk")
            yield watch
        finally:
            stop.set()
            unused.wake()
            for thread in threads:
                thread.join(60)


def test_worker_that_leaves_is_judged_and_reported_at_once(watch: Watch) -> None:
    watch.shop.rule("No worker", for_seconds=0.0)
    watch.shop.change_worker(WorkerStatus.OFFLINE, offline_at=time.time())
    watch.judge.wake()
    watch.wait_for("no worker")


def test_pending_alert_does_not_wait_for_somebody_who_uses_the_dashboard(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "JUDGE_SECONDS", 0.1)
    watch.shop.rule("No worker", for_seconds=1.0)
    watch.shop.change_worker(WorkerStatus.OFFLINE, offline_at=time.time())
    watch.judge.wake()
    watch.wait_for("no worker")
