"""A captured message is exact only where all that a retry uses of it agrees with the task's own events."""

import json
from typing import Any

import msgspec
import pytest
from celery.utils.saferepr import saferepr

from celery_monitor.core.arguments import judge, judge_message
from celery_monitor.core.captures import MOST_KEPT, NO_TRUST, Trust, choose, merged
from celery_monitor.records.event import Message
from celery_monitor.records.task import Invocation, Task
from tests.core.test_capture_signature import ID, KEY, signed
from tests.factories import NOW, make_captured_task, make_id, make_message, make_run

PICKLE = "application/x-python-serialize"


def task(**fields: object) -> Task:
    return make_captured_task(ID, **fields)


def verdict(message: Message, of: Task | None = None, trust: Trust = NO_TRUST) -> tuple[str, str, str | None]:
    arguments = judge(of or task(), message, trust)
    return arguments.fidelity, arguments.reason, arguments.warning


def test_message_that_agrees_is_exact_without_a_warning() -> None:
    assert verdict(make_message(ID))[::2] == ("exact", None)


FORGED: list[tuple[dict[str, Any], str]] = [
    ({"headers": {"id": make_id(52)}}, "belongs to another task"),
    ({"headers": {"task": "shop.drop"}}, "is from a call of shop.drop, and the latest is of shop.pay.charge"),
    ({"headers": {"task": "shop.drop", "shadow": "shop.pay.charge"}}, "is from a call of shop.drop"),
    ({"headers": {"argsrepr": "(32,)"}}, "is from a call with other arguments"),
    ({"headers": {"kwargsrepr": "{'card': 'mine'}"}}, "is from a call with other arguments"),
    ({"headers": {"argsrepr": None}}, "is from a call with other arguments"),
    ({"headers": {"retries": 1}}, "only for attempt 2, and attempt 1 may differ"),
    ({"headers": {"retries": "0"}}, "its number of retries is not a number"),
    ({"body": b'[[32], {"card": "visa"}, {}]'}, "its body has other arguments than its headers say"),
    ({"body": b'[[31.0], {"card": "visa"}, {}]'}, "its body has other arguments"),
    ({"body": b'[[31], {"card": "mine"}, {}]'}, "its body has other arguments"),
    ({"body": b'[[31], {"card": "visa", "to": "me"}, {}]'}, "its body has other arguments"),
    ({"body": b"[" * 5000}, "its body cannot be read as JSON"),
    ({"body": b"\xff\xfe"}, "its body cannot be read as JSON"),
    ({"body": b"{}"}, "its body has no arguments"),
    ({"worker": "evil@shop"}, "was announced by evil@shop (process 4711), and the task ran on worker1@shop"),
    ({"pid": 4712}, "was announced by worker1@shop (process 4712)"),
    ({"queue": "admin"}, "is for the queue payments (queue admin), and the task was sent to the queue payments"),
    ({"routing_key": "admin"}, "is for the queue admin (queue payments)"),
    ({"exchange": "shop"}, "is for the exchange shop with key payments"),
    ({"content_type": PICKLE}, f"its body is JSON, and its content type {PICKLE}"),
    ({"properties": {"content_type": PICKLE}}, f"is application/json in one place and {PICKLE} in another"),
    ({"headers": {"compression": "application/x-gzip"}}, "its body cannot be read as JSON"),
]


@pytest.mark.parametrize(("fields", "reason"), FORGED, ids=lambda each: str(each)[:40])
def test_every_forged_field_alone_is_named_and_not_exact(fields: dict[str, Any], reason: str) -> None:
    fidelity, why, warning = verdict(make_message(ID, **fields))
    assert fidelity == "probable"
    assert f"the message was captured, but {reason}" in why
    assert warning is not None
    assert reason in warning


UNKNOWN: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"name": None}, {}, "no event names the task"),
    ({"args": None}, {}, "no event reported the arguments"),
    ({"runs": []}, {}, "no event names the worker of the task"),
    ({"sent": None}, {}, "no event names the queue of the task"),
    ({"sent": None}, {"exchange": "shop"}, "no event names the exchange of the task"),
    ({"sent": None, "name": "Pay"}, {"headers": {"shadow": "Pay"}}, "events name only the shadow Pay"),
    ({}, {"worker": None}, "by an earlier version, which did not record who announced it"),
]


@pytest.mark.parametrize(("of", "fields", "reason"), UNKNOWN, ids=lambda each: str(each)[:40])
def test_what_events_do_not_say_is_no_agreement(of: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    fidelity, why, warning = verdict(make_message(ID, **fields), task(**of))
    assert fidelity != "exact"
    assert reason in why
    assert warning is None  # nothing contradicts


def test_queue_without_task_sent_must_be_one_that_the_worker_consumes() -> None:
    unsent = task(sent=None)
    assert verdict(make_message(ID), unsent, Trust(queues=("mail", "payments")))[0] == "exact"
    fidelity, why, warning = verdict(make_message(ID), unsent, Trust(queues=("mail",)))
    assert fidelity == "probable"
    assert "is for the queue payments, and the task's worker consumes mail" in why
    assert warning is not None


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"\x80\x04 pickled", {"content_type": PICKLE}),
        (b"\x93\x91\x1f", {"content_type": "application/x-msgpack"}),
        (b"packed", {"headers": {"compression": "application/x-brotli"}}),
    ],
)
def test_body_that_is_not_opened_counts_by_its_headers(body: bytes, fields: dict[str, Any]) -> None:
    assert verdict(make_message(ID, body=body, **fields))[::2] == ("exact", None)
    other = msgspec.structs.replace(make_message(ID, body=body, **fields), args="(32,)")
    assert verdict(other)[0] == "probable"


@pytest.mark.parametrize(
    ("args", "other"),
    [
        (["order " * 400, 31], ["stolen", 31]),
        ([["a"] * 900, "x"], [["a", "b"], "x"]),
        ([{"a": [{"b": [1]}]}, "x" * 2000], [{"a": {"b": 1}}, "x" * 2000]),
    ],
)
def test_text_that_was_cut_is_compared_as_far_as_it_goes(args: list[object], other: list[object]) -> None:
    text = saferepr(tuple(args), 1024)
    assert "..." in text
    given = task(args=text, kwargs="{}")
    headers = {"argsrepr": text, "kwargsrepr": "{}"}
    honest, forged = (
        make_message(ID, body=json.dumps([each, {}, {}]).encode(), headers=dict(headers)) for each in (args, other)
    )
    assert verdict(honest, given)[::2] == ("exact", None)
    assert verdict(forged, given)[0] == "unknown"


def test_quotes_in_a_body_do_not_make_another_value_look_alike() -> None:
    headers = {"argsrepr": "('a', 'b')", "kwargsrepr": "{}"}
    message = make_message(ID, body=json.dumps([["a', 'b"], {}, {}]).encode(), headers=headers)
    assert verdict(message, task(args="('a', 'b')", kwargs="{}"))[0] == "probable"


def test_second_different_message_that_agrees_leaves_neither() -> None:
    opaque = {"content_type": PICKLE}
    first = make_message(ID, body=b"\x80\x04 one", **opaque)
    both = merged(first, make_message(ID, body=b"\x80\x04 two", **opaque))
    assert both is not None
    fidelity, why, warning = verdict(both)
    assert fidelity == "probable"
    assert "two different ones were announced for this attempt" in why
    assert "Two different messages were announced for this task, by worker1@shop" in str(warning)


@pytest.mark.parametrize("forged_first", [True, False])
def test_message_that_agrees_is_used_beside_one_that_differs_and_it_is_said(forged_first: bool) -> None:
    honest, forged = make_message(ID), make_message(ID, worker="evil@shop", body=b"[[32], {}, {}]")
    both = merged(forged, honest) if forged_first else merged(honest, forged)
    assert both is not None
    arguments, chosen = judge_message(task(), both)
    assert chosen is not None
    assert (arguments.fidelity, chosen.body) == ("exact", honest.body)
    assert "was announced for this task by evil@shop" in str(arguments.warning)


def test_redelivery_to_another_worker_is_no_second_message() -> None:
    both = merged(make_message(ID), make_message(ID, worker="worker2@shop", pid=9, headers={"redelivered": True}))
    assert both is not None
    runs = [make_run(retries=0), make_run(retries=0, worker="worker2@shop", pid=9)]
    assert verdict(both, task(runs=runs))[::2] == ("exact", None)


def test_message_of_a_call_that_was_replaced_is_explained_by_its_run() -> None:
    old = Invocation(name="shop.start", args="(1,)", kwargs="{}")
    runs = [make_run(retries=0, invocation=old), make_run(retries=0, replacing=1, pid=4711)]
    headers = {"task": "shop.start", "argsrepr": "(1,)", "kwargsrepr": "{}"}
    first = make_message(ID, headers=headers, body=b"[[1], {}, {}]", why="received")
    both = merged(first, make_message(ID))
    assert both is not None
    assert verdict(both, task(runs=runs))[::2] == ("exact", None)


def test_each_attempt_has_its_message_and_the_oldest_give_way() -> None:
    stored = make_message(ID, why="received")
    for attempt in range(1, 9):
        now = merged(stored, make_message(ID, why="received", headers={"retries": attempt}), attempt - 1)
        assert now is not None
        stored = now
    assert len(stored.others) < MOST_KEPT
    assert verdict(stored, task(runs=[make_run(retries=8)]))[::2] == ("exact", None)


def test_flood_of_messages_does_not_replace_the_first_and_is_said() -> None:
    stored = make_message(ID)
    for number in range(20):
        stored = merged(stored, make_message(ID, worker=f"evil{number}@x", headers={"retries": number}), 0) or stored
    assert (stored.worker, len(stored.others), stored.more) == ("worker1@shop", MOST_KEPT - 1, True)
    fidelity, _, warning = verdict(stored)
    assert fidelity == "exact"
    assert "(3 such messages)" in str(warning)


def test_same_message_twice_is_one() -> None:
    assert merged(make_message(ID), make_message(ID)) is None


def test_unsigned_message_is_never_exact_with_a_key() -> None:
    trust = Trust((KEY,))
    fidelity, why, warning = verdict(make_message(ID), trust=trust)
    assert (fidelity, "is not signed, and capture_key is set" in why) == ("probable", True)
    assert "is not signed" in str(warning)
    fidelity, why, _ = verdict(signed("another key"), trust=trust)
    assert (fidelity, "its signature is not valid, and capture_key is set" in why) == ("probable", True)


SIGNED_AND_RECENT = make_run(retries=0, received=NOW - 10_000_000.0)


def test_signed_message_is_exact_also_where_events_say_little() -> None:
    trust = Trust((KEY,))
    run = SIGNED_AND_RECENT
    assert verdict(signed(), task(runs=[run]), trust)[::2] == ("exact", None)
    little = task(name=None, args=None, kwargs=None, sent=None, runs=[])
    assert verdict(signed(), little, trust)[::2] == ("exact", None)
    own = signed(headers={"argsrepr": "('hidden',)"})
    assert verdict(own, task(args="('hidden',)", runs=[run]), trust)[0] == "exact"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"headers": {"id": make_id(52)}}, "belongs to another task"),
        ({"headers": {"retries": 3}}, "only for attempt 4"),
        ({"headers": {"argsrepr": "(32,)"}}, "other arguments"),
        ({"worker": "worker2@shop"}, "was announced by worker2@shop"),
    ],
)
def test_signed_message_of_something_else_is_not_exact(fields: dict[str, Any], reason: str) -> None:
    fidelity, why, _ = verdict(signed(**fields), task(runs=[SIGNED_AND_RECENT]), Trust((KEY,)))
    assert fidelity == "probable"
    assert reason in why


def test_signed_message_of_an_earlier_run_is_not_announced_again() -> None:
    message = signed()
    assert message.signature is not None
    run = make_run(retries=0, received=message.signature.time + 3600)
    fidelity, why, warning = verdict(message, task(runs=[run]), Trust((KEY,)))
    assert fidelity == "probable"
    assert "signed before the task was received" in why
    assert warning is not None


def test_text_of_a_stranger_has_no_control_characters_in_the_warning() -> None:
    _, _, warning = verdict(make_message(ID, worker="evil\x1b[31m\u202e" + "x" * 500))
    assert warning is not None
    assert warning.isprintable()
    assert len(warning) < 600


def test_choice_names_no_message_where_nothing_agrees() -> None:
    choice = choose(make_message(ID, queue="admin"), task())
    assert choice.message is None
    assert choice.why_not is not None
