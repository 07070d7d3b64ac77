"""Filter to SQL. Names become numbers first, so that rows are compared by integers.

Every condition is written so that the database cannot pick an index for it: which index is walked is decided in
``paths.py`` alone, by what is known of the counts.
"""

from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Integer
from sqlalchemy import and_
from sqlalchemy import bindparam
from sqlalchemy import case
from sqlalchemy import false
from sqlalchemy import func
from sqlalchemy import literal_column
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import true

from monitor.filter_terms import All
from monitor.filter_terms import Any
from monitor.filter_terms import Expression
from monitor.filter_terms import InGroups
from monitor.filter_terms import Leaf
from monitor.filter_terms import Match
from monitor.filter_terms import Not
from monitor.filter_terms import Range
from monitor.filter_terms import Retried
from monitor.filter_terms import State
from monitor.filter_terms import Unknown
from monitor.filter_terms import Word
from monitor.filter_terms import leaves
from monitor.filter_values import GROUPS_BY_WORD
from monitor.filter_values import Interval
from monitor.filter_values import Pattern
from monitor.store import ids
from monitor.store import schema
from monitor.store.ids import Span
from monitor.store.job_members import in_job
from monitor.store.retries import retried
from monitor.store.schema import STATE_CODES
from monitor.store.schema import TERM_KINDS
from monitor.store.schema import UNKNOWN

CUBE_FIELDS = {"state", "cluster", "name", "queue", "worker"}
_task = schema.task.c
_ZERO = literal_column("0", Integer)


@dataclass
class Resolved:
    """What the leaves of a filter stand for in this database, at this moment."""

    clusters: dict[int, str]
    is_sqlite: bool
    terms: dict[Leaf, frozenset[int]] = field(default_factory=dict)  # interned numbers that a leaf names
    rows: dict[Leaf, frozenset[int]] = field(default_factory=dict)  # rows whose id a leaf names, where they are few
    roots: dict[Leaf, frozenset[bytes]] = field(default_factory=dict)  # trees in which a parent's children are


def resolve(connection: Connection, expression: Expression) -> Resolved:
    """Looks up the names and ids of every leaf."""
    rows = connection.execute(select(schema.cluster.c.id, schema.cluster.c.name))
    found = Resolved({row.id: row.name for row in rows}, connection.dialect.name == "sqlite")
    for leaf in set(leaves(expression)):
        if isinstance(leaf, Word):
            found.terms[leaf] = _terms(connection, "name", leaf.pattern, contains)
            _find_rows(connection, found, leaf, ids.spans_of_word(leaf.pattern))
        elif isinstance(leaf, Match) and leaf.field == "cluster":
            found.terms[leaf] = frozenset(key for key, name in found.clusters.items() if leaf.pattern.matches(name))
        elif isinstance(leaf, Match) and leaf.field in TERM_KINDS:
            found.terms[leaf] = _terms(connection, leaf.field, leaf.pattern, Pattern.matches)
        elif isinstance(leaf, Match) and leaf.field in {"id", "root", "parent"}:
            _find_rows(connection, found, leaf, ids.spans(leaf.pattern))
    return found


def _find_rows(connection: Connection, found: Resolved, leaf: Word | Match, spans: list[Span]) -> None:
    rows = ids.few_rows(connection, found.clusters, spans)
    if rows is None:
        return
    found.rows[leaf] = frozenset(rows)
    if isinstance(leaf, Match) and leaf.field == "parent":
        roots = ids.roots_of(connection, rows)
        if roots:
            found.roots[leaf] = roots


def contains(pattern: Pattern, text: str) -> bool:
    """Whether a bare word is in the text: a part of it, or with wildcards all of it; in any case."""
    folded = Pattern(tuple(piece.casefold() for piece in pattern.pieces))
    return folded.pieces[0] in text.casefold() if folded.literal else folded.matches(text.casefold())


def _terms(connection: Connection, kind: str, pattern: Pattern, fits: Callable[[Pattern, str], bool]) -> frozenset[int]:
    term = schema.term.c
    statement = select(term.id, term.text).where(term.kind == TERM_KINDS[kind])
    if pattern.literal and fits is Pattern.matches:
        statement = statement.where(term.text == pattern.pieces[0])
    return frozenset(row.id for row in connection.execute(statement) if fits(pattern, row.text))


def numbers(column: ColumnElement[int], values: Iterable[int]) -> ColumnElement[bool]:
    """``column IN (...)`` with the numbers in the text: partial indexes need them there, and no limit counts them."""
    listed = sorted(values)
    if not listed:
        return false()
    return column.in_(bindparam(None, listed, expanding=True, literal_execute=True))


def is_cube(expression: Expression) -> bool:
    """Whether ``task_count`` alone answers it."""
    return all(
        isinstance(leaf, State) or (isinstance(leaf, Match | Unknown) and leaf.field in CUBE_FIELDS)
        for leaf in leaves(expression)
    )


def condition(expression: Expression, resolved: Resolved, *, cube: bool = False) -> ColumnElement[bool]:
    """The expression on rows of ``task``, or of ``task_count`` where ``is_cube`` holds."""
    if isinstance(expression, All):
        return and_(true(), *(condition(each, resolved, cube=cube) for each in expression.terms))
    if isinstance(expression, Any):
        return or_(false(), *(condition(each, resolved, cube=cube) for each in expression.terms))
    if isinstance(expression, Not):  # what is unknown is not what was asked for, so it belongs to the rest
        return condition(expression.term, resolved, cube=cube).is_not(true())
    return _leaf(expression, resolved, cube=cube)


def cube_condition(expression: Expression, resolved: Resolved) -> ColumnElement[bool]:
    """The expression on ``task_count``; all of the key's first columns are named, so a name needs no scan."""
    columns = schema.task_count.c
    anywhere = (numbers(columns.cluster_id, resolved.clusters), numbers(columns.state, STATE_CODES.values()))
    return and_(*anywhere, condition(expression, resolved, cube=True))


def _leaf(leaf: Leaf, resolved: Resolved, *, cube: bool) -> ColumnElement[bool]:
    columns = schema.task_count.c if cube else _task
    if isinstance(leaf, State):
        state: ColumnElement[int] = columns.state if cube else columns.state + _ZERO
        return numbers(state, (STATE_CODES[each] for each in leaf.states))
    if isinstance(leaf, Retried):
        return retried(leaf.word)
    if isinstance(leaf, InGroups):
        return _in_groups(leaf)
    if isinstance(leaf, Unknown):
        return _unknown(leaf.field, columns)
    if isinstance(leaf, Range) and leaf.field == "job":
        return in_job(job_of(leaf))
    if isinstance(leaf, Range):
        return within(_MEASURES[leaf.field], leaf.interval)
    if isinstance(leaf, Word):
        return _word(leaf, resolved)
    if leaf.field in CUBE_FIELDS:
        column: ColumnElement[int] = columns[f"{leaf.field}_id"]
        return numbers(column if cube else column + _ZERO, resolved.terms[leaf])
    if leaf.field in {"id", "root", "parent"}:
        return _identity(leaf, resolved)
    return _text(leaf, resolved)


def _in_groups(leaf: InGroups) -> ColumnElement[bool]:
    group = schema.failure_group.c
    words = [state.value for state in GROUPS_BY_WORD[leaf.word]]
    return (_task.failure_group_id + _ZERO).in_(select(group.id).where(group.state.in_(words)))


def job_of(leaf: Range) -> int:
    """The job that ``job:7`` names; the language takes nothing but one number."""
    assert leaf.interval.low is not None  # noqa: S101
    return int(leaf.interval.low.value)


def _unknown(name: str, columns: object) -> ColumnElement[bool]:
    if name in TERM_KINDS:
        column: ColumnElement[int] = getattr(columns, f"{name}_id")
        return column + _ZERO == UNKNOWN
    return _MEASURES[name].is_(None) if name in _MEASURES else _task[name].is_(None)


# Run.wait of the latest run, in SQL.
_ready = func.coalesce(_task.ready, case((_task.eta > _task.received, _task.eta), else_=_task.received))
WAIT: ColumnElement[float] = case((_task.started < _ready, 0.0), else_=_task.started - _ready)
_MEASURES: dict[str, ColumnElement[float]] = {
    "group": _task.failure_group_id + _ZERO,
    "retries": _task.retries,
    "runtime": _task.runtime,
    "wait": WAIT,
    "sent": _task.sent,
    "received": _task.received,
    "started": _task.started,
    "finished": _task.ended,
}


def within(column: ColumnElement[float], interval: Interval) -> ColumnElement[bool]:
    """The column lies in the interval, and is known."""
    conditions: list[ColumnElement[bool]] = [column.is_not(None)]
    if interval.low:
        low = interval.low
        conditions.append(column >= low.value if low.inclusive else column > low.value)
    if interval.high:
        high = interval.high
        conditions.append(column <= high.value if high.inclusive else column < high.value)
    return and_(*conditions)


def like(column: ColumnElement[str], text: str, resolved: Resolved) -> ColumnElement[bool]:
    """In any case; SQLite's LIKE is so by itself, for ASCII."""
    return column.like(text, escape="\\") if resolved.is_sqlite else column.ilike(text, escape="\\")


def escaped(text: str) -> str:
    """The text as LIKE takes it literally."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _like_pattern(pattern: Pattern) -> str:
    return f"%{escaped(pattern.pieces[0])}%" if pattern.literal else "%".join(map(escaped, pattern.pieces))


def _text(leaf: Match, resolved: Resolved) -> ColumnElement[bool]:
    column = _task[leaf.field]
    if leaf.key is None:
        return and_(column.is_not(None), like(column, _like_pattern(leaf.pattern), resolved))
    found = [like(column, f"%{text}%", resolved) for text in _keyword_forms(leaf.key, leaf.pattern)]
    return and_(column.is_not(None), or_(*found))


def _keyword_forms(key: str, pattern: Pattern) -> list[str]:
    """How ``repr`` writes one entry of a dict; the text after the value keeps 31 from matching 310."""
    value = escaped(pattern.pieces[0])
    heads = [f"'{escaped(key)}': {quote}{value}" for quote in ("", "'", '"')]
    if not pattern.literal:
        return heads
    quotes = ("", "'", '"')
    return [f"{head}{quote}{end}" for head, quote in zip(heads, quotes, strict=True) for end in (",", "}")]


def _identity(leaf: Match, resolved: Resolved) -> ColumnElement[bool]:
    spans = ids.spans(leaf.pattern)
    if leaf.field == "parent":
        return or_(*(span.holds(_task.parent) for span in spans))
    rows = resolved.rows.get(leaf)
    own = or_(*(span.holds(_task.key) for span in spans)) if rows is None else numbers(_task.id, rows)
    if leaf.field == "id":
        return own
    return or_(and_(own, ids.alone()), *(span.holds(_task.root) for span in spans))


def _word(leaf: Word, resolved: Resolved) -> ColumnElement[bool]:
    text = _like_pattern(leaf.pattern)
    found = [like(_task[name], text, resolved) for name in ("args", "kwargs", "exception")]
    found.append(numbers(_task.name_id + _ZERO, resolved.terms[leaf]))
    if leaf in resolved.rows:
        found.append(numbers(_task.id, resolved.rows[leaf]))
    return or_(*found)
