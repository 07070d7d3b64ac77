"""Whole partitions that go at once: PostgreSQL only. What must live longer is moved out of them first, in steps."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy import NestedTransaction
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from monitor.store.engine import Prepared
from monitor.store.partitions import Partition
from monitor.store.partitions import drop
from monitor.store.partitions import first_id
from monitor.store.partitions import keep
from monitor.store.partitions import lock
from monitor.store.partitions import partitions

LONGEST_SECONDS = 86_400.0  # from the oldest to the newest of a partition that goes as a whole
LOCK_MILLISECONDS = 300  # that readers may keep us waiting, and we them
_PLACE = "cluster_id, state, name_id, queue_id, worker_id"


class Oldest(NamedTuple):
    """The oldest full partition of a cluster, if it was filled within a day: its tasks go as a whole."""

    partition: Partition
    first: float  # when the oldest of its tasks was seen
    last: float


class Drops:
    """For one cluster. ``count`` adds to task_count; ``forget_keys`` deletes what knows tasks by their keys."""

    def __init__(
        self, count: Prepared, forget_keys: Callable[[Connection, int, list[bytes]], None], *, possible: bool
    ) -> None:
        self._possible = possible
        self._count = count
        self._forget_keys = forget_keys
        self._oldest: Oldest | None = None
        self._position = 0  # up to here nothing knows its tasks by their keys any more
        self.moved: list[bytes] = []  # keys of tasks that have another number since the last step
        self.dropped = 0  # tasks, in the last step

    def oldest(self, connection: Connection, number: int) -> Oldest | None:
        """What goes next as a whole, when it is due: until then nothing that is younger goes either."""
        if not self._possible:
            return None
        there = partitions(connection, number)
        if len(there) < 2 or (self._oldest is not None and self._oldest.partition == there[0]):
            return self._oldest
        self._oldest, self._position = _full(connection, number, there[0]), 0
        return self._oldest

    def step(self, connection: Connection, number: int, limit: int) -> bool:
        """A step towards dropping the oldest; False where that is not possible now."""
        self.moved, self.dropped = [], 0
        if self._oldest is None:
            return False
        partition = self._oldest.partition
        self.moved = keep(connection, partition, limit)
        if len(self.moved) == limit:
            return True
        if self._forget(connection, number, partition, limit):
            return True
        try:
            # To count takes long, which neither is done in vain nor while readers wait: so the lock is tried first, let
            # go of, and taken again when it is known what goes.
            with _limited(connection) as trial:
                lock(connection, partition)
                trial.rollback()
            with _limited(connection):
                self.dropped = self._drop(connection, partition)
        except OperationalError:  # somebody reads it just now
            return False
        self._oldest = None
        return True

    def _forget(self, connection: Connection, number: int, partition: Partition, limit: int) -> bool:
        """Messages and links of retries; whether there are more tasks to look at."""
        rows = connection.execute(
            text(f"SELECT id, key FROM task{partition.suffix} WHERE id > :after ORDER BY id LIMIT :most"),  # noqa: S608
            {"after": self._position, "most": limit},
        ).all()
        if rows:
            self._position = rows[-1].id
            self._forget_keys(connection, number, [bytes(row.key) for row in rows])
        return len(rows) == limit

    def _drop(self, connection: Connection, partition: Partition) -> int:
        places = connection.exec_driver_sql(
            f"SELECT {_PLACE}, count(*) FROM task{partition.suffix} GROUP BY {_PLACE}"  # noqa: S608
        ).all()
        self._count.run(connection, [(*row[:5], -row[5]) for row in places])
        drop(connection, partition)
        return sum(row[5] for row in places)


@contextmanager
def _limited(connection: Connection) -> Iterator[NestedTransaction]:
    """Inside, who waits for a lock for longer than may be gets OperationalError."""
    with connection.begin_nested() as nested:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
        yield nested


def _full(connection: Connection, number: int, partition: Partition) -> Oldest | None:
    """Where it is full, and was so within a day. What takes longer is deleted task by task, to the day."""
    later = text("SELECT 1 FROM task WHERE id >= :high AND id < :end LIMIT 1")
    if connection.execute(later, {"high": partition.high, "end": first_id(number + 1)}).first() is None:
        return None
    span = text(f"SELECT min(seen), max(seen) FROM task{partition.suffix}")  # noqa: S608
    first, last = connection.execute(span).one()
    if first is None:
        return Oldest(partition, float("-inf"), float("-inf"))
    return Oldest(partition, first, last) if last - first <= LONGEST_SECONDS else None
