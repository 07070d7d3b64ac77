"""The only writer of tasks: events in, rows out, one transaction a batch.

The transaction has everything that a batch changes: tasks, runs, counters, failure groups, workers and the receiver's
own state. So a repeated event changes nothing, and a count never disagrees with a list.
"""

import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec
from sqlalchemy import Connection, bindparam, select, update

from celery_monitor.core.lifecycle import CAPTURED, REMOVED, fold, is_lifecycle
from celery_monitor.core.sanitize import Sanitizer
from celery_monitor.core.waits import Senders, set_ready_times
from celery_monitor.core.workers import Clocks, after_setting, fold_worker, process_of
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, Gap, ReceiverHealth
from celery_monitor.records.task import Outcome, Task, TaskState
from celery_monitor.records.worker import Worker
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import KeyTaken, PreparedStatement, Store
from celery_monitor.store.receivers import put_health, put_reconciliation
from celery_monitor.store.retention.partitions import TaskIds, force_index_lookups
from celery_monitor.store.rollups.counters import Counters, Deltas, signature_of
from celery_monitor.store.rollups.totals import Observed, Totals
from celery_monitor.store.schema import STATE_CODES, TERM_KINDS
from celery_monitor.store.tasks.detail import delete_removals, removals, save_messages
from celery_monitor.store.tasks.keys import from_key
from celery_monitor.store.tasks.rows import (
    CHANGING_COLUMNS,
    RUN_COLUMNS,
    TASK_COLUMNS,
    TaskCache,
    names_of,
    run_row,
    task_row,
    task_values,
)
from celery_monitor.store.tasks.unfinished import ids_without_queue
from celery_monitor.store.terms import Terms, cluster_id
from celery_monitor.store.workers import (
    MOST_WORKERS,
    change_workers,
    load_workers,
    make_room,
    save_worker_starts,
    save_workers,
    unpack_worker,
)

MOST_PENDING = 10_000  # captured messages without a task; beyond, the oldest are dropped


class PendingCaptures:
    """Captured messages, without bodies, that arrive before any event of their task: workers buffer only the events."""

    def __init__(self) -> None:
        self._events: OrderedDict[str, Event] = OrderedDict()

    def add(self, task_id: str, event: Event) -> None:
        if event.message is not None:
            message = msgspec.structs.replace(event.message, body=None)
            self._events[task_id] = msgspec.structs.replace(event, message=message)
        if len(self._events) > MOST_PENDING:
            self._events.popitem(last=False)

    def apply_to(self, task: Task) -> None:
        """Folds the message into a new task. It stays pending, as the transaction may fail."""
        if self._events and (event := self._events.get(task.id)) is not None:
            fold(task, event)


SOLE_QUEUE_SECONDS = 2.0
LATE_SENT_SECONDS = 60.0  # by which task-sent may arrive after the message was removed
_CHUNK = 500
_FAILED = Outcome.FAILED
_WORKER = TERM_KINDS["worker"]
_NOT_FROM_WORKER = frozenset({CAPTURED, "task-sent", "task-due", "task-queue-discovered"})


@dataclass
class WriteResult:
    """Counts of one batch."""

    events: int = 0
    tasks: int = 0
    refused: int = 0  # events without a time or a task id
    unknown: int = 0  # events of unknown types
    new_workers: int = 0  # worker processes that were not recorded before
    health: ReceiverHealth | None = None  # as stored, with this batch counted


@dataclass
class Batch:
    """Events by task and by worker, events with captured messages, and gaps that events were concluded from."""

    by_task: dict[str, list[Event]] = field(default_factory=dict)
    by_worker: dict[str, list[tuple[Event, float]]] = field(default_factory=dict)
    captured: list[Event] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


class Writer:
    """Writes the events of one cluster. One at a time for each cluster."""

    def __init__(self, store: Store, cluster: str, settings: Settings) -> None:
        self._store = store
        self._cluster = cluster
        self._cache = TaskCache(cluster)
        self._sanitizer = Sanitizer(settings.max_text, settings.redact, settings.max_message_bytes)
        self._capture = settings.capture
        self._pending = PendingCaptures()
        self._clocks = Clocks()
        self.senders = Senders()
        self._ids = TaskIds(store, settings.keep_tasks)
        self._terms = Terms(store)
        self._counters = Counters(store, self._terms)
        self._totals = Totals(store, self._terms)
        self._by_worker = settings.metrics_by_worker
        self._cluster_id: int | None = None
        self._skews: dict[str, float] = {}  # of recorded workers, in seconds
        self._sole_queues: dict[str, str] = {}
        self._sole_queues_at = 0.0
        self._new_sole: set[str] = set()  # workers whose sole queue was just discovered
        self._insert_task = PreparedStatement(store, schema.task.insert(), TASK_COLUMNS)
        self._update_task = _updating_task(store)
        self._insert_run = PreparedStatement(store, schema.run.insert(), RUN_COLUMNS)

    def write(self, deliveries: Sequence[Delivery], health: ReceiverHealth | None = None) -> WriteResult:
        """Stores a batch in one transaction, with the receiver's health and this batch's counts in it.

        Raises StoreUnavailable; then nothing of the batch is stored, and it can be written again.
        """
        written = WriteResult()
        batch = self._sort(deliveries, written)
        if health is not None:
            written.health = msgspec.structs.replace(
                health,
                unknown_total=health.unknown_total + written.unknown,
                malformed_total=health.malformed_total + written.refused,
                malformed_at=health.updated_at if written.refused else health.malformed_at,
            )
        with self._forget_on_error():
            try:
                # With partitions, no constraint notices a key that exists in another partition.
                self._commit(batch, written, look_up_all=not self._store.is_sqlite)
            except KeyTaken:  # a task assumed to be new is stored already
                self.forget()
                self._commit(batch, written, look_up_all=True)
        return written

    def _commit(self, batch: Batch, written: WriteResult, *, look_up_all: bool) -> None:
        with self._store.begin() as connection:
            number = self._begin(connection)
            written.new_workers = self._write_workers(connection, number, batch.by_worker)
            tasks = self._write_tasks(connection, number, batch.by_task, look_up_all=look_up_all)
            if self._capture and batch.captured:
                save_messages(self._store, connection, number, batch.captured)
            for gap in batch.gaps:
                put_reconciliation(connection, gap)
            if written.health is not None:
                put_health(self._store, connection, number, written.health)
        self._cache.remember(tasks)
        written.tasks = len(tasks)

    @contextmanager
    def _forget_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.forget()
            raise

    def lag(self, deliveries: Sequence[Delivery], now: float) -> float:
        """Seconds since the newest of these events was sent, by our clock; 0 where every sender's skew is unknown."""
        sent = [
            event.timestamp + self._skews[event.hostname]
            for delivery in deliveries
            for event in delivery.events[-1:]
            if event.hostname in self._skews
        ]
        return max(0.0, now - max(sent)) if sent else 0.0

    def mark_due(self, now: float) -> int:
        """Ends SCHEDULED for tasks whose ETA has passed; returns how many, at most a chunk."""
        table = schema.task
        with self._store.read() as connection:
            statement = (
                select(table.c.key)
                .where(table.c.state == STATE_CODES[TaskState.SCHEDULED], table.c.eta <= now)
                .order_by(table.c.eta)
                .limit(_CHUNK)
            )
            ids = [from_key(key) for key in connection.execute(statement).scalars()]
        self._write_own_events("task-due", ids, now)
        return len(ids)

    def conclude_removals(self, now: float) -> int:
        """Writes the end of tasks whose messages were deleted from here; returns how many, at most a chunk."""
        with self._store.read() as connection:
            recorded = removals(connection, self._cluster, _CHUNK)
        events = [
            Event(type=REMOVED, timestamp=each.at, hostname="", uuid=each.id, exception=each.text)
            for each in recorded
            if each.stored
        ]
        if events:
            self.write([Delivery(events=events, arrived=now, concluded=True)])
        # Concluding twice changes nothing. An unknown task may be about to arrive.
        done = [each for each in recorded if each.stored or now - each.at > LATE_SENT_SECONDS]
        if done:
            delete_removals(self._store, self._cluster, done)
        return len(events)

    def set_missing_queues(self, now: float) -> None:
        """Sets the queue of tasks that came before their worker was known to consume a single queue."""
        if self._new_sole:
            ids = ids_without_queue(self._store, self._cluster, self._new_sole)
            self._write_own_events("task-queue-discovered", ids, now)
            self._new_sole = set()

    def _write_own_events(self, event_type: str, ids: Sequence[str], now: float) -> None:
        if ids:
            events = [Event(type=event_type, timestamp=now, hostname="", uuid=each) for each in ids]
            self.write([Delivery(events=events, arrived=now)])

    def _sort(self, deliveries: Iterable[Delivery], written: WriteResult) -> Batch:
        batch = Batch()
        by_task, skews = batch.by_task, self._skews
        for delivery in deliveries:
            if delivery.gap is not None:
                batch.gaps.append(delivery.gap)
            steady = delivery.concluded or self._clocks.steady(delivery.events)
            for cleaned in self._sanitizer.clean_all(delivery.events):
                if cleaned is None:
                    written.refused += 1
                    continue
                event = cleaned if steady else self._clocks.corrected(cleaned, delivery.arrived, skews)
                written.events += 1
                task_id = event.uuid
                if task_id is not None and is_lifecycle(event.type):
                    events = by_task.get(task_id)
                    if events is None:
                        by_task[task_id] = [event]
                    else:
                        events.append(event)
                    if event.message is not None:
                        batch.captured.append(event)
                        self._pending.add(task_id, event)
                    from_worker = not delivery.concluded and event.type not in _NOT_FROM_WORKER
                    if event.type == "task-sent":
                        self.senders.observe(event.hostname, event.timestamp, delivery.arrived)
                    if from_worker and event.hostname not in skews:
                        batch.by_worker.setdefault(event.hostname, []).append((event, delivery.arrived))
                elif event.type in {"worker-heartbeat", "worker-online", "worker-offline"}:
                    batch.by_worker.setdefault(event.hostname, []).append((event, delivery.arrived))
                else:
                    written.unknown += 1
        return batch

    def _begin(self, connection: Connection) -> int:
        force_index_lookups(connection)
        if len(self._skews) > 2 * MOST_WORKERS:  # of workers that are no longer recorded
            self._skews.clear()
            self._clocks.forget()
        if self._cluster_id is None:
            self._cluster_id = cluster_id(self._store, connection, self._cluster)
        if time.monotonic() - self._sole_queues_at > SOLE_QUEUE_SECONDS:
            before, self._sole_queues = self._sole_queues, _sole_queues(connection, self._cluster_id)
            self._new_sole |= self._sole_queues.keys() - before.keys()
            self._sole_queues_at = time.monotonic()
        return self._cluster_id

    def forget(self) -> None:
        """Empties all caches: after a rollback, or when others changed the record."""
        self._cache.forget()
        self._terms.forget()
        self._counters.forget()
        self._totals.forget()
        self._skews.clear()
        self._clocks.forget()
        self._cluster_id = None
        self._ids.forget()

    def forget_deleted(self, keys: Iterable[bytes], *, counters: bool) -> None:
        """Retention has deleted these tasks and, with ``counters``, old roll-ups."""
        self._cache.forget_tasks(keys)
        if counters:
            self._counters.forget_rollups()

    # Workers

    def own_clock_set(self, seconds: float) -> None:
        """Our clock was set forward by so much: times of workers by our clock are adjusted. Raises StoreUnavailable."""
        change_workers(self._store, self._cluster, None, partial(after_setting, seconds=seconds))
        self._skews = {hostname: skew + seconds for hostname, skew in self._skews.items()}
        self.senders.own_clock_set(seconds)

    def _write_workers(
        self,
        connection: Connection,
        number: int,
        by_worker: dict[str, list[tuple[Event, float]]],
    ) -> int:
        """Returns the number of processes that were not recorded before."""
        if not by_worker:
            return 0
        recorded = load_workers(connection, number, list(by_worker))
        starts = []
        new = self._admit(connection, number, by_worker, recorded)
        for hostname, events in by_worker.items():
            worker = recorded.get(hostname)
            for received, arrived in events:
                event = received
                if worker is not None and hostname not in self._skews and worker.jump and event.pid == worker.pid:
                    event = msgspec.structs.replace(event, timestamp=max(0.0, event.timestamp - worker.jump))
                before, worker = worker, fold_worker(worker, event, self._cluster, arrived)
                if before is not None and None is not before.pid != worker.pid and not process_of(before, worker.pid):
                    starts.append((hostname, worker.last_heartbeat or arrived))
            if worker is not None:
                self._clocks.restore(hostname, worker.pid, worker.jump)
                jump = self._clocks.jump_of(hostname, worker.pid)
                recorded[hostname] = msgspec.structs.replace(worker, jump=jump)
                self._skews[hostname] = worker.skew or 0.0
        save_workers(self._store, connection, number, list(recorded.values()))
        save_worker_starts(self._store, connection, number, starts)
        return new + len(starts)

    def _admit(
        self,
        connection: Connection,
        number: int,
        by_worker: dict[str, list[tuple[Event, float]]],
        recorded: Mapping[str, Worker],
    ) -> int:
        """The number of new workers that are recorded; those beyond the most of a cluster leave the batch.

        Their tasks are stored all the same. Those that sent an event of a worker come first.
        """
        new = [name for name in by_worker if name not in recorded]
        if not new:
            return 0
        now = max(arrived for name in new for _, arrived in by_worker[name])
        room, gone = make_room(connection, number, len(new), now)
        for name in gone:
            self._skews.pop(name, None)
            self._clocks.drop(name)
        if room < len(new):
            new.sort(key=lambda name: not any(event.type.startswith("worker-") for event, _ in by_worker[name]))
            for name in new[room:]:
                del by_worker[name]
        return min(room, len(new))

    # Tasks

    def _write_tasks(
        self, connection: Connection, number: int, by_task: dict[str, list[Event]], *, look_up_all: bool
    ) -> list[Task]:
        if not by_task:
            return []
        stored = self._cache.find(connection, number, by_task, look_up_all=look_up_all)
        deltas, observed = Deltas(self._skews), Observed(by_worker=self._by_worker)
        new: list[Task] = []
        changed: list[Task] = []
        several: set[str] = set()  # tasks that have rows in ``run``
        for task_id, events in by_task.items():
            task = stored.get(task_id)
            if task is None:
                task = Task(self._cluster, task_id)
                if self._fold(task, events):
                    self._pending.apply_to(task)
                    new.append(task)
            else:
                deltas.subtract(task)
                if len(task.runs) > 1:
                    several.add(task_id)
                if self._fold(task, events):
                    changed.append(task)
            # A task of which only the loss was reported counts nowhere.
            if task.runs or task.sent is not None or task.discovered_at is not None:
                deltas.add(task)
            observed.add(task.name, events)
        self._save(connection, number, new, changed, deltas, several)
        self._totals.apply(connection, number, observed, deltas.rollups)
        return [*new, *changed]

    def _fold(self, task: Task, events: list[Event]) -> bool:
        changed = False
        for event in events:
            changed |= fold(task, event)
        if task.queue is None and task.runs:
            queue = self._sole_queues.get(task.worker or "")
            if queue is not None:
                task.queue = queue
                changed = True
        if changed:
            set_ready_times(task, self.senders, self._skews)
        return changed

    def _save(
        self,
        connection: Connection,
        number: int,
        new: list[Task],
        changed: list[Task],
        deltas: Deltas,
        several: Collection[str],
    ) -> None:
        for task, pk in zip(new, self._ids.assign(connection, number, len(new)), strict=True):
            task.pk = pk
        tasks = [*new, *changed]
        names = list(map(names_of, tasks))
        self._terms.load(connection, _terms_of(tasks, deltas), names)
        self._counters.ensure_groups(connection, number, deltas.failures)
        for task in tasks:
            task.failure_group = self._group_of(task)
        numbers = list(map(self._terms.of_task, names))
        self._insert_task.run(
            connection, [task_row(task, number, each) for task, each in zip(new, numbers[: len(new)], strict=True)]
        )
        self._update_task.run(
            connection,
            [(*task_values(task, each), task.pk) for task, each in zip(changed, numbers[len(new) :], strict=True)],
        )
        self._save_other_runs(connection, tasks, several)
        self._counters.apply(connection, number, deltas)

    def _group_of(self, task: Task) -> int | None:
        run = task.run
        if run is None or run.outcome is not _FAILED:
            return None
        return self._counters.group_id(signature_of(task.name, run.exception, run.traceback).digest)

    def _save_other_runs(self, connection: Connection, tasks: Iterable[Task], had_several: Collection[str]) -> None:
        several = [task for task in tasks if len(task.runs) > 1 or task.id in had_several]
        for start in range(0, len(several), _CHUNK):
            ids = [task.pk for task in several[start : start + _CHUNK]]
            connection.execute(schema.run.delete().where(schema.run.c.task_id.in_(ids)))
        rows = [
            run_row(task.pk or 0, ordinal, run, self._terms.id(_WORKER, run.worker))
            for task in several
            for ordinal, run in enumerate(task.runs)
            if run is not task.run
        ]
        self._insert_run.run(connection, rows)


def _updating_task(store: Store) -> PreparedStatement:
    statement = update(schema.task).where(schema.task.c.id == bindparam("row_id"))
    changes: dict[str, object] = {name: bindparam(name) for name in CHANGING_COLUMNS}
    return PreparedStatement(store, statement.values(changes), [*CHANGING_COLUMNS, "row_id"])


def _terms_of(tasks: Iterable[Task], deltas: Deltas) -> Iterator[tuple[int, str]]:
    """The names in counters and earlier runs."""
    kinds = TERM_KINDS["name"], TERM_KINDS["queue"], _WORKER
    for place in (*deltas.rollups, *deltas.tasks):
        yield from ((kind, text) for kind, text in zip(kinds, place[1:], strict=True) if text is not None)
    for task in tasks:
        if len(task.runs) > 1:
            yield from ((_WORKER, run.worker) for run in task.runs if run.worker is not None)


def _sole_queues(connection: Connection, number: int) -> dict[str, str]:
    """The queue of each worker that consumes exactly one: all its tasks are from there."""
    statement = select(schema.worker.c.record).where(schema.worker.c.cluster_id == number)
    workers = [unpack_worker(record) for record in connection.execute(statement).scalars()]
    return {each.hostname: each.queues[0] for each in workers if each.queues is not None and len(each.queues) == 1}
