"""What may be asked of workers, as values: each knows Celery's command for it and refuses what makes no sense."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar

from monitor.errors import ConfirmationRequired
from monitor.errors import InvalidInput

MAX_PROCESSES = 1000  # of one step of a pool; a slip of the finger must not fork a machine to death
MAX_LIMIT_SECONDS = 366 * 86400.0
RATE = re.compile(r"\d{1,9}(\.\d{1,9})?(/[smh])?")  # celery.utils.time.rate
MAX_NAME = 255  # RabbitMQ's limit for the name of a queue


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCommand:
    """Something that is asked of these workers. ``method`` is Celery's name of it."""

    action: ClassVar[str] = ""
    method: ClassVar[str] = ""
    cluster: str
    workers: tuple[str, ...]
    reason: str | None = None

    @property
    def arguments(self) -> dict[str, object]:
        """What Celery's command takes."""
        return {}

    def check(self) -> None:
        """Raises InvalidInput, or ConfirmationRequired, before anything is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableEvents(WorkerCommand):
    """Turn task events on."""

    action: ClassVar[str] = "worker.enable_events"
    method: ClassVar[str] = "enable_events"


@dataclass(frozen=True, slots=True, kw_only=True)
class DisableEvents(WorkerCommand):
    """Turn task events off; a worker that was started with -E goes on sending them."""

    action: ClassVar[str] = "worker.disable_events"
    method: ClassVar[str] = "disable_events"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGrow(WorkerCommand):
    """Add processes to the pool."""

    action: ClassVar[str] = "worker.pool_grow"
    method: ClassVar[str] = "pool_grow"
    number: int = 1

    @property
    def arguments(self) -> dict[str, object]:
        return {"n": self.number}

    def check(self) -> None:
        check_number("number", self.number, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShrink(WorkerCommand):
    """Take processes away from the pool."""

    action: ClassVar[str] = "worker.pool_shrink"
    method: ClassVar[str] = "pool_shrink"
    number: int = 1

    @property
    def arguments(self) -> dict[str, object]:
        return {"n": self.number}

    def check(self) -> None:
        check_number("number", self.number, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRestart(WorkerCommand):
    """Replace each process of the pool once it has ended what it runs."""

    action: ClassVar[str] = "worker.pool_restart"
    method: ClassVar[str] = "pool_restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscale(WorkerCommand):
    """Change the range in which a worker scales itself."""

    action: ClassVar[str] = "worker.autoscale"
    method: ClassVar[str] = "autoscale"
    maximum: int
    minimum: int

    @property
    def arguments(self) -> dict[str, object]:
        return {"max": self.maximum, "min": self.minimum}

    def check(self) -> None:
        check_number("maximum", self.maximum, 1)
        check_number("minimum", self.minimum, 0)
        if self.minimum > self.maximum:
            raise InvalidInput(f"minimum {self.minimum} is more than maximum {self.maximum}", field="minimum")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddConsumer(WorkerCommand):
    """Take tasks from one more queue."""

    action: ClassVar[str] = "worker.add_consumer"
    method: ClassVar[str] = "add_consumer"
    queue: str

    @property
    def arguments(self) -> dict[str, object]:
        return {"queue": self.queue}

    def check(self) -> None:
        check_name("queue", self.queue)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelConsumer(WorkerCommand):
    """Take no more tasks from a queue."""

    action: ClassVar[str] = "worker.cancel_consumer"
    method: ClassVar[str] = "cancel_consumer"
    queue: str

    @property
    def arguments(self) -> dict[str, object]:
        return {"queue": self.queue}

    def check(self) -> None:
        check_name("queue", self.queue)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit(WorkerCommand):
    """Run at most so many tasks of a name per second, minute or hour on each of these workers; ``0``: no limit."""

    action: ClassVar[str] = "worker.rate_limit"
    method: ClassVar[str] = "rate_limit"
    task: str
    rate: str

    @property
    def arguments(self) -> dict[str, object]:
        return {"task_name": self.task, "rate_limit": self.rate}

    def check(self) -> None:
        check_name("task", self.task)
        if not RATE.fullmatch(self.rate):
            raise InvalidInput(f"rate {self.rate!r} is none; write 10/s, 5/m, 100/h, or 0 for no limit", field="rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimit(WorkerCommand):
    """Change both time limits of the tasks of a name, in seconds; ``None`` removes that limit."""

    action: ClassVar[str] = "worker.time_limit"
    method: ClassVar[str] = "time_limit"
    task: str
    soft: float | None
    hard: float | None

    @property
    def arguments(self) -> dict[str, object]:
        return {"task_name": self.task, "soft": self.soft, "hard": self.hard}

    def check(self) -> None:
        check_name("task", self.task)
        for name, value in (("soft", self.soft), ("hard", self.hard)):
            if value is not None and not (math.isfinite(value) and 0 < value <= MAX_LIMIT_SECONDS):
                raise InvalidInput(f"{name} {value} is not between 0 and {MAX_LIMIT_SECONDS:.0f} seconds", field=name)
        if self.soft is not None and self.hard is not None and self.soft >= self.hard:
            raise InvalidInput(f"soft {self.soft} never comes before hard {self.hard}", field="soft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown(WorkerCommand):
    """End one worker after what it runs; ``confirm`` is its name, typed in."""

    action: ClassVar[str] = "worker.shutdown"
    method: ClassVar[str] = "shutdown"
    confirm: str | None = None

    def check(self) -> None:
        if len(self.workers) != 1:
            raise InvalidInput("workers are shut down one by one; name one")
        require_typed(self.confirm, self.workers[0], "shut this worker down")


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeStamped(WorkerCommand):
    """Tell workers to skip every task with one of these stamps; with ``terminate``, also kill those that run."""

    action: ClassVar[str] = "task.revoke_stamped"
    method: ClassVar[str] = "revoke_by_stamped_headers"
    header: str
    stamps: tuple[str, ...]
    terminate: bool = False
    signal: str = "SIGTERM"

    @property
    def arguments(self) -> dict[str, object]:
        return {"headers": {self.header: list(self.stamps)}, "terminate": self.terminate, "signal": self.signal}

    def check(self) -> None:
        check_name("header", self.header)
        if not 0 < len(self.stamps) <= 1000:
            raise InvalidInput(f"{len(self.stamps)} stamps were given; give 1 to 1000", field="stamps")
        for stamp in self.stamps:
            check_name("stamp", stamp)


def check_number(field: str, value: int, least: int) -> None:
    """Raises InvalidInput unless it is a number of processes."""
    if not least <= value <= MAX_PROCESSES:
        raise InvalidInput(f"{field} {value} is not between {least} and {MAX_PROCESSES}", field=field)


def check_name(field: str, value: str) -> None:
    """Raises InvalidInput for what cannot be the name of a queue or task."""
    if not 0 < len(value.encode(errors="replace")) <= MAX_NAME:
        raise InvalidInput(f"{field} must have 1 to {MAX_NAME} bytes", field=field)


def require_typed(typed: str | None, name: str, deed: str) -> None:
    """Raises ConfirmationRequired unless the name was typed as it is."""
    if typed != name:
        raise ConfirmationRequired(f"To {deed}, type its name as it stands: {name}.", name=name, field="confirm")
