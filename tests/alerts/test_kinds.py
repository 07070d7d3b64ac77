"""Each kind of rule fires and ends on a real record, at the right time and with the right words."""

from collections.abc import Callable, Iterator

import pytest

from celery_monitor.core.alerts.kinds import KINDS
from celery_monitor.core.health.judgement import findings
from celery_monitor.records.alert import Alert, AlertState, Rule, Severity
from celery_monitor.records.failure import FailureState
from celery_monitor.records.queue import Pause, Queue
from celery_monitor.records.schedule import BeatHealth, OverdueEntry
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.alerts.rules import save_rule
from celery_monitor.store.alerts.states import read_alerts
from celery_monitor.store.health import read_facts
from celery_monitor.store.queues import save_pause, save_queues
from celery_monitor.store.receivers import close_gap, open_gap
from celery_monitor.store.rollups.failures import read_failure_groups, set_failure_state
from celery_monitor.store.schedule import save_beat_health
from celery_monitor.store.workers import save_worker_starts
from tests.alerts.scene import CLUSTER, Scene, scene
from tests.factories import NOW, make_event, make_id


@pytest.fixture
def shop(sqlite_url: str) -> Iterator[Scene]:
    with scene(sqlite_url) as opened:
        yield opened


def one(alerts: list[Alert], name: str) -> Alert:
    """The only alert of a rule among those that changed."""
    (found,) = [alert for alert in alerts if alert.rule == name]
    return found


def fires(alerts: list[Alert], name: str, *words: str) -> Alert:
    alert = one(alerts, name)
    assert alert.state is AlertState.FIRING
    for each in words:
        assert each in alert.measured.text
    return alert


def ends(alerts: list[Alert], name: str) -> None:
    assert one(alerts, name).state is AlertState.RESOLVED


def none(alerts: list[Alert], name: str) -> bool:
    return all(alert.rule != name for alert in alerts)


def test_new_failure(shop: Scene) -> None:
    shop.run_tasks(2, NOW, failed=1)
    alert = fires(shop.judge(NOW + 1), "New failure", "New: TimeoutError in shop.pay.")
    assert (alert.measured.path, alert.measured.about["name"]) == (f"/failures/{alert.measured.subject}", "shop.pay")
    assert "TimeoutError: 30 s" in alert.detail
    assert none(shop.judge(NOW + 2), "New failure")
    shop.write(at=NOW + 905)
    ends(shop.judge(NOW + 905), "New failure")


def test_regressed_failure(shop: Scene) -> None:
    shop.run_tasks(1, NOW - 3600, failed=1)
    (group,) = read_failure_groups(shop.store, since=NOW - 7200)
    set_failure_state(shop.store, group.id, FailureState.RESOLVED, NOW - 60)
    assert none(shop.judge(NOW), "Regressed failure")
    shop.run_tasks(1, NOW + 5, failed=1)
    fires(shop.judge(NOW + 6), "Regressed failure", "Back again: TimeoutError in shop.pay.")
    set_failure_state(shop.store, group.id, FailureState.MUTED, NOW + 7)
    ends(shop.judge(NOW + 8), "Regressed failure")


def test_many_failures(shop: Scene) -> None:
    shop.rule("Many failures of one cause", bound=7.0)
    shop.run_tasks(7, NOW, failed=7)
    assert none(shop.judge(NOW + 1), "Many failures of one cause")
    shop.run_tasks(1, NOW + 2, failed=1)
    alert = fires(shop.judge(NOW + 3), "Many failures of one cause", "TimeoutError in shop.pay: 8 failures in 15 min.")
    assert alert.measured.value == 8
    shop.write(at=NOW + 1000)
    ends(shop.judge(NOW + 1000), "Many failures of one cause")


def test_failure_share(shop: Scene) -> None:
    shop.run_tasks(60, NOW - 5 * 3600, failed=3)
    shop.run_tasks(24, NOW, failed=6)
    found = shop.hold(NOW + 1, 80)
    fires(found, "Task fails more than usual", "shop.pay: 6 of 24 runs failed in 15 min (25%; usually 5%).")
    shop.write(at=NOW + 1000)
    ends(shop.judge(NOW + 1000), "Task fails more than usual")


def test_usual_share_of_failures_accuses_nobody(shop: Scene) -> None:
    shop.run_tasks(60, NOW - 5 * 3600, failed=12)
    shop.run_tasks(24, NOW, failed=6)
    assert none(shop.hold(NOW + 1, 80), "Task fails more than usual")


def test_slow_wait(shop: Scene) -> None:
    shop.run_tasks(60, NOW - 5 * 3600, wait=2.0)
    shop.run_tasks(24, NOW, wait=30.0)
    fires(
        shop.hold(NOW + 1, 120), "Task waits longer than usual", "shop.pay: p95 wait is", "over 15 min; usually 2.0 s."
    )
    shop.write(at=NOW + 1000)
    ends(shop.judge(NOW + 1000), "Task waits longer than usual")


def test_slow_run_above_a_bound(shop: Scene) -> None:
    shop.rule("Task runs longer than usual", bound=4.0, for_seconds=0.0, scope="name:shop.*")
    shop.run_tasks(24, NOW, run=3.0)
    assert none(shop.judge(NOW + 1), "Task runs longer than usual")
    shop.run_tasks(24, NOW + 2, run=7.0)
    fires(shop.judge(NOW + 3), "Task runs longer than usual", "shop.pay: p95 run time is")
    shop.write(at=NOW + 1000)
    ends(shop.judge(NOW + 1000), "Task runs longer than usual")


def test_no_success(shop: Scene) -> None:
    save_rule(shop.store, Rule(name="Daily", kind="no success", window=3600.0, scope="name:shop.pay"))
    shop.run_tasks(1, NOW - 3700)
    shop.write(at=NOW)
    fires(shop.judge(NOW), "Daily", "shop.pay has not succeeded for 1 h.")
    shop.run_tasks(1, NOW + 5)
    ends(shop.judge(NOW + 6), "Daily")


def test_no_success_of_a_task_that_was_never_seen_counts_from_the_beginning(shop: Scene) -> None:
    save_rule(shop.store, Rule(name="Daily", kind="no success", window=3600.0, scope="name:shop.nightly"))
    fires(shop.judge(NOW), "Daily", "shop.nightly has not succeeded for 24 h.")


def test_no_success_counts_from_the_end_of_a_gap(shop: Scene) -> None:
    save_rule(shop.store, Rule(name="Daily", kind="no success", window=3600.0, scope="name:shop.pay"))
    shop.run_tasks(1, NOW - 3700)
    gap = open_gap(shop.store, CLUSTER, NOW - 3000, "the broker was away")
    close_gap(shop.store, gap, NOW - 2900)
    shop.write(at=NOW)
    assert none(shop.judge(NOW), "Daily")


def sample(shop: Scene, **fields: object) -> Callable[[float], None]:
    def write(at: float) -> None:
        given: dict[str, object] = {"cluster": CLUSTER, "name": "payments", "consumers": 1, "sampled_at": at, **fields}
        save_queues(shop.store, CLUSTER, [Queue(**given)], at)  # type: ignore[arg-type]

    return write


def test_queue_depth(shop: Scene) -> None:
    found = shop.hold(NOW, 320, sample(shop, ready=10_001))
    alert = fires(found, "Deep queue", "payments has 10\u202f001 waiting messages.")
    assert (alert.fired_at, alert.measured.path) == (NOW + 320, "/queues/payments")
    ends(shop.hold(NOW + 340, 0, sample(shop, ready=10_000)), "Deep queue")


def test_queue_age(shop: Scene) -> None:
    found = shop.hold(NOW, 80, sample(shop, ready=3, oldest=NOW - 901, oldest_exact=True))
    fires(found, "Old message", "payments: the oldest message has waited for 16 min.")
    ends(shop.hold(NOW + 100, 0, sample(shop, ready=3, oldest=NOW, oldest_exact=True)), "Old message")


def test_growing_queue(shop: Scene) -> None:
    shop.rule("Growing queue", for_seconds=60.0)

    def grow(at: float) -> None:
        sample(shop, ready=int(at - NOW) * 3)(at)

    fires(shop.hold(NOW, 400, grow), "Growing queue", "payments is growing:")
    ends(shop.hold(NOW + 420, 0, sample(shop, ready=0)), "Growing queue")


def test_queue_without_consumer_is_what_the_sentence_of_health_says(shop: Scene) -> None:
    found = shop.hold(NOW, 80, sample(shop, ready=31, consumers=0))
    alert = fires(found, "Queue without consumer", "payments has 31 messages and no consumer.")
    assert alert.severity is Severity.CRITICAL
    said = [each.text for each in findings(read_facts(shop.store, CLUSTER, NOW + 80))]
    assert alert.measured.text in said
    ends(shop.hold(NOW + 100, 0, sample(shop, ready=31, consumers=2)), "Queue without consumer")


def test_paused_queue_accuses_nobody(shop: Scene) -> None:
    save_pause(shop.store, Pause(cluster=CLUSTER, queue="payments", by="ada", at=NOW - 9, workers=("worker1@shop",)))
    assert none(shop.hold(NOW, 80, sample(shop, ready=31, consumers=0)), "Queue without consumer")


def test_old_sample_of_a_queue_is_no_evidence(shop: Scene) -> None:
    sample(shop, ready=31, consumers=0)(NOW - 61)
    assert none(shop.hold(NOW, 80), "Queue without consumer")


def test_no_worker(shop: Scene) -> None:
    shop.change_worker(WorkerStatus.OFFLINE, offline_at=NOW, sent_offline=True)
    fires(shop.hold(NOW, 80), "No worker", "No worker is up. Tasks wait until one starts.")
    shop.change_worker(WorkerStatus.ONLINE)
    ends(shop.hold(NOW + 100, 0), "No worker")


def test_silent_worker(shop: Scene) -> None:
    shop.change_worker(WorkerStatus.SILENT)
    fires(shop.hold(NOW, 80), "Silent worker", "worker1@shop has been silent for")
    shop.change_worker(WorkerStatus.OFFLINE, offline_at=NOW + 90)
    shop.write(at=NOW + 100)
    assert none(shop.judge(NOW + 100), "Silent worker")
    shop.change_worker(WorkerStatus.ONLINE)
    ends(shop.hold(NOW + 120, 0), "Silent worker")


def test_worker_that_was_shut_down_or_runs_a_solo_pool_is_not_silent(shop: Scene) -> None:
    shop.change_worker(WorkerStatus.OFFLINE, offline_at=NOW, sent_offline=True)
    assert none(shop.hold(NOW, 80), "Silent worker")
    shop.change_worker(WorkerStatus.SILENT, sent_offline=False, pool="solo")
    assert none(shop.hold(NOW + 100, 80), "Silent worker")


def test_stuck_worker(shop: Scene) -> None:
    shop.run_tasks(6, NOW - 89, run=0.5)
    stuck: dict[str, object] = {"uuid": make_id(99), "hostname": "worker1@shop"}
    shop.write(
        make_event("task-received", timestamp=NOW - 90, name="shop.pay", args="()", **stuck),
        make_event("task-started", timestamp=NOW - 89, **stuck),
    )
    shop.change_worker(WorkerStatus.ONLINE, pool_size=1, active=1)
    fires(shop.hold(NOW, 120), "Stuck worker", "worker1@shop may be stuck: its only task has been running for")
    shop.write(make_event("task-succeeded", timestamp=NOW + 150, runtime=239.0, result="1", **stuck), at=NOW + 150)
    ends(shop.judge(NOW + 151), "Stuck worker")


def test_restarting_worker(shop: Scene) -> None:
    with shop.store.begin() as connection:
        starts = [("worker1@shop", NOW - 500 + 100 * number) for number in range(4)]
        save_worker_starts(shop.store, connection, 1, starts)
    fires(shop.judge(NOW), "Restarting worker", "worker1@shop started 4 times in 10 min.")
    shop.write(at=NOW + 200)
    ends(shop.judge(NOW + 200), "Restarting worker")


def test_beat_missed(shop: Scene) -> None:
    overdue = OverdueEntry(name="nightly", since=NOW - 300)
    waiting = OverdueEntry(name="hourly", since=NOW - 300, may_wait_in="payments")
    save_beat_health(shop.store, BeatHealth(cluster=CLUSTER, at=NOW, overdue=(overdue, waiting)))
    fires(shop.hold(NOW, 40), "Missed schedule entry", "nightly should have been sent 5 min ago.")
    save_beat_health(shop.store, BeatHealth(cluster=CLUSTER, at=NOW + 50))
    ends(shop.hold(NOW + 60, 0), "Missed schedule entry")


def test_beat_that_has_stopped_is_one_alert(shop: Scene) -> None:
    overdue = tuple(OverdueEntry(name=f"entry {number}", since=NOW - 300) for number in range(3))
    save_beat_health(shop.store, BeatHealth(cluster=CLUSTER, at=NOW, overdue=overdue, stopped=True))
    assert fires(shop.hold(NOW, 40), "Missed schedule entry", "Beat seems to have stopped").measured.subject == "beat"


def test_stuck_workflow(shop: Scene) -> None:
    root = {"root_id": make_id(10), "hostname": "worker1@shop", "args": "()"}
    first, second = {"uuid": make_id(10)}, {"uuid": make_id(11)}
    shop.write(
        make_event("task-received", timestamp=NOW, name="shop.order", **first, **root),
        make_event("task-succeeded", timestamp=NOW + 2, runtime=0.5, result="1", **first),
        make_event("task-received", timestamp=NOW + 1, name="shop.pick", parent_id=make_id(10), **second, **root),
    )
    found = shop.hold(NOW + 100, 120)
    alert = fires(found, "Stuck workflow", "A workflow is stalled for", "waiting for shop.pick.")
    assert alert.measured.path == f"/workflows/{make_id(10)}"
    shop.write(make_event("task-succeeded", timestamp=NOW + 260, runtime=0.5, result="1", **second), at=NOW + 260)
    ends(shop.judge(NOW + 261), "Stuck workflow")


def test_tasks_lost(shop: Scene) -> None:
    save_rule(shop.store, Rule(name="Mail lost", kind="tasks lost", scope="name:shop.mail OR name:shop.post"))
    lost: dict[str, object] = {"uuid": make_id(71), "hostname": "worker1@shop"}
    shop.write(
        make_event("task-received", timestamp=NOW - 400, name="shop.pay", **lost),
        make_event("task-lost", timestamp=NOW - 130, exception="gone", **lost),
    )
    found = shop.judge(NOW)
    fires(found, "Lost tasks", "1 task is lost, newest 2 min ago.")
    assert none(found, "Mail lost")
    shop.write(make_event("task-succeeded", timestamp=NOW + 5, runtime=0.5, result="1", **lost), at=NOW + 5)
    ends(shop.judge(NOW + 6), "Lost tasks")


def test_receiver_behind_is_judged_while_all_else_is_suspended(shop: Scene) -> None:
    shop.change_worker(WorkerStatus.SILENT)
    found: list[Alert] = []
    for seconds in range(0, 100, 20):
        shop.write(at=NOW + seconds, lag_seconds=31.0)
        found += shop.judge(NOW + seconds)
    fires(found, "Receiver behind", "The receiver is 31 s behind.")
    assert none(found, "Silent worker")
    ends(shop.hold(NOW + 100, 0), "Receiver behind")


def test_gap(shop: Scene) -> None:
    gap = open_gap(shop.store, CLUSTER, NOW - 30, "the broker was away")
    fires(shop.judge(NOW), "Gap in the record", "Events are being missed: the broker was away.")
    close_gap(shop.store, gap, NOW + 10)
    shop.write(at=NOW + 920)
    ends(shop.judge(NOW + 920), "Gap in the record")


def test_disk(shop: Scene) -> None:
    shop.rule("Disk nearly full", bound=1e9)
    fires(shop.judge(NOW), "Disk nearly full", "GiB free on the disk of the record.")
    shop.rule("Disk nearly full", bound=1e-6)
    ends(shop.judge(NOW + 1), "Disk nearly full")


def test_every_kind_has_a_test_here() -> None:
    tests = [name for name in globals() if name.startswith("test_")]
    assert [
        kind for kind in KINDS if not any(each.startswith(f"test_{kind.replace(' ', '_')}") for each in tests)
    ] == []


def test_new_record_is_quiet_for_ten_minutes(shop: Scene) -> None:
    with shop.store.begin() as connection:
        connection.exec_driver_sql("DELETE FROM meta WHERE key LIKE 'alerts_began%'")
        connection.exec_driver_sql("DELETE FROM rollup")
    shop.run_tasks(2, NOW, failed=1)
    with shop.store.begin() as connection:
        connection.exec_driver_sql("DELETE FROM rollup")
    assert shop.judge(NOW) == []
    shop.write(at=NOW + 599)
    assert shop.judge(NOW + 599) == []
    shop.write(at=NOW + 601)
    fires(shop.judge(NOW + 601), "New failure")


def test_gap_suspends_and_keeps_what_fires(shop: Scene) -> None:
    shop.change_worker(WorkerStatus.SILENT)
    fires(shop.hold(NOW, 80), "Silent worker")
    open_gap(shop.store, CLUSTER, NOW + 90, "the broker was away")
    shop.change_worker(WorkerStatus.ONLINE)
    shop.write(at=NOW + 100)
    assert none(shop.judge(NOW + 100), "Silent worker")
    assert [alert.rule for alert in read_alerts(shop.store)] == ["Gap in the record", "Silent worker"]


def test_disabled_and_deleted_rules_end_their_alerts_without_a_message(shop: Scene) -> None:
    shop.channel()
    save_rule(shop.store, Rule(name="Mine", kind="disk", bound=1e9))
    fires(shop.judge(NOW), "Mine")
    with shop.store.begin() as connection:
        connection.exec_driver_sql("DELETE FROM alert_rule")
    shop.judge(NOW + 5)
    assert read_alerts(shop.store) == []
    assert [alert.rule for alert in read_alerts(shop.store, states=[AlertState.RESOLVED])] == ["Mine"]
