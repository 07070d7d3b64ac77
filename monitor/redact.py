"""Masks secrets in Python reprs (and JSON, headers, URLs within them) before anything is stored. No I/O.

A text may be truncated, nested or escaped several times over, so it cannot be parsed for certain. The rule is
therefore: what is under a key that names a secret is masked up to where it certainly ends; where that is not
certain, everything to the end of the text is masked. It may mask too much; it must not mask too little.
"""

import re
from collections.abc import Iterator
from collections.abc import Sequence

MASK = "***"

_URL = re.compile(r"(://)([^\s'\"\\]*+)")
_PORT = re.compile(r"\d{1,5}(?:[/?#,)\]}]|$)")

# After the word, the rest of its key, a closing quote (escaped as deep as the text is), and what assigns.
_AFTER_WORD = re.compile(
    r"(?P<rest>[^'\"\\:=,&\n]{0,200}+)(?P<quote>(?:\\*+['\"])?)\s*+(?P<assign>=>|:|=|,)\s*+(?:[bBuU](?=\\*+['\"]))?"
)
_QUOTE = re.compile(r"(\\*+)(['\"])")
_BRACKET_OR_QUOTE = re.compile(r"(\\*+)(['\"])|([(\[{])|([)\]}])")
_OPEN_BRACKET = re.compile(r"[\w.]*[(\[{]")
_LITERAL = re.compile(
    r"(?:\*\*\*|-?\d[\d.]*(?:e[+-]?\d+)?j?|None|True|False|null|true|false|nan|inf|\.\.\.)(?=\s*[,)\]}&'\"\\\n]|\s*$)"
)
# Where a bare value (``token=abc``, ``Cookie: a=b; c=d``) certainly ends.
_BARE_END = re.compile(r"\\*['\"]|\n|\\+[nr]|, |[)\]}]++(?=$|[,\s'\"\\])")
_BARE_END_QUERY = re.compile(_BARE_END.pattern + "|&")
_KEY_GOES_ON = re.compile(r"\\*['\"]\s*:")
_KEY_START = re.compile(r"[(\[,]\s*[bBuU]?\\*['\"][\w.-]*$")
_KEY_LOOK_BACK = 96


class Redactor:
    """Masks values under keys that contain one of the given words, whatever the case; ``-`` and ``_`` are one."""

    def __init__(self, keys: Sequence[str]) -> None:
        words = {form for key in keys for form in _forms(key) if form}
        self._words = tuple(sorted(_shortest(words)))
        # What every word contains at least one of, in few pieces: ``key`` for api_key, apikey and access-key.
        self._pieces = tuple(_shortest({_last_part(key) for key in keys if key.strip()}))
        self._word = re.compile("|".join(map(re.escape, self._words)) or r"(?!)", re.IGNORECASE)

    def suspects(self, text: str) -> bool:
        """False where ``text`` has nothing to mask, for certain and quickly."""
        lower = text.lower()
        for piece in self._pieces:
            if piece in lower:
                return True
        return "://" in text

    def text(self, repr_text: str) -> str:
        """The text with its secrets masked; the same text where it has none. Masking twice changes nothing."""
        lower = repr_text.lower()
        for word in self._words:
            if word in lower:
                repr_text = self._mask_keys(repr_text)
                break
        if "://" in repr_text:
            return _URL.sub(_mask_user, repr_text)
        return repr_text

    def cut(self, text: str) -> str:
        """The text of something that is no repr: all of it from the first word on that names a secret is masked."""
        word = self._word.search(text)
        return f"{text[: word.end()]}{MASK}" if word else _URL.sub(_mask_user, text)

    def _mask_keys(self, text: str) -> str:
        parts: list[str] = []
        done = 0
        word = self._word.search(text)
        while word:
            at = word.end()
            after = _AFTER_WORD.match(text, at)
            if after and (after["assign"] != "," or _is_pair(text, word.start(), after)):
                at = _value_end(text, after)
                parts += (text[done : after.end()], _masked(text, after, at))
                done = at
            word = self._word.search(text, at)
        return "".join((*parts, text[done:]))


def _shortest(words: set[str]) -> Iterator[str]:
    """Without those that contain another, by which they are found."""
    return (word for word in words if not any(other in word for other in words - {word}))


def _forms(key: str) -> tuple[str, ...]:
    """``api_key`` is also written ``api-key``, ``api key`` and ``apiKey``."""
    key = key.strip().lower()
    return tuple(key.replace("-", "_").replace("_", joint) for joint in ("_", "-", " ", "")) if key else ()


def _last_part(key: str) -> str:
    """What stands behind the last joint; the empty text, which everything contains, where there is nothing else."""
    return key.strip().lower().replace("-", "_").strip("_").rpartition("_")[2]


def _is_pair(text: str, word_start: int, after: re.Match[str]) -> bool:
    """``('Authorization', 'Bearer x')`` or ``['--token', 'x']``: a quoted plain name that is no value of a key."""
    if not after["quote"] or " " in after["rest"]:
        return False
    start = max(0, word_start - _KEY_LOOK_BACK)
    return _KEY_START.search(text, start, word_start) is not None


def _value_end(text: str, after: re.Match[str]) -> int:
    """Where the value certainly ends; the end of the text where that cannot be known."""
    at = after.end()
    quote = _QUOTE.match(text, at)
    if quote:
        return _string_end(text, quote)
    literal = _LITERAL.match(text, at)
    if literal:
        return len(text) if _KEY_GOES_ON.match(text, literal.end()) else literal.end()
    if text.startswith("<", at):
        return len(text)
    if _OPEN_BRACKET.match(text, at):
        return _bracket_end(text, at)
    return _bare_end(text, at, _BARE_END_QUERY if after["assign"] == "=" else _BARE_END)


def _string_end(text: str, opening: re.Match[str]) -> int:
    """Behind the quote that closes. A quote within is escaped deeper; then where the string ends is not certain."""
    depth, quote = len(opening[1]), opening[2]
    for other in _QUOTE.finditer(text, opening.end()):
        if other[2] != quote:
            continue
        if len(other[1]) == depth:
            return other.end()
        return other.start() if len(other[1]) < depth else len(text)
    return len(text)


def _bracket_end(text: str, at: int) -> int:
    """Behind the bracket that closes. An escape within makes it uncertain which quotes are quotes."""
    depth = 0
    match = _BRACKET_OR_QUOTE.search(text, at)
    while match:
        end = match.end()
        if match[2]:
            end = _string_end(text, match)
        depth += bool(match[3]) - bool(match[4])
        if depth == 0 and not match[2]:
            return end if "\\" not in text[at:end] else len(text)
        match = _BRACKET_OR_QUOTE.search(text, end)
    return len(text)


def _bare_end(text: str, at: int, ends: re.Pattern[str]) -> int:
    end = ends.search(text, at)
    if end is None:
        return len(text)
    if _KEY_GOES_ON.match(text, end.start()) or text[at : end.start()].rstrip().endswith((":", "=")):
        return len(text)  # that was the middle of a key, such as 'token:42'; its value comes later
    return end.start()


def _masked(text: str, after: re.Match[str], end: int) -> str:
    """The mask in the quotes that the value had, or else those of its key."""
    if end == after.end():
        return ""
    quote = _QUOTE.match(text, after.end(), end)
    if quote:
        return f"{quote[0]}{MASK}{quote[0]}"
    if text.startswith(MASK, after.end()):
        return text[after.end() : end] if end == after.end() + len(MASK) else MASK
    return f"{after['quote']}{MASK}{after['quote']}"


def _mask_user(match: re.Match[str]) -> str:
    """``user:***@host``. A truncated address without ``@`` is masked from the colon unless a port follows it."""
    authority = match[2]
    end = authority.rfind("@", 0, _first_slash(authority))
    if end < 0:
        end = authority.find("@")
    user, colon, rest = authority.partition(":")
    if not colon or "/" in user or "?" in user or "@" in user or user.startswith("["):
        return match[0]
    if end < 0:
        return match[0] if not rest or _PORT.match(rest) else f"://{user}:{MASK}"
    return match[0] if _PORT.match(rest) else f"://{user}:{MASK}{authority[end:]}"


def _first_slash(authority: str) -> int:
    at = authority.find("/")
    return at if at >= 0 else len(authority)
