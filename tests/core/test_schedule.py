"""Due times, and what the runs of an entry say of it."""

from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec
import pytest

from celery_monitor.brokers.beat import entries_of_conf, read_schedule
from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.schedule import (
    due_times,
    entries_alike,
    in_own_queue,
    in_words,
    judge,
    judge_alike,
    may_wait_in,
    next_overdue,
    own_runs,
)
from celery_monitor.records.receiver import Gap
from celery_monitor.records.schedule import ScheduledRun, ScheduleEntry
from celery_monitor.records.task import TaskState

DAY = datetime(2026, 3, 2, tzinfo=UTC).timestamp()  # a Monday
MONDAYS = "<crontab: 30 7 * * monday (m/h/dM/MY/d)>"
EVERY_TWO = "<crontab: */2 * * * * (m/h/dM/MY/d)>"


def entry(schedule: object = "60.0", timezone: str | None = "UTC", **more: Any) -> ScheduleEntry:
    given = {"cluster": "shop", "name": "count", "task": "shop.count", "timezone": timezone}
    return ScheduleEntry(**{**given, **read_schedule(schedule), **more})


def run(at: float, client: str | None = "gen7@beat") -> ScheduledRun:
    return ScheduledRun(id=f"at {at}", at=at, state=TaskState.SUCCESS, client=client)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2.0", 2.0),
        (45, 45.0),
        ("0:00:30", 30.0),
        ("1 day, 2:00:00", 93600.0),
        ("<freq: 2.00 minutes>", 120.0),
        ("<solar: sunset at latitude 1>", None),
        ("0", None),
    ],
)
def test_interval_is_read_as_workers_tell_it(text: object, seconds: float | None) -> None:
    assert read_schedule(text)["every"] == seconds


def test_crontab_is_read_in_the_order_of_its_legend() -> None:
    newer = entry(MONDAYS)
    older = entry("<crontab: 30 7 monday * * (m/h/d/dM/MY)>")
    assert (newer.minutes, newer.hours, newer.weekdays) == ((30,), (7,), (1,))
    assert (older.minutes, older.hours, older.weekdays, older.days) == ((30,), (7,), (1,), newer.days)
    assert entry("<crontab: {1, 2, 3} 8-17/3 * * 1-5 (m/h/dM/MY/d)>").hours == (8, 11, 14, 17)
    assert entry("<crontab: 99 7 * * * (m/h/dM/MY/d)>").minutes is None


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("10.0", "every 10 s"),
        ("3600.0", "every hour"),
        (EVERY_TWO, "every 2 minutes"),
        (MONDAYS, "at 07:30 on Monday"),
        ("<crontab: 5 8-17 * * 1-5 (m/h/dM/MY/d)>", "at minute 5 of the hours 8–17 on Monday, Tuesday, Wednesday, "),
        ("<crontab: 0 0 1 * * (m/h/dM/MY/d)>", "at 00:00 on day 1 of the month"),
    ],
)
def test_schedule_is_told_in_words(schedule: str, words: str) -> None:
    assert (in_words(entry(schedule)) or "").startswith(words)


def test_crontab_is_due_in_its_own_time_zone() -> None:
    week = 7 * 86400.0
    assert list(due_times(entry(MONDAYS), DAY, DAY + week)) == [DAY + 7.5 * 3600]
    assert list(due_times(entry(MONDAYS, "Asia/Tokyo"), DAY - 86400, DAY + week - 86400)) == [DAY - 1.5 * 3600]
    assert list(due_times(entry(MONDAYS, None), DAY, DAY + week)) == []
    assert list(due_times(entry(MONDAYS, "Mars/Olympus"), DAY, DAY + week)) == []


def test_leap_day_is_found() -> None:
    leap = entry("<crontab: 0 0 29 2 * (m/h/dM/MY/d)>")
    [at] = islice(due_times(leap, DAY, DAY + 4 * 366 * 86400.0), 1)
    assert datetime.fromtimestamp(at, UTC).isoformat() == "2028-02-29T00:00:00+00:00"


def test_interval_that_is_kept_misses_nothing() -> None:
    runs = [run(DAY + 240.5), run(DAY + 180.3), run(DAY + 120.1), run(DAY + 60.0)]
    found = judge(entry(), runs, [], DAY, DAY + 250, sure=True)
    assert (found.missed, found.late, found.overdue, found.next) == ((), 0, None, DAY + 300.5)
    assert found.drift == pytest.approx(0.2, abs=0.01)


def test_interval_that_was_skipped_tells_when_and_a_gap_accuses_nobody() -> None:
    runs = [run(DAY + 300), run(DAY + 120), run(DAY + 50), run(DAY - 20)]
    assert judge(entry(), runs, [], DAY, DAY + 310, sure=True).missed == (DAY + 180, DAY + 240)
    assert judge(entry(), runs, [], DAY, DAY + 310, sure=True).late == 2
    gap = Gap(cluster="shop", began=DAY + 170, ended=DAY + 200, cause="away")
    assert judge(entry(), runs, [gap], DAY, DAY + 310, sure=True).missed == ()


def test_entry_that_stopped_is_overdue_unless_we_were_away() -> None:
    runs = [run(DAY + 60), run(DAY)]
    stopped = judge(entry(), runs, [], DAY, DAY + 400, sure=True)
    assert (stopped.overdue, stopped.next) == (DAY + 120, None)
    away = Gap(cluster="shop", began=DAY + 100, ended=None, cause="away")
    assert judge(entry(), runs, [away], DAY, DAY + 400, sure=True).overdue is None
    assert judge(entry(), [], [], DAY, DAY + 400, sure=True).overdue is None


def test_what_nobody_tells_to_be_sent_may_wait_where_messages_do() -> None:
    without_sender, with_sender = run(DAY, client=None), run(DAY)
    waiting = {"stock": 7, "mail": 12, "idle": 0, "deaf": None}
    assert may_wait_in(entry(queue="stock"), without_sender, waiting) == "stock"
    assert may_wait_in(entry(queue="stock"), with_sender, waiting) is None
    assert may_wait_in(entry(queue="idle"), without_sender, waiting) is None
    assert may_wait_in(entry(queue="deaf"), without_sender, waiting) is None
    assert may_wait_in(entry(), without_sender, waiting) == "mail"
    assert may_wait_in(entry(), msgspec.structs.replace(without_sender, queue="stock"), waiting) == "stock"


def test_next_look_is_when_the_first_would_be_overdue() -> None:
    standings = [judge(entry(), [run(DAY + ago)], [], DAY, DAY + 61, sure=True) for ago in (0, 5, 30)]
    assert all(each.overdue is None for each in standings)
    moment = next_overdue(standings, DAY + 61)
    assert DAY + 62.5 < moment < DAY + 62.6
    assert judge(entry(), [run(DAY)], [], DAY, moment, sure=True).overdue == DAY + 60
    assert next_overdue(standings, moment) > DAY + 67
    assert next_overdue([], DAY) == float("inf")


def test_crontab_misses_and_late_runs_are_told() -> None:
    runs = [run(DAY + 481), run(DAY + 375), run(DAY + 121)]
    found = judge(entry(EVERY_TWO), runs, [], DAY, DAY + 560, sure=True)
    assert (found.missed, found.late, found.next) == ((DAY + 240,), 1, DAY + 600)


def taken(at: float) -> ScheduledRun:
    """A run without a task-sent event."""
    return msgspec.structs.replace(run(at, client=None), by_receipt=True)


@pytest.mark.parametrize("schedule", ["120.0", EVERY_TWO])
def test_what_waited_in_a_queue_is_not_called_late_and_what_may_be_missed_is_a_guess(schedule: str) -> None:
    waited = [taken(DAY + 575), taken(DAY + 360.5), taken(DAY + 181), taken(DAY + 121)]
    found = judge(entry(schedule), waited, [], DAY, DAY + 590, sure=False)
    assert (found.late, found.drift, found.by_receipt) == (None, None, True)
    assert found.missed is not None
    sent = [run(each.at) for each in waited]
    assert judge(entry(schedule), sent, [], DAY, DAY + 590, sure=True).late


@pytest.mark.parametrize("schedule", ["60.0", "<crontab: * * * * * (m/h/dM/MY/d)>"])
def test_late_and_drift_are_of_what_is_known_to_be_sent(schedule: str) -> None:
    runs = [taken(DAY + 355), run(DAY + 240.5), run(DAY + 180.3), run(DAY + 120.1), taken(DAY + 90), run(DAY + 0.1)]
    found = judge(entry(schedule), runs, [], DAY, DAY + 360, sure=True)
    assert (found.late, found.by_receipt) == (0, True)
    assert found.drift == pytest.approx(0.2, abs=0.15)


def test_unknown_kind_of_schedule_is_unknown() -> None:
    found = judge(entry("<solar: sunset>"), [run(DAY)], [], DAY, DAY + 99, sure=False)
    assert (found.next, found.missed, found.late, found.drift, found.overdue) == (None, None, None, None, None)


def test_sender_of_several_entries_is_beat() -> None:
    beat, person = run(DAY), run(DAY + 5, "gen9@web")
    judged = own_runs({"a": [person, beat], "b": [beat], "c": [run(DAY, None)]}, dict.fromkeys("abc", ()))
    assert judged == {"a": ((beat,), True), "b": ((beat,), True), "c": ((run(DAY, None),), False)}


def test_run_that_may_be_of_two_entries_does_not_make_its_sender_beat() -> None:
    person = run(DAY, "gen9@web")
    judged = own_runs({"a": [person], "b": [person]}, {"a": ("b",), "b": ("a",)})
    assert judged == {"a": ((person,), False), "b": ((person,), False)}


def test_entries_that_send_the_same_are_alike_unless_each_has_its_queue() -> None:
    same = [entry(name=name) for name in ("a", "b")]
    other = entry(name="c", args="(7,)")
    assert entries_alike([*same, other], {}) == {"a": ("b",), "b": ("a",), "c": ()}
    apart = [entry(name="a", queue="mail"), entry(name="b", queue="stock")]
    assert entries_alike(apart, {}) == {"a": (), "b": ()}
    mail = [ScheduledRun(id="1", at=DAY, state=TaskState.SUCCESS, client=None, queue="mail")]
    assert in_own_queue(apart[0], apart, mail) == mail
    assert in_own_queue(apart[1], apart, mail) == []
    nowhere = [run(DAY)]  # its queue is unknown
    found = entries_alike(apart, {each.name: in_own_queue(each, apart, nowhere) for each in apart})
    assert found == {"a": ("b",), "b": ("a",)}


def test_of_entries_that_send_the_same_only_beats_own_record_counts() -> None:
    runs = [run(DAY + 240), run(DAY + 210), run(DAY + 60)]
    found = judge_alike(entry("90.0"), runs, [], DAY, DAY + 250, shared_with=("other",))
    assert (found.last, found.last_at, found.next, found.overdue) == (None, None, None, None)
    assert (found.missed, found.late, found.drift, found.sure) == (None, None, None, False)
    stored = entry("90.0", source="redbeat", beat_last_at=DAY + 210, beat_next_at=DAY + 300, total=3)
    found = judge_alike(stored, runs, [], DAY, DAY + 250, shared_with=("other",))
    assert (found.last_at, found.next, found.sure) == (DAY + 210, DAY + 300, False)
    silent = judge_alike(entry("90.0"), runs, [], DAY, DAY + 400, shared_with=("other",))
    assert silent.overdue == DAY + 330  # none of them was sent since


def test_secrets_of_arguments_are_masked_and_not_sent() -> None:
    conf = {
        "beat_schedule": {
            "pay": {"task": "t", "schedule": 5.0, "kwargs": {"token": "abc"}, "options": {"queue": "q"}},
            "odd": {"task": "t", "schedule": 5.0, "args": ["Ada"]},
            "broken": {"schedule": 5.0},
        }
    }
    (pay, odd), [broken] = entries_of_conf(conf, "shop", Redactor(("token",)), DAY)
    assert (broken.name, broken.reason) == ("broken", "it names no task")
    assert (pay.queue, pay.kwargs_json, "abc" in pay.kwargs) == ("q", None, False)
    assert (odd.args, odd.args_json, odd.timezone) == ("('Ada',)", '["Ada"]', "UTC")
    assert entries_of_conf({"enable_utc": False, **conf}, "shop", Redactor(()), DAY).entries[1].timezone is None


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"args": 1}, "its args are of type int, not a list"),
        ({"kwargs": [7]}, "its kwargs are of type list, not a dictionary"),
        ({"schedule": None}, "it has no schedule"),
        ({"task": 7}, "it names no task"),
    ],
)
def test_one_bad_entry_of_a_configuration_hides_no_other(broken: dict[str, object], reason: str) -> None:
    good = {"task": "t", "schedule": 5.0}
    conf = {"beat_schedule": {"bad": {**good, **broken}, "good": good, "worse": "t"}}
    read = entries_of_conf(conf, "shop", Redactor(()), DAY)
    assert [each.name for each in read.entries] == ["good"]
    assert [(each.name, each.reason) for each in read.unread] == [("bad", reason), ("worse", "it names no task")]


def test_crontab_that_has_only_just_run_once_misses_nothing() -> None:
    found = judge(entry(EVERY_TWO), [run(DAY + 121)], [], DAY + 121, DAY + 130, sure=True)
    assert (found.missed, found.late, found.drift, found.next) == ((), 0, None, DAY + 240)


def test_beats_own_record_tells_last_and_next_where_no_task_is_seen() -> None:
    stored = entry(source="redbeat", beat_last_at=DAY + 60, beat_next_at=DAY + 120, total=4)
    fine = judge(stored, [], [], DAY, DAY + 124, sure=False)
    assert (fine.last, fine.last_at, fine.next, fine.overdue) == (None, DAY + 60, DAY + 120, None)
    gap = Gap(cluster="shop", began=DAY, ended=None, cause="away")
    assert judge(stored, [], [gap], DAY, DAY + 200, sure=False).overdue == DAY + 120


def test_new_entry_is_given_time_and_django_time_to_write() -> None:
    new = entry(source="redbeat", beat_next_at=DAY)
    assert judge(new, [], [], DAY, DAY + 300, sure=False).overdue is None
    assert judge(new, [], [], DAY, DAY + 400, sure=False).overdue == DAY
    slow = entry(source="django", beat_last_at=DAY)
    assert judge(slow, [], [], DAY, DAY + 200, sure=False).overdue is None
    assert judge(slow, [], [], DAY, DAY + 300, sure=False).overdue == DAY + 60


def test_entry_that_is_turned_off_or_has_not_begun_is_not_overdue() -> None:
    off = judge(entry(enabled=False), [run(DAY)], [], DAY, DAY + 9999, sure=True)
    assert (off.overdue, off.next, off.missed) == (None, None, None)
    later = judge(entry(starts=DAY + 9000, beat_last_at=DAY), [], [], DAY, DAY + 999, sure=True)
    assert (later.overdue, later.next) == (None, DAY + 9000)


def test_entry_that_is_due_once_is_overdue_until_it_ran() -> None:
    once = entry("clocked", once_at=DAY + 60)
    assert judge(once, [], [], DAY, DAY + 30, sure=False).next == DAY + 60
    assert judge(once, [], [], DAY, DAY + 300, sure=False).overdue == DAY + 60
    done = judge(once, [run(DAY + 61)], [], DAY, DAY + 300, sure=False)
    assert (done.overdue, done.next) == (None, None)
