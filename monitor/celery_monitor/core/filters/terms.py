"""The terms of a filter, their fields, and the syntax of their values: no grammar, no SQL.

Terms are conditions, joined by *not*, *all* and *any*; ``str`` gives their filter text. Durations are seconds, times
UTC epoch seconds. Every value has one canonical text, which parses to an equal value.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

from celery_monitor.errors import FilterError
from celery_monitor.records.failure import FailureState
from celery_monitor.records.task import STATE_WORDS, UNFINISHED_STATES, TaskState

UNFINISHED = "unfinished"
STATES_BY_WORD: dict[str, frozenset[TaskState]] = {word: frozenset({state}) for state, word in STATE_WORDS.items()} | {
    UNFINISHED: UNFINISHED_STATES
}
YES, NO = "yes", "no"
RETRIED_WORDS = (YES, NO, *STATES_BY_WORD)
# Regressed groups are open, too, and also have their own word.
GROUPS_BY_WORD: dict[str, frozenset[FailureState]] = {
    "open": frozenset({FailureState.OPEN, FailureState.REGRESSED}),
    **{state.value: frozenset({state}) for state in FailureState if state is not FailureState.OPEN},
}
LONGEST_DURATION = 10 * 366 * 86400.0


class Kind(StrEnum):
    """The kind of a field's values."""

    STATE = "state"
    RETRIED = "retried"  # yes, no, or a state's word
    GROUP = "group"  # a number, or the word of a group's state
    NAME = "name"  # the whole name, case-sensitive; ``*`` matches anything
    ID = "id"  # the whole id, or a prefix followed by ``*``
    TEXT = "text"  # a part of the text, ignoring case; with ``*`` the whole text
    NUMBER = "number"
    DURATION = "duration"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Field:
    """One field, with its help for documentation and autocomplete."""

    name: str
    kind: Kind
    help: str
    example: str


FIELDS: dict[str, Field] = {
    each.name: each
    for each in (
        Field("state", Kind.STATE, "current state of the task", "state:failed"),
        Field(
            "retried",
            Kind.RETRIED,
            'whether a person retried it: yes, no, or the state of the newest retry; retried:"" means state unknown',
            "retried:succeeded",
        ),
        Field("name", Kind.NAME, "task name", "name:shop.pay.*"),
        Field("queue", Kind.NAME, 'queue it was sent to; queue:"" means unknown', "queue:payments"),
        Field("worker", Kind.NAME, "worker of the latest run", "worker:celery@web-1"),
        Field("cluster", Kind.NAME, "cluster, as named with --broker", "cluster:default"),
        Field("id", Kind.ID, "task id, or its prefix", "id:4f2a*"),
        Field("root", Kind.ID, "id of the workflow's first task; finds the whole workflow", "root:4f2a9c01*"),
        Field("parent", Kind.ID, "id of the task that sent it", "parent:4f2a9c01*"),
        Field("group", Kind.GROUP, "failure group: its number, or open, regressed, resolved, muted", "group:17"),
        Field("job", Kind.NUMBER, "bulk job: tasks that it retried or revoked", "job:7"),
        Field("args", Kind.TEXT, "positional arguments, as reported by the sender", "args:EUR"),
        Field("kwargs", Kind.TEXT, "keyword arguments; kwargs.KEY:value for one of them", "kwargs.card:visa"),
        Field("result", Kind.TEXT, "result of the latest run", "result:OK"),
        Field("exception", Kind.TEXT, "exception of the latest run", "exception:TimeoutError"),
        Field("traceback", Kind.TEXT, "traceback of the latest run", "traceback:pay.py"),
        Field("retries", Kind.NUMBER, "number of retries", "retries:>2"),
        Field("runtime", Kind.DURATION, "run time of the latest run; an estimate if it was interrupted", "runtime:>5s"),
        Field("wait", Kind.DURATION, "time from when it could start to its start", "wait:100ms..2s"),
        Field("sent", Kind.TIME, "when the task was sent, if known", "sent:>-15m"),
        Field("received", Kind.TIME, "when a worker received it", "received:2026-11-01..2026-11-02"),
        Field("started", Kind.TIME, "when the latest run started", "started:>-1h"),
        Field("finished", Kind.TIME, "when the latest run ended", "finished:>=2026-11-01T08:30"),
    )
}
FIELD_NAMES = tuple(FIELDS)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text with wildcards, as the pieces between them. A single piece has no wildcard."""

    pieces: tuple[str, ...]

    @property
    def literal(self) -> bool:
        return len(self.pieces) == 1

    @property
    def prefix(self) -> str | None:
        """The prefix, if the pattern is only a prefix."""
        return self.pieces[0] if len(self.pieces) == 2 and not self.pieces[1] else None

    def matches(self, text: str) -> bool:
        """Whether the whole text matches, case-sensitive."""
        first, *middle = self.pieces
        if not middle:
            return text == first
        last = middle.pop()
        if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
            return False
        position, end = len(first), len(text) - len(last)
        for piece in middle:
            found = text.find(piece, position, end)
            if found < 0:
                return False
            position = found + len(piece)
        return True


@dataclass(frozen=True, slots=True)
class Limit:
    """One end of a range."""

    value: float
    inclusive: bool


@dataclass(frozen=True, slots=True)
class ValueSpan:
    """A value as a span: a date is a whole day, a duration is a point."""

    start: float
    end: float
    text: str
    relative: bool = False

    def from_start(self) -> Limit:
        return Limit(self.start, inclusive=True)

    def before_start(self) -> Limit:
        return Limit(self.start, inclusive=False)

    def to_end(self) -> Limit:
        return Limit(self.end, inclusive=self.start == self.end)

    def after_end(self) -> Limit:
        return Limit(self.end, inclusive=self.start != self.end)


@dataclass(frozen=True, slots=True)
class Interval:
    """From ``low`` to ``high``. Only the canonical ``text`` decides equality, because relative times move on."""

    text: str
    low: Limit | None = field(compare=False)
    high: Limit | None = field(compare=False)

    @property
    def is_point(self) -> bool:
        """Whether it contains exactly one value."""
        return self.low is not None and self.low == self.high

    @property
    def number(self) -> int:
        """The only whole number in it. Raises ValueError if there are others."""
        if self.low is None or self.low != self.high:
            raise ValueError(f"{self.text} is not one number")
        return int(self.low.value)

    def holds(self, value: float) -> bool:
        low, high = self.low, self.high
        return (low is None or value > low.value or (low.inclusive and value == low.value)) and (
            high is None or value < high.value or (high.inclusive and value == high.value)
        )


def read_state(text: str, column: int) -> str:
    """The canonical word; Celery's names (FAILURE) are accepted, too."""
    word = text.lower()
    if word.upper() in TaskState.__members__:
        return TaskState[word.upper()].word
    if word not in STATES_BY_WORD:
        raise FilterError(f"{text!r} is not a state", column, tuple(STATES_BY_WORD))
    return word


def read_retried(text: str, column: int) -> str:
    """``yes``, ``no``, or the canonical word of a state; empty: state of the retry unknown."""
    word = text.lower()
    if word in {"", YES, NO}:
        return word
    try:
        return read_state(text, column)
    except FilterError:
        raise FilterError(f"{text!r} is not yes, no or a state", column, RETRIED_WORDS) from None


def read_group_word(text: str, column: int) -> str:
    """The word for a state of failure groups."""
    word = text.lower()
    if word not in GROUPS_BY_WORD:
        allowed = ("17", *GROUPS_BY_WORD)
        raise FilterError(f"{text!r} is not the number or state of a failure group", column, allowed)
    return word


def read_interval(kind: Kind, text: str, column: int, now: float) -> Interval:
    """``>5s``, ``<=2``, ``1s..5s``, ``..-1h``, ``2026-11-01``, ``3``. Raises FilterError at the part that is wrong."""
    operator = next((each for each in (">=", "<=", ">", "<") if text.startswith(each)), None)
    if operator:
        span = _read_span(kind, text[len(operator) :], column + len(operator), now)
        low = {">": span.after_end, ">=": span.from_start}.get(operator)
        high = {"<": span.before_start, "<=": span.to_end}.get(operator)
        return Interval(operator + span.text, low() if low else None, high() if high else None)
    if ".." in text:
        return _read_between(kind, text, column, now)
    span = _read_span(kind, text, column, now)
    if span.start == span.end and kind is not Kind.NUMBER:
        raise FilterError(f"no task has exactly {text}; use >{text} or a range {text}..", column)
    return Interval(span.text, span.from_start(), span.to_end())


def _read_between(kind: Kind, text: str, column: int, now: float) -> Interval:
    first, _, second = text.partition("..")
    low = _read_span(kind, first, column, now) if first else None
    high = _read_span(kind, second, column + len(first) + 2, now) if second else None
    if low is None and high is None:
        raise FilterError("a range needs a start or an end", column)
    if low and high and low.relative == high.relative and low.start > high.start:
        raise FilterError(f"the range {text} ends before it starts", column)
    written = f"{low.text if low else ''}..{high.text if high else ''}"
    return Interval(written, low.from_start() if low else None, high.to_end() if high else None)


def _read_span(kind: Kind, text: str, column: int, now: float) -> ValueSpan:
    if kind is Kind.NUMBER:
        return _read_number(text, column)
    if kind is Kind.DURATION:
        seconds = read_duration(text, column)
        return ValueSpan(seconds, seconds, format_duration(seconds))
    if kind is Kind.TIME:
        return _read_time(text, column, now)
    raise FilterError(f"a {kind} cannot be a range", column)


def _read_number(text: str, column: int) -> ValueSpan:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise FilterError(f"{text!r} is not an integer", column)
    return ValueSpan(float(text), float(text), str(int(text)))


_FACTORS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}


def read_duration(text: str, column: int) -> float:
    """Seconds of ``250ms``, ``5s``, ``1.5h``, ``2d``; a plain number is in seconds."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|[smhd]?)", text)
    if match is None:
        raise FilterError(f"{text!r} is not a duration", column, ("250ms", "5s", "3m", "2h", "7d"))
    number, unit = float(match[1]), match[2]
    seconds = round(number / 1000 if unit == "ms" else number * _FACTORS[unit], 9)
    if seconds > LONGEST_DURATION:
        raise FilterError(f"{text} is longer than ten years", column)
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest text that parses to the same float."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % _FACTORS[unit] == 0:
            return f"{int(seconds / _FACTORS[unit])}{unit}"
    milliseconds = round(seconds * 1000)
    if milliseconds and milliseconds / 1000 == seconds:
        return f"{milliseconds}ms"
    return f"{Decimal(repr(seconds)):f}".removesuffix(".0") + "s"


_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:T([0-9]{2}:[0-9]{2})(:[0-9]{2}(\.[0-9]{1,6})?)?Z?)?")

_EXAMPLE_TIMES = ("-15m", "-1h", "-7d", "2026-11-01", "2026-11-01T08:30", "2026-11-01T08:30:05")


def _read_time(text: str, column: int, now: float) -> ValueSpan:
    if text.startswith("-"):
        ago = read_duration(text[1:], column + 1)
        return ValueSpan(now - ago, now - ago, f"-{format_duration(ago)}", relative=True)
    match = _TIME.fullmatch(text)
    written = text.removesuffix("Z")
    if match is None:
        raise FilterError(f"{text!r} is not a time", column, _EXAMPLE_TIMES)
    try:
        start = datetime.fromisoformat(written).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise FilterError(f"{text!r} is not a time: {error}", column, _EXAMPLE_TIMES) from None
    length = 86400.0 if match[2] is None else 60.0 if match[3] is None else 1.0 if match[4] is None else 0.0
    return ValueSpan(start, start + length, written)


KEYWORDS = {"OR", "AND", "NOT"}


@dataclass(frozen=True, slots=True)
class Word:
    """A bare word: a part of the name, id, arguments or exception, ignoring case."""

    pattern: Pattern

    @property
    def field(self) -> None:
        """None, as it searches several fields."""

    def __str__(self) -> str:
        first, *rest = self.pattern.pieces
        means_more = first.startswith("-") or (first in KEYWORDS and not rest)
        return "*".join((between_quotes(first) if means_more else _quote(first), *map(_quote, rest)))


@dataclass(frozen=True, slots=True)
class State:
    """In this state, or in any of ``unfinished``."""

    word: str

    @property
    def field(self) -> str:
        return "state"

    @property
    def states(self) -> frozenset[TaskState]:
        return STATES_BY_WORD[self.word]

    def __str__(self) -> str:
        return f"state:{self.word}"


@dataclass(frozen=True, slots=True)
class RetriedCondition:
    """Whether a person retried it (``yes``, ``no``), or the state of the newest retry; empty: state unknown."""

    word: str

    @property
    def field(self) -> str:
        return "retried"

    def __str__(self) -> str:
        return "retried:" + (self.word or '""')


@dataclass(frozen=True, slots=True)
class InGroups:
    """In a failure group of this state."""

    word: str

    @property
    def field(self) -> str:
        return "group"

    def __str__(self) -> str:
        return f"group:{self.word}"


@dataclass(frozen=True, slots=True)
class Match:
    """The text of a field matches a pattern; ``key`` is KEY of ``kwargs.KEY``."""

    field: str
    pattern: Pattern
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.field}{'.' + self.key if self.key else ''}:{_quoted(self.pattern)}"


@dataclass(frozen=True, slots=True)
class ValueRange:
    """A number, duration or time is in an interval."""

    field: str
    interval: Interval

    def __str__(self) -> str:
        return f"{self.field}:{self.interval.text}"


@dataclass(frozen=True, slots=True)
class Unknown:
    """The field is unknown."""

    field: str

    def __str__(self) -> str:
        return f'{self.field}:""'


@dataclass(frozen=True, slots=True)
class Not:
    """All tasks that the term does not match, including those with an unknown field."""

    term: "Expression"

    def __str__(self) -> str:
        return f"-{_grouped(self.term)}"


@dataclass(frozen=True, slots=True)
class All:
    """Every term holds; no terms: everything."""

    terms: tuple["Expression", ...] = ()

    def __str__(self) -> str:
        return " ".join(f"({each})" if isinstance(each, Any) else str(each) for each in self.terms)


@dataclass(frozen=True, slots=True)
class Any:
    """At least one term holds."""

    terms: tuple["Expression", ...]

    def __str__(self) -> str:
        return " OR ".join(map(str, self.terms))


Leaf = Word | State | RetriedCondition | InGroups | Match | ValueRange | Unknown
Expression = Leaf | Not | All | Any


def exactly(field: str, value: str | int) -> Match | ValueRange | Unknown:
    """The condition that a field equals this text or number; empty text: the field is unknown."""
    if isinstance(value, int):
        limit = Limit(float(value), inclusive=True)
        return ValueRange(field, Interval(str(value), limit, limit))
    return Match(field, Pattern((value,))) if value else Unknown(field)


def any_of(terms: Iterable[Expression]) -> Expression:
    """The condition that at least one of these is met."""
    return join(Any, terms)


def leaves(expression: Expression) -> Iterator[Leaf]:
    """All conditions in it, at any depth."""
    if isinstance(expression, Not):
        yield from leaves(expression.term)
    elif isinstance(expression, All | Any):
        for each in expression.terms:
            yield from leaves(each)
    else:
        yield expression


def field_of(expression: Expression) -> str | None:
    """The field of an expression, if it has only one."""
    found = {leaf.field for leaf in leaves(expression)}
    return found.pop() if len(found) == 1 else None


def _grouped(expression: Expression) -> str:
    return f"({expression})" if isinstance(expression, All | Any) else str(expression)


def _quoted(pattern: Pattern) -> str:
    return "*".join(map(_quote, pattern.pieces)) if pattern.pieces != ("",) else '""'


def _quote(piece: str) -> str:
    return piece if re.fullmatch(r'[^\s"():*]*', piece) else between_quotes(piece)


def between_quotes(piece: str) -> str:
    """As text between quotes, in which nothing means more."""
    escaped = piece.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def join(kind: type[All] | type[Any], terms: Iterable[Expression]) -> Expression:
    """Joins terms. A single term is returned as is, and nested terms of one kind are flattened: one canonical form."""
    flat: list[Expression] = []
    for each in terms:
        flat.extend(each.terms if isinstance(each, kind) else (each,))
    return flat[0] if len(flat) == 1 else kind(tuple(flat))
