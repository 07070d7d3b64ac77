"""The text of arguments in events: ``saferepr(maxlen=1024, maxlevels=3)`` (celery/utils/saferepr.py), read back."""

import ast
import math
import re
from threading import Lock

MAX_REPR = 1040  # longest text that is not truncated: the limit of saferepr, quotes, and closing brackets
MAX_LEVELS = 3  # brackets within brackets that saferepr shows

REPLACEMENT = "\ufffd"  # stored in the place of NUL and lone surrogates
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MASK = "***"
# CPython 3.11 and 3.12 share the recursion depth of ast among threads, and raise SystemError (cpython #106905).
_parsing = Lock()


class Lossy(ValueError):
    """A repr that may have lost something. The message is a predicate: ``contain a backslash``."""


def read_repr(text: str) -> object:
    """The only JSON value for which saferepr gives this text; raises Lossy.

    Without a backslash no string can contain an apostrophe, so quotes pair up as they look; without dots in a row
    nothing was left out; and if the repr of the value is the same text, no other value fits.
    """
    _check_text(text)
    try:
        with _parsing:
            value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Lossy("contain something other than plain values, or were truncated") from None
    if text_of(value, 0) != text:
        raise Lossy("cannot be rebuilt exactly from the event text")
    return value


def _check_text(text: str) -> None:
    if "..." in text or "…" in text:
        raise Lossy("were shortened by the sender: too long or nested too deeply for an event")
    if len(text) > MAX_REPR:
        raise Lossy("are longer than Celery's limit, so the text is not Celery's")
    if _MASK in text:
        raise Lossy("contain a masked secret")
    if "\\" in text:
        raise Lossy("contain a backslash, which the event text does not escape")
    if _CONTROL.search(text):
        raise Lossy("contain a control character")
    if REPLACEMENT in text:
        raise Lossy("contain a character that could not be stored")


def text_of(value: object, level: int) -> str:
    """The text of saferepr for an accepted value; raises Lossy for any other."""
    if isinstance(value, str):
        return f"'{value}'"
    if value is None or isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if level >= MAX_LEVELS:
        raise Lossy("are nested deeper than the event text shows")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {text_of(each, level + 1)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(text_of(each, level + 1) for each in value) + "]"
    if isinstance(value, tuple):
        return _tuple(value, level)
    raise Lossy(f"contain a {type(value).__name__}, which JSON cannot represent")


def _tuple(value: tuple[object, ...], level: int) -> str:
    # The outermost tuple is the arguments. JSON turns an inner one into a list, pickle does not.
    if level:
        raise Lossy("contain a tuple, which the worker may have received as a list")
    inner = ", ".join(text_of(each, 1) for each in value)
    return f"({inner},)" if len(value) == 1 else f"({inner})"


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise Lossy("contain an infinite number, which JSON cannot represent")
    return str(value)


def _key(key: object) -> str:
    # JSON turns {1: ...} into {"1": ...}, pickle does not.
    if not isinstance(key, str):
        raise Lossy(f"contain the key {key!r}, which is not a string")
    return f"'{key}'"
