"""What is asked of workers themselves, and what came of it: their answer, their refusal, or silence."""

import time
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace

from monitor.control.answers import done
from monitor.control.answers import failed
from monitor.control.answers import silent
from monitor.control.answers import unconfirmed
from monitor.control.commands import MAX_TASKS
from monitor.control.commands import SIGNALS
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.control.inspect import pool_processes
from monitor.control.target import ANSWER_SECONDS
from monitor.control.target import Target
from monitor.control.target import summary
from monitor.control.verdicts import judge
from monitor.control.worker_commands import PoolGrow
from monitor.control.worker_commands import PoolShrink
from monitor.control.worker_commands import RevokeStamped
from monitor.control.worker_commands import Shutdown
from monitor.control.worker_commands import WorkerCommand
from monitor.errors import Conflict
from monitor.errors import InvalidInput
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.store import queries

GOODBYE_SECONDS = 3.0  # in which an idle worker says goodbye
POLL_SECONDS = 0.05


def tell_workers(target: Target, command: WorkerCommand) -> Performed:
    """Sends it and tells what each worker answered; the name of a worker stands as the ``id`` of its result."""
    command.check()
    names = list(dict.fromkeys(command.workers))
    if not 0 < len(names) <= MAX_TASKS:
        raise InvalidInput(f"{len(names)} workers were named; name 1 to {MAX_TASKS}")
    if isinstance(command, Shutdown):
        return _shut_down(target, names[0])
    known = _known(target, names)
    sizes = _sizes(target, command, names)
    refusals = _too_few(command, sizes)
    asked = [name for name in names if name not in refusals]
    replies = target.remote.ask(command.method, command.arguments, asked, ANSWER_SECONDS)
    results = [
        refusals.get(name) or judge(target, command, known[name], replies.get(name), sizes.get(name)) for name in names
    ]
    return collected(command, results)


def collected(command: WorkerCommand, results: Sequence[TaskResult]) -> Performed:
    """One worker's own words, or the sum of many."""
    given = {name: value for name, value in command.arguments.items() if value is not None}
    if len(results) > 1:
        answers = {result.id: result.message for result in results}
        return summary(command.method.replace("_", " ").capitalize(), results, asked=given, answers=answers)
    (result,) = results
    outcome = "failed" if result.outcome == "skipped" else result.outcome
    return Performed(
        outcome=outcome, message=f"{result.id}: {result.message}", results=(result,), details={"asked": given}
    )


def revoke_stamped(target: Target, command: RevokeStamped) -> Performed:
    """Tells the workers that are named, or everybody who lives."""
    if command.signal not in SIGNALS:
        raise InvalidInput(f"signal {command.signal!r} is not one of {', '.join(SIGNALS)}")
    workers = command.workers or tuple(target.living_workers())
    if not workers:
        raise Conflict("No worker is up: nobody would hear of it, and one that starts later does not know of it.")
    return tell_workers(target, replace(command, workers=workers))


def _known(target: Target, names: Sequence[str]) -> Mapping[str, Worker]:
    """What the record has of them; nothing but the name where it has none."""
    recorded = {worker.hostname: worker for worker in queries.workers(target.store, target.cluster)}
    nobody = {name: Worker(cluster=target.cluster, hostname=name, status=WorkerStatus.SILENT) for name in names}
    return {name: recorded.get(name, nobody[name]) for name in names}


def _sizes(target: Target, command: WorkerCommand, names: Sequence[str]) -> dict[str, int | None]:
    """How many processes each worker has, where the command is about that."""
    if not isinstance(command, PoolGrow | PoolShrink):
        return {}
    stats = target.remote.ask("stats", {}, names, ANSWER_SECONDS)
    return {name: pool_processes(reply.ok) for name, reply in stats.items()}


def _too_few(command: WorkerCommand, sizes: Mapping[str, int | None]) -> Mapping[str, TaskResult]:
    """Celery takes the last process away without a word, and the worker then holds tasks that it never runs."""
    if not isinstance(command, PoolShrink):
        return {}
    number = command.number
    return {
        name: failed(
            name, f"It has {size} processes: taking {number} leaves none to run tasks. Nothing was sent to it."
        )
        for name, size in sizes.items()
        if size is not None and size <= number
    }


def _shut_down(target: Target, name: str) -> Performed:
    """Workers do not answer this one: their goodbye does, once what they run has ended."""
    alive = target.remote.ask("ping", {}, [name], ANSWER_SECONDS)
    target.remote.ask("shutdown", {}, [name], POLL_SECONDS)
    said = _goodbye(target, name) if alive else False
    if said:
        result = done(name, "It has said goodbye: it takes no more, and ends once what it runs has ended.")
    elif alive:
        result = unconfirmed(name, "Sent. It ends once what it runs has ended; it has not said goodbye yet.")
    else:
        result = silent(_known(target, [name])[name])
    return Performed(outcome="done" if said else "unconfirmed", message=f"{name}: {result.message}", results=(result,))


def _goodbye(target: Target, name: str) -> bool:
    deadline = time.monotonic() + GOODBYE_SECONDS
    while time.monotonic() < deadline:
        if _known(target, [name])[name].status is WorkerStatus.OFFLINE:
            return True
        time.sleep(POLL_SECONDS)
    return False
