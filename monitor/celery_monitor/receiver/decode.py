"""Decodes a message's body to Events. Fast for what Celery sends, lenient with everything else; decode() never raises.

Celery's ``event_serializer`` sets the format of a worker's events: msgpack and YAML are converted to JSON first. Pickle
is refused and never unpickled, as it would let anybody who can publish an event run code here.
"""

import json
import re
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import msgspec
import yaml
from kombu.message import Message as KombuMessage

from celery_monitor.core.message import DECOMPRESSORS, decompressed
from celery_monitor.core.sanitize import Checked
from celery_monitor.core.untrusted import storable
from celery_monitor.records.event import Event, Message
from celery_monitor.records.receiver import RefusedEvents

INTEGERS = range(-(2**63), 2**63)
LAST_TIMESTAMP = 253_402_300_800  # the year 10000
TASK_EVENTS = frozenset(
    f"task-{word}"
    for word in (
        "sent",
        "received",
        "started",
        "succeeded",
        "failed",
        "retried",
        "rejected",
        "revoked",
        "cancelled",
    )
)

JSON = frozenset({None, "application/json"})
MSGPACK = "application/x-msgpack"
YAML = "application/x-yaml"
LONGEST_TEXT = 200
MOST_BYTES = 16 * 1024 * 1024  # of a decompressed body; more is malformed
DEEPEST = 32  # nesting of YAML; events contain only lists of numbers
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]{1,5})?")  # as PyYAML: no 1e5, no 1.5e5
_WORDS: dict[str, object] = {"": None, "~": None, "null": None, "true": True, "false": False}

_decode_many_checked = msgspec.json.Decoder(list[Checked]).decode
_decode_one_checked = msgspec.json.Decoder(Checked).decode
_decode_many = msgspec.json.Decoder(list[Event]).decode
_decode_one = msgspec.json.Decoder(Event).decode
_count_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def decode(body: bytes) -> tuple[Sequence[Event], int]:
    """The events of one message body, and how many malformed items it has.

    A worker with an event loop sends lists of up to 24 events, others send single events.
    A field of a wrong type becomes None; an event without type, timestamp, hostname or (for task events) uuid counts
    as malformed.
    """
    events = _decode_checked(body)
    if events is None:
        return _decode_leniently(body)
    if None in [event.uuid for event in events]:
        for event in events:
            if event.uuid is None and event.type in TASK_EVENTS:
                return _decode_leniently(body)
    return events, 0


def _decode_checked(body: bytes) -> Sequence[Event] | None:
    many = body[:1] == b"["
    if b"\\" not in body or b"\\u0000" not in body:
        try:
            return _decode_many_checked(body) if many else [_decode_one_checked(body)]
        except (ValueError, RecursionError):
            pass  # a name that is too long, an invalid number, a captured message
    try:
        return _decode_many(body) if many else [_decode_one(body)]
    except (ValueError, RecursionError):
        return None


def count(body: bytes) -> int:
    """How many events a body contains, without decoding them: counts what must be dropped."""
    if body[:1] != b"[":
        return 1
    try:
        return len(_count_items(body))
    except (ValueError, RecursionError):
        return 1


def _decode_leniently(body: bytes) -> tuple[list[Event], int]:
    try:
        # The standard library accepts NaN and lone surrogates, which older workers send.
        document = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return [], 1
    items = document if isinstance(document, list) else [document]
    events = [event for event in map(_event, items) if event is not None]
    return events, len(items) - len(events)


def _event(item: object) -> Event | None:
    if not isinstance(item, dict):
        return None
    fields = {name: READERS[name](value) for name, value in item.items() if name in READERS}
    if any(fields.get(name) is None for name in ("type", "timestamp", "hostname")):
        return None
    if fields["type"] in TASK_EVENTS and fields.get("uuid") is None:
        return None
    return Event(**fields)


def _text(value: object) -> str | None:
    """Text that can be encoded: lone surrogates are replaced."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value in INTEGERS else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _timestamp(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number < LAST_TIMESTAMP else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _signal(value: object) -> int | str | None:
    return _text(value) if isinstance(value, str) else _integer(value)


def _numbers(value: object) -> tuple[float, ...] | None:
    if not isinstance(value, (list, tuple)):
        return None
    numbers = tuple(number for number in map(_number, value) if number is not None)
    return numbers if len(numbers) == len(value) else None


def _message(value: object) -> Message | None:
    try:
        return msgspec.convert(value, Message)
    except (ValueError, RecursionError):
        return None


READERS: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(("type", "hostname", "uuid", "name", "args", "kwargs", "root_id", "parent_id"), _text),
    **dict.fromkeys(("eta", "expires", "queue", "exchange", "routing_key", "result", "exception"), _text),
    **dict.fromkeys(("traceback", "sw_ident", "sw_ver", "sw_sys"), _text),
    **dict.fromkeys(("pid", "clock", "retries", "active", "processed"), _integer),
    **dict.fromkeys(("runtime", "freq"), _number),
    **dict.fromkeys(("requeue", "terminated", "expired"), _flag),
    "timestamp": _timestamp,
    "discovered_at": _timestamp,
    "signum": _signal,
    "loadavg": _numbers,
    "message": _message,
}


class Content(NamedTuple):
    """The format of a message's body, and its sender, from the headers."""

    content_type: str | None = None
    compression: str | None = None
    hostname: str | None = None

    @property
    def is_plain(self) -> bool:
        """Uncompressed JSON."""
        return self.content_type in JSON and self.compression is None


def to_json(body: bytes, content: Content) -> bytes | RefusedEvents | None:
    """The body as JSON; RefusedEvents for a format that is not read; ``None`` if it is not in its stated format."""
    if content.content_type not in JSON and content.content_type not in {MSGPACK, YAML}:
        return RefusedEvents(_short(content.hostname or ""), _short(str(content.content_type)))
    if content.compression is not None:
        if content.compression not in DECOMPRESSORS:
            kind = f"compressed with {content.compression}"
            return RefusedEvents(_short(content.hostname or ""), _short(kind))
        try:
            body = decompressed(body, content.compression, MOST_BYTES)
        except ValueError:
            return None
    if content.content_type in JSON:
        return body
    try:
        document = msgspec.msgpack.decode(body) if content.content_type == MSGPACK else read_yaml(body)
        return msgspec.json.encode(document)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        return None


def json_of(message: KombuMessage) -> bytes | RefusedEvents | None:
    """The body of a kombu message, which must be as it was sent (``keep_compressed``), as JSON."""
    body, headers = message.body, message.headers or {}
    if body is None:
        return None
    given = (headers.get("compression") or None, headers.get("hostname"))
    content = Content(message.content_type, *(None if each is None else str(each) for each in given))
    return to_json(body.encode() if isinstance(body, str) else bytes(body), content)


def _short(text: str) -> str:
    return storable(text)[:LONGEST_TEXT]


def read_yaml(body: bytes) -> object:
    """The one document in it, of lists, mappings and plain values. Raises ValueError and YAMLError.

    PyYAML's loaders recurse in C until the process dies, and expand aliases until memory is full. So its parser events
    are assembled here, to a limited depth and without aliases, which Celery's events don't need.
    """
    results: list[object] = []
    stack: list[list[object]] = [results]
    kinds: list[bool] = []  # whether each open collection is a mapping
    for event in yaml.parse(body, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("an alias")  # noqa: TRY004 - of the text, not of a type
        if isinstance(event, yaml.ScalarEvent):
            stack[-1].append(_plain(event.value) if event.implicit[0] else event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(stack) > DEEPEST:
                raise ValueError("nested too deeply")
            kinds.append(isinstance(event, yaml.MappingStartEvent))
            stack.append([])
        elif isinstance(event, yaml.CollectionEndEvent):
            items = stack.pop()
            stack[-1].append(_mapping(items) if kinds.pop() else items)
    (document,) = results
    return document


def _mapping(items: list[object]) -> dict[str, object]:
    return {str(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _plain(text: str) -> object:
    """The value of an unquoted word, as yaml.safe_dump writes it."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
