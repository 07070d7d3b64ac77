"""The judge of lost tasks, by tables: kinds of silence, what was gathered, what is concluded."""

from typing import Any

import msgspec
import pytest

from celery_monitor.brokers.results import StoredResult
from celery_monitor.brokers.task_messages import Headers, LocatedMessage
from celery_monitor.receiver.lost_tasks import (
    AFTER_GAP,
    Activity,
    Evidence,
    JudgedProcess,
    OnWorker,
    Snapshot,
    judge,
    may_have_ended,
    unrecorded,
    why_gone,
)
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerProcess, WorkerStatus
from celery_monitor.store.tasks.unfinished import ProcessKey, UnfinishedTask
from tests.factories import NOW

HOST, OTHER, QUEUE, ID = "worker7@shop", "worker8@shop", "payments", "t-31"
GAP = (NOW - 60.0, NOW - 20.0)
STARTED, RECEIVED, PENDING, RETRY, LOST = (
    TaskState[name] for name in ("STARTED", "RECEIVED", "PENDING", "RETRY", "LOST")
)
WAITING, UNACKED = (LocatedMessage(Headers(ID, "shop.pay"), queue) for queue in (QUEUE, None))
OFFLINE = {"status": WorkerStatus.OFFLINE, "last_heartbeat": NOW - 50}
SILENT = {"answered": frozenset[str](), "silent": frozenset({HOST})}


def make_unfinished(state: TaskState, **fields: Any) -> UnfinishedTask:
    """Of process 31 of worker7@shop but while it waits; sent 100 s ago."""
    run = {} if state is PENDING else {"worker": HOST, "pid": 31, "received": NOW - 99}
    run |= {"started": NOW - 98} if state is STARTED else {"ended": NOW - 55} if state in {RETRY, LOST} else {}
    return UnfinishedTask(**{"id": ID, "state": state, "queue": QUEUE, "sent": NOW - 100, **run, **fields})


def make_worker(**fields: Any) -> Worker:
    given = {"hostname": HOST, "pid": 31, "queues": (QUEUE,), "events_enabled": True, "skew": 0.0, **fields}
    return Worker(**{"cluster": "shop", "status": WorkerStatus.ONLINE, **given})


def snapshot(**fields: Any) -> Snapshot:
    """In which all have answered, all was read, and the task is nowhere."""
    given = {"answered": frozenset({HOST, OTHER}), "queues": frozenset({QUEUE}), "whole": True, **fields}
    return Snapshot(**{"on_workers": {}, "messages": {}, **given})


def has(message: LocatedMessage | None = None, listed: str | None = None, hostname: str = HOST) -> Snapshot:
    on_workers = {ID: OnWorker(listed, hostname, started=NOW - 15)} if listed else {}
    return snapshot(on_workers=on_workers, messages={ID: message} if message else {})


def gather(first: Snapshot, second: Snapshot | None = None, *workers: Worker, **fields: Any) -> Evidence:
    by_name = {each.hostname: each for each in (workers or (make_worker(), make_worker(hostname=OTHER, pid=32)))}
    given = {"results": {}, "backend": "no result backend has a result", **fields}
    return Evidence(first, second or first, by_name, NOW, **given)


@pytest.mark.parametrize(
    ("state", "first", "second", "found", "events"),
    [
        (STARTED, snapshot(), None, "lost", ["task-lost"]),
        (STARTED, snapshot(**SILENT), snapshot(), "unknown", []),
        (STARTED, has(listed="active"), None, "workers", []),
        (STARTED, has(listed="active", hostname=OTHER), None, "workers", ["monitor-running"]),
        (STARTED, has(listed="reserved"), None, "workers", ["task-rejected", "monitor-held"]),
        (STARTED, has(listed="active"), has(listed="reserved"), "workers", []),
        (STARTED, has(WAITING), None, "queue", ["task-rejected"]),
        (RECEIVED, has(WAITING), None, "queue", ["task-rejected"]),
        (RECEIVED, has(UNACKED), has(WAITING), "queue", []),
        (RECEIVED, has(UNACKED), None, "queue", []),
        (RECEIVED, snapshot(), None, "lost", ["task-lost"]),
        (PENDING, has(listed="reserved"), None, "workers", ["monitor-held"]),
        (PENDING, has(WAITING), None, "queue", []),
        (PENDING, has(WAITING), snapshot(), "unknown", []),
        (PENDING, snapshot(), None, "lost", ["task-lost"]),
        (PENDING, snapshot(), snapshot(silent=frozenset({HOST})), "unknown", []),  # a busy solo pool may have it
        (PENDING, snapshot(whole=False), None, "unknown", []),
        (PENDING, snapshot(queues=frozenset({"emails"})), None, "unknown", []),
        (LOST, has(listed="active"), None, "workers", ["monitor-running"]),
        (LOST, has(listed="reserved"), None, "workers", ["task-found"]),
        (LOST, snapshot(), None, "unknown", []),
    ],
)
def test_after_a_gap(state: TaskState, first: Snapshot, second: Snapshot | None, found: str, events: list[str]) -> None:
    verdict = judge(make_unfinished(state), gather(first, second, gap=GAP))
    assert (verdict.found, [event.type for event in verdict.events]) == (found, events)
    assert all(AFTER_GAP in (event.exception or "") for event in verdict.events if event.type == "task-lost")


def test_after_a_gap_a_task_that_expired_may_have_run() -> None:
    [event] = judge(make_unfinished(PENDING, expires=NOW - 5), gather(snapshot(), gap=GAP)).events
    assert event.type == "task-lost"


def test_process_that_is_not_the_one_that_answered_is_not_judged_here() -> None:
    evidence = gather(snapshot(), None, make_worker(pid=32), gap=GAP)
    assert judge(make_unfinished(STARTED), evidence).found == "unknown"


def test_started_task_that_its_worker_does_not_have_is_lost_by_the_workers_clock() -> None:
    [event] = judge(make_unfinished(STARTED), gather(snapshot(), None, make_worker(skew=3600.0))).events
    assert (event.type, event.timestamp, event.hostname, event.pid) == ("task-lost", NOW - 3600, HOST, 31)
    assert event.exception == (
        "worker7@shop (process 31) is up and no longer has the task: it was queried twice, 30 s apart, over 60 s after "
        "the start. Its code ignored it, or its end was missed; no result backend has a result"
    )


@pytest.mark.parametrize(
    ("state", "fields", "end", "found", "done"),
    [
        (STARTED, {}, NOW - 40, "backend", NOW - 40),
        (STARTED, {"sent": NOW + 500}, NOW - 40, "backend", NOW - 40),  # the sender's clock is ahead
        (STARTED, {}, NOW - 99, "backend", NOW - 98),  # stored before the worker reported the start
        (STARTED, {}, NOW - 120, "lost", NOW),  # an older end of the same id
        (STARTED, {}, None, "backend", NOW),  # without a date
        (STARTED, {}, NOW + 30, "backend", NOW),  # not after now
        (PENDING, {}, NOW - 40, "backend", NOW - 40),
        (RETRY, {}, NOW - 80, "lost", NOW),  # the end before the retry
        (LOST, {}, NOW - 80, "backend", NOW - 80),  # that it was lost is no end
        # By a clock that is ahead:
        (STARTED, {"worker": OTHER, "pid": 32, "started": NOW + 3502}, NOW + 3560, "backend", NOW + 3560),
    ],
)
def test_end_in_the_result_backend(
    state: TaskState, fields: dict[str, Any], end: float | None, found: str, done: float
) -> None:
    ends = {ID: StoredResult("task-succeeded", end, "23", worker=OTHER)}
    ahead = make_worker(hostname=OTHER, pid=32, skew=-3600.0)
    verdict = judge(
        make_unfinished(state, **fields), gather(snapshot(), None, make_worker(), ahead, gap=GAP, results=ends)
    )
    [event] = verdict.events
    assert (verdict.found, event.timestamp) == (found, done)
    waits = state in {PENDING, RETRY}
    assert event.hostname == (("" if found == "lost" else OTHER) if waits else fields.get("worker", HOST))


@pytest.mark.parametrize("gap", [None, GAP])
@pytest.mark.parametrize("state", [STARTED, PENDING])
def test_while_the_result_backend_does_not_answer_nothing_is_concluded(state: TaskState, gap: Any) -> None:
    assert judge(make_unfinished(state), gather(snapshot(), gap=gap, results=None)).found == "unknown"


RABBIT = {"reads_queues": False}
EMPTY = snapshot(whole=False, empty=frozenset({QUEUE}))


@pytest.mark.parametrize(
    ("first", "second", "worker", "fields", "found"),
    [
        (snapshot(), None, {}, {}, "lost"),
        (snapshot(), has(WAITING), {}, {}, "queue"),
        (has(UNACKED), snapshot(), {}, {}, "unknown"),
        (has(listed="reserved"), None, {}, {}, "unknown"),
        (snapshot(whole=False), None, {}, {}, "unknown"),
        (EMPTY, None, {}, RABBIT, "lost"),
        (EMPTY, snapshot(whole=False), {}, RABBIT, "unknown"),
        (EMPTY, EMPTY._replace(delayed=True), {}, RABBIT, "unknown"),
        (snapshot(**SILENT), None, {}, {}, "unknown"),
        (snapshot(**SILENT), None, {"queues": None}, {}, "unknown"),
        (snapshot(**SILENT), None, {"queues": ("emails",)}, {}, "lost"),
        (snapshot(), None, {"events_enabled": False, "last_heartbeat": NOW}, {}, "unknown"),  # it may have run it
        (snapshot(), None, {"events_enabled": None, "last_heartbeat": NOW}, {}, "unknown"),
        (snapshot(), None, {"events_enabled": None, "last_heartbeat": NOW}, {"reporting": {HOST}}, "lost"),
        (snapshot(), None, {"events_enabled": False, "last_heartbeat": NOW - 200}, {}, "lost"),  # gone before
        (snapshot(**SILENT), None, {"events_enabled": None, **OFFLINE}, {}, "unknown"),
        (snapshot(**SILENT), None, {"events_enabled": None, "processed": 0, **OFFLINE}, {}, "lost"),
    ],
)
@pytest.mark.parametrize("state", [PENDING, RETRY])
def test_task_that_has_waited_for_long(
    state: TaskState,
    first: Snapshot,
    second: Snapshot | None,
    worker: dict[str, Any],
    fields: dict[str, Any],
    found: str,
) -> None:
    verdict = judge(make_unfinished(state), gather(first, second, make_worker(**worker, skew=7.0), **fields))
    assert verdict.found == found
    events = [(event.type, event.hostname, event.timestamp) for event in verdict.events]
    assert events == [("task-lost", "", NOW)] * (found == "lost")


@pytest.mark.parametrize(
    ("task", "snapshots", "fields", "begins", "ends"),
    [
        ({}, snapshot(), {}, "its message is neither in payments nor unacknowledged, and no", "workers' logs)"),
        ({}, EMPTY, RABBIT, "its queue payments is empty, and no worker that consumes payments has", "logs)"),
        ({}, EMPTY._replace(absent_queues=EMPTY.empty), RABBIT, "its queue payments does not exist, and", "logs)"),
        ({"expires": NOW - 5}, snapshot(), {}, "expired before a worker received it; its message is", "to wait"),
        ({}, snapshot(), {"missed_until": NOW - 80}, "its message is", "meanwhile, perhaps those of its run"),
        ({}, snapshot(), {"missed_until": NOW - 101}, "its message is", "(see the workers' logs)"),
    ],
)
def test_evidence_of_a_message_that_is_gone(
    task: dict[str, Any], snapshots: Snapshot, fields: dict[str, Any], begins: str, ends: str
) -> None:
    [event] = judge(make_unfinished(PENDING, **task), gather(snapshots, **fields)).events
    assert event.type == ("monitor-removed" if task else "task-lost")
    assert event.exception is not None
    assert event.exception.startswith(begins)
    assert "checked twice, 5 s apart, 1 min after it began to wait" in event.exception
    assert event.exception.endswith(ends)


def test_received_task_of_a_worker_that_shut_down_waits_again_from_its_goodbye_on() -> None:
    worker = make_worker(status=WorkerStatus.OFFLINE, sent_offline=True, offline_at=NOW - 30, skew=2.0)
    [event] = judge(make_unfinished(RECEIVED), gather(has(WAITING), None, worker)).events
    assert (event.type, event.requeue, event.timestamp, event.pid) == ("task-rejected", True, NOW - 32, 31)
    assert judge(make_unfinished(RECEIVED), gather(snapshot(), None, worker)).events == ()


@pytest.mark.parametrize(
    ("state", "fields", "concerned"),
    [
        (STARTED, {}, True),
        (STARTED, {"started": NOW - 10}, False),  # an event of it came after the gap
        (PENDING, {"discovered_at": NOW - 30}, False),  # it was not in the record when the gap began
        (LOST, {"exception": "worker7@shop is gone"}, True),
        (LOST, {"exception": f"asked {AFTER_GAP}"}, False),  # by us
        (LOST, {"ended": NOW - 70, "exception": "worker7@shop is gone"}, False),
        (STARTED, {"worker": OTHER, "started": NOW + 3502, "received": None}, True),  # by a clock that is ahead
    ],
)
def test_whose_end_a_gap_may_hide(state: TaskState, fields: dict[str, Any], *, concerned: bool) -> None:
    ahead = make_worker(hostname=OTHER, skew=-3600.0)
    evidence = gather(snapshot(), None, make_worker(), ahead, gap=GAP)
    assert may_have_ended(make_unfinished(state, **fields), evidence) is concerned


def test_tasks_that_both_snapshots_have_are_news_but_of_a_worker_without_events() -> None:
    found = has(UNACKED, listed="active"), has(WAITING)
    quiet = make_worker(events_enabled=False)
    [event] = unrecorded(gather(found[0]), queues_too=True)
    assert (event.type, event.hostname, event.name) == ("monitor-running", HOST, "shop.pay")
    assert unrecorded(gather(snapshot(), found[0]), queues_too=True) == []
    assert unrecorded(gather(found[0], None, quiet), queues_too=True) == []
    [event] = unrecorded(gather(found[1]), queues_too=True)
    assert (event.type, event.uuid, event.name, event.queue) == ("monitor-waiting", ID, "shop.pay", QUEUE)
    assert unrecorded(gather(found[1]), queues_too=False) == []
    assert unrecorded(gather(snapshot(), found[1]), queues_too=True) == []


GONE = {**OFFLINE, "offline_at": NOW - 40}
GOODBYE = {**GONE, "sent_offline": True}
REPLACED = {"pid": 32, "freq": 2.0}


def beside(**fields: Any) -> dict[str, Any]:
    """The worker, where process 31 was under its name beside the one that is up."""
    given = {"pid": 31, "first_seen": NOW - 900, "last_heartbeat": NOW - 10, "freq": 2.0, **fields}
    return {**REPLACED, "others": (WorkerProcess(**given),)}


@pytest.mark.parametrize(
    ("worker", "seconds", "evidence"),
    [
        ({}, 900, None),
        ({"status": WorkerStatus.SILENT}, 900, None),
        (GONE, 10, "worker7@shop (process 31) is gone: it went offline 50 s ago and had not ended the task"),
        (GOODBYE, 559, None),
        (GOODBYE, 561, "worker7@shop (process 31) shut down 601 s ago and had not ended the task; it ended no task"),
        (REPLACED, 900, "worker7@shop (process 31) is gone: process 32 has taken its place"),
        ({**REPLACED, "freq": None}, 500, None),  # of its tasks alone it sends events
        (beside(), -6, None),
        (beside(), 6, "worker7@shop (process 31) is gone: its last heartbeat came 16 s ago (one is due every 2 s), an"),
        (beside(pool="solo"), 250, None),
        (beside(pool="solo"), 301, "worker7@shop (process 31) is gone: its last heartbeat came 311 s ago"),
        (beside(freq=None), 500, None),
        (beside(offline_at=NOW), 599, None),
        (beside(offline_at=NOW), 600, "worker7@shop (process 31) shut down 600 s ago"),
    ],
)
def test_when_a_process_is_gone(worker: dict[str, Any], seconds: float, evidence: str | None) -> None:
    now = NOW + seconds
    process = JudgedProcess(ProcessKey(HOST, 31), make_worker(**worker), Activity(4, NOW), NOW - 60, None)
    assert (why_gone(process, NOW - 90, now) or "").startswith(evidence or "") is True
    assert (why_gone(process, NOW - 90, now) is None) is (evidence is None)
    assert why_gone(process._replace(settled_at=now - 4), NOW - 90, now) is None  # its last events may be on their way


def test_silence_counts_from_when_the_receiver_listened() -> None:
    process = JudgedProcess(ProcessKey(HOST, 31), make_worker(**beside()), Activity(4, NOW), NOW - 60, None)
    assert why_gone(process, NOW + 4, NOW + 6) is None
    assert why_gone(process, NOW + 4, NOW + 10) is not None


def test_end_of_a_task_is_a_sign_of_life_after_a_goodbye() -> None:
    worker, activity = make_worker(**GOODBYE), Activity(4, NOW - 60).after(3, NOW + 300)
    process = JudgedProcess(ProcessKey(HOST, 31), worker, activity.after(3, NOW + 301), NOW - 60, None)
    assert why_gone(process, NOW - 90, NOW + 899) is None
    assert "its last task ended 600 s ago. After 10 min it is" in (why_gone(process, NOW - 90, NOW + 900) or "")


def test_unanswered_pings_count_at_once_for_the_process_that_was_asked() -> None:
    worker = make_worker(**GONE)
    process = JudgedProcess(ProcessKey(HOST, 31), worker, Activity(4, NOW), NOW, "worker7@shop did not answer 2 pings")
    assert why_gone(process, NOW, NOW + 1) == "worker7@shop did not answer 2 pings"
    replaced = msgspec.structs.replace(worker, pid=32)
    assert why_gone(process._replace(worker=replaced), NOW, NOW + 1) is None
