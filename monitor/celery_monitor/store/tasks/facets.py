"""Facets: the values of a field among the tasks of a list, with their counts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from celery_monitor.core.filters.parser import Filter
from celery_monitor.core.filters.terms import (
    YES,
    Expression,
    Match,
    Not,
    Pattern,
    RetriedCondition,
    State,
    Unknown,
    exactly,
)
from celery_monitor.errors import InvalidInput
from celery_monitor.records.page import Count
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, force_index_scans, position
from celery_monitor.store.schema import STATES
from celery_monitor.store.tasks.counts import by_place, totals_by
from celery_monitor.store.tasks.page import select_resolved
from celery_monitor.store.tasks.where import Resolved, newest_state, resolve, where_counts
from celery_monitor.store.terms import cluster_names, texts

FACET_FIELDS = ("state", "name", "queue", "worker", "exception", "retried")
MOST_VALUES = 20
SCAN = 2000  # tasks that a facet is counted from, where no counter has it; further ones are shown as "+"
SCANNED_ROWS = 10_000  # that are read to find them
_TYPE = re.compile(r"[A-Za-z_][\w.]*(?=\()")
_columns = {"state": "state", **{name: f"{name}_id" for name in ("name", "queue", "worker", "cluster")}}
# Only tasks with these conditions have a value. Succeeded ones have no exception, so a small index is enough.
_ADDED: dict[str, tuple[Expression, ...]] = {
    "retried": (RetriedCondition(YES),),
    "exception": (Not(State("succeeded")), Not(Unknown("exception"))),
}
_PLACE = ("state", "name_id", "queue_id")  # columns of counts.by_place
_task = schema.task.c


@dataclass(frozen=True, slots=True)
class Facet:
    """One value of a field among the tasks of a list; ``term`` is the condition for it."""

    value: str  # empty: unknown
    count: Count
    term: Expression


def read_facets(
    store: Store,
    filter: Filter,  # noqa: A002
    fields: Sequence[str] = FACET_FIELDS,
) -> dict[str, list[Facet]]:
    """The most frequent values of each field, under the filter's conditions on other fields.

    So a count is the length of the list with its term in place of the conditions on this field. Raises InvalidInput for
    a field without facets.
    """
    unknown = [name for name in fields if name not in {*_columns, "exception", "retried"}]
    if unknown:
        raise InvalidInput(
            f"there are no facets of {', '.join(unknown)}; there are of {', '.join(FACET_FIELDS)}, cluster"
        )
    wanted = [name for name in fields if store.limits.arguments or name != "exception"]
    scope = store.limits.scope.terms
    narrowed = {name: (*filter.without_field(name).terms, *_ADDED.get(name, ()), *scope) for name in wanted}
    with store.read() as connection:
        force_index_scans(connection)
        tree = resolve(connection, (each for terms in narrowed.values() for each in terms))
        reads = _Reads(connection)
        return {name: _facet(reads, tree.only(terms), name) for name, terms in narrowed.items()}


class _Reads:
    """Reads the rows of each filter once for all fields."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._rows: dict[tuple[Expression, ...], tuple[Sequence[Row[Any]], bool]] = {}
        self._places: dict[tuple[Expression, ...], Sequence[Row[Any]]] = {}

    def totals(self, tree: Resolved, column: str) -> dict[int, int]:
        """Tasks by the numbers in a column, from the counters."""
        if column not in _PLACE:
            return totals_by(self.connection, column, where_counts(tree))
        if tree.terms not in self._places:
            self._places[tree.terms] = by_place(self.connection, where_counts(tree))
        totals: Counter[int] = Counter()
        for number, count in map(itemgetter(_PLACE.index(column), -1), self._places[tree.terms]):
            totals[number] += count
        return totals

    def counts(self, tree: Resolved, column: str) -> tuple[dict[int, int], bool]:
        """Rows by the numbers in a column, and whether these are all rows."""
        if tree.terms not in self._rows:
            statement, whole = self._newest(tree, [_task[each] for each in _columns.values()])
            found = self.connection.execute(statement).all()
            self._rows[tree.terms] = found[:SCAN], whole and len(found) <= SCAN
        rows, exact = self._rows[tree.terms]
        return Counter(map(itemgetter(list(_columns.values()).index(column)), rows)), exact

    def grouped(self, tree: Resolved, value: ColumnElement[Any]) -> tuple[list[tuple[Any, int]], bool]:
        """Rows by value, and whether these are all rows."""
        statement, whole = self._newest(tree, [value.label("value")])
        values = statement.subquery().c.value
        found = self.connection.execute(select(values, func.count()).group_by(values))
        rows = [(each, count) for each, count in found]
        return rows, whole and sum(count for _, count in rows) <= SCAN

    def _newest(self, tree: Resolved, columns: Sequence[ColumnElement[Any]]) -> tuple[Select[Any], bool]:
        """These columns of the newest matching rows, one more than SCAN, and whether there is no search limit."""
        found = select_resolved(self.connection, tree, SCAN).within(SCANNED_ROWS)
        end = found.search_limit(self.connection)
        rows = found.positions(SCAN + 1, search_limit=end, also=columns).subquery()
        return select(*list(rows.c)[2:]), end is None


def _facet(reads: _Reads, tree: Resolved, name: str) -> list[Facet]:
    if name == "exception":
        return _exceptions(reads, tree)
    if name == "retried":
        return _retried(reads, tree)
    if tree.is_counted:
        counts, exact = reads.totals(tree, _columns[name]), True
    else:
        counts, exact = reads.counts(tree, _columns[name])
    most = sorted(counts.items(), key=lambda each: -each[1])[:MOST_VALUES]
    values = _values(reads.connection, name, [number for number, _ in most])
    return [
        Facet(values.get(number, ""), Count(count, exact), _term(name, values.get(number, "")))
        for number, count in most
    ]


def _values(connection: Connection, name: str, numbers: list[int]) -> dict[int, str]:
    if name == "state":
        return {number: STATES[number].word for number in numbers}
    return cluster_names(connection) if name == "cluster" else texts(connection, numbers)


def _term(name: str, value: str) -> Expression:
    return State(value) if name == "state" else exactly(name, value)


def _retried(reads: _Reads, tree: Resolved) -> list[Facet]:
    """By the state of the newest retry. Tasks that were not retried have none, and are nearly all."""
    rows, exact = reads.grouped(tree, newest_state())
    found = [("" if code is None else STATES[code].word, number) for code, number in rows]
    return [
        Facet(word, Count(number, exact), RetriedCondition(word))
        for word, number in sorted(found, key=lambda each: -each[1])
    ]


def _exceptions(reads: _Reads, tree: Resolved) -> list[Facet]:
    """By type of the exception."""
    text = func.substr(_task.exception, 1, 200)
    rows, exact = reads.grouped(tree, func.substr(text, 1, position(reads.connection, text, "(")))
    types = Counter({found[0]: count for head, count in rows if (found := _TYPE.match(str(head)))})
    return [
        Facet(name, Count(count, exact), Match("exception", Pattern((f"{name}(", ""))))
        for name, count in types.most_common(MOST_VALUES)
    ]
