"""Several messages of one id: replaced, retried, delivered again, sent again, in whatever order events come."""

import copy
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.core.lifecycle import fold
from celery_monitor.records.event import Event
from celery_monitor.records.task import Outcome, Task, TaskState
from tests.factories import NOW, make_event, make_id, make_message

A = "worker1@shop"
B = "worker2@shop"
CLIENT = "gen77@web"
POOL = "gen4712@shop"
ME = make_id(0)
START = {"name": "shop.start", "args": "('/data/a.csv',)", "kwargs": "{}", "retries": 0, "root_id": ME}
FAIL = {**START, "name": "shop.fail", "args": "('row 17', 'of /data/a.csv')", "parent_id": ME}


def sent(at: float, message: dict[str, object], *, by: str = CLIENT, queue: str = "imports", **more: object) -> Event:
    route = {"queue": queue, "exchange": "", "routing_key": queue}
    return make_event("task-sent", timestamp=NOW + at, hostname=by, pid=77, **{**message, **route, **more})


def received(at: float, message: dict[str, object], *, on: str = A, **more: object) -> Event:
    return make_event("task-received", timestamp=NOW + at, hostname=on, **{**message, **more})


def event(kind: str, at: float, *, on: str = A, **more: object) -> Event:
    return make_event(f"task-{kind}", timestamp=NOW + at, hostname=on, **more)


def folded(*events: Event) -> Task:
    task = Task(cluster="shop", id=ME)
    for each in events:
        fold(task, each)
    return task


def shown(task: Task) -> tuple[object, ...]:
    return (task.state, task.name, task.args, task.queue, task.client, task.sent)


def names(task: Task) -> list[str | None]:
    return [task.name if run.invocation is None else run.invocation.name for run in task.runs]


def ends(task: Task) -> list[Outcome | None]:
    return [run.outcome for run in task.runs]


FIRST = [sent(0, START), received(0.1, START), event("started", 0.2)]
# As a worker sent it: the pool process stamps its event before the worker stamps that the task has started.
REPLACED = [
    *FIRST,
    sent(0.199, FAIL, by=POOL, queue="rows"),
    received(0.3, FAIL),
    event("started", 0.4),
    event("failed", 0.5, exception="ValueError('row 17')", traceback="T"),
]
RETRY = {**FAIL, "retries": 1}
ITSELF = {**START, "args": "('/data/b.csv',)", "parent_id": ME}
AGAIN = {**START, "parent_id": ME}
OTHER = {**START, "args": "('/data/z.csv',)"}

STREAMS: dict[str, list[Event]] = {
    "replaced": REPLACED,
    "replaced, nobody reports sending": [each for each in REPLACED if each.type != "task-sent"],
    "replaced on another worker an hour behind": [
        *FIRST,
        sent(0.25, FAIL, by=POOL, queue="rows"),
        received(-3600, FAIL, on=B),
        event("started", -3599, on=B),
        event("failed", -3598, on=B, exception="E()"),
    ],
    "replaced by itself with other arguments": [
        *FIRST,
        sent(0.25, ITSELF, by=POOL),
        received(0.3, ITSELF),
        event("started", 0.4),
        event("succeeded", 0.5, runtime=0.09, result="1"),
    ],
    "replaced by itself twice with the same arguments": [
        *FIRST,
        sent(0.25, AGAIN, by=POOL),
        received(0.3, AGAIN),
        sent(0.45, AGAIN, by=POOL),
        received(0.5, AGAIN),
        event("started", 0.51),
        event("started", 0.6),
        event("succeeded", 0.7, runtime=0.1, result="1"),
    ],
    "replaced within a retry": [
        *FIRST,
        sent(0.25, {**START, "retries": 1, "parent_id": ME}, by=POOL),
        received(0.3, {**START, "retries": 1, "parent_id": ME}),
        event("retried", 0.4, exception="E()"),
        event("started", 0.5),
        received(0.6, FAIL),
        sent(0.601, FAIL, by=POOL, queue="rows"),
        event("started", 0.7),
        event("failed", 0.8, exception="E()"),
    ],
    "replaced by a task that is retried": [
        *FIRST,
        sent(0.25, FAIL, by=POOL, queue="rows"),
        received(0.3, FAIL),
        event("started", 0.4),
        sent(0.45, RETRY, by=POOL, queue="rows"),
        received(0.5, RETRY),
        event("started", 0.51),
        event("retried", 0.55, exception="E()"),
        event("failed", 0.8, exception="E()"),
    ],
    "replaced by a chain": [
        *FIRST,
        received(5, {**FAIL, "parent_id": make_id(9)}),
        sent(5.001, {**FAIL, "parent_id": make_id(9)}, by=POOL, queue="rows"),
        event("started", 5.1),
        event("failed", 5.2, exception="E()"),
    ],
}
# Celery's second_order_replace2, as its events came: a member of a workflow, replaced by a chain that ends with itself.
MEMBER = {**START, "name": "shop.pack", "args": "()", "root_id": make_id(5), "parent_id": make_id(5)}
CHAINED = {**MEMBER, "parent_id": make_id(6)}
CHAIN_WITHIN_WORKFLOW = [
    sent(0, MEMBER, by=POOL),
    received(0.01, MEMBER),
    event("started", 0.054),
    received(0.138, CHAINED),
    sent(0.14, CHAINED, by=POOL, queue="rows"),
    event("started", 0.165),
    event("succeeded", 0.194, runtime=0.032, result="None"),
]


@pytest.mark.parametrize("name", STREAMS)
def test_replaced_task_is_the_last_call_and_keeps_the_first_as_a_run_of_its_own(name: str) -> None:
    task = folded(*STREAMS[name])
    last = STREAMS[name][-1]
    assert task.state is (TaskState.FAILURE if last.type == "task-failed" else TaskState.SUCCESS)
    assert names(task)[0] == "shop.start"
    assert Outcome.REPLACED in ends(task)
    assert Outcome.REPLACED is not ends(task)[-1]
    assert None not in ends(task)
    message = [each for each in STREAMS[name] if each.type == "task-received"][-1]
    assert (task.name, task.args, task.root_id, task.retries) == (message.name, message.args, ME, message.retries)
    route = [each for each in STREAMS[name] if each.type == "task-sent" and each.name == message.name][-1:]
    if message.name == "shop.fail" and route:
        assert (task.queue, task.client, task.sent) == ("rows", POOL, route[-1].timestamp)


def test_run_that_was_replaced_ended_when_its_successor_was_sent_and_its_time_is_an_estimate() -> None:
    task = folded(*FIRST, sent(2.2, FAIL, by=POOL, queue="rows"), received(2.3, FAIL))
    run = task.runs[0]
    assert (run.outcome, run.ended) == (Outcome.REPLACED, NOW + 2.2)
    assert run.runtime == pytest.approx(2.0)
    assert run.runtime_estimated
    through_others = folded(*STREAMS["replaced by a chain"]).runs[0]
    assert (through_others.outcome, through_others.runtime) == (Outcome.REPLACED, None)
    elsewhere = folded(*FIRST, received(900, FAIL, on=B)).runs[0]
    assert (elsewhere.outcome, elsewhere.runtime) == (Outcome.REPLACED, None)


def test_first_call_keeps_its_arguments_and_its_route() -> None:
    first = folded(*REPLACED).runs[0].invocation
    assert first is not None
    assert (first.args, first.queue, first.client, first.sent) == ("('/data/a.csv',)", "imports", CLIENT, NOW)


def test_parent_of_a_replaced_task_is_the_one_that_called_it() -> None:
    called = {**START, "root_id": make_id(5), "parent_id": make_id(6)}
    task = folded(received(0, called), event("started", 1), received(2, {**FAIL, "root_id": make_id(5)}))
    assert (task.name, task.root_id, task.parent_id) == ("shop.fail", make_id(5), make_id(6))
    assert ends(task) == [Outcome.REPLACED, None]


def test_member_of_a_workflow_replaced_by_a_chain_is_known_by_name_and_parent() -> None:
    called = {**START, "root_id": make_id(5), "parent_id": make_id(6)}
    chained = {**FAIL, "root_id": make_id(5), "parent_id": make_id(7)}
    assert ends(folded(received(0, called), event("started", 1), received(2, chained))) == [Outcome.REPLACED, None]


def test_member_of_a_workflow_replaced_by_a_chain_that_ends_with_itself_is_known_by_its_parent() -> None:
    task = folded(*CHAIN_WITHIN_WORKFLOW)
    assert (task.state, task.parent_id, task.queue, task.runtime) == (TaskState.SUCCESS, make_id(6), "rows", 0.032)
    assert ends(task) == [Outcome.REPLACED, Outcome.SUCCEEDED]
    assert (task.runs[0].ended, task.runs[0].runtime) == (NOW + 0.138, None)


@given(st.permutations(CHAIN_WITHIN_WORKFLOW))
def test_any_order_of_events_tells_of_the_chain_that_replaced_a_member(events: list[Event]) -> None:
    assert folded(*events) == folded(*CHAIN_WITHIN_WORKFLOW)


@pytest.mark.parametrize(
    "again",
    [MEMBER, {**MEMBER, "parent_id": None}, {**CHAINED, "root_id": make_id(8)}],
    ids=["same parent", "no parent", "other workflow"],
)
def test_member_of_a_workflow_that_is_sent_again_may_still_run(again: dict[str, object]) -> None:
    assert ends(folded(*CHAIN_WITHIN_WORKFLOW[:3], received(0.138, again), event("started", 0.165))) == [None, None]


def test_signature_that_two_tasks_of_a_workflow_send_with_one_id_ended_as_its_worker_reports() -> None:
    task = folded(*CHAIN_WITHIN_WORKFLOW, event("succeeded", 9.054, runtime=9.0, result="4"))
    assert [(run.outcome, run.runtime) for run in task.runs] == [(Outcome.SUCCEEDED, 0.032), (Outcome.SUCCEEDED, 9.0)]
    unstarted = folded(received(0, MEMBER), received(0.1, CHAINED))
    assert ends(unstarted) == [None, None]


def test_replacement_that_is_only_sent_waits() -> None:
    task = folded(*FIRST, sent(0.25, FAIL, by=POOL, queue="rows"))
    assert shown(task) == (TaskState.PENDING, "shop.fail", FAIL["args"], "rows", POOL, NOW + 0.25)
    assert (task.worker, task.received, task.started, ends(task)) == (None, None, None, [Outcome.REPLACED, None])


@pytest.mark.parametrize("message", [START, OTHER, FAIL], ids=["same", "other arguments", "other name"])
def test_same_id_sent_again_reopens_the_task(message: dict[str, object]) -> None:
    ended = [*FIRST, event("succeeded", 1, runtime=0.8, result="1")]
    again = sent(60, {**message, "parent_id": None}, queue="mail")
    task = folded(*ended, again)
    assert shown(task) == (TaskState.PENDING, message["name"], message["args"], "mail", CLIENT, NOW + 60)
    assert (task.worker, task.finished, ends(task)) == (None, None, [Outcome.SUCCEEDED, None])
    fold(task, received(61, {**message, "parent_id": None}))
    assert (task.state, task.sent, len(task.runs)) == (TaskState.RECEIVED, NOW + 60, 2)


@pytest.mark.parametrize("skew", [-3600, -1, 0.5, 3600])
def test_sending_that_is_reported_late_reopens_nothing_whatever_the_senders_clock(skew: float) -> None:
    task = folded(*FIRST[1:], event("succeeded", 1, runtime=0.8, result="1"), sent(skew, START))
    assert shown(task) == (TaskState.SUCCESS, "shop.start", START["args"], "imports", CLIENT, NOW + skew)
    assert len(task.runs) == 1


def test_late_report_of_the_first_message_changes_nothing_of_the_second() -> None:
    task = folded(*REPLACED[1:])
    before = shown(task)
    fold(task, REPLACED[0])
    assert shown(task) == before
    first = task.runs[0].invocation
    assert first is not None
    assert first.queue == "imports"


def test_sender_that_hides_arguments_from_one_event_sent_one_message() -> None:
    for order in permutations([sent(0, {**START, "args": "('***',)"}), received(0.1, START), event("started", 0.2)]):
        task = folded(*order)
        assert (task.state, len(task.runs), task.args, task.queue) == (
            TaskState.STARTED,
            1,
            START["args"],
            "imports",
        ), order


def test_shadow_name_is_no_other_message() -> None:
    shadow = {**START, "name": "import of a.csv"}
    for order in permutations([sent(0, START), received(0.1, shadow), event("started", 0.2)]):
        task = folded(*order)
        assert (task.state, len(task.runs), task.name) == (TaskState.STARTED, 1, "shop.start"), order


def test_delivery_of_a_message_to_another_worker_is_of_the_same_message() -> None:
    task = folded(*FIRST, received(30, START, on=B))
    assert (task.state, task.worker, task.queue, task.sent) == (TaskState.RECEIVED, B, "imports", NOW)
    assert (ends(task), task.runs[0].invocation) == ([None, None], None)


def test_retry_shows_the_run_that_asked_for_it_until_a_worker_has_it() -> None:
    retry = {**START, "args": "('/data/c.csv',)", "retries": 1, "parent_id": ME}
    asked = [*FIRST, sent(0.3, retry, by=POOL, queue="slow"), event("retried", 0.4, exception="E()")]
    task = folded(*asked)
    assert shown(task) == (TaskState.RETRY, "shop.start", START["args"], "imports", CLIENT, NOW)
    assert (task.exception, task.worker, task.retries) == ("E()", A, 0)
    fold(task, received(1, retry, on=B))
    assert shown(task) == (TaskState.RECEIVED, "shop.start", retry["args"], "slow", POOL, NOW + 0.3)
    assert [run.invocation and run.invocation.queue for run in task.runs] == ["imports", None]


def test_retry_of_which_no_sending_is_reported_keeps_the_queue_and_not_the_sender() -> None:
    retry = {**START, "retries": 1, "parent_id": ME}
    task = folded(*FIRST, received(0.3, retry), event("retried", 0.4, exception="E()"))
    assert shown(task) == (TaskState.RECEIVED, "shop.start", START["args"], "imports", None, None)


def test_message_that_was_captured_of_the_first_call_tells_nothing_of_the_second() -> None:
    task = folded(*[each for each in REPLACED if each.type != "task-sent"])
    from_start = make_event("capture-message", uuid=ME, name="shop.start", message=make_message(ME, queue="imports"))
    assert not fold(task, from_start)
    assert task.queue is None


def test_two_deliveries_to_one_process_end_each_with_its_own_run_time() -> None:
    first = [received(0, START), event("started", 0.1)]
    second = [received(6, START), event("started", 6.1)]
    task = folded(*first, *second, event("succeeded", 130.1, runtime=129.5, result="1"))
    assert [(run.started, run.ended, run.runtime) for run in task.runs] == [
        (NOW + 0.1, NOW + 130.1, 129.5),
        (NOW + 6.1, None, None),
    ]
    states = [task.state]
    fold(task, event("succeeded", 136.2, runtime=129.75, result="1"))
    assert [(run.ended, run.runtime) for run in task.runs] == [(NOW + 130.1, 129.5), (NOW + 136.2, 129.75)]
    assert [*states, task.state] == [TaskState.STARTED, TaskState.SUCCESS]


@pytest.mark.parametrize("success_at", [5.001, 4.999], ids=["gevent", "eventlet"])
def test_greenlet_that_was_killed_is_revoked_though_a_success_is_reported_too(success_at: float) -> None:
    began = [received(0, START), event("started", 1)]
    killed = [event("revoked", 5, terminated=True, signum=15), event("succeeded", success_at)]
    for order in permutations([*began, *killed]):
        task = folded(*order)
        assert (task.state, ends(task), task.exception) == (
            TaskState.REVOKED,
            [Outcome.REVOKED],
            "terminated by signal 15",
        ), order
        assert (task.runtime, task.runtime_estimated) == (4.0, True)


def test_success_of_another_run_after_a_revocation_counts() -> None:
    revoked = [received(0, START), event("started", 1), event("revoked", 5, terminated=True, signum=15)]
    task = folded(*revoked, received(6, START), event("started", 7), event("succeeded", 9, runtime=2.0, result="1"))
    assert (task.state, ends(task)) == (TaskState.SUCCESS, [Outcome.REVOKED, Outcome.SUCCEEDED])


@pytest.mark.parametrize(
    ("end", "estimated"),
    [
        (event("failed", 841, exception="TimeLimitExceeded(840,)"), True),
        (event("failed", 841, exception="WorkerLostError('signal 9')"), True),
        (event("failed", 841, exception="ValueError('TimeLimitExceeded')"), False),
        (event("succeeded", 841, runtime=840.0), False),
        (event("revoked", 841, terminated=True, signum=9), True),
        (event("lost", 841, exception="its worker is gone"), True),
    ],
)
def test_run_time_of_what_was_cut_off_is_an_estimate(end: Event, estimated: bool) -> None:
    task = folded(received(0, START), event("started", 1), end)
    assert (task.runtime, task.runtime_estimated) == (840.0, estimated)


def test_run_time_of_what_never_began_is_unknown() -> None:
    task = folded(received(0, START), event("revoked", 5))
    assert (task.state, task.runtime, task.runtime_estimated) == (TaskState.REVOKED, None, False)


def test_task_that_is_found_again_has_no_run_time_yet() -> None:
    task = folded(received(0, START), event("started", 1), event("lost", 60), event("found", 61))
    assert (task.state, task.runtime) == (TaskState.STARTED, None)


@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_any_order_of_events_gives_the_same_task(name: str, data: st.DataObject) -> None:
    stream = STREAMS[name]
    assert folded(*data.draw(st.permutations(stream))) == folded(*stream)


@pytest.mark.parametrize("name", STREAMS)
def test_replayed_events_change_nothing(name: str) -> None:
    task = folded(*STREAMS[name])
    before = copy.deepcopy(task)
    assert [fold(task, each) for each in STREAMS[name]] == [False] * len(STREAMS[name])
    assert task == before


@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_loss_of_what_was_sent_and_started_leaves_the_last_message(name: str, data: st.DataObject) -> None:
    stream = STREAMS[name]
    may_be_lost = {"task-sent", "task-started"}
    kept = [each for each in stream if each.type not in may_be_lost or data.draw(st.booleans())]
    doubled = kept + data.draw(st.lists(st.sampled_from(kept), max_size=4))
    task, whole = folded(*data.draw(st.permutations(doubled))), folded(*stream)
    assert (task.state, task.name, task.args) == (whole.state, whole.name, whole.args)


@pytest.mark.parametrize("stamped", [100.0, 100.15])  # a client stamps the event once the message is sent
@pytest.mark.parametrize("seconds", [30.0, 600.0])  # the clock of who concludes may be ahead of the workers'
@pytest.mark.parametrize(
    ("kind", "outcome"), [("task-lost", Outcome.LOST), ("monitor-removed", Outcome.REVOKED)], ids=["lost", "removed"]
)
def test_an_id_that_is_sent_again_after_its_message_was_gone(
    kind: str, outcome: Outcome, seconds: float, stamped: float
) -> None:
    gone = [
        sent(0, START),
        make_event(kind, timestamp=NOW + seconds, hostname="", exception="no queue has its message"),
    ]
    again = sent(stamped, START, by="gen78@web")
    run = [received(100.1, START), event("started", 100.2), event("succeeded", 100.3, runtime=0.1, result="3")]
    waits = folded(*gone, again)
    assert (waits.state, ends(waits)) == (TaskState.PENDING, [outcome, None])
    for order in permutations([again, *run]):
        task = folded(*gone, *order)
        assert (task.state, task.client) == (TaskState.SUCCESS, "gen78@web"), [each.type for each in order]
        assert ends(task)[-1] is Outcome.SUCCEEDED


def test_what_was_concluded_is_taken_back_where_a_worker_received_the_only_message() -> None:
    lost = make_event("task-lost", timestamp=NOW + 60, hostname="", exception="no queue has its message")
    task = folded(sent(0, START), lost, received(61, START))
    assert (task.state, ends(task)) == (TaskState.RECEIVED, [None])
