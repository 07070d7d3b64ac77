"""What a filter is made of: conditions, joined by *not*, *all* and *any*; each prints as it is written."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from celery_monitor.core.filters.values import STATES_BY_WORD, Interval, Limit, Pattern
from celery_monitor.records.task import TaskState

KEYWORDS = {"OR", "AND", "NOT"}


@dataclass(frozen=True, slots=True)
class Word:
    """A bare word: a part of the name, the id, the arguments or the exception, in any case."""

    pattern: Pattern

    @property
    def field(self) -> None:
        """It is about several fields."""

    def __str__(self) -> str:
        first, *rest = self.pattern.pieces
        means_more = first.startswith("-") or (first in KEYWORDS and not rest)
        return "*".join((_between_quotes(first) if means_more else _quote(first), *map(_quote, rest)))


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
    """Whether a person retried it (``yes``, ``no``), or the state of the newest retry; empty: unknown."""

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
    """The text of a field fits a pattern; ``key`` is KEY of ``kwargs.KEY``."""

    field: str
    pattern: Pattern
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.field}{'.' + self.key if self.key else ''}:{_quoted(self.pattern)}"


@dataclass(frozen=True, slots=True)
class ValueRange:
    """A number, duration or time lies in an interval."""

    field: str
    interval: Interval

    def __str__(self) -> str:
        return f"{self.field}:{self.interval.text}"


@dataclass(frozen=True, slots=True)
class Unknown:
    """The field has no known value."""

    field: str

    def __str__(self) -> str:
        return f'{self.field}:""'


@dataclass(frozen=True, slots=True)
class Not:
    """Everything that the term does not match, tasks of which it is unknown included."""

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
    """The condition that a field is this text or number; empty text: that it is unknown."""
    if isinstance(value, int):
        limit = Limit(float(value), inclusive=True)
        return ValueRange(field, Interval(str(value), limit, limit))
    return Match(field, Pattern((value,))) if value else Unknown(field)


def any_of(terms: Iterable[Expression]) -> Expression:
    """The condition that at least one of these holds."""
    return join(Any, terms)


def leaves(expression: Expression) -> Iterator[Leaf]:
    """Every condition in it, at any depth."""
    if isinstance(expression, Not):
        yield from leaves(expression.term)
    elif isinstance(expression, All | Any):
        for each in expression.terms:
            yield from leaves(each)
    else:
        yield expression


def field_of(expression: Expression) -> str | None:
    """The one field that an expression is about."""
    found = {leaf.field for leaf in leaves(expression)}
    return found.pop() if len(found) == 1 else None


def _grouped(expression: Expression) -> str:
    return f"({expression})" if isinstance(expression, All | Any) else str(expression)


def _quoted(pattern: Pattern) -> str:
    return "*".join(map(_quote, pattern.pieces)) if pattern.pieces != ("",) else '""'


def _quote(piece: str) -> str:
    return piece if re.fullmatch(r'[^\s"():*]*', piece) else _between_quotes(piece)


def _between_quotes(piece: str) -> str:
    escaped = piece.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def join(kind: type[All] | type[Any], terms: Iterable[Expression]) -> Expression:
    """One term is itself; equal kinds are one level, so that each filter has one form."""
    flat: list[Expression] = []
    for each in terms:
        flat.extend(each.terms if isinstance(each, kind) else (each,))
    return flat[0] if len(flat) == 1 else kind(tuple(flat))
