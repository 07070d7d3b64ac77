"""Flower's language of the parameter ``search``, as a condition of our filters.

    name:tasks.add state:SUCCESS (kwargs:order=17 OR "card refused")

Terms are of ``name``, ``worker``, ``args``, ``kwargs`` and ``result`` (a part of it), ``state`` (all of it), or of any
of these; words next to each other mean *and*. The errors are Flower's.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from celery_monitor.core.filters.terms import All, Any, Expression, Match, Not, Pattern, State, Unknown, any_of, join
from celery_monitor.records.task import TaskState

FIELDS = frozenset({"name", "state", "worker", "args", "kwargs", "result"})
SHORTEST = 3  # characters of a part of a text
LONGEST, MOST_TOKENS, DEEPEST = 2048, 128, 5
NOTHING: Expression = All((Unknown("name"), Not(Unknown("name"))))
_PIECE = re.compile(r"""[()]|(?:\\["\\]|"(?:\\["\\]|[^"])*"|[^\s()"])+""")
_QUOTED = re.compile(r'\\(["\\])|"')


class SearchError(ValueError):
    """The search is not valid; the text is Flower's."""


class Token(NamedTuple):
    """``kind``: ( ) AND OR TERM END."""

    kind: str
    text: str
    at: int


def parse_search(text: str) -> Expression:
    """The condition that a search stands for; empty text matches everything. Raises SearchError."""
    query = text.strip()
    if len(query) > LONGEST:
        raise SearchError(f"Query exceeds {LONGEST} characters.")
    return _SearchParser([*_tokens(query), Token("END", "", len(query))]).parse()


def _error(words: str, at: int) -> SearchError:
    return SearchError(f"{words} at position {at}.")


def _tokens(query: str) -> Iterator[Token]:
    at = count = 0
    while at < len(query):
        if query[at].isspace():
            at += 1
            continue
        piece = _PIECE.match(query, at)
        if piece is None or (piece.end() < len(query) and query[piece.end()] == '"'):
            raise _error("Unterminated quoted phrase", at)
        count += 1
        if count > MOST_TOKENS:
            raise SearchError(f"Query exceeds {MOST_TOKENS} tokens.")
        yield _token(piece[0], at)
        at = piece.end()


def _token(piece: str, at: int) -> Token:
    if piece in {"(", ")", "AND", "OR"}:
        return Token(piece, piece, at)
    if piece == "NOT":
        raise _error("NOT is not supported", at)
    plain = _QUOTED.sub(lambda each: each[1] or "", piece)
    if not plain:
        raise _error("Empty search term", at)
    return Token("TERM", plain, at)


class _SearchParser:
    """Recursive descent; ``place`` is the next token."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.place = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def parse(self) -> Expression:
        if self.next.kind == "END":
            return All()
        found = self._alternatives(0)
        if self.next.kind != "END":
            raise _error(f"Unexpected {self.next.text!r}", self.next.at)
        return found

    def _alternatives(self, depth: int) -> Expression:
        terms = [self._together(depth)]
        while self._operator("OR"):
            terms.append(self._together(depth))
        return join(Any, terms)

    def _together(self, depth: int) -> Expression:
        terms = [self._one(depth)]
        while self.next.kind not in {"END", ")", "OR"}:
            self._operator("AND")
            terms.append(self._one(depth))
        return join(All, terms)

    def _operator(self, name: str) -> bool:
        operator = self.next
        if operator.kind != name:
            return False
        self.place += 1
        if self.next.kind in {"END", ")", "AND", "OR"}:
            raise _error(f"{name} must be followed by a search term", operator.at)
        return True

    def _one(self, depth: int) -> Expression:
        token = self.next
        if token.kind not in {"TERM", "("}:
            raise _error("Expected a search term", token.at)
        if token.kind == "(" and depth >= DEEPEST:
            raise _error(f"Query nesting exceeds {DEEPEST} levels", token.at)
        self.place += 1
        if token.kind == "TERM":
            return _term(token)
        if self.next.kind == ")":
            raise _error("Empty group", token.at)
        inside = self._alternatives(depth + 1)
        if self.next.kind != ")":
            raise _error("Missing closing parenthesis", token.at)
        self.place += 1
        return inside


def _term(token: Token) -> Expression:
    name, colon, value = token.text.partition(":")
    field = name.casefold() if colon and name.casefold() in FIELDS else None
    value = value if field else token.text
    if field is None and value.startswith("-"):
        raise _error("Negation with '-' is not supported", token.at)
    if not value:
        raise _error("Search qualifier requires a value", token.at)
    if field == "state":
        return in_state(value)
    if field == "kwargs" and "=" in value:
        key, _, wanted = value.partition("=")
        return Match("kwargs", Pattern((wanted.strip(),)), key.strip())
    if len(value.strip()) < SHORTEST:
        raise _error(f"Substring search terms must contain at least {SHORTEST} characters", token.at)
    if field is not None:
        return contains(field, value)
    fields = ("name", "worker", "args", "kwargs", "result")
    by_id = Match("id", Pattern((value, "")))
    return any_of([by_id, *(contains(each, value) for each in fields), *_in_state_like(value)])


def in_state(word: str) -> Expression:
    """In the state of this name, in any case; an unknown name matches nothing."""
    if word.upper() not in TaskState.__members__:
        return NOTHING
    if word.upper() == TaskState.RECEIVED:  # Celery has no state of its own for a task that waits for its ETA
        return any_of([State(TaskState.RECEIVED.word), State(TaskState.SCHEDULED.word)])
    return State(TaskState[word.upper()].word)


def _in_state_like(part: str) -> list[Expression]:
    return [State(state.word) for state in TaskState if part.casefold() in state.casefold()]


def contains(field: str, part: str) -> Expression:
    """The part is in the field; names are compared as they are written."""
    return Match(field, Pattern(("", part, "")) if field in {"name", "worker"} else Pattern((part,)))
