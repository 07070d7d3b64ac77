"""What is too old, or too much, goes: a little at a time, so that writing never waits for it.

Successes go first, failures stay longer. Counters over time (rollups) outlive the tasks they counted.
"""

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy import case
from sqlalchemy import func
from sqlalchemy import literal_column
from sqlalchemy import select

from monitor.records import TaskState
from monitor.settings import Settings
from monitor.store import schema
from monitor.store.drops import Drops
from monitor.store.drops import Oldest
from monitor.store.engine import Deletion
from monitor.store.engine import Store
from monitor.store.engine import force_index_scans
from monitor.store.housekeeping import Counters
from monitor.store.housekeeping import GiveBack
from monitor.store.housekeeping import Pace
from monitor.store.keys import from_key
from monitor.store.messages import expire_messages
from monitor.store.rollups import counting_tasks
from monitor.store.rollups import lock_counters
from monitor.store.schema import STATE_CODES
from monitor.store.terms import cluster_id
from monitor.store.victims import Victim
from monitor.store.victims import Walk

STEP_SECONDS = 0.15  # that the thread which writes is kept busy at once
LEAST, MOST = 200, 10_000  # tasks in a step
MESSAGES = 1000  # in a step
DAY_SECONDS = 86_400.0
OTHERS_SHARE = 0.75  # of keep_tasks, that failures and unfinished tasks may take from the successes
_KEYED = (schema.message, schema.retry)
_SUCCESS = STATE_CODES[TaskState.SUCCESS]


class Step(NamedTuple):
    """What a step came to."""

    keys: list[bytes]  # of the tasks that were deleted one by one, or have another number now
    dropped: int  # tasks that went with their partition
    counters: bool  # counters over time were deleted too
    more: bool  # there is more to do at once


class Retention:
    """Deletes for one cluster. Used by the thread that writes."""

    def __init__(self, store: Store, cluster: str, settings: Settings) -> None:
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._shard = settings.shard
        self._pace = Pace(STEP_SECONDS, LEAST, MOST)
        self._successes = Walk.of_all()
        self._others = Walk.of_others()
        self._counters = Counters()
        self._give_back = GiveBack(store)
        self._count = counting_tasks(store)
        self._delete_tasks = Deletion(store, schema.task.c.id)
        self._delete_runs = Deletion(store, schema.run.c.task_id)
        self._delete_keyed: dict[int, list[Deletion]] = {}
        # What is moved has another number, of which another receiver of the cluster would not know.
        alone = self._shard.total == 1
        self._drops = Drops(self._count, self._forget_keys, possible=alone and not store.is_sqlite)

    def step(self, now: float) -> Step:
        """Deletes what is due and can be deleted within about STEP_SECONDS. Raises StoreUnavailable."""
        began = time.perf_counter()
        with self._store.begin() as connection:
            number = cluster_id(self._store, connection, self._cluster)
            force_index_scans(connection)
            limit = self._pace.number
            oldest = self._drops.oldest(connection, number)
            dropping = oldest is not None and self._is_due(connection, number, now, oldest)
            dropping = dropping and self._drops.step(connection, number, limit)
            victims, more = ([], True) if dropping else self._choose(connection, number, now, limit, oldest)
            self._delete(connection, number, victims)
            first = self._shard.first  # of several receivers; it looks after what is not shared
            expired = expire_messages(connection, number, self._settings, now, MESSAGES) if first else 0
            counters = not more and first and self._counters.delete(connection, number, now)
        if more and not (dropping and self._drops.dropped):  # to drop one says nothing of what a task costs
            self._pace.took(time.perf_counter() - began)
        more |= expired == MESSAGES or self._counters.more
        if victims or expired or counters or self._give_back.more:
            self._give_back.run()
        keys = self._drops.moved if dropping else [victim.key for victim in victims]
        dropped = self._drops.dropped if dropping else 0
        return Step(keys, dropped, counters, more or self._give_back.more)

    def _is_due(self, connection: Connection, number: int, now: float, oldest: Oldest) -> bool:
        if oldest.last < now - self._settings.keep_succeeded_days * DAY_SECONDS:
            return True
        return self._surplus(connection, number)[0] >= oldest.partition.tasks

    def _choose(
        self, connection: Connection, number: int, now: float, limit: int, oldest: Oldest | None
    ) -> tuple[list[Victim], bool]:
        """At most ``limit`` tasks that must go, and whether there are more. What is in partitions waits for them."""
        waits = float("inf") if oldest is None else oldest.first
        old = now - self._settings.keep_succeeded_days * DAY_SECONDS
        victims, more = self._successes.next(connection, min(old, waits), limit, limit, self._success_of(number))
        if not more:
            old = now - self._settings.keep_failed_days * DAY_SECONDS
            others, more = self._others.next(connection, old, limit, limit - len(victims), self._other_of(number))
            victims += others
        if more:
            return victims, True
        found, more = self._choose_surplus(connection, number, limit, len(victims), waits)
        return victims + found, more

    def _choose_surplus(
        self, connection: Connection, number: int, limit: int, gone: int, waits: float
    ) -> tuple[list[Victim], bool]:
        """The oldest of those that are too many, when ``gone`` of this step's ``limit`` are gone."""
        surplus, surplus_of_others = self._surplus(connection, number)
        surplus -= gone
        if surplus <= 0:
            return [], False
        room = min(surplus, limit - gone)
        choices = [(self._successes, room, self._success_of(number))]
        if waits == float("inf"):
            choices.append((self._others, room, self._other_of(number)))
        if surplus_of_others > 0:
            choices.insert(0, (self._others, min(room, surplus_of_others), self._other_of(number)))
        for walk, wanted, which in choices:
            found, more = walk.next(connection, waits, limit, wanted, which)
            if found or more:
                return found, surplus > len(found)
        if waits == float("inf"):
            for walk, *_ in choices:
                walk.again()
        return [], False

    def _surplus(self, connection: Connection, number: int) -> tuple[int, int]:
        """By how many tasks of our share there are too many, and too many that have not succeeded."""
        table = schema.task_count.c
        count = table["count"]
        others = func.sum(case((table.state != _SUCCESS, count), else_=0))
        row = connection.execute(select(func.sum(count), others).where(table.cluster_id == number)).one()
        total, other = (int(each or 0) for each in row)
        surplus = total - self._settings.keep_tasks
        surplus_of_others = other - int(self._settings.keep_tasks * OTHERS_SHARE)
        return -(-surplus // self._shard.total), -(-surplus_of_others // self._shard.total)

    def _delete(self, connection: Connection, number: int, victims: Sequence[Victim]) -> None:
        if not victims:
            return
        self._delete_tasks.run(connection, sorted(each.id for each in victims))
        self._delete_runs.run(connection, sorted(each.id for each in victims if each.earlier_runs))
        self._forget_keys(connection, number, sorted(each.key for each in victims))
        if self._shard.total > 1:
            lock_counters(connection, number)
        places = Counter(each.place for each in victims if each.counted)
        self._count.run(connection, [(number, *place, -count) for place, count in places.items()])

    def _forget_keys(self, connection: Connection, number: int, keys: list[bytes]) -> None:
        for deletion in self._keyed(connection, number):
            deletion.run(connection, keys)

    def _keyed(self, connection: Connection, number: int) -> list[Deletion]:
        """Of the tables that know a task by its key: those that have any of this cluster."""
        if number not in self._delete_keyed:
            mine = [each.c.cluster_id == literal_column(str(number)) for each in _KEYED]
            self._delete_keyed[number] = [
                Deletion(self._store, each.c.key, where) for each, where in zip(_KEYED, mine, strict=True)
            ]
        return [
            deletion
            for table, deletion in zip(_KEYED, self._delete_keyed[number], strict=True)
            if connection.execute(select(table.c.key).where(table.c.cluster_id == number).limit(1)).first() is not None
        ]

    def _success_of(self, number: int) -> Callable[[Victim], bool]:
        return lambda row: row.cluster_id == number and row.state == _SUCCESS and self._is_own(row)

    def _other_of(self, number: int) -> Callable[[Victim], bool]:
        return lambda row: row.cluster_id == number and row.state != _SUCCESS and self._is_own(row)

    def _is_own(self, row: Victim) -> bool:
        return self._shard.total == 1 or self._shard.has(from_key(row.key))
