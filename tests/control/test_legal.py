import pytest

from monitor.control.legal import REFUSED
from monitor.control.legal import WARNINGS
from monitor.control.legal import why_not_revoke
from monitor.records import TaskState
from tests.factories import make_task

FINISHED = {TaskState.SUCCESS, TaskState.FAILURE, TaskState.REVOKED, TaskState.REJECTED}


@pytest.mark.parametrize("state", TaskState)
def test_a_task_is_sent_again_only_when_it_is_over_or_lost(state: TaskState) -> None:
    assert (state not in REFUSED) == (state in FINISHED | {TaskState.LOST})


@pytest.mark.parametrize("state", TaskState)
def test_a_task_is_revoked_only_while_it_is_not_over(state: TaskState) -> None:
    assert (why_not_revoke(make_task(state=state)) is None) == (state not in FINISHED)


@pytest.mark.parametrize("state", TaskState)
def test_a_task_is_terminated_only_while_it_runs(state: TaskState) -> None:
    assert (why_not_revoke(make_task(state=state), terminate=True) is None) == (state is TaskState.STARTED)


@pytest.mark.parametrize("state", TaskState)
def test_what_may_happen_twice_is_warned_of(state: TaskState) -> None:
    assert (state in WARNINGS) == (state in {TaskState.SUCCESS, TaskState.LOST})
