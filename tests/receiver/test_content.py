"""Bodies in every form that Celery can be told to send, and in those that nobody should."""

import json
import math
import pickle
import zlib

import msgpack
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.receiver.decode import MSGPACK, YAML, Content, opened, read_yaml
from celery_monitor.records.receiver import RefusedEvents

PICKLE = "application/x-python-serialize"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
EVENTS = st.lists(st.dictionaries(st.sampled_from(["type", "uuid", "args", "freq", "loadavg"]), VALUES), max_size=3)


@given(EVENTS)
def test_what_yaml_and_msgpack_dump_is_read_as_it_was(events: list[object]) -> None:
    assert read_yaml(yaml.safe_dump(events).encode()) == yaml.safe_load(yaml.safe_dump(events))
    packed = opened(msgpack.packb(json.loads(json.dumps(events)), use_bin_type=True), Content(MSGPACK))
    assert isinstance(packed, bytes)
    assert json.loads(packed) == events


def test_a_number_that_json_has_not_is_a_word_which_the_decoder_takes_for_unknown() -> None:
    body = opened(yaml.safe_dump({"runtime": math.inf, "freq": 2.5e300, "pid": 812}).encode(), Content(YAML))
    assert isinstance(body, bytes)
    assert json.loads(body) == {"runtime": ".inf", "freq": 2.5e300, "pid": 812}


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("it was unpickled",)


def test_pickle_is_refused_and_never_unpickled() -> None:
    body = pickle.dumps(Bomb())
    assert opened(body, Content(PICKLE, hostname="w7@shop")) == RefusedEvents("w7@shop", PICKLE)
    assert opened(zlib.compress(body), Content(PICKLE, "application/x-gzip")) == RefusedEvents("", PICKLE)
    assert opened(b"x", Content("a" * 300, hostname="\udc80\0" * 300)) == RefusedEvents("\ufffd" * 200, "a" * 200)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000])
def test_nested_yaml_ends_neither_the_process_nor_its_time(text: str) -> None:
    assert opened(text.encode(), Content(YAML)) is None


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",  # which doubles with each line
        "base: &base {a: 1}\nmore: {<<: *base}",
        "!!python/object/apply:os.system [true]\n---\n2",
        "\x00",
        "a: 'open",
        "",
    ],
)
def test_yaml_that_no_event_is_made_of_is_not_read(text: str) -> None:
    assert opened(text.encode(), Content(YAML)) is None


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"\x81\x91\x01\x02", b"\xa1\xff"]
)
def test_msgpack_that_is_none_is_not_read(body: bytes) -> None:
    assert opened(body, Content(MSGPACK)) is None


def test_a_tag_of_python_is_a_text() -> None:
    assert read_yaml(b"!!python/object/apply:os.system ['true']") == ["true"]


def test_a_compressed_body_is_read_in_each_form() -> None:
    for kind, body in (("application/json", b'{"pid": 3}'), (YAML, b"pid: 3"), (MSGPACK, msgpack.packb({"pid": 3}))):
        found = opened(zlib.compress(body), Content(kind, "application/x-gzip"))
        assert isinstance(found, bytes)
        assert json.loads(found) == {"pid": 3}
