"""What the answers of workers mean: a yes is checked where Celery says yes to everything."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from celery_monitor.control.commands import TaskResult
from celery_monitor.control.inspect import queue_names
from celery_monitor.control.target import ANSWER_SECONDS, Target
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store.workers import change_workers, read_workers

SETTLE_SECONDS = 1.5  # in which a worker that said yes is expected to have done it
POLL_SECONDS = 0.05
# Texts of celery/worker/control.py and celery/concurrency; the first that is found says what to do.
REFUSALS = (
    ("not supported with autoscale", "It scales itself (--autoscale): change that range instead."),
    ("Autoscale not enabled", "It was not started with --autoscale, so it has no range. Grow or shrink its pool."),
    ("restarts not enabled", "Its configuration forbids it: set worker_pool_restarts = True and start it again."),
    ("All processes busy", "All its processes are busy, and none was taken away. Try again when one is free."),
    ("unknown task", "It has no task of that name."),
    ("event dispatcher unavailable", "It sends no events at all, or is just starting."),
)
FIXED_POOL = ("NotImplementedError", "has no attribute 'grow'", "has no attribute 'shrink'", "AttributeError")


@dataclass(frozen=True, slots=True)
class Answer:
    """A yes of one worker. ``processes``: how many it had, where their number is to change."""

    target: Target
    worker: Worker
    value: object
    processes: int | None = None

    @property
    def text(self) -> str:
        return f"It answered: {self.value}."

    def done(self, message: str | None = None) -> TaskResult:
        return done(self.worker.hostname, message or self.text)

    def failed(self, message: str) -> TaskResult:
        return failed(self.worker.hostname, message)

    def record(self, **fields: object) -> None:
        record(self.target, self.worker.hostname, **fields)


def done(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="done", message=message)


def unconfirmed(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="unconfirmed", message=message)


def failed(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="failed", message=message)


def silent(worker: Worker) -> TaskResult:
    """Nobody answered: it may be gone, or do it when it is free. Workers do not check when a command expired."""
    if worker.status is WorkerStatus.OFFLINE:
        return unconfirmed(worker.hostname, "Sent, unconfirmed: it is offline, and nobody answered.")
    busy = " A solo pool is silent while it runs a task." if worker.pool == "solo" else ""
    return unconfirmed(
        worker.hostname, f"Sent, unconfirmed: it did not answer. It may be gone, or do it once it is free.{busy}"
    )


def refused(remote: str, worker: Worker, error: str) -> TaskResult:
    """A worker's own error with what it means."""
    return failed(worker.hostname, f"{_meaning(remote, worker, error)} It answered: {error}")


def _meaning(remote: str, worker: Worker, error: str) -> str:
    for text, words in REFUSALS:
        if text in error:
            return words
    if remote.startswith("pool_") and any(text in error for text in FIXED_POOL):
        kind = f"A {worker.pool} pool" if worker.pool else "Its pool"
        return f"{kind} cannot change while it runs: start the worker again with another --concurrency."
    return "It refused."


def consuming(target: Target, name: str, queue: str, *, wanted: bool) -> TaskResult:
    """Workers say yes to whatever they are asked; what they then consume is what counts."""
    queues = _settled(target, name, queue, wanted=wanted)
    if queues is None:
        return unconfirmed(name, "It said yes, and then did not tell what it takes from.")
    record(target, name, queues=tuple(sorted(queues)))
    if (queue in queues) is not wanted:
        still = "does not take from it" if wanted else "still takes from it"
        return failed(name, f"It said yes, and {still}. Its log says why.")
    others = ", ".join(sorted(queues)) or "no queue at all"
    if wanted:
        return done(name, f"It takes from {queue}; now from {others}.")
    return done(name, f"It takes no more from {queue}; now from {others}. What it has already taken still runs.")


def _settled(target: Target, name: str, queue: str, *, wanted: bool) -> list[str] | None:
    """What it consumes once that is as wanted, or in the end; ``None``: it does not say."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        reply = target.remote.ask("active_queues", {}, [name], ANSWER_SECONDS).get(name)
        queues = queue_names(reply.ok) if reply else None
        if queues is None or (queue in queues) is wanted or time.monotonic() > deadline:
            return queues
        time.sleep(POLL_SECONDS)


def record(target: Target, name: str, **fields: object) -> None:
    """Into the record at once: the receiver asks again only later."""
    change_workers(target.store, target.cluster, [name], lambda worker: msgspec.structs.replace(worker, **fields))


def recorded(target: Target, names: Sequence[str]) -> Mapping[str, Worker]:
    """What the record has of them; nothing but the name where it has none."""
    recorded = {worker.hostname: worker for worker in read_workers(target.store, target.cluster)}
    nobody = {name: Worker(cluster=target.cluster, hostname=name, status=WorkerStatus.SILENT) for name in names}
    return {name: recorded.get(name, nobody[name]) for name in names}
