"""After a gap: what became of the tasks that had not ended when it began, and which ones came while nobody listened.

Workers and broker are looked at twice, some seconds apart and after the receiver has caught up. Then the record's
unended tasks are gone through in chunks, one a second: a million of them must not flood a result backend. What a
worker has, or the broker, or what the result backend knows becomes right; a task that nobody has is lost, with the
evidence, where everybody was heard; the rest stays unknown, and is counted so. How far this is, stands with the gap,
stored with what was concluded: a receiver that starts anew goes on there.
"""

import logging
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from monitor.brokers.ends import End
from monitor.brokers.ends import Ends
from monitor.brokers.remote import Remote
from monitor.brokers.survey import Seen
from monitor.gaps import in_words
from monitor.lifecycle import HELD_BY_WORKER
from monitor.lifecycle import IN_QUEUE
from monitor.lifecycle import RUNNING
from monitor.receiver.whereabouts import Held
from monitor.receiver.whereabouts import Look
from monitor.receiver.whereabouts import look
from monitor.records import Delivery
from monitor.records import Event
from monitor.records import Gap
from monitor.records import Reconciliation
from monitor.records import TaskState
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.store import unfinished
from monitor.store.engine import Store
from monitor.store.unfinished import UnfinishedTask
from monitor.workers import twins

POLL_SECONDS = 2.0  # how often gaps are looked for
BACK_SECONDS = 86_400.0  # a gap that ended longer ago is left as it is
SETTLE_SECONDS = 3.0  # for events to arrive: after the gap, and before what was seen is taken for news
AGAIN_SECONDS = 5.0  # between the two looks
PATIENCE_SECONDS = 60.0  # for workers to come back after a broker that was away, and for a result backend to answer
CHUNK = 500  # tasks asked for in one second
STATES = (
    TaskState.STARTED,
    TaskState.RECEIVED,
    TaskState.SCHEDULED,
    TaskState.PENDING,
    TaskState.RETRY,
    TaskState.LOST,
)

AFTER_GAP = "after a gap in the events, in which its end may have been missed"  # in all evidence from here

log = logging.getLogger(__name__)


class Work(NamedTuple):
    """The gap that is being reconciled, and what was seen so far."""

    gap: Gap
    began: float  # from when on events may be missing: of earlier gaps, too, that are reconciled with it
    found: Reconciliation
    first: Look | None = None
    second: Look | None = None
    newest: int = 0  # the number of the last task that was stored before the first look
    looked_at: float = 0.0
    until: float = 0.0  # so long workers are waited for
    silent_since: float | None = None  # the result backend
    news: tuple[Event, ...] | None = None  # of tasks that the record may not have; None: not gathered yet


class Recovery:
    """Reconciles the gaps of one cluster. ``conclude`` takes the events that were concluded."""

    def __init__(
        self, store: Store, cluster: str, remote: Remote, ends: Ends, conclude: Callable[[Delivery], None]
    ) -> None:
        self._shard = remote.settings.shard
        self._store = store
        self._cluster = cluster
        self._remote = remote
        self._ends = ends
        self._conclude = conclude
        self._work: Work | None = None
        self._polled_at = 0.0

    def reset(self) -> None:
        """The receiver was deaf, or is behind: what was seen before means nothing any more."""
        self._work = None

    def step(self, workers: Sequence[Worker], now: float) -> None:
        """Does what is due, at most one chunk. Raises Broker- and StoreUnavailable."""
        self._work = work = self._work or self._next(now)
        if work is None:
            return
        if work.first is None or work.second is None:
            if now - work.looked_at >= AGAIN_SECONDS:
                self._work = self._look(work, workers, now)
        elif now - work.looked_at >= SETTLE_SECONDS:
            if work.news is None:
                self._work = work._replace(news=self._news(work.first, work.second, workers, now))
            elif work.news:
                self._tell_news(work, work.news, now)
            else:
                self._ask(work, work.first, work.second, workers, now)

    def _next(self, now: float) -> Work | None:
        """The latest gap that is not reconciled; what is found out counts for the earlier ones, too."""
        if abs(now - self._polled_at) < POLL_SECONDS:
            return None
        self._polled_at = now
        gaps = [
            gap
            for gap in queries.gaps(self._store, now - BACK_SECONDS, self._cluster)
            if gap.dropped != 0 and self._shard.takes_over(gap.shard)
        ]
        open_ = [gap for gap in gaps if gap.reconciliation is None or gap.reconciliation.ended is None]
        if not open_ or any(gap.ended is None or now - gap.ended < SETTLE_SECONDS for gap in open_):
            return None
        *earlier, last = sorted(open_, key=lambda gap: gap.ended or 0.0)
        for gap in earlier:
            done = gap.reconciliation or Reconciliation(began=now)
            self._tell(gap, msgspec.structs.replace(done, ended=now, together_with=last.began), [], now)
        began = min([_beginning(last, gaps), *(_beginning(gap, gaps) for gap in earlier)])
        return Work(last, began, last.reconciliation or Reconciliation(began=now))

    def _look(self, work: Work, workers: Sequence[Worker], now: float) -> Work:
        """The next look; the second must have heard everybody, as long as there is patience."""
        newest = unfinished.last_number(self._store, self._cluster)
        # One that is silent may be busy: a solo pool neither beats nor answers.
        names = [worker.hostname for worker in workers if worker.status is not WorkerStatus.OFFLINE]
        consumed = {queue for worker in workers for queue in worker.queues or ()}
        doubled = [worker.hostname for worker in workers if twins(worker)]
        seen = look(self._remote, names, consumed | unfinished.queue_names(self._store, self._cluster), doubled)
        work = work._replace(looked_at=now, until=work.until or now + PATIENCE_SECONDS)
        if work.first is None or (now < work.until and work.first.unheard | seen.unheard):
            return work._replace(first=seen, newest=newest)
        return work._replace(second=seen)

    # Tasks that the record does not have

    def _news(self, first: Look, second: Look, workers: Iterable[Worker], now: float) -> tuple[Event, ...]:
        by_name = {worker.hostname: worker for worker in workers}
        told = []
        for task_id, held in second.held.items():
            worker = by_name.get(held.hostname)
            # Of a worker that sends no events the record would never hear the end.
            if worker is not None and worker.events_enabled is not False and _in(first, task_id):
                told.append(_held_event(task_id, held, second.messages.get(task_id), worker, now))
        if unfinished.has_sent_events(self._store, self._cluster):
            told += [
                _waiting_event(seen, now)
                for task_id, seen in second.messages.items()
                if seen.queue is not None and task_id not in second.held and task_id in first.messages
            ]
        return tuple(event for event in told if event.uuid is not None and self._shard.has(event.uuid))

    def _tell_news(self, work: Work, news: tuple[Event, ...], now: float) -> None:
        chunk, rest = news[:CHUNK], news[CHUNK:]
        stored = unfinished.recorded_ids(self._store, self._cluster, [str(event.uuid) for event in chunk])
        fresh = [event for event in chunk if event.uuid not in stored]
        queued = sum(event.type == IN_QUEUE for event in fresh)
        found = msgspec.structs.replace(
            work.found,
            learnt_from_workers=work.found.learnt_from_workers + len(fresh) - queued,
            learnt_from_queues=work.found.learnt_from_queues + queued,
        )
        self._tell(work.gap, found, fresh, now)
        self._work = work._replace(found=found, news=rest)

    # Tasks that it has

    def _ask(self, work: Work, first: Look, second: Look, workers: Sequence[Worker], now: float) -> None:
        number, *place = work.found.position
        if number == len(STATES):
            self._finish(work, first, second, now)
            return
        after = (float(place[0]), int(place[1]))
        rows = unfinished.unfinished_tasks(self._store, self._cluster, STATES[number], work.newest, after, CHUNK)
        if rows:
            self._settle(
                work, rows, _Judge(work, first, second, workers, now, self._ends.absence), (number, *rows[-1].position)
            )
            return
        found = msgspec.structs.replace(work.found, position=(number + 1, 0.0, 0))
        self._tell(work.gap, found, [], now)
        self._work = work._replace(found=found)

    def _settle(
        self, work: Work, rows: Sequence[UnfinishedTask], judge: "_Judge", position: tuple[int, float, int]
    ) -> None:
        """Finds out what it can about a chunk, and counts it. While the result backend is silent, the chunk waits."""
        now = judge.now
        asked = [row for row in rows if judge.concerns(row) and self._shard.has(row.id)]
        absent = [row for row in asked if not judge.has(row)]
        ends = self._ends.of([row.id for row in absent])
        silent_since = (work.silent_since or now) if ends is None else None
        self._work = work = work._replace(silent_since=silent_since)
        if silent_since is not None and now - silent_since < PATIENCE_SECONDS:
            return
        counts = dict.fromkeys(("backend", "workers", "queue", "lost", "unknown"), 0)
        told: list[Event] = []
        for row in asked:
            what, events = judge.judge(row, ends)
            counts[what] += 1
            told += events
        total = {name: getattr(work.found, name) + count for name, count in counts.items()}
        complete = work.found.complete and ends is not None
        found = msgspec.structs.replace(work.found, asked=work.found.asked + len(asked), complete=complete, **total)
        found = msgspec.structs.replace(found, position=position)
        self._tell(work.gap, found, told, now)
        self._work = work._replace(found=found)

    def _finish(self, work: Work, first: Look, second: Look, now: float) -> None:
        complete = work.found.complete and first.complete and second.complete
        found = msgspec.structs.replace(work.found, ended=now, complete=complete)
        self._tell(work.gap, found, [], now)
        log.info("the gap of %s is reconciled: %s", self._cluster, in_words(found))
        self._work = None

    def _tell(self, gap: Gap, found: Reconciliation, events: Sequence[Event], now: float) -> None:
        """In one transaction: a receiver that is killed has stored both, what it concluded and how far it was."""
        gap = msgspec.structs.replace(gap, reconciliation=found)
        self._conclude(Delivery(events=list(events), arrived=now, gap=gap))


def _beginning(gap: Gap, gaps: Sequence[Gap]) -> float:
    """When the first gap began that is reconciled together with this one."""
    with_it = [
        each for each in gaps if each.reconciliation is not None and each.reconciliation.together_with == gap.began
    ]
    return min([gap.began, *(_beginning(each, gaps) for each in with_it)])


class _Judge:
    """What two looks at workers and broker mean for a task."""

    def __init__(
        self, work: Work, first: Look, second: Look, workers: Sequence[Worker], now: float, backend: str
    ) -> None:
        self._backend = backend  # what it says of tasks whose end it does not know
        self._began = work.began
        self._ended = work.gap.ended or now
        self._first = first
        self._second = second
        self._workers = {worker.hostname: worker for worker in workers}
        self.now = now
        self._answered = first.answered & second.answered
        self._complete = first.complete and second.complete

    def concerns(self, task: UnfinishedTask) -> bool:
        """Nothing was heard of it since the gap; of what is lost, only what others called so since it began."""
        skew = self._skew(task.worker)
        if task.state is TaskState.LOST:
            ours = task.exception is not None and AFTER_GAP in task.exception
            return not ours and task.ended is not None and task.ended + skew >= self._began
        if task.learnt is not None and task.learnt >= self._began:
            return False  # it was not in the record when the gap began
        moments = [at for at in (task.received, task.started, task.ended) if at is not None]
        return max(moments, default=0.0) + skew <= self._ended

    def has(self, task: UnfinishedTask) -> bool:
        """A worker or the broker has it."""
        return _in(self._second, task.id) or _in(self._first, task.id)

    def judge(self, task: UnfinishedTask, ends: Mapping[str, End] | None) -> tuple[str, list[Event]]:
        """The name of the count, and what is concluded. ``ends`` are ``None`` where the backend does not answer."""
        held, message = self._second.held.get(task.id), self._second.messages.get(task.id)
        if held is not None:
            return "workers", self._with_worker(task, held, message)
        if message is not None:
            return "queue", self._with_broker(task, message)
        if self.has(task) or ends is None:  # on its way when we looked: its events come
            return "unknown", []
        end = ends.get(task.id)
        if end is not None and (done := self._done(task, end)) is not None:
            return "backend", [_end_event(task, end, done)]
        evidence = self._evidence(task)
        if evidence is None:
            return "unknown", []
        return "lost", [self._lost_event(task, evidence)]

    def _skew(self, hostname: str | None) -> float:
        worker = self._workers.get(hostname or "")
        return (worker.skew or 0.0) if worker is not None else 0.0

    def _at(self, task: UnfinishedTask) -> float:
        """Now, by the worker's clock, as the run's other times are."""
        return self.now - self._skew(task.worker)

    def _with_worker(self, task: UnfinishedTask, held: Held, message: Seen | None) -> list[Event]:
        worker = self._workers[held.hostname]
        event = _held_event(task.id, held, message, worker, self.now)
        same = task.worker == held.hostname and task.pid in (None, worker.pid)
        if held.how == "active":
            return [] if same and task.state is TaskState.STARTED else [event]
        if same and task.state is TaskState.LOST:
            found = Event(type="task-found", timestamp=self._at(task), hostname=held.hostname, pid=task.pid)
            return [msgspec.structs.replace(found, uuid=task.id)]
        if task.state is TaskState.STARTED and _in_hand(self._first, task.id) != "active":
            text = f"it no longer ran when its worker was asked after a gap: {held.hostname} has it in hand again"
            return [_requeued_event(task, self._at(task), text), event]
        return [event] if task.state in {TaskState.PENDING, TaskState.RETRY} else []

    def _with_broker(self, task: UnfinishedTask, message: Seen) -> list[Event]:
        """What a worker had received, or had begun and waits again, is nobody's now."""
        before = self._first.messages.get(task.id)
        waits = message.queue is not None and before is not None and before.queue is not None
        if not waits or task.worker is None or task.state in {TaskState.PENDING, TaskState.RETRY}:
            return []
        text = f"it was seen waiting in {message.queue} after a gap"
        return [_requeued_event(task, self._at(task), text)]

    def _done(self, task: UnfinishedTask, end: End) -> float | None:
        """When it ended; ``None`` where that is an older end under the same id."""
        open_run = task.ended is None or task.state is TaskState.LOST
        begun = [task.sent, task.received, task.started, None if open_run else task.ended]
        after = max((at for at in begun if at is not None), default=0.0)
        return end.since(after, self._at(task))

    def _evidence(self, task: UnfinishedTask) -> str | None:
        """Why nobody has it; ``None`` where that is not sure."""
        worker = self._workers.get(task.worker or "")
        if task.state is TaskState.STARTED:
            if worker is None or worker.hostname not in self._answered or worker.pid != task.pid:
                return None  # reconcile.py judges workers that are gone
            return (
                f"{worker.hostname} (process {task.pid}) is up and no longer knows the task: it was asked twice "
                f"{AFTER_GAP}; {self._backend}"
            )
        searched = task.queue is not None and task.queue in self._first.queues & self._second.queues
        if task.state is TaskState.LOST or not (self._complete and searched):
            return None
        return (
            f"no worker has the task and its message is neither in {task.queue} nor unacknowledged: both were looked "
            f"at twice {AFTER_GAP}; {self._backend}"
        )

    def _lost_event(self, task: UnfinishedTask, evidence: str) -> Event:
        ours = task.state in {TaskState.PENDING, TaskState.RETRY}  # nobody knows who had it
        return Event(
            type="task-lost",
            timestamp=self.now if ours else self._at(task),
            hostname="" if ours else task.worker or "",
            pid=None if ours else task.pid,
            uuid=task.id,
            exception=evidence,
        )


def _in(seen: Look, task_id: str) -> bool:
    return task_id in seen.held or task_id in seen.messages


def _in_hand(seen: Look, task_id: str) -> str | None:
    held = seen.held.get(task_id)
    return held.how if held is not None else None


def _held_event(task_id: str, held: Held, message: Seen | None, worker: Worker, now: float) -> Event:
    headers = message.headers if message is not None else None
    started = held.started if held.how == "active" else None
    return Event(
        type=HELD_BY_WORKER if started is None else RUNNING,
        timestamp=now if started is None else started,
        hostname=held.hostname,
        pid=worker.pid,
        uuid=task_id,
        name=held.name or (headers.task if headers else None),
        args=held.args if held.args is not None or headers is None else headers.argsrepr,
        kwargs=held.kwargs if held.kwargs is not None or headers is None else headers.kwargsrepr,
        root_id=headers.root_id if headers else None,
        parent_id=headers.parent_id if headers else None,
        retries=headers.retries if headers else None,
        eta=held.eta,
        expires=headers.expires if headers else None,
        queue=held.queue,
        exchange=held.exchange,
        routing_key=held.routing_key,
        learnt_at=now,
    )


def _waiting_event(seen: Seen, now: float) -> Event:
    headers = seen.headers
    return Event(
        type=IN_QUEUE,
        timestamp=now,
        hostname="",
        uuid=headers.id,
        name=headers.task,
        args=headers.argsrepr,
        kwargs=headers.kwargsrepr,
        root_id=headers.root_id,
        parent_id=headers.parent_id,
        retries=headers.retries,
        eta=headers.eta,
        expires=headers.expires,
        queue=seen.queue,
        learnt_at=now,
    )


def _requeued_event(task: UnfinishedTask, at: float, text: str) -> Event:
    return Event(
        type="task-rejected",
        timestamp=at,
        hostname=task.worker or "",
        pid=task.pid,
        uuid=task.id,
        requeue=True,
        exception=text,
    )


def _end_event(task: UnfinishedTask, end: End, done: float) -> Event:
    """Where its last run is over, the backend tells of another one, and may not say on which worker."""
    over = task.worker is None or task.state in {TaskState.PENDING, TaskState.RETRY}
    return Event(
        type=end.event,
        timestamp=done,
        hostname=(end.worker or "") if over else task.worker or "",
        pid=None if over else task.pid,
        uuid=task.id,
        result=end.result,
        exception=end.exception,
        traceback=end.traceback,
    )
