"""Commands for queues: pause and resume on all workers, read, purge, delete a message, find a message.

RabbitMQ shows a message only by delivering it, so reading or finding one is an action that is recorded.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from celery_monitor.brokers import task_messages
from celery_monitor.brokers.queues import QueueMessage, ReadMessages
from celery_monitor.brokers.task_messages import can_read_by_delivery, find_by_delivery, of_removed
from celery_monitor.brokers.transports import messages_of
from celery_monitor.control.arguments import IN_BROKER
from celery_monitor.control.commands import (
    ANSWER_SECONDS,
    ClusterCommand,
    Name,
    Performed,
    Target,
    TaskResult,
    Text,
    done,
    require_typed,
    summary,
)
from celery_monitor.control.inspect import living_workers, queue_names, workers_of
from celery_monitor.control.workers import AddConsumer, CancelConsumer, WorkerCommand, ask_workers
from celery_monitor.core.filters.scope import Scope
from celery_monitor.core.message import why_not_exact
from celery_monitor.core.words import counted
from celery_monitor.errors import Conflict, InvalidInput, NotFound
from celery_monitor.records.event import Message
from celery_monitor.records.queue import Pause
from celery_monitor.records.task import Task
from celery_monitor.records.user import Role
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.queues import end_pause, read_pauses, save_pause
from celery_monitor.store.tasks.detail import awaits_removal, keep_message, read_task, record_removals

ON_QUEUE = "queues/{name:name}/"
MOST_READ = 100_000  # messages of a purge whose tasks are concluded at once
READING_SECONDS = 10.0
CONCLUDE_SECONDS, POLL_SECONDS = 5.0, 0.05  # a receiver stores removals every second
MOST_KEPT, MOST_KEPT_BYTES = 1000, 32_000_000  # messages of a purge that are stored for a retry
GONE = "The worker is gone; one that starts in its place consumes the queue."


class QueueCommand(ClusterCommand, frozen=True, kw_only=True):
    """A command for one queue."""

    role = Role.OPERATOR
    subject = "{0.queue}"
    address = ("cluster", "queue")
    in_part = True
    queue: Name

    def check_scope(self, scope: Scope) -> None:
        super().check_scope(scope)
        if not scope.has_queue(self.cluster, self.queue):
            raise NotFound(f"Queue {self.queue!r} not found.", name=self.queue)


class PauseQueue(QueueCommand, frozen=True, kw_only=True):
    """Pause a queue: all its workers stop consuming it."""

    action = "queue.pause"
    route = ON_QUEUE + "pause"
    note = "tasks already received still run; a worker that starts later consumes the queue again"

    def run(self, target: Target) -> Performed:
        """Tells every worker that consumes the queue to stop."""
        workers = consumers(target, self.queue)
        if not workers:
            raise Conflict(f"No worker consumes {self.queue}: there is nothing to pause.")
        before = read_pauses(target.store, target.cluster).get((target.cluster, self.queue))
        pause = Pause(
            cluster=target.cluster,
            queue=self.queue,
            by=before.by if before else target.actor,
            at=before.at if before else target.now(),
            workers=tuple(sorted({*workers, *(before.workers if before else ())})),
            reason=self.reason,
        )
        save_pause(target.store, pause)  # first, as a worker that is not in it would never be resumed
        cancel = CancelConsumer(cluster=target.cluster, workers=tuple(workers), queue=self.queue)
        performed = _ask(target, cancel, "Paused on {}")
        if not any(result.outcome in {"done", "unconfirmed"} for result in performed.results):
            _restore(target, self.queue, before)
        return performed


class ResumeQueue(QueueCommand, frozen=True, kw_only=True):
    """Resume a paused queue."""

    action = "queue.resume"
    route = ON_QUEUE + "resume"
    note = "on the workers that the pause has stopped"

    def run(self, target: Target) -> Performed:
        """A worker that does not answer stays in the pause."""
        pause = read_pauses(target.store, target.cluster).get((target.cluster, self.queue))
        if pause is None:
            raise Conflict(f"{self.queue} was not paused from here. To consume it, add it to a worker.")
        workers = workers_of(target)
        offline = {worker.hostname for worker in workers if worker.status is WorkerStatus.OFFLINE}
        online = tuple(name for name in pause.workers if name not in offline)
        gone = [done(name, GONE) for name in pause.workers if name in offline]
        if not online:
            end_pause(target.store, target.cluster, self.queue)
            return Performed(
                outcome="done",
                message="The paused workers are gone; workers that started since then consume the queue.",
                results=tuple(gone),
            )
        add = AddConsumer(cluster=target.cluster, workers=online, queue=self.queue)
        performed = _ask(target, add, "Resumed on {}", gone)
        still = tuple(result.id for result in performed.results if result.outcome in {"unconfirmed", "failed"})
        _restore(target, self.queue, msgspec.structs.replace(pause, workers=still) if still else None)
        return performed


class PurgeQueue(QueueCommand, frozen=True, kw_only=True):
    """Delete all messages of a queue.

    The name of the worker or queue, typed as confirmation.
    """

    action = "queue.purge"
    role = Role.ADMIN
    route = ON_QUEUE + "purge"
    body = "ConfirmBody"
    note = "type the queue's name; tasks already received still run"
    confirm: str | None = None

    def check(self) -> None:
        super().check()
        require_typed(self.confirm, self.queue, "delete all messages of this queue")

    def run(self, target: Target) -> Performed:
        """Deletes all messages and concludes their tasks."""
        removed = RemovedMessages(target, self.queue)
        messages = messages_of(target.broker, target.settings, self.queue)
        number = messages.purge(removed.add)
        concluded = removed.conclude(f"queue {self.queue} purged by {target.actor}")
        unread = number - removed.number
        rest = f" {unread} not read: the tasks are checked within minutes." if unread else ""
        tasks = f"{counted(concluded, 'task')} revoked.{removed.rest}"
        deleted = f"{counted(number, 'message')} deleted from {self.queue}; {tasks}"
        return Performed(
            outcome="done",
            message=f"{deleted}{rest}{messages.after_purge} Tasks already received still run.",
            details={"purged": number, "concluded": concluded},
        )


class ReadQueue(QueueCommand, frozen=True, kw_only=True):
    """Show the next messages of a queue.

    The number of messages.
    """

    action = "queue.read"
    route = ON_QUEUE + "messages"
    body = "ReadBody"
    note = (
        "Redis: nothing changes. RabbitMQ: messages are delivered and returned immediately, marked as redelivered, and "
        "a quorum queue counts it"
    )
    limit: Annotated[float, Meta(ge=1, le=200, multiple_of=1)] = 50

    def run(self, target: Target) -> Performed:
        """The messages that are delivered next, with the time of sending for recorded tasks."""
        reading = messages_of(target.broker, target.settings, self.queue).read(int(self.limit))
        reading = ReadMessages(
            messages=tuple(_with_sent(target, message) for message in reading.messages),
            more=reading.more,
            hazard=reading.hazard,
        )
        message = f"{counted(len(reading.messages), 'message')} of {self.queue} read."
        return Performed(outcome="done", message=message, reading=reading)


class DeleteMessage(QueueCommand, frozen=True, kw_only=True):
    """Delete one message.

    The digest of a message, from reading the queue.
    """

    action = "queue.delete_message"
    role = Role.ADMIN
    route = ON_QUEUE + "delete-message"
    body = "DeleteBody"
    note = "only the message that was read; on RabbitMQ the ones before it are returned, as in reading"
    digest: Name
    id: Text | None = None

    def run(self, target: Target) -> Performed:
        """Deletes it, stores it for a retry, and concludes its task."""
        subject = f"Task {self.id}" if self.id else "The message"
        found = messages_of(target.broker, target.settings, self.queue).delete(self.digest)
        if found is None:
            raise Conflict(f"{subject} was received by a worker meanwhile; it is no longer in {self.queue}.")
        removed = RemovedMessages(target, self.queue)
        removed.add(found)
        concluded = removed.conclude(f"message deleted from {self.queue} by {target.actor}")
        task_id = removed.ids[0] if removed.ids else None
        task = f"task {task_id} revoked.{removed.rest}" if task_id else "it belonged to no task."
        message = f"Message deleted; {task}"
        details = {"id": task_id, "digest": self.digest, "concluded": concluded}
        return Performed(outcome="done", message=message, details=details)


QUEUE_COMMANDS: tuple[type[QueueCommand], ...] = (PauseQueue, ResumeQueue, PurgeQueue, ReadQueue, DeleteMessage)


class RemovedMessages:
    """Messages that were removed from a queue: the ids of their tasks, and as many messages as may be stored."""

    def __init__(self, target: Target, queue: str) -> None:
        self.number = 0
        self.ids: list[str] = []
        self.rest = ""  # of the answer
        self._target = target
        self._queue = queue
        self._kept: dict[str, Message] = {}
        self._free_bytes = MOST_KEPT_BYTES if target.settings.capture else 0
        self._until = time.monotonic() + READING_SECONDS

    def add(self, removed: Any) -> bool:
        """Adds one; whether to continue."""
        self.number += 1
        found = of_removed(removed, self._queue)
        if found is not None:
            self.ids.append(found[0])
            self._keep(*found)
        return self.number < MOST_READ and time.monotonic() < self._until

    def conclude(self, text: str) -> int:
        """Stores the removal for the receiver, and waits until it has concluded the tasks; returns their number."""
        ids = list(dict.fromkeys(self.ids))
        if ids:
            record_removals(self._target.store, self._target.cluster, ids, text, self._target.now(), self._kept)
            deadline = time.monotonic() + CONCLUDE_SECONDS
            while (waits := awaits_removal(self._target.store, self._target.cluster)) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            self.rest = " The record shows it once a receiver has stored it." if waits else ""
        return len(ids)

    def _keep(self, task_id: str, message: Message) -> None:
        size = len(message.body or b"")
        if size <= min(self._free_bytes, self._target.settings.max_message_bytes) and len(self._kept) < MOST_KEPT:
            self._kept[task_id] = message
            self._free_bytes -= size


def consumers(target: Target, queue: str) -> list[str]:
    """The workers that consume the queue: by their answers, or by the record for those that do not answer."""
    living = living_workers(target)
    replies = target.remote.ask("active_queues", timeout=ANSWER_SECONDS, expected=living)
    reported = {name: queue_names(reply.ok) for name, reply in replies.items()}
    recorded = {worker.hostname: worker.queues for worker in workers_of(target)}
    names = {*living, *reported}
    return sorted(name for name in names if queue in (reported.get(name) or recorded.get(name) or ()))


def _ask(target: Target, command: WorkerCommand, text: str, more: Sequence[TaskResult] = ()) -> Performed:
    results = [*ask_workers(target, command).results, *more]
    workers = {result.id: result.message for result in results}
    performed = summary(text, results, noun="worker", workers=workers)
    by_worker = " ".join(f"{result.id}: {result.message}" for result in results[:5])
    return replace(performed, message=f"{performed.message} {by_worker}")


def _restore(target: Target, queue: str, pause: Pause | None) -> None:
    if pause is None:
        end_pause(target.store, target.cluster, queue)
    else:
        save_pause(target.store, pause)


def _with_sent(target: Target, message: QueueMessage) -> QueueMessage:
    if message.sent is not None or message.id is None:
        return message
    try:
        sent = read_task(target.store, message.id, target.cluster).sent
    except (NotFound, Conflict, InvalidInput):
        return message
    return replace(message, sent=sent)


HAZARD = (
    f"RabbitMQ shows messages only by delivering them. Up to {task_messages.MOST_DELIVERED} are delivered and returned "
    "immediately: they stay marked as redelivered, their order may change if workers consume messages meanwhile, and a "
    "quorum queue counts a delivery."
)


def why_not_find(target: Target, task: Task) -> str | None:
    """Why the message of a task is not searched for with FindMessage; ``None`` if it may be."""
    if not can_read_by_delivery(target.broker):
        return "Only for RabbitMQ. On other brokers messages are found automatically."
    if task.state not in IN_BROKER:
        return f"Task {task.id} is {task.state.word}: its message has been acknowledged."
    if task.queue is None:
        return f"The queue of task {task.id} is unknown."
    if not target.settings.capture:
        return "Messages are not stored here (--no-capture), so a found one could not be used."
    return None


class FindMessage(ClusterCommand, frozen=True, kw_only=True):
    """Find a task's message in its RabbitMQ queue, by delivering and returning messages.

    Why the message is searched for.
    """

    action = "task.find_message"
    subject = "{0.id}"
    role = Role.OPERATOR
    in_part = True
    route = "tasks/{id:name}/find-message"
    body = "FindBody"
    note = (
        "RabbitMQ only: messages of the task's queue are delivered and returned, as in reading it; the one found is "
        "stored like a captured message"
    )
    address = ("cluster", "id")
    id: str

    def run(self, target: Target) -> Performed:
        """Stores it like a captured message. Raises Conflict if it cannot be searched for, or is not there."""
        task = read_task(target.store, self.id, target.cluster)
        if why := why_not_find(target, task):
            raise Conflict(why)
        queue = str(task.queue)
        found = find_by_delivery(target.broker, target.settings, task.id, queue)
        message = found.messages.get(task.id)
        if message is None:
            where = "the queue" if found.whole else f"the first {task_messages.MOST_DELIVERED} messages of the queue"
            raise Conflict(f"The message is not in {where} {queue}. RabbitMQ does not show messages that a worker has.")
        if why := why_not_exact(message, task):
            raise Conflict(f"A message was found in the queue {queue}, but cannot be used: {why}.")
        kept = keep_message(target.store, task, message, target.now(), target.settings.max_message_bytes)
        if not kept:
            raise Conflict(
                f"The message was found in the queue {queue}, but is too large to store: {message.size} bytes."
            )
        text = f"Message found in the queue {queue} and stored: a retry is exact."
        result = TaskResult(id=task.id, outcome="done", message=text, fidelity="exact")
        return Performed.of_one(result, {"queue": queue, "size": message.size})
