"""What may be done to a task in its state, and why not. No I/O: pages ask before they offer a button."""

from celery_monitor.core.message import may_be_in_chord
from celery_monitor.core.words import age_words
from celery_monitor.records.event import READ, UNACKED, WAITING, Message
from celery_monitor.records.task import Link, Task, TaskState

# Why a task in one of these states is not sent again.
REFUSED = {
    TaskState.PENDING: "by the record, it waits in a queue for a worker",
    TaskState.SCHEDULED: "by its last event, a worker holds it until its ETA",
    TaskState.RECEIVED: "by its last event, a worker has received it",
    TaskState.STARTED: "by its last event, it is running; terminate it first, or wait",
    TaskState.RETRY: "by its last event, its next attempt is on its way to a worker",
}
# What a person must know before a task in one of these states is sent again.
WARNINGS = {
    TaskState.SUCCESS: "It succeeded: what it did is done a second time.",
    TaskState.LOST: "It is only presumed lost: if its worker comes back, or it is delivered again, it runs twice.",
}

_TWICE = "sent again now, it runs twice, unless a worker drops the first as revoked."
STILL_THERE = {
    WAITING: f"Its message still waits in its queue, and a worker will take it: {_TWICE}",
    UNACKED: f"Its message is not acknowledged, and the broker will deliver it again: {_TWICE}",
    READ: f"Its message lay in its queue when it was read, and may still do so: {_TWICE}",
}
NOT_RUN = {TaskState.LOST, TaskState.REVOKED}
SAME_ID = (
    "Under the same id it overwrites its record and its result, whoever waits for the old result gets the new one, "
    "and workers that hold the id among those revoked drop it without a word."
)


def why_not_retry(task: Task, place: str | None = None) -> str | None:
    """The reason why a task is not sent again in its state, with where its message is as far as that was checked."""
    why = REFUSED.get(task.state)
    return why if why is None or place is None else f"{why}; {place}"


def retried_words(link: Link) -> str:
    """Why a task that was retried before is left out; the same for all whose retries are in one state."""
    return f"already retried, {link.state.word if link.state else 'state unknown'}"


def retried_as_words(link: Link) -> str:
    """The same of one task."""
    return f"already retried as {link.id}, {link.state.word if link.state else 'state unknown'}"


def _retried_warning(link: Link, now: float | None) -> str:
    ago = "" if now is None else f" {age_words(now - link.at)} ago"
    state = link.state.word if link.state else "no event of it yet"
    return f"This task was already retried{ago} as {link.id} ({state}). Retried again, it runs once more."


def warnings_of(
    task: Task, message: Message | None, *, same_id: bool = False, now: float | None = None
) -> tuple[str, ...]:
    """What a person must know before a task is sent again; with ``now``, how long ago it was retried before."""
    again = [_retried_warning(task.retried, now)] if task.retried is not None else []
    warnings = [*again, WARNINGS[task.state]] if task.state in WARNINGS else again
    if message is not None and message.why in STILL_THERE and task.state in NOT_RUN:
        warnings = [*again, STILL_THERE[message.why]]
    if message is not None and (body := message.chord):
        warnings.append(f"It is a member of a chord: even if it succeeds, the chord's body {body} stays failed.")
    if message is not None and may_be_in_chord(message):
        warnings.append("It is of a group, and its body is not opened here: if that is a chord, its body stays failed.")
    if same_id:
        warnings.append(SAME_ID)
    return tuple(warnings)


def why_not_revoke(task: Task, *, terminate: bool = False) -> str | None:
    """The reason why a task is not revoked (or terminated) now; ``None`` when it may be."""
    if task.state.finished:
        return f"Task {task.id} is {task.state.word}: there is nothing left to revoke."
    if terminate and task.state is not TaskState.STARTED:
        return f"Task {task.id} is {task.state.word}: no process runs it. Revoke it instead."
    return None
