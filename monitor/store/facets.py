"""Facets: the values of a field among the tasks of a list, with counts that agree with it."""

import re
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence

from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import select

from monitor.errors import InvalidInput
from monitor.filter_terms import All
from monitor.filter_terms import Expression
from monitor.filter_terms import Match
from monitor.filter_terms import Not
from monitor.filter_terms import State
from monitor.filter_terms import Unknown
from monitor.filter_terms import join
from monitor.filter_values import Pattern
from monitor.filters import Filter
from monitor.records import Count
from monitor.records import Facet
from monitor.store import cube
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.load import cluster_names
from monitor.store.paths import Path
from monitor.store.paths import choose
from monitor.store.rows import STATES
from monitor.store.terms import texts
from monitor.store.walk import floor_of
from monitor.store.walk import positions
from monitor.store.walk import steer

FACET_FIELDS = ("state", "name", "queue", "worker", "exception")
MOST_VALUES = 20
SCAN = 10_000
_TYPE = re.compile(r"[A-Za-z_][\w.]*(?=\()")
_columns = {"state": "state", **{name: f"{name}_id" for name in ("name", "queue", "worker", "cluster")}}
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
    unknown = [name for name in fields if name not in {*_columns, "exception"}]
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
        self._rows: dict[Filter, tuple[list[tuple[int, int, int, int, int]], bool]] = {}

    def path(self, wanted: Filter) -> Path:
        if wanted not in self._paths:
            self._paths[wanted] = choose(self._connection, wanted, SCAN)
        return self._paths[wanted]

    def counts(self, wanted: Filter, column: str) -> tuple[dict[int, int], bool]:
        """Rows by the numbers in a column, and whether those are all."""
        if wanted not in self._rows:
            columns = [_task[each] for each in _columns.values()]
            self._rows[wanted] = _scan(self._connection, self.path(wanted), columns)  # type: ignore[assignment]
        rows, exact = self._rows[wanted]
        at = list(_columns.values()).index(column)
        return Counter(row[at] for row in rows), exact


def _scan(connection: Connection, path: Path, columns: Iterable[object]) -> tuple[list[tuple[object, ...]], bool]:
    """These columns of the newest rows that match, and whether those are all."""
    floor = floor_of(connection, path)
    rows = positions(path, SCAN + 1, floor=floor).subquery()
    statement = select(*columns).join(rows, rows.c.id == _task.id)  # type: ignore[call-overload]
    found = [tuple(row) for row in connection.execute(statement)]
    return found[:SCAN], floor is None and len(found) <= SCAN


def _facet(connection: Connection, wanted: Filter, name: str, scans: _Scans) -> list[Facet]:
    if name == "exception":
        return _exceptions(connection, wanted)
    path = scans.path(wanted)
    if path.cube is not None:
        counts, exact = cube.totals_by(connection, _columns[name], path.cube), True
    else:
        counts, exact = scans.counts(wanted, _columns[name])
    most = sorted(counts.items(), key=lambda each: -each[1])[:MOST_VALUES]
    values = _values(connection, name, [number for number, _ in most])
    return [
        Facet(values.get(number, ""), Count(count, exact), str(_term(name, values.get(number, ""))))
        for number, count in most
    ]


def _values(connection: Connection, name: str, numbers: list[int]) -> dict[int, str]:
    if name == "state":
        return {number: STATES[number].word for number in numbers}
    return cluster_names(connection) if name == "cluster" else texts(connection, numbers)


def _term(name: str, value: str) -> Expression:
    if name == "state":
        return State(value)
    return Match(name, Pattern((value,))) if value else Unknown(name)


def _exceptions(connection: Connection, wanted: Filter) -> list[Facet]:
    """By type. Who succeeded has none, which keeps the walk to a small index."""
    narrowed = join(All, [*wanted.terms, Not(State("succeeded")), Not(Unknown("exception"))])
    path = choose(connection, Filter(narrowed, wanted.now), SCAN)
    rows, exact = _scan(connection, path, [func.substr(_task.exception, 1, 200)])
    types = Counter(found[0] for (text,) in rows if (found := _TYPE.match(str(text))))
    return [
        Facet(name, Count(count, exact), str(Match("exception", Pattern((f"{name}(", "")))))
        for name, count in types.most_common(MOST_VALUES)
    ]
