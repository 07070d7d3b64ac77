"""Facts of a cluster in, findings out: what the sentence, the banners and the API say."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from celery_monitor.core.health.findings import MEANINGS, Finding, FindingLink
from celery_monitor.core.health.judgement import BANNERS, MINOR, HealthFacts, banners, findings
from celery_monitor.core.workflow import LongTask, SlowWorkflow, StalledWorker, Stalls, stalled_words
from celery_monitor.receiver import helper_failures
from celery_monitor.records.failure import FailureCounts, FailureGroup, FailureState
from celery_monitor.records.page import Count
from celery_monitor.records.queue import Pause, Queue
from celery_monitor.records.receiver import FailingHelper, Gap, ReceiverHealth, RefusedEvents
from celery_monitor.records.schedule import BeatHealth, OverdueEntry
from celery_monitor.records.task import TaskState, WaitingStep
from celery_monitor.records.worker import Worker, WorkerProcess, WorkerStatus
from tests.factories import NOW

ROOT = Path(__file__).parent.parent.parent
PACKAGE, DOCUMENT = ROOT / "monitor" / "celery_monitor" / "core" / "health", ROOT / "docs" / "health.md"


def make_health(**fields: object) -> ReceiverHealth:
    given: dict[str, object] = {"cluster": "shop", "connected": True, "updated_at": NOW - 1, "lag_seconds": 0.2}
    return ReceiverHealth(**{**given, **fields})  # type: ignore[arg-type]


def make_worker(hostname: str = "worker1@shop", **fields: object) -> Worker:
    given: dict[str, object] = {"cluster": "shop", "status": WorkerStatus.ONLINE, "skew": 0.1, "events_enabled": True}
    return Worker(hostname=hostname, **{**given, **fields})  # type: ignore[arg-type]


def make_queue(name: str, ready: int | None, age: float | None = None, **fields: object) -> Queue:
    given = {"consumers": 2, "oldest": None if age is None else NOW - age, "oldest_exact": True, **fields}
    return Queue(cluster="shop", name=name, ready=ready, **given)  # type: ignore[arg-type]


def make_group(
    number: int, kind: str, name: str | None, count: int = 7, state: FailureState = FailureState.OPEN
) -> FailureGroup:
    return FailureGroup(
        id=number,
        cluster="shop",
        name=name,
        exception_type=kind,
        message="30 s",
        frame=None,
        first_seen=NOW - 90,
        last_seen=NOW - 31,
        count=count,
        state=state,
    )


def make_waiting(root_id: str, name: str | None, seconds: float) -> WaitingStep:
    since, state = NOW - seconds, TaskState.STARTED
    return WaitingStep(cluster="shop", root_id=root_id, since=since, name=name, state=state, tasks=2, named=2)


def overdue(name: str, seconds: float, may_wait_in: str | None = None) -> OverdueEntry:
    return OverdueEntry(name=name, since=NOW - seconds, may_wait_in=may_wait_in)


def beat(*entries: OverdueEntry, stopped: bool = False) -> list[BeatHealth]:
    return [BeatHealth(cluster="shop", overdue=entries, stopped=stopped)]


THREE = [make_worker(f"worker{number}@shop") for number in (1, 2, 3)]
WELL = HealthFacts(now=NOW, receivers=[make_health()], workers=THREE, failures=FailureCounts())


def one_more(**fields: object) -> list[Worker]:
    return [*THREE, make_worker("pick@shop", **fields)]


def growing(*queues: Queue) -> HealthFacts:
    return replace(WELL, queues=queues, growing={(queue.cluster, queue.name) for queue in queues})


def sentences(facts: HealthFacts) -> str:
    parts = [part for each in findings(facts) for part in (each, each.rest) if part is not None]
    return " ".join(part.text for part in parts)


def tones(facts: HealthFacts) -> set[str]:
    return {each.tone for each in findings(facts)}


def shown(
    receivers: Sequence[ReceiverHealth], workers: Sequence[Worker], gaps: Sequence[Gap] = ()
) -> tuple[Finding, ...]:
    return banners(HealthFacts(now=NOW, receivers=receivers, workers=workers, gaps=gaps))


def only(*given: Finding) -> Finding:
    assert len(given) == 1, given
    return given[0]


def test_all_well_says_so() -> None:
    assert sentences(WELL) == "3 workers up. Nothing is failing and no queue is growing."
    assert tones(WELL) == {"plain", "good"}
    assert banners(WELL) == ()


def test_the_example_of_the_specification_and_each_part_of_it_is_a_link() -> None:
    facts = replace(
        growing(make_queue("emails", 412, 195.0)),
        workers=[*THREE[:2], make_worker("worker3@shop", status=WorkerStatus.OFFLINE, offline_at=NOW - 7200)],
        failures=FailureCounts(open=18),
        top_failure=make_group(7, "TimeoutError", "shop.pay", 14),
    )
    assert sentences(facts) == (
        "2 of 3 workers up. emails is growing: 412 waiting, oldest 3 min. "
        "18 failures in 15 min, 14 of them TimeoutError in shop.pay."
    )
    parts = [part for each in findings(facts) for part in (each, each.rest) if part is not None]
    assert [part.link for part in parts] == [
        FindingLink("/workers"),
        FindingLink("/queues/emails"),
        FindingLink("/tasks", {"q": "state:failed finished:>-15m"}),
        FindingLink("/failures/7"),
    ]


def test_every_kind_stands_in_its_document() -> None:
    sources = [(PACKAGE / name).read_text(encoding="utf-8") for name in ("findings.py", "judgement.py")]
    kinds = set(re.findall(r'Finding\(\s*"([^"]+)"', "".join(sources)))
    assert len(kinds) > 20
    text = DOCUMENT.read_text(encoding="utf-8")
    assert {kind for kind in kinds if f"| {kind} |" not in text} == set()
    assert kinds >= BANNERS
    assert kinds >= MINOR


# --- receivers and events


def test_nothing_seen_yet() -> None:
    found = only(*findings(HealthFacts(now=NOW)))
    assert (found.kind, found.text) == ("receiver", "No receiver has written to this database yet.")
    assert "celery-monitor serve --broker" in found.then
    assert only(*shown([make_health()], [])).text == "No worker has been seen yet."
    through_queue = only(*shown([make_health(source="queue")], []))
    assert "only workers with celery_monitor_capture.install(app) are seen" in through_queue.then


def test_receiver_that_stopped_writing() -> None:
    banner = only(*shown([make_health(updated_at=NOW - 16)], THREE))
    assert (banner.kind, banner.tone, banner.since) == ("receiver", "bad", NOW - 16)
    assert sentences(replace(WELL, receivers=[make_health(updated_at=NOW - 16)])) == (
        "The receiver is not running. 3 workers up."
    )


def test_receiver_that_says_nothing_for_seconds_may_be_busy() -> None:
    banner = only(*shown([make_health(updated_at=NOW - 3.5)], THREE))
    assert (banner.kind, banner.tone, banner.since) == ("lag", "warning", NOW - 3.5)
    assert banner.text == "The receiver is 3 s behind: it has not updated for 3 s."
    assert shown([make_health(updated_at=NOW - 2.5)], THREE) == ()


def test_broker_unreachable_comes_first_with_the_error_and_is_never_well() -> None:
    health = make_health(connected=False, error="connection refused at redis:6380", last_event_at=NOW - 31)
    facts = replace(WELL, receivers=[health])
    assert sentences(facts) == "The broker cannot be reached: connection refused at redis:6380. 3 workers up."
    banner = only(*banners(facts))
    assert (banner.kind, banner.since) == ("broker", NOW - 31)


def test_receiver_behind() -> None:
    banner = only(*shown([make_health(lag_seconds=95.0)], THREE))
    assert (banner.kind, banner.text) == ("lag", "The receiver is 1 min behind.")
    assert "behind" not in sentences(replace(WELL, receivers=[make_health(lag_seconds=2.0)]))


def test_silence_of_a_connected_receiver_is_lag() -> None:
    """It may be at work on a batch, and says so only afterwards."""
    assert make_health(updated_at=NOW - 2.5, lag_seconds=0.5).lag(NOW) == 0.5
    assert make_health(updated_at=NOW - 8.0, lag_seconds=0.5).lag(NOW) == 8.5
    assert make_health(updated_at=NOW - 8.0, connected=False).lag(NOW) is None


def test_record_that_is_not_written_says_why_instead_of_a_silent_receiver() -> None:
    banner = only(*shown([make_health(updated_at=NOW - 40, unwritten="disk full")], THREE))
    assert (banner.kind, banner.text) == ("record", "The database cannot be written: disk full.")


def test_clusters_are_named_and_kept_apart() -> None:
    health = [make_health(), make_health(cluster="mail", connected=False)]
    found = shown(health, [make_worker(), make_worker(cluster="mail", skew=9.0)])
    assert [banner.kind for banner in found] == ["broker", "clocks"]
    assert found[0].text == "The broker of mail cannot be reached."


def test_a_helper_that_keeps_failing_is_named_with_what_it_means() -> None:
    helper = FailingHelper(name="queue sampler", error="NOPERM", since=NOW - 70, failures=3)
    banner = only(*shown([make_health(helpers=(helper,))], THREE))
    assert (banner.kind, banner.tone, banner.since) == ("receiver", "warning", NOW - 70)
    assert banner.text == "The queue sampler keeps failing: NOPERM."
    assert banner.then == "Queue depths are out of date."
    every = {value for name, value in vars(helper_failures).items() if name.isupper() and isinstance(value, str)}
    assert every == MEANINGS.keys()
    assert "good" not in tones(replace(WELL, receivers=[make_health(helpers=(helper,))]))


def test_helpers_that_fail_with_their_broker_are_not_said_beside_it() -> None:
    helper = FailingHelper(name="sampler", error="Connection refused", since=NOW - 7, failures=9)
    found = shown([make_health(connected=False, error="Connection refused.", helpers=(helper,))], [])
    assert [banner.kind for banner in found] == ["broker"]


def test_a_receiver_that_ends_before_it_can_say_anything() -> None:
    helper = FailingHelper(name="receiver", error="OSError: damaged", since=NOW - 7, failures=4)
    banner = only(*shown([make_health(connected=False, updated_at=None, helpers=(helper,))], []))
    assert (banner.kind, banner.tone) == ("receiver", "bad")
    assert banner.text == "The receiver exited 4 times in a row: OSError: damaged."


def test_events_that_are_refused_or_malformed() -> None:
    refused = (RefusedEvents("pick@shop", "application/x-python-serialize"), RefusedEvents("", "text/csv"))
    health = make_health(refused=refused, malformed_total=13, malformed_at=NOW - 3599)
    first, second = shown([health], THREE)
    assert first.text == (
        "Events from a sender, pick@shop are refused: their format is application/x-python-serialize, text/csv."
    )
    assert (second.text, second.since, second.mark) == ("13 messages were not valid events.", NOW - 3599, "Last one")
    assert shown([make_health(malformed_total=1, malformed_at=NOW - 3601)], THREE) == ()


def test_worker_whose_events_are_refused_may_be_up() -> None:
    refused = (RefusedEvents("pick@shop", "application/x-python-serialize"),)
    assert only(*shown([make_health(refused=refused)], [])).kind == "event serializer"


def test_gap_that_lasts() -> None:
    gap = Gap(cluster="shop", began=NOW - 40, ended=None, cause="the broker restarted", dropped=7)
    banner = only(*shown([make_health()], THREE, [gap]))
    assert banner.text == "Events are being missed: the broker restarted, at least 7 events missing."
    assert banner.since == NOW - 40


def test_cause_of_a_gap_ends_with_one_full_stop() -> None:
    gap = Gap(cluster="shop", began=NOW - 40, ended=NOW - 31, cause="the broker closed it; we go on trying.")
    text = only(*shown([make_health()], THREE, [gap])).text
    assert text.endswith("we go on trying.")
    assert ".." not in text


def test_several_gaps_are_one_finding() -> None:
    gaps = [Gap(cluster="shop", began=NOW - n, ended=NOW - n + 5, cause=f"cause {n}") for n in (900, 60, 300)]
    banner = only(*shown([make_health()], THREE, gaps))
    assert banner.text == "5 s of events may be missing: cause 60 and 2 more gaps in the last hour."


def test_a_gap_is_said_last_and_its_time_is_not_called_well() -> None:
    gap = Gap(cluster="shop", began=NOW - 1000, ended=NOW - 890, cause="receiver was down")
    facts = replace(WELL, gaps=[gap])
    assert sentences(facts) == "3 workers up. 1 min of events may be missing: receiver was down."
    assert tones(replace(facts, now=NOW + 20, receivers=[make_health(updated_at=NOW + 19)])) == {
        "plain",
        "warning",
        "good",
    }


# --- workers


def test_no_worker_is_bad_and_never_well() -> None:
    facts = replace(WELL, workers=[make_worker(status=WorkerStatus.OFFLINE)])
    assert sentences(facts) == "No worker is up."
    assert tones(facts) == {"bad"}
    assert only(*banners(facts)).then == "Tasks wait until one starts."


def test_unknown_failures_are_not_called_well() -> None:
    assert sentences(replace(WELL, failures=None)) == "3 workers up."


def test_worker_that_is_gone_is_named() -> None:
    facts = replace(WELL, workers=one_more(status=WorkerStatus.OFFLINE, offline_at=NOW - 40))
    assert sentences(facts).startswith("3 of 4 workers up; pick@shop is down.")
    gone = [make_worker(name, status=WorkerStatus.OFFLINE, offline_at=NOW - 40) for name in "abc"]
    assert sentences(replace(WELL, workers=[*THREE, *gone])).startswith("3 of 6 workers up.")


def test_silent_worker_is_named_with_its_silence() -> None:
    facts = replace(WELL, workers=one_more(status=WorkerStatus.SILENT, last_heartbeat=NOW - 4.3))
    assert sentences(facts) == (
        "3 of 4 workers up; pick@shop is down. pick@shop has been silent for 4 s, perhaps just busy."
    )
    assert findings(facts)[1].link == FindingLink("/workers/pick%40shop")
    assert banners(facts) == ()


def test_silence_of_a_worker_that_never_sent_a_heartbeat_has_no_length() -> None:
    assert "pick@shop is silent, perhaps" in sentences(replace(WELL, workers=one_more(status=WorkerStatus.SILENT)))


def test_many_silent_workers_are_counted() -> None:
    silent = [make_worker(name, status=WorkerStatus.SILENT) for name in "abc"]
    found = findings(replace(WELL, workers=[*THREE, *silent]))[1]
    assert (found.text, found.tone) == ("3 workers are silent, perhaps just busy.", "warning")


def test_silent_solo_worker_is_probably_busy_and_no_alarm() -> None:
    facts = replace(WELL, workers=one_more(status=WorkerStatus.SILENT, pool="solo", last_heartbeat=NOW - 7))
    assert sentences(facts) == (
        "3 of 4 workers up and 1 probably busy. "
        "pick@shop has been silent for 7 s; a solo pool is silent while it runs a task. "
        "Nothing is failing and no queue is growing."
    )
    assert tones(facts) == {"plain", "good"}


def test_workers_without_events_offer_the_button_and_nothing_is_called_well() -> None:
    workers = [make_worker(f"w{n}@shop", events_enabled=False) for n in range(5)]
    banner = only(*shown([make_health()], workers))
    assert banner.cluster == "shop"
    assert banner.text.startswith("w0@shop, w1@shop, w2@shop and 2 more send no task events")
    assert "good" not in tones(replace(WELL, workers=workers))


def test_unknown_events_setting_is_not_accused() -> None:
    assert shown([make_health()], [make_worker(events_enabled=None)]) == ()


def test_clock_skew_in_both_directions() -> None:
    assert only(*shown([make_health()], [make_worker(skew=-3.24)])).text == "worker1@shop: clock is off by up to 3.2 s."
    assert shown([make_health()], [make_worker(skew=2.0)]) == ()
    jumped = only(*shown([make_health()], [make_worker(skew=0.1, jump=-61.0)]))
    assert jumped.text == "worker1@shop: clock was changed by up to 1 min while running."


def test_two_processes_of_one_name_are_named_with_what_to_do() -> None:
    other = WorkerProcess(pid=31, first_seen=NOW - 90, last_heartbeat=NOW - 1, freq=2.0)
    worker = make_worker(pid=32, since=NOW - 90, last_heartbeat=NOW - 2, others=(other,))
    banner = only(*shown([make_health()], [worker]))
    assert banner.text == "2 processes share the name worker1@shop."
    assert "-n worker1@%h" in banner.then
    assert "good" not in tones(replace(WELL, workers=[worker]))


def test_worker_whose_tasks_do_not_move_may_be_stuck() -> None:
    waiting = StalledWorker("pick@shop", 4.0, 2, started=False)
    running = StalledWorker("count@shop", 31.0, 2, started=True, usual=0.05)
    assert [each.text for each in findings(replace(WELL, stalls=Stalls(workers=[running, waiting])))[1:]] == [
        "count@shop may be stuck: all 2 running tasks take unusually long, the longest 31 s; usually 0.1 s at most.",
        "pick@shop may be stuck: 2 received tasks not started, the longest for 4 s.",
    ]
    many = findings(replace(WELL, stalls=Stalls(workers=[running, waiting, waiting])))[1]
    assert many == Finding(
        "stuck worker", "bad", "3 workers may be stuck, the longest for 31 s.", link=FindingLink("/workers")
    )


def test_what_was_not_counted_to_its_end_is_said_to_be_more() -> None:
    assert stalled_words(StalledWorker("pick@shop", 4.0, 400, started=False, at_least=True)) == (
        "pick@shop may be stuck: at least 400 received tasks not started, the longest for 4 s."
    )


def test_a_process_that_is_in_one_task_for_long_is_named_with_what_is_usual() -> None:
    task = LongTask("w1@shop", "shop.report", "a/b", 850.0, 21.0)
    part = findings(replace(WELL, stalls=Stalls(tasks=[task])))[1]
    assert part.text == "shop.report has been running for 14 min on w1@shop; usually 21 s at most."
    assert part.link == FindingLink("/tasks/a%2Fb")
    text = sentences(replace(WELL, stalls=Stalls(tasks=[task] * 3)))
    assert "3 tasks have been running unusually long; the longest is shop.report on w1@shop, 14 min." in text


def test_a_long_task_is_not_said_beside_its_stuck_worker_or_workflow() -> None:
    task = LongTask("w1@shop", "shop.report", "a/b", 850.0, 21.0, root_id="r7")
    stuck = StalledWorker("w1@shop", 850.0, 1, started=True)
    slow = SlowWorkflow("r7", "shop.report", 850.0, 21.0)
    for stalls in (Stalls(workers=[stuck], tasks=[task]), Stalls(workflows=[slow], tasks=[task])):
        assert "has been in" not in sentences(replace(WELL, stalls=stalls))


# --- tasks, queues, schedule, workflows


def test_lost_tasks_are_counted_and_never_well() -> None:
    facts = replace(WELL, lost=Count(3), lost_at=NOW - 125.0)
    assert sentences(facts) == "3 workers up. 3 tasks are lost, newest 2 min ago."
    assert findings(facts)[-1].link == FindingLink("/tasks", {"q": "state:lost retried:no finished:>-1d"})
    assert "1 task is lost." in sentences(replace(WELL, lost=Count(1)))
    assert "10\u202f000+ tasks are lost" in sentences(replace(WELL, lost=Count(10_000, exact=False)))


def test_queue_without_consumer_is_worse_than_growing() -> None:
    facts = growing(make_queue("mail", 1, 7300.0, consumers=0))
    assert findings(facts)[1] == Finding(
        "queue without consumer",
        "bad",
        "mail has 1 message and no consumer, oldest 2 h.",
        link=FindingLink("/queues/mail"),
    )
    assert "growing" not in sentences(facts)


def test_many_growing_queues_are_counted() -> None:
    facts = growing(*(make_queue(f"q{number}", 50 + number) for number in range(3)))
    assert findings(facts)[1] == Finding(
        "growing queue", "warning", "3 queues are growing.", link=FindingLink("/queues")
    )


def test_hostile_queue_name_is_quoted_in_its_link() -> None:
    assert findings(growing(make_queue("a/b?c#<script>", 99)))[1].link == FindingLink(
        "/queues/a%2Fb%3Fc%23%3Cscript%3E"
    )


def test_age_that_is_a_bound_says_so() -> None:
    queue = make_queue("emails", 22, 190.0, oldest_exact=False, consumers=0)
    assert sentences(growing(queue)).endswith("emails has 22 messages and no consumer, oldest at least 3 min.")


def paused(*queues: Queue) -> HealthFacts:
    pauses = {
        (queue.cluster, queue.name): Pause(
            cluster="shop", queue=queue.name, by="ada", at=NOW - 15.4 + number, workers=("worker1@shop",)
        )
        for number, queue in enumerate(queues)
    }
    return replace(growing(*queues), pauses=pauses)


def test_a_paused_queue_says_who_paused_it_and_when_instead_of_no_consumer() -> None:
    facts = paused(make_queue("payments", 22, consumers=0))
    assert sentences(facts) == "3 workers up. payments was paused by ada 15 s ago, 22 waiting."
    assert findings(facts)[-1].link == FindingLink("/queues/payments")
    assert (
        sentences(paused(make_queue("payments", None, consumers=0)))
        == "3 workers up. payments was paused by ada 15 s ago."
    )
    many = paused(*(make_queue(f"q{number}", 9, consumers=0) for number in range(3)))
    assert sentences(many) == "3 workers up. 3 queues are paused, q2 by ada 13 s ago."
    assert "paused" not in sentences(paused(make_queue("payments", 22)))  # a worker consumes from it again


def test_overdue_entries_are_said_and_a_stopped_beat_first() -> None:
    late = (overdue("nightly report", 200.0), overdue("cleaning", 70.0))
    facts = replace(WELL, beats=beat(*late))
    assert sentences(facts) == (
        "3 workers up. nightly report should have been sent 3 min ago. cleaning should have been sent 1 min ago."
    )
    assert [each.link for each in findings(facts)[1:]] == [FindingLink("/schedule")] * 2
    assert "3 schedule entries are overdue." in sentences(replace(WELL, beats=beat(*late, late[0])))
    assert "Beat seems to have stopped: 2 schedule entries" in sentences(replace(WELL, beats=beat(*late, stopped=True)))
    assert sentences(replace(WELL, beats=beat(stopped=True))) == "3 workers up. Beat seems to have stopped."


def test_entry_that_is_barely_late_is_not_yet_bad() -> None:
    found = findings(replace(WELL, beats=beat(overdue("count", 3.4))))[1]
    assert (found.text, found.tone) == ("count was due 3 s ago and has not been seen.", "warning")


def test_entry_that_may_wait_in_a_full_queue_is_not_held_against_beat() -> None:
    waiting = overdue("tick", 40, may_wait_in="picks")
    assert (
        sentences(replace(WELL, beats=beat(waiting)))
        == "3 workers up. tick was due 40 s ago and may be waiting in picks."
    )
    both = sentences(replace(WELL, beats=beat(overdue("count", 50), waiting)))
    assert (
        both == "3 workers up. count should have been sent 50 s ago. tick was due 40 s ago and may be waiting in picks."
    )
    many = sentences(replace(WELL, beats=beat(*[waiting] * 3)))
    assert many == "3 workers up. 3 schedule entries were due and may be waiting in queues."
    stopped = sentences(replace(WELL, beats=beat(waiting, stopped=True)))
    assert stopped.startswith("3 workers up. Beat seems to have stopped. tick was")


def test_workflow_that_stands_still_is_said_with_what_it_waits_for() -> None:
    one = replace(WELL, stuck=[make_waiting("a/b", "shop.pick", 190.0)])
    assert sentences(one) == "3 workers up. A workflow is stalled for 3 min, waiting for shop.pick."
    assert findings(one)[1].link == FindingLink("/workflows/a%2Fb")
    two = replace(WELL, stuck=[*one.stuck, make_waiting("c", None, 90.0)])
    assert sentences(two) == "3 workers up. 2 workflows are stalled, the longest for 3 min, waiting for shop.pick."
    assert findings(two)[1].link == FindingLink("/workflows")
    assert "2+ workflows are stalled" in sentences(replace(two, stuck_more=True))


def test_workflow_that_waits_for_a_slow_task_may_be_stuck() -> None:
    facts = replace(WELL, stalls=Stalls(workflows=[SlowWorkflow("r7", "shop.count", 4.0, 1.25)]))
    found = findings(facts)[1]
    assert found.text == "A workflow may be stuck: shop.count has run for 4 s; usually 1.2 s at most."
    assert (found.tone, found.link) == ("warning", FindingLink("/workflows/r7"))
    assert "good" not in tones(facts)
    assert "may be stuck" not in sentences(replace(facts, stuck=[make_waiting("r7", "shop.count", 90.0)]))


def test_workflow_that_waits_for_something_new_is_told_without_alarm() -> None:
    slow = [SlowWorkflow("r7", "shop.count", 4.0, None), SlowWorkflow("r8", None, 3.5, None)]
    facts = replace(WELL, stalls=Stalls(workflows=slow))
    assert "2 workflows are waiting, one for shop.count for 4 s; its usual run time is not known yet." in sentences(
        facts
    )
    assert tones(facts) == {"plain", "good"}


# --- failures


def test_one_failure_is_singular_and_linked_to_its_group() -> None:
    facts = replace(WELL, failures=FailureCounts(open=1), top_failure=make_group(5, "KeyError", None, 1))
    assert findings(facts)[-1] == Finding(
        "failures", "bad", "1 failure in 15 min: KeyError.", link=FindingLink("/failures/5")
    )


def test_failures_of_one_kind() -> None:
    facts = replace(WELL, failures=FailureCounts(open=9), top_failure=make_group(5, "KeyError", "shop.cart", 9))
    assert sentences(facts) == "3 workers up. 9 failures in 15 min, all KeyError in shop.cart."


def test_large_numbers_have_thin_separators() -> None:
    assert "12\u202f345 failures" in sentences(replace(WELL, failures=FailureCounts(open=12_345)))


def test_new_kind_of_failure_is_said_however_rare_it_is() -> None:
    new = make_group(31, "KeyError", "shop.pick")
    top = make_group(7, "TimeoutError", "shop.pay", 8)
    facts = replace(WELL, failures=FailureCounts(open=9), top_failure=top, new_failures=[new])
    assert sentences(facts).endswith("8 of them TimeoutError in shop.pay. New: KeyError in shop.pick.")
    assert findings(facts)[-1].link == FindingLink("/failures/31")
    back = make_group(4, "OSError", None, state=FailureState.REGRESSED)
    assert sentences(replace(facts, new_failures=[back, new, new])).endswith(
        "Back again: OSError, and 2 other kinds of failure."
    )


def test_failures_that_need_nobody_are_told_apart() -> None:
    top = make_group(5, "KeyError", "shop.cart", 30)
    facts = replace(WELL, failures=FailureCounts(open=32, muted=80), top_failure=top)
    assert (
        sentences(facts) == "3 workers up. 112 failures in 15 min, 80 of them muted, 30 of them KeyError in shop.cart."
    )
    facts = replace(facts, failures=FailureCounts(open=30, muted=80, resolved=2))
    assert "112 failures in 15 min, 80 of them muted and 2 resolved, 30 of them" in sentences(facts)


def test_failures_that_are_all_muted_alarm_nobody() -> None:
    last = findings(replace(WELL, failures=FailureCounts(muted=7)))[-1]
    assert (last.text, last.tone) == ("7 failures in 15 min, all muted.", "plain")
