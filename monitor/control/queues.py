"""What is done to queues: pause and resume on all their workers, read, purge, throw one message away."""

from dataclasses import replace

import msgspec

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
from monitor.records import Pause
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.store.journal import end_pause
from monitor.store.journal import save_pause


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
            return purge(target, command)
        case DeleteMessage():
            return delete_message(target, command)
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


def purge(target: Target, command: PurgeQueue) -> Performed:
    number = messages_of(target.broker, target.settings, command.queue).purge()
    messages = "1 message" if number == 1 else f"{number} messages"
    return Performed(
        outcome="done",
        message=f"{messages} of {command.queue} thrown away. What workers had taken already still runs.",
        details={"purged": number},
    )


def delete_message(target: Target, command: DeleteMessage) -> Performed:
    subject = f"Task {command.id}" if command.id else "The message"
    if not messages_of(target.broker, target.settings, command.queue).delete(command.digest):
        raise Conflict(f"{subject} was taken by a worker meanwhile; it is not in {command.queue} any more.")
    return Performed(
        outcome="done",
        message=f"{subject} is thrown away; it will not run.",
        details={"id": command.id, "digest": command.digest},
    )


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
