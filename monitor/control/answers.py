"""What the answers of workers mean, in words. No I/O."""

from monitor.control.commands import TaskResult
from monitor.control.worker_commands import WorkerCommand
from monitor.records import Worker
from monitor.records import WorkerStatus

# Texts of celery/worker/control.py and celery/concurrency; the first that is found says what to do.
REFUSALS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("not supported with autoscale",), "It scales itself (--autoscale): change that range instead."),
    (("Autoscale not enabled",), "It was not started with --autoscale, so it has no range. Grow or shrink its pool."),
    (("restarts not enabled",), "Its configuration forbids it: set worker_pool_restarts = True and start it again."),
    (("All processes busy",), "All its processes are busy, and none was taken away. Try again when one is free."),
    (("unknown task",), "It has no task of that name."),
    (("event dispatcher unavailable",), "It sends no events at all, or is just starting."),
)
FIXED_POOL = ("NotImplementedError", "has no attribute 'grow'", "has no attribute 'shrink'", "AttributeError")


def done(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="done", message=message)


def unconfirmed(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="unconfirmed", message=message)


def failed(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="failed", message=message)


def silent(worker: Worker) -> TaskResult:
    """Nobody answered: it may be gone, or do it when it is free. Workers do not look when a command expired."""
    if worker.status is WorkerStatus.OFFLINE:
        return unconfirmed(worker.hostname, "Sent, unconfirmed: it is offline, and nobody answered.")
    busy = " A solo pool is silent while it runs a task." if worker.pool == "solo" else ""
    return unconfirmed(
        worker.hostname, f"Sent, unconfirmed: it did not answer. It may be gone, or do it once it is free.{busy}"
    )


def refused(command: WorkerCommand, worker: Worker, error: str) -> TaskResult:
    """A worker's own error with what it means."""
    return failed(worker.hostname, f"{_meaning(command, worker, error)} It answered: {error}")


def _meaning(command: WorkerCommand, worker: Worker, error: str) -> str:
    for texts, words in REFUSALS:
        if any(text in error for text in texts):
            return words
    if command.method.startswith("pool_") and any(text in error for text in FIXED_POOL):
        kind = f"A {worker.pool} pool" if worker.pool else "Its pool"
        return f"{kind} cannot change while it runs: start the worker again with another --concurrency."
    return "It refused."
