"""Text from outside for a terminal or a log: no character of it moves the cursor, colours, hides or reorders text."""

import re

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
