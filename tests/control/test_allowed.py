import pytest

from celery_monitor.control.allowed import REFUSED, WARNINGS, warnings_of, why_not_retry, why_not_revoke
from celery_monitor.records.task import TaskState
from tests.factories import make_id, make_message, make_task

FINISHED = {TaskState.SUCCESS, TaskState.FAILURE, TaskState.REVOKED, TaskState.REJECTED}


@pytest.mark.parametrize("state", TaskState)
def test_a_task_is_sent_again_only_when_it_is_over_or_lost(state: TaskState) -> None:
    assert (state not in REFUSED) == (state in FINISHED | {TaskState.LOST})


@pytest.mark.parametrize("state", REFUSED)
def test_nothing_is_promised_of_a_task_that_was_not_looked_for(state: TaskState) -> None:
    task = make_task(state=state)
    assert "will" not in str(why_not_retry(task))
    assert str(why_not_retry(task, "its message was in payments just now")).endswith(
        "; its message was in payments just now"
    )


@pytest.mark.parametrize("state", TaskState)
def test_a_task_is_revoked_only_while_it_is_not_over(state: TaskState) -> None:
    assert (why_not_revoke(make_task(state=state)) is None) == (state not in FINISHED)


@pytest.mark.parametrize("state", TaskState)
def test_a_task_is_terminated_only_while_it_runs(state: TaskState) -> None:
    assert (why_not_revoke(make_task(state=state), terminate=True) is None) == (state is TaskState.STARTED)


@pytest.mark.parametrize("state", TaskState)
def test_what_may_happen_twice_is_warned_of(state: TaskState) -> None:
    assert (state in WARNINGS) == (state in {TaskState.SUCCESS, TaskState.LOST})


@pytest.mark.parametrize(
    ("why", "words"),
    [("waiting", "is still in the queue"), ("unacked", "redeliver it"), ("read", "may still be")],
)
def test_a_message_that_the_broker_delivers_anyway_is_warned_of(why: str, words: str) -> None:
    message = make_message(make_id(0), why=why)
    for state in (TaskState.LOST, TaskState.REVOKED):
        (warning,) = warnings_of(make_task(state=state), message)
        assert words in warning
        assert "runs the task twice" in warning
    assert warnings_of(make_task(state=TaskState.FAILURE), message) == ()
    assert warnings_of(make_task(state=TaskState.REVOKED), make_message(make_id(0))) == ()


def test_a_group_in_a_body_that_is_not_opened_may_be_a_chord() -> None:
    lost = make_task(state=TaskState.FAILURE)
    (warning,) = warnings_of(lost, make_message(make_id(0), headers={"group": "g7"}, links=False))
    assert "if that is a chord" in warning
    assert warnings_of(lost, make_message(make_id(0), headers={"group": "g7"})) == ()
    assert warnings_of(lost, make_message(make_id(0), links=False)) == ()
