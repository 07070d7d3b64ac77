"""Task ids in queries: an id or its beginning, as spans of stored keys."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import and_
from sqlalchemy import func
from sqlalchemy import literal_column
from sqlalchemy import select

from monitor.filter_values import Pattern
from monitor.store import schema
from monitor.store.keys import to_key

FEW = 1000
_SHORTEST_WORD = 4  # a bare word of fewer characters is not taken for the beginning of an id
_LONGEST_KEY = b"\xff"  # UTF-8 has no such byte
_SHAPE = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
_task = schema.task.c


class Span(NamedTuple):
    """Keys from ``low`` to ``high``, both included, of UUIDs or of other ids."""

    low: bytes
    high: bytes
    uuid: bool

    def holds(self, column: ColumnElement[bytes]) -> ColumnElement[bool]:
        if self.low == self.high:
            return column == self.low
        length = func.length(column)
        return and_(column >= self.low, column <= self.high, length == 16 if self.uuid else length != 16)


def spans(pattern: Pattern) -> list[Span]:
    """Where the keys of all ids lie that are the literal text, or begin with the prefix."""
    if pattern.literal:
        key = to_key(pattern.pieces[0])
        return [Span(key, key, len(key) == 16)]
    prefix = pattern.prefix or ""
    text = prefix.encode()
    found = [Span(nul + text, nul + text + _LONGEST_KEY, uuid=False) for nul in (b"\0", b"\0\0")]
    if _is_uuid_beginning(prefix):
        digits = prefix.replace("-", "")
        low, high = (bytes.fromhex(digits.ljust(32, digit)) for digit in "0f")
        found.append(Span(low, high, uuid=True))
    return found


def spans_of_word(pattern: Pattern) -> list[Span]:
    """The same for a bare word, which may be the beginning of an id without saying so."""
    if pattern.literal and len(pattern.pieces[0]) >= _SHORTEST_WORD:
        return spans(Pattern((pattern.pieces[0].lower() if _is_uuid(pattern.pieces[0]) else pattern.pieces[0], "")))
    return spans(pattern) if pattern.prefix and len(pattern.prefix) >= _SHORTEST_WORD else []


def _is_uuid(text: str) -> bool:
    return len(text) == len(_SHAPE) and _is_uuid_beginning(text.lower())


def _is_uuid_beginning(text: str) -> bool:
    shape = _SHAPE[: len(text)]
    return len(text) <= len(_SHAPE) and re.sub("[0-9a-f]", "x", text) == shape


def few_rows(connection: Connection, clusters: Iterable[int], wanted: list[Span]) -> set[int] | None:
    """The rows with these keys; ``None`` where they are more than a few."""
    rows: set[int] = set()
    for cluster in clusters:
        for span in wanted:
            statement = select(_task.id).where(_task.cluster_id == cluster, span.holds(_task.key)).limit(FEW + 1)
            rows.update(connection.execute(statement).scalars())
            if len(rows) > FEW:
                return None
    return rows


def roots_of(connection: Connection, rows: Iterable[int]) -> frozenset[bytes]:
    """The trees that these rows are in; empty where one of them is not known, or there are no rows."""
    statement = select(_task.key, _task.root).where(_task.id.in_(list(rows)))
    found = [None if row.root is None else bytes(row.root) or bytes(row.key) for row in connection.execute(statement)]
    return frozenset(each for each in found if each is not None) if None not in found else frozenset()


def alone() -> ColumnElement[bool]:
    """The row is in no tree but its own."""
    return func.coalesce(func.length(_task.root), 0) == 0


def in_tree(span: Span) -> ColumnElement[bool]:
    """Members of the trees whose roots lie in the span, in words that ``task_root``'s condition is proven by."""
    return and_(_task.root.is_not(None), func.length(_task.root) > literal_column("0"), span.holds(_task.root))
