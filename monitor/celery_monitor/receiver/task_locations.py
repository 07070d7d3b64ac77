"""Asks workers, broker and result backend where tasks are; checks tasks that run or wait for long.

The broker is read first. A task that moves from its queue to a worker meanwhile is then seen twice, not missed. One
that moves back to its queue can be missed once, so nothing is concluded from a single snapshot.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

from celery_monitor.brokers.amqp import queue_is_missing
from celery_monitor.brokers.queues import Probe
from celery_monitor.brokers.remote import Remote, Reply
from celery_monitor.brokers.results import ResultReader, StoredResult
from celery_monitor.brokers.task_messages import can_read_by_delivery, can_read_messages, survey
from celery_monitor.core.workers import duplicates, process_state
from celery_monitor.receiver.lost_tasks import (
    AGAIN_SECONDS,
    RESERVED_STATES,
    STARTED_AGAIN_SECONDS,
    STARTED_SECONDS,
    Evidence,
    OnWorker,
    Snapshot,
    judge,
    waits_since,
)
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, Gap
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import read_gaps
from celery_monitor.store.tasks.unfinished import (
    WAITING_STATES,
    ProcessKey,
    UnfinishedTask,
    last_number,
    tasks_of_process,
    unfinished_of,
    unfinished_tasks,
    waiting_by_queue,
    workers_with_tasks,
)

ANSWER_SECONDS = 2.0
QUESTIONS: tuple[tuple[str, dict[str, object]], ...] = (("active", {"safe": True}), ("reserved", {}), ("scheduled", {}))
DELAYED = tuple(f"celery_delayed_{level}" for level in range(28))  # kombu/transport/native_delayed_delivery.py
WAITING_SECONDS = 45.0  # before a waiting task is checked
REST_SECONDS, LONGEST_REST = 30.0, 240.0  # between checks of a queue in which nothing was missing; doubled each time
MOST_WAITING = 5000  # messages in a queue of Redis; longer ones are not searched
MOST_QUEUES = 100  # in one round
CHUNK = 500  # tasks checked at once
WALK_SECONDS, WALK_ROWS = 0.2, 1000  # of one round in the record
_START = (-inf, -1)
MOST_PROCESSES = 50  # asked about their started tasks in one round
MOST_ASKED = 500  # started tasks of a process
TIMES, TIMES_SILENT = 2, 20  # questions to a worker before a task is lost; the latter while the result backend is away
ROUND_SECONDS = 10.0  # between two rounds of waiting tasks


class TaskLocations:
    """Finds out where the tasks of one cluster are, and passes conclusions on.

    All methods raise BrokerUnavailable and StoreUnavailable.
    """

    def __init__(self, store: Store, remote: Remote, probe: Probe, conclude: Callable[[Delivery], None]) -> None:
        self.store = store
        self.cluster = remote.broker.cluster
        self.remote = remote
        self.probe = probe
        self.reads_queues = can_read_messages(remote.broker)
        self._results = ResultReader(remote.broker, remote.settings)
        self._conclude = conclude

    def conclude(self, events: Sequence[Event], now: float, gap: Gap | None = None) -> None:
        """Stores concluded events, and the gap that they result from, in one transaction."""
        if events or gap:
            self._conclude(Delivery(events=list(events), arrived=now, gap=gap))

    def results_of(self, tasks: Iterable[UnfinishedTask]) -> dict[str, StoredResult] | None:
        """The results of these tasks in the result backend; ``None`` where it does not answer."""
        ids = [task.id for task in tasks]
        return self._results.of(ids) if ids else {}

    def evidence(
        self,
        first: Snapshot,
        second: Snapshot,
        workers: Iterable[Worker],
        results: Mapping[str, StoredResult] | None,
        now: float,
        gap: tuple[float, float] | None = None,
    ) -> Evidence:
        by_name = {worker.hostname: worker for worker in workers}
        backend = self._results.absence if results is not None else "the result backend does not answer"
        return Evidence(first, second, by_name, now, results, backend, gap, reads_queues=self.reads_queues)

    def snapshot(self, workers: Iterable[Worker], queues: Collection[str], *, measure: bool = False) -> Snapshot:
        """Reads these queues where that is possible in place, and asks all workers that may be up.

        ``measure``: where queues cannot be read, finds out which are empty. Silent workers are asked too: a busy solo
        pool sends no heartbeats. If several processes have one name, only one replies, so that name never counts as
        answered.
        """
        measured = self._measured(queues) if measure and not self.reads_queues else Snapshot({}, {})
        found = survey(self.remote.broker, self.remote.settings, queues)
        names = {worker.hostname for worker in workers if worker.status is not WorkerStatus.OFFLINE}
        on_workers, answered = self._ask(names)
        answered -= {worker.hostname for worker in workers if duplicates(worker)}
        return measured._replace(
            on_workers=on_workers,
            messages=found.messages,
            answered=answered,
            silent=frozenset(names - answered),
            queues=frozenset(queues),
            whole=found.whole,
        )

    def missing_on(self, hostname: str, tasks: Sequence[UnfinishedTask]) -> list[UnfinishedTask]:
        """The tasks that the worker certainly does not have; none if it does not reply to every question."""
        has = self.still_has(hostname, tasks)
        if has is None or all(task.id in has for task in tasks):
            return []
        on_worker, answered = self._ask({hostname})
        return [task for task in tasks if answered and task.id not in has and task.id not in on_worker]

    def still_has(
        self, hostname: str, tasks: Iterable[UnfinishedTask], seconds: float = ANSWER_SECONDS
    ) -> Collection[str] | None:
        """The ids of those of these tasks that the worker has; ``None`` if it does not reply in time."""
        ids = [task.id for task in tasks]
        if not ids:
            return ()
        reply = self.remote.ask("query_task", {"ids": ids}, [hostname], seconds).get(hostname)
        return reply.ok if reply is not None and isinstance(reply.ok, dict) else None

    def _ask(self, hostnames: Collection[str]) -> tuple[dict[str, OnWorker], frozenset[str]]:
        """The tasks that these workers list, and the workers that replied to every question."""
        found: dict[str, OnWorker] = {}
        answered = frozenset(hostnames)
        for question, arguments in QUESTIONS:  # only of workers that replied before: each silent one costs a wait
            replies = self.remote.ask(question, arguments, sorted(answered), ANSWER_SECONDS) if answered else {}
            listed = {hostname: _listed(question, replies.get(hostname)) for hostname in answered}
            for tasks in listed.values():
                found = (tasks or {}) | found  # active, which is asked first, has precedence over reserved
            answered = frozenset(hostname for hostname, tasks in listed.items() if tasks is not None)
        return found, answered

    def _measured(self, queues: Collection[str]) -> Snapshot:
        broker, settings = self.remote.broker, self.remote.settings
        sampled = self.probe.sample([*sorted(queues), *(DELAYED if can_read_by_delivery(broker) else ())])
        own = [queue for queue in sampled if queue.name in queues]
        absent = frozenset(
            queue.name for queue in own if queue.ready is None and queue_is_missing(broker, settings, queue.name)
        )
        empty = absent | {queue.name for queue in own if queue.ready == 0}
        delayed = any(queue.ready for queue in sampled if queue.name in DELAYED)
        return Snapshot({}, {}, empty=empty, absent_queues=absent, delayed=delayed)


def _listed(question: str, reply: Reply | None) -> dict[str, OnWorker] | None:
    """``None`` if the worker did not reply with a list."""
    if reply is None or not isinstance(reply.ok, list):
        return None
    return dict(each for item in reply.ok if (each := _on_worker(question, reply.worker, item)) is not None)


def _on_worker(question: str, hostname: str, item: object) -> tuple[str, OnWorker] | None:
    """One task of a worker's reply.

    Arguments are read only from ``active``, which has the publisher's argsrepr: the publisher may have hidden secrets
    there, and the other commands show the real arguments.
    """
    request = item.get("request", item) if isinstance(item, dict) else None  # ``scheduled`` wraps it
    if not isinstance(request, dict) or not isinstance(request.get("id"), str):
        return None
    given = request.get("delivery_info")
    delivery: dict[str, Any] = given if isinstance(given, dict) else {}
    active = question == "active"
    started = request.get("time_start")
    found = OnWorker(
        listed=question,
        hostname=hostname,
        name=_text(request.get("name")),
        args=_text(request.get("args")) if active else None,
        kwargs=_text(request.get("kwargs")) if active else None,
        started=float(started) if active and isinstance(started, int | float) else None,
        eta=_text(item.get("eta")) if isinstance(item, dict) else None,
        exchange=_text(delivery.get("exchange")),
        routing_key=_text(delivery.get("routing_key")),
    )
    return request["id"], found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class StartedCheck:
    """Asks workers that are up whether they still have tasks that were started long ago, twice before one is lost."""

    def __init__(self, locations: TaskLocations) -> None:
        self._locations = locations
        self._asked_at = 0.0
        self._last: tuple[str, int] = ("", 0)  # the last process of a round that could not ask all
        self._absent: dict[tuple[ProcessKey, str], int] = {}  # how often the worker did not have the task

    def reset(self) -> None:
        """Events may have been missed: all questions start again."""
        self._absent.clear()

    def step(self, workers: Iterable[Worker], processes: Iterable[ProcessKey], now: float) -> None:
        """One round of questions, if it is due. Raises BrokerUnavailable and StoreUnavailable."""
        if abs(now - self._asked_at) < STARTED_AGAIN_SECONDS:  # the clock may have been set back
            return
        self._asked_at = now
        by_name = {worker.hostname: worker for worker in workers if worker.status is WorkerStatus.ONLINE}
        asked = []
        for process in processes:
            worker = by_name.get(process.hostname)
            # With two processes of one name it is unknown which one replied.
            if worker is not None and worker.pid == process.pid and not duplicates(worker):
                asked.append(process)
        counted: dict[tuple[ProcessKey, str], int] = {}
        if len(asked) > MOST_PROCESSES:  # the others in the next rounds
            due = sorted(asked, key=lambda process: (_order(process) <= self._last, _order(process)))
            rest = set(due[MOST_PROCESSES:])
            counted = {key: count for key, count in self._absent.items() if key[0] in rest}
            asked = due[:MOST_PROCESSES]
            self._last = _order(asked[-1])
        for process in asked:
            counted |= self._ask(by_name[process.hostname], process, now)
        self._absent = counted

    def _ask(self, worker: Worker, process: ProcessKey, now: float) -> dict[tuple[ProcessKey, str], int]:
        before = now - (worker.skew or 0.0) - STARTED_SECONDS
        store, cluster = self._locations.store, self._locations.cluster
        tasks = tasks_of_process(store, cluster, process, (TaskState.STARTED,), MOST_ASKED, started_before=before)
        absent = self._locations.missing_on(process.hostname, tasks)
        counted = {(process, task.id): self._absent.get((process, task.id), 0) + 1 for task in absent}
        results = self._locations.results_of(task for task in absent if counted[process, task.id] >= TIMES)
        enough = TIMES if results is not None else TIMES_SILENT
        due = [task for task in absent if counted[process, task.id] >= enough]
        answered = Snapshot({}, {}, answered=frozenset({worker.hostname}))
        evidence = self._locations.evidence(answered, answered, [worker], results, now)._replace(results=results or {})
        self._locations.conclude([event for task in due for event in judge(task, evidence).events], now)
        for task in due:
            del counted[process, task.id]
        return counted


def _order(process: ProcessKey) -> tuple[str, int]:
    return process.hostname, process.pid or 0


class Round(NamedTuple):
    """Waiting tasks whose messages are searched, and the first snapshot."""

    tasks: Sequence[UnfinishedTask]
    queues: frozenset[str]
    first: Snapshot
    at: float


class WaitingCheck:
    """Searches the messages of tasks that have waited long, and of those that a stopped worker had not started.

    Only in queues that are empty or can be read. A queue in which nothing was missing is checked less and less often.
    """

    def __init__(self, locations: TaskLocations) -> None:
        self._locations = locations
        self._store, self._cluster = locations.store, locations.cluster
        self._round: Round | None = None
        self._round_at = 0.0
        self._last_name = ""  # of the queues of the last round
        self._positions: dict[TaskState, tuple[float, int]] = {}  # how far the record was read
        self._rests: dict[str, tuple[float, float]] = {}  # of queues: until when, and for how long

    def reset(self) -> None:
        """Events may have been missed, or are late: the first snapshot is invalid."""
        self._round = None

    def step(self, workers: Sequence[Worker], processes: Iterable[ProcessKey], now: float) -> None:
        """Does what is due; ``processes`` have tasks. Raises BrokerUnavailable and StoreUnavailable."""
        if self._round is None:
            if abs(now - self._round_at) >= ROUND_SECONDS:
                self._round_at = now
                self._begin(workers, processes, now)
        elif now - self._round.at >= AGAIN_SECONDS:
            begun, self._round = self._round, None
            self._judge(begun, workers, now)

    def _begin(self, workers: Sequence[Worker], processes: Iterable[ProcessKey], now: float) -> None:
        returned = self._returned(workers, processes)
        waiting = waiting_by_queue(self._store, self._cluster)
        names = sorted(waiting.keys() | {task.queue for task in returned if task.queue is not None})
        if len(self._rests) > 2 * len(names) + MOST_QUEUES:
            self._rests = {name: rest for name in names if (rest := self._rests.get(name))}
        due = [name for name in names if not now < self._rests.get(name, (0.0, 0.0))[0] <= now + LONGEST_REST]
        searched = self._searchable(self._next_few(due))
        tasks = [*(each for each in returned if each.queue in searched), *self._long_waiting(searched, workers, now)]
        tasks = tasks[:CHUNK]
        queues = frozenset(task.queue for task in tasks if task.queue is not None)
        if tasks:
            first = self._locations.snapshot(workers, queues, measure=True)
            self._round = Round(tasks, queues, first, now)

    def _judge(self, begun: Round, workers: Sequence[Worker], now: float) -> None:
        """Judges by both snapshots; absent tasks only if the record of them did not change meanwhile."""
        second = self._locations.snapshot(workers, begun.queues, measure=True)
        evidence = self._locations.evidence(begun.first, second, workers, {}, now)
        absent = [task for task in begun.tasks if task.state in WAITING_STATES and not evidence.has(task.id)]
        if absent:
            stored = set(unfinished_of(self._store, self._cluster, [task.id for task in absent]))
            absent = [task for task in absent if task in stored]
            since = min((waits_since(task, evidence.workers) for task in absent), default=now)
            evidence = evidence._replace(
                results=self._locations.results_of(absent),
                reporting=workers_with_tasks(self._store, self._cluster),
                missed_until=self._missed_until(since),
            )
        returned = [task for task in begun.tasks if task.state in RESERVED_STATES]
        verdicts = {task: judge(task, evidence).events for task in (*returned, *absent)}
        self._rest(begun.queues, {task.queue for task in absent if verdicts[task]}, now)
        self._locations.conclude([event for found in verdicts.values() for event in found], now)

    def _missed_until(self, since: float) -> float:
        """The end of the last gap after ``since``, infinite while one is open; 0 without a gap."""
        gaps = [gap for gap in read_gaps(self._store, since, self._cluster) if gap.dropped != 0]
        return max((inf if gap.ended is None else gap.ended for gap in gaps), default=0.0)

    def _rest(self, queues: Collection[str], missing: Collection[str | None], now: float) -> None:
        """Queues in which nothing was ``missing`` are left alone for a while, longer each time."""
        for name in queues:
            before = self._rests.get(name, (0.0, 0.0))[1]
            rest = 0.0 if name in missing else min(LONGEST_REST, max(REST_SECONDS, 2 * before))
            self._rests[name] = (now + rest, rest)

    def _next_few(self, names: Sequence[str]) -> list[str]:
        first = next((number for number, name in enumerate(names) if name > self._last_name), 0)
        few = [*names[first:], *names[:first]][:MOST_QUEUES]
        self._last_name = few[-1] if few else ""
        return few

    def _searchable(self, names: Sequence[str]) -> set[str]:
        """The queues that are empty, or whose messages can all be read."""
        ready = {queue.name: queue.ready or 0 for queue in self._locations.probe.sample(names)} if names else {}
        limit = MOST_WAITING if self._locations.reads_queues else 0
        return {name for name, waiting in ready.items() if waiting <= limit}

    def _long_waiting(self, queues: Collection[str], workers: Iterable[Worker], now: float) -> list[UnfinishedTask]:
        """Tasks that have waited for long in these queues; continues where the last round ended."""
        by_name = {worker.hostname: worker for worker in workers}
        until, found = time.monotonic() + WALK_SECONDS, list[UnfinishedTask]()
        newest = last_number(self._store, self._cluster) if queues else 0
        for state in WAITING_STATES if queues else ():
            while time.monotonic() < until and len(found) < CHUNK:
                after = self._positions.get(state, _START)
                rows = unfinished_tasks(self._store, self._cluster, state, newest, after, WALK_ROWS)
                mine = [row for row in rows if row.queue in queues]
                found += [row for row in mine if waits_since(row, by_name) <= now - WAITING_SECONDS]
                self._positions[state] = rows[-1].position if len(rows) == WALK_ROWS else _START
                if len(rows) < WALK_ROWS:
                    break
        return found

    def _returned(self, workers: Iterable[Worker], processes: Iterable[ProcessKey]) -> list[UnfinishedTask]:
        """Tasks that a process in shutdown had received and not started: they go back to their queues."""
        if not self._locations.reads_queues:
            return []
        by_name = {worker.hostname: worker for worker in workers}
        found: list[UnfinishedTask] = []
        for process in processes:
            worker = by_name.get(process.hostname)
            if len(found) < CHUNK and worker is not None and process_state(worker, process.pid) == "shutting down":
                found += tasks_of_process(self._store, self._cluster, process, RESERVED_STATES, CHUNK)
        return found
