"""Counters by minute, hour and day, changed by deltas inside the writer's transaction.

A delta is the change of the counters by a batch: what a task counted for before is subtracted, what it counts for now
is added. So a repeated event counts nothing, and a late one corrects the counters.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    update,
)

from celery_monitor.core.failures import FailureSignature, signature
from celery_monitor.core.quantiles import Sketch, bucket, to_bytes
from celery_monitor.records.failure import FailureState
from celery_monitor.records.task import Outcome, Run, Task, TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import PreparedStatement, Store
from celery_monitor.store.schema import STATE_CODES, TERM_KINDS, UNKNOWN
from celery_monitor.store.terms import OTHER, Terms, cluster_ids, term_ids

MINUTE = 60
OUTCOME_FIELDS = {
    Outcome.SUCCEEDED: 2,
    Outcome.FAILED: 3,
    Outcome.RETRIED: 4,
    Outcome.REVOKED: 5,
    Outcome.REJECTED: 6,
    Outcome.REQUEUED: 6,
    Outcome.LOST: 7,
}
COUNT_FIELDS = ("received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "lost")

signature_of = lru_cache(maxsize=2048)(signature)


Place = tuple[int, str | None, str | None, str | None]  # of a roll-up: minute, name, queue, worker


class Tally:
    """Counts and durations that change at one place."""

    __slots__ = ("counts", "run", "since_receipt", "wait")

    def __init__(self) -> None:
        self.counts = [0] * len(COUNT_FIELDS)
        self.since_receipt = 0  # waits counted from receipt
        self.wait: dict[int, int] = defaultdict(int)
        self.run: dict[int, int] = defaultdict(int)

    @property
    def empty(self) -> bool:
        return not (any(self.counts) or self.since_receipt or any(self.wait.values()) or any(self.run.values()))


_NO_TALLY = Tally()
_FAILED, _SUCCEEDED = Outcome.FAILED, Outcome.SUCCEEDED


class FailureTally:
    """How the count of one failure group changes, by minute and worker."""

    __slots__ = ("counts", "first", "last", "latest", "name", "signature", "variants")

    def __init__(self, name: str | None, signature: FailureSignature) -> None:
        self.name = name
        self.signature = signature
        self.counts: dict[tuple[int, str | None], int] = {}
        self.variants: dict[str, int] = {}
        self.first = float("inf")
        self.last = 0.0
        self.latest = 0.0  # the last failure by our clock: a worker's may be an hour behind


class Deltas:
    """The change of all counters in one batch. ``skews``: our clock minus the worker's, in seconds."""

    def __init__(self, skews: Mapping[str, float] | None = None) -> None:
        self._skews = skews or {}
        self.tasks: dict[tuple[TaskState, str | None, str | None, str | None], int] = defaultdict(int)
        self.rollups: dict[Place, Tally] = defaultdict(Tally)
        self.failures: dict[bytes, FailureTally] = {}

    def subtract(self, task: Task) -> None:
        """To be called before a stored task changes."""
        self._count(task, -1)

    def add(self, task: Task) -> None:
        """To be called after a task changed, and for a new one."""
        self._count(task, 1)

    def _count(self, task: Task, sign: int) -> None:
        shown = task.run
        worker = shown.worker if shown is not None else None
        self.tasks[task.state, task.name, task.queue, worker] += sign
        for run in task.runs:
            self._count_run(task, run, sign)

    def _count_run(self, task: Task, run: Run, sign: int) -> None:
        minute, tally = -MINUTE, _NO_TALLY  # most runs are received, started and ended in one minute
        if run.received is not None:
            minute, tally = self._tally(task, run, run.received)
            tally.counts[0] += sign
        if run.started is not None:
            if not minute <= run.started < minute + MINUTE:
                minute, tally = self._tally(task, run, run.started)
            tally.counts[1] += sign
            wait = run.wait
            if wait is not None:
                tally.wait[bucket(wait)] += sign
                if run.ready is None and run.wait_since == "received":
                    tally.since_receipt += sign
        if run.ended is None or run.outcome is None:
            return
        if not minute <= run.ended < minute + MINUTE:
            minute, tally = self._tally(task, run, run.ended)
        field = OUTCOME_FIELDS.get(run.outcome)
        if field is not None:
            tally.counts[field] += sign
        if run.runtime is not None and (run.outcome is _SUCCEEDED or not run.runtime_estimated):
            tally.run[bucket(run.runtime)] += sign
        if run.outcome is _FAILED:
            self._count_failure(task, run, sign)

    def _tally(self, task: Task, run: Run, at: float) -> tuple[int, Tally]:
        minute = int(at) // MINUTE * MINUTE
        message = run.invocation or task  # a run counts under the name that it ran
        return minute, self.rollups[minute, message.name, message.queue, run.worker]

    def _count_failure(self, task: Task, run: Run, sign: int) -> None:
        ended = run.ended or 0.0
        name = (run.invocation or task).name
        found = signature_of(name, run.exception, run.traceback)
        tally = self.failures.get(found.digest)
        if tally is None:
            tally = self.failures[found.digest] = FailureTally(name, found)
        place = (int(ended) // MINUTE * MINUTE, run.worker)
        tally.counts[place] = tally.counts.get(place, 0) + sign
        if found.variant != found.message:
            tally.variants[found.variant] = tally.variants.get(found.variant, 0) + sign
        if sign > 0:
            tally.first = min(tally.first, ended)
            tally.last = max(tally.last, ended)
            tally.latest = max(tally.latest, ended + self._skews.get(run.worker or "", 0.0))


RESOLUTIONS = (60, 3600, 86400)  # seconds
_BUCKETS_IN_MEMORY = 24
_TALLIES_IN_MEMORY = 60_000  # of all buckets but the newest few
# Values of one bucket that are counted apart; what comes later counts under OTHER. So a flood of names cannot make a
# day of roll-ups larger than a reader can add up. Tasks keep their names, and ``task_count`` counts all of them.
MOST_NAMES, MOST_QUEUES, MOST_WORKERS = 5000, 2000, 2000
MOST_KEYS = 20_000  # combinations: further ones count under their name and queue
MOST_GROUPS = 5000  # of failures in one cluster; failures of further causes are one group
_CHUNK = 500
_NAME, _QUEUE, _WORKER = (TERM_KINDS[kind] for kind in ("name", "queue", "worker"))
_KEY = ("resolution", "at", "cluster_id", "name_id", "queue_id", "worker_id")

Key = tuple[int, int, int]  # name, queue, worker
_MOST = (MOST_NAMES, MOST_QUEUES, MOST_WORKERS)


class TallyBucket:
    """The tallies of one span of time, and the values that have their own."""

    def __init__(self, others: Key) -> None:
        self.tallies: defaultdict[Key, Tally] = defaultdict(Tally)
        self._others = others
        self._seen: tuple[set[int], set[int], set[int]] = (set(), set(), set())

    def add(self, key: Key) -> Tally:
        """The tally of this key, which gets one if there is none."""
        for seen, number in zip(self._seen, key, strict=True):
            seen.add(number)
        return self.tallies[key]

    def place(self, key: Key) -> Key:
        """Where this key is counted: beyond the most values of a kind, under OTHER."""
        if key in self.tallies:
            return key
        name, queue, worker = (
            number if number in seen or number == UNKNOWN or len(seen) < most else other
            for number, seen, most, other in zip(key, self._seen, _MOST, self._others, strict=True)
        )
        keys = len(self.tallies)
        if (name, queue, worker) in self.tallies or keys < MOST_KEYS:
            return name, queue, worker
        coarse = (name, queue, self._others[2])
        return coarse if coarse in self.tallies or keys < MOST_KEYS + MOST_NAMES else self._others


class Counters:
    """Applies deltas for one cluster. The only writer of its counters, so what it caches is valid until a rollback."""

    def __init__(self, store: Store, terms: Terms) -> None:
        self._terms = terms
        self._buckets: OrderedDict[tuple[int, int], TallyBucket] = OrderedDict()
        self._groups: dict[bytes, int] = {}
        self._count_tasks = counting_tasks(store)
        self._count_failures = _adding(store, schema.failure_rollup, "count")
        self._count_variants = _adding(store, schema.failure_variant, "count")
        self._variants: dict[int, set[str]] = {}  # stored ones, by failure group
        self._change_group = _changing_group(store)
        self._reopen = _reopening(store)
        self._put_rollup = _replacing(store, schema.rollup, (*COUNT_FIELDS, "wait", "run", "since_receipt"))
        self._store = store

    def forget(self) -> None:
        """Empties all caches, after a rollback."""
        self.forget_rollups()
        self._groups.clear()
        self._variants.clear()

    def forget_rollups(self) -> None:
        """Empties the cache of roll-ups, after old ones were deleted."""
        self._buckets.clear()

    def apply(self, connection: Connection, cluster_id: int, deltas: Deltas) -> None:
        """Changes every counter of the deltas, whose names must be loaded in ``terms``."""
        self._apply_tasks(connection, cluster_id, deltas.tasks)
        self._apply_rollups(connection, cluster_id, deltas.rollups)
        self._apply_failures(connection, deltas.failures.values())

    def group_id(self, digest: bytes) -> int | None:
        """The number of a failure group that ``ensure_groups`` has loaded."""
        return self._groups.get(digest)

    def ensure_groups(self, connection: Connection, cluster_id: int, failures: Mapping[bytes, FailureTally]) -> None:
        """Loads the number of each failure group; new ones get one."""
        new = [digest for digest in failures if digest not in self._groups]
        if not new:
            return
        if len(self._groups) > 2 * MOST_GROUPS:
            self._groups.clear()
            self._variants.clear()
            new = list(failures)
        self._find_groups(connection, cluster_id, new)
        missing = [digest for digest in new if digest not in self._groups]
        if missing:
            table = schema.failure_group
            counted = select(func.count()).select_from(table).where(table.c.cluster_id == cluster_id)
            room = max(0, MOST_GROUPS - int(connection.execute(counted).scalar_one()))
            for digest in missing[:room]:
                self._groups[digest] = self._make_group(connection, cluster_id, digest, failures[digest])
            if beyond := missing[room:]:
                other = self._other_group(connection, cluster_id, [failures[digest] for digest in beyond])
                self._groups.update(dict.fromkeys(beyond, other))

    def _find_groups(self, connection: Connection, cluster_id: int, digests: Sequence[bytes]) -> None:
        table = schema.failure_group.c
        mine = select(table.signature, table.id).where(table.cluster_id == cluster_id)
        for start in range(0, len(digests), _CHUNK):
            rows = connection.execute(mine.where(table.signature.in_(digests[start : start + _CHUNK])))
            self._groups.update((bytes(row.signature), row.id) for row in rows)

    def _other_group(self, connection: Connection, cluster_id: int, tallies: Sequence[FailureTally]) -> int:
        """The group of all failures that came after the cluster had MOST_GROUPS groups."""
        message = f"Failures of other causes than the first {MOST_GROUPS:,}, counted together"
        digest = OTHER.encode()
        tally = FailureTally(None, FailureSignature(OTHER, message, None, digest, message))
        tally.first, tally.last = min(each.first for each in tallies), max(each.last for each in tallies)
        return self._make_group(connection, cluster_id, digest, tally)

    def _apply_tasks(
        self,
        connection: Connection,
        cluster_id: int,
        tasks: Mapping[tuple[TaskState, str | None, str | None, str | None], int],
    ) -> None:
        term = self._terms.id
        rows = [
            (cluster_id, STATE_CODES[state], term(_NAME, name), term(_QUEUE, queue), term(_WORKER, worker), count)
            for (state, name, queue, worker), count in tasks.items()
            if count
        ]
        self._count_tasks.run(connection, rows)

    def _apply_rollups(self, connection: Connection, cluster_id: int, rollups: Mapping[Place, Tally]) -> None:
        term = self._terms.id
        changed: dict[tuple[int, int], dict[Key, list[Tally]]] = defaultdict(lambda: defaultdict(list))
        for place, delta in rollups.items():
            if delta.empty:
                continue
            minute, name, queue, worker = place
            key = (term(_NAME, name), term(_QUEUE, queue), term(_WORKER, worker))
            for resolution in RESOLUTIONS:
                changed[resolution, minute // resolution * resolution][key].append(delta)
        rows = []
        for (resolution, at), deltas in changed.items():
            bucket = self._bucket(connection, cluster_id, resolution, at)
            tallies: dict[Key, Tally] = {}
            for key, added in deltas.items():
                counted = bucket.place(key)
                tally = tallies[counted] = bucket.add(counted)
                for delta in added:
                    _add(tally, delta)
            rows += [(resolution, at, cluster_id, *each, *_values(tally)) for each, tally in tallies.items()]
        self._put_rollup.run(connection, rows)
        self._shrink()

    def _shrink(self) -> None:
        """Removes the buckets that were not used the longest; those of the current time stay."""
        tallies = sum(len(each.tallies) for each in self._buckets.values())
        while len(self._buckets) > _BUCKETS_IN_MEMORY or (
            tallies > _TALLIES_IN_MEMORY and len(self._buckets) > len(RESOLUTIONS)
        ):
            _, bucket = self._buckets.popitem(last=False)
            tallies -= len(bucket.tallies)

    def _bucket(self, connection: Connection, cluster_id: int, resolution: int, at: int) -> TallyBucket:
        found = self._buckets.get((resolution, at))
        if found is None:
            others = self._terms.others(connection)
            found = self._buckets[resolution, at] = _load_bucket(connection, cluster_id, resolution, at, others)
        else:
            self._buckets.move_to_end((resolution, at))
        return found

    def _apply_variants(self, connection: Connection, tallies: Iterable[FailureTally]) -> None:
        rows: dict[tuple[int, str], int] = defaultdict(int)
        for tally in tallies:
            group = self._groups[tally.signature.digest]
            for message, count in tally.variants.items():
                rows[group, self._variant(connection, group, message)] += count
        self._count_variants.run(connection, [(*place, count) for place, count in rows.items() if count])

    def _variant(self, connection: Connection, group: int, message: str) -> str:
        """The message if it is among the first of its group, else the empty one that stands for all others."""
        stored = self._variants.get(group)
        if stored is None or (message not in stored and len(stored) < schema.MOST_VARIANTS):
            table = schema.failure_variant.c
            messages = select(table.message).where(table.group_id == group, table.message != "")
            stored = self._variants[group] = set(connection.execute(messages).scalars())
        if message in stored:
            return message
        if len(stored) >= schema.MOST_VARIANTS:
            return ""
        stored.add(message)
        return message

    def _apply_failures(self, connection: Connection, tallies: Collection[FailureTally]) -> None:
        rows: dict[tuple[int, int, int, int], int] = defaultdict(int)
        changes, failed = [], []
        for tally in tallies:
            group = self._groups[tally.signature.digest]
            for (minute, worker), count in tally.counts.items():
                for resolution in RESOLUTIONS:
                    at = minute // resolution * resolution
                    rows[resolution, at, group, self._terms.id(_WORKER, worker)] += count
            if any(tally.counts.values()):
                changes.append((sum(tally.counts.values()), tally.first, tally.last, group))
            if any(count > 0 for count in tally.counts.values()):
                failed.append((tally.latest, group))
        self._count_failures.run(connection, [(*place, count) for place, count in rows.items() if count])
        self._apply_variants(connection, tallies)
        self._change_group.run(connection, changes)
        self._reopen.run(connection, failed)

    def _make_group(self, connection: Connection, cluster_id: int, digest: bytes, tally: FailureTally) -> int:
        table = schema.failure_group
        values = {
            "cluster_id": cluster_id,
            "signature": digest,
            "name": tally.name,
            "exception_type": tally.signature.exception_type,
            "message": tally.signature.message,
            "frame": tally.signature.frame,
            "first_seen": tally.first if tally.last else 0.0,
            "last_seen": tally.last,
        }
        connection.execute(self._store.insert(table).values(values).on_conflict_do_nothing())
        statement = select(table.c.id).where(table.c.cluster_id == cluster_id, table.c.signature == digest)
        number: int = connection.execute(statement).scalar_one()
        return number


def read_bounds(store: Store, cluster: str, now: float) -> tuple[int, bool]:
    """The number of a cluster's failure groups, and whether roll-ups of the last hour have something under OTHER."""
    rollup, group = schema.rollup.c, schema.failure_group.c
    columns = {"name": rollup.name_id, "queue": rollup.queue_id, "worker": rollup.worker_id}
    with store.read() as connection:
        clusters = cluster_ids(connection, cluster)
        count = connection.execute(select(func.count(group.id)).where(group.cluster_id.in_(clusters))).scalar_one()
        wanted = [column.in_(term_ids(connection, kind, [OTHER])) for kind, column in columns.items()]
        recent = (rollup.resolution == RESOLUTIONS[1], rollup.at > now - 2 * RESOLUTIONS[1])
        found = select(rollup.at).where(*recent, rollup.cluster_id.in_(clusters), or_(*wanted)).limit(1)
        return int(count), connection.execute(found).first() is not None


def _reopening(store: Store) -> PreparedStatement:
    """Reopens a resolved group at a failure after its resolution; a late event of an earlier failure does not."""
    table = schema.failure_group
    failed_at = bindparam("failed_at", type_=Double)
    resolved: ColumnElement[str] = literal_column(f"'{FailureState.RESOLVED}'")
    regressed: ColumnElement[str] = literal_column(f"'{FailureState.REGRESSED}'")
    returned = (table.c.id == bindparam("group"), table.c.state == resolved, table.c.state_at < failed_at)
    statement = update(table).where(*returned).values(state=regressed, state_at=failed_at)
    return PreparedStatement(store, statement, ["failed_at", "group"])


def _load_bucket(connection: Connection, cluster_id: int, resolution: int, at: int, others: Key) -> TallyBucket:
    table = schema.rollup
    statement = select(table).where(
        table.c.resolution == resolution, table.c.at == at, table.c.cluster_id == cluster_id
    )
    bucket = TallyBucket(others)
    for row in connection.execute(statement):
        tally = bucket.add((row.name_id, row.queue_id, row.worker_id))
        tally.counts = [getattr(row, field) for field in COUNT_FIELDS]
        tally.since_receipt = row.started if row.since_receipt is None else row.since_receipt
        tally.wait.update(Sketch.from_bytes(row.wait).counts)
        tally.run.update(Sketch.from_bytes(row.run).counts)
    return bucket


def _add(tally: Tally, delta: Tally) -> None:
    for at, count in enumerate(delta.counts):
        if count:
            tally.counts[at] += count
    tally.since_receipt += delta.since_receipt
    for counts, more in ((tally.wait, delta.wait), (tally.run, delta.run)):
        for number, count in more.items():
            counts[number] += count
            if not counts[number]:
                del counts[number]


def _values(tally: Tally) -> tuple[object, ...]:
    return (*tally.counts, to_bytes(tally.wait), to_bytes(tally.run), tally.since_receipt)


def counting_tasks(store: Store) -> PreparedStatement:
    """Adds to task_count; rows have the values of its columns in order."""
    return _adding(store, schema.task_count, "count")


def _adding(store: Store, table: object, column: str) -> PreparedStatement:
    """An insert that adds to the stored value."""
    statement = store.insert(table)  # type: ignore[arg-type]
    keys = [each.name for each in statement.table.primary_key]
    total = statement.table.c[column] + statement.excluded[column]
    return PreparedStatement(
        store, statement.on_conflict_do_update(index_elements=keys, set_={column: total}), [*keys, column]
    )


def _changing_group(store: Store) -> PreparedStatement:
    """Adds to the count of a failure group and extends its first and last time."""
    table = schema.failure_group
    first, last = bindparam("first", type_=Double), bindparam("last", type_=Double)
    statement = (
        update(table)
        .where(table.c.id == bindparam("group"))
        .values(
            count=table.c["count"] + bindparam("added", type_=BigInteger),
            first_seen=case((table.c.first_seen > first, first), else_=table.c.first_seen),
            last_seen=case((table.c.last_seen < last, last), else_=table.c.last_seen),
        )
    )
    return PreparedStatement(store, statement, ["added", "first", "last", "group"])


def _replacing(store: Store, table: object, columns: tuple[str, ...]) -> PreparedStatement:
    """An insert that overwrites the stored values."""
    statement = store.insert(table)  # type: ignore[arg-type]
    changes = {name: statement.excluded[name] for name in columns}
    return PreparedStatement(
        store, statement.on_conflict_do_update(index_elements=list(_KEY), set_=changes), [*_KEY, *columns]
    )
