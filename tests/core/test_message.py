"""What is read of a captured message, and what is not."""

import bz2
import json
import lzma
import zlib
from typing import Any

import pytest

from celery_monitor.core.arguments import judge, without_secrets
from celery_monitor.core.captures import Trust
from celery_monitor.core.message import (
    DECOMPRESSORS,
    MAX_READ,
    MOST_MEMORY,
    ContentTooLarge,
    Unreadable,
    decompressed,
    facts,
    json_text,
    stamps_of,
    with_links,
)
from celery_monitor.core.sanitize import Redactor
from celery_monitor.settings import REDACTED_KEYS
from tests.factories import make_captured_task, make_id, make_message, make_run

ID = make_id(31)
REDACTOR = Redactor(REDACTED_KEYS)


def test_a_message_tells_what_events_leave_out() -> None:
    headers = {"shadow": "Pay", "group": "g7", "group_index": 2, "stamps": {"tenant": "acme", "token": "t0p"}}
    found = facts(make_message(ID, headers={**headers, "celery_beat_task": "nightly"}, properties={"priority": 9}))
    assert (found.name, found.shadow, found.priority) == ("shop.pay.charge", "Pay", 9)
    assert (found.group, found.group_index, found.beat) == ("g7", 2, "nightly")
    assert stamps_of(found, REDACTOR) == {"tenant": "acme", "token": "***"}


def test_a_json_message_is_exact_and_its_arguments_are_shown() -> None:
    judged = judge(make_captured_task(ID), make_message(ID))
    assert (judged.fidelity, judged.source) == ("exact", "capture")
    assert (judged.args, judged.kwargs) == ("[31]", '{"card": "visa"}')


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"\x80\x04 pickled", {"content_type": "application/x-python-serialize"}),
        (b'[[NaN], {"card": "visa"}, {}]', {"headers": {"argsrepr": "(nan,)"}}),
        (b'[["\\ud800"], {"card": "visa"}, {}]', {"headers": {"argsrepr": "('\ud800',)"}, "args": "('\ufffd',)"}),
        (b"packed", {"headers": {"compression": "application/x-brotli"}}),
    ],
)
def test_what_cannot_be_shown_is_exact_all_the_same(body: bytes, fields: dict[str, Any]) -> None:
    message = make_message(ID, body=body, **fields)
    judged = judge(make_captured_task(ID, args=message.args), message)
    assert (judged.fidelity, judged.known, judged.args, judged.args_value) == ("exact", True, None, None)


@pytest.mark.parametrize(
    ("name", "pack"),
    [("application/x-gzip", zlib.compress), ("application/x-bz2", bz2.compress), ("application/x-lzma", lzma.compress)],
)
def test_packed_bodies_are_opened_up_to_a_bound(name: str, pack: object) -> None:
    assert callable(pack)
    small = make_message(ID, body=pack(b'[["x"], {}, {}]'), headers={"compression": name})
    assert json_text(small) == '[["x"], {}, {}]'
    bomb = make_message(ID, body=pack(b" " * (MAX_READ + 1)), headers={"compression": name})
    with pytest.raises(Unreadable, match="too large to be shown"):
        json_text(bomb)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"headers": {"id": make_id(32)}}, "belongs to another task"),
        (
            {"headers": {"retries": 2, "task": "shop.start"}},
            "is from a call of shop.start, and the latest is of shop.pay.charge",
        ),
        ({"headers": {"retries": 2, "argsrepr": "(30,)"}}, "is from a call with other arguments"),
        ({"headers": {"retries": 1}}, "only for attempt 2, and attempt 3 may differ"),
        ({"headers": {"retries": 2}, "routing_key": None, "queue": None}, "no content type or no route"),
        ({"headers": {"retries": 2}, "content_type": None}, "content type"),
    ],
)
def test_a_message_that_is_not_the_last_attempt_s_is_not_exact(fields: dict[str, Any], reason: str) -> None:
    judged = judge(make_captured_task(ID, runs=[make_run(retries=2)]), make_message(ID, **fields))
    assert judged.fidelity == "probable"
    assert reason in judged.reason


def test_message_of_the_call_that_was_replaced_is_not_exact() -> None:
    task = make_captured_task(ID, name="pay for 31", sent=None, runs=[make_run(retries=0, replacing=1)])
    before = make_message(ID, headers={"task": "pay for 31", "replaced_task_nesting": 0})
    assert "from the call that was replaced" in judge(task, before).reason
    after = make_message(ID, headers={"task": "pay for 31", "replaced_task_nesting": 1})
    assert judge(task, after, Trust(queues=("payments",))).fidelity == "exact"


def test_secrets_in_a_message_are_masked_for_show_and_kept_for_sending() -> None:
    body = json.dumps([["31"], {"api_key": "k3y", "card": "visa"}, {}]).encode()
    texts = {"argsrepr": "('31',)", "kwargsrepr": "<hidden>"}
    task = make_captured_task(ID, args="('31',)", kwargs="<hidden>")
    judged = judge(task, make_message(ID, body=body, headers=texts))
    assert judged.kwargs_value == {"api_key": "k3y", "card": "visa"}
    shown = without_secrets(judged, REDACTOR)
    assert (shown.kwargs_value, shown.masked, shown.fidelity) == ({"api_key": "***", "card": "visa"}, True, "exact")
    assert "k3y" not in repr(shown)


def test_links_are_read_of_a_json_body_alone() -> None:
    links: dict[str, Any] = {
        "callbacks": [{"task": "a"}],
        "errbacks": None,
        "chain": [{}, {}],
        "chord": {"task": "shop.sum"},
    }
    plain = with_links(make_message(ID, body=json.dumps([[], {}, links]).encode()))
    assert (plain.callbacks, plain.errbacks, plain.chain, plain.chord, plain.links) == (1, 0, 2, "shop.sum", True)
    for body in (b"[]", b"{}", b"[[], {}, 5]", b'[[], {}, {"chain": 5}]', b"\xff", b"[" * 100_000):
        assert not with_links(make_message(ID, body=body)).links
    assert not with_links(make_message(ID, content_type="application/x-python-serialize")).links


@pytest.mark.parametrize(
    ("why", "source", "words"),
    [
        ("waiting", "queue", "original message, from the queue payments. A retry"),
        ("read", "queue", "original message, from the queue payments when it was last read. A retry"),
        ("unacked", "unacked", "original message, delivered to a worker and not acknowledged. A retry"),
        ("received", "capture", "original message, captured by the worker. A retry"),
    ],
)
def test_a_message_names_where_it_is_from(why: str, source: str, words: str) -> None:
    forms: tuple[dict[str, Any], ...] = ({}, {"content_type": "application/x-python-serialize", "body": b"\x80\x04"})
    for fields in forms:
        judged = judge(make_captured_task(ID), make_message(ID, why=why, **fields))
        assert (judged.fidelity, judged.source) == ("exact", source)
        assert judged.reason.startswith(words)


COMPRESS = {"application/x-gzip": zlib.compress, "application/x-bz2": bz2.compress, "application/x-xz": lzma.compress}


@pytest.mark.parametrize(("name", "compress"), COMPRESS.items())
def test_content_within_the_bound_is_whole(name: str, compress: object) -> None:
    assert decompressed(compress(b"x" * 1000), name, 1000) == b"x" * 1000  # type: ignore[operator]


@pytest.mark.parametrize(("name", "compress"), COMPRESS.items())
def test_content_beyond_the_bound_is_refused(name: str, compress: object) -> None:
    with pytest.raises(ContentTooLarge):
        decompressed(compress(b"x" * 10_000_000), name, 1000)  # type: ignore[operator]


@pytest.mark.parametrize("name", DECOMPRESSORS)
def test_damaged_data_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"not |incomplete"):
        decompressed(b"[1, 2]", name, 1000)


def test_lzma_that_asks_for_too_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2 * MOST_MEMORY}]
    with pytest.raises(ValueError, match="limit"):
        decompressed(lzma.compress(b"x", filters=filters), "application/x-xz", 1000)


def test_unknown_format_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        decompressed(b"x", "application/x-brotli", 1000)
