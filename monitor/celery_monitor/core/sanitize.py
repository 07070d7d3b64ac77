"""Cleaning events before they are stored: numbers and texts within bounds, secrets masked.

Secrets are masked in Python reprs, JSON, headers and URLs. A text may be truncated, nested or escaped several times, so
it cannot be parsed reliably: the value of a key that names a secret is masked up to where it certainly ends, else up to
the end of the text. Too much may be masked, never too little.

Whoever can publish an event chooses its text. So a text is cut before it is masked, and no pattern here starts again in
the middle of what it has scanned: the look-behinds make a run of backslashes or brackets one attempt, not one for each.

Nearly all events are clean. So names and numbers are checked by the decoder, and the texts of several events at once;
an event is only checked field by field if something is found.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from celery_monitor.core.untrusted import CUT, key_pattern, pieces, storable, words
from celery_monitor.records.event import READ_BY_US, Event, Message

MASK = "***"

_URL = re.compile(r"(://)([^\s'\"\\]*+)")
_BEARER = re.compile(r"\b([Bb]earer +)([\w.~+/=-]{8,})")  # without a key, as in a quoted header
_LONGEST_USER = 19  # a longer user part of an address is a key, such as those of GitHub and Sentry
_PORT = re.compile(r"\d{1,5}(?:[/?#,)\]}]|$)")

# After the word: the rest of its key, a closing quote (escaped as deep as the text), and the assignment.
_AFTER_WORD = re.compile(
    r"(?P<rest>[^'\"\\:=,&\n]{0,200}+)(?P<quote>(?:\\*+['\"])?)\s*+(?P<assign>=>|:|=|,)\s*+(?:[bBuU](?=\\*+['\"]))?"
)
_QUOTE = re.compile(r"(?<!\\)(\\*+)(['\"])")
_BRACKET_OR_QUOTE = re.compile(_QUOTE.pattern + r"|([(\[{])|([)\]}])")
_OPEN_BRACKET = re.compile(r"[\w.]*[(\[{]")
_LITERAL = re.compile(
    r"(?:\*\*\*|-?\d[\d.]*(?:e[+-]?\d+)?j?|None|True|False|null|true|false|nan|inf|\.\.\.)(?=\s*[,)\]}&'\"\\\n]|\s*$)"
)
# Where a bare value (``token=abc``, ``Cookie: a=b; c=d``) certainly ends.
_BARE_END = re.compile(r"(?<!\\)\\*+['\"]|\n|(?<!\\)\\++[nr]|, |(?<![)\]}])[)\]}]++(?=$|[,\s'\"\\])")
_BARE_END_QUERY = re.compile(_BARE_END.pattern + "|&")
_KEY_GOES_ON = re.compile(r"\\*+['\"]\s*+:")
_KEY_START = re.compile(r"[(\[,]\s*[bBuU]?\\*['\"][\w.-]*$")
_KEY_LOOK_BACK = 96


class Redactor:
    """Masks values of keys that name a secret (``untrusted.py``), ignoring case; ``-`` and ``_`` are equal."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._words = words(keys)
        self._pieces = pieces(keys)
        self._word = key_pattern(keys)

    def suspects(self, text: str) -> bool:
        """A quick check: False if ``text`` certainly has nothing to mask."""
        lower = text.lower()
        for piece in self._pieces:
            if piece in lower:
                return True
        return "://" in text

    def text(self, repr_text: str) -> str:
        """The text with its secrets masked, or the same object. Masking twice changes nothing."""
        lower = repr_text.lower()
        for word in self._words:
            if word in lower:
                repr_text = self._mask_keys(repr_text)
                break
        if "earer " in repr_text:
            repr_text = _BEARER.sub(_mask_bearer, repr_text)
        if "://" in repr_text:
            return _URL.sub(_mask_user, repr_text)
        return repr_text

    def plain(self, value: object, key: str = "") -> Any:
        """A plain value, of the types of JSON, with its secrets masked. ``key`` is its name where it has one."""
        if self.text(shown := repr({key: 0})) != shown:
            return MASK
        if isinstance(value, dict):
            return {name: self.plain(each, str(name)) for name, each in value.items()}
        if isinstance(value, list):
            return [self.plain(each) for each in value]
        return self.text(value) if isinstance(value, str) else value

    def cut(self, text: str) -> str:
        """For text that is not a repr: masks everything after the first word that names a secret."""
        word = self._word.search(text)
        return f"{text[: word.end()]}{MASK}" if word else _URL.sub(_mask_user, _BEARER.sub(_mask_bearer, text))

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


def _is_pair(text: str, word_start: int, after: re.Match[str]) -> bool:
    """``('Authorization', 'Bearer x')`` or ``['--token', 'x']``: a quoted plain name that is not the value of a key."""
    if not after["quote"] or " " in after["rest"]:
        return False
    start = max(0, word_start - _KEY_LOOK_BACK)
    return _KEY_START.search(text, start, word_start) is not None


def _value_end(text: str, after: re.Match[str]) -> int:
    """Where the value certainly ends; the end of the text if that is unknown."""
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
    """After the closing quote. With a more deeply escaped quote inside, the end of the string is uncertain."""
    depth, quote = len(opening[1]), opening[2]
    for other in _QUOTE.finditer(text, opening.end()):
        if other[2] != quote:
            continue
        if len(other[1]) == depth:
            return other.end()
        return other.start() if len(other[1]) < depth else len(text)
    return len(text)


def _bracket_end(text: str, at: int) -> int:
    """After the closing bracket. With an escape inside, it is uncertain which quotes are quotes."""
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
        return len(text)  # it was the middle of a key, such as 'token:42'; its value follows
    return end.start()


def _masked(text: str, after: re.Match[str], end: int) -> str:
    """The mask in the quotes of the value, or else those of its key."""
    if end == after.end():
        return ""
    quote = _QUOTE.match(text, after.end(), end)
    if quote:
        return f"{quote[0]}{MASK}{quote[0]}"
    if text.startswith(MASK, after.end()):
        return text[after.end() : end] if end == after.end() + len(MASK) else MASK
    return f"{after['quote']}{MASK}{after['quote']}"


def _mask_user(match: re.Match[str]) -> str:
    """``user:***@host``. A truncated address without ``@`` is masked from the colon unless a port follows it.

    A user part without a password, and a long one, is a key itself: ``https://***@sentry.io/1``.
    """
    authority = match[2]
    end = authority.rfind("@", 0, _first_slash(authority))
    if end < 0:
        end = authority.find("@")
    user, colon, rest = authority.partition(":")
    if not colon or "/" in user or "?" in user or "@" in user or user.startswith("["):
        return f"://{MASK}{authority[end:]}" if _is_user_part(authority[: max(end, 0)]) else match[0]
    shown = user if len(user) <= _LONGEST_USER else MASK
    if end < 0:
        return match[0] if not rest or _PORT.match(rest) else f"://{shown}:{MASK}"
    return match[0] if _PORT.match(rest) else f"://{shown}:{MASK}{authority[end:]}"


def _is_user_part(text: str) -> bool:
    return bool(text) and not any(each in text for each in "/?#")


def _mask_bearer(match: re.Match[str]) -> str:
    return f"{match[1]}{MASK}"


def _first_slash(authority: str) -> int:
    at = authority.find("/")
    return at if at >= 0 else len(authority)


LATEST_TIME = 32_503_680_000.0  # the year 3000; a later timestamp is invalid
_LARGEST_INT = 2**31 - 1
MOST_RETRIES = 1_000_000_000  # so that one more is still an integer of every database
LONGEST_RUNTIME = 10 * 366 * 86400.0  # seconds; sums of more would not stay numbers
LONGEST_INTERVAL = 86400.0  # seconds between heartbeats
LARGEST_LOAD = 1_000_000.0
MOST_LOADS = 3  # of the last 1, 5 and 15 minutes
# Characters that are masked with a text that is cut, and then dropped: the cut may hide that they are a password.
SLACK = 512


class Fields(NamedTuple):
    """The fields of an event to check: names, longer texts, numbers from 0 to LARGEST."""

    names: tuple[str, ...]
    texts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


LARGEST: dict[str, float] = {
    **dict.fromkeys(("pid", "active", "processed"), _LARGEST_INT),
    "retries": MOST_RETRIES,
    "runtime": LONGEST_RUNTIME,
    "freq": LONGEST_INTERVAL,
}
_ENDED = Fields(("uuid", "hostname"), ("result", "exception", "traceback"), ("pid", "runtime"))
_MESSAGE = ("uuid", "hostname", "name", "root_id", "parent_id", "queue", "exchange", "routing_key")
_ALL = Fields(
    (*_MESSAGE, "type", "sw_ident", "sw_ver", "sw_sys"),
    ("args", "kwargs", "result", "exception", "traceback"),
    tuple(LARGEST),
)
# For these types, only the fields that fold uses; for all others, every field.
_FIELDS = {
    "task-sent": Fields(_MESSAGE, ("args", "kwargs"), ("pid", "retries")),
    "task-received": Fields(_MESSAGE, ("args", "kwargs"), ("pid", "retries")),
    "task-started": Fields(("uuid", "hostname"), (), ("pid",)),
    "task-succeeded": Fields(("uuid", "hostname"), ("result",), ("pid", "runtime")),
    "task-failed": _ENDED,
    "task-retried": _ENDED,
}
NAME_LENGTH = 512
SIGNAL_LENGTH = 32
MAX_HEADERS = 1_000_000  # characters of a captured message's headers and properties; more is not a message
AT_ONCE = 25  # events whose texts are checked together
_Name = Annotated[str, msgspec.Meta(max_length=NAME_LENGTH)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_INT)]
_Load = Annotated[float, msgspec.Meta(ge=0, le=LARGEST_LOAD)]


class Checked(Event, frozen=True, gc=False, kw_only=True):
    """An event whose names and numbers need no cleaning, as checked by the JSON decoder, in C.

    Only for a body without NUL and without a captured message. The texts are not checked.
    """

    type: _Name
    timestamp: Annotated[float, msgspec.Meta(gt=0, lt=LATEST_TIME)]
    hostname: _Name
    uuid: _Name | None = None
    name: _Name | None = None
    root_id: _Name | None = None
    parent_id: _Name | None = None
    queue: _Name | None = None
    exchange: _Name | None = None
    routing_key: _Name | None = None
    sw_ident: _Name | None = None
    sw_ver: _Name | None = None
    sw_sys: _Name | None = None
    pid: _Count | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=MOST_RETRIES)] | None = None
    signum: Annotated[str, msgspec.Meta(max_length=SIGNAL_LENGTH)] | _Count | None = None
    active: _Count | None = None
    processed: _Count | None = None
    runtime: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_RUNTIME)] | None = None
    freq: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_INTERVAL)] | None = None
    loadavg: Annotated[tuple[_Load, ...], msgspec.Meta(max_length=MOST_LOADS)] | None = None
    message: None = None


class Sanitizer:
    """Cleans events; returns the same event if there is nothing to clean."""

    def __init__(self, max_text: int, redact: Sequence[str], max_message: int = 1024 * 1024) -> None:
        self._max_message = max_message
        self._max_text = max_text
        self._redactor = Redactor(redact)

    def clean_all(self, events: Sequence[Event]) -> Iterator[Event | None]:
        """Each event as it may be stored; ``None`` for one with an invalid time or without a task id."""
        for start in range(0, len(events), AT_ONCE):
            some = events[start : start + AT_ONCE]
            if self._are_clean(some):
                yield from some
            else:
                yield from map(self.clean, some)

    def _are_clean(self, events: Sequence[Event]) -> bool:
        """Whether they are certainly clean; False means that each has to be checked."""
        if set(map(type, events)) != {Checked}:
            return False
        given = [t for e in events for t in (e.args, e.kwargs, e.result, e.exception, e.traceback) if t]
        texts = "\n".join(given)
        return len(texts) <= self._max_text and not self._redactor.suspects(texts)

    def clean(self, event: Event) -> Event | None:
        """The event as it may be stored; ``None`` for one with an invalid time or without a task id."""
        if not 0 < event.timestamp < LATEST_TIME or (event.uuid is None and event.type.startswith("task-")):
            return None
        return self._cleaned(event)

    def _cleaned(self, event: Event) -> Event:
        changes: dict[str, object] = {}
        fields = _FIELDS.get(event.type, _ALL)
        for field in fields.names:
            value = getattr(event, field)
            if value is not None and (len(value) > NAME_LENGTH or not plain(value)):
                changes[field] = storable(value[:NAME_LENGTH])
        for field in fields.texts:
            value = getattr(event, field)
            if value:
                text = self.text(value)
                if text is not value:
                    changes[field] = text
        for field in fields.numbers:
            number = getattr(event, field)
            if number is not None and not 0 <= number <= LARGEST[field]:
                changes[field] = None
        if event.loadavg is not None and not _are_loads(event.loadavg):
            changes["loadavg"] = None
        if event.signum is not None:
            changes["signum"] = _signal(event.signum)
        if event.message is not None:
            changes["message"] = self._message(event, event.message)
        return msgspec.structs.replace(event, **changes) if changes else event

    def _message(self, event: Event, message: Message) -> Message | None:
        """Bounded but not masked, so that it can be resent. Therefore it is stored separately and not shown.

        Who announced it is in the event, whatever the message says. Messages from the broker are not announced.
        """
        if len(message.headers) + len(message.properties) > MAX_HEADERS or message.why in READ_BY_US:
            return None
        names = ("why", "content_type", "content_encoding", "exchange", "routing_key", "queue", "chord")
        given = {name: getattr(message, name) for name in names}
        short = {name: storable(text[:NAME_LENGTH]) for name, text in given.items() if text is not None}
        numbers = {name: _bounded(getattr(message, name)) for name in ("size", "chain", "callbacks", "errbacks")}
        body = message.body if message.body is None or len(message.body) <= self._max_message else None
        own = {"worker": storable(event.hostname)[:NAME_LENGTH], "pid": event.pid, **self._texts(message.headers)}
        return msgspec.structs.replace(message, body=body, others=(), more=False, **own, **short, **numbers)

    def _texts(self, headers: str) -> dict[str, str | None]:
        """The sender's texts of the arguments, as they are stored from events."""
        try:
            given = json.loads(headers)
        except (ValueError, RecursionError):
            given = None
        texts = given if isinstance(given, dict) else {}
        values = {"args": texts.get("argsrepr"), "kwargs": texts.get("kwargsrepr")}
        return {name: self.text(text) if isinstance(text, str) else None for name, text in values.items()}

    def text(self, text: str) -> str:
        """A text with its secrets masked, truncated with a mark. The work is bounded for a text of any length."""
        longest = self._max_text + SLACK
        cut = len(text) > longest
        if cut:
            text = text[:longest]
        if not plain(text):
            text = storable(text)
        masked = self._redactor.text(text)
        if cut:
            masked = masked[: len(masked) - _same_end(text, masked)]
        elif len(masked) <= self._max_text:
            return masked
        return masked[: self._max_text - len(CUT)] + CUT


def _same_end(text: str, masked: str) -> int:
    """How many of the last SLACK characters were not masked."""
    end, same = text[-SLACK:], masked[-SLACK:]
    pairs = zip(reversed(end), reversed(same), strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(end), len(same)))


def _are_loads(loads: Sequence[float]) -> bool:
    return len(loads) <= MOST_LOADS and all(0 <= load <= LARGEST_LOAD for load in loads)


def _signal(given: int | str) -> int | str | None:
    """The number or name of a signal."""
    if isinstance(given, str):
        return storable(given[:SIGNAL_LENGTH])
    return given if 0 <= given <= _LARGEST_INT else None


def _bounded(count: int) -> int:
    return min(max(0, count), _LARGEST_INT)


def plain(text: str) -> bool:
    """Whether every database can store the text unchanged."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
