import json
import pickle
from typing import Any

import pytest

from celery_monitor.core.arguments import from_result, from_worker
from celery_monitor.core.message import Unreadable

WORKER = "worker1@shop"


def stored(**fields: object) -> bytes:
    meta = {"status": "FAILURE", "task_id": "t7", "name": "shop.pay", "args": [31], "kwargs": {"k": None}, **fields}
    return json.dumps(meta).encode()


def test_an_extended_result_tells_the_arguments_with_name_and_queue() -> None:
    told = from_result("t7", stored(queue="payments", args=["a" * 5000, [[[[1]]]], "it's", {"__type__": "datetime"}]))
    assert (told.arguments.fidelity, told.arguments.source) == ("probable", "result")
    assert told.arguments.args_value == ["a" * 5000, [[[[1]]]], "it's", {"__type__": "datetime"}]
    assert told.arguments.kwargs_value == {"k": None}
    assert (told.name, told.queue) == ("shop.pay", "payments")


def test_a_text_of_the_arguments_is_read_where_it_tells_the_values() -> None:
    """As django-celery-results keeps the publisher's."""
    told = from_result("t7", stored(args="(31, 'x')", kwargs="{'k': 1}"))
    assert (told.arguments.args_value, told.arguments.kwargs_value) == ([31, "x"], {"k": 1})
    assert (told.arguments.fidelity, told.arguments.source) == ("probable", "result")


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
        (stored(task_id="t8"), "for something else"),
        (b"[]", "for something else"),
        (stored(args=[float("nan")]), "not JSON that can be read here"),
        (b'{"task_id": "t7", "args": [1], "args": [2], "kwargs": {}}', "not JSON that can be read here"),
        (pickle.dumps({"task_id": "t7", "args": [1], "kwargs": {}}), "not JSON that can be read here"),
        (b"\xff", "not JSON that can be read here"),
        (b"", "not JSON that can be read here"),
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
    told = from_worker(WORKER, ["reserved", {"id": "t7", "name": "shop.pay", "args": args, "kwargs": kwargs}])
    assert (told.arguments.fidelity, told.arguments.source, told.name) == ("probable", "inspect", "shop.pay")
    assert (told.arguments.args_value, told.arguments.kwargs_value) == values
    assert told.arguments.reason.startswith(
        "from worker1@shop, where the task is reserved. A retry won't include callbacks"
    )


@pytest.mark.parametrize(
    ("said", "words"),
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
def test_a_worker_that_does_not_tell_them_is_not_believed(said: object, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        from_worker(WORKER, said)
