"""Text and values from outside: which keys name a secret, plain JSON within bounds, text for a terminal.

Every reply, message and row passes here once. A bad part is replaced alone, so that it never takes its neighbours: each
result can be encoded as JSON, written to any database, used in arithmetic and walked recursively.

Most words name a secret wherever they stand in a key: ``password`` in ``db_PassWord_2``. A few are also parts of
ordinary words (``auth`` of author, ``pass`` of passenger and bypass), so they count only as a part of their own:
between joints (``_``, ``-``, ``.``, a digit, a capital letter in camelCase), or behind a usual prefix without a joint
(``dbpass``). What such a part describes is no secret: ``session_count``, ``auth_type``, ``SessionError``.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from typing import Any, NamedTuple

CUT = "…"  # ends a truncated text


SECRET_KEYS = (
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "api_key",
    "apikey",
    "access_key",
    "private_key",
    "cookie",
    "credential",
    "auth",
    "pwd",
    "pass",
    "bearer",
    "session",
    "jwt",
    "dsn",
)
PARTS = frozenset({"auth", "pwd", "pass", "bearer", "session", "jwt", "dsn"})  # only as a part of their own
_PREFIXES = "o|db|user|my|pg|ftp|smtp|ssh|root|http|basic|proxy|j"
_SUFFIXES = "ids?|keys?|code|phrase|data|string|header|value"
_DESCRIBES = (
    "counts?|total|numbers?|num|rate|ratio|size|length|limit|max|min|seconds|minutes|hours|days|ttl|age|timeout|"
    "duration|expires|expired|expiry|type|method|mode|kind|scheme|status|errors?|exception|warning|failed|failures?|"
    "invalid|required|enabled|idle"
)
_LETTER = r"[^\W\d_]"
_LEFT = rf"(?:(?<!{_LETTER})|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=\\[nrt]))"
_RIGHT = rf"(?:(?!{_LETTER})|(?<=[a-z])(?=[A-Z]))"
# The rest of the key, its closing quote and an assignment that goes on in the same line, unlike ``with x as session:``.
_ASSIGNED = r"""(?=[\w.\[\]-]{0,64}+\\*['"]?[ \t]{0,16}+(?:=>|[:=,])(?![ \t]{0,16}\n))"""


def key_pattern(keys: Sequence[str]) -> re.Pattern[str]:
    """Finds the words in a text that name a secret."""
    anywhere = sorted(shortest({form for key in keys if not _is_part(key) for form in forms(key)}))
    parts = sorted({key.strip().lower() for key in keys if _is_part(key)})
    choices = [f"(?i:{'|'.join(map(re.escape, anywhere))})"] if anywhere else []
    if parts:
        words = "|".join(map(re.escape, parts))
        described = rf"(?!(?i:[_-]?(?:{_DESCRIBES}))(?![\w-]))"
        named = rf"(?i:(?:{_PREFIXES})?(?:{words})(?:{_SUFFIXES})?)"
        choices.append(f"{_LEFT}{named}{_RIGHT}{described}{_ASSIGNED}")
    return re.compile("|".join(choices) or r"(?!)")


def pieces(keys: Iterable[str]) -> tuple[str, ...]:
    """Few lower-case texts of which every text that names a secret has one: ``key`` for api_key and access-key."""
    return tuple(shortest({_last_part(key) for key in keys if key.strip()}))


def words(keys: Iterable[str]) -> tuple[str, ...]:
    """Lower-case texts of which every text that names a secret has one; closer than ``pieces``."""
    return tuple(sorted(shortest({form for key in keys for form in forms(key)})))


def shortest(texts: set[str]) -> Iterator[str]:
    """Without texts that contain another one, which finds them, too."""
    return (text for text in texts if not any(other in text for other in texts - {text}))


def forms(key: str) -> tuple[str, ...]:
    """``api_key`` is also written ``api-key``, ``api key`` and ``apiKey``."""
    key = key.strip().lower()
    return tuple(key.replace("-", "_").replace("_", joint) for joint in ("_", "-", " ", "")) if key else ()


def _is_part(key: str) -> bool:
    return key.strip().lower() in PARTS


def _last_part(key: str) -> str:
    """The part after the last joint; the empty text, which every text contains, if there is none."""
    return key.strip().lower().replace("-", "_").strip("_").rpartition("_")[2]


# C0, DEL and C1 (ESC and CSI among them), line separators, marks and overrides of the direction, lone surrogates.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_KEEPS_LAYOUT = re.compile(f"(?![\n\t]){_CONTROL.pattern}")


def printable(text: str) -> str:
    """One line: control characters as escapes, such as ``\\x1b`` and ``\\n``."""
    return _CONTROL.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Like ``printable``, but line ends and tabs stay: for text that we have laid out."""
    return _KEEPS_LAYOUT.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1] if not match[0].isprintable() else f"\\u{ord(match[0]):04x}"


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


def storable(text: str) -> str:
    """The text with NUL and lone surrogates, which databases refuse, as U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
