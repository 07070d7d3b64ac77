"""Whatever a broker, a worker or somebody's database holds becomes a value that can be stored, sent and shown."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.core import untrusted
from celery_monitor.core.untrusted import LARGEST, NotJson, decode_json, plain_value


def deep(levels: int) -> object:
    value: object = "end"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"a\ud800": "\ud800b", "n": 1}, {"a\ufffd": "\ufffdb", "n": 1}),
        ("a\0b", "a\ufffdb"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (1e308, "1.000e+308"),
        (2**63, "9.223e+18"),
        (-(2**63) + 1, -(2**63) + 1),
        (True, True),
        ((1, {2}), [1, [2]]),
        ({1: None}, {"1": None}),
        (b"a\xff", "a\ufffd"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (Decimal("1.50"), "1.50"),
    ],
)
def test_only_the_bad_part_is_replaced(given: object, found: object) -> None:
    assert plain_value(given) == found
    assert plain_value([given, "beside"]) == [found, "beside"]


def test_a_huge_integer_is_described() -> None:
    assert plain_value(10**400) == "an integer of 1,329 bits…"
    assert decode_json("[" + "9" * 5000 + ", 7]") == ["9" * 40 + "…", 7]


def test_depth_and_number_of_values_are_bounded_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "…" in json.dumps(plain_value(deep(900)), ensure_ascii=False)
    monkeypatch.setattr(untrusted, "MOST_VALUES", 10)
    assert plain_value(list(range(1000))) == [*range(9), "… 991 more"]
    assert plain_value({str(each): each for each in range(1000)})["…"] == "991 more"


def test_a_long_text_is_cut_and_says_so() -> None:
    assert plain_value("x" * 1_000_001).endswith("x…")


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b"", b"nothing"])
def test_what_is_no_json_is_refused_with_a_reason(text: bytes) -> None:
    with pytest.raises(NotJson, match=r".+"):
        decode_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner),
)


def texts_in(value: object) -> Iterator[str]:
    """Every text in a plain value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from texts_in(each)


@given(json_values)
def test_every_value_can_be_stored(value: object) -> None:
    found = plain_value(value)
    assert plain_value(found) == found
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found)) == found
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "\0" not in "".join(texts_in(found))
    assert all(abs(each) < LARGEST for each in [found] if isinstance(each, (int, float)))
