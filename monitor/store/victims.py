"""Walks from the oldest task to the newest, to find those that must go. What was passed over is not looked at again."""

import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from sqlalchemy import BigInteger
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Double
from sqlalchemy import Integer
from sqlalchemy import Select
from sqlalchemy import and_
from sqlalchemy import bindparam
from sqlalchemy import literal_column
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import true
from sqlalchemy import tuple_
from sqlalchemy import union_all

from monitor.records import TaskState
from monitor.store import schema
from monitor.store.schema import STATE_CODES

RESTART_SECONDS = 3600.0  # how often a walk begins again: a task may have ended that was passed over unfinished
AGE_SECONDS = 10.0  # what comes of age is looked for when there may be this much of it
_START = (float("-inf"), -1)
_SUCCESS = STATE_CODES[TaskState.SUCCESS]
_task = schema.task.c


class Victim(NamedTuple):
    """A task that must go, or may."""

    id: int
    seen: float
    cluster_id: int
    key: bytes
    earlier_runs: int
    counted: bool
    state: int
    name_id: int
    queue_id: int
    worker_id: int

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Where it counts in task_count."""
        return self.state, self.name_id, self.queue_id, self.worker_id


# Of a task that was never counted nothing is known but its loss; see Writer.
_COUNTED = or_(
    _task.sent.is_not(None),
    _task.worker_id != 0,
    *(each.is_not(None) for each in (_task.received, _task.started, _task.ended, _task.outcome, _task.retries)),
)
_COLUMNS = (
    _task.id,
    _task.seen,
    _task.cluster_id,
    _task.key,
    _task.earlier_runs,
    _COUNTED.label("counted"),
    _task.state,
    _task.name_id,
    _task.queue_id,
    _task.worker_id,
)


class Walk:
    """Along one index, in the order (seen, id). For one cluster."""

    def __init__(self, branches: Sequence[ColumnElement[bool]]) -> None:
        self._statement = _statement(branches)
        self._position = _START
        self._empty_before = float("-inf")  # older than this nothing is left to look at
        self._began_at = time.monotonic()

    @classmethod
    def of_all(cls) -> "Walk":
        """Along all tasks."""
        return cls((true(),))

    @classmethod
    def of_others(cls) -> "Walk":
        """Along those that have not succeeded, by the index of states."""
        success = _task.state != literal_column(str(_SUCCESS))  # SQLite proves a partial index by its very words
        codes = [code for code in STATE_CODES.values() if code != _SUCCESS]
        return cls([and_(_task.state == literal_column(str(code)), success) for code in codes])

    def next(
        self, connection: Connection, before: float, most: int, wanted: int, which: Callable[[Victim], bool]
    ) -> tuple[list[Victim], bool]:
        """At most ``wanted`` of the next ``most`` tasks that were seen earlier than ``before``; whether to go on."""
        if time.monotonic() - self._began_at > RESTART_SECONDS:
            self.again()
        if not wanted:
            return [], True
        if before < self._empty_before + AGE_SECONDS:
            return [], False
        seen, number = self._position
        values = {"seen_after": seen, "after": number, "before": before, "most": most}
        rows = [Victim(*row) for row in connection.execute(self._statement, values)]
        found = []
        for row in rows:
            self._position = (row.seen, row.id)
            if which(row):
                found.append(row)
                if len(found) == wanted:
                    return found, True
        if len(rows) < most and before < float("inf"):
            self._empty_before = before
        return found, len(rows) == most

    def again(self) -> None:
        """From the oldest on."""
        self._position, self._empty_before, self._began_at = _START, float("-inf"), time.monotonic()


def _statement(branches: Sequence[ColumnElement[bool]]) -> Select[Any]:
    place, most = tuple_(_task.seen, _task.id), bindparam("most", type_=Integer)
    start = tuple_(bindparam("seen_after", type_=Double), bindparam("after", type_=BigInteger))
    parts = [
        select(*_COLUMNS)
        .where(branch, place > start, _task.seen < bindparam("before", type_=Double))
        .order_by(_task.seen, _task.id)
        .limit(most)
        for branch in branches
    ]
    if len(parts) == 1:
        return parts[0]
    rows = union_all(*(select(each.subquery()) for each in parts)).subquery()
    return select(rows).order_by(rows.c.seen, rows.c.id).limit(most)
