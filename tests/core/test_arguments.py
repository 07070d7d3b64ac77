import json
import pickle
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_monitor.core.arguments import (
    MAX_JSON,
    Arguments,
    edit,
    from_result,
    from_worker,
    judge,
    parse_json_arguments,
)
from celery_monitor.core.captures import MAX_REPR
from celery_monitor.core.message import Unreadable
from celery_monitor.errors import InvalidInput
from tests.factories import make_task


class Custom:
    def __repr__(self) -> str:
        return "<Order 31>"


class Point(NamedTuple):
    x: int
    y: int


def published(value: object) -> str:
    """The text that Celery's publisher makes, as events carry it."""
    text: str = saferepr(value, 1024)
    return text


def judged(args: object, kwargs: object = None) -> Arguments:
    return judge(make_task(args=published(args), kwargs=published({} if kwargs is None else kwargs)))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, "x", None), {"k": [1, 2]}),
        ((), {}),
        ((31,), {"currency": "EUR"}),
        ([1, 2], {}),
        ((True, False, None, -3, 2.5, 1e16, -0.0), {}),
        (("a" * 1022,), {}),
        (([], {}, [[]], {"a": {"b": 1}}), {}),
        (("bob", "ab", "rub"), {"b": "b"}),
        (("a\u2028b", "\xa0", "\u202e", "é", "😀", "{a: 1}"), {"ключ": "значение"}),
        ((10**400,), {}),
        (('say "hi"', "# no comment", "%s {x}"), {"": ""}),
    ],
)
def test_arguments_that_the_text_shows_whole_are_read_back(args: Any, kwargs: Any) -> None:
    arguments = judged(args, kwargs)
    assert (arguments.fidelity, arguments.source) == ("probable", "event")
    assert repr(arguments.args_value) == repr(list(args))
    assert repr(arguments.kwargs_value) == repr(kwargs)
    assert json.loads(arguments.args or "") == list(args)
    assert json.loads(arguments.kwargs or "") == kwargs
    assert "chain" in arguments.reason


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        pytest.param(("a" * 3000,), "shortened", id="a string cut inside its quotes"),
        pytest.param((list(range(2000)),), "shortened", id="a list cut at its end"),
        pytest.param(("a" * 3000, 2), "shortened", id="a string cut, and the rest with it"),
        pytest.param((Custom(),), "other than plain values", id="a custom object"),
        pytest.param(("a\\b",), "backslash", id="a backslash, which would read as backspace"),
        pytest.param(("it's",), "backslash", id="an apostrophe"),
        pytest.param(("C:\\new",), "backslash", id="a path"),
        pytest.param((b"abc",), "bytes", id="bytes"),
        pytest.param((b"\xff\xfe",), "bytes", id="bytes shown as hexadecimal"),
        pytest.param((b"a', 'b",), "other than plain values|bytes", id="bytes with quotes"),
        pytest.param(([[[1]]],), "shortened", id="too deep"),
        pytest.param((...,), "other than plain values|Ellipsis|ellipsis", id="Ellipsis itself"),
        pytest.param(("wait...",), "shortened", id="dots of its own, not told from a cut"),
        pytest.param(("a\nb",), "control", id="a line feed"),
        pytest.param(("a\x00b",), "control", id="a NUL"),
        pytest.param(("a\x1b[31mb",), "control", id="an escape"),
        pytest.param(("a\x85b",), "control", id="a C1 control"),
        pytest.param(("***",), "masked", id="a mask"),
        pytest.param(("a\ufffdb",), "stored", id="a replacement character"),
        pytest.param((float("nan"),), "other than plain values", id="not a number"),
        pytest.param((float("inf"),), "other than plain values", id="infinity"),
        pytest.param(({1, 2},), "set", id="a set"),
        pytest.param((set(),), "set", id="an empty set"),
        pytest.param(((1, 2),), "tuple", id="a tuple inside"),
        pytest.param((Point(1, 2),), "tuple", id="a named tuple inside"),
        pytest.param(({1: "a"},), "the key", id="a whole number as key"),
        pytest.param(({True: "a"},), "the key", id="a truth value as key"),
        pytest.param(({None: "a"},), "the key", id="None as key"),
        pytest.param((1 + 2j,), "complex", id="a complex number"),
        pytest.param((timedelta(1),), "other than plain values", id="a duration"),
        pytest.param((10**2000,), "shortened", id="a number cut short"),
    ],
)
def test_arguments_that_the_text_may_not_show_are_refused(args: Any, reason: str) -> None:
    arguments = judged(args)
    assert arguments.fidelity == "unknown"
    assert (arguments.args, arguments.kwargs, arguments.args_value, arguments.kwargs_value) == (None,) * 4
    assert any(word in arguments.reason for word in reason.split("|")), arguments.reason
    assert arguments.reason.startswith("args ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(1, 2",
        "(1,2)",
        " (1, 2)",
        "(1, 2) ",
        "(0x10,)",
        "(1_000,)",
        '("a",)',
        "('a' 'b',)",
        "(u'a',)",
        "(f'a',)",
        "(1.0e3,)",
        "(1e999,)",
        "(+1,)",
        "(1, 2,)",
        "[1, 2, 3]  # cut",
        "{'a': 1, 'a': 2}",
        "1",
        "None",
        "'abc'",
        "{'a': 1}",
        "(" * 500,
        "[" * 200 + "]" * 200,
        "(" + "1" * 5000 + ",)",
        "('" + "a" * MAX_REPR + "',)",
        "('secret'…)",
        "('\ud800',)",
        "<redacted>",
        "__import__('os')",
    ],
)
def test_a_text_that_celery_does_not_write_is_refused(text: str) -> None:
    assert judge(make_task(args=text, kwargs="{}")).fidelity == "unknown"


@pytest.mark.parametrize("text", ["()", "[]", "{'a': 1, 'a': 2}", "{1: 2}", "{'a': (1, 2)}", "None", "{'a', 'b'}"])
def test_kwargs_are_a_dictionary_with_each_key_once(text: str) -> None:
    arguments = judge(make_task(args="(7,)", kwargs=text))
    assert arguments.fidelity == "unknown"
    assert "kwargs" in arguments.reason


@pytest.mark.parametrize(("args", "kwargs"), [(None, "{}"), ("()", None), (None, None)])
def test_arguments_that_no_event_carried_are_unknown_not_empty(args: str | None, kwargs: str | None) -> None:
    arguments = judge(make_task(args=args, kwargs=kwargs))
    assert (arguments.fidelity, arguments.args, arguments.args_value) == ("unknown", None, None)
    assert arguments.reason == "no event contained its arguments"


def test_a_text_cut_by_the_receiver_at_any_place_is_refused() -> None:
    whole = published((1, "x", [None, "y"]))
    for length in range(len(whole)):
        assert judge(make_task(args=whole[:length], kwargs="{}")).fidelity == "unknown"


SHORT = st.text(max_size=6) | st.text("ab '\\\"\n.,:[](){}*#", max_size=8)
LONG = st.integers(1000, 1040).map(lambda length: "a" * length) | st.just("word " * 300)
LEAF = st.sampled_from([None, True, False, 0.5, 1e22, float("nan")]) | st.integers() | SHORT | LONG
FLAT = LEAF | st.lists(LEAF, max_size=2) | st.dictionaries(SHORT, LEAF, max_size=2)
VALUE = FLAT | st.lists(FLAT, max_size=2) | st.dictionaries(SHORT, st.lists(FLAT, max_size=1), max_size=2)
PLAIN_LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = PLAIN_LEAF | st.text("ab é.", max_size=6) | st.lists(PLAIN_LEAF, max_size=3)


def equal_or_refused(args: list[Any], kwargs: dict[str, Any]) -> bool:
    """True when read back; fails when anything else than the same comes back."""
    arguments = judge(make_task(args=published(tuple(args)), kwargs=published(kwargs)))
    if arguments.fidelity == "unknown":
        assert (arguments.args, arguments.args_value) == (None, None)
        return False
    assert json.dumps([arguments.args_value, arguments.kwargs_value]) == json.dumps([args, kwargs])
    assert published(tuple(arguments.args_value or ())) == published(tuple(args))
    return True


@settings(max_examples=5 * settings().max_examples)  # what is sent again must be what was sent
@given(st.lists(VALUE, max_size=3), st.dictionaries(SHORT, VALUE, max_size=2))
def test_generated_arguments_come_back_equal_or_are_refused(args: list[Any], kwargs: dict[str, Any]) -> None:
    equal_or_refused(args, kwargs)


@given(st.lists(PLAIN, max_size=4))
def test_plain_arguments_come_back(args: list[Any]) -> None:
    assert equal_or_refused(args, {"n": 1}) or "..." in published(tuple(args))


@given(st.text("()[]{}'\"\\,:. 1aNb-+ej\n*", max_size=20))
def test_any_text_is_judged_without_raising(text: str) -> None:
    arguments = judge(make_task(args=text, kwargs="{}"))
    assert not arguments.known or published(tuple(arguments.args_value or ())) == text or text.startswith("[")


def test_the_editor_takes_an_array_and_an_object() -> None:
    assert parse_json_arguments('[1, "x", null]', '{"k": [1, 2.5]}') == ([1, "x", None], {"k": [1, 2.5]})


@pytest.mark.parametrize(
    ("args", "kwargs", "field", "line", "column"),
    [
        ('[1,\n "x', "{}", "args", 2, 2),
        ("[1]", "{'k': 1}", "kwargs", 1, 2),
        ('{"a": 1}', "{}", "args", 1, 1),
        ("[]", "[]", "kwargs", 1, 1),
        ("", "{}", "args", 1, 1),
        ("null", "{}", "args", 1, 1),
        ("[1] 2", "{}", "args", 1, 5),
    ],
)
def test_the_editor_says_where_it_is_wrong(args: str, kwargs: str, field: str, line: int, column: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_json_arguments(args, kwargs)
    assert caught.value.detail == {"field": field, "line": line, "column": column}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "Infinity is not JSON"),
        ("[1e999]", "too large"),
        ('[{"a": 1, "a": 2}]', "duplicate key 'a'"),
        ('["\\ud800"]', "surrogate"),
        ("[" * 200 + "]" * 200, "levels deep"),
        ("[" * 100_000, "too deeply"),
        ("[" + "1" * 5000 + "]", "digits"),
        ('["' + "a" * MAX_JSON + '"]', "too many"),
    ],
)
def test_the_editor_refuses_what_cannot_be_sent(args: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_json_arguments(args, "{}")


def test_what_is_typed_replaces_what_is_known() -> None:
    arguments = edit(judged((31, "EUR"), {"card": "visa"}), "[true]", None)
    assert (arguments.args_value, arguments.kwargs_value) == ([True], {"card": "visa"})
    assert (arguments.fidelity, arguments.source) == ("edited", "editor")


def test_half_of_unknown_arguments_is_not_enough() -> None:
    assert edit(judged(("a" * 3000,)), None, '{"card": "visa"}').fidelity == "unknown"
    assert edit(judged(("a" * 3000,)), "[]", '{"card": "visa"}').args_value == []


def test_nothing_typed_changes_nothing() -> None:
    whole = judged((31, "EUR"))
    assert edit(whole, None, None) is whole
    with pytest.raises(InvalidInput):
        edit(whole, "", None)


def test_arguments_that_their_sender_did_not_report_are_said_to_be_so() -> None:
    for arguments in (judge(make_task(args="", kwargs="")), judge(make_task(args="(31,)", kwargs=""))):
        assert arguments.fidelity == "unknown"
        assert arguments.reason.startswith("the sender reported no arguments")


WORKER = "worker1@shop"


def stored(**fields: object) -> bytes:
    meta = {"status": "FAILURE", "task_id": "t7", "name": "shop.pay", "args": [31], "kwargs": {"k": None}, **fields}
    return json.dumps(meta).encode()


def test_an_extended_result_tells_the_arguments_with_name_and_queue() -> None:
    reported = from_result(
        "t7", stored(queue="payments", args=["a" * 5000, [[[[1]]]], "it's", {"__type__": "datetime"}])
    )
    assert (reported.arguments.fidelity, reported.arguments.source) == ("probable", "result")
    assert reported.arguments.args_value == ["a" * 5000, [[[[1]]]], "it's", {"__type__": "datetime"}]
    assert reported.arguments.kwargs_value == {"k": None}
    assert (reported.name, reported.queue) == ("shop.pay", "payments")


def test_a_text_of_the_arguments_is_read_where_it_tells_the_values() -> None:
    """As django-celery-results keeps the publisher's."""
    reported = from_result("t7", stored(args="(31, 'x')", kwargs="{'k': 1}"))
    assert (reported.arguments.args_value, reported.arguments.kwargs_value) == ([31, "x"], {"k": 1})
    assert (reported.arguments.fidelity, reported.arguments.source) == ("probable", "result")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (json.dumps({"status": "FAILURE", "task_id": "t7", "result": None}).encode(), "needs result_extended"),
        (stored(args=None), "needs result_extended"),
        (stored(args="('aaa...',)"), "stores only a text of its arguments"),
        (stored(args="(<Order>,)"), "stores only a text of its arguments"),
        (stored(kwargs="{'k': Decimal('1')}"), "stores only a text of its arguments"),
        (stored(args="31"), "not a text of arguments"),
        (stored(kwargs="[31]"), "not a text of arguments"),
        (stored(task_id="t8"), "belongs to another task"),
        (b"[]", "belongs to another task"),
        (stored(args=[float("nan")]), "cannot be read as JSON"),
        (b'{"task_id": "t7", "args": [1], "args": [2], "kwargs": {}}', "cannot be read as JSON"),
        (pickle.dumps({"task_id": "t7", "args": [1], "kwargs": {}}), "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
    ],
)
def test_a_result_that_does_not_tell_them_is_refused(value: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        from_result("t7", value)


@pytest.mark.parametrize(
    ("args", "kwargs", "values"),
    [
        ([31, "it's"], {"k": [1]}, ([31, "it's"], {"k": [1]})),
        ("(31, 'x')", "{'k': 1}", ([31, "x"], {"k": 1})),
    ],
)
def test_a_worker_tells_values_or_their_text(args: Any, kwargs: Any, values: Any) -> None:
    reported = from_worker(WORKER, ["reserved", {"id": "t7", "name": "shop.pay", "args": args, "kwargs": kwargs}])
    assert (reported.arguments.fidelity, reported.arguments.source, reported.name) == (
        "probable",
        "inspect",
        "shop.pay",
    )
    assert (reported.arguments.args_value, reported.arguments.kwargs_value) == values
    assert reported.arguments.reason.startswith(
        "from worker1@shop, where the task is reserved. A retry won't include callbacks"
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "does not have the task"),
        ("ready", "does not have the task"),
        (["active"], "does not have the task"),
        (["active", {"args": [1]}], "does not have the task"),
        (["active", {"args": "('aaa...',)", "kwargs": {}}], "cannot be used"),
        (["active", {"args": "(<Order>,)", "kwargs": {}}], "cannot be used"),
        (["active", {"args": [object()], "kwargs": {}}], "what JSON cannot represent"),
        (["active", {"args": [float("inf")], "kwargs": {}}], "what JSON cannot represent"),
        (["active", {"args": {"a": 1}, "kwargs": {}}], "cannot be used"),
    ],
)
def test_a_worker_that_does_not_tell_them_is_not_believed(answer: object, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        from_worker(WORKER, answer)
