"""Names of tasks, queues, workers ... and clusters, stored once and referred to by small numbers."""

import re
from collections.abc import Iterable

from sqlalchemy import Connection, func, select, tuple_

from celery_monitor.errors import InvalidInput
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import TERM_KINDS, UNKNOWN

Names = tuple[str | None, ...]  # of a task, in the order of TERM_KINDS
Numbers = tuple[int, ...]
_KINDS = tuple(TERM_KINDS.values())
COUNTED = ("name", "queue", "worker")  # kinds with a column in task_count
OTHER = "(other)"  # the name of what is counted together
_CHUNK = 500
_CACHE_LIMIT = 20_000


class Terms:
    """Numbers of names, cached. For one transaction at a time; ``forget`` after a rollback."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids: dict[tuple[int, str], int] = {}
        self._of_tasks: dict[Names, Numbers] = {}

    def forget(self) -> None:
        """Empties the cache: a rollback may have undone new numbers."""
        self._ids.clear()
        self._of_tasks.clear()

    def load(self, connection: Connection, wanted: Iterable[tuple[int, str]], of_tasks: Iterable[Names] = ()) -> None:
        """Loads the number of each (kind, text) and of all names of tasks; new names get one."""
        if len(self._ids) > _CACHE_LIMIT or len(self._of_tasks) > _CACHE_LIMIT:
            self.forget()
        named = (zip(_KINDS, names, strict=True) for names in of_tasks if names not in self._of_tasks)
        several = {(kind, text) for names in named for kind, text in names if text is not None}
        missing = [each for each in several.union(wanted) if each not in self._ids]
        self._add(connection, missing)

    def _add(self, connection: Connection, missing: list[tuple[int, str]]) -> None:
        self._find(connection, missing)
        new = sorted(each for each in missing if each not in self._ids)  # in one order, against deadlocks
        if new:
            statement = self._store.insert(schema.term).on_conflict_do_nothing()
            connection.execute(statement, [{"kind": kind, "text": text} for kind, text in new])
            self._find(connection, new)

    def id(self, kind: int, text: str | None) -> int:
        """The number of a loaded name; 0 for None."""
        return UNKNOWN if text is None else self._ids[kind, text]

    def of_task(self, names: Names) -> Numbers:
        """The numbers of the names of a task, which were loaded."""
        found = self._of_tasks.get(names)
        if found is None:
            found = self._of_tasks[names] = tuple(map(self.id, _KINDS, names))
        return found

    def others(self, connection: Connection) -> tuple[int, int, int]:
        """The numbers under which names, queues and workers are counted that have no counter of their own."""
        wanted = [(TERM_KINDS[kind], OTHER) for kind in ("name", "queue", "worker")]
        self._add(connection, [each for each in wanted if each not in self._ids])
        name, queue, worker = (self._ids[each] for each in wanted)
        return name, queue, worker

    def _find(self, connection: Connection, wanted: list[tuple[int, str]]) -> None:
        table = schema.term
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            statement = select(table.c.kind, table.c.text, table.c.id).where(
                tuple_(table.c.kind, table.c.text).in_(chunk)
            )
            for kind, text, number in connection.execute(statement):
                self._ids[kind, text] = number


def texts(connection: Connection, ids: Iterable[int]) -> dict[int, str]:
    """The names of these numbers; 0 has none."""
    wanted = [each for each in set(ids) if each != UNKNOWN]
    found: dict[int, str] = {}
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        statement = select(schema.term.c.id, schema.term.c.text).where(schema.term.c.id.in_(chunk))
        found.update({row.id: row.text for row in connection.execute(statement).all()})
    return found


def cluster_id(store: Store, connection: Connection, name: str) -> int:
    """The number of a cluster; a new cluster gets one."""
    statement = select(schema.cluster.c.id).where(schema.cluster.c.name == name)
    found: int | None = connection.execute(statement).scalar()
    if found is None:
        connection.execute(store.insert(schema.cluster).values(name=name).on_conflict_do_nothing())
        found = connection.execute(statement).scalar_one()
    return found


_FARTHEST = 1e11  # the year 5138


def cluster_names(connection: Connection, cluster: str | None = None) -> dict[int, str]:
    """The names of all clusters by number, or the one of this name; the oldest first."""
    rows = connection.exec_driver_sql("SELECT id, name FROM cluster ORDER BY id")  # read twenty times for a page
    return {number: name for number, name in rows if cluster in (None, name)}


def cluster_ids(connection: Connection, cluster: str | None) -> list[int]:
    """The number of the cluster, or of all clusters for None; empty for an unknown one."""
    return list(cluster_names(connection, cluster))


def term_ids(connection: Connection, kind: str, names: Iterable[str]) -> list[int]:
    """The numbers of these names; unknown ones are left out."""
    term = schema.term.c
    known = [name for name in names if storable(name)]
    statement = select(term.id).where(term.kind == schema.TERM_KINDS[kind], term.text.in_(known))
    return list(connection.execute(statement).scalars())


def storable(text: str) -> bool:
    """Whether a stored text can equal this one: NUL and lone surrogates are replaced before storage."""
    return not re.search("[\x00\ud800-\udfff]", text)


def checked_time(seconds: float) -> float:
    """The same time, in epoch seconds. Raises InvalidInput where it is out of range."""
    if not abs(seconds) < _FARTHEST:
        raise InvalidInput(f"{seconds} is not a time in epoch seconds")
    return seconds


def find_terms(store: Store, kind: str, prefix: str, limit: int = 20) -> list[str]:
    """Names of a kind that contain the text, those first that begin with it; for autocomplete.

    With a scope only of a kind in COUNTED, as which others are inside is unknown.
    """
    if kind not in TERM_KINDS:
        raise InvalidInput(f"there are no names of kind {kind!r}; kinds are {', '.join(TERM_KINDS)}")
    if not storable(prefix) or (kind not in COUNTED and store.limits.scope.terms):
        return []
    table = schema.term.c
    lower, text = func.lower(table.text), prefix.lower()
    of_kind = table.kind == TERM_KINDS[kind], table.text != OTHER
    statement = select(table.text).where(*of_kind, lower.contains(text, autoescape=True))
    statement = statement.order_by(lower.startswith(text, autoescape=True).desc(), table.text).limit(limit)
    with store.read() as connection:
        return list(connection.execute(statement).scalars())
