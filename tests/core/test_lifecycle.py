"""Each case of what a lifecycle must survive, by name; then any order, doubling and loss of events."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.core.lifecycle import REMOVED, fold, parse_time
from celery_monitor.records.event import Event
from celery_monitor.records.task import Outcome, Task, TaskState
from tests.factories import NOW, make_event, make_id

A = "worker1@shop"
B = "worker2@shop"


def received(at: float, *, on: str = A, retries: int = 0, **more: object) -> Event:
    fields = {"name": "shop.pay", "args": "(7,)", "kwargs": "{}", "retries": retries, "root_id": make_id(0), **more}
    return make_event("task-received", timestamp=NOW + at, hostname=on, **fields)


def event(kind: str, at: float, *, on: str = A, **more: object) -> Event:
    return make_event(f"task-{kind}", timestamp=NOW + at, hostname=on, **more)


def folded(*events: Event) -> Task:
    task = Task(cluster="shop", id=make_id(0))
    for each in events:
        fold(task, each)
    return task


SUCCESS = [received(0), event("started", 1), event("succeeded", 3, result="'ok'", runtime=1.5)]
RETRIED = [
    received(0),
    event("started", 1),
    event("retried", 2, exception="Retry('no')", traceback="T"),
    received(3, retries=1),
    event("started", 4),
    event("succeeded", 5, result="1", runtime=0.9),
]


def test_the_ordinary_task() -> None:
    task = folded(event("sent", -1, on="gen1@web", queue="payments", name="shop.pay"), *SUCCESS)
    assert (task.state, task.queue, task.client, task.sent) == (TaskState.SUCCESS, "payments", "gen1@web", NOW - 1)
    assert (task.received, task.started, task.finished) == (NOW, NOW + 1, NOW + 3)
    assert (task.wait, task.runtime, task.result) == (1.0, 1.5, "'ok'")


def test_only_sent_is_pending() -> None:
    assert folded(event("sent", 0, queue="mail")).state is TaskState.PENDING


def test_sent_that_comes_last_changes_no_state() -> None:
    task = folded(*SUCCESS, event("sent", -1, on="gen1@web", queue="payments"))
    assert (task.state, task.queue) == (TaskState.SUCCESS, "payments")


def test_a_retry_is_a_second_run() -> None:
    task = folded(*RETRIED)
    assert [(run.retries, run.outcome) for run in task.runs] == [(0, Outcome.RETRIED), (1, Outcome.SUCCEEDED)]
    assert task.state is TaskState.SUCCESS


def test_the_next_run_is_received_before_the_retry_is_said() -> None:
    task = folded(
        received(0), event("started", 1), received(2, retries=1), event("started", 2.1), event("retried", 2.2)
    )
    assert task.state is TaskState.STARTED
    assert [(run.started, run.ended) for run in task.runs] == [(NOW + 1, NOW + 2.2), (NOW + 2.1, None)]


def test_late_retried_event_does_not_regress() -> None:
    first, started, retried, *rest = RETRIED
    assert folded(first, started, *rest, retried).state is TaskState.SUCCESS
    assert folded(*rest, first, started, retried).state is TaskState.SUCCESS


def test_a_retry_on_another_worker_whose_clock_is_an_hour_behind() -> None:
    task = folded(
        received(0),
        event("started", 1),
        event("retried", 2),
        received(-3597, on=B, retries=1),
        event("started", -3596, on=B),
        event("succeeded", -3595, on=B, runtime=1.0),
    )
    assert (task.state, task.worker, task.wait) == (TaskState.SUCCESS, B, 1.0)


def test_a_task_that_names_itself_as_parent_has_none() -> None:
    assert folded(received(0, retries=1, parent_id=make_id(0))).parent_id is None
    assert folded(
        received(0, retries=1, parent_id=make_id(0)), received(-9, parent_id=make_id(5))
    ).parent_id == make_id(5)


def test_a_killed_worker_leaves_the_task_started_until_it_is_said_to_be_lost() -> None:
    task = folded(received(0), event("started", 1))
    assert task.state is TaskState.STARTED
    fold(task, event("lost", 60, exception="worker1@shop is silent for 60 s"))
    assert (task.state, task.exception) == (TaskState.LOST, "worker1@shop is silent for 60 s")


def test_a_late_end_takes_a_lost_task_back() -> None:
    task = folded(received(0), event("started", 1), event("lost", 60), event("succeeded", 2, result="5"))
    assert (task.state, task.finished, task.result) == (TaskState.SUCCESS, NOW + 2, "5")


def test_a_redelivery_takes_a_lost_task_back() -> None:
    task = folded(received(0), event("started", 1), event("lost", 60), received(61, on=B))
    assert (task.state, task.worker) == (TaskState.RECEIVED, B)
    assert task.runs[0].outcome is Outcome.LOST


def test_a_restarted_worker_of_the_same_name_does_not_share_the_loss() -> None:
    task = folded(received(0), event("started", 1), received(20, pid=99), event("started", 21, pid=99))
    fold(task, event("lost", 60, pid=4711))
    assert (task.state, task.runs[0].outcome) == (TaskState.STARTED, Outcome.LOST)


def test_a_task_that_is_found_again_is_what_it_was() -> None:
    task = folded(received(0), event("started", 1), event("lost", 60), event("found", 61))
    assert (task.state, task.exception, task.finished) == (TaskState.STARTED, None, None)


def test_a_redelivery_is_a_new_run() -> None:
    task = folded(received(0), event("started", 1), received(30, on=B), event("started", 31, on=B))
    assert [run.worker for run in task.runs] == [A, B]
    assert task.state is TaskState.STARTED


def test_a_rejection_that_requeues_is_not_the_end() -> None:
    task = folded(received(0), event("started", 1), event("rejected", 2, requeue=True))
    assert (task.state, task.runs[0].outcome) == (TaskState.PENDING, Outcome.REQUEUED)
    fold(task, received(3, on=B))
    assert task.state is TaskState.RECEIVED


def test_failing_twice_is_failing_once() -> None:
    task = folded(
        received(0),
        event("started", 1),
        event("failed", 31, exception="TimeLimitExceeded(30,)"),
        event("failed", 31.2, exception="TimeLimitExceeded(30,)", traceback="later"),
    )
    assert (task.state, len(task.runs), task.finished) == (TaskState.FAILURE, 1, NOW + 31)
    assert task.traceback == "later"


@pytest.mark.parametrize("order", [("failed", "rejected"), ("rejected", "failed")])
def test_failure_wins_over_the_rejection_that_comes_with_it(order: tuple[str, str]) -> None:
    ends = {"failed": event("failed", 2, exception="Reject('no')"), "rejected": event("rejected", 2.1, requeue=False)}
    task = folded(received(0), event("started", 1), *(ends[each] for each in order))
    assert (task.state, task.exception, len(task.runs)) == (TaskState.FAILURE, "Reject('no')", 1)


def test_a_rejection_before_the_failure_by_the_clock_loses_too() -> None:
    task = folded(received(0), event("rejected", 2, requeue=False), event("failed", 2.1, exception="ValueError()"))
    assert (task.state, task.exception) == (TaskState.FAILURE, "ValueError()")


def test_an_ignored_task_stays_started() -> None:
    assert folded(received(0), event("started", 1)).state is TaskState.STARTED


def test_revoked_before_it_was_received_has_no_name_until_it_comes() -> None:
    task = folded(event("revoked", 5, terminated=False, signum=None, expired=True))
    assert (task.state, task.name, task.exception) == (TaskState.REVOKED, None, "expired")
    fold(task, received(4))
    assert (task.state, task.name) == (TaskState.REVOKED, "shop.pay")


@pytest.mark.parametrize("signum", [15, "SIGTERM"])
def test_a_terminated_task_names_the_signal(signum: int | str) -> None:
    task = folded(received(0), event("started", 1), event("revoked", 2, terminated=True, signum=signum, expired=False))
    assert (task.state, task.exception) == (TaskState.REVOKED, f"terminated by signal {signum}")


def test_an_eta_ahead_is_scheduled_and_does_not_count_as_waiting() -> None:
    task = folded(received(0, eta="2026-05-28T20:26:50+00:00"))
    eta = parse_time("2026-05-28T20:26:50+00:00")
    assert eta is not None
    assert eta > NOW
    assert (task.state, task.eta) == (TaskState.SCHEDULED, eta)
    fold(task, event("started", eta - NOW + 0.5))
    assert task.wait == pytest.approx(0.5)


def test_the_same_id_again_is_a_second_cycle() -> None:
    again = [received(10, args="(8,)"), event("started", 11), event("failed", 12, exception="E()")]
    task = folded(*SUCCESS, *again)
    assert (task.state, task.args, len(task.runs)) == (TaskState.FAILURE, "(8,)", 2)
    assert folded(*RETRIED, received(10), event("started", 11)).state is TaskState.STARTED


def test_a_cancelled_run_will_be_delivered_again() -> None:
    assert folded(received(0), event("started", 1), event("cancelled", 2)).state is TaskState.RETRY


def test_run_time_is_measured_where_the_event_has_none() -> None:
    assert folded(received(0), event("started", 1), event("failed", 3.5)).runtime == 2.5
    assert folded(received(0), event("started", 1), event("succeeded", 3.5, runtime=None)).runtime == 2.5
    assert folded(event("failed", 3.5)).runtime is None


def test_unknown_types_say_nothing() -> None:
    assert not fold(Task(cluster="shop", id="x"), event("progress", 1))


@pytest.mark.parametrize("text", ["", "soon", "9999-99-99", "2026-11-22T10:00:00+99:99"])
def test_a_time_that_is_none_is_unknown(text: str) -> None:
    assert parse_time(text) is None


def test_a_time_without_a_zone_is_utc() -> None:
    assert parse_time("1970-01-01T00:01:00") == 60.0


STREAMS: dict[str, list[Event]] = {
    "success": SUCCESS,
    "failure": [received(0), event("started", 1), event("failed", 2, exception="E()", traceback="T")],
    "retried twice": [
        *RETRIED[:-1],
        event("retried", 5),
        received(6, retries=2),
        event("started", 7),
        event("failed", 8, exception="E()"),
    ],
    "overlapping retry": [
        received(0),
        event("started", 1),
        received(2, retries=1),
        event("started", 2.1),
        event("retried", 2.2),
        event("succeeded", 2.3),
    ],
    "retry on another worker": [
        *RETRIED[:3],
        received(3, on=B, retries=1),
        event("started", 4, on=B),
        event("succeeded", 5, on=B),
    ],
    "redelivered": [
        received(0),
        event("started", 1),
        received(30, on=B),
        event("started", 31, on=B),
        event("succeeded", 32, on=B),
    ],
    "requeued": [
        received(0),
        event("started", 1),
        event("rejected", 2, requeue=True),
        received(3),
        event("started", 4),
        event("succeeded", 5),
    ],
    "hard limit": [received(0), event("started", 1), event("failed", 31), event("failed", 31.2)],
    "rejected": [received(0), event("started", 1), event("failed", 2), event("rejected", 2.1, requeue=False)],
    "expired": [received(0), event("revoked", 5, expired=True)],
    "same id again": [*SUCCESS, received(10), event("started", 11), event("failed", 12)],
    "sent with eta": [
        event("sent", -1, on="gen1@web", queue="mail"),
        received(0, eta="2026-05-28T20:26:50+00:00"),
        event("started", 60),
        event("succeeded", 61),
    ],
}


def _end(stream: list[Event]) -> Event:
    """The last event that ends the task."""
    ends = {"task-succeeded", "task-failed", "task-revoked"}
    return [each for each in stream if each.type in ends][-1]


@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_any_order_doubling_and_loss_ends_in_the_same_state(name: str, data: st.DataObject) -> None:
    stream = STREAMS[name]
    end = _end(stream)
    kept = [each for each in stream if each is end or data.draw(st.booleans())]
    doubled = kept + data.draw(st.lists(st.sampled_from(kept), max_size=4))
    shuffled = data.draw(st.permutations(doubled))
    assert folded(*shuffled).state is folded(*stream).state


@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_any_order_of_all_events_gives_the_same_runs(name: str, data: st.DataObject) -> None:
    stream = STREAMS[name]
    assert folded(*data.draw(st.permutations(stream))).runs == folded(*stream).runs


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_is_replayed_changes_nothing(name: str) -> None:
    task = folded(*STREAMS[name])
    before = copy.deepcopy(task)
    assert [fold(task, each) for each in STREAMS[name]] == [False] * len(STREAMS[name])
    assert task == before


any_event = st.builds(
    make_event,
    st.sampled_from([f"task-{kind}" for kind in ("sent", "received", "started", "succeeded", "failed", "retried")])
    | st.sampled_from(["task-rejected", "task-revoked", "task-cancelled", "task-lost", "task-found", "task-x"]),
    timestamp=st.floats(allow_nan=False) | st.integers(0, 9).map(float),
    hostname=st.sampled_from([A, B]),
    pid=st.none() | st.integers(1, 2),
    retries=st.none() | st.integers(),
    eta=st.none() | st.text(),
    requeue=st.none() | st.booleans(),
    runtime=st.none() | st.floats(),
)


@given(st.lists(any_event, max_size=12))
def test_no_events_whatever_make_it_raise(events: list[Event]) -> None:
    task = folded(*events)
    assert task.state in TaskState


def test_task_that_a_worker_was_found_to_run_is_discovered_and_its_late_events_add_no_run() -> None:
    running = make_event("monitor-running", timestamp=NOW, uuid=make_id(5), name="shop.pay", discovered_at=NOW + 9)
    late = make_event("task-started", timestamp=NOW + 0.2, uuid=make_id(5))
    ended = make_event("task-succeeded", timestamp=NOW + 40, uuid=make_id(5), runtime=39.5)
    for events in ((running, late, ended), (running, ended, late), (running, running, late, ended)):
        task = Task("shop", make_id(5))
        for event in events:
            fold(task, event)
        assert [(run.received, run.started, run.ended, run.runtime) for run in task.runs] == [
            (None, NOW, NOW + 40, 39.5)
        ]
        assert (task.state, task.name, task.discovered_at) == (TaskState.SUCCESS, "shop.pay", NOW + 9)


@pytest.mark.parametrize("eta", [None, "2026-06-01T12:00:00+00:00"])
def test_task_that_a_worker_was_found_to_hold_has_an_unknown_receipt_and_yields_to_its_events(eta: str | None) -> None:
    on_worker = make_event("monitor-held", timestamp=NOW, uuid=make_id(6), eta=eta, discovered_at=NOW)
    task = Task("shop", make_id(6))
    assert fold(task, on_worker)
    assert not fold(task, on_worker)
    assert task.state is (TaskState.SCHEDULED if eta else TaskState.RECEIVED)
    assert (task.received, task.wait, task.discovered_at, task.worker) == (None, None, NOW, "worker1@shop")
    lost = make_event("task-lost", timestamp=NOW + 5, uuid=make_id(6), exception="it is gone")
    assert fold(task, lost)
    assert (task.state, task.exception) == (TaskState.LOST, "it is gone")
    assert fold(task, make_event("task-found", uuid=make_id(6)))
    assert fold(task, make_event("task-started", timestamp=NOW + 7, uuid=make_id(6)))
    assert (task.state, task.started, len(task.runs)) == (TaskState.STARTED, NOW + 7, 1)
    assert fold(task, make_event("task-received", timestamp=NOW - 3, uuid=make_id(6)))
    assert (task.received, task.started, task.discovered_at, len(task.runs)) == (NOW - 3, NOW + 7, None, 1)


def test_end_on_an_unknown_worker_yields_to_what_a_worker_says() -> None:
    sent = make_event("task-sent", timestamp=NOW, uuid=make_id(7), hostname="gen3@web")
    lost = make_event(
        "task-lost", timestamp=NOW + 30, uuid=make_id(7), hostname="", pid=None, exception="nobody has it"
    )
    from_backend = make_event(
        "task-succeeded", timestamp=NOW + 8, uuid=make_id(7), hostname="", pid=None, result="'paid'"
    )
    reported = make_event("task-succeeded", timestamp=NOW + 8.1, uuid=make_id(7), result="'paid'", runtime=2.5)
    task = Task("shop", make_id(7))
    states = []
    for event in (sent, lost, from_backend, reported):
        fold(task, event)
        states.append((task.state, len(task.runs), task.worker))
    assert states == [
        (TaskState.PENDING, 0, None),
        (TaskState.LOST, 1, None),
        (TaskState.SUCCESS, 1, None),
        (TaskState.SUCCESS, 1, "worker1@shop"),
    ]


def test_success_that_the_backend_and_then_an_event_tell_is_one_run() -> None:
    task = Task("shop", make_id(8))
    for event in (
        make_event("task-started", timestamp=NOW, uuid=make_id(8)),
        make_event("task-succeeded", timestamp=NOW + 2.01, uuid=make_id(8), result="'paid'"),
        make_event("task-succeeded", timestamp=NOW + 2, uuid=make_id(8), result="'paid'", runtime=1.9),
    ):
        fold(task, event)
    assert [(run.ended, run.outcome) for run in task.runs] == [(NOW + 2, Outcome.SUCCEEDED)]


def removed(at: float, text: str = "queue mail purged by ada") -> Event:
    return make_event(REMOVED, timestamp=NOW + at, hostname="", pid=None, uuid=make_id(0), exception=text)


def test_task_whose_message_was_removed_is_revoked_with_who_did_it() -> None:
    task = folded(event("sent", 0, queue="mail"), removed(9), removed(9.5, "again"))
    assert (task.state, task.exception, task.worker) == (TaskState.REVOKED, "queue mail purged by ada", None)
    assert len(task.runs) == 1


def test_message_that_a_worker_gave_back_is_removed_from_its_queue() -> None:
    task = folded(received(0), removed(9))
    assert [run.outcome for run in task.runs] == [Outcome.REQUEUED, Outcome.REVOKED]
    assert task.state is TaskState.REVOKED


@pytest.mark.parametrize(("events", "state"), [(SUCCESS, TaskState.SUCCESS), (SUCCESS[:2], TaskState.STARTED)])
def test_removed_copy_of_a_message_ends_no_run(events: list[Event], state: TaskState) -> None:
    assert folded(*events, removed(9)).state is state


@pytest.mark.parametrize("at", [3.0, 12.0])
@pytest.mark.parametrize("conclusion", [removed(9), make_event("task-lost", timestamp=NOW + 9, hostname="", pid=None)])
def test_worker_that_has_the_task_after_all_takes_the_conclusion_back(conclusion: Event, at: float) -> None:
    task = folded(event("sent", 0, queue="mail"), conclusion, received(at), event("started", at + 1))
    assert (task.state, len(task.runs), task.received) == (TaskState.STARTED, 1, NOW + at)
    assert folded(event("sent", 0), conclusion, event("started", at)).state is TaskState.STARTED
