"""What the answers of workers mean, command by command. A yes is checked where Celery says yes to everything."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from typing import Generic
from typing import TypeVar

import msgspec

from monitor.brokers.remote import Reply
from monitor.control.answers import done
from monitor.control.answers import failed
from monitor.control.answers import refused
from monitor.control.answers import silent
from monitor.control.answers import unconfirmed
from monitor.control.commands import TaskResult
from monitor.control.inspect import queue_names
from monitor.control.target import ANSWER_SECONDS
from monitor.control.target import Target
from monitor.control.worker_commands import AddConsumer
from monitor.control.worker_commands import Autoscale
from monitor.control.worker_commands import CancelConsumer
from monitor.control.worker_commands import DisableEvents
from monitor.control.worker_commands import EnableEvents
from monitor.control.worker_commands import PoolGrow
from monitor.control.worker_commands import PoolRestart
from monitor.control.worker_commands import PoolShrink
from monitor.control.worker_commands import RateLimit
from monitor.control.worker_commands import RevokeStamped
from monitor.control.worker_commands import TimeLimit
from monitor.control.worker_commands import WorkerCommand
from monitor.records import Worker
from monitor.store.journal import change_workers

SETTLE_SECONDS = 1.5  # in which a worker that said yes is expected to have done it
POLL_SECONDS = 0.05
LIMITED_POOLS = {"prefork"}  # where time limits are kept, and processes replaced
UNITS = {"s": "second", "m": "minute", "h": "hour"}

Asked = TypeVar("Asked", bound=WorkerCommand)


@dataclass(frozen=True, slots=True)
class Answer(Generic[Asked]):
    """A yes of one worker."""

    target: Target
    command: Asked
    worker: Worker
    reply: Reply
    before: int | None = None  # processes, where their number is to change

    @property
    def name(self) -> str:
        return self.worker.hostname

    @property
    def said(self) -> str:
        return f"It answered: {self.reply.ok}."


def judge(
    target: Target, command: WorkerCommand, worker: Worker, reply: Reply | None, before: int | None = None
) -> TaskResult:
    """What the answer of one worker means, or its silence; ``before``: how many processes it had."""
    if reply is None:
        return silent(worker)
    if reply.error is not None:
        return refused(command, worker, reply.error)
    return _JUDGES[type(command)](Answer(target, command, worker, reply, before))


def _grown(answer: Answer[PoolGrow]) -> TaskResult:
    return _resized(answer, answer.command.number)


def _shrunk(answer: Answer[PoolShrink]) -> TaskResult:
    return _resized(answer, -answer.command.number)


def _resized(answer: Answer[Any], change: int) -> TaskResult:
    """prefork looks every 5 seconds how many processes it should have."""
    if answer.before is None:
        return done(answer.name, f"{answer.said} How many processes it had is not known.")
    after = answer.before + change
    message = f"{answer.said} From {answer.before} to {after} processes, within some seconds."
    _remember(answer.target, answer.name, pool_size=after)
    return done(answer.name, message)


def _restarted(answer: Answer[PoolRestart]) -> TaskResult:
    pool = answer.worker.pool
    if pool is not None and pool not in LIMITED_POOLS:
        message = f"{answer.said} But a {pool} pool has no processes to replace: only modules are loaded."
        return failed(answer.name, message)
    return done(answer.name, answer.said)


def _autoscaled(answer: Answer[Autoscale]) -> TaskResult:
    return done(answer.name, answer.said)


def _added(answer: Answer[AddConsumer]) -> TaskResult:
    return consuming(answer.target, answer.name, answer.command.queue, wanted=True)


def _cancelled(answer: Answer[CancelConsumer]) -> TaskResult:
    return consuming(answer.target, answer.name, answer.command.queue, wanted=False)


def consuming(target: Target, name: str, queue: str, *, wanted: bool) -> TaskResult:
    """Workers say yes to whatever they are asked; what they then take from is what counts."""
    queues = _settled(target, name, queue, wanted=wanted)
    if queues is None:
        return unconfirmed(name, "It said yes, and then did not tell what it takes from.")
    _remember(target, name, queues=tuple(sorted(queues)))
    if (queue in queues) is not wanted:
        still = "does not take from it" if wanted else "still takes from it"
        return failed(name, f"It said yes, and {still}. Its log says why.")
    others = ", ".join(sorted(queues)) or "no queue at all"
    if wanted:
        return done(name, f"It takes from {queue}; now from {others}.")
    return done(name, f"It takes no more from {queue}; now from {others}. What it has already taken still runs.")


def _settled(target: Target, name: str, queue: str, *, wanted: bool) -> list[str] | None:
    """What it takes from once that is as wanted, or in the end; ``None``: it does not say."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        reply = target.remote.ask("active_queues", {}, [name], ANSWER_SECONDS).get(name)
        queues = queue_names(reply.ok) if reply else None
        if queues is None or (queue in queues) is wanted or time.monotonic() > deadline:
            return queues
        time.sleep(POLL_SECONDS)


def _rate_limited(answer: Answer[RateLimit]) -> TaskResult:
    limit = (
        "without a limit"
        if float(answer.command.rate.partition("/")[0]) == 0
        else f"at most {_per(answer.command.rate)}"
    )
    return done(answer.name, f"It runs {answer.command.task} {limit}, until it is started again.")


def _per(rate: str) -> str:
    number, _, unit = rate.partition("/")
    return f"{number} per {UNITS[unit or 's']}"


def _time_limited(answer: Answer[TimeLimit]) -> TaskResult:
    """Celery's request classes keep the limits of the time they were made (celery.worker.request)."""
    soft = "no soft limit" if answer.command.soft is None else f"a soft limit of {answer.command.soft:g} s"
    hard = "no hard limit" if answer.command.hard is None else f"a hard limit of {answer.command.hard:g} s"
    pool = answer.worker.pool
    if pool is not None and pool not in LIMITED_POOLS:
        return failed(answer.name, f"{answer.said} But a {pool} pool keeps no time limits.")
    return unconfirmed(
        answer.name,
        f"{answer.said} {answer.command.task} has {soft} and {hard} from when its pool is restarted or it connects "
        "to its broker again; until then Celery keeps the limits from before.",
    )


def _events_on(answer: Answer[EnableEvents]) -> TaskResult:
    _remember(answer.target, answer.name, events_enabled=True)
    return done(answer.name, answer.said)


def _events_off(answer: Answer[DisableEvents]) -> TaskResult:
    """A worker started with -E sends every group, and finds that there is nothing to take away."""
    if answer.reply.ok == "task events already disabled":
        message = (
            "It has nothing to turn off. A worker that was started with -E sends task events whatever it is told: "
            "start it without -E."
        )
        return failed(answer.name, message)
    _remember(answer.target, answer.name, events_enabled=False)
    return done(answer.name, "It sends no more task events: what it runs is not seen here from now on.")


def _stamp_revoked(answer: Answer[RevokeStamped]) -> TaskResult:
    skips = "It skips tasks with this stamp when their turn comes, until it is started again."
    if not answer.command.terminate:
        return done(answer.name, f"{skips} What it runs already goes on.")
    if "not terminated" in str(answer.reply.ok):
        return done(answer.name, f"{skips} Nothing that it runs has the stamp.")
    return done(answer.name, f"{skips} It kills the processes that run some: {answer.reply.ok}.")


def _remember(target: Target, name: str, **fields: object) -> None:
    """What it said goes into the record at once; the receiver asks again only later."""
    change_workers(target.store, target.cluster, [name], lambda worker: msgspec.structs.replace(worker, **fields))


_JUDGES: dict[type[WorkerCommand], Callable[[Answer[Any]], TaskResult]] = {
    Autoscale: _autoscaled,
    PoolGrow: _grown,
    PoolShrink: _shrunk,
    PoolRestart: _restarted,
    AddConsumer: _added,
    CancelConsumer: _cancelled,
    RateLimit: _rate_limited,
    TimeLimit: _time_limited,
    EnableEvents: _events_on,
    DisableEvents: _events_off,
    RevokeStamped: _stamp_revoked,
}
