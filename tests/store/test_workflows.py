"""Workflows and schedules as they are stored and read, on both databases."""

import pytest

from celery_monitor.errors import NotFound
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.schedule import (
    read_entries,
    read_entry_runs,
    save_schedule,
    schedule_entry,
    schedule_reported_at,
)
from celery_monitor.store.tasks.workflows import read_steps, read_stuck_workflows, read_workflows
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id


def received(number: int, root: int, **more: object) -> Event:
    known = {"uuid": make_id(number), "root_id": make_id(root), "name": "shop.pick", "timestamp": NOW + number}
    return make_event("task-received", **{**known, "parent_id": make_id(root) if number != root else None, **more})


def write(store: Store, *events: Event, cluster: str = "shop") -> None:
    Writer(store, cluster, Settings()).write([Delivery(list(events), NOW + 900)])


def test_list_has_roots_with_others_under_them_and_goes_on(store: Store) -> None:
    write(store, *(received(number, number // 10 * 10) for number in range(10, 45)), received(77, 77))
    write(store, received(90, 91), cluster="eu")
    first = read_workflows(store, limit=3)
    rest = read_workflows(store, limit=3, cursor=first.next)
    found = [(each.root.id, each.tasks, each.root.state) for each in (*first.items, *rest.items)]
    known = TaskState.RECEIVED
    assert found == [
        (make_id(91), 1, None),
        (make_id(40), 5, known),
        (make_id(30), 10, known),
        (make_id(20), 10, known),
        (make_id(10), 10, known),
    ]
    assert rest.next is None
    assert [each.cluster for each in read_workflows(store, cluster="eu").items] == ["eu"]


def test_steps_begin_with_the_root_and_are_of_one_cluster(store: Store) -> None:
    write(store, *(received(number, 10) for number in (12, 11, 10)))
    write(store, received(13, 10), cluster="eu")
    cluster, steps, whole = read_steps(store, make_id(10))
    assert (cluster, [step.id for step in steps], whole) == ("shop", [make_id(10), make_id(11), make_id(12)], True)
    assert read_steps(store, make_id(10), "eu")[1][0].state is None
    with pytest.raises(NotFound):
        read_steps(store, make_id(999))


def test_schedule_is_replaced_as_a_whole_with_the_time_of_its_report(store: Store) -> None:
    assert schedule_reported_at(store, "shop") is None
    one, two = (ScheduleEntry(cluster="shop", name=name, task="t", schedule="9.0") for name in ("one", "two"))
    save_schedule(store, "shop", [one, two], NOW)
    save_schedule(store, "shop", [two], NOW + 5)
    assert read_entries(store) == [two]
    assert schedule_reported_at(store, "shop") == NOW + 5
    assert schedule_entry(store, "two", "shop") == two
    with pytest.raises(NotFound):
        schedule_entry(store, "one", "shop")


def test_runs_of_an_entry_have_its_name_and_arguments(store: Store) -> None:
    sent = {"name": "shop.count", "kwargs": "{}", "hostname": "gen7@beat"}
    for number, args in enumerate(("['Ada']", "('Ada',)", "('Bob',)")):
        write(store, make_event("task-sent", uuid=make_id(number), timestamp=NOW + number, args=args, **sent))
    entry = ScheduleEntry(cluster="shop", name="count", task="shop.count", schedule="9.0", args="('Ada',)")
    found = read_entry_runs(store, entry, NOW - 60)
    assert [(run.id, run.client, run.at) for run in found] == [
        (make_id(1), "gen7@beat", NOW + 1),
        (make_id(0), "gen7@beat", NOW),
    ]


def test_workflow_without_events_is_stalled_and_names_what_it_waits_for(store: Store) -> None:
    write(store, *(received(number, 10) for number in range(10, 15)), received(15, 10, name="shop.add_up"))
    write(store, *(make_event("task-succeeded", uuid=make_id(number), timestamp=NOW + 20) for number in (10, 11, 12)))
    write(store, received(30, 30), received(31, 30, name="shop.jam"), received(40, 40))
    write(store, received(50, 50), received(51, 50, eta="2099-01-01T00:00:00+00:00"), cluster="eu")
    assert read_stuck_workflows(store, NOW + 79) == []
    [one] = read_stuck_workflows(store, NOW + 85)
    assert (one.root_id, one.since, one.name, one.named, one.tasks) == (make_id(10), NOW + 20, "shop.pick", 2, 3)
    assert [each.root_id for each in read_stuck_workflows(store, NOW + 95)] == [make_id(10), make_id(30)]
    write(store, make_event("task-started", uuid=make_id(13), timestamp=NOW + 60))
    assert [each.root_id for each in read_stuck_workflows(store, NOW + 95)] == [make_id(30)]
    assert read_stuck_workflows(store, NOW + 95, "eu") == []
    [listed] = [each for each in read_workflows(store).items if each.root.id == make_id(10)]
    assert (listed.unended, listed.waits_for, listed.waits_for_tasks) == (3, "shop.pick", 2)
