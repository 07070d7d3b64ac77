"""Measures queues and asks workers about themselves, beside the stream of events.

A worker process that is new is asked at its first event, and again until it answers.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from celery_monitor.brokers.application import configured_queues
from celery_monitor.brokers.queues import Probe
from celery_monitor.brokers.remote import Remote, Reply
from celery_monitor.core.findings import RecentSamples
from celery_monitor.core.waits import Senders
from celery_monitor.core.workers import duplicate_pids, duplicates
from celery_monitor.errors import MonitorError, Unsupported
from celery_monitor.receiver.helpers import QUEUE_SAMPLER, SAMPLER, SCHEDULES, Helpers
from celery_monitor.receiver.oldest_message import OldestMessages
from celery_monitor.receiver.schedules import Schedules
from celery_monitor.receiver.task_events import ANSWER_SECONDS, Process, TaskEventsSwitch, fields_of, whole
from celery_monitor.records.queue import Queue
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_pauses, save_queues
from celery_monitor.store.tasks.unfinished import queue_names
from celery_monitor.store.terms import cluster_id
from celery_monitor.store.workers import load_workers, read_workers, save_workers

FIRST_SECONDS = 0.15  # between the first questions to a worker that just came up
GROWTH = 0.25  # of the time since the first question: a worker that is busy, or answers nobody, is asked ever less


@dataclass(slots=True)
class _Questions:
    """What one process was asked so far."""

    since: float
    next_at: float


class Newcomers:
    """The worker processes of one cluster that are up and did not answer yet.

    A worker sends its first heartbeat before it listens to remote control (celery/worker/consumer: Heart starts
    before Control), so the first question of all may go to nobody.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._open: dict[Process, _Questions] = {}
        self._answered: set[Process] = set()

    def due(self, workers: Sequence[Worker], now: float) -> list[str]:
        """The names of those to be asked now. ``workers`` are all that are up."""
        processes = {(worker.hostname, worker.pid): worker for worker in workers}
        self._answered &= processes.keys()
        self._open = {
            process: self._open.get(process) or _Questions(now, now)
            for process, worker in processes.items()
            if process not in self._answered or worker.queues is None
        }
        return sorted({name for (name, _), questions in self._open.items() if questions.next_at <= now})

    def patience(self, names: Iterable[str], now: float) -> float:
        """Seconds to wait for the answers of these: short for those that come up just now."""
        wanted = set(names)
        ages = [now - each.since for (name, _), each in self._open.items() if name in wanted]
        return min(ANSWER_SECONDS, max(FIRST_SECONDS, GROWTH * max(ages, default=0.0)))

    def asked(self, names: Iterable[str], now: float) -> None:
        """These were asked; those that did not answer are asked again later."""
        wanted = set(names)
        for (name, _), each in self._open.items():
            if name in wanted:
                each.next_at = now + min(self._longest, max(FIRST_SECONDS, GROWTH * (now - each.since)))

    def answered(self, processes: Iterable[Process]) -> None:
        """These said which queues they consume."""
        self._answered.update(processes)

    def seconds_left(self, now: float) -> float | None:
        """Until the next question is due; ``None``: nobody is new."""
        return min((max(0.0, each.next_at - now) for each in self._open.values()), default=None)


RUSAGE_KEPT = ("utime", "stime", "maxrss")
FIRST_LOOK_SECONDS = 0.3  # of silence, after which those are asked who answered the first ping
WAKE_SECONDS = 0.1  # between two looks whether anybody woke us

log = logging.getLogger(__name__)


class Sampler:
    """Samples one cluster, in three threads: each ``run`` has its own. ``notice`` is told what was done unasked."""

    def __init__(
        self,
        store: Store,
        cluster: str,
        probe: Probe,
        remote: Remote,
        settings: Settings,
        notice: Callable[[str], None] = log.info,
        helpers: Helpers | None = None,
        senders: Senders | None = None,
    ) -> None:
        self._helpers = helpers or Helpers()
        self._store = store
        self._cluster = cluster
        self._probe = probe
        self._remote: Remote | None = remote
        self._settings = settings
        self._looked = False  # who is there
        self._inspected_at = 0.0
        self._newcomers = Newcomers(settings.inspect_seconds)
        self._twins_asked: set[Process] = set()  # processes that share a node name, when all were last asked
        self._worker_is_new = threading.Event()
        self._queues_are_new = threading.Event()
        self._switches = TaskEventsSwitch(store, cluster, remote, settings, notice)
        self._samples = RecentSamples()
        self._oldest = OldestMessages(store, cluster, senders)
        self._schedules = Schedules(store, remote.broker, settings)
        self._configured = configured_queues(remote.broker, settings)
        self._configured_at = 0.0  # when those that nobody has declared are looked for again

    def run(self, stop: threading.Event) -> None:
        """Asks workers until told to stop; broker and database may come and go."""
        self._keep(stop, SAMPLER, self.ask, "workers cannot be asked", self._worker_is_new)

    def wake(self) -> None:
        """Asks at once, since a worker process was seen for the first time. From any thread."""
        self._worker_is_new.set()

    def run_queues(self, stop: threading.Event) -> None:
        """Measures queues until told to stop. Apart from the workers, of whom some may let us wait for answers."""
        self._keep(stop, QUEUE_SAMPLER, self.measure, "queues cannot be measured", self._queues_are_new)
        self._probe.close()

    def run_schedules(self, stop: threading.Event) -> None:
        """Looks after the schedule until told to stop."""
        self._keep(stop, SCHEDULES, self._step_schedules, "the schedule is not judged")

    def _step_schedules(self, now: float) -> float:
        return self._schedules.step(self._up(), self._remote, now)

    def _keep(
        self,
        stop: threading.Event,
        name: str,
        step: Callable[[float], float | None],
        trouble: str,
        wake: threading.Event | None = None,
    ) -> None:
        """A step every ``sample_seconds``, begin to begin, or after as many as it says where those are fewer.

        ``wake`` starts the next step at once.
        """
        said = ""
        while not stop.is_set():
            began, sooner = time.monotonic(), None
            try:
                sooner = step(time.time())
                self._helpers.works(name)
                said = ""
            except MonitorError as error:
                self._helpers.failed(name, error)
                if error.message != said:
                    log.warning("%s, of %s: %s", trouble, self._cluster, error)
                said = error.message
            _wait(stop, wake, self._rest(sooner, time.monotonic() - began))

    def _rest(self, sooner: float | None, spent: float) -> float:
        """Half of the time at least, where a step takes long: the broker, or the database, is slow already."""
        period = self._settings.sample_seconds
        rest = max(period / 2, period - spent)
        return rest if sooner is None else min(rest, max(0.0, sooner - spent))

    def ask(self, now: float) -> float | None:
        """Asks the workers where it is time or one is new, else those whose task events may turn out to be off.

        Gives the seconds until a new one is to be asked again. Raises Broker- and StoreUnavailable.
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
        if not self._looked:  # those that are quick; the step behind it asks all and waits for them
            self._greet(remote, list(remote.ask("ping", timeout=FIRST_LOOK_SECONDS)), ANSWER_SECONDS)
            self._looked = True
            return None
        workers = self._up()
        twin_processes = _twin_processes(workers)
        if twin_processes - self._twins_asked or now - self._inspected_at >= self._settings.inspect_seconds:
            self._twins_asked = twin_processes
            self._inspect(remote, workers, now)
        elif new := self._newcomers.due(workers, now):
            alone = sorted(set(new) - {hostname for hostname, _ in twin_processes})
            self._greet(remote, alone, self._newcomers.patience(alone, now))
            self._newcomers.asked(new, time.time())
        else:
            self._switches.ask_again(workers, now)
        return self._newcomers.seconds_left(time.time())

    def _up(self) -> list[Worker]:
        return [w for w in read_workers(self._store, self._cluster) if w.status is not WorkerStatus.OFFLINE]

    # Queues

    def measure(self, now: float) -> None:
        """One sample of every queue. Raises Broker- and StoreUnavailable."""
        workers = self._up()
        consumers: dict[str, list[str]] = {}
        for worker in workers:
            for queue in worker.queues or ():
                consumers.setdefault(queue, []).append(worker.hostname)
        paused = {queue for _, queue in read_pauses(self._store, self._cluster)}
        names = queue_names(self._store, self._cluster) | consumers.keys() | paused
        configured = self._configured - names if now >= self._configured_at else frozenset()
        if not names and not configured:
            return
        complete = self._remote is not None and all(worker.queues is not None for worker in workers)
        skews = {worker.hostname: worker.skew for worker in workers if worker.skew is not None}
        sampled = self._probe.sample(sorted(names | configured))
        if absent := {queue.name for queue in sampled if queue.ready is None} & configured:
            self._configured_at = now + self._settings.inspect_seconds  # each refusal is a line in RabbitMQ's log
        measured = self._oldest.of([each for each in sampled if each.name not in absent], skews, time.time())
        queues = [_consumed(queue, consumers, complete) for queue in measured]
        save_queues(self._store, self._cluster, queues, now, self._samples.rising(queues, now))

    # Workers

    def _greet(self, remote: Remote, names: Sequence[str], patience: float) -> None:
        """Asks these alone: an answer takes milliseconds then. Task events are on before anything else is asked."""
        stats = remote.ask("stats", destination=names, timeout=patience) if names else {}
        if not stats:
            return
        self._store_answers({}, stats)
        self._switches.judge(stats, time.time())
        queues = remote.ask("active_queues", destination=list(stats), timeout=ANSWER_SECONDS)
        self._store_answers({name: (reply,) for name, reply in queues.items()}, stats)

    def _inspect(self, remote: Remote, workers: Sequence[Worker], now: float) -> None:
        """Asks everybody who is up."""
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
        answers = {name: _answer(queues.get(name, ()), stats.get(name)) for name in {*queues, *stats}}
        told = {name: answer for name, answer in answers.items() if answer}
        if not told:
            return
        merged = self._merge(told, time.time())
        with_queues = [each for each in merged if "queues" in told[each.hostname]]
        self._newcomers.answered((each.hostname, each.pid) for each in with_queues)
        if with_queues:
            self._queues_are_new.set()

    def _merge(self, answers: Mapping[str, dict[str, object]], now: float) -> list[Worker]:
        """Adds what workers answered to what events told of them. Who was never heard of is new."""
        with self._store.begin() as connection:
            number = cluster_id(self._store, connection, self._cluster)
            known = load_workers(connection, number, list(answers))
            merged = []
            for hostname, answer in answers.items():
                worker = known.get(hostname) or Worker(
                    cluster=self._cluster, hostname=hostname, status=WorkerStatus.ONLINE, first_seen=now
                )
                pid = worker.pid or answer.get("pid")  # events are newer than an answer to an older question
                # Asked after it left; one that said goodbye answers nothing, so that was another process.
                left = worker.status is WorkerStatus.OFFLINE and not worker.said_goodbye
                if left and (worker.offline_at or 0.0) < now:
                    worker = msgspec.structs.replace(worker, status=WorkerStatus.ONLINE, offline_at=None)
                merged.append(msgspec.structs.replace(worker, **{**answer, "pid": pid, "inspected_at": now}))
            save_workers(self._store, connection, number, merged)
        return merged


def _wait(stop: threading.Event, wake: threading.Event | None, seconds: float) -> None:
    """Until so many seconds are over, or until somebody wakes or stops us."""
    if wake is None:
        stop.wait(seconds)
        return
    deadline = time.monotonic() + seconds
    while not wake.is_set() and (left := deadline - time.monotonic()) > 0 and not stop.wait(min(left, WAKE_SECONDS)):
        pass
    wake.clear()


def _consumed(queue: Queue, consumers: Mapping[str, Sequence[str]], complete: bool) -> Queue:
    """Adds who consumes. Where the broker counts no consumers, workers that all said what they consume are counted."""
    workers = tuple(sorted(consumers.get(queue.name, ())))
    counted = len(workers) if queue.consumers is None and complete else queue.consumers
    return msgspec.structs.replace(queue, workers=workers, consumers=counted)


def _twin_processes(workers: Sequence[Worker]) -> set[Process]:
    return {(worker.hostname, pid) for worker in workers for pid in duplicate_pids(worker)}


def _ask(remote: Remote, question: str, expected: Sequence[str], *, doubled: bool) -> dict[str, list[Reply]]:
    """All answers by node name. Where one is of several processes, everybody is waited for."""
    replies: dict[str, list[Reply]] = {}
    remote.ask(
        question,
        timeout=ANSWER_SECONDS,
        on_reply=lambda reply: replies.setdefault(reply.worker, []).append(reply),
        expected=() if doubled else expected,
    )
    return replies


def _of_process(replies: Sequence[Reply], pid: int | None) -> Reply:
    """The answer of this process, where several have answered under one name."""
    return next((each for each in replies if whole(fields_of(each).get("pid")) == pid), replies[0])


def _answer(queues: Sequence[Reply], stats: Reply | None) -> dict[str, object]:
    """What the answers of one worker say, as fields of Worker; only what was answered."""
    answer: dict[str, object] = {}
    listed = [reply.ok for reply in queues if isinstance(reply.ok, list)]
    if listed:
        named = [each for found in listed for each in found if isinstance(each, dict) and each.get("name")]
        answer["queues"] = tuple(sorted({str(each.get("name")) for each in named}))
    fields = fields_of(stats)
    if fields:
        pool = fields.get("pool")
        pool = pool if isinstance(pool, dict) else {}
        answer["pid"] = whole(fields.get("pid"))
        answer["prefetch"] = whole(fields.get("prefetch_count"))
        answer["pool"] = _pool_name(pool.get("implementation"))
        answer["pool_size"] = _pool_size(pool)
        answer["rusage"] = _rusage(fields.get("rusage"))
    return answer


def _pool_size(pool: Mapping[str, object]) -> int | None:
    """prefork says the size that it began with for ever; the processes that live stand beside it."""
    processes = pool.get("processes")
    return len(processes) if isinstance(processes, list) else whole(pool.get("max-concurrency"))


def _pool_name(implementation: object) -> str | None:
    """``prefork`` of ``celery.concurrency.prefork:TaskPool``."""
    if not isinstance(implementation, str):
        return None
    return implementation.partition(":")[0].rpartition(".")[2] or None


def _rusage(given: object) -> dict[str, float] | None:
    if not isinstance(given, dict):
        return None
    kept = {name: given[name] for name in RUSAGE_KEPT if isinstance(given.get(name), (int, float))}
    return {name: float(value) for name, value in kept.items()} or None
