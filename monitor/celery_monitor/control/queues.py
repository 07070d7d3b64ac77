"""Commands for queues: pause and resume on all their workers, read, purge, delete a message, find a message.

RabbitMQ shows a message only by delivering it, so to read or to find one is an action that is recorded.
"""

import time
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from celery_monitor.brokers import task_messages
from celery_monitor.brokers.queues import QueueMessage, ReadMessages
from celery_monitor.brokers.task_messages import can_take_messages, of_removed, take
from celery_monitor.brokers.transports import messages_of
from celery_monitor.control.answers import done
from celery_monitor.control.arguments import IN_BROKER
from celery_monitor.control.commands import ClusterCommand, Name, Performed, TaskResult, Text, require_typed, summary
from celery_monitor.control.inspect import queue_names
from celery_monitor.control.target import ANSWER_SECONDS, Target
from celery_monitor.control.workers import AddConsumer, CancelConsumer, WorkerCommand, ask_workers
from celery_monitor.core.message import why_not_exact
from celery_monitor.errors import Conflict, InvalidInput, NotFound
from celery_monitor.records.event import Message
from celery_monitor.records.queue import Pause
from celery_monitor.records.task import Task
from celery_monitor.records.user import Role
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.queues import end_pause, read_pauses, save_pause
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.messages import keep_message, note_removals
from celery_monitor.store.workers import read_workers

ON_QUEUE = "queues/{name:name}/"
MOST_READ = 100_000  # messages of a purge of which the tasks are concluded at once
READING_SECONDS = 10.0
MOST_KEPT, MOST_KEPT_BYTES = 1000, 32_000_000  # messages of a purge that are kept for a retry


class QueueCommand(ClusterCommand, frozen=True, kw_only=True):
    """Something that is done to a queue."""

    role = Role.OPERATOR
    subject = "{0.queue}"
    address = ("cluster", "queue")
    queue: Name


class PauseQueue(QueueCommand, frozen=True, kw_only=True):
    """Let no worker take from a queue."""

    action = "queue.pause"
    route = ON_QUEUE + "pause"
    note = (
        "every worker that consumes it stops; what it has received still runs; one that is started later consumes it "
        "again"
    )

    def run(self, target: Target) -> Performed:
        """Every worker that takes from it is told to take no more. What they have taken already still runs."""
        workers = consumers(target, self.queue)
        if not workers:
            raise Conflict(f"No worker takes from {self.queue}: there is nothing to pause.")
        before = read_pauses(target.store, target.cluster).get((target.cluster, self.queue))
        note = Pause(
            cluster=target.cluster,
            queue=self.queue,
            by=before.by if before else target.actor,
            at=before.at if before else target.now(),
            workers=tuple(sorted({*workers, *(before.workers if before else ())})),
            reason=self.reason,
        )
        save_pause(target.store, note)  # first: a worker that was stopped and not noted would never be resumed
        cancel = CancelConsumer(cluster=target.cluster, workers=tuple(workers), queue=self.queue)
        performed = _ask(target, cancel, "Pause")
        if not any(result.outcome in {"done", "unconfirmed"} for result in performed.results):
            _restore(target, self.queue, before)
        return performed


class ResumeQueue(QueueCommand, frozen=True, kw_only=True):
    """Let the workers take from a queue again."""

    action = "queue.resume"
    route = ON_QUEUE + "resume"
    note = "the workers that a pause has stopped"

    def run(self, target: Target) -> Performed:
        """Who does not answer stays noted as stopped."""
        noted = read_pauses(target.store, target.cluster).get((target.cluster, self.queue))
        if noted is None:
            hint = "To let a worker take from it, add it to that worker."
            raise Conflict(f"{self.queue} is not paused from here. {hint}")
        workers = read_workers(target.store, target.cluster)
        offline = {worker.hostname for worker in workers if worker.status is WorkerStatus.OFFLINE}
        present = tuple(name for name in noted.workers if name not in offline)
        gone = [_gone(name) for name in noted.workers if name in offline]
        if not present:
            end_pause(target.store, target.cluster, self.queue)
            return Performed(
                outcome="done",
                message="The workers that were stopped are gone; those that were started since take from it by "
                "themselves.",
                results=tuple(gone),
            )
        add = AddConsumer(cluster=target.cluster, workers=present, queue=self.queue)
        performed = _ask(target, add, "Resume", gone)
        still = tuple(result.id for result in performed.results if result.outcome in {"unconfirmed", "failed"})
        _restore(target, self.queue, msgspec.structs.replace(noted, workers=still) if still else None)
        return performed


class PurgeQueue(QueueCommand, frozen=True, kw_only=True):
    """Throw away all that waits.

    The name of what is ended or emptied, typed again.
    """

    action = "queue.purge"
    role = Role.ADMIN
    route = ON_QUEUE + "purge"
    body = "ConfirmBody"
    note = "type the queue's name; what workers have received is not touched"
    confirm: str | None = None

    def check(self) -> None:
        super().check()
        require_typed(self.confirm, self.queue, "throw away every message of this queue")

    def run(self, target: Target) -> Performed:
        """Removes all messages, and concludes the tasks that they were of."""
        removed = Removed(target, self.queue)
        number = messages_of(target.broker, target.settings, self.queue).purge(removed.see)
        concluded = removed.conclude(f"queue {self.queue} purged by {target.actor}")
        messages = "1 message" if number == 1 else f"{number} messages"
        unread = number - removed.number
        rest = f" {unread} were not read; their tasks are looked for within minutes." if unread else ""
        return Performed(
            outcome="done",
            message=f"{messages} deleted from {self.queue}; {_tasks(concluded)} revoked.{rest} Tasks that workers "
            "have already received still run.",
            details={"purged": number, "concluded": concluded},
        )


class ReadQueue(QueueCommand, frozen=True, kw_only=True):
    """Look at what waits.

    How many messages.
    """

    action = "queue.read"
    route = ON_QUEUE + "messages"
    body = "ReadBody"
    note = (
        "Redis: nothing is touched. RabbitMQ: taken and put back at once, marked as redelivered, and counted by a "
        "quorum queue"
    )
    limit: Annotated[float, Meta(ge=1, le=200, multiple_of=1)] = 50

    def run(self, target: Target) -> Performed:
        """The messages that are delivered next, with when they were sent where the record has their tasks."""
        reading = messages_of(target.broker, target.settings, self.queue).read(int(self.limit))
        reading = ReadMessages(
            messages=tuple(_dated(target, message) for message in reading.messages),
            more=reading.more,
            hazard=reading.hazard,
        )
        message = f"{len(reading.messages)} messages of {self.queue} were read."
        return Performed(outcome="done", message=message, reading=reading)


class DeleteMessage(QueueCommand, frozen=True, kw_only=True):
    """Throw one message away.

    The digest of a message, as reading gave it.
    """

    action = "queue.delete_message"
    role = Role.ADMIN
    route = ON_QUEUE + "delete-message"
    body = "DeleteBody"
    note = "exactly the message that was read; on RabbitMQ those before it are put back as by reading"
    digest: Name
    id: Text | None = None

    def run(self, target: Target) -> Performed:
        """Removes it, keeps it for a retry, and concludes its task."""
        subject = f"Task {self.id}" if self.id else "The message"
        found = messages_of(target.broker, target.settings, self.queue).delete(self.digest)
        if found is None:
            raise Conflict(f"{subject} was received by a worker meanwhile; it is not in {self.queue} any more.")
        removed = Removed(target, self.queue)
        removed.see(found)
        concluded = removed.conclude(f"message deleted from {self.queue} by {target.actor}")
        task_id = removed.ids[0] if removed.ids else None
        message = f"Message deleted; task {task_id} is revoked." if task_id else "Message deleted; it was not a task's."
        details = {"id": task_id, "digest": self.digest, "concluded": concluded}
        return Performed(outcome="done", message=message, details=details)


QUEUE_COMMANDS: tuple[type[QueueCommand], ...] = (PauseQueue, ResumeQueue, PurgeQueue, ReadQueue, DeleteMessage)


class Removed:
    """Messages that were removed from a queue: the tasks that they were of, and as many of them as are kept."""

    def __init__(self, target: Target, queue: str) -> None:
        self.number = 0
        self.ids: list[str] = []
        self._target = target
        self._queue = queue
        self._kept: dict[str, Message] = {}
        self._room = MOST_KEPT_BYTES if target.settings.capture else 0
        self._until = time.monotonic() + READING_SECONDS

    def see(self, removed: Any) -> bool:
        """Gets one; whether to show the next."""
        self.number += 1
        found = of_removed(removed, self._queue)
        if found is not None:
            self.ids.append(found[0])
            self._keep(*found)
        return self.number < MOST_READ and time.monotonic() < self._until

    def conclude(self, text: str) -> int:
        """Notes what became of the tasks, for the receiver to conclude; gives their number."""
        ids = list(dict.fromkeys(self.ids))
        if ids:
            note_removals(self._target.store, self._target.cluster, ids, text, self._target.now(), self._kept)
        return len(ids)

    def _keep(self, task_id: str, message: Message) -> None:
        size = len(message.body or b"")
        if size <= min(self._room, self._target.settings.max_message_bytes) and len(self._kept) < MOST_KEPT:
            self._kept[task_id] = message
            self._room -= size


def consumers(target: Target, queue: str) -> list[str]:
    """The workers that take from it: by what they say now, and of those who are silent, what they last said."""
    living = target.living_workers()
    replies = target.remote.ask("active_queues", timeout=ANSWER_SECONDS, expected=living)
    said = {name: queue_names(reply.ok) for name, reply in replies.items()}
    recorded = {worker.hostname: worker.queues for worker in read_workers(target.store, target.cluster)}
    names = {*living, *said}
    return sorted(name for name in names if queue in (said.get(name) or recorded.get(name) or ()))


def _ask(target: Target, command: WorkerCommand, verb: str, more: list[TaskResult] | None = None) -> Performed:
    results = [*ask_workers(target, command).results, *(more or [])]
    asked = summary(verb, results, workers={result.id: result.message for result in results})
    message = f"{asked.message}. " + " ".join(f"{result.id}: {result.message}" for result in results[:5])
    return Performed(outcome=asked.outcome, message=message, results=asked.results, details=asked.details)


def _tasks(number: int) -> str:
    return "1 task is" if number == 1 else f"{number} tasks are"


def _gone(name: str) -> TaskResult:
    return done(name, "It is gone; one that is started in its place takes from the queue by itself.")


def _restore(target: Target, queue: str, pause: Pause | None) -> None:
    if pause is None:
        end_pause(target.store, target.cluster, queue)
    else:
        save_pause(target.store, pause)


def _dated(target: Target, message: QueueMessage) -> QueueMessage:
    if message.sent is not None or message.id is None:
        return message
    try:
        sent = read_task(target.store, message.id, target.cluster).sent
    except (NotFound, Conflict, InvalidInput):
        return message
    return replace(message, sent=sent)


HAZARD = (
    f"RabbitMQ shows no message without delivering it. Up to {task_messages.MOST_TAKEN} are taken out of the queue and "
    "put back at once: they are marked as redelivered from then on, may stand in another order if workers take "
    "messages meanwhile, and a quorum queue counts it as a delivery."
)


def why_not_find(target: Target, task: Task) -> str | None:
    """Why its message is not looked for in this way; ``None`` where it may be."""
    if not can_take_messages(target.broker):
        return "Only a queue of RabbitMQ is looked into in this way; where reading is free, it is done by itself."
    if task.state not in IN_BROKER:
        return f"Task {task.id} is {task.state.word}: its message has been acknowledged."
    if task.queue is None:
        return f"The queue of task {task.id} is not known."
    if not target.settings.capture:
        return "No messages are kept here (--no-capture), and what is found could not be."
    return None


class FindMessage(ClusterCommand, frozen=True, kw_only=True):
    """Look for a task's message in its queue on RabbitMQ, which takes messages out and puts them back.

    Why to look for a message.
    """

    action = "task.find_message"
    subject = "{0.id}"
    role = Role.OPERATOR
    route = "tasks/{id:name}/find-message"
    body = "FindBody"
    note = (
        "RabbitMQ only: messages of the task's queue are taken out and put back, as by reading it; what is found is "
        "kept like a captured message"
    )
    address = ("cluster", "id")
    id: str

    def run(self, target: Target) -> Performed:
        """Keeps it as a captured one. Raises Conflict where it cannot be looked for, or is not there."""
        task = read_task(target.store, self.id, target.cluster)
        if why := why_not_find(target, task):
            raise Conflict(why)
        queue = str(task.queue)
        found = take(target.broker, target.settings, task.id, queue)
        message = found.messages.get(task.id)
        if message is None:
            looked = "the queue" if found.whole else f"the first {task_messages.MOST_TAKEN} messages of the queue"
            raise Conflict(f"Its message is not in {looked} {queue}. One that a worker has cannot be seen on RabbitMQ.")
        if why := why_not_exact(message, task):
            raise Conflict(f"It was found in the queue {queue}, and cannot be used: {why}.")
        kept = keep_message(target.store, task, message, target.now(), target.settings.max_message_bytes)
        if not kept:
            raise Conflict(
                f"Its message was found in the queue {queue}, and is too large to keep: {message.size} bytes."
            )
        said = f"Its message was found in the queue {queue}, and is kept: a retry is exact."
        return Performed(
            outcome="done",
            message=said,
            results=(TaskResult(id=task.id, outcome="done", message=said, fidelity="exact"),),
            details={"queue": queue, "size": message.size},
        )
