r"""The filter language: text to Filter and back. No SQL, no clock.

    state:failed -name:shop.report.* (queue:payments OR queue:mail) runtime:>5s received:>-1h "connection reset"

A term is ``field:value`` or a bare word. Terms stand for *and*; ``OR`` binds less tightly; ``-`` negates; ``*`` stands
for any text outside quotes; inside them ``\"`` and ``\\`` are a quote and a backslash. ``field:""`` is *unknown*.
Whatever is wrong raises FilterError with its column; nothing wrong ever matches everything.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_monitor.core.filters.terms import (
    All,
    Any,
    Expression,
    InGroups,
    Leaf,
    Match,
    Not,
    RetriedCondition,
    State,
    Unknown,
    ValueRange,
    Word,
    exactly,
    field_of,
    join,
)
from celery_monitor.core.filters.values import (
    FIELD_NAMES,
    FIELDS,
    Kind,
    Pattern,
    read_group_word,
    read_interval,
    read_retried,
    read_state,
)
from celery_monitor.errors import FilterError

# Failures that still need somebody: nobody retried them, and nobody muted or resolved their group.
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
    """What was asked. ``now`` is the moment that relative times were counted from; it takes no part in equality."""

    expression: Expression = All()
    now: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return str(self.expression)

    def __bool__(self) -> bool:
        return self.expression != All()

    @property
    def terms(self) -> tuple[Expression, ...]:
        """The conditions that must all hold."""
        return self.expression.terms if isinstance(self.expression, All) else (self.expression,)

    def __and__(self, condition: Expression) -> "Filter":
        """And this condition as well, unless it is there already."""
        added = (each for each in Filter(condition).terms if each not in self.terms)
        return self._of([*self.terms, *added])

    def without(self, term: Expression) -> "Filter":
        """Less one of its terms."""
        return self._of(each for each in self.terms if each != term)

    def without_field(self, name: str) -> "Filter":
        """Less every condition that is about this field alone."""
        return self._of(each for each in self.terms if field_of(each) != name)

    def in_cluster(self, name: str | None) -> "Filter":
        """And of this cluster; ``None``: of any."""
        return self if name is None else self & exactly("cluster", name)

    def _of(self, terms: Iterable[Expression]) -> "Filter":
        return Filter(join(All, terms), self.now)


def parse(text: str, now: float) -> Filter:
    """The filter that the text stands for; empty text matches all. Raises FilterError."""
    if len(text) > LONGEST_TEXT:
        raise FilterError(f"a filter has at most {LONGEST_TEXT} characters", LONGEST_TEXT + 1)
    bad = re.search("[\x00\ud800-\udfff]", text)
    if bad:
        raise FilterError(f"the character {bad[0]!r} is in no task", bad.start() + 1)
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
            raise FilterError("this parenthesis closes nothing", self.at + 1)
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
            raise FilterError(f"parentheses and negations go at most {DEEPEST} deep", self.at + 1)
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
                raise FilterError("there is nothing to search for here", column)
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
            raise FilterError("put text that has a parenthesis in it between quotes", self.at + 1)
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
    """The condition ``name:value``. Raises FilterError with all that is known if the field is not."""
    base, dot, key = name.partition(".")
    known = FIELDS.get(base.lower())
    if known is None or (dot and (known.name != "kwargs" or not key)):
        raise FilterError(f"there is no field {name!r}; quote it to search for the text", column, FIELD_NAMES)
    if not value.parts:
        raise FilterError(f'{name}: needs a value; {name}:"" is unknown', value.column)
    if known.kind is Kind.STATE:
        return State(read_state(value.text, value.column))
    if known.kind is Kind.RETRIED:
        return RetriedCondition(read_retried(value.text, value.column))
    if not value.text and not key:
        if known.name == "job":
            raise FilterError("job: needs the number of a job", value.column)
        if known.name in {"id", "cluster"}:
            raise FilterError(f"every task has its {known.name}", value.column)
        return Unknown(known.name)
    if known.kind in {Kind.NAME, Kind.ID, Kind.TEXT}:
        return Match(known.name, _checked(known.kind, key, value), key or None)
    if known.kind is Kind.GROUP and value.text[0].isalpha():
        return InGroups(read_group_word(value.text, value.column))
    kind = Kind.NUMBER if known.kind is Kind.GROUP else known.kind
    interval = read_interval(kind, value.text, value.column, now)
    if known.name == "job" and not interval.is_point:
        raise FilterError("job: takes the number of one job", value.column)
    return ValueRange(known.name, interval)


def _checked(kind: Kind, key: str, value: _Value) -> Pattern:
    """Ids and single keyword arguments are found by their beginning only: the rest could not be told apart."""
    pattern = value.pattern
    if (kind is Kind.ID or key) and not pattern.literal and pattern.prefix is None:
        raise FilterError("a wildcard can only stand at the end here", value.column)
    return pattern
