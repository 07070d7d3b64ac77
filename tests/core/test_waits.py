"""When a run could have started: by sending, ETA, countdown or receipt, with clocks that agree and that do not."""

import pytest

from celery_monitor.core.lifecycle import fold
from celery_monitor.core.waits import WINDOW, Senders, set_ready_times
from celery_monitor.records.event import Event
from celery_monitor.records.task import Outcome, Task
from tests.factories import NOW, make_event, make_id, make_run, make_task

CLIENT = "gen811@till"


def folded(*events: Event, senders: Senders | None = None, skews: dict[str, float] | None = None) -> Task:
    task = Task("shop", make_id(0))
    for event in events:
        fold(task, event)
        set_ready_times(task, senders or Senders(), skews or {})
    return task


def sent(at: float, **fields: object) -> Event:
    return make_event("task-sent", **{"timestamp": at, "hostname": CLIENT, "queue": "payments", **fields})


def received(at: float, **fields: object) -> Event:
    return make_event("task-received", **{"timestamp": at, "retries": 0, **fields})


def started(at: float) -> Event:
    return make_event("task-started", timestamp=at)


def iso(seconds: float) -> str:
    from_epoch = {NOW - 90: "2026-05-28T20:25:10+00:00", NOW - 40: "2026-05-28T20:26:00+00:00"}
    return from_epoch[seconds]


def waited(task: Task) -> tuple[float | None, str | None]:
    return (None if task.wait is None else round(task.wait, 3), task.wait_since)


def test_task_waits_from_its_sending_on() -> None:
    assert waited(folded(sent(NOW - 60), received(NOW), started(NOW + 0.5))) == (60.5, "sent")


def test_order_of_arrival_does_not_matter() -> None:
    events = [sent(NOW - 60), received(NOW), started(NOW + 0.5)]
    for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        assert waited(folded(*(events[each] for each in order))) == (60.5, "sent")


def test_task_whose_sending_is_not_known_waits_from_receipt_on() -> None:
    assert waited(folded(received(NOW), started(NOW + 0.5))) == (0.5, "received")


def test_task_that_has_not_started_has_no_wait() -> None:
    assert waited(folded(sent(NOW - 60), received(NOW))) == (None, None)


def test_task_with_an_eta_waits_from_the_eta_on() -> None:
    eta = iso(NOW - 40)
    late = folded(sent(NOW - 90, eta=eta), received(NOW, eta=eta), started(NOW + 0.5))
    assert waited(late) == (40.5, "eta")
    early = folded(sent(NOW - 90, eta=eta), received(NOW - 80, eta=eta), started(NOW - 39))
    assert waited(early) == (1.0, "eta")
    assert waited(folded(received(NOW - 80, eta=eta), started(NOW - 39))) == (1.0, "eta")


def test_eta_that_lay_in_the_past_when_the_task_was_sent_is_no_wait() -> None:
    eta = iso(NOW - 90)
    assert waited(folded(sent(NOW - 3, eta=eta), received(NOW, eta=eta), started(NOW + 0.5))) == (3.5, "sent")
    assert waited(folded(received(NOW, eta=eta), started(NOW + 0.5))) == (0.5, "received")


def test_retry_waits_from_the_end_of_its_countdown_on() -> None:
    eta = iso(NOW - 40)
    first = [sent(NOW - 200), received(NOW - 190), started(NOW - 189), make_event("task-retried", timestamp=NOW - 80)]
    task = folded(*first, received(NOW, retries=1, eta=eta), started(NOW + 2))
    assert waited(task) == (42.0, "retry")
    assert (round(task.runs[0].wait or 0, 3), task.runs[0].wait_since) == (11.0, "sent")


def test_retry_without_a_countdown_waits_from_the_end_of_the_run_before_on() -> None:
    first = [received(NOW - 190), started(NOW - 189), make_event("task-retried", timestamp=NOW - 80)]
    assert waited(folded(*first, received(NOW, retries=1), started(NOW + 2))) == (82.0, "retry")


def test_retry_whose_earlier_run_is_not_known_does_not_wait_since_the_first_message() -> None:
    assert waited(folded(sent(NOW - 900), received(NOW, retries=1), started(NOW + 2))) == (2.0, "received")


def test_message_that_was_delivered_once_more_waits_from_receipt_on() -> None:
    first = [sent(NOW - 200), received(NOW - 190), started(NOW - 189)]
    lost = make_event("task-lost", timestamp=NOW - 100, exception="its worker is gone")
    task = folded(
        *first,
        lost,
        received(NOW, hostname="worker2@shop"),
        make_event("task-started", timestamp=NOW + 2, hostname="worker2@shop"),
    )
    assert [run.outcome for run in task.runs] == [Outcome.LOST, None]
    assert waited(task) == (2.0, "received")
    assert task.runs[0].wait_since == "sent"


def test_message_sent_later_under_the_same_id_leaves_the_wait_of_the_first_run() -> None:
    task = make_task(
        sent=NOW - 60,
        runs=[
            make_run(
                retries=0,
                received=NOW - 190,
                started=NOW - 188,
                ended=NOW - 180,
                outcome=Outcome.SUCCEEDED,
                ready=NOW - 200,
            ),
            make_run(retries=0, received=NOW, started=NOW + 1),
        ],
    )
    set_ready_times(task, Senders(), {})
    assert [(run.wait, run.wait_since) for run in task.runs] == [(12.0, "sent"), (61.0, "sent")]


def test_stamp_that_comes_a_moment_after_the_receipt_is_that_of_its_sending() -> None:
    assert waited(folded(received(NOW), started(NOW + 0.5), sent(NOW + 0.004))) == (0.5, "sent")


def test_client_whose_clock_is_ahead_says_nothing_of_the_wait_until_its_clock_is_known() -> None:
    events = [sent(NOW + 900), received(NOW + 30), started(NOW + 30.5)]
    assert waited(folded(*events)) == (0.5, "received")
    senders = Senders()
    senders.observe(CLIENT, NOW + 900, NOW + 0.1)
    assert waited(folded(*events, senders=senders, skews={"worker1@shop": 0.2})) == (30.6, "sent")


def test_client_whose_clock_is_behind_is_believed_to_be_so_when_it_lasts() -> None:
    events = [sent(NOW - 900), received(NOW + 30), started(NOW + 30.5)]
    senders, skews = Senders(), {"worker1@shop": 0.0}
    senders.observe(CLIENT, NOW - 900, NOW)
    assert senders.skew(CLIENT) is None
    senders.observe(CLIENT, NOW - 900 + WINDOW + 1, NOW + WINDOW + 1)
    assert waited(folded(*events, senders=senders, skews=skews)) == (30.5, "sent")


def test_events_that_were_on_the_way_for_long_tell_nothing_of_a_clock() -> None:
    senders = Senders()
    for late in (300.0, 200.0, 0.02):
        senders.observe(CLIENT, NOW + 5 - late, NOW + 5)
    senders.observe(CLIENT, NOW + WINDOW, NOW + WINDOW + 10)
    assert senders.skew("gen12@till") == pytest.approx(0.02)
    assert (senders.skew("gen811@elsewhere"), senders.skew(None)) == (None, None)


def test_setting_our_own_clock_changes_no_wait() -> None:
    senders, skews = Senders(), {"worker1@shop": 0.0}
    for at in (NOW - 130, NOW - 65, NOW - 1):
        senders.observe(CLIENT, at, at + 0.01)
    senders.own_clock_set(3600.0)
    events = [sent(NOW - 60), received(NOW), started(NOW + 0.5)]
    assert waited(folded(*events, senders=senders, skews={name: each + 3600 for name, each in skews.items()})) == (
        60.5,
        "sent",
    )
    senders.observe(CLIENT, NOW + 2, NOW + 3602.01)
    assert senders.skew(CLIENT) == pytest.approx(3600.01)


def test_worker_whose_clock_differs_from_the_one_that_asked_for_the_retry() -> None:
    first = [received(NOW - 190), started(NOW - 189), make_event("task-retried", timestamp=NOW - 80)]
    ahead = 600.0
    again = [
        received(NOW + ahead, retries=1, hostname="worker2@shop"),
        make_event("task-started", timestamp=NOW + ahead + 2, hostname="worker2@shop"),
    ]
    task = folded(*first, *again, skews={"worker1@shop": 0.1, "worker2@shop": -ahead})
    assert task.wait == pytest.approx(81.9)
