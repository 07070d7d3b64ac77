"""Samples queues, inspects workers and keeps the schedule, beside the stream of events.

A new worker process is inspected at its first event, and again until it replies.

How long the oldest message of a queue has waited: Celery's messages have no send time, but task-sent events do. The age
is exact

- where the broker shows the next message (Redis), and the record has its send time;
- where it does not (RabbitMQ), all tasks of the queue had task-sent events, and the record has as many of them in the
  queue as the broker has messages: then the task that was sent first is the oldest.

Else it is a lower bound: when the message was first seen at the head; or, if the record has more tasks in the queue
than there are messages, the send time of the first task that must still be there. Without even that it is unknown.
"""

import heapq
import logging
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import msgspec

from celery_monitor.brokers.connection import configured_queues
from celery_monitor.brokers.queues import Probe
from celery_monitor.brokers.remote import Remote, Reply
from celery_monitor.core.health.findings import RecentSamples
from celery_monitor.core.waits import Senders, moved
from celery_monitor.core.workers import duplicate_pids, duplicates, process_state
from celery_monitor.errors import MonitorError, Unsupported
from celery_monitor.receiver.helper_failures import QUEUE_SAMPLER, SAMPLER, SCHEDULES, HelperFailures
from celery_monitor.receiver.pace import Pace
from celery_monitor.receiver.schedules import Schedules
from celery_monitor.receiver.task_events import ANSWER_SECONDS, Process, TaskEventsSwitch, fields_of, integer
from celery_monitor.records.queue import Queue
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import MOST_QUEUES, read_pauses, recorded_queue_names, save_queues
from celery_monitor.store.tasks.unfinished import (
    SendTime,
    WaitingTasks,
    queues_without_sent_events,
    sent_messages,
    waiting_tasks,
)
from celery_monitor.store.terms import cluster_id
from celery_monitor.store.workers import load_workers, make_room, read_workers, save_workers

IDLE_INSPECT = 4.0  # by which the time between two inspections is longer while nothing happens
FIRST_SECONDS = 0.15  # between the first questions to a worker that just came up
GROWTH = 0.25  # of the time since the first question: a worker that does not reply is asked less and less often


@dataclass(slots=True)
class _Questions:
    """When one process was first asked, and is asked next."""

    since: float
    next_at: float


class Newcomers:
    """The worker processes of one cluster that are up and have not replied yet.

    A worker sends its first heartbeat before it listens to remote control (celery/worker/consumer: Heart starts
    before Control), so the first question may be lost.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._open: dict[Process, _Questions] = {}
        self._answered: set[Process] = set()

    def due(self, workers: Sequence[Worker], now: float) -> list[str]:
        """The names of the workers to ask now. ``workers`` are all that are up."""
        processes = {(worker.hostname, worker.pid): worker for worker in workers}
        self._answered &= processes.keys()
        self._open = {
            process: self._open.get(process) or _Questions(now, now)
            for process, worker in processes.items()
            if process not in self._answered or worker.queues is None
        }
        return sorted({name for (name, _), questions in self._open.items() if questions.next_at <= now})

    def patience(self, names: Iterable[str], now: float) -> float:
        """Seconds to wait for the replies of these workers: short for those that just came up."""
        wanted = set(names)
        ages = [now - each.since for (name, _), each in self._open.items() if name in wanted]
        return min(ANSWER_SECONDS, max(FIRST_SECONDS, GROWTH * max(ages, default=0.0)))

    def asked(self, names: Iterable[str], now: float) -> None:
        """These workers were asked; those that did not reply are asked again later."""
        wanted = set(names)
        for (name, _), each in self._open.items():
            if name in wanted:
                each.next_at = now + min(self._longest, max(FIRST_SECONDS, GROWTH * (now - each.since)))

    def answered(self, processes: Iterable[Process]) -> None:
        """These processes reported their queues."""
        self._answered.update(processes)

    def seconds_left(self, now: float) -> float | None:
        """Until the next question is due; ``None``: no worker is new."""
        return min((max(0.0, each.next_at - now) for each in self._open.values()), default=None)


CHECK_SECONDS = 15.0
SENT_EVENT_SECONDS = 900.0  # in which every task that a worker received must have had a task-sent event


class OldestMessages:
    """The oldest messages of one cluster's queues. ``senders``: the clients' clock offsets."""

    def __init__(self, store: Store, cluster: str, senders: Senders | None = None) -> None:
        self._store = store
        self._cluster = cluster
        self._senders = senders or Senders()
        self._without_sent_events: set[str | None] = set()
        self._checked_at = 0.0

    def of(self, queues: Sequence[Queue], skews: Mapping[str, float], now: float) -> list[Queue]:
        """The queues with the age of their oldest message. ``skews``: our clock minus each worker's."""
        heads = {each for queue in queues for each in queue.next_tasks if each is not None}
        sent = sent_messages(self._store, self._cluster, heads) if heads else {}
        hidden = any(queue.ready and not queue.next_tasks for queue in queues)
        waiting = self._waiting(now) if hidden else {}
        found = []
        for queue in queues:
            if not queue.ready:
                found.append(queue)
            elif queue.next_tasks:
                times = [None if each is None else self._ours(sent.get(each), skews) for each in queue.next_tasks]
                found.append(_at_least(queue, times, now, exact=None not in times))
            else:
                found.append(self._by_record(queue, waiting.get(queue.name), skews, now))
        return found

    def _waiting(self, now: float) -> dict[str, WaitingTasks]:
        """Waiting tasks by queue, of the queues whose received tasks all had a task-sent event."""
        if not self._checked_at <= now < self._checked_at + CHECK_SECONDS:
            since = now - SENT_EVENT_SECONDS
            self._without_sent_events = queues_without_sent_events(self._store, self._cluster, since)
            self._checked_at = now
        if None in self._without_sent_events:
            return {}
        found = waiting_tasks(self._store, self._cluster)
        return {name: tasks for name, tasks in found.items() if name not in self._without_sent_events}

    def _by_record(self, queue: Queue, tasks: WaitingTasks | None, skews: Mapping[str, float], now: float) -> Queue:
        gone = -1 if tasks is None else tasks.number - (queue.ready or 0)  # the first of them, in the worst case
        if tasks is None or not 0 <= gone < len(tasks.sent):
            return queue
        return _at_least(queue, [self._ours(tasks.sent[gone], skews)], now, exact=gone == 0)

    def _ours(self, sent: SendTime | None, skews: Mapping[str, float]) -> float | None:
        if sent is None:
            return None
        skew = skews.get(sent.worker) if sent.worker is not None else self._senders.skew(sent.client)
        return moved(sent.at, skew, 0.0)


def _at_least(queue: Queue, times: Sequence[float | None], now: float, *, exact: bool) -> Queue:
    """If it was at the head before it was sent, or in the future, a clock is off: the bound of the samples stays."""
    sent = min((each for each in times if each is not None), default=None)
    if sent is None or sent > (now if queue.oldest is None else queue.oldest):
        return queue
    return msgspec.structs.replace(queue, oldest=sent, oldest_exact=exact)


MOST_MEASURED = 500  # queues in one sample
MOST_ABSENT = 20  # of them that the broker did not have when it was last asked: each is a line in RabbitMQ's log
LONG_SECONDS, REST = 0.1, 10.0  # if reading the names takes longer, they are used for this multiple of its duration


class QueueTurns:
    """Which queues the next sample measures: all of them, or in turns where there are too many."""

    def __init__(self) -> None:
        self._kept: AbstractSet[str] = frozenset()
        self._absent: set[str] = set()
        self._last: dict[bool, str] = {}  # the last one of each list whose turn it was

    def next(self, names: AbstractSet[str], first: AbstractSet[str]) -> set[str]:
        """At most MOST_MEASURED of these names.

        Of more than MOST_QUEUES, the ``first`` and those measured before have precedence.
        """
        kept, before = names, self._kept
        if len(names) > MOST_QUEUES:
            kept = set(
                heapq.nsmallest(MOST_QUEUES, names, key=lambda name: (name not in first, name not in before, name))
            )
        self._kept = kept
        self._absent &= kept
        there = self._turn(kept - self._absent, MOST_MEASURED - MOST_ABSENT, absent=False)
        return there | self._turn(self._absent, MOST_ABSENT, absent=True)

    def measured(self, queues: Iterable[Queue]) -> None:
        """Adds what the broker has answered."""
        for queue in queues:
            (self._absent.add if queue.ready is None else self._absent.discard)(queue.name)

    def _turn(self, names: AbstractSet[str], most: int, *, absent: bool) -> set[str]:
        if len(names) <= most:
            return set(names)
        ordered = sorted(names)
        start = bisect_right(ordered, self._last.get(absent, ""))
        turn = (ordered[start:] + ordered[:start])[:most]
        self._last[absent] = turn[-1]
        return set(turn)


class QueueNames:
    """The queues of all recorded tasks of a cluster. Reading many takes a while: then they are used for longer."""

    def __init__(self, store: Store, cluster: str) -> None:
        self._store = store
        self._cluster = cluster
        self._names: set[str] = set()
        self._due = 0.0

    def read(self) -> set[str]:
        began = time.monotonic()
        if began >= self._due:
            self._names = recorded_queue_names(self._store, self._cluster)
            spent = time.monotonic() - began
            self._due = began + spent * (REST if spent > LONG_SECONDS else 1.0)
        return self._names


RUSAGE_KEPT = ("utime", "stime", "maxrss")
FIRST_PING_SECONDS = 0.3  # of silence, after which the workers that replied to the first ping are inspected

log = logging.getLogger(__name__)


class Sampler:
    """Samples one cluster, in one thread for each ``run``. ``notice`` gets a text when task events were turned on."""

    def __init__(
        self,
        store: Store,
        cluster: str,
        probe: Probe,
        remote: Remote,
        settings: Settings,
        notice: Callable[[str], None] = log.info,
        helpers: HelperFailures | None = None,
        senders: Senders | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._helpers = helpers or HelperFailures()
        self._pace = pace or Pace()
        self._store = store
        self._cluster = cluster
        self._probe = probe
        self._remote: Remote | None = remote
        self._settings = settings
        self._pinged = False
        self._inspected_at = 0.0
        self._newcomers = Newcomers(settings.inspect_seconds)
        self._processes: dict[str, Counter[str]] = {}  # of a node name, by queue: several may share one
        self._duplicates_asked: set[Process] = set()  # processes that share a node name, when all were last asked
        self._worker_is_new = threading.Event()
        self._queues_are_new = threading.Event()
        self._switches = TaskEventsSwitch(store, cluster, remote, settings, notice)
        self._samples = RecentSamples()
        self._oldest = OldestMessages(store, cluster, senders)
        self._schedules = Schedules(store, remote.broker, settings, self._pace)
        self._configured = configured_queues(remote.broker, settings)
        self._names = QueueNames(store, cluster)
        self._turns = QueueTurns()
        self._ready: dict[str, int | None] = {}  # messages by queue, at the last sample
        self._configured_at = 0.0  # when configured queues that do not exist are checked again

    def run(self, stop: threading.Event) -> None:
        """Inspects workers until ``stop`` is set; outages of broker and database are waited out."""
        self._repeat(stop, SAMPLER, self.ask, "workers cannot be inspected", self._worker_is_new)

    def wake(self) -> None:
        """Inspects at once, as a worker process is new. Thread-safe."""
        self._worker_is_new.set()
        self._pace.wake()

    def run_queues(self, stop: threading.Event) -> None:
        """Samples queues until ``stop`` is set; in a thread of its own, as replies of workers may be slow."""
        self._repeat(stop, QUEUE_SAMPLER, self.measure, "queues cannot be measured", self._queues_are_new)
        self._probe.close()

    def run_schedules(self, stop: threading.Event) -> None:
        """Reads and judges the schedule until ``stop`` is set."""

        def step(now: float) -> float:
            return self._schedules.step(self._workers_up(), self._remote, now)

        self._repeat(stop, SCHEDULES, step, "the schedule cannot be judged")

    def _repeat(
        self,
        stop: threading.Event,
        name: str,
        step: Callable[[float], float | None],
        trouble: str,
        wake: threading.Event | None = None,
    ) -> None:
        """Runs ``step`` every ``sample_seconds``, or sooner if it returns fewer seconds, or when ``wake`` is set.

        While nobody uses the dashboard, the period is longer (pace.py).
        """
        last_error = ""
        while not stop.is_set():
            began, sooner = time.monotonic(), None
            try:
                sooner = step(time.time())
                self._helpers.succeeded(name)
                last_error = ""
            except MonitorError as error:
                self._helpers.failed(name, error)
                if error.message != last_error:
                    log.warning("%s, of %s: %s", trouble, self._cluster, error)
                last_error = error.message
            self._pace.wait(stop, self._rest(sooner, time.monotonic() - began), wake)
            if wake is not None:
                wake.clear()

    def _rest(self, sooner: float | None, spent: float) -> float:
        """At least half of the period, as a step takes long when the broker or the database is slow already."""
        period = self._pace.pause(self._settings.sample_seconds)
        rest = max(period / 2, period - spent)
        return rest if sooner is None else min(rest, max(0.0, sooner - spent))

    def ask(self, now: float) -> float | None:
        """Inspects all workers when it is time, or the new ones, else those whose task events may be off.

        Returns the seconds until a new worker is to be asked again. Raises BrokerUnavailable and StoreUnavailable.
        """
        if self._remote is None:
            return None
        try:
            return self._ask(self._remote, now)
        except Unsupported as error:
            log.info("%s", error)
            self._remote = None
            return None

    def _ask(self, remote: Remote, now: float) -> float | None:
        if not self._pinged:  # the quick ones first; the next step asks all and waits for them
            self._inspect_new(remote, list(remote.ask("ping", timeout=FIRST_PING_SECONDS)), ANSWER_SECONDS)
            self._pinged = True
            return None
        workers = self._workers_up()
        twin_processes = _twin_processes(workers)
        period = self._settings.inspect_seconds * (IDLE_INSPECT if self._pace.idle else 1.0)
        if twin_processes - self._duplicates_asked or now - self._inspected_at >= period:
            self._inspect(remote, workers, now)
            self._duplicates_asked = twin_processes
        elif new := self._newcomers.due(workers, now):
            alone = sorted(set(new) - {hostname for hostname, _ in twin_processes})
            self._inspect_new(remote, alone, self._newcomers.patience(alone, now))
            self._newcomers.asked(new, time.time())
        else:
            self._switches.ask_again(workers, now)
        return self._newcomers.seconds_left(time.time())

    def _workers_up(self) -> list[Worker]:
        return [w for w in read_workers(self._store, self._cluster) if w.status is not WorkerStatus.OFFLINE]

    # Queues

    def measure(self, now: float) -> None:
        """One sample of every queue. Raises BrokerUnavailable and StoreUnavailable."""
        with self._store.snapshot():
            workers = self._workers_up()
            paused = {queue for _, queue in read_pauses(self._store, self._cluster)}
            names = self._names.read()
        consumers: dict[str, Counter[str]] = {}  # processes of each name
        for worker in workers:
            for queue in worker.queues or ():
                processes = self._processes.get(worker.hostname, Counter())[queue]
                consumers.setdefault(queue, Counter())[worker.hostname] = max(1, processes)
        names = names | consumers.keys() | paused
        configured = self._configured - names if now >= self._configured_at else frozenset()
        if not names and not configured:
            return
        names = self._turns.next(names, first=consumers.keys() | paused)
        complete = self._remote is not None and all(_is_known(worker, self._duplicates_asked) for worker in workers)
        skews = {worker.hostname: worker.skew for worker in workers if worker.skew is not None}
        sampled = self._probe.sample(sorted(names | configured))
        if absent := {queue.name for queue in sampled if queue.ready is None} & configured:
            self._configured_at = now + self._settings.inspect_seconds  # each refusal is a line in RabbitMQ's log
        measured = self._oldest.of([each for each in sampled if each.name not in absent], skews, time.time())
        queues = [_consumed(queue, consumers, complete) for queue in measured]
        self._turns.measured(sampled)
        ready = {queue.name: queue.ready for queue in sampled}
        if ready != self._ready:
            self._ready = ready
            self._pace.news()
        save_queues(self._store, self._cluster, queues, now, self._samples.rising(queues, now))

    # Workers

    def _inspect_new(self, remote: Remote, names: Sequence[str], patience: float) -> None:
        """Asks only these, which takes milliseconds. Task events are turned on before the second question."""
        stats = remote.ask("stats", destination=names, timeout=patience) if names else {}
        if not stats:
            return
        self._store_answers({}, stats)
        self._switches.judge(stats, time.time())
        queues = remote.ask("active_queues", destination=list(stats), timeout=ANSWER_SECONDS)
        self._store_answers({name: (reply,) for name, reply in queues.items()}, stats)

    def _inspect(self, remote: Remote, workers: Sequence[Worker], now: float) -> None:
        """Asks all workers that are up."""
        self._inspected_at = now
        expected = [worker.hostname for worker in workers]
        doubled = any(duplicates(worker) for worker in workers)
        queues = _ask(remote, "active_queues", expected, doubled=doubled)
        if not expected and not queues:
            return
        replies = _ask(remote, "stats", sorted({*expected, *queues}), doubled=doubled)
        pids = {worker.hostname: worker.pid for worker in workers}
        stats = {name: _of_process(each, pids.get(name)) for name, each in replies.items()}
        self._store_answers(queues, stats)
        self._switches.judge(stats, now)
        self._switches.keep_only(stats)

    def _store_answers(self, queues: Mapping[str, Sequence[Reply]], stats: Mapping[str, Reply]) -> None:
        for name, replies in queues.items():
            self._processes[name] = Counter(queue for reply in replies for queue in _queues_in(reply))
        answers = {name: _answer(queues.get(name, ()), stats.get(name)) for name in {*queues, *stats}}
        answers = {name: answer for name, answer in answers.items() if answer}
        if not answers:
            return
        merged = self._merge(answers, time.time())
        with_queues = [each for each in merged if "queues" in answers[each.hostname]]
        self._newcomers.answered((each.hostname, each.pid) for each in with_queues)
        if with_queues:
            self._queues_are_new.set()
            self._pace.wake()

    def _merge(self, answers: Mapping[str, dict[str, object]], now: float) -> list[Worker]:
        """Adds the answers to what the record has from events. Workers without a record are new."""
        with self._store.begin() as connection:
            number = cluster_id(self._store, connection, self._cluster)
            recorded = load_workers(connection, number, list(answers))
            new = [hostname for hostname in answers if hostname not in recorded]
            room = make_room(connection, number, len(new), now)[0] if new else 0
            beyond = set(new[room:])
            merged = []
            for hostname, answer in answers.items():
                if hostname in beyond:
                    continue
                worker = recorded.get(hostname) or Worker(
                    cluster=self._cluster, hostname=hostname, status=WorkerStatus.ONLINE, first_seen=now
                )
                pid = worker.pid or answer.get("pid")  # events are newer than an answer to an older question
                # A worker that went silent is back. One that shut down replies no more: that was another process.
                left = worker.status is WorkerStatus.OFFLINE and not worker.sent_offline
                if left and (worker.offline_at or 0.0) < now:
                    worker = msgspec.structs.replace(worker, status=WorkerStatus.ONLINE, offline_at=None)
                merged.append(msgspec.structs.replace(worker, **{**answer, "pid": pid, "inspected_at": now}))
            save_workers(self._store, connection, number, merged)
        return merged


def _is_known(worker: Worker, asked: AbstractSet[Process]) -> bool:
    """Whether every process that is up with this name has reported its queues; one that has not may consume any."""
    others = {(worker.hostname, each.pid) for each in worker.others if process_state(worker, each.pid) == "online"}
    return worker.queues is not None and others <= asked


def _consumed(queue: Queue, consumers: Mapping[str, Counter[str]], complete: bool) -> Queue:
    """Adds the consumers. If the broker doesn't count them, processes are, provided all reported their queues."""
    found = consumers.get(queue.name, Counter())
    counted = found.total() if queue.consumers is None and complete else queue.consumers
    return msgspec.structs.replace(queue, workers=tuple(sorted(found)), consumers=counted)


def _twin_processes(workers: Sequence[Worker]) -> set[Process]:
    return {(worker.hostname, pid) for worker in workers for pid in duplicate_pids(worker)}


def _ask(remote: Remote, question: str, expected: Sequence[str], *, doubled: bool) -> dict[str, list[Reply]]:
    """All replies by node name. If several processes share a name, the full time is waited."""
    replies: dict[str, list[Reply]] = {}
    remote.ask(
        question,
        timeout=ANSWER_SECONDS,
        on_reply=lambda reply: replies.setdefault(reply.worker, []).append(reply),
        expected=() if doubled else expected,
    )
    return replies


def _of_process(replies: Sequence[Reply], pid: int | None) -> Reply:
    """The reply of this process, if several have replied under one name."""
    return next((each for each in replies if integer(fields_of(each).get("pid")) == pid), replies[0])


def _answer(queues: Sequence[Reply], stats: Reply | None) -> dict[str, object]:
    """The replies of one worker as fields of Worker; only fields that were in a reply."""
    answer: dict[str, object] = {}
    if any(isinstance(reply.ok, list) for reply in queues):
        answer["queues"] = tuple(sorted({queue for reply in queues for queue in _queues_in(reply)}))
    fields = fields_of(stats)
    if fields:
        pool = fields.get("pool")
        pool = pool if isinstance(pool, dict) else {}
        answer["pid"] = integer(fields.get("pid"))
        answer["prefetch"] = integer(fields.get("prefetch_count"))
        answer["pool"] = _pool_name(pool.get("implementation"))
        answer["pool_size"] = _pool_size(pool)
        answer["rusage"] = _rusage(fields.get("rusage"))
    return answer


def _queues_in(reply: Reply) -> set[str]:
    """The names in a reply to ``active_queues``."""
    listed = reply.ok if isinstance(reply.ok, list) else []
    return {str(each["name"]) for each in listed if isinstance(each, dict) and each.get("name")}


def _pool_size(pool: Mapping[str, object]) -> int | None:
    """prefork's ``max-concurrency`` is the initial size; its living processes are in ``processes``."""
    processes = pool.get("processes")
    return len(processes) if isinstance(processes, list) else integer(pool.get("max-concurrency"))


def _pool_name(implementation: object) -> str | None:
    """``prefork`` from ``celery.concurrency.prefork:TaskPool``."""
    if not isinstance(implementation, str):
        return None
    return implementation.partition(":")[0].rpartition(".")[2] or None


def _rusage(given: object) -> dict[str, float] | None:
    if not isinstance(given, dict):
        return None
    kept = {name: given[name] for name in RUSAGE_KEPT if isinstance(given.get(name), (int, float))}
    return {name: float(value) for name, value in kept.items()} or None
