"""The comparator finds what is wrong: each seeded fault is one difference of its kind, and the true record has none."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.compare import Evidence, differences
from tests.conformance.recorder import END

WORKER = {"hostname": "gen7@shop", "pid": 7}
ROOT, CHILD = "9f3c", "41ab"
Json = dict[str, Any]


def sent(task_id: str, at: float, clock: int, **fields: Any) -> Json:
    message = {"name": "shop.pack", "args": "(3, 'box')", "kwargs": "{}", "retries": 0, "root_id": ROOT}
    message |= {"parent_id": None, "eta": None, "expires": None, "queue": "parcels"}
    return {"type": "task-sent", "uuid": task_id, "timestamp": at, "clock": clock, **WORKER, **message, **fields}


def event(kind: str, task_id: str, at: float, clock: int, **fields: Any) -> Json:
    return {"type": f"task-{kind}", "uuid": task_id, "timestamp": at, "clock": clock, **WORKER, **fields}


def received(task_id: str, at: float, clock: int, **fields: Any) -> Json:
    without_queue = {key: value for key, value in sent(task_id, at, clock, **fields).items() if key != "queue"}
    return {**without_queue, "type": "task-received"}


EVENTS = [
    sent(ROOT, 100.0, 1),
    received(ROOT, 100.5, 2),
    event("started", ROOT, 101.0, 3),
    event("failed", ROOT, 103.25, 4, exception="ValueError('no box')", traceback="..."),
    sent(CHILD, 102.0, 5, parent_id=ROOT),
]
SHOWN: Json = {
    "id": ROOT, "name": "shop.pack", "state": "FAILURE", "queue": "parcels", "worker": "gen7@shop",
    "args": "(3, 'box')", "kwargs": "{}", "retries": 0, "eta": None, "expires": None, "result": None,
    "sent": 100.0, "received": 100.5, "started": 101.0, "finished": 103.25, "runtime": 2.25,
    "root_id": ROOT, "parent_id": None,
}  # fmt: skip
WAITING: Json = dict.fromkeys(("worker", "retries", "received", "started", "finished", "runtime"))
RUN: Json = {"worker": "gen7@shop", "outcome": "failed"}
ARGUMENTS = {"args": [3, "box"], "kwargs": {}, "fidelity": "probable", "source": "event"}


def evidence() -> Evidence:
    """Two tasks, of which the root failed and the other waits; the record is right."""
    listed = [SHOWN, {**SHOWN, **WAITING, "id": CHILD, "state": "PENDING", "sent": 102.0, "parent_id": ROOT}]
    tasks = [{**row, "arguments": dict(ARGUMENTS), "runs": [RUN] if row["worker"] else []} for row in listed]
    message = {"task": "shop.pack", "root_id": ROOT, "argsrepr": "(3, 'box')", "kwargsrepr": "{}"}
    messages = [{**message, "id": each, "args": [3, "box"], "kwargs": {}} for each in (ROOT, CHILD)]
    lines = [{"kind": "event", "content": each} for each in EVENTS]
    recorded = [{"arrived": 200.0, "event": each} for each in (*EVENTS, {"type": END})]
    states = {"FAILURE": 1, "PENDING": 1}
    observed = {
        "listed": listed,
        "tasks": tasks,
        "counts": {"failed": 1, "pending": 1, "succeeded": 0, "lost": 0, "any": 2},
        "workflows": [{"root_id": ROOT, "states": states, "items": [{"id": ROOT}, {"id": CHILD}]}],
        "health": {"events_total": len(recorded), "dropped_total": 0, "malformed_total": 0},
    }
    sent_lines = [*lines, *({"kind": "message", "content": each} for each in messages)]
    return copy.deepcopy(Evidence(sent_lines, recorded, observed))


def kinds(given: Evidence) -> list[str]:
    return [each.kind for each in differences(given)]


def test_a_record_that_is_right_has_no_difference() -> None:
    assert kinds(evidence()) == []


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("name", "shop.unpack"),
        ("args", "(4, 'box')"),
        ("kwargs", "{'fast': True}"),
        ("queue", "letters"),
        ("worker", "gen8@shop"),
        ("expires", 400.0),
        ("eta", 99.0),
        ("retries", 1),
        ("received", 100.6),
        ("started", None),
        ("finished", 103.0),
        ("runtime", 2.26),
        ("result", "'packed'"),
        ("root_id", CHILD),
        ("parent_id", CHILD),
    ],
)
def test_a_wrong_field_is_named(key: str, wrong: object) -> None:
    given = evidence()
    for shown in (given.observed["listed"][0], given.observed["tasks"][0]):
        shown[key] = wrong
    (found,) = differences(given)
    assert (found.kind, found.subject, found.ours, found.theirs) == (key, ROOT, wrong, SHOWN[key])


def without_task(given: Evidence) -> None:
    for key in ("listed", "tasks"):
        given.observed[key].pop()


def with_another_task(given: Evidence) -> None:
    for key in ("listed", "tasks"):
        given.observed[key].append({**given.observed[key][0], "id": "77"})


def lost_though_finished(given: Evidence) -> None:
    for key in ("listed", "tasks"):
        given.observed[key][0]["state"] = "LOST"


def unsure_arguments(given: Evidence) -> None:
    given.observed["tasks"][0]["arguments"] = {"args": None, "kwargs": None, "fidelity": "unknown", "source": None}


def other_values(given: Evidence) -> None:
    given.observed["tasks"][1]["arguments"]["args"] = ["3", "box"]


def one_run_more(given: Evidence) -> None:
    given.observed["tasks"][0]["runs"].append({**RUN, "outcome": None})


def waiting_run_of_no_message(given: Evidence) -> None:
    given.observed["tasks"][0]["runs"].insert(0, {"worker": None, "outcome": None})


def lost_run_of_a_message_that_ended(given: Evidence) -> None:
    given.observed["tasks"][0]["runs"].insert(0, {"worker": None, "outcome": "lost"})


def other_outcome(given: Evidence) -> None:
    given.observed["tasks"][0]["runs"][0]["outcome"] = "retried"


def task_listed_twice(given: Evidence) -> None:
    for key in ("listed", "tasks"):
        given.observed[key].append(given.observed[key][0])


def list_that_is_behind(given: Evidence) -> None:
    given.observed["listed"][0]["state"] = "STARTED"


def time_of_another_message(given: Evidence) -> None:
    for key in ("listed", "tasks"):
        given.observed[key][0]["sent"] = 102.0


def wrong_count(given: Evidence) -> None:
    given.observed["counts"]["succeeded"] = 1


def member_left_out(given: Evidence) -> None:
    given.observed["workflows"][0]["items"].pop()


def wrong_states_of_workflow(given: Evidence) -> None:
    given.observed["workflows"][0]["states"] = {"FAILURE": 2}


def no_workflow(given: Evidence) -> None:
    given.observed["workflows"].clear()


def recorder_that_missed_one(given: Evidence) -> None:
    del given.recorded[2]
    given.observed["health"]["events_total"] -= 1


def product_that_counted_less(given: Evidence) -> None:
    given.observed["health"]["events_total"] -= 1


def another_message(given: Evidence) -> None:
    given.sent[-1]["content"]["task"] = "shop.unpack"


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (without_task, ["lost task"]),
        (with_another_task, ["extra task"]),
        (lost_though_finished, ["state"]),
        (unsure_arguments, ["fidelity", "source"]),
        (other_values, ["values"]),
        (one_run_more, ["runs"]),
        (waiting_run_of_no_message, ["runs"]),
        (lost_run_of_a_message_that_ended, ["runs"]),
        (other_outcome, ["runs"]),
        (task_listed_twice, ["extra task"]),
        (list_that_is_behind, ["list and detail"]),
        (time_of_another_message, ["sent"]),
        (wrong_count, ["count by state"]),
        (member_left_out, ["workflow"]),
        (wrong_states_of_workflow, ["workflow"]),
        (no_workflow, ["workflow"]),
        (product_that_counted_less, ["not counted"]),
        (another_message, ["reference"]),
    ],
)
def test_a_seeded_fault_is_found(seed: Callable[[Evidence], None], expected: list[str]) -> None:
    given = evidence()
    seed(given)
    assert kinds(given) == expected


def test_an_event_that_the_recorder_missed_is_found() -> None:
    given = evidence()
    recorder_that_missed_one(given)
    assert kinds(given)[0] == "not recorded"


def test_a_message_that_no_worker_received_may_be_shown_as_a_run_that_waits() -> None:
    given = evidence()
    given.observed["tasks"][1]["runs"].append({"worker": None, "outcome": None})
    assert kinds(given) == []


def test_an_unfinished_task_whose_worker_is_gone_may_be_lost() -> None:
    given = evidence()
    for key in ("listed", "tasks"):
        given.observed[key][1] |= {"state": "LOST", "finished": 300.0}
    given.observed["tasks"][1]["runs"].append({"worker": None, "outcome": "lost"})
    given.observed["counts"] |= {"pending": 0, "lost": 1}
    given.observed["workflows"][0]["states"] = {"FAILURE": 1, "LOST": 1}
    assert kinds(given) == []
