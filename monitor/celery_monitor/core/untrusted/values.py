"""Values from outside as plain JSON values within bounds. Every reply, message and row passes here once.

A bad part is replaced alone, so that it never takes its neighbours: each result can be encoded as JSON, written to any
database, used in arithmetic and walked recursively.
"""

import json
from collections.abc import Mapping
from datetime import date, time
from typing import Any, NamedTuple

from celery_monitor.core.sanitize import CUT, storable

MOST_DEPTH = 64
MOST_VALUES = 1_000_000  # in one reply
LONGEST_TEXT = 1_000_000  # characters
LONGEST_JSON = 32 * 1024 * 1024  # bytes
LARGEST = 2**63  # no number is as large; databases and msgpack refuse larger integers
REPLACED = "\ufffd"  # in place of what cannot be stored
_DIGITS = 20
_SHOWN_DIGITS = 40


class NotJson(ValueError):
    """A text that is not JSON, or beyond what is read; the text says why."""


def plain_value(value: object) -> Any:
    """The value in the types of JSON. What JSON does not have becomes text; what is beyond a bound ends with ``…``."""
    return _Cleaner().clean(value, 0)


class Plain(NamedTuple):
    """A plain value; ``altered``: something of it was replaced or cut, so it must not be sent as if it were exact."""

    value: Any
    altered: bool


def read_plain(value: object) -> Plain:
    """``plain_value``, and whether it differs from what was given."""
    cleaner = _Cleaner()
    return Plain(cleaner.clean(value, 0), cleaner.altered)


def decode_json(text: bytes | str) -> Any:
    """``plain_value`` of a JSON text. Raises NotJson."""
    if len(text) > LONGEST_JSON:
        raise NotJson(f"longer than {LONGEST_JSON:,} bytes")
    try:
        decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return plain_value(json.loads(decoded, parse_int=_integer))
    except RecursionError:
        raise NotJson("nested too deeply") from None
    except ValueError as error:
        raise NotJson(str(error)) from None


def _integer(digits: str) -> int | str:
    """Python refuses to convert thousands of digits, and the whole text with them."""
    return int(digits) if len(digits) <= _DIGITS else f"{digits[:_SHOWN_DIGITS]}{CUT}"


class _Cleaner:
    """Cleans one value; counts how many values are in it."""

    def __init__(self) -> None:
        self._left = MOST_VALUES
        self.altered = False

    def clean(self, value: object, depth: int) -> Any:
        self._left -= 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, (int, float)) and -LARGEST < value < LARGEST:
            return value
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._list(value, depth)
        self.altered = True
        return self._text(_large(value) if isinstance(value, (int, float)) else _as_text(value))

    def _text(self, text: str) -> str:
        found = _bounded(text)
        self.altered = self.altered or found != text
        return found

    def _mapping(self, value: Mapping[object, object], depth: int) -> Any:
        if depth >= MOST_DEPTH:
            self.altered = True
            return CUT
        found: dict[str, Any] = {}
        for key, each in value.items():
            if self._left <= 0:
                self.altered = True
                found[CUT] = f"{len(value) - len(found):,} more"
                break
            found[self._text(key if isinstance(key, str) else _as_text(key))] = self.clean(each, depth + 1)
        return found

    def _list(self, value: "list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any]", depth: int) -> Any:
        if depth >= MOST_DEPTH:
            self.altered = True
            return CUT
        found: list[Any] = []
        for each in value:
            if self._left <= 0:
                self.altered = True
                found.append(f"{CUT} {len(value) - len(found):,} more")
                break
            found.append(self.clean(each, depth + 1))
        return found


def _bounded(text: str) -> str:
    if len(text) > LONGEST_TEXT:
        text = text[: LONGEST_TEXT - len(CUT)] + CUT
    return text if text.isascii() and "\0" not in text else storable(text)


def _as_text(value: object) -> str:
    """Text for what JSON does not have: kombu decodes times, bytes and decimals to objects."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "replace")
    return str(value)


def _large(number: float) -> str:
    """Infinite, not a number, or too large."""
    if isinstance(number, int) and abs(number) >= 10**300:  # more than a float can express
        return f"an integer of {number.bit_length():,} bits{CUT}"
    return f"{number:.3e}"
