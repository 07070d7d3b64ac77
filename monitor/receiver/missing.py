"""Tasks that should wait in a queue, and whose messages may be gone: purged, expired, dead-lettered, or refused.

Celery sends no event for any of these. So a task that has waited for a while is looked for, twice: where its queue is
empty (or short, on Redis, where reading removes nothing), the workers that consume the queue are asked whether they
have the task, and the result backend whether it ended. Only what nobody has is lost. Where one worker does not answer,
or the task may have run on one that sends no events, nothing is concluded. A queue in which nothing was missing rests
longer each time.
"""

import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from monitor.brokers.amqp import queue_is_missing
from monitor.brokers.ends import End
from monitor.brokers.ends import Ends
from monitor.brokers.generic import Probe
from monitor.brokers.held import can_look
from monitor.brokers.held import can_take
from monitor.brokers.remote import Remote
from monitor.health_sentence import age_words
from monitor.lifecycle import REMOVED
from monitor.receiver.whereabouts import Look
from monitor.receiver.whereabouts import look
from monitor.records import Delivery
from monitor.records import Event
from monitor.records import TaskState
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.store import unfinished
from monitor.store.engine import Store
from monitor.store.unfinished import ProcessKey
from monitor.store.unfinished import UnfinishedTask
from monitor.workers import process_of
from monitor.workers import process_state
from monitor.workers import twins

OLD_SECONDS = 45.0  # a task that waits shorter is looked for by nobody
ROUND_SECONDS = 10.0  # between two rounds
AGAIN_SECONDS = 5.0  # between the two looks of one round
REST_SECONDS, LONGEST_REST = 30.0, 240.0  # of a queue in which nothing was missing; doubled each time
MOST_WAITING = 5000  # messages in a queue of Redis that is read for this
MOST_QUEUES = 100  # in one round
CHUNK = 500  # tasks in one round
WALK_SECONDS = 0.2  # of one round, in the record
WALK_ROWS = 1000
WAITING = (TaskState.PENDING, TaskState.RETRY)
GIVEN_BACK = (TaskState.RECEIVED, TaskState.SCHEDULED)  # by a worker that shut down
DELAYED = tuple(f"celery_delayed_{level}" for level in range(28))  # kombu/transport/native_delayed_delivery.py
Place = tuple[float, int]


class Glance(NamedTuple):
    """One look: at workers and, on Redis, into the queues; elsewhere at how many messages they have."""

    look: Look
    empty: frozenset[str]  # these queues have no message, or do not exist
    gone: frozenset[str]  # these do not exist
    delayed: bool  # messages wait in queues for delayed delivery, of whatever queue


class Round(NamedTuple):
    """Tasks that are looked for, by their queues."""

    tasks: Sequence[UnfinishedTask]
    queues: frozenset[str]
    first: Glance
    at: float


class Missing:
    """Looks for the messages of one cluster. ``conclude`` takes the events that were concluded."""

    def __init__(
        self, store: Store, remote: Remote, ends: Ends, probe: Probe, conclude: Callable[[Delivery], None]
    ) -> None:
        self._store = store
        self._cluster = remote.broker.cluster
        self._remote = remote
        self._ends = ends
        self._probe = probe
        self._conclude = conclude
        self._reads = can_look(remote.broker)
        self._round: Round | None = None
        self._round_at = 0.0
        self._last_name = ""  # of the queues that had their turn
        self._places: dict[TaskState, Place] = {}  # how far the record was gone through
        self._rests: dict[str, tuple[float, float]] = {}  # of queues: until when, and for how long

    def reset(self) -> None:
        """The receiver was deaf, or is behind: what was seen before means nothing any more."""
        self._round = None

    def close(self) -> None:
        """Ends the connection to the broker."""
        self._probe.close()

    def step(self, workers: Sequence[Worker], held: Collection[ProcessKey], now: float) -> None:
        """Does what is due; ``held``: who holds tasks. Raises Broker- and StoreUnavailable."""
        if self._round is None:
            if abs(now - self._round_at) >= ROUND_SECONDS:
                self._round_at = now
                self._round = self._begin(workers, held, now)
        elif now - self._round.at >= AGAIN_SECONDS:
            begun, self._round = self._round, None
            self._judge(begun, self._glance(begun.queues, workers), workers, now)

    def _begin(self, workers: Sequence[Worker], held: Collection[ProcessKey], now: float) -> Round | None:
        """The first look, where there is anything to look for."""
        departed = self._given_back(workers, held)
        counted = unfinished.waiting_by_queue(self._store, self._cluster)
        names = sorted(counted.keys() | {task.queue for task in departed if task.queue is not None})
        due = [name for name in names if not now < self._rests.get(name, (0.0, 0.0))[0] <= now + LONGEST_REST]
        queues = self._worth_a_look(self._next_few(due))
        old = [task for task in departed if task.queue in queues]
        tasks = (old + self._old(queues, workers, now))[:CHUNK]
        if not tasks:
            return None
        wanted = frozenset(task.queue for task in tasks if task.queue is not None)
        return Round(tasks, wanted, self._glance(wanted, workers), now)

    def _next_few(self, names: Sequence[str]) -> list[str]:
        """At most so many; where there are more, each has its turn."""
        first = next((number for number, name in enumerate(names) if name > self._last_name), 0)
        few = [*names[first:], *names[:first]][:MOST_QUEUES]
        self._last_name = few[-1] if few else ""
        return few

    def _worth_a_look(self, names: Sequence[str]) -> set[str]:
        """The queues that are empty, or where all messages can be read."""
        if not names:
            return set()
        ready = {queue.name: queue.ready for queue in self._probe.sample(names)}
        limit = MOST_WAITING if self._reads else 0
        return {name for name, waiting in ready.items() if (waiting or 0) <= limit}

    def _old(self, queues: Collection[str], workers: Sequence[Worker], now: float) -> list[UnfinishedTask]:
        """Tasks that have waited in these queues for a while, from where the last round ended."""
        skews = {worker.hostname: worker.skew or 0.0 for worker in workers}
        until, found = time.monotonic() + WALK_SECONDS, list[UnfinishedTask]()
        newest = unfinished.last_number(self._store, self._cluster) if queues else 0
        for state in WAITING if queues else ():
            while time.monotonic() < until and len(found) < CHUNK:
                place = self._places.get(state, (float("-inf"), -1))
                rows = unfinished.unfinished_tasks(self._store, self._cluster, state, newest, place, WALK_ROWS)
                mine = [row for row in rows if row.queue in queues and self._remote.settings.shard.has(row.id)]
                found += [row for row in mine if _waits_since(row, skews) <= now - OLD_SECONDS]
                self._places[state] = rows[-1].position if len(rows) == WALK_ROWS else (float("-inf"), -1)
                if len(rows) < WALK_ROWS:
                    break
        return found

    def _given_back(self, workers: Sequence[Worker], held: Collection[ProcessKey]) -> list[UnfinishedTask]:
        """What processes had received that shut down since: not begun, it goes back to its queue."""
        if not self._reads:
            return []
        by_name = {worker.hostname: worker for worker in workers}
        found: list[UnfinishedTask] = []
        for holder in held:
            worker = by_name.get(holder.hostname)
            if worker is not None and process_state(worker, holder.pid) == "shutting down":
                found += unfinished.tasks_of_process(self._store, self._cluster, holder, GIVEN_BACK, CHUNK)
        return [task for task in found if self._remote.settings.shard.has(task.id)]

    def _glance(self, queues: Collection[str], workers: Sequence[Worker]) -> Glance:
        names = [worker.hostname for worker in workers if worker.status is not WorkerStatus.OFFLINE]
        doubled = [worker.hostname for worker in workers if twins(worker)]
        sampled = self._probe.sample([*sorted(queues), *(DELAYED if can_take(self._remote.broker) else ())])
        seen = look(self._remote, names, queues, doubled)
        delayed = any(queue.ready for queue in sampled if queue.name in DELAYED)
        own = [queue for queue in sampled if queue.name in queues]
        empty = {queue.name for queue in own if queue.ready == 0}
        unseen = [queue.name for queue in own if queue.ready is None]
        gone = {name for name in unseen if queue_is_missing(self._remote.broker, self._remote.settings, name)}
        return Glance(seen, frozenset(empty | gone), frozenset(gone), delayed)

    # What both looks mean

    def _judge(self, begun: Round, second: Glance, workers: Sequence[Worker], now: float) -> None:
        absent, events = [], list[Event]()
        for task in begun.tasks:
            places = [each.look.messages.get(task.id) for each in (begun.first, second)]
            if task.state in GIVEN_BACK:
                waits = [place for place in places if place is not None and place.queue is not None]
                events += [_given_back_event(task, workers)] if len(waits) == len(places) else []
            elif not any(task.id in each.look.held or task.id in each.look.messages for each in (begun.first, second)):
                absent.append(task)
        told = self._told(begun, second, self._unchanged(absent), workers, now)
        self._rest(begun.queues, {task.queue for task in absent if any(each.uuid == task.id for each in told)}, now)
        if told or events:
            self._conclude(Delivery(events=[*events, *told], arrived=now))

    def _unchanged(self, tasks: Sequence[UnfinishedTask]) -> list[UnfinishedTask]:
        """Those of which nothing came since they were read."""
        ids = [task.id for task in tasks]
        now = set(unfinished.unfinished_of(self._store, self._cluster, ids)) if ids else set[UnfinishedTask]()
        return [task for task in tasks if task in now]

    def _told(
        self, begun: Round, second: Glance, absent: Sequence[UnfinishedTask], workers: Sequence[Worker], now: float
    ) -> list[Event]:
        """How those ended that nobody has, as far as that is sure."""
        ends = self._ends.of([task.id for task in absent]) if absent else {}
        if ends is None:
            return []
        seen = unfinished.workers_with_tasks(self._store, self._cluster) if absent else set()
        told = []
        for task in absent:
            end = ends.get(task.id)
            done = end.since(max(task.sent or 0.0, task.ended or 0.0), now) if end is not None else None
            if end is not None and done is not None:
                told.append(_end_event(task, end, done))
                continue
            looks = begun.first, second
            if self._is_gone(task, *looks) and not _may_have_it(task, *looks, workers, seen):
                told.append(self._gone_event(task, second, workers, now))
        return told

    def _is_gone(self, task: UnfinishedTask, first: Glance, second: Glance) -> bool:
        """Its message is surely not in its queue."""
        if self._reads:
            return first.look.whole and second.look.whole
        empty = task.queue in first.empty & second.empty
        return empty and not (first.delayed or second.delayed)

    def _gone_event(self, task: UnfinishedTask, second: Glance, workers: Sequence[Worker], now: float) -> Event:
        since = _waits_since(task, {worker.hostname: worker.skew or 0.0 for worker in workers})
        waited, expired = age_words(now - since), task.expires is not None and task.expires < now
        if self._reads:
            place = f"its message is neither in {task.queue} nor unacknowledged"
        else:
            place = f"its queue {task.queue} {'does not exist' if task.queue in second.gone else 'is empty'}"
        text = (
            f"{place}, and no worker that consumes {task.queue} has the task: checked twice, "
            f"{AGAIN_SECONDS:.0f} s apart, {waited} after it began to wait"
        )
        if expired:
            text = f"expired before a worker received it; {text}"
        else:
            text = f"{text}. It was purged, expired or dead-lettered, or a worker refused it (see the workers' logs)"
            text += self._missed(since)
        return Event(type=REMOVED if expired else "task-lost", timestamp=now, hostname="", uuid=task.id, exception=text)

    def _missed(self, since: float) -> str:
        gaps = [gap for gap in queries.gaps(self._store, since, self._cluster) if gap.dropped != 0]
        return "; events were missed meanwhile, perhaps those of its run" if gaps else ""

    def _rest(self, queues: Collection[str], found: Collection[str | None], now: float) -> None:
        """A queue in which nothing was missing rests longer each time."""
        for name in queues:
            before = self._rests.get(name, (0.0, 0.0))[1]
            rest = 0.0 if name in found else min(LONGEST_REST, max(REST_SECONDS, 2 * before))
            self._rests[name] = (now + rest, rest)


def _waits_since(task: UnfinishedTask, skews: Mapping[str, float]) -> float:
    """Since when it waits, by our clock as far as that is known."""
    skew = skews.get(task.worker or "", 0.0)
    moments = [at + skew for at in (task.received, task.started, task.ended) if at is not None]
    return max([*moments, *(at for at in (task.sent, task.learnt) if at is not None)], default=0.0)


def _may_have_it(
    task: UnfinishedTask, first: Glance, second: Glance, workers: Sequence[Worker], seen: Collection[str]
) -> bool:
    """Whether a worker may have the task, or may have run it, of which nobody would know."""
    answered = first.look.answered & second.look.answered
    for worker in workers:
        if worker.queues is not None and task.queue not in worker.queues:
            continue
        if worker.status is not WorkerStatus.OFFLINE and worker.hostname not in answered:
            return True
        told = worker.events_enabled or (worker.events_enabled is None and worker.hostname in seen)
        told = told or worker.processed == 0
        if not told and (worker.last_heartbeat or 0.0) >= (task.sent or 0.0):
            return True
    return False


def _given_back_event(task: UnfinishedTask, workers: Sequence[Worker]) -> Event:
    """Stamped with when its worker said goodbye, by that worker's clock as the run's other times are."""
    text = f"its worker shut down before it began the task; its message waits in {task.queue}"
    left = next((_left_at(each, task.pid) for each in workers if each.hostname == task.worker), None)
    return Event(
        type="task-rejected",
        timestamp=max(task.received or 0.0, left or 0.0),
        hostname=task.worker or "",
        pid=task.pid,
        uuid=task.id,
        requeue=True,
        exception=text,
    )


def _left_at(worker: Worker, pid: int | None) -> float | None:
    other = process_of(worker, pid)
    if other is not None:
        return None if other.offline_at is None else other.offline_at - other.skew
    return None if worker.offline_at is None else worker.offline_at - (worker.skew or 0.0)


def _end_event(task: UnfinishedTask, end: End, done: float) -> Event:
    return Event(
        type=end.event,
        timestamp=done,
        hostname=end.worker or "",
        uuid=task.id,
        result=end.result,
        exception=end.exception,
        traceback=end.traceback,
    )
