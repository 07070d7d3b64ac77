r"""The filter language: parsing text to a Filter. No SQL, no clock.

    state:failed -name:shop.report.* (queue:payments OR queue:mail) runtime:>5s received:>-1h "connection reset"

A term is ``field:value`` or a bare word. Adjacent terms mean *and*; ``OR`` binds less tightly; ``-`` negates; ``*``
outside quotes matches any text; inside quotes ``\"`` and ``\\`` are a quote and a backslash. ``field:""`` is *unknown*.
Errors raise FilterError with the column; an invalid filter never matches everything.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple

from celery_monitor.core.filters.terms import (
    FIELD_NAMES,
    FIELDS,
    All,
    Any,
    Expression,
    InGroups,
    Kind,
    Leaf,
    Match,
    Not,
    Pattern,
    RetriedCondition,
    State,
    Unknown,
    ValueRange,
    Word,
    exactly,
    field_of,
    join,
    read_group_word,
    read_interval,
    read_retried,
    read_state,
)
from celery_monitor.errors import FilterError

# Failures that need attention: not retried, and their group is neither muted nor resolved.
UNHANDLED = "state:failed retried:no -group:muted -group:resolved"
LONGEST_TEXT = 2000
DEEPEST = 20
MOST_TERMS = 100
_NAME = re.compile(r'([^\s"():*]*):')
_INSIDE_QUOTES = re.compile(r'((?:\\["\\]|\\(?!["\\])|[^"\\])*)"')
_BARE = re.compile(r'[^\s"()]+')
_KEYWORDS = {keyword: re.compile(rf"{keyword}(?![^\s()])") for keyword in ("AND", "NOT", "OR")}


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter. ``now`` is the base of relative times, and is not compared."""

    expression: Expression = All()
    now: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return str(self.expression)

    def __bool__(self) -> bool:
        return self.expression != All()

    @property
    def terms(self) -> tuple[Expression, ...]:
        """The conditions that must all be met."""
        return self.expression.terms if isinstance(self.expression, All) else (self.expression,)

    def __and__(self, condition: Expression) -> "Filter":
        """With this condition added, unless it is already present."""
        added = (each for each in Filter(condition).terms if each not in self.terms)
        return self._of([*self.terms, *added])

    def without(self, term: Expression) -> "Filter":
        """Without one of its terms."""
        return self._of(each for each in self.terms if each != term)

    def without_field(self, name: str) -> "Filter":
        """Without the terms that are only about this field."""
        return self._of(each for each in self.terms if field_of(each) != name)

    def in_cluster(self, name: str | None) -> "Filter":
        """Limited to this cluster; ``None``: any cluster."""
        return self if name is None else self & exactly("cluster", name)

    def _of(self, terms: Iterable[Expression]) -> "Filter":
        return Filter(join(All, terms), self.now)


def parse(text: str, now: float) -> Filter:
    """The filter of a text; empty text matches all tasks. Raises FilterError."""
    if len(text) > LONGEST_TEXT:
        raise FilterError(f"a filter has at most {LONGEST_TEXT} characters", LONGEST_TEXT + 1)
    bad = re.search("[\x00\ud800-\udfff]", text)
    if bad:
        raise FilterError(f"the character {bad[0]!r} cannot be in a task", bad.start() + 1)
    return Filter(_Parser(text, now).parse(), now)


class _Value(NamedTuple):
    """A value and whether each part of it was quoted."""

    parts: list[tuple[str, bool]]
    column: int

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)

    @property
    def pattern(self) -> Pattern:
        pieces = [""]
        for text, quoted in self.parts:
            first, *rest = [text] if quoted else text.split("*")
            pieces[-1] += first
            pieces.extend(rest)
        inner = [each for each in pieces[1:-1] if each]  # ** is *
        return Pattern((pieces[0], *inner, pieces[-1]) if len(pieces) > 1 else (pieces[0],))


class _Parser:
    """Recursive descent over the text; ``at`` is the next character."""

    def __init__(self, text: str, now: float) -> None:
        self.text = text
        self.now = now
        self.at = 0
        self.count = 0

    def parse(self) -> Expression:
        self._skip()
        if self.at == len(self.text):
            return All()
        expression = self._alternatives(0)
        if self.at < len(self.text):
            raise FilterError("unmatched closing parenthesis", self.at + 1)
        return expression

    def _alternatives(self, depth: int) -> Expression:
        terms = [self._together(depth)]
        while self._keyword("OR"):
            terms.append(self._together(depth))
        return join(Any, terms)

    def _together(self, depth: int) -> Expression:
        terms = [self._one(depth)]
        while self._keyword("AND") or (self.at < len(self.text) and self.text[self.at] != ")" and not self._at("OR")):
            terms.append(self._one(depth))
        return join(All, terms)

    def _one(self, depth: int) -> Expression:
        if depth > DEEPEST:
            raise FilterError(f"parentheses and negations can be nested at most {DEEPEST} deep", self.at + 1)
        if self.at == len(self.text) or self.text[self.at] == ")" or self._at("OR") or self._at("AND"):
            raise FilterError("a term is missing here", self.at + 1)
        if self._keyword("NOT") or self._take("-"):
            term = self._one(depth + 1)
            return term.term if isinstance(term, Not) else Not(term)
        opened = self.at
        if not self._take("("):
            return self._term()
        self._skip()
        inside = self._alternatives(depth + 1)
        if not self._take(")"):
            raise FilterError("this parenthesis is not closed", opened + 1)
        self._skip()
        return inside

    def _term(self) -> Leaf:
        self.count += 1
        if self.count > MOST_TERMS:
            raise FilterError(f"a filter has at most {MOST_TERMS} terms", self.at + 1)
        column = self.at + 1
        name = _NAME.match(self.text, self.at)
        if name is None:
            value = self._value()
            if not value.text:
                raise FilterError("the search text is empty", column)
            return Word(value.pattern)
        self.at = name.end()
        return make_leaf(name[1], column, self._value(), self.now)

    def _value(self) -> _Value:
        column = self.at + 1
        parts: list[tuple[str, bool]] = []
        while self.at < len(self.text) and (self.text[self.at] != ")" and not self.text[self.at].isspace()):
            parts.append((self._inside_quotes(), True) if self._take('"') else (self._bare(), False))
        self._skip()
        return _Value(parts, column)

    def _inside_quotes(self) -> str:
        match = _INSIDE_QUOTES.match(self.text, self.at)
        if match is None:
            raise FilterError("this quote is not closed", self.at)
        self.at = match.end()
        return re.sub(r'\\(["\\])', r"\1", match[1])

    def _bare(self) -> str:
        match = _BARE.match(self.text, self.at)
        if match is None:
            raise FilterError("put text with a parenthesis in quotes", self.at + 1)
        self.at = match.end()
        return match[0]

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _take(self, character: str) -> bool:
        found = self.text.startswith(character, self.at)
        self.at += found
        return found

    def _at(self, keyword: str) -> bool:
        return _KEYWORDS[keyword].match(self.text, self.at) is not None

    def _keyword(self, keyword: str) -> bool:
        found = self._at(keyword)
        if found:
            self.at += len(keyword)
            self._skip()
        return found


def make_leaf(name: str, column: int, value: _Value, now: float) -> Leaf:
    """The condition ``name:value``. Raises FilterError, which lists all fields for an unknown one."""
    base, dot, key = name.partition(".")
    field = FIELDS.get(base.lower())
    if field is None or (dot and (field.name != "kwargs" or not key)):
        near = get_close_matches(name, FIELD_NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"for an argument use kwargs.{name}."
        raise FilterError(f"there is no field {name!r}; {hint} Quote it to search for the text", column, FIELD_NAMES)
    if not value.parts:
        raise FilterError(f'{name}: needs a value; {name}:"" means unknown', value.column)
    if field.kind is Kind.STATE:
        return State(read_state(value.text, value.column))
    if field.kind is Kind.RETRIED:
        return RetriedCondition(read_retried(value.text, value.column))
    if not value.text and not key:
        if field.name == "job":
            raise FilterError("job: needs the number of a job", value.column)
        if field.name in {"id", "cluster"}:
            raise FilterError(f"every task has a known {field.name}", value.column)
        return Unknown(field.name)
    if field.kind in {Kind.NAME, Kind.ID, Kind.TEXT}:
        return Match(field.name, _checked(field.kind, key, value), key or None)
    if field.kind is Kind.GROUP and value.text[0].isalpha():
        return InGroups(read_group_word(value.text, value.column))
    kind = Kind.NUMBER if field.kind is Kind.GROUP else field.kind
    interval = read_interval(kind, value.text, value.column, now)
    if field.name == "job" and not interval.is_point:
        raise FilterError("job: needs the number of one job", value.column)
    return ValueRange(field.name, interval)


def _checked(kind: Kind, key: str, value: _Value) -> Pattern:
    """Ids and single keyword arguments can only be found by their prefix."""
    pattern = value.pattern
    if (kind is Kind.ID or key) and not pattern.literal and pattern.prefix is None:
        raise FilterError("a wildcard is only allowed at the end here", value.column)
    return pattern
