"""Facets: the values of a field among the tasks of a list, with counts that agree with it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Row
from sqlalchemy import Select
from sqlalchemy import func
from sqlalchemy import select

from monitor.errors import InvalidInput
from monitor.filter_terms import All
from monitor.filter_terms import Expression
from monitor.filter_terms import Match
from monitor.filter_terms import Not
from monitor.filter_terms import Retried
from monitor.filter_terms import State
from monitor.filter_terms import Unknown
from monitor.filter_terms import exactly
from monitor.filter_terms import join
from monitor.filter_values import YES
from monitor.filter_values import Pattern
from monitor.filters import Filter
from monitor.records import Count
from monitor.store import cube
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.engine import position
from monitor.store.load import cluster_names
from monitor.store.paths import Path
from monitor.store.paths import choose
from monitor.store.paths import on_cube
from monitor.store.retries import newest_state
from monitor.store.rows import STATES
from monitor.store.terms import texts
from monitor.store.walk import floor_of
from monitor.store.walk import positions
from monitor.store.walk import steer


@dataclass(frozen=True, slots=True)
class Facet:
    """One value of a field among the tasks of a list; ``term`` is the condition that narrows to it."""

    value: str  # empty: unknown
    count: Count
    term: Expression


FACET_FIELDS = ("state", "name", "queue", "worker", "exception", "retried")
MOST_VALUES = 20
SCAN = 10_000
_TYPE = re.compile(r"[A-Za-z_][\w.]*(?=\()")
_columns = {"state": "state", **{name: f"{name}_id" for name in ("name", "queue", "worker", "cluster")}}
_PLACE = ("state", "name_id", "queue_id")  # columns of cube.by_place
_task = schema.task.c


def facets(
    store: Store,
    filter: Filter,  # noqa: A002
    fields: Sequence[str] = FACET_FIELDS,
) -> dict[str, list[Facet]]:
    """The most frequent values of each field, under all other conditions of the filter.

    So each count is what the list would have with its term in place of the conditions on this field. Raises
    InvalidInput for a field that has no facets.
    """
    unknown = [name for name in fields if name not in {*_columns, "exception", "retried"}]
    if unknown:
        raise InvalidInput(
            f"there are no facets of {', '.join(unknown)}; there are of {', '.join(FACET_FIELDS)}, cluster"
        )
    with store.read() as connection:
        steer(connection)
        scans = _Scans(connection)
        return {name: _facet(connection, filter.without_field(name), name, scans) for name in fields}


class _Scans:
    """The rows of one filter are read once, whatever number of fields is counted on them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._paths: dict[Filter, Path] = {}
        self._cubes: dict[Filter, ColumnElement[bool] | None] = {}
        self._rows: dict[Filter, tuple[Sequence[Row[Any]], bool]] = {}
        self._places: dict[Filter, Sequence[Row[Any]]] = {}

    def path(self, wanted: Filter) -> Path:
        if wanted not in self._paths:
            self._paths[wanted] = choose(self._connection, wanted, SCAN)
        return self._paths[wanted]

    def cube(self, wanted: Filter) -> ColumnElement[bool] | None:
        """The filter on the counters, where they answer it."""
        if wanted not in self._cubes:
            self._cubes[wanted] = on_cube(self._connection, wanted)
        return self._cubes[wanted]

    def totals(self, wanted: Filter, column: str) -> dict[int, int]:
        """Tasks by the numbers in a column, where the counters answer the filter."""
        where = self.cube(wanted)
        if column not in _PLACE:
            return cube.totals_by(self._connection, column, where)
        if wanted not in self._places:
            self._places[wanted] = cube.by_place(self._connection, where)
        totals: Counter[int] = Counter()
        for number, count in map(itemgetter(_PLACE.index(column), -1), self._places[wanted]):
            totals[number] += count
        return totals

    def counts(self, wanted: Filter, column: str) -> tuple[dict[int, int], bool]:
        """Rows by the numbers in a column, and whether those are all."""
        if wanted not in self._rows:
            columns = [_task[each] for each in _columns.values()]
            statement, whole = _newest(self._connection, self.path(wanted), columns)
            found = self._connection.execute(statement).all()
            self._rows[wanted] = found[:SCAN], whole and len(found) <= SCAN
        rows, exact = self._rows[wanted]
        return Counter(map(itemgetter(list(_columns.values()).index(column)), rows)), exact


def _newest(connection: Connection, path: Path, columns: Sequence[ColumnElement[Any]]) -> tuple[Select[Any], bool]:
    """These columns of the newest rows that match, one more than SCAN, and whether the walk to them is not cut."""
    floor = floor_of(connection, path)
    rows = positions(path, SCAN + 1, floor=floor, also=columns).subquery()
    return select(*list(rows.c)[2:]), floor is None


def _facet(connection: Connection, wanted: Filter, name: str, scans: _Scans) -> list[Facet]:
    if name == "exception":
        return _exceptions(connection, wanted)
    if name == "retried":
        return _retried(connection, wanted)
    if scans.cube(wanted) is not None:
        counts, exact = scans.totals(wanted, _columns[name]), True
    else:
        counts, exact = scans.counts(wanted, _columns[name])
    most = sorted(counts.items(), key=lambda each: -each[1])[:MOST_VALUES]
    values = _values(connection, name, [number for number, _ in most])
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


def _retried(connection: Connection, wanted: Filter) -> list[Facet]:
    """By the state of the newest retry: those that nobody retried have none, and are nearly all."""
    narrowed = join(All, [*wanted.terms, Retried(YES)])
    path = choose(connection, Filter(narrowed, wanted.now), SCAN)
    statement, whole = _newest(connection, path, [newest_state().label("again")])
    again = statement.subquery().c.again
    rows = connection.execute(select(again, func.count()).group_by(again)).all()
    exact = whole and sum(count for _, count in rows) <= SCAN
    words = sorted(
        ((code, "" if code is None else STATES[code].word, n) for code, n in rows), key=lambda each: -each[2]
    )
    return [Facet(word, Count(number, exact), Retried(word)) for _, word, number in words]


def _exceptions(connection: Connection, wanted: Filter) -> list[Facet]:
    """By type. Who succeeded has none, which keeps the walk to a small index."""
    narrowed = join(All, [*wanted.terms, Not(State("succeeded")), Not(Unknown("exception"))])
    path = choose(connection, Filter(narrowed, wanted.now), SCAN)
    text = func.substr(_task.exception, 1, 200)
    head = func.substr(text, 1, position(connection, text, "(")).label("head")
    statement, whole = _newest(connection, path, [head])
    heads = statement.subquery().c.head
    rows = connection.execute(select(heads, func.count()).group_by(heads)).all()
    exact = whole and sum(count for _, count in rows) <= SCAN
    types = Counter({found[0]: count for head, count in rows if (found := _TYPE.match(str(head)))})
    return [
        Facet(name, Count(count, exact), Match("exception", Pattern((f"{name}(", ""))))
        for name, count in types.most_common(MOST_VALUES)
    ]
