"""What is done to queues: pause and resume on all their workers, read, purge, throw one message away."""

import time
from dataclasses import replace
from typing import Any

import msgspec

from monitor.brokers import held
from monitor.brokers.message import QueueMessage
from monitor.brokers.message import Reading
from monitor.brokers.messages import messages_of
from monitor.control.answers import done
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.control.inspect import queue_names
from monitor.control.queue_commands import DeleteMessage
from monitor.control.queue_commands import PauseQueue
from monitor.control.queue_commands import PurgeQueue
from monitor.control.queue_commands import QueueCommand
from monitor.control.queue_commands import ReadQueue
from monitor.control.queue_commands import ResumeQueue
from monitor.control.target import ANSWER_SECONDS
from monitor.control.target import Target
from monitor.control.target import summary
from monitor.control.worker_commands import AddConsumer
from monitor.control.worker_commands import CancelConsumer
from monitor.control.worker_commands import WorkerCommand
from monitor.control.workers import tell_workers
from monitor.errors import Conflict
from monitor.errors import InvalidInput
from monitor.errors import NotFound
from monitor.records import Message
from monitor.records import Pause
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.store.journal import end_pause
from monitor.store.journal import save_pause
from monitor.store.removals import note_removals

MOST_READ = 100_000  # messages of a purge of which the tasks are concluded at once
READING_SECONDS = 10.0
MOST_KEPT, MOST_KEPT_BYTES = 1000, 32_000_000  # messages of a purge that are kept for a retry


def change_queue(target: Target, command: QueueCommand, by: str) -> Performed:
    """Does it, in the name of ``by``."""
    command.check()
    match command:
        case PauseQueue():
            return pause(target, command, by)
        case ResumeQueue():
            return resume(target, command)
        case ReadQueue():
            return read(target, command)
        case PurgeQueue():
            return purge(target, command, by)
        case DeleteMessage():
            return delete_message(target, command, by)
        case _:
            raise InvalidInput(f"{type(command).__name__} is nothing that is done to a queue")


def pause(target: Target, command: PauseQueue, by: str) -> Performed:
    """Every worker that takes from it is told to take no more. What they have taken already still runs."""
    workers = consumers(target, command.queue)
    if not workers:
        raise Conflict(f"No worker takes from {command.queue}: there is nothing to pause.")
    before = queries.pauses(target.store, target.cluster).get((target.cluster, command.queue))
    stopped = tuple(sorted({*workers, *(before.workers if before else ())}))
    note = Pause(
        cluster=target.cluster,
        queue=command.queue,
        by=before.by if before else by,
        at=before.at if before else target.now(),
        workers=stopped,
        reason=command.reason,
    )
    save_pause(target.store, note)  # first: a worker that was stopped and not noted would never be resumed
    performed = _tell(
        target, CancelConsumer(cluster=target.cluster, workers=tuple(workers), queue=command.queue), "Pause"
    )
    if not any(result.outcome in {"done", "unconfirmed"} for result in performed.results):
        _restore(target, command.queue, before)
    return performed


def resume(target: Target, command: ResumeQueue) -> Performed:
    """The workers that a pause has stopped take from it again. Who does not answer stays noted as stopped."""
    noted = queries.pauses(target.store, target.cluster).get((target.cluster, command.queue))
    if noted is None:
        raise Conflict(f"{command.queue} is not paused from here. To let a worker take from it, add it to that worker.")
    offline = {
        worker.hostname
        for worker in queries.workers(target.store, target.cluster)
        if worker.status is WorkerStatus.OFFLINE
    }
    present = tuple(name for name in noted.workers if name not in offline)
    gone = [_gone(name) for name in noted.workers if name in offline]
    if not present:
        end_pause(target.store, target.cluster, command.queue)
        return Performed(
            outcome="done",
            message="The workers that were stopped are gone; those that were started since take from it by themselves.",
            results=tuple(gone),
        )
    performed = _tell(target, AddConsumer(cluster=target.cluster, workers=present, queue=command.queue), "Resume", gone)
    still = tuple(result.id for result in performed.results if result.outcome in {"unconfirmed", "failed"})
    _restore(target, command.queue, msgspec.structs.replace(noted, workers=still) if still else None)
    return performed


def read(target: Target, command: ReadQueue) -> Performed:
    """The messages that are delivered next, with when they were sent where the record has their tasks."""
    reading = messages_of(target.broker, target.settings, command.queue).read(command.limit)
    reading = Reading(
        messages=tuple(_dated(target, message) for message in reading.messages),
        more=reading.more,
        hazard=reading.hazard,
    )
    number = len(reading.messages)
    return Performed(outcome="done", message=f"{number} messages of {command.queue} were read.", reading=reading)


def purge(target: Target, command: PurgeQueue, by: str) -> Performed:
    """Removes all messages, and concludes the tasks that they were of."""
    removed = Removed(target, command.queue)
    number = messages_of(target.broker, target.settings, command.queue).purge(removed.see)
    seen = removed.conclude(f"queue {command.queue} purged by {by}")
    messages = "1 message" if number == 1 else f"{number} messages"
    unread = number - removed.number
    rest = (
        f" {unread} of them were not read: their tasks are looked for, and concluded within minutes." if unread else ""
    )
    return Performed(
        outcome="done",
        message=f"{messages} deleted from {command.queue}; {_tasks(seen)} revoked.{rest} Tasks that workers have "
        "already received still run.",
        details={"purged": number, "concluded": seen},
    )


def delete_message(target: Target, command: DeleteMessage, by: str) -> Performed:
    """Removes one message, keeps it for a retry, and concludes its task."""
    subject = f"Task {command.id}" if command.id else "The message"
    found = messages_of(target.broker, target.settings, command.queue).delete(command.digest)
    if found is None:
        raise Conflict(f"{subject} was received by a worker meanwhile; it is not in {command.queue} any more.")
    removed = Removed(target, command.queue)
    removed.see(found)
    seen = removed.conclude(f"message deleted from {command.queue} by {by}")
    task_id = removed.ids[0] if removed.ids else None
    message = f"Message deleted; task {task_id} is revoked." if task_id else "Message deleted; it was not a task's."
    return Performed(
        outcome="done",
        message=message,
        details={"id": task_id, "digest": command.digest, "concluded": seen},
    )


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
        found = held.of_removed(removed, self._queue)
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
    recorded = {worker.hostname: worker.queues for worker in queries.workers(target.store, target.cluster)}
    names = {*living, *said}
    return sorted(name for name in names if queue in (said.get(name) or recorded.get(name) or ()))


def _tell(target: Target, command: WorkerCommand, verb: str, more: list[TaskResult] | None = None) -> Performed:
    results = [*tell_workers(target, command).results, *(more or [])]
    told = summary(verb, results, workers={result.id: result.message for result in results})
    message = f"{told.message}. " + " ".join(f"{result.id}: {result.message}" for result in results[:5])
    return Performed(outcome=told.outcome, message=message, results=told.results, details=told.details)


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
        sent = queries.task(target.store, message.id, target.cluster).sent
    except (NotFound, Conflict, InvalidInput):
        return message
    return replace(message, sent=sent)
