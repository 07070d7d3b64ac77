"""The preview of a rule on the last day is what the thread would have judged."""

from celery_monitor.core.alerts.kinds import DEFAULT_RULES, KINDS
from celery_monitor.records.alert import Rule
from celery_monitor.records.queue import Queue
from celery_monitor.store.alerts.history import would_have_fired
from celery_monitor.store.queues import save_queues
from celery_monitor.store.receivers import close_gap, open_gap
from celery_monitor.store.workers import save_worker_starts
from tests.alerts.scene import CLUSTER, Scene, scene
from tests.factories import NOW, make_event, make_id

HOUR = 3600.0


def hours(shop: Scene, rule: Rule) -> list[float]:
    """Hours before now at which a rule would have fired, to a tenth."""
    found = would_have_fired(shop.store, CLUSTER, rule, NOW)
    return [round((NOW - (alert.fired_at or 0.0)) / HOUR, 1) for alert in found]


def fill(shop: Scene) -> None:
    """A day of hourly traffic with one hour of failures, a slow one, and a gap."""
    for hour in range(30, 0, -1):
        shop.run_tasks(24, NOW - hour * HOUR, failed=12 if hour == 7 else 0, run=9.0 if hour == 4 else 0.5)
    lost: dict[str, object] = {"uuid": make_id(9071), "hostname": "worker1@shop"}
    at = NOW - 6 * HOUR
    shop.write(make_event("task-received", timestamp=at - 60, name="shop.mail", **lost), at=at)
    shop.write(make_event("task-lost", timestamp=at, exception="gone", **lost), at=at)
    gap = open_gap(shop.store, CLUSTER, NOW - 2.5 * HOUR, "the broker was away")
    close_gap(shop.store, gap, NOW - 2.4 * HOUR)
    for before, ready in ((5.0, 10_001), (4.95, 10_001), (4.9, 10_001), (4.85, 3)):
        for minute in range(3):
            at = NOW - before * HOUR + minute * 60
            queue = Queue(cluster=CLUSTER, name="payments", ready=ready, consumers=0 if ready == 3 else 1)
            save_queues(shop.store, CLUSTER, [queue], at)
    with shop.store.begin() as connection:
        starts = [("worker1@shop", NOW - 3 * HOUR + 60 * number) for number in range(4)]
        save_worker_starts(shop.store, connection, 1, starts)


def test_each_kind_with_a_history_says_when_its_rule_would_have_fired(sqlite_url: str) -> None:
    with scene(sqlite_url) as shop:
        fill(shop)
        found = {rule.kind: hours(shop, rule) for rule in DEFAULT_RULES.values() if KINDS[rule.kind].history}
        found["no success"] = hours(shop, Rule(name="D", kind="no success", window=1800.0, scope="name:shop.*"))
    assert len(found.pop("no success")) == 23  # half an hour after each, but for the one of the gap
    assert found == {
        "new failure": [7.0],
        "regressed failure": [],
        "many failures": [],
        "failure share": [6.9],
        "slow wait": [],
        "slow run": [3.9],
        "queue depth": [4.9],
        "queue age": [],
        "growing queue": [],
        "queue without consumer": [4.8],
        "restarting worker": [2.9],
        "tasks lost": [6.0],
        "gap": [2.5],
    }


def test_lost_tasks_of_another_name_are_outside_the_scope_of_a_preview(sqlite_url: str) -> None:
    with scene(sqlite_url) as shop:
        fill(shop)
        rules = [Rule(name="L", kind="tasks lost", scope=scope) for scope in ("name:shop.mail", "name:shop.pay")]
        assert [len(hours(shop, rule)) for rule in rules] == [1, 0]


def test_gap_accuses_nobody_in_a_preview_either(sqlite_url: str) -> None:
    with scene(sqlite_url) as shop:
        shop.run_tasks(2, NOW - 7 * HOUR, failed=1)
        gap = open_gap(shop.store, CLUSTER, NOW - 7.1 * HOUR, "the broker was away")
        close_gap(shop.store, gap, NOW - 6 * HOUR)
        assert hours(shop, DEFAULT_RULES["New failure"]) == []
