"""Measures queues and asks workers about themselves, beside the stream of events."""

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import msgspec

from monitor.brokers.application import configured_queues
from monitor.brokers.generic import Probe
from monitor.brokers.remote import Remote
from monitor.brokers.remote import Reply
from monitor.errors import MonitorError
from monitor.errors import Unsupported
from monitor.receiver.rises import Rises
from monitor.receiver.schedules import Schedules
from monitor.receiver.switches import ANSWER_SECONDS
from monitor.receiver.switches import Process
from monitor.receiver.switches import Switches
from monitor.receiver.switches import fields_of
from monitor.receiver.switches import whole
from monitor.records import Queue
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.settings import Settings
from monitor.store import journal
from monitor.store import queries
from monitor.store import standing
from monitor.store.engine import Store
from monitor.store.terms import cluster_id

RUSAGE_KEPT = ("utime", "stime", "maxrss")

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
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._probe = probe
        self._remote: Remote | None = remote
        self._settings = settings
        self._inspected_at = 0.0
        self._known: set[Process] = set()  # those that were asked
        self._switches = Switches(store, cluster, remote, settings, notice)
        self._rises = Rises()
        self._schedules = Schedules(store, remote.broker, settings)
        self._configured = configured_queues(remote.broker, settings)
        self._configured_at = 0.0  # when those that nobody has declared are looked for again

    def run(self, stop: threading.Event) -> None:
        """Asks workers until told to stop; broker and database may come and go."""
        self._keep(stop, self.ask, "workers cannot be asked")

    def run_queues(self, stop: threading.Event) -> None:
        """Measures queues until told to stop. Apart from the workers, of whom some may let us wait for answers."""
        self._keep(stop, self.measure, "queues cannot be measured")
        self._probe.close()

    def run_schedules(self, stop: threading.Event) -> None:
        """Looks after the schedule until told to stop."""
        self._keep(stop, lambda now: self._schedules.step(self._up(), self._remote, now), "the schedule is not judged")

    def _keep(self, stop: threading.Event, step: Callable[[float], float | None], trouble: str) -> None:
        """A step every ``sample_seconds``, begin to begin, or after as many as it says where those are fewer."""
        said = ""
        while not stop.is_set():
            began, sooner = time.monotonic(), None
            try:
                sooner = step(time.time())
                said = ""
            except MonitorError as error:
                if error.message != said:
                    log.warning("%s, of %s: %s", trouble, self._cluster, error)
                said = error.message
            stop.wait(self._rest(sooner, time.monotonic() - began))

    def _rest(self, sooner: float | None, spent: float) -> float:
        """Half of the time at least, where a step takes long: the broker, or the database, is slow already."""
        period = self._settings.sample_seconds
        rest = max(period / 2, period - spent)
        return rest if sooner is None else min(rest, max(0.0, sooner - spent))

    def ask(self, now: float) -> None:
        """Asks the workers where it is time or one is new, else those whose task events may turn out to be off.

        Raises Broker- and StoreUnavailable.
        """
        workers = self._up()
        new = {(worker.hostname, worker.pid) for worker in workers} - self._known
        if self._remote and (new or now - self._inspected_at >= self._settings.inspect_seconds):
            try:
                self._inspect(self._remote, workers, now)
            except Unsupported as error:
                log.info("%s", error)
                self._remote = None
        elif self._remote:
            self._switches.ask_again(workers, now)

    def _up(self) -> list[Worker]:
        return [w for w in queries.workers(self._store, self._cluster) if w.status is not WorkerStatus.OFFLINE]

    # Queues

    def measure(self, now: float) -> None:
        """One sample of every queue. Raises Broker- and StoreUnavailable."""
        workers = self._up()
        consumers: dict[str, list[str]] = {}
        for worker in workers:
            for queue in worker.queues or ():
                consumers.setdefault(queue, []).append(worker.hostname)
        names = sorted(standing.queue_names(self._store, self._cluster) | consumers.keys())
        configured = self._configured - set(names) if now >= self._configured_at else frozenset()
        if not names and not configured:
            return
        complete = self._remote is not None and all(worker.queues is not None for worker in workers)
        measured = self._probe.sample([*names, *sorted(configured)])
        if absent := {queue.name for queue in measured if queue.ready is None} & configured:
            self._configured_at = now + self._settings.inspect_seconds  # each refusal is a line in RabbitMQ's log
        queues = [_consumed(queue, consumers, complete) for queue in measured if queue.name not in absent]
        journal.save_queues(self._store, self._cluster, queues, now, self._rises.after(queues, now))

    # Workers

    def _inspect(self, remote: Remote, workers: Sequence[Worker], now: float) -> None:
        """Asks everybody who is up."""
        expected = [worker.hostname for worker in workers]
        queues = remote.ask("active_queues", timeout=ANSWER_SECONDS, expected=expected)
        stats = remote.ask("stats", timeout=ANSWER_SECONDS, expected=sorted({*expected, *queues}))
        self._inspected_at = now
        answers = {name: _answer(queues.get(name), stats.get(name)) for name in {*queues, *stats}}
        self._merge({name: answer for name, answer in answers.items() if answer}, now)
        self._switches.judge(stats, now)
        self._switches.keep_only(stats)
        self._known = {(worker.hostname, worker.pid) for worker in self._up()}

    def _merge(self, answers: Mapping[str, dict[str, object]], now: float) -> None:
        """Adds what workers answered to what events told of them. Who was never heard of is new."""
        with self._store.begin() as connection:
            number = cluster_id(self._store, connection, self._cluster)
            known = journal.load_workers(connection, number, list(answers))
            merged = []
            for hostname, answer in answers.items():
                worker = known.get(hostname) or Worker(
                    cluster=self._cluster, hostname=hostname, status=WorkerStatus.ONLINE, first_seen=now
                )
                pid = worker.pid or answer.get("pid")  # events are newer than an answer to an older question
                if worker.status is WorkerStatus.OFFLINE and (worker.offline_at or 0.0) < now:  # asked after it left
                    worker = msgspec.structs.replace(worker, status=WorkerStatus.ONLINE, offline_at=None)
                merged.append(msgspec.structs.replace(worker, **{**answer, "pid": pid, "inspected_at": now}))
            journal.save_workers(self._store, connection, number, merged)


def _consumed(queue: Queue, consumers: Mapping[str, Sequence[str]], complete: bool) -> Queue:
    """Adds who consumes. Where the broker counts no consumers, workers that all said what they consume are counted."""
    workers = tuple(sorted(consumers.get(queue.name, ())))
    counted = len(workers) if queue.consumers is None and complete else queue.consumers
    return msgspec.structs.replace(queue, workers=workers, consumers=counted)


def _answer(queues: Reply | None, stats: Reply | None) -> dict[str, object]:
    """What the answers of one worker say, as fields of Worker; only what was answered."""
    answer: dict[str, object] = {}
    if queues is not None and isinstance(queues.ok, list):
        names = [str(each.get("name")) for each in queues.ok if isinstance(each, dict) and each.get("name")]
        answer["queues"] = tuple(sorted(names))
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
