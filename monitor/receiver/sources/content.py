"""What a message's body is, made the JSON that the decoder reads: decompressed, and rewritten from msgpack or YAML.

Celery's ``event_serializer`` says in which form a worker sends events. Pickle is refused and never unpickled: who may
publish an event could run code here.
"""

import re
from typing import NamedTuple

import msgspec
import yaml
from kombu.compression import decompress
from kombu.message import Message

from monitor.intake import storable
from monitor.records import RefusedEvents

JSON = frozenset({None, "application/json"})
MSGPACK = "application/x-msgpack"
YAML = "application/x-yaml"
LONGEST_TEXT = 200
DEEPEST = 32  # of YAML; an event holds lists of numbers, and no more
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,5})?")
_WORDS: dict[str, object] = {"": None, "~": None, "null": None, "true": True, "false": False}


class Content(NamedTuple):
    """What the headers of a message say of its body."""

    content_type: str | None = None
    compression: str | None = None
    hostname: str | None = None

    @property
    def is_plain(self) -> bool:
        """JSON as it stands."""
        return self.content_type in JSON and self.compression is None


def opened(body: bytes, content: Content) -> bytes | RefusedEvents | None:
    """The JSON within; what is refused where it is in no form that we read; ``None`` where it is not what it says."""
    if content.content_type not in JSON and content.content_type not in {MSGPACK, YAML}:
        return RefusedEvents(_short(content.hostname or ""), _short(str(content.content_type)))
    if content.compression is not None:
        try:
            body = bytes(decompress(body, content.compression))
        except Exception:  # noqa: BLE001  each compressor has its own errors
            return None
    if content.content_type in JSON:
        return body
    try:
        document = msgspec.msgpack.decode(body) if content.content_type == MSGPACK else read_yaml(body)
        return msgspec.json.encode(document)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        return None


def body_of(message: Message) -> bytes | RefusedEvents | None:
    """The JSON in a message of kombu's, which has decompressed it, or could not."""
    if message.errors:
        return None
    body = message.body
    sender = (message.headers or {}).get("hostname")
    content = Content(message.content_type, None, None if sender is None else str(sender))
    return opened(body.encode() if isinstance(body, str) else bytes(body), content)


def _short(text: str) -> str:
    return storable(text)[:LONGEST_TEXT]


def read_yaml(body: bytes) -> object:
    """The one document of lists, mappings and plain values in it. Raises ValueError and YAMLError.

    PyYAML's loaders recurse in C until the process dies, and expand aliases until memory is full: so its events are
    put together here, to a bounded depth and without aliases. Celery's events have no use for either.
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
    """What an unquoted word stands for, as yaml.safe_dump writes it."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
