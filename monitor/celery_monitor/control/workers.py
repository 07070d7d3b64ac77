"""What is asked of workers: each command with Celery's own for it, its limits, and what an answer to it means.

A worker answers, refuses, or is silent; answers.py says what that means in general.
"""

import re
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from celery_monitor.brokers.remote import Reply
from celery_monitor.control.answers import Answer, consuming, done, failed, recorded, refused, silent, unconfirmed
from celery_monitor.control.commands import (
    MAX_TASKS,
    ClusterCommand,
    Name,
    Performed,
    Signal,
    TaskResult,
    TypedName,
    require_typed,
    summary,
)
from celery_monitor.control.inspect import pool_processes
from celery_monitor.control.target import ANSWER_SECONDS, Target
from celery_monitor.errors import Conflict, InvalidInput
from celery_monitor.records.user import Role
from celery_monitor.records.worker import Worker, WorkerStatus

ON_WORKER = "workers/{hostname:name}/"
MAX_PROCESSES = 1000  # of one step of a pool; a slip of the finger must not fork a machine to death
RATE = r"^[0-9]{1,9}(\.[0-9]{1,9})?(/[smh])?$"  # celery.utils.time.rate
UNITS = {"s": "second", "m": "minute", "h": "hour"}
LIMITED_POOLS = {"prefork"}  # where time limits are kept, and processes replaced
GOODBYE_SECONDS = 3.0  # in which an idle worker says goodbye
POLL_SECONDS = 0.05

Processes = Annotated[float, Meta(ge=1, le=MAX_PROCESSES, multiple_of=1)]
Limit = Annotated[
    float, Meta(gt=0, le=31_536_000, description="Seconds; null removes this limit", extra={"unit": " seconds"})
]


class WorkerCommand(ClusterCommand, frozen=True, kw_only=True):
    """Something that is asked of these workers. ``remote`` is Celery's name of it."""

    role = Role.OPERATOR
    address = ("cluster", "workers")
    remote: ClassVar[str]
    workers: tuple[str, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.workers

    @property
    def arguments(self) -> dict[str, object]:
        """Those of Celery's command."""
        return {}

    def run(self, target: Target) -> Performed:
        return ask_workers(target, self)

    def judge(self, answer: Answer) -> TaskResult:
        """What the yes of a worker means."""
        return answer.done()


class ResizePool(WorkerCommand, frozen=True, kw_only=True):
    """Another number of processes."""

    body = "PoolBody"
    number: Processes = 1

    @property
    def arguments(self) -> dict[str, object]:
        return {"n": self.number}

    @property
    def change(self) -> int:
        return int(self.number)

    def run(self, target: Target) -> Performed:
        """Celery removes the last process without a word, and the worker then holds tasks that it never runs."""
        stats = target.remote.ask("stats", {}, distinct_workers(self), ANSWER_SECONDS)
        processes = {name: pool_processes(reply.ok) for name, reply in stats.items()}
        refused = {
            name: f"It has {number} processes: taking {self.number} leaves none to run tasks. Nothing was sent to it."
            for name, number in processes.items()
            if number is not None and number + self.change < 1
        }
        return ask_workers(target, self, processes, refused)

    def judge(self, answer: Answer) -> TaskResult:
        """Prefork checks every 5 seconds how many processes it should have."""
        if answer.processes is None:
            return answer.done(f"{answer.text} How many processes it had is not known.")
        after = answer.processes + self.change
        answer.record(pool_size=after)
        return answer.done(f"{answer.text} From {answer.processes} to {after} processes, within some seconds.")


class GrowPool(ResizePool, frozen=True, kw_only=True):
    """Add processes to a worker's pool.

    By how many processes.
    """

    action = "worker.pool_grow"
    route = ON_WORKER + "grow"
    remote = "pool_grow"
    note = "a pool of threads is fixed"


class ShrinkPool(ResizePool, frozen=True, kw_only=True):
    """Take processes from a worker's pool, never the last."""

    action = "worker.pool_shrink"
    route = ON_WORKER + "shrink"
    remote = "pool_shrink"
    note = "a pool of threads is fixed"

    @property
    def change(self) -> int:
        return -int(self.number)


class RestartPool(WorkerCommand, frozen=True, kw_only=True):
    """Replace each process of a worker's pool once it has ended what it runs."""

    action = "worker.pool_restart"
    route = ON_WORKER + "restart"
    remote = "pool_restart"
    note = "needs `worker_pool_restarts`; a process that hangs is not replaced"

    def judge(self, answer: Answer) -> TaskResult:
        pool = answer.worker.pool
        if pool is not None and pool not in LIMITED_POOLS:
            return answer.failed(
                f"{answer.text} But a {pool} pool has no processes to replace: only modules are loaded."
            )
        return answer.done()


class Autoscale(WorkerCommand, frozen=True, kw_only=True):
    """Change the range in which a worker scales itself.

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
    """About one queue that a worker consumes, or is to."""

    body = "ConsumerBody"
    note = "Celery always says yes; what the worker then consumes is checked"
    queue: Name

    @property
    def arguments(self) -> dict[str, object]:
        return {"queue": self.queue}

    def judge(self, answer: Answer) -> TaskResult:
        return consuming(answer.target, answer.worker.hostname, self.queue, wanted=self.remote == "add_consumer")


class AddConsumer(ConsumerCommand, frozen=True, kw_only=True):
    """Let a worker take from one more queue.

    Which queue.
    """

    action = "worker.add_consumer"
    route = ON_WORKER + "add-consumer"
    remote = "add_consumer"
    queue: TypedName


class CancelConsumer(ConsumerCommand, frozen=True, kw_only=True):
    """Let a worker take no more from a queue."""

    action = "worker.cancel_consumer"
    route = ON_WORKER + "cancel-consumer"
    remote = "cancel_consumer"


class RateLimit(WorkerCommand, frozen=True, kw_only=True):
    """Limit how often a worker runs tasks of a name.

    How many tasks of a name: 10/s, 5/m, 100/h, or 0 for no limit.
    """

    action = "worker.rate_limit"
    route = ON_WORKER + "rate-limit"
    body = "RateLimitBody"
    remote = "rate_limit"
    note = "for each worker by itself; `0` removes it"
    task: TypedName
    rate: Annotated[str, Meta(pattern=RATE, extra={"strip": True})]

    @property
    def arguments(self) -> dict[str, object]:
        return {"task_name": self.task, "rate_limit": self.rate}

    def check(self) -> None:
        super().check()
        if not re.fullmatch(RATE, self.rate):
            raise InvalidInput(f"rate {self.rate!r} is none; write 10/s, 5/m, 100/h, or 0 for no limit", field="rate")

    def judge(self, answer: Answer) -> TaskResult:
        number, _, unit = self.rate.partition("/")
        limit = f"at most {number} per {UNITS[unit or 's']}" if float(number) else "without a limit"
        return answer.done(f"It runs {self.task} {limit}, until it is started again.")


class TimeLimit(WorkerCommand, frozen=True, kw_only=True):
    """Set both time limits of tasks of a name.

    Both limits, always: Celery removes a limit that is not given, so null must be said.
    """

    action = "worker.time_limit"
    route = ON_WORKER + "time-limit"
    body = "TimeLimitBody"
    remote = "time_limit"
    note = (
        "both limits at once, an empty one is removed; Celery keeps the old ones until the pool is restarted or the "
        "worker connects again; prefork only"
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
            raise InvalidInput(f"soft {self.soft} never comes before hard {self.hard}", field="soft")

    def judge(self, answer: Answer) -> TaskResult:
        """Celery's request classes keep the limits of the time they were made (celery.worker.request)."""
        pool = answer.worker.pool
        if pool is not None and pool not in LIMITED_POOLS:
            return answer.failed(f"{answer.text} But a {pool} pool keeps no time limits.")
        soft = "no soft limit" if self.soft is None else f"a soft limit of {self.soft:g} s"
        hard = "no hard limit" if self.hard is None else f"a hard limit of {self.hard:g} s"
        return unconfirmed(
            answer.worker.hostname,
            f"{answer.text} {self.task} has {soft} and {hard} from when its pool is restarted or it connects to its "
            "broker again; until then Celery keeps the limits from before.",
        )


class EnableEvents(WorkerCommand, frozen=True, kw_only=True):
    """Let a worker send task events."""

    action = "worker.enable_events"
    route = ON_WORKER + "enable-events"
    remote = "enable_events"

    def judge(self, answer: Answer) -> TaskResult:
        answer.record(events_enabled=True)
        return answer.done()


class DisableEvents(WorkerCommand, frozen=True, kw_only=True):
    """Let a worker send no task events."""

    action = "worker.disable_events"
    route = ON_WORKER + "disable-events"
    remote = "disable_events"
    note = "a worker started with `-E` cannot be told to stop"

    def judge(self, answer: Answer) -> TaskResult:
        """A worker started with -E sends every group, and finds that there is nothing to remove."""
        if answer.value == "task events already disabled":
            return answer.failed(
                "It has nothing to turn off. A worker that was started with -E sends task events whatever it is told: "
                "start it without -E."
            )
        answer.record(events_enabled=False)
        return answer.done("It sends no more task events: what it runs is not seen here from now on.")


class ShutDownWorker(WorkerCommand, frozen=True, kw_only=True):
    """End a worker once what it runs has ended.

    The name of what is ended or emptied, typed again.
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
            raise InvalidInput("workers are shut down one by one; name one")
        require_typed(self.confirm, self.workers[0], "shut this worker down")

    def run(self, target: Target) -> Performed:
        """Workers do not answer this one: their goodbye does, once what they run has ended."""
        (name,) = self.workers
        alive = target.remote.ask("ping", {}, [name], ANSWER_SECONDS)
        target.remote.ask(self.remote, {}, [name], POLL_SECONDS)
        offline = bool(alive) and _goes_offline(target, name)
        outcome: Literal["done", "unconfirmed"] = "done" if offline else "unconfirmed"
        if offline:
            result = done(name, "It has said goodbye: it takes no more, and ends once what it runs has ended.")
        elif alive:
            result = unconfirmed(name, "Sent. It ends once what it runs has ended; it has not said goodbye yet.")
        else:
            result = silent(recorded(target, [name])[name])
        return Performed(outcome=outcome, message=f"{name}: {result.message}", results=(result,))


class RevokeStamped(WorkerCommand, frozen=True, kw_only=True):
    """Revoke tasks by a stamp on every worker.

    Tasks with one of these stamps under this header.
    """

    action = "task.revoke_stamped"
    route = "revoke-stamped"
    body = "StampBody"
    remote = "revoke_by_stamped_headers"
    note = "told to every worker that is up; one that starts later does not know of it"
    workers: tuple[str, ...] = ()  # none: everybody who is up
    header: TypedName
    stamps: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=1000)]
    terminate: bool = False
    signal: Signal = "SIGTERM"

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(f"{self.header}={stamp}" for stamp in self.stamps)

    @property
    def arguments(self) -> dict[str, object]:
        return {"headers": {self.header: list(self.stamps)}, "terminate": self.terminate, "signal": self.signal}

    def run(self, target: Target) -> Performed:
        workers = self.workers or tuple(target.living_workers())
        if not workers:
            raise Conflict("No worker is up: nobody would hear of it, and one that starts later does not know of it.")
        return ask_workers(target, msgspec.structs.replace(self, workers=workers))

    def judge(self, answer: Answer) -> TaskResult:
        skips = "It skips tasks with this stamp when their turn comes, until it is started again."
        if not self.terminate:
            return answer.done(f"{skips} What it runs already goes on.")
        if "not terminated" in str(answer.value):
            return answer.done(f"{skips} Nothing that it runs has the stamp.")
        return answer.done(f"{skips} It kills the processes that run some: {answer.value}.")


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
    """Sends it, with what each worker answered; the name of a worker stands as the ``id`` of its result.

    ``processes`` is how many each had, where their number is to change; who is ``refused`` is not asked.
    """
    names = distinct_workers(command)
    workers = recorded(target, names)
    asked = [name for name in names if name not in refused]
    replies = target.remote.ask(command.remote, command.arguments, asked, ANSWER_SECONDS)
    results = [
        failed(name, refused[name])
        if name in refused
        else _judge(target, command, workers[name], replies.get(name), processes.get(name))
        for name in names
    ]
    return _collected(command, results)


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
        return silent(worker)
    if reply.error is not None:
        return refused(command.remote, worker, reply.error)
    return command.judge(Answer(target, worker, reply.ok, processes))


def _collected(command: WorkerCommand, results: Sequence[TaskResult]) -> Performed:
    """One worker's own words, or the sum of many."""
    given = {name: value for name, value in command.arguments.items() if value is not None}
    if len(results) > 1:
        answers = {result.id: result.message for result in results}
        return summary(command.remote.replace("_", " ").capitalize(), results, asked=given, answers=answers)
    (result,) = results
    outcome = "failed" if result.outcome == "skipped" else result.outcome
    return Performed(
        outcome=outcome, message=f"{result.id}: {result.message}", results=(result,), details={"asked": given}
    )


def _goes_offline(target: Target, name: str) -> bool:
    deadline = time.monotonic() + GOODBYE_SECONDS
    while time.monotonic() < deadline:
        if recorded(target, [name])[name].status is WorkerStatus.OFFLINE:
            return True
        time.sleep(POLL_SECONDS)
    return False
