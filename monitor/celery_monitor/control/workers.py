"""Commands to workers: Celery's own command for each, its limits, and what an answer means.

Celery answers yes to almost everything, so a yes is checked where that is possible.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from celery_monitor.brokers.remote import Reply
from celery_monitor.control.commands import (
    ANSWER_SECONDS,
    MAX_TASKS,
    ClusterCommand,
    Name,
    Performed,
    Target,
    TaskResult,
    TypedName,
    done,
    failed,
    require_typed,
    summary,
    unconfirmed,
)
from celery_monitor.control.inspect import pool_processes, queue_names, workers_of
from celery_monitor.errors import InvalidInput
from celery_monitor.records.user import Role
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store.workers import change_workers

ON_WORKER = "workers/{hostname:name}/"
MAX_PROCESSES = 1000  # of one step of a pool; a typing error must not fork a machine to death
RATE = r"^[0-9]{1,9}(\.[0-9]{1,9})?(/[smh])?$"  # celery.utils.time.rate
UNITS = {"s": "second", "m": "minute", "h": "hour"}
PROCESS_POOLS = {"prefork"}  # pools with time limits and with processes to replace
OFFLINE_SECONDS = 3.0  # in which an idle worker goes offline
CONSUMING_SECONDS = 1.5  # in which a worker consumes, or stops consuming, a queue
POLL_SECONDS = 0.05
# Texts of celery/worker/control.py and celery/concurrency; the first that is found gives the advice.
REFUSALS = (
    ("not supported with autoscale", "This worker autoscales (--autoscale): change its range instead."),
    ("Autoscale not enabled", "Started without --autoscale, so there is no range. Grow or shrink the pool."),
    ("restarts not enabled", "Disabled by configuration: set worker_pool_restarts = True and restart the worker."),
    ("All processes busy", "All pool processes are busy, so none was removed. Try again when one is free."),
    ("unknown task", "The worker has no task of that name."),
    ("event dispatcher unavailable", "The worker sends no events at all, or is just starting."),
)
FIXED_POOL = ("NotImplementedError", "has no attribute 'grow'", "has no attribute 'shrink'", "AttributeError")

Processes = Annotated[float, Meta(ge=1, le=MAX_PROCESSES, multiple_of=1)]
Limit = Annotated[
    float, Meta(gt=0, le=31_536_000, description="Seconds; null removes this limit", extra={"unit": " seconds"})
]


@dataclass(frozen=True, slots=True)
class Answer:
    """The yes of one worker. ``processes``: how many it had before, for a command that changes their number."""

    target: Target
    worker: Worker
    value: object
    processes: int | None = None

    @property
    def text(self) -> str:
        return f"Answer: {self.value}."

    def done(self, message: str | None = None) -> TaskResult:
        return done(self.worker.hostname, message or self.text)

    def failed(self, message: str) -> TaskResult:
        return failed(self.worker.hostname, message)

    def save(self, **fields: object) -> None:
        """Updates the record at once; the receiver would only ask the worker later."""
        names = [self.worker.hostname]
        change_workers(
            self.target.store, self.target.cluster, names, lambda each: msgspec.structs.replace(each, **fields)
        )


class WorkerCommand(ClusterCommand, frozen=True, kw_only=True):
    """A command to these workers. ``remote`` is Celery's name for it."""

    role = Role.OPERATOR
    address = ("cluster", "workers")
    remote: ClassVar[str]
    workers: tuple[str, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.workers

    @property
    def arguments(self) -> dict[str, object]:
        """Arguments of Celery's command."""
        return {}

    def run(self, target: Target) -> Performed:
        return ask_workers(target, self)

    def judge(self, answer: Answer) -> TaskResult:
        """The result that a worker's yes stands for."""
        return answer.done()


class ResizePool(WorkerCommand, frozen=True, kw_only=True):
    """Change the number of processes."""

    body = "PoolBody"
    note = "a pool of threads is fixed"
    number: Processes = 1

    @property
    def arguments(self) -> dict[str, object]:
        return {"n": self.number}

    @property
    def change(self) -> int:
        return int(self.number)

    def run(self, target: Target) -> Performed:
        """Celery would silently remove the last process, and the worker would then keep tasks that never run."""
        stats = target.remote.ask("stats", {}, distinct_workers(self), ANSWER_SECONDS)
        processes = {name: pool_processes(reply.ok) for name, reply in stats.items()}
        refused = {
            name: f"The pool has {number} processes; removing {self.number} would leave none. Nothing was sent."
            for name, number in processes.items()
            if number is not None and number + self.change < 1
        }
        return ask_workers(target, self, processes, refused)

    def judge(self, answer: Answer) -> TaskResult:
        """Prefork checks every 5 seconds how many processes it should have."""
        if answer.processes is None:
            return answer.done(f"{answer.text} The number of processes before is unknown.")
        after = answer.processes + self.change
        answer.save(pool_size=after)
        return answer.done(f"{answer.text} From {answer.processes} to {after} processes, within seconds.")


class GrowPool(ResizePool, frozen=True, kw_only=True):
    """Add processes to a worker's pool.

    The number of processes.
    """

    action = "worker.pool_grow"
    route = ON_WORKER + "grow"
    remote = "pool_grow"


class ShrinkPool(ResizePool, frozen=True, kw_only=True):
    """Remove processes from a worker's pool, never the last one."""

    action = "worker.pool_shrink"
    route = ON_WORKER + "shrink"
    remote = "pool_shrink"

    @property
    def change(self) -> int:
        return -int(self.number)


class RestartPool(WorkerCommand, frozen=True, kw_only=True):
    """Restart a worker's pool: each process is replaced once its task has ended."""

    action = "worker.pool_restart"
    route = ON_WORKER + "restart"
    remote = "pool_restart"
    note = "needs `worker_pool_restarts`; a process that hangs is not replaced"

    def judge(self, answer: Answer) -> TaskResult:
        pool = answer.worker.pool
        if pool is not None and pool not in PROCESS_POOLS:
            return answer.failed(f"{answer.text} But a {pool} pool has no processes: only modules are reloaded.")
        return answer.done()


class Autoscale(WorkerCommand, frozen=True, kw_only=True):
    """Change the range in which a worker autoscales.

    The new range of processes; minimum is at most maximum.
    """

    action = "worker.autoscale"
    route = ON_WORKER + "autoscale"
    body = "AutoscaleBody"
    remote = "autoscale"
    note = "needs `--autoscale`"
    maximum: Processes
    minimum: Annotated[float, Meta(ge=0, le=MAX_PROCESSES, multiple_of=1)]

    @property
    def arguments(self) -> dict[str, object]:
        return {"max": self.maximum, "min": self.minimum}

    def check(self) -> None:
        super().check()
        if self.minimum > self.maximum:
            raise InvalidInput(f"minimum {self.minimum} is more than maximum {self.maximum}", field="minimum")


class ConsumerCommand(WorkerCommand, frozen=True, kw_only=True):
    """Start or stop consuming one queue."""

    body = "ConsumerBody"
    note = "Celery always answers yes; the queues that the worker then consumes are checked"
    queue: Name

    @property
    def arguments(self) -> dict[str, object]:
        return {"queue": self.queue}

    def judge(self, answer: Answer) -> TaskResult:
        wanted, name = self.remote == "add_consumer", answer.worker.hostname
        queues = _queues_after(answer.target, name, self.queue, wanted=wanted)
        if queues is None:
            return unconfirmed(name, "Accepted, but the worker did not report which queues it consumes.")
        answer.save(queues=tuple(sorted(queues)))
        if (self.queue in queues) is not wanted:
            consumes = "does not consume" if wanted else "still consumes"
            return answer.failed(f"Accepted, but the worker {consumes} {self.queue}. See the worker's log.")
        now = f"Now consumes {', '.join(sorted(queues)) or 'no queue'}."
        return answer.done(now if wanted else f"{now} Tasks already received still run.")


class AddConsumer(ConsumerCommand, frozen=True, kw_only=True):
    """Make a worker consume another queue.

    The queue.
    """

    action = "worker.add_consumer"
    route = ON_WORKER + "add-consumer"
    remote = "add_consumer"
    queue: TypedName


class CancelConsumer(ConsumerCommand, frozen=True, kw_only=True):
    """Make a worker stop consuming a queue."""

    action = "worker.cancel_consumer"
    route = ON_WORKER + "cancel-consumer"
    remote = "cancel_consumer"


class RateLimit(WorkerCommand, frozen=True, kw_only=True):
    """Limit how often a worker runs tasks of a name.

    The task name, and its rate: 10/s, 5/m, 100/h, or 0 for no limit.
    """

    action = "worker.rate_limit"
    route = ON_WORKER + "rate-limit"
    body = "RateLimitBody"
    remote = "rate_limit"
    note = "for each worker separately; `0` removes the limit"
    task: TypedName
    rate: Annotated[str, Meta(pattern=RATE, extra={"strip": True})]

    @property
    def arguments(self) -> dict[str, object]:
        return {"task_name": self.task, "rate_limit": self.rate}

    def check(self) -> None:
        super().check()
        if not re.fullmatch(RATE, self.rate):
            raise InvalidInput(f"{self.rate!r} is not a rate; write 10/s, 5/m, 100/h, or 0 for no limit", field="rate")

    def judge(self, answer: Answer) -> TaskResult:
        number, _, unit = self.rate.partition("/")
        limit = f"at most {number} per {UNITS[unit or 's']}" if float(number) else "without a limit"
        return answer.done(f"Runs {self.task} {limit}, until the worker restarts.")


class TimeLimit(WorkerCommand, frozen=True, kw_only=True):
    """Set both time limits of tasks of a name.

    Both limits are required, because Celery removes a limit that is not given; null removes it.
    """

    action = "worker.time_limit"
    route = ON_WORKER + "time-limit"
    body = "TimeLimitBody"
    remote = "time_limit"
    note = (
        "both limits at once, an empty one is removed; Celery keeps the previous limits until the pool restarts or the "
        "worker reconnects; prefork only"
    )
    task: TypedName
    soft: Limit | None
    hard: Limit | None

    @property
    def arguments(self) -> dict[str, object]:
        return {"task_name": self.task, "soft": self.soft, "hard": self.hard}

    def check(self) -> None:
        super().check()
        if self.soft is not None and self.hard is not None and self.soft >= self.hard:
            raise InvalidInput(f"soft limit {self.soft} must be below hard limit {self.hard}", field="soft")

    def judge(self, answer: Answer) -> TaskResult:
        """Celery's request classes keep the limits of the time they were made (celery.worker.request)."""
        pool = answer.worker.pool
        if pool is not None and pool not in PROCESS_POOLS:
            return answer.failed(f"{answer.text} But a {pool} pool has no time limits.")
        soft = "no soft limit" if self.soft is None else f"a soft limit of {self.soft:g} s"
        hard = "no hard limit" if self.hard is None else f"a hard limit of {self.hard:g} s"
        return unconfirmed(
            answer.worker.hostname,
            f"{answer.text} {self.task} has {soft} and {hard} once the pool restarts or the worker reconnects to its "
            "broker; until then Celery keeps the previous limits.",
        )


class EnableEvents(WorkerCommand, frozen=True, kw_only=True):
    """Turn on a worker's task events."""

    action = "worker.enable_events"
    route = ON_WORKER + "enable-events"
    remote = "enable_events"

    def judge(self, answer: Answer) -> TaskResult:
        answer.save(events_enabled=True)
        return answer.done()


class DisableEvents(WorkerCommand, frozen=True, kw_only=True):
    """Turn off a worker's task events."""

    action = "worker.disable_events"
    route = ON_WORKER + "disable-events"
    remote = "disable_events"
    note = "has no effect on a worker started with `-E`"

    def judge(self, answer: Answer) -> TaskResult:
        """A worker started with -E sends all groups of events, and finds none to turn off."""
        if answer.value == "task events already disabled":
            return answer.failed(
                "Nothing to turn off: a worker started with -E always sends task events. Start it without -E."
            )
        answer.save(events_enabled=False)
        return answer.done("Task events are off: tasks of this worker are not seen from now on.")


class ShutDownWorker(WorkerCommand, frozen=True, kw_only=True):
    """Shut a worker down once its running tasks have ended.

    The name of the worker or queue, typed as confirmation.
    """

    action = "worker.shutdown"
    role = Role.ADMIN
    route = ON_WORKER + "shutdown"
    body = "ConfirmBody"
    remote = "shutdown"
    note = "type the worker's name"
    confirm: str | None = None

    def check(self) -> None:
        super().check()
        if len(self.workers) != 1:
            raise InvalidInput("workers are shut down one at a time; name one")
        require_typed(self.confirm, self.workers[0], "shut this worker down")

    def run(self, target: Target) -> Performed:
        """Workers do not answer a shutdown; their worker-offline event shows that it was received."""
        (name,) = self.workers
        alive = target.remote.ask("ping", {}, [name], ANSWER_SECONDS)
        target.remote.ask(self.remote, {}, [name], POLL_SECONDS)
        if not alive:
            result = _no_answer(_workers(target, [name])[name])
        elif _goes_offline(target, name):
            result = done(name, "Warm shutdown: finishes running tasks, returns the rest.")
        else:
            result = unconfirmed(name, "Sent. The worker ends once its running tasks have ended; it is still online.")
        return _performed(self, [result])


WORKER_COMMANDS: tuple[type[WorkerCommand], ...] = (
    GrowPool, ShrinkPool, RestartPool, Autoscale, AddConsumer, CancelConsumer, RateLimit, TimeLimit, EnableEvents,
    DisableEvents, ShutDownWorker,
)  # fmt: skip


def ask_workers(
    target: Target,
    command: WorkerCommand,
    processes: Mapping[str, int | None] = MappingProxyType({}),
    refused: Mapping[str, str] = MappingProxyType({}),
) -> Performed:
    """Sends the command. The ``id`` of each result is the worker's name.

    ``processes`` is how many each worker had, for a command that changes their number; those in ``refused`` are not
    asked.
    """
    names = distinct_workers(command)
    workers = _workers(target, names)
    asked = [name for name in names if name not in refused]
    replies = target.remote.ask(command.remote, command.arguments, asked, ANSWER_SECONDS)
    results = [
        failed(name, refused[name])
        if name in refused
        else _judge(target, command, workers[name], replies.get(name), processes.get(name))
        for name in names
    ]
    return replace(_performed(command, results), replies=replies)


def distinct_workers(command: WorkerCommand) -> list[str]:
    """Each worker once, in order; InvalidInput for none or too many."""
    names = list(dict.fromkeys(command.workers))
    if not 0 < len(names) <= MAX_TASKS:
        raise InvalidInput(f"{len(names)} workers were named; name 1 to {MAX_TASKS}")
    return names


def _judge(
    target: Target, command: WorkerCommand, worker: Worker, reply: Reply | None, processes: int | None
) -> TaskResult:
    if reply is None:
        return _no_answer(worker)
    if reply.error is not None:
        return failed(worker.hostname, f"{_advice(command.remote, worker, reply.error)} Answer: {reply.error}")
    return command.judge(Answer(target, worker, reply.ok, processes))


def _no_answer(worker: Worker) -> TaskResult:
    """The worker may be gone, or may act later: workers do not check whether a command has expired."""
    if worker.status is WorkerStatus.OFFLINE:
        return unconfirmed(worker.hostname, "Sent, unconfirmed: the worker is offline and did not answer.")
    busy = " A solo pool does not answer while it runs a task." if worker.pool == "solo" else ""
    return unconfirmed(
        worker.hostname, f"Sent, unconfirmed: no answer. The worker may be gone, or may act once it is free.{busy}"
    )


def _advice(remote: str, worker: Worker, error: str) -> str:
    for text, words in REFUSALS:
        if text in error:
            return words
    if remote.startswith("pool_") and any(text in error for text in FIXED_POOL):
        pool = f"A {worker.pool} pool" if worker.pool else "This pool"
        return f"{pool} cannot change while it runs: restart the worker with another --concurrency."
    return "Refused."


def _performed(command: WorkerCommand, results: Sequence[TaskResult]) -> Performed:
    """The message of the only worker, or counts of several."""
    asked = {name: value for name, value in command.arguments.items() if value is not None}
    if len(results) > 1:
        answers = {result.id: result.message for result in results}
        sent = f"{command.remote.replace('_', ' ').capitalize()}: done on {{}}"
        return summary(sent, results, noun="worker", asked=asked, answers=answers)
    (result,) = results
    return replace(Performed.of_one(result, {"asked": asked}), message=f"{result.id}: {result.message}")


def _queues_after(target: Target, name: str, queue: str, *, wanted: bool) -> list[str] | None:
    """The consumed queues once they are as wanted, or after CONSUMING_SECONDS; ``None``: not reported."""
    deadline = time.monotonic() + CONSUMING_SECONDS
    while True:
        reply = target.remote.ask("active_queues", {}, [name], ANSWER_SECONDS).get(name)
        queues = queue_names(reply.ok) if reply else None
        if queues is None or (queue in queues) is wanted or time.monotonic() > deadline:
            return queues
        time.sleep(POLL_SECONDS)


def _goes_offline(target: Target, name: str) -> bool:
    deadline = time.monotonic() + OFFLINE_SECONDS
    while time.monotonic() < deadline:
        if _workers(target, [name])[name].status is WorkerStatus.OFFLINE:
            return True
        time.sleep(POLL_SECONDS)
    return False


def _workers(target: Target, names: Sequence[str]) -> Mapping[str, Worker]:
    """The workers by name, as recorded; one without a record has nothing but its name."""
    unknown = {name: Worker(cluster=target.cluster, hostname=name, status=WorkerStatus.SILENT) for name in names}
    return unknown | {worker.hostname: worker for worker in workers_of(target)}
