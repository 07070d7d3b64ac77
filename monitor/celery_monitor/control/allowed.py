"""Whether a task may be retried or revoked in its state, and why not. No I/O, as pages check before each button."""

from celery_monitor.core.message import may_be_in_chord
from celery_monitor.core.words import age_words
from celery_monitor.records.event import READ, UNACKED, WAITING, Message
from celery_monitor.records.task import Link, Task, TaskState

# Why a task in one of these states is not retried.
REFUSED = {
    TaskState.PENDING: "it is recorded as waiting in a queue",
    TaskState.SCHEDULED: "by its last event, a worker keeps it until its ETA",
    TaskState.RECEIVED: "by its last event, a worker has received it",
    TaskState.STARTED: "by its last event, it is running; terminate it first, or wait",
    TaskState.RETRY: "by its last event, its next attempt is already sent",
}
# Warnings before a task in one of these states is retried.
NOT_REMEMBERED = "workers remember a revoke only while they run, so a worker that starts later may still run it"
WARNINGS = {
    TaskState.SUCCESS: "This task succeeded: a retry repeats its work.",
    TaskState.LOST: "This task is only presumed lost: if the worker comes back or it is redelivered, it runs twice.",
}

_TWICE = "a retry now runs the task twice, unless a worker drops the first message as revoked."
STILL_THERE = {
    WAITING: f"The message is still in the queue, and a worker will consume it: {_TWICE}",
    UNACKED: f"The message is not acknowledged, and the broker will redeliver it: {_TWICE}",
    READ: f"The message was in the queue when last read, and may still be there: {_TWICE}",
}
NOT_RUN = {TaskState.LOST, TaskState.REVOKED}
SAME_ID = (
    "Reusing the task id overwrites its record and its result: callers that wait for the old result get the new one. "
    "Workers that have the id among their revoked tasks drop it silently."
)


def why_not_retry(task: Task, place: str | None = None) -> str | None:
    """The reason why a task is not retried in its state; ``place``: where its message is, if that was checked."""
    why = REFUSED.get(task.state)
    return why if why is None or place is None else f"{why}; {place}"


def retried_words(link: Link) -> str:
    """The reason to skip a task that was retried before; the same text for all retries in one state."""
    return f"already retried, {link.state.word if link.state else 'state unknown'}"


def retried_as_words(link: Link) -> str:
    """``retried_words`` with the id of the retry."""
    return f"already retried as {link.id}, {link.state.word if link.state else 'state unknown'}"


def _retried_warning(link: Link, now: float | None) -> str:
    ago = "" if now is None else f" {age_words(now - link.at)} ago"
    state = link.state.word if link.state else "no event yet"
    return f"This task was already retried{ago} as {link.id} ({state}). It would run again."


def warnings_of(
    task: Task, message: Message | None, *, same_id: bool = False, now: float | None = None
) -> tuple[str, ...]:
    """Warnings before a task is retried; with ``now``, they include how long ago it was retried before."""
    again = [_retried_warning(task.retried, now)] if task.retried is not None else []
    warnings = [*again, WARNINGS[task.state]] if task.state in WARNINGS else again
    if message is not None and message.why in STILL_THERE and task.state in NOT_RUN:
        warnings = [*again, STILL_THERE[message.why]]
    if message is not None and (body := message.chord):
        warnings.append(f"Part of a chord: even if the retry succeeds, the chord body {body} stays failed.")
    if message is not None and may_be_in_chord(message):
        text = "Part of a group, and the message cannot be read: if that is a chord, its body stays failed."
        warnings.append(text)
    if same_id:
        warnings.append(SAME_ID)
    return tuple(warnings)


def why_not_revoke(task: Task, *, terminate: bool = False) -> str | None:
    """The reason why a task is not revoked (or terminated) now; ``None`` if it may be."""
    if task.state.finished:
        return f"Task {task.id} is {task.state.word}: there is nothing left to revoke."
    if terminate and task.state is not TaskState.STARTED:
        return f"Task {task.id} is {task.state.word}: no process runs it. Revoke it instead."
    return None
