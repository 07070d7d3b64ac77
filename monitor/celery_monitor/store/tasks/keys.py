"""Keys: task ids in as few bytes as possible; spans of keys, for an id or the beginning of ids; and cursors of lists.

Celery's own ids are UUIDs in canonical form: 16 bytes. Any other string is stored as UTF-8 after a NUL (two where that
would make 16 bytes); no id begins with NUL, which is replaced before storage. A cursor is the place in a list beside
which a page begins, as opaque text.
"""

import base64
import binascii
import math
import re
from typing import Literal, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, and_, func, literal_column

from celery_monitor.core.filters.terms import Pattern
from celery_monitor.errors import InvalidInput
from celery_monitor.store import schema

_UUID_LENGTH = 16
_LENGTH_AS_TEXT = 36
_SHORTEST_WORD = 4  # a shorter bare word is not searched as the beginning of an id
_LONGEST_KEY = b"\xff"  # UTF-8 has no such byte
_SHAPE = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
_task = schema.task.c


def to_key(task_id: str) -> bytes:
    """The key of a task id; ``from_key`` is the inverse."""
    if len(task_id) == _LENGTH_AS_TEXT and task_id[8:24:5] == "----":
        digits = task_id.replace("-", "")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if key.hex() == digits:  # fromhex accepts capitals and spaces, too
            return key
    key = b"\0" + task_id.encode()
    return b"\0" + key if len(key) == _UUID_LENGTH else key


def from_key(key: bytes) -> str:
    """The task id of a key."""
    if len(key) == _UUID_LENGTH:
        text = bytes(key).hex()  # four times as fast as UUID, and a workflow has ten thousand ids
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    return bytes(key).lstrip(b"\0").decode()


class KeySpan(NamedTuple):
    """Keys from ``low`` to ``high``, both included, of UUIDs or of other ids."""

    low: bytes
    high: bytes
    uuid: bool

    def holds(self, column: ColumnElement[bytes]) -> ColumnElement[bool]:
        if self.low == self.high:
            return column == self.low
        is_uuid = func.length(column) == _UUID_LENGTH
        return and_(column >= self.low, column <= self.high, is_uuid if self.uuid else ~is_uuid)


def span_of(key: bytes) -> KeySpan:
    """The span of this one key."""
    return KeySpan(key, key, len(key) == _UUID_LENGTH)


def id_spans(pattern: Pattern) -> list[KeySpan]:
    """The spans of the id that is the text, or of all ids that begin with the prefix."""
    if pattern.literal:
        return [span_of(to_key(pattern.pieces[0]))]
    prefix = pattern.prefix or ""
    text = prefix.encode()
    found = [KeySpan(nul + text, nul + text + _LONGEST_KEY, uuid=False) for nul in (b"\0", b"\0\0")]
    if _is_uuid_beginning(prefix):
        digits = prefix.replace("-", "")
        low, high = (bytes.fromhex(digits.ljust(32, digit)) for digit in "0f")
        found.append(KeySpan(low, high, uuid=True))
    return found


def spans_of_word(pattern: Pattern) -> list[KeySpan]:
    """The spans for a bare word, which may be the beginning of an id."""
    if pattern.literal and len(pattern.pieces[0]) >= _SHORTEST_WORD:
        return id_spans(Pattern((pattern.pieces[0].lower() if _is_uuid(pattern.pieces[0]) else pattern.pieces[0], "")))
    return id_spans(pattern) if pattern.prefix and len(pattern.prefix) >= _SHORTEST_WORD else []


def _is_uuid(text: str) -> bool:
    return len(text) == len(_SHAPE) and _is_uuid_beginning(text.lower())


def _is_uuid_beginning(text: str) -> bool:
    shape = _SHAPE[: len(text)]
    return len(text) <= len(_SHAPE) and re.sub("[0-9a-f]", "x", text) == shape


def is_alone() -> ColumnElement[bool]:
    """The task is in no workflow: it is its own root, or its root is unknown."""
    return func.coalesce(func.length(_task.root), 0) == 0


def in_tree(span: KeySpan) -> ColumnElement[bool]:
    """Tasks below the roots in the span, in the words of the condition of the index ``task_root``."""
    return and_(_task.root.is_not(None), func.length(_task.root) > literal_column("0"), span.holds(_task.root))


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The row beside which a page begins. ``search_limit`` fixes the rows of a list that is sorted by another key."""

    sort: str
    direction: Literal["next", "previous"]
    key: float | int | str
    id: int
    search_limit: tuple[float, int] | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Cursor).decode
_MOST = 2**63 - 1


def write_cursor(cursor: Cursor) -> str:
    """As opaque text."""
    return base64.urlsafe_b64encode(_encode(cursor)).rstrip(b"=").decode()


def read_cursor(text: str, sort: str, *, by_text: bool = False) -> Cursor:
    """Raises InvalidInput unless it is a cursor of a list in this order, with a key that is text or a number."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        cursor = _decode(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (UnicodeEncodeError, binascii.Error, msgspec.DecodeError):
        raise InvalidInput("not a cursor; leave it out to begin at the first page") from None
    if cursor.sort != sort:
        raise InvalidInput(
            f"this cursor is of a list sorted by {cursor.sort!r}; leave it out to begin at the first page"
        )
    if isinstance(cursor.key, str) != by_text or (by_text and "\0" in str(cursor.key)):
        raise InvalidInput("invalid cursor; leave it out to begin at the first page")
    found = [cursor.id, *([] if isinstance(cursor.key, str) else [cursor.key]), *(cursor.search_limit or ())]
    if any(abs(each) > _MOST or not math.isfinite(each) for each in found if isinstance(each, int)):
        raise InvalidInput("invalid cursor; leave it out to begin at the first page")
    return cursor
