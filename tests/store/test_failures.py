"""Failure groups on both databases: windows, trend, and when a resolved one has come back."""

import pytest

from celery_monitor.records.event import Event
from celery_monitor.records.failure import FailureState
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.rollups.failures import (
    read_failure_group,
    read_failure_groups,
    read_failure_summaries,
    read_failure_trend,
    read_group_states,
    read_latest_failure,
    read_new_failure_groups,
    set_failure_state,
)
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id


def failed(number: int, at: float, **more: object) -> list[Event]:
    known = {"uuid": make_id(number), **more}
    return [
        make_event("task-received", timestamp=at - 3, **{**known, "name": "shop.pay", "exception": None}),
        make_event("task-failed", timestamp=at, **{"exception": f"Declined('card {number}')", **known}),
    ]


def write(store: Store, *events: Event, arrived: float | None = None) -> None:
    """At once, unless it is said when: then the worker's clock is wrong by the difference."""
    at = events[-1].timestamp if arrived is None else arrived
    Writer(store, "shop", Settings()).write([Delivery(list(events), at)])


def state_of(store: Store, number: int = 1) -> tuple[FailureState, float | None]:
    group = read_failure_group(store, number)
    return group.state, group.state_at


def test_failure_after_the_resolution_is_a_regression(store: Store) -> None:
    write(store, *failed(1, NOW))
    set_failure_state(store, 1, FailureState.RESOLVED, NOW + 60)
    write(store, *failed(2, NOW + 30))  # it failed before, and was told late
    assert state_of(store) == (FailureState.RESOLVED, NOW + 60)
    write(store, *failed(3, NOW + 90))
    assert state_of(store) == (FailureState.REGRESSED, NOW + 90)


def test_repeated_event_is_no_regression(store: Store) -> None:
    write(store, *failed(1, NOW + 90))
    set_failure_state(store, 1, FailureState.RESOLVED, NOW + 60)
    write(store, *failed(1, NOW + 90))
    assert state_of(store)[0] is FailureState.RESOLVED


def test_worker_whose_clock_is_behind_still_regresses(store: Store) -> None:
    beat = make_event("worker-heartbeat", timestamp=NOW - 3600, freq=2.0)
    write(store, beat, *failed(1, NOW - 3600), arrived=NOW)
    set_failure_state(store, 1, FailureState.RESOLVED, NOW + 60)
    late = make_event("worker-heartbeat", timestamp=NOW - 3510, freq=2.0)
    write(store, late, *failed(2, NOW - 3510), arrived=NOW + 90)
    assert state_of(store)[0] is FailureState.REGRESSED


def test_muted_group_stays_muted_and_is_counted(store: Store) -> None:
    write(store, *failed(1, NOW))
    set_failure_state(store, 1, FailureState.MUTED, NOW + 60)
    write(store, *failed(2, NOW + 90))
    assert state_of(store)[0] is FailureState.MUTED
    assert read_failure_group(store, 1).count == 2
    assert read_group_states(store, since=NOW - 90)[FailureState.MUTED] == 1


def test_windows_trend_and_workers(store: Store) -> None:
    now = NOW - NOW % 3600 + 1800
    for number, (ago, worker) in enumerate(
        [(60, "w1@shop"), (120, "w2@shop"), (7200, "w1@shop"), (200_000, "w3@shop")]
    ):
        write(store, *failed(number, now - ago, hostname=worker))
    [found] = read_failure_summaries(store, since=now - 6 * 3600, now=now)
    assert (found.group.count, found.windows.hour, found.windows.day, found.windows.week) == (3, 2, 3, 4)
    assert found.windows.workers == 2
    assert sum(found.windows.trend) == 3
    trend = read_failure_trend(store, found.group.id, since=now - 86400, until=now)
    assert trend.by_worker == (("w1@shop", 2), ("w2@shop", 1))
    assert (trend.step, sum(trend.counts), len(trend.at)) == (3600, 3, len(trend.counts))


def test_latest_tasks_of_a_group_come_first(store: Store) -> None:
    write(store, *failed(1, NOW), *failed(2, NOW + 60))
    assert [task.id for task in read_latest_failure(store, 1, 5)] == [make_id(2), make_id(1)]


def test_new_groups_failed_first_or_regressed_recently(store: Store) -> None:
    write(store, *failed(1, NOW), *failed(2, NOW + 10, exception="KeyError('x')"))

    def new(cluster: str | None = None) -> list[str]:
        groups = read_new_failure_groups(store, since=NOW + 5, cluster=cluster)
        return [each.exception_type for each in groups]

    assert new() == ["KeyError"]
    declined = next(each.id for each in read_failure_groups(store, since=0) if each.exception_type == "Declined")
    set_failure_state(store, declined, FailureState.RESOLVED, NOW + 20)
    write(store, *failed(3, NOW + 30))
    assert new() == ["Declined", "KeyError"]
    assert new(cluster="eu") == []
    set_failure_state(store, declined, FailureState.MUTED, NOW + 40)
    assert new() == ["KeyError"]


def unread(number: int, customer: str, at: float) -> list[Event]:
    return failed(number, at, exception=f"ValueError('price list of {customer} cannot be read')")


def variants_of(store: Store, number: int = 1) -> dict[str | None, int]:
    return {each.message: each.count for each in read_failure_group(store, number).variants}


def test_messages_that_differ_in_a_name_are_one_group_with_its_variants(store: Store) -> None:
    write(store, *unread(1, "Acme", NOW))
    assert read_failure_group(store, 1).message == "price list of Acme cannot be read"
    write(store, *unread(2, "Globex", NOW + 1), *unread(3, "Initech", NOW + 2), *unread(4, "Globex", NOW + 3))
    (group,) = read_failure_groups(store, since=NOW - 60)
    assert (group.message, group.count) == ("price list of <name> cannot be read", 4)
    assert [(each.message, each.count) for each in group.variants] == [
        ("price list of Globex cannot be read", 2),
        ("price list of Acme cannot be read", 1),
        ("price list of Initech cannot be read", 1),
    ]
    write(store, *unread(4, "Globex", NOW + 3))  # told twice
    assert sum(variants_of(store).values()) == 4
    write(store, make_event("task-succeeded", uuid=make_id(2), timestamp=NOW + 9, result="1"))
    assert sum(variants_of(store).values()) == read_failure_group(store, 1).count


def test_variants_are_kept_up_to_a_number_and_the_others_counted_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MOST_VARIANTS", 2)
    for number, customer in enumerate(("Acme", "Globex", "Initech", "Hooli", "Acme"), 1):
        write(store, *unread(number, customer, NOW + number))  # a writer of its own each: nothing is in memory
    assert variants_of(store) == {
        "price list of Acme cannot be read": 2,
        "price list of Globex cannot be read": 1,
        None: 2,
    }


def test_message_without_a_name_has_no_variants(store: Store) -> None:
    write(store, *failed(1, NOW))
    assert read_failure_group(store, 1).variants == ()
