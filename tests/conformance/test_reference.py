"""The reference on the sequences that are easy to get wrong, each as Celery 5.7 sends it."""

from tests.conformance.reference import Event, Task, evaluate, is_readable, workflows
from tests.conformance.test_compare import event, received, sent

ID = "c0de"


def task(*events: Event) -> Task:
    return evaluate(events)[ID]


def test_a_replaced_task_is_its_second_call() -> None:
    given = task(
        received(ID, 10.0, 1, name="shop.order", parent_id="p1"),
        event("started", ID, 10.5, 2),
        sent(ID, 10.75, 3, name="shop.pack", args="(5,)", parent_id="p2", queue="slow"),
        received(ID, 11.0, 4, name="shop.pack", args="(5,)", parent_id="p2"),
        event("started", ID, 11.5, 5),
        event("succeeded", ID, 12.0, 6, runtime=0.25, result="6"),
    )
    wanted = {"name": "shop.pack", "args": "(5,)", "queue": "slow", "parent_id": "p2", "state": "SUCCESS"}
    assert {key: given.facts[key] for key in wanted} == wanted
    assert given.facts["runs"] == ["replaced", "succeeded"]


def test_a_retry_that_is_received_before_the_run_before_it_ended() -> None:
    given = task(
        received(ID, 10.0, 1),
        event("started", ID, 10.5, 2),
        received(ID, 11.0, 3, retries=1, parent_id=ID),
        event("retried", ID, 11.25, 4, exception="..."),
    )
    assert (given.state, given.parent, given.facts["retries"], given.facts["started"]) == ("RECEIVED", None, 1, None)


def test_an_eta_ahead_is_scheduled() -> None:
    given = task(received(ID, 10.0, 1, eta="1970-01-01T00:01:00+00:00"))
    assert (given.state, given.facts["eta"]) == ("SCHEDULED", 60.0)


def test_a_rejection_without_requeue_is_a_failure() -> None:
    events = [received(ID, 10.0, 1), event("started", ID, 10.5, 2)]
    events += [event("failed", ID, 11.0, 3), event("rejected", ID, 11.0, 4, requeue=False)]
    assert task(*events).state == "FAILURE"


def test_a_task_that_was_rejected_back_into_its_queue_waits() -> None:
    events = [received(ID, 10.0, 1), event("started", ID, 10.5, 2), event("rejected", ID, 11.0, 3, requeue=True)]
    assert task(*events).state == "PENDING"


def test_a_task_revoked_before_its_start_never_ran() -> None:
    given = task(received(ID, 10.0, 1), event("revoked", ID, 11.0, 2, expired=True))
    assert (given.state, given.runtime, given.facts["finished"]) == ("REVOKED", None, 11.0)


def test_a_run_time_that_is_not_sent_is_measured() -> None:
    given = task(received(ID, 10.0, 1), event("started", ID, 10.5, 2), event("failed", ID, 13.0, 3))
    assert given.runtime == 2.5


def test_texts_of_arguments_that_lost_something_are_not_read_back() -> None:
    assert all(map(is_readable, ["('a', 'b')", "['b', -3]", "{'x': [1.5, {'y': None}]}", "()"]))
    assert not any(
        map(is_readable, ["('aaa...',)", "('a\\\\b',)", "(<object>,)", "([[[1]]],)", "(b'a',)", "([(1, 2)],)", None])
    )


def test_a_workflow_is_a_root_with_others() -> None:
    tasks = evaluate([sent("9f3c", 1.0, 1), sent("41ab", 2.0, 2), sent("alone", 3.0, 3, root_id="alone")])
    assert workflows(tasks.values()) == {"9f3c": {"9f3c", "41ab"}}
