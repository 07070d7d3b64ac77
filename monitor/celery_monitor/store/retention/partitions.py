"""On PostgreSQL, tasks and runs are partitioned by the id of the task's row, so that many are dropped as one table.

Each cluster has a range of ids, divided into partitions of equal size. Below all of them is the *kept* partition: tasks
from before there were partitions, and failures and unfinished tasks that outlive their partition; their ids are
negative, in the same order. docs/scaling.md has the costs. SQLite has no partitions.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, NestedTransaction, and_, literal_column, select, text
from sqlalchemy.exc import OperationalError

from celery_monitor.store import schema
from celery_monitor.store.engine import PreparedStatement, Store
from celery_monitor.store.schema import CLUSTER_SHIFT, KEPT

CLUSTER_BITS = 6  # lowest bits of an id: receivers of several clusters assign ids independently
MOST, LEAST = 1_000_000, 10_000  # tasks in a partition
PARTITIONS = 10  # of a full record; a lookup by key goes through all of them
AHEAD = 5000  # tasks for which there is room in advance
KEPT_OFFSET = 1 << 62
LONGEST_SECONDS = 86_400.0  # between the oldest and newest task of a partition that is dropped as a whole
LOCK_MILLISECONDS = 300  # of waiting for readers, and of readers for us
_LAST_BITS = (1 << CLUSTER_BITS) - 1
_PARENTS = (schema.task.c.id, schema.run.c.task_id)
_PLACE = "cluster_id, state, name_id, queue_id, worker_id"
_BOUNDS = re.compile(r"FROM \('?(\d+)'?\) TO \('?(\d+)'?\)").search
_LIST = text(
    "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds FROM pg_inherits i"
    " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = CAST('task' AS regclass) AND c.relname ~ :name"
)


class Partition(NamedTuple):
    """Ids from ``low`` to below ``high``."""

    low: int
    high: int
    suffix: str  # of the names of its tables

    @property
    def tasks(self) -> int:
        """How many tasks it has room for."""
        return (self.high - self.low) >> CLUSTER_BITS


def first_id(cluster: int) -> int:
    """Where the ids of a cluster begin on PostgreSQL."""
    return cluster << CLUSTER_SHIFT


def first_number(store: Store, cluster: int) -> int:
    """Where they begin in this database: on SQLite, clusters that differ in the last bits share a range."""
    return first_id(cluster >> CLUSTER_BITS if store.is_sqlite else cluster)


def newest_id(store: Store, connection: Connection, cluster: int) -> int | None:
    """The largest id of a cluster, the kept partition excepted."""
    number = schema.task.c.id
    if store.is_sqlite:  # its plan for max() would read the whole index of keys
        end = first_number(store, cluster) + first_id(1)
        mine = and_(number < end, schema.task.c.cluster_id + literal_column("0") == cluster)
    else:
        mine = and_(number >= first_id(cluster), number < first_id(cluster + 1))
    return connection.execute(select(number).where(mine).order_by(number.desc()).limit(1)).scalar()


def _newest_of_these_bits(connection: Connection, first: int, cluster: int) -> int | None:
    """The largest id with a cluster's bits from ``first`` on: earlier versions numbered all clusters in one range."""
    number = schema.task.c.id
    mine = number.bitwise_and(_LAST_BITS) == cluster & _LAST_BITS
    inside = (number >= first, number < first + first_id(1))
    return connection.execute(select(number).where(*inside, mine).order_by(number.desc()).limit(1)).scalar()


def span_of(keep_tasks: int) -> int:
    """Tasks in a partition, for a record of so many tasks."""
    return max(LEAST, min(MOST, keep_tasks // PARTITIONS))


def partitions(connection: Connection, cluster: int) -> list[Partition]:
    """The partitions of a cluster, the oldest first."""
    found = []
    for row in connection.execute(_LIST, {"name": f"^task_{cluster}_[0-9]+$"}):
        bounds = _BOUNDS(row.bounds)
        if bounds is None:
            raise ValueError(f"partition {row.relname} has the bounds {row.bounds!r}")
        found.append(Partition(int(bounds[1]), int(bounds[2]), row.relname.removeprefix("task")))
    return sorted(found)


def create_partition(connection: Connection, cluster: int, low: int, tasks: int) -> Partition:
    """Creates a partition for ``tasks`` from ``low`` on. It is attached when complete, so that readers do not wait."""
    high = low + (tasks << CLUSTER_BITS)
    made = Partition(low, high, f"_{cluster}_{(low - first_id(cluster)) >> CLUSTER_BITS}")
    for column in _PARENTS:
        parent, table = column.table.name, f"{column.table.name}{made.suffix}"
        mine = f", CHECK (cluster_id = {cluster})" if parent == "task" else ""
        inside = f"CHECK ({column.name} >= {low} AND {column.name} < {high}){mine}"
        connection.exec_driver_sql(
            f"CREATE TABLE {table} (LIKE {parent} INCLUDING DEFAULTS INCLUDING INDEXES, {inside})"
        )
        if parent == "task":
            connection.exec_driver_sql(f"CREATE UNIQUE INDEX {table}_key ON {table} (cluster_id, key)")
        connection.exec_driver_sql(f"ALTER TABLE {parent} ATTACH PARTITION {table} FOR VALUES FROM ({low}) TO ({high})")
    return made


def force_index_lookups(connection: Connection) -> None:
    """For this transaction: a new partition has no statistics for the planner."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;"
            " SET LOCAL jit = off"
        )


class TaskIds:
    """Assigns ids to new tasks of one cluster, and creates partitions for them. For its only writer."""

    def __init__(self, store: Store, keep_tasks: int) -> None:
        self._store = store
        self._span = span_of(keep_tasks)
        self._next: int | None = None
        self._until: int | None = None  # partitions exist below this id

    def forget(self) -> None:
        """After a rollback: assigned ids and created partitions are gone."""
        self._next = self._until = None

    def assign(self, connection: Connection, cluster: int, count: int) -> list[int]:
        """The ids of ``count`` new tasks, in order."""
        if not count:
            return []
        first = self._first_free(connection, cluster) if self._next is None else self._next
        self._next = first + count
        self.make_partitions(connection, cluster, self._next)
        start = first_number(self._store, cluster)
        return [start + (number << CLUSTER_BITS | cluster & _LAST_BITS) for number in range(first, self._next)]

    def _first_free(self, connection: Connection, cluster: int) -> int:
        """The number of the next task: an id is a number and the cluster's bits."""
        first = first_number(self._store, cluster)
        if self._store.is_sqlite:
            newest = _newest_of_these_bits(connection, first, cluster) or first
        else:
            there = partitions(connection, cluster)
            newest = max(newest_id(self._store, connection, cluster) or first, there[0].low if there else first)
        return (newest - first >> CLUSTER_BITS) + 1

    def make_partitions(self, connection: Connection, cluster: int, number: int) -> None:
        """Creates missing partitions for tasks up to this number and AHEAD more."""
        end = first_id(cluster) + (number + AHEAD << CLUSTER_BITS)
        if self._store.is_sqlite or (self._until is not None and self._until >= end):
            return
        there = partitions(connection, cluster)
        self._until = there[-1].high if there else first_id(cluster)
        while self._until < end:
            self._until = create_partition(connection, cluster, self._until, self._span).high


class FullPartition(NamedTuple):
    """A partition that was filled within LONGEST_SECONDS, so that it can be dropped as a whole."""

    partition: Partition
    first: float  # sort_time of its oldest task; -inf where none is left
    last: float


class Dropped(NamedTuple):
    """Result of one step towards dropping a partition."""

    moved: list[bytes]  # keys of tasks that were moved to the kept partition
    dropped: int = 0  # tasks
    blocked: bool = False  # only readers keep it from being dropped


class PartitionDrops:
    """Drops the oldest partitions of one cluster in steps: tasks that must be kept are moved out first.

    ``count`` adds to task_count; ``delete_keyed`` deletes the rows that refer to tasks by key.
    """

    def __init__(
        self, count: PreparedStatement, delete_keyed: Callable[[Connection, int, Sequence[bytes]], None]
    ) -> None:
        self._count = count
        self._delete_keyed = delete_keyed
        self._oldest: FullPartition | None = None
        self._position = 0  # up to this id, no rows refer to its tasks by key

    def oldest(self, connection: Connection, cluster: int) -> FullPartition | None:
        """The next to drop. Until then, no succeeded task that is younger may be deleted. None on SQLite."""
        if connection.dialect.name == "sqlite":
            return None
        there = partitions(connection, cluster)
        if len(there) < 2 or (self._oldest is not None and self._oldest.partition == there[0]):
            return self._oldest
        self._oldest, self._position = _full(connection, cluster, there[0]), 0
        return self._oldest

    def step(self, connection: Connection, cluster: int, partition: Partition, limit: int) -> Dropped:
        """Moves or clears at most ``limit`` tasks of the oldest partition, or drops it when none is left."""
        moved = _move_kept(connection, partition, limit)
        if len(moved) == limit or self._clear(connection, cluster, partition, limit):
            return Dropped(moved)
        try:
            # Counting takes long, so it must not be in vain, nor make readers wait: the lock is tried, released, and
            # taken again after counting.
            with _lock_timeout(connection) as trial:
                _lock(connection, partition)
                trial.rollback()
            with _lock_timeout(connection):
                dropped = self._drop(connection, partition)
        except OperationalError:
            return Dropped(moved, blocked=True)
        self._oldest = None
        return Dropped(moved, dropped)

    def _clear(self, connection: Connection, cluster: int, partition: Partition, limit: int) -> bool:
        """Deletes messages and links of its tasks; whether there are more tasks to clear."""
        rows = connection.execute(
            text(f"SELECT id, key FROM task{partition.suffix} WHERE id > :after ORDER BY id LIMIT :most"),  # noqa: S608
            {"after": self._position, "most": limit},
        ).all()
        if rows:
            self._position = rows[-1].id
            self._delete_keyed(connection, cluster, [bytes(row.key) for row in rows])
        return len(rows) == limit

    def _drop(self, connection: Connection, partition: Partition) -> int:
        places = connection.exec_driver_sql(
            f"SELECT {_PLACE}, count(*) FROM task{partition.suffix} GROUP BY {_PLACE}"  # noqa: S608
        ).all()
        self._count.run(connection, [(*row[:5], -row[5]) for row in places])
        for column in _PARENTS:
            connection.exec_driver_sql(f"DROP TABLE {column.table.name}{partition.suffix}")
        return sum(row[5] for row in places)


def _full(connection: Connection, cluster: int, partition: Partition) -> FullPartition | None:
    """The partition if it is full and was filled within LONGEST_SECONDS; others are deleted task by task."""
    later = text("SELECT 1 FROM task WHERE id >= :high AND id < :end LIMIT 1")
    if connection.execute(later, {"high": partition.high, "end": first_id(cluster + 1)}).first() is None:
        return None
    span = text(f"SELECT min(sort_time), max(sort_time) FROM task{partition.suffix}")  # noqa: S608
    first, last = connection.execute(span).one()
    if first is None:
        return FullPartition(partition, float("-inf"), float("-inf"))
    return FullPartition(partition, first, last) if last - first <= LONGEST_SECONDS else None


def _move_kept(connection: Connection, partition: Partition, limit: int) -> list[bytes]:
    """Moves at most ``limit`` tasks that have not succeeded to the kept partition; returns their keys."""
    tasks, runs = (", ".join(each.name for each in column.table.columns if each is not column) for column in _PARENTS)
    source, runs_source = (f"{column.table.name}{partition.suffix}" for column in _PARENTS)
    target, runs_target = (f"{column.table.name}{KEPT}" for column in _PARENTS)
    some = f"SELECT id FROM {source} WHERE {schema.NOT_SUCCEEDED} LIMIT {limit}"  # noqa: S608
    take = f"DELETE FROM {source} WHERE id = ANY(ARRAY({some})) RETURNING *"  # noqa: S608
    put = f"INSERT INTO {target} (id, {tasks}) SELECT id - {KEPT_OFFSET}, {tasks} FROM moved"  # noqa: S608
    moved = connection.exec_driver_sql(f"WITH moved AS ({take}) {put} RETURNING id, key").all()
    take = f"DELETE FROM {runs_source} WHERE task_id = ANY(%(ids)s) RETURNING *"  # noqa: S608
    put = f"INSERT INTO {runs_target} (task_id, {runs}) SELECT task_id - {KEPT_OFFSET}, {runs} FROM moved"  # noqa: S608
    connection.exec_driver_sql(f"WITH moved AS ({take}) {put}", {"ids": [row.id + KEPT_OFFSET for row in moved]})
    return [bytes(row.key) for row in moved]


@contextmanager
def _lock_timeout(connection: Connection) -> Iterator[NestedTransaction]:
    """Inside, waiting for a lock for longer than LOCK_MILLISECONDS raises OperationalError."""
    with connection.begin_nested() as nested:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
        yield nested


def _lock(connection: Connection, partition: Partition) -> None:
    """Takes the locks that dropping takes, in the same order."""
    for column in _PARENTS:
        parent = column.table.name
        connection.exec_driver_sql(f"LOCK TABLE ONLY {parent}, {parent}{partition.suffix} IN ACCESS EXCLUSIVE MODE")
