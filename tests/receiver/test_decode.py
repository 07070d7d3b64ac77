"""Bodies of every kind: what Celery sends, and what nobody should."""

import json
import math
import pickle
import zlib
from typing import Any

import msgpack
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.core.sanitize import LATEST_TIME, NAME_LENGTH, Checked, Sanitizer
from celery_monitor.receiver.decode import MSGPACK, READERS, YAML, Content, count, decode, read_yaml, to_json
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import RefusedEvents
from tests.factories import NOW, make_event, make_id
from tests.receiver.traffic import as_dicts

TEXTS = st.none() | st.text(max_size=20)
INTEGERS = st.none() | st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
FLAGS = st.none() | st.booleans()
EVENTS = st.builds(
    Event,
    type=st.sampled_from(["task-received", "task-failed", "worker-heartbeat", "shop-opened"]),
    timestamp=st.floats(0, 4e9),
    hostname=st.text(max_size=20),
    uuid=st.text(max_size=20),
    args=TEXTS,
    exception=TEXTS,
    pid=INTEGERS,
    clock=INTEGERS,
    retries=INTEGERS,
    runtime=NUMBERS,
    terminated=FLAGS,
    signum=INTEGERS | st.text(max_size=10),
    loadavg=st.none() | st.tuples(*[st.floats(0, 1e9)] * 3),
)


def plain(**changes: object) -> dict[str, Any]:
    """A task-succeeded event as a worker sends it."""
    fields = {"type": "task-succeeded", "uuid": make_id(5), "timestamp": NOW, "hostname": "worker7@shop", "pid": 812}
    return {**fields, "clock": 77, "utcoffset": -2, "result": "'paid'", "runtime": 0.75, **changes}


def body(document: object) -> bytes:
    return json.dumps(document).encode()


@given(st.lists(EVENTS, max_size=5))
def test_valid_events_come_back_equal(events: list[Event]) -> None:
    found, malformed = decode(msgspec.json.encode(events))
    assert (as_dicts(found), malformed) == (as_dicts(events), 0)


@given(EVENTS)
def test_a_single_event_needs_no_list(event: Event) -> None:
    found, malformed = decode(msgspec.json.encode(event))
    assert (as_dicts(found), malformed) == (as_dicts([event]), 0)


@given(st.binary(max_size=200) | st.from_regex(rb'\[?\{"type": ?"task-[a-z]*", ?"timestamp": .*\}\]?', fullmatch=True))
def test_no_bytes_raise(noise: bytes) -> None:
    events, malformed = decode(noise)
    assert len(events) + malformed == count(noise) or malformed >= 1


@given(
    st.dictionaries(
        st.sampled_from(sorted(READERS)) | st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
    )
)
def test_wrong_types_never_raise_and_what_comes_out_can_be_stored(fields: dict[str, Any]) -> None:
    events, malformed = decode(body({**plain(), **fields}))
    assert len(events) + malformed == 1
    for event in events:
        assert as_dicts([msgspec.json.decode(msgspec.json.encode(event), type=Event)]) == as_dicts([event])


def test_every_field_of_an_event_has_a_lenient_reader() -> None:
    assert set(READERS) == set(Event.__struct_fields__)


def test_the_lenient_path_reads_a_good_event_as_the_fast_path_does() -> None:
    good = plain(loadavg=[1, 2.5, 3], signum=15, terminated=True, retries=3)
    (fast,), _ = decode(body(good))
    (fast_again, broken), malformed = decode(body([good, plain(runtime=math.nan)]))
    assert as_dicts([fast]) == as_dicts([fast_again])
    assert (broken.runtime, broken.result, malformed) == (None, "'paid'", 0)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("result", "a\ud800b", "a\ufffdb"),
        ("result", ["not", "text"], None),
        ("runtime", math.inf, None),
        ("runtime", "fast", None),
        ("runtime", 10**400, None),
        ("clock", 2**63, None),
        ("clock", 2**63 - 1, 2**63 - 1),
        ("clock", True, None),
        ("pid", 812.0, 812),
        ("pid", 812.5, None),
        ("signum", "SIGTERM", "SIGTERM"),
        ("signum", {}, None),
        ("terminated", 1, None),
        ("loadavg", [1.5, "high"], None),
        ("loadavg", "high", None),
    ],
)
def test_a_field_of_a_wrong_kind_is_unknown_and_the_event_stays(field: str, value: object, expected: object) -> None:
    (event,), malformed = decode(body(plain(**{field: value})))
    assert (getattr(event, field), event.uuid, malformed) == (expected, make_id(5), 0)


@pytest.mark.parametrize("field", ["type", "timestamp", "hostname", "uuid"])
def test_an_event_that_cannot_be_placed_is_malformed(field: str) -> None:
    for damaged in ({k: v for k, v in plain().items() if k != field}, plain(**{field: None}), plain(**{field: [4]})):
        assert decode(body(damaged)) == ([], 1)


@pytest.mark.parametrize("timestamp", [-1, 10**12, math.nan, "now"])
def test_a_time_outside_the_calendar_is_malformed(timestamp: object) -> None:
    assert decode(body(plain(timestamp=timestamp))) == ([], 1)


def test_an_event_of_somebody_else_needs_no_uuid() -> None:
    (event,), malformed = decode(body({"type": "task-audited", "timestamp": NOW, "hostname": "worker7@shop"}))
    assert (event.type, event.uuid, malformed) == ("task-audited", None, 0)


def test_good_events_beside_bad_ones_are_kept() -> None:
    events, malformed = decode(body([plain(), 17, None, plain(hostname=None), "x", plain(result="'two'")]))
    assert [event.result for event in events] == ["'paid'", "'two'"]
    assert malformed == 4


@pytest.mark.parametrize(
    "noise", [b"", b"pickle\x80\x04", b"{", b"[", b"null", b"17", b"[" * 200_000, b"\xff\xfe", b"9" * 6000]
)
def test_what_is_no_event_counts_once(noise: bytes) -> None:
    assert decode(noise) == ([], 1)


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    (event,), malformed = decode(body(plain()).replace(b"'paid'", b"'p\xffd'"))
    assert (event.result, malformed) == ("'p\ufffdd'", 0)


def test_five_megabytes_pass() -> None:
    text = "é\n" * 2_500_000
    (event,), malformed = decode(body(plain(type="task-failed", traceback=text)))
    assert (event.traceback, malformed) == (text, 0)


def test_count_agrees_with_decode() -> None:
    events = [make_event("task-received", name="shop.pay"), make_event("task-started"), make_event("worker-online")]
    assert count(msgspec.json.encode(events)) == 3
    assert count(msgspec.json.encode(events[0])) == 1
    assert count(b"[]") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hostname", "h" * (NAME_LENGTH + 1)),
        ("uuid", "a\0b"),
        ("pid", -1),
        ("retries", 2**31),
        ("timestamp", LATEST_TIME),
        ("runtime", -0.5),
        ("message", {"why": "failed", "size": 1, "headers": "{}", "properties": "{}"}),
    ],
)
def test_what_is_to_be_cleaned_is_no_checked_event(field: str, value: object) -> None:
    (event,), malformed = decode(body(plain(**{field: value})))
    assert type(event) is Event
    assert malformed == 0


def test_secrets_and_long_texts_are_found_among_clean_events() -> None:
    intake = Sanitizer(max_text=100, redact=["password"])
    events, _ = decode(body([plain(result="'fine'") for _ in range(40)]))
    dirty, _ = decode(body([plain(result="{'password': 'x1'}"), plain(result="y" * 101)]))
    assert {type(each) for each in (*events, *dirty)} == {Checked}
    cleaned = list(intake.clean_all([*events[:30], *dirty, *events[30:]]))
    assert [each.result for each in cleaned if each] == [
        *["'fine'"] * 30,
        "{'password': '***'}",
        "y" * 99 + "…",
        *["'fine'"] * 10,
    ]


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
DOCUMENTS = st.lists(st.dictionaries(st.sampled_from(["type", "uuid", "args", "freq", "loadavg"]), VALUES), max_size=3)


@given(DOCUMENTS)
def test_what_yaml_and_msgpack_dump_is_read_as_it_was(events: list[object]) -> None:
    assert read_yaml(yaml.safe_dump(events).encode()) == yaml.safe_load(yaml.safe_dump(events))
    packed = to_json(msgpack.packb(json.loads(json.dumps(events)), use_bin_type=True), Content(MSGPACK))
    assert isinstance(packed, bytes)
    assert json.loads(packed) == events


@pytest.mark.parametrize("text", ["0E0", "1e5", "1.5e5", "1.5e+5", ".5", "5.", "1.e-3", "1_000", "017", "0x1f", "1:30"])
def test_texts_that_look_like_numbers_are_read_as_pyyaml_reads_them(text: str) -> None:
    assert read_yaml(yaml.safe_dump([{text: text}]).encode()) == [{text: text}]


def test_a_number_that_json_has_not_is_a_word_which_the_decoder_takes_for_unknown() -> None:
    body = to_json(yaml.safe_dump({"runtime": math.inf, "freq": 2.5e300, "pid": 812}).encode(), Content(YAML))
    assert isinstance(body, bytes)
    assert json.loads(body) == {"runtime": ".inf", "freq": 2.5e300, "pid": 812}


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("it was unpickled",)


def test_pickle_is_refused_and_never_unpickled() -> None:
    body = pickle.dumps(Bomb())
    assert to_json(body, Content(PICKLE, hostname="w7@shop")) == RefusedEvents("w7@shop", PICKLE)
    assert to_json(zlib.compress(body), Content(PICKLE, "application/x-gzip")) == RefusedEvents("", PICKLE)
    assert to_json(b"x", Content("a" * 300, hostname="\udc80\0" * 300)) == RefusedEvents("\ufffd" * 200, "a" * 200)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000])
def test_nested_yaml_ends_neither_the_process_nor_its_time(text: str) -> None:
    assert to_json(text.encode(), Content(YAML)) is None


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
    assert to_json(text.encode(), Content(YAML)) is None


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"\x81\x91\x01\x02", b"\xa1\xff"]
)
def test_msgpack_that_is_none_is_not_read(body: bytes) -> None:
    assert to_json(body, Content(MSGPACK)) is None


def test_a_tag_of_python_is_a_text() -> None:
    assert read_yaml(b"!!python/object/apply:os.system ['true']") == ["true"]


def test_a_compressed_body_is_read_in_each_form() -> None:
    for kind, body in (("application/json", b'{"pid": 3}'), (YAML, b"pid: 3"), (MSGPACK, msgpack.packb({"pid": 3}))):
        found = to_json(zlib.compress(body), Content(kind, "application/x-gzip"))
        assert isinstance(found, bytes)
        assert json.loads(found) == {"pid": 3}
