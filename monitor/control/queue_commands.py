"""What may be done to queues, as values, and running a task that workers know."""

from dataclasses import dataclass
from typing import ClassVar

from monitor.control.worker_commands import check_name
from monitor.control.worker_commands import require_typed
from monitor.errors import InvalidInput

MAX_MESSAGES = 200  # read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCommand:
    """Something that is done to a queue."""

    action: ClassVar[str] = ""
    cluster: str
    queue: str
    reason: str | None = None

    def check(self) -> None:
        """Raises InvalidInput, or ConfirmationRequired, before anything is done."""
        check_name("queue", self.queue)


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseQueue(QueueCommand):
    """Let no worker that is up take from it."""

    action: ClassVar[str] = "queue.pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeQueue(QueueCommand):
    """Let the workers take from it again that a pause has stopped."""

    action: ClassVar[str] = "queue.resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeQueue(QueueCommand):
    """Delete every message that waits in it, and conclude their tasks; ``confirm`` is its name, typed in."""

    action: ClassVar[str] = "queue.purge"
    confirm: str | None = None

    def check(self) -> None:
        check_name("queue", self.queue)
        require_typed(self.confirm, self.queue, "throw away every message of this queue")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadQueue(QueueCommand):
    """Look at the messages that are delivered next."""

    action: ClassVar[str] = "queue.read"
    limit: int = 50

    def check(self) -> None:
        check_name("queue", self.queue)
        if not 1 <= self.limit <= MAX_MESSAGES:
            raise InvalidInput(f"limit {self.limit} is not between 1 and {MAX_MESSAGES}", field="limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteMessage(QueueCommand):
    """Delete the one message whose content has this digest, as reading the queue gave it."""

    action: ClassVar[str] = "queue.delete_message"
    digest: str
    id: str | None = None

    def check(self) -> None:
        check_name("queue", self.queue)
        check_name("digest", self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTask:
    """Send a task that workers have registered. ``args`` and ``kwargs`` are JSON texts; ``countdown`` is in seconds.

    The same ``request_id`` gives the same task id, so that a second coming of a form is recognised.
    """

    action: ClassVar[str] = "task.run"
    cluster: str
    name: str
    queue: str
    args: str = "[]"
    kwargs: str = "{}"
    countdown: float | None = None
    reason: str | None = None
    request_id: str | None = None
