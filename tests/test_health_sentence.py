from monitor.health_sentence import Disconnected
from monitor.health_sentence import Facts
from monitor.health_sentence import GrowingQueue
from monitor.health_sentence import LostTasks
from monitor.health_sentence import NewFailure
from monitor.health_sentence import Overdue
from monitor.health_sentence import Part
from monitor.health_sentence import PausedQueue
from monitor.health_sentence import SilentWorker
from monitor.health_sentence import StuckWorkflow
from monitor.health_sentence import TopFailure
from monitor.health_sentence import sentence
from monitor.health_sentence import stalled_words
from monitor.records import Count
from monitor.stalls import LongTask
from monitor.stalls import SlowWorkflow
from monitor.stalls import StalledWorker

WELL = Facts(workers_up=3, receivers=1, seen_tasks=True, failures=0)


def told(facts: Facts) -> str:
    return " ".join(part.text for part in sentence(facts))


def tones(facts: Facts) -> set[str]:
    return {part.tone for part in sentence(facts)}


def test_all_well_says_so() -> None:
    assert told(WELL) == "3 workers up. Nothing is failing and no queue is growing."
    assert tones(WELL) == {"plain", "good"}


def test_the_example_of_the_specification() -> None:
    facts = Facts(
        workers_up=2,
        workers_offline=1,
        receivers=1,
        growing=[GrowingQueue("emails", 412, 195.0)],
        failures=18,
        top_failure=TopFailure("TimeoutError", "shop.pay", 14, group=7),
    )
    assert told(facts) == (
        "2 of 3 workers up. emails is growing: 412 waiting, oldest 3 min. "
        "18 failures in 15 min, 14 of them TimeoutError in shop.pay."
    )


def test_each_part_of_the_example_is_a_link() -> None:
    facts = Facts(
        workers_up=2,
        receivers=1,
        growing=[GrowingQueue("emails", 412)],
        failures=18,
        top_failure=TopFailure("TimeoutError", "shop.pay", 14, group=7),
    )
    assert [(part.path, part.query) for part in sentence(facts)] == [
        ("/workers", {}),
        ("/queues/emails", {}),
        ("/tasks", {"q": "state:failed finished:>-15m"}),
        ("/failures/7", {}),
    ]


def test_nothing_seen_yet() -> None:
    assert told(Facts()) == "No receiver has run on this record yet, so nothing is known."
    assert told(Facts(receivers=1, failures=0)) == "No worker has been seen yet."


def test_no_workers_is_bad_and_never_well() -> None:
    facts = Facts(workers_offline=4, receivers=1, failures=0)
    assert told(facts) == "No worker is up; 4 known."
    assert tones(facts) == {"bad"}


def test_tasks_without_a_worker() -> None:
    assert told(Facts(receivers=1, seen_tasks=True, failures=0)) == "Tasks were seen, but no worker."


def test_no_broker_comes_first_and_is_never_well() -> None:
    facts = WELL._replace(disconnected=[Disconnected("shop", 75.0)])
    assert told(facts) == "The broker cannot be reached since 1 min, so what follows is old. 3 workers up."
    assert "good" not in tones(facts)


def test_a_broker_never_reached_has_no_since() -> None:
    facts = Facts(receivers=2, many_clusters=True, disconnected=[Disconnected("mail")])
    assert sentence(facts)[0].text == "The broker of mail cannot be reached, so what follows is old."


def test_a_gap_is_said() -> None:
    facts = WELL._replace(missed_seconds=42.4)
    assert told(facts) == "3 workers up. Events of 42 s may be missing from these numbers."


def test_unknown_failures_are_not_called_well() -> None:
    assert told(WELL._replace(failures=None)) == "3 workers up."


def test_silent_workers_may_be_busy() -> None:
    facts = WELL._replace(workers_silent=1)
    assert sentence(facts)[1] == Part("1 worker is silent, perhaps only busy.", "/workers", tone="warning")


def test_receiver_behind() -> None:
    assert told(WELL._replace(lag_seconds=31.0)).startswith("The receiver is 31 s behind. 3 workers up.")
    assert "behind" not in told(WELL._replace(lag_seconds=2.0))


def test_one_failure_is_singular_and_linked_to_its_group() -> None:
    facts = WELL._replace(failures=1, top_failure=TopFailure("KeyError", None, 1, group=5))
    assert sentence(facts)[-1] == Part("1 failure in 15 min: KeyError.", "/failures/5", {}, "bad")


def test_failures_of_one_kind() -> None:
    facts = WELL._replace(failures=9, top_failure=TopFailure("KeyError", "shop.cart", 9))
    assert told(facts) == "3 workers up. 9 failures in 15 min, all KeyError in shop.cart."


def test_queue_without_consumer_is_worse_than_growing() -> None:
    queue = GrowingQueue("mail", 1, 7300.0)
    facts = WELL._replace(growing=[queue], unattended=[queue])
    assert sentence(facts)[1] == Part("mail has 1 message and no consumer, oldest 2 h.", "/queues/mail", tone="bad")
    assert "growing" not in told(facts)


def test_many_growing_queues_are_counted() -> None:
    facts = WELL._replace(growing=[GrowingQueue(f"q{n}", 50 + n) for n in range(3)])
    assert sentence(facts)[1] == Part("3 queues are growing.", "/queues", tone="warning")


def test_hostile_queue_name_is_quoted_in_its_link() -> None:
    facts = WELL._replace(growing=[GrowingQueue("a/b?c#<script>", 99)])
    assert sentence(facts)[1].path == "/queues/a%2Fb%3Fc%23%3Cscript%3E"


def test_large_numbers_have_thin_separators() -> None:
    facts = WELL._replace(failures=12_345)
    assert "12\u202f345 failures" in told(facts)


def test_overdue_entries_are_said_and_a_stopped_beat_first() -> None:
    late = [Overdue("nightly report", 200.0), Overdue("cleaning", 70.0)]
    facts = WELL._replace(overdue=late)
    assert told(facts) == (
        "3 workers up. nightly report should have been sent 3 min ago. cleaning should have been sent 1 min ago."
    )
    assert {part.path for part in sentence(facts)[1:]} == {"/schedule"}
    assert "3 entries of the schedule are overdue." in told(facts._replace(overdue=[*late, late[0]]))
    assert "Beat seems to have stopped: 2 entries" in told(facts._replace(beat_stopped=True))
    assert "Nothing is failing" not in told(WELL._replace(beat_stopped=True))


def test_worker_that_is_gone_is_named() -> None:
    facts = WELL._replace(workers_offline=1, gone=["mail@shop"])
    assert told(facts).startswith("3 of 4 workers up, without mail@shop.")
    assert told(facts._replace(gone=["a", "b", "c"])).startswith("3 of 4 workers up.")


def test_workflow_that_stands_still_is_said_with_what_it_waits_for() -> None:
    one = WELL._replace(stuck=[StuckWorkflow("a/b", "shop.pick", 190.0)])
    assert told(one) == "3 workers up. A workflow has stood still for 3 min, waiting for shop.pick."
    assert sentence(one)[1].path == "/workflows/a%2Fb"
    two = WELL._replace(stuck=[*one.stuck, StuckWorkflow("c", None, 90.0)])
    assert told(two) == "3 workers up. 2 workflows stand still, one for 3 min, waiting for shop.pick."
    assert sentence(two)[1].path == "/workflows"


def test_new_kind_of_failure_is_said_however_rare_it_is() -> None:
    new = [NewFailure(31, "KeyError", "shop.pick")]
    facts = WELL._replace(failures=9, top_failure=TopFailure("TimeoutError", "shop.pay", 8, 7), new_failures=new)
    assert told(facts).endswith("8 of them TimeoutError in shop.pay. New: KeyError in shop.pick.")
    assert sentence(facts)[-1].path == "/failures/31"
    again = facts._replace(new_failures=[NewFailure(4, "OSError", None, again=True), *new, *new])
    assert told(again).endswith("Back again: OSError, and 2 other kinds of failure.")


def test_silent_worker_is_named_with_its_silence() -> None:
    facts = WELL._replace(workers_up=2, workers_silent=1, silent=[SilentWorker("pick@shop", 4.3)], gone=["pick@shop"])
    assert told(facts) == (
        "2 of 3 workers up, without pick@shop. pick@shop has been silent for 4 s, perhaps only busy."
    )
    assert sentence(facts)[1].path == "/workers/pick%40shop"


def test_silence_of_a_worker_that_never_sent_a_heartbeat_has_no_length() -> None:
    facts = WELL._replace(workers_up=2, workers_silent=1, silent=[SilentWorker("pick@shop", None)], gone=["pick@shop"])
    assert "pick@shop is silent, perhaps only busy." in told(facts)


def test_silent_solo_worker_is_probably_busy_and_no_alarm() -> None:
    facts = WELL._replace(workers_up=2, workers_silent=1, busy=[SilentWorker("solo@shop", 7.0)])
    assert told(facts) == (
        "2 of 3 workers up and 1 probably busy. "
        "solo@shop has been silent for 7 s, as a solo pool is while it runs a task. "
        "Nothing is failing and no queue is growing."
    )
    assert tones(facts) == {"plain", "good"}


def test_worker_whose_tasks_do_not_move_may_be_stuck() -> None:
    waiting = StalledWorker("pick@shop", 4.0, 2, started=False)
    running = StalledWorker("count@shop", 31.0, 2, started=True, usual=0.05)
    facts = WELL._replace(stalled=[running, waiting])
    assert [part.text for part in sentence(facts)[1:]] == [
        "count@shop may be stuck: all 2 tasks it runs have run unusually long, one for 31 s; usually 0.1 s at most.",
        "pick@shop may be stuck: 2 tasks it has taken wait, one for 4 s, and none is started.",
    ]
    many = WELL._replace(stalled=[running, waiting, waiting])
    assert sentence(many)[1] == Part("3 workers may be stuck, one for 31 s.", "/workers", tone="bad")


def test_what_was_not_counted_to_its_end_is_said_to_be_more() -> None:
    assert stalled_words(StalledWorker("pick@shop", 4.0, 400, started=False, at_least=True)) == (
        "pick@shop may be stuck: at least 400 tasks it has taken wait, one for 4 s, and none is started."
    )


def test_workflow_that_waits_for_a_slow_task_may_be_stuck() -> None:
    facts = WELL._replace(slow=[SlowWorkflow("r7", "shop.count", 4.0, 1.25)])
    assert sentence(facts)[1] == Part(
        "A workflow may be stuck: shop.count has run for 4 s; usually 1.2 s at most.", "/workflows/r7", tone="warning"
    )
    assert "good" not in tones(facts)


def test_workflow_that_waits_for_something_new_is_told_without_alarm() -> None:
    facts = WELL._replace(slow=[SlowWorkflow("r7", "shop.count", 4.0, None), SlowWorkflow("r8", None, 3.5, None)])
    assert "2 workflows wait, one for shop.count since 4 s; how long that usually runs is not known yet." in told(facts)
    assert tones(facts) == {"plain", "good"}


def test_entry_that_is_barely_late_is_not_yet_bad() -> None:
    facts = WELL._replace(overdue=[Overdue("count", 3.4)])
    assert sentence(facts)[1] == Part("count was due 3 s ago and has not been seen.", "/schedule", tone="warning")


def test_entry_that_may_wait_in_a_full_queue_is_not_held_against_beat() -> None:
    waiting = Overdue("tick", 40, may_wait_in="picks")
    assert told(WELL._replace(overdue=[waiting])) == "3 workers up. tick was due 40 s ago and may wait in picks."
    both = told(WELL._replace(overdue=[Overdue("count", 50), waiting]))
    assert both == "3 workers up. count should have been sent 50 s ago. tick was due 40 s ago and may wait in picks."
    many = told(WELL._replace(overdue=[waiting] * 3))
    assert many == "3 workers up. 3 entries of the schedule were due and may wait in queues."
    stopped = told(WELL._replace(overdue=[waiting], beat_stopped=True))
    assert stopped.startswith("3 workers up. Beat seems to have stopped. tick was")


def test_failures_that_need_nobody_are_told_apart() -> None:
    top = TopFailure("KeyError", "shop.cart", 30)
    facts = WELL._replace(failures=112, failures_muted=80, top_failure=top)
    assert told(facts) == "3 workers up. 112 failures in 15 min, 80 of them muted, 30 of them KeyError in shop.cart."
    facts = facts._replace(failures_resolved=2)
    assert "112 failures in 15 min, 80 of them muted and 2 resolved, 30 of them" in told(facts)


def test_failures_that_are_all_muted_alarm_nobody() -> None:
    last = sentence(WELL._replace(failures=7, failures_muted=7))[-1]
    assert (last.text, last.tone) == ("7 failures in 15 min, all muted.", "plain")


def test_age_that_is_a_bound_says_so() -> None:
    queue = GrowingQueue("emails", 22, 190.0, oldest_exact=False)
    assert told(WELL._replace(unattended=[queue])).endswith(
        "emails has 22 messages and no consumer, oldest at least 3 min."
    )


def test_a_paused_queue_says_who_paused_it_and_when_instead_of_no_consumer() -> None:
    queue = PausedQueue("payments", "ada", 15.4, 22)
    facts = WELL._replace(paused=[queue], growing=[GrowingQueue("payments", 22)])
    assert told(facts) == "3 workers up. payments was paused by ada 15 s ago, 22 waiting."
    assert sentence(facts)[-1].path == "/queues/payments"
    assert told(WELL._replace(paused=[queue._replace(waiting=None)])).startswith(
        "3 workers up. payments was paused by ada 15 s ago. "
    )
    many = [queue._replace(name=f"q{number}", seconds=number) for number in range(3, 6)]
    assert told(WELL._replace(paused=many)).startswith("3 workers up. 3 queues are paused, q3 by ada 3 s ago.")


def test_a_process_that_is_in_one_task_for_long_is_named_with_what_is_usual() -> None:
    task = LongTask("w1@shop", "shop.report", "a/b", 850.0, 21.0)
    (_, part, *_) = sentence(WELL._replace(long_tasks=[task]))
    assert part.text == "w1@shop has been in shop.report for 14 min; usually 21 s at most."
    assert part.path == "/tasks/a%2Fb"
    text = told(WELL._replace(long_tasks=[task] * 3))
    assert "3 tasks run unusually long, shop.report on w1@shop for 14 min." in text


def test_lost_tasks_are_counted_and_never_well() -> None:
    query = "state:lost retried:no"
    facts = WELL._replace(lost=LostTasks(Count(3), 125.0, query))
    assert told(facts) == "3 workers up. 3 tasks are lost, newest 2 min ago."
    assert (sentence(facts)[-1].path, sentence(facts)[-1].query) == ("/tasks", {"q": query})
    assert "1 task is lost." in told(WELL._replace(lost=LostTasks(Count(1), None, query)))
    assert "10 000+ tasks are lost" in told(
        WELL._replace(lost=LostTasks(Count(10_000, exact=False), None, query))
    ).replace("\u202f", " ")
