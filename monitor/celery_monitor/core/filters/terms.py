"""The terms of a filter: conditions, joined by *not*, *all* and *any*; ``str`` gives their filter text."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from celery_monitor.core.filters.values import STATES_BY_WORD, Interval, Limit, Pattern
from celery_monitor.records.task import TaskState

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
