"""What a person retried, and as what: the mark of a task in lists, and the filter that finds it.

A task that was sent again under its own id is no other task, so it is not marked.
"""

from collections.abc import Iterable
from itertools import groupby

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Select
from sqlalchemy import and_
from sqlalchemy import any_
from sqlalchemy import func
from sqlalchemy import select

from monitor.filter_values import NO
from monitor.filter_values import STATES_BY_WORD
from monitor.filter_values import YES
from monitor.records import Link
from monitor.store import schema
from monitor.store.engine import numbers
from monitor.store.keys import from_key
from monitor.store.rows import STATES
from monitor.store.schema import STATE_CODES

FEW = 25_000  # links that are looked up one by one, where nothing else narrows a search
_CHUNK = 500
_link = schema.retry.alias("link")
_again = schema.task.alias("again")
_other = _link.c.new_key != _link.c.key
_task = schema.task.c

Place = tuple[int, bytes]  # cluster and key of a task


def newest_links(connection: Connection, places: Iterable[Place]) -> dict[Place, Link]:
    """The newest task as which each of these was retried, with its state now."""
    found: dict[Place, Link] = {}
    for cluster, several in groupby(sorted(places), key=lambda place: place[0]):
        keys = [key for _, key in several]
        for start in range(0, len(keys), _CHUNK):
            mine = (_link.c.cluster_id == cluster, _link.c.key.in_(keys[start : start + _CHUNK]), _other)
            statement = select(_link, _again.c.state).select_from(_link.outerjoin(_again, _same_task()))
            for row in connection.execute(statement.where(*mine).order_by(_link.c.at, _link.c.new_key)):
                state = None if row.state is None else STATES[row.state]
                link = Link(id=from_key(row.new_key), state=state, at=row.at, fidelity=row.fidelity)
                found[cluster, bytes(row.key)] = link
    return found


def retried(word: str) -> ColumnElement[bool]:
    """What ``retried:WORD`` says of a row of ``task``."""
    if word == YES:
        return _links_of_row().exists()
    if word == NO:
        return ~_links_of_row().exists()
    state = newest_state()
    if not word:
        return and_(_links_of_row().exists(), state.is_(None))
    return numbers(state, (STATE_CODES[each] for each in STATES_BY_WORD[word]))


def newest_state() -> ColumnElement[int]:
    """The state of the newest task as which a row of ``task`` was retried; NULL: none, or its state is unknown."""
    statement = select(_again.c.state).select_from(_link.outerjoin(_again, _same_task()))
    newest = statement.where(*_of_row()).order_by(_link.c.at.desc(), _link.c.new_key.desc()).limit(1)
    return newest.correlate(schema.task).scalar_subquery()


def _same_task() -> ColumnElement[bool]:
    return and_(_again.c.cluster_id == _link.c.cluster_id, _again.c.key == _link.c.new_key)


def _of_row() -> tuple[ColumnElement[bool], ...]:
    return (_link.c.cluster_id == _task.cluster_id, _link.c.key == _task.key, _other)


def _links_of_row() -> Select[tuple[bytes]]:
    return select(_link.c.key).where(*_of_row()).correlate(schema.task)


def few_retried(connection: Connection, clusters: Iterable[int]) -> bool:
    """Whether so few tasks were retried that each can be looked up by its key."""
    links = select(_link.c.key).where(_link.c.cluster_id.in_(clusters), _other).limit(FEW + 1).subquery()
    return connection.execute(select(func.count()).select_from(links)).scalar_one() <= FEW


def those_retried(clusters: Iterable[int], *, is_sqlite: bool) -> tuple[ColumnElement[bool], ...]:
    """The tasks that were retried, by cluster, each looked up by its key."""
    return tuple(_retried_in(cluster, is_sqlite=is_sqlite) for cluster in clusters)


def _retried_in(cluster: int, *, is_sqlite: bool) -> ColumnElement[bool]:
    """As in ``job_members``: PostgreSQL would sort the keys and then read every task."""
    keys = select(_link.c.key).where(_link.c.cluster_id == cluster, _other).distinct()
    if is_sqlite:
        return and_(_task.cluster_id == cluster, _task.key.in_(keys))
    return and_(_task.cluster_id == cluster, _task.key == any_(func.array(keys.scalar_subquery())))
