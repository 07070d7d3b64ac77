"""Cursors: where a page ended, as text that means nothing to its reader. A changed one is refused or is a place."""

import base64
import binascii
import math
from typing import Literal

import msgspec

from monitor.errors import InvalidInput


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The row beside which a page begins. ``floor`` keeps the rows that a sorted list is made of the same."""

    sort: str
    direction: Literal["next", "previous"]
    key: float | int | str
    id: int
    floor: tuple[float, int] | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Cursor).decode
_MOST = 2**63 - 1


def write_cursor(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(_encode(cursor)).rstrip(b"=").decode()


def read_cursor(text: str, sort: str, *, by_text: bool = False) -> Cursor:
    """Raises InvalidInput unless this is a cursor of a list in this order, whose key is text or else a number."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        cursor = _decode(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (UnicodeEncodeError, binascii.Error, msgspec.DecodeError):
        raise InvalidInput("this is no cursor; leave it out to begin at the first page") from None
    if cursor.sort != sort:
        raise InvalidInput(
            f"this cursor is of a list sorted by {cursor.sort!r}; leave it out to begin at the first page"
        )
    if isinstance(cursor.key, str) != by_text or (by_text and "\0" in str(cursor.key)):
        raise InvalidInput("this cursor points nowhere; leave it out to begin at the first page")
    numbers = [cursor.id, *([] if isinstance(cursor.key, str) else [cursor.key]), *(cursor.floor or ())]
    if any(abs(each) > _MOST or not math.isfinite(each) for each in numbers if isinstance(each, int)):
        raise InvalidInput("this cursor points nowhere; leave it out to begin at the first page")
    return cursor
