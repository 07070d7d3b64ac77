"""fold: applies one event to its task. No I/O, no clock.

A task is a set of facts: each run was received, started and ended at times stamped by one worker. Events arrive
late, twice, out of order, or not at all. The common case (the next event of the only run) is applied directly; in any
other case all facts are sorted again, so the same facts give the same task in whatever order they arrive.
Which message a run belongs to, and whether a task waits again, is decided in invocations.py.
"""

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from celery_monitor.core.failures import unwrapped
from celery_monitor.core.invocations import bounded, replacing_of
from celery_monitor.core.runs import DUPLICATE_SECONDS, Fact, arrange, facts_of, measured, sent_of
from celery_monitor.core.sanitize import LATEST_TIME
from celery_monitor.records.event import Event
from celery_monitor.records.task import FINISHED_STATES, Invocation, Outcome, Run, Task, TaskState

LONGEST_TIME = 64  # characters
CAPTURED = "capture-message"  # sent by celery_monitor_capture
# Looked up once: in Python 3.11 each access to an enum member is a function call.
_RECEIVED, _STARTED, _SCHEDULED = TaskState.RECEIVED, TaskState.STARTED, TaskState.SCHEDULED
_REJECTED, _REVOKED, _REQUEUED = Outcome.REJECTED, Outcome.REVOKED, Outcome.REQUEUED
# Events concluded after a gap, with names that no application uses for its own events.
RUNNING, ON_WORKER, IN_QUEUE = "monitor-running", "monitor-held", "monitor-waiting"
REMOVED = "monitor-removed"  # the message was removed from its queue, by us or as expired; the exception tells which
_NOT_RUN = frozenset({Outcome.LOST, _REVOKED})  # concluded for a task that no worker has
_OUTCOMES = {
    "task-succeeded": Outcome.SUCCEEDED,
    "task-failed": Outcome.FAILED,
    "task-retried": Outcome.RETRIED,
    "task-revoked": Outcome.REVOKED,
    "task-rejected": Outcome.REJECTED,
    "task-cancelled": Outcome.CANCELLED,
    REMOVED: Outcome.REVOKED,
    "task-lost": Outcome.LOST,  # from reconcile.py, with its evidence as the exception
}
_STATES = {
    Outcome.SUCCEEDED: TaskState.SUCCESS,
    Outcome.FAILED: TaskState.FAILURE,
    Outcome.RETRIED: TaskState.RETRY,
    Outcome.REVOKED: TaskState.REVOKED,
    Outcome.REJECTED: TaskState.REJECTED,
    Outcome.REQUEUED: TaskState.PENDING,
    Outcome.CANCELLED: TaskState.RETRY,  # unacknowledged, so the broker delivers it again
    Outcome.LOST: TaskState.LOST,
    Outcome.REPLACED: TaskState.PENDING,  # never the last run, which is the replacement
}


def fold(task: Task, event: Event) -> bool:
    """Applies an event to its task; True if anything changed. Never raises for an Event.

    Other events than those of a task's lifecycle change nothing.
    """
    handler = _HANDLERS.get(event.type)
    return handler(task, event) if handler else False


def is_lifecycle(event_type: str) -> bool:
    """Whether ``fold`` handles this type."""
    return event_type in _HANDLERS


def parse_time(text: str | None) -> float | None:
    """Epoch seconds of an ISO time from Celery; without a zone it is UTC.

    ``None`` if it is not a time, or none between 1970 and LATEST_TIME.
    """
    if not text or len(text) > LONGEST_TIME:
        return None
    try:
        moment = datetime.fromisoformat(text)
        at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return at if 0 <= at < LATEST_TIME else None


def _sent(task: Task, event: Event) -> bool:
    if task.sent is None:
        runs = task.runs
        # The first event of a task, or the second one of its only message.
        if not runs and not event.retries and not replacing_of(event):
            _set_sent(task, event)
            return True
        if len(runs) == 1 and runs[0].received is not None and _is_of_message(task, event, runs[0]):
            _set_sent(task, event)
            return True
    elif task.sent == event.timestamp and task.client == event.hostname:
        return False
    message = Run(retries=event.retries, eta=parse_time(event.eta), replacing=replacing_of(event))
    message.invocation = _invocation(task, event, sent=event.timestamp)
    return _rearrange(task, None, message)


def _set_sent(task: Task, event: Event) -> None:
    """Only this event has the route of the message, and its real name rather than a shadow."""
    task.discovered_at = None
    task.sent, task.client = event.timestamp, event.hostname
    task.queue = event.queue or task.queue
    if event.routing_key is not None:
        task.exchange, task.routing_key = event.exchange, event.routing_key
    name, task.name = task.name, event.name
    _identify(task, event, latest=False)
    task.name = task.name or name


def _is_of_message(task: Task, event: Event, run: Run) -> bool:
    """Whether an event is about the message that the task shows, which ``run`` belongs to."""
    same = _agree(event.args, task.args) and _agree(event.kwargs, task.kwargs)
    if not same or (event.retries or 0) != (run.retries or 0) or replacing_of(event) != run.replacing:
        return False
    return bool(event.retries or run.replacing) or task.parent_id == event.parent_id


def _agree(one: str | None, other: str | None) -> bool:
    return one == other or one is None or other is None


def _received(task: Task, event: Event) -> bool:
    task.discovered_at = None
    if task.runs:
        _drop_wrong_end(task)
    eta = parse_time(event.eta) if event.eta else None
    if not task.runs:
        replacing = 0 if event.parent_id is None else replacing_of(event)
        if task.sent is None or (
            (event.args == task.args or task.args is None)
            and (event.kwargs == task.kwargs or task.kwargs is None)
            and event.parent_id == task.parent_id
            and not event.retries
            and not replacing
        ):
            run = Run(event.hostname, event.pid, event.retries, event.timestamp, None, None, eta)
            if replacing:
                run.replacing = replacing
            task.runs = [run]
            task.state = _RECEIVED if eta is None or eta <= event.timestamp else _SCHEDULED
            _identify(task, event, latest=True)
            return True
    fact = Fact(event.timestamp, "received", event.hostname, event.pid, retries=event.retries, eta=eta)
    return _rearrange(task, fact._replace(replacing=replacing_of(event), invocation=_invocation(task, event)))


def _invocation(task: Task, event: Event, sent: float | None = None) -> Invocation:
    """The message of an event. A retried task names itself as its parent."""
    return Invocation(
        name=event.name,
        args=event.args,
        kwargs=event.kwargs,
        queue=event.queue,
        exchange=event.exchange,
        routing_key=event.routing_key,
        client=None if sent is None else event.hostname,
        sent=sent,
        expires=parse_time(event.expires),
        root_id=event.root_id,
        parent_id=None if event.parent_id == task.id else event.parent_id,
    )


def _started(task: Task, event: Event) -> bool:
    runs = task.runs
    if len(runs) == 1:
        run = runs[0]
        waiting = run.started is None and run.ended is None and run.worker == event.hostname
        if waiting and (run.received is None or run.received <= event.timestamp):
            run.started = event.timestamp
            task.state = _STARTED
            return True
    _drop_wrong_end(task)
    if task.discovered_at is not None and any(_is_same_start(run, event) for run in runs):
        return False
    return _rearrange(task, Fact(event.timestamp, "started", event.hostname, event.pid))


def _drop_wrong_end(task: Task) -> None:
    """A worker has the task after all: its end was concluded only from its message."""
    last = task.runs[-1] if task.runs else None
    if last is not None and last.worker is None and last.outcome in _NOT_RUN:
        _drop_concluded(task)
        task.state = _state_of(task)


def _is_same_start(run: Run, event: Event) -> bool:
    """Whether the start was already recorded from the worker's answer, before its event arrived."""
    same = run.worker == event.hostname and run.pid == event.pid and run.received is None and run.started is not None
    return same and abs(event.timestamp - (run.started or 0.0)) < DUPLICATE_SECONDS


def _ended(task: Task, event: Event) -> bool:
    outcome = _OUTCOMES[event.type]
    if outcome is _REJECTED and event.requeue:
        outcome = _REQUEUED
    exception = event.exception
    if outcome is _REVOKED and event.type != REMOVED:
        exception = _revocation(event)
    elif exception is not None:
        exception = unwrapped(exception, event.traceback)
    if not event.hostname:
        return _ended_without_worker(task, event, outcome)
    runs = task.runs
    if runs and runs[-1].worker is None and runs[-1].ended is not None:
        _drop_concluded(task)
        runs = task.runs
    if len(runs) == 1:
        run = runs[0]
        begun = run.started if run.started is not None else run.received
        same = run.worker == event.hostname and run.ended is None
        if same and (begun <= event.timestamp if begun is not None else event.pid in (None, run.pid)):
            run.ended = event.timestamp
            run.outcome = outcome
            run.runtime = event.runtime if event.runtime is not None else measured(run)
            run.result = event.result
            run.exception = exception
            run.traceback = event.traceback
            task.state = _STATES[outcome]
            return True
    fact = Fact(
        event.timestamp,
        "ended",
        event.hostname,
        event.pid,
        outcome=outcome,
        runtime=event.runtime,
        result=event.result,
        exception=exception,
        traceback=event.traceback,
    )
    return _rearrange(task, fact)


def _drop_concluded(task: Task) -> None:
    """Removes an end that was concluded without a worker; the worker's own events count."""
    last = task.runs.pop()
    if task.runs:  # the message waits again, for the run that is being reported
        task.runs.append(Run(retries=last.retries, eta=last.eta, replacing=last.replacing, invocation=last.invocation))


def _ended_without_worker(task: Task, event: Event, outcome: Outcome) -> bool:
    """An end that was concluded without a worker. If a run were active, its worker would be named."""
    last = task.runs[-1] if task.runs else None
    if last is not None and not last.waiting and last.ended is None and last.started is None and event.type == REMOVED:
        last.ended, last.outcome = event.timestamp, _REQUEUED  # it was in the queue, so the worker had returned it
    if last is not None and not last.waiting and (last.ended is None or task.state in FINISHED_STATES):
        return False
    if last is not None and not last.waiting and last.worker is None:
        _drop_concluded(task)  # it was concluded to be lost, without a worker
        last = task.runs[-1] if task.runs else None
    retries = None if last is None else last.retries if last.waiting else (last.retries or 0) + 1
    ended = Run(None, None, retries, ended=event.timestamp, outcome=outcome, runtime=event.runtime, result=event.result)
    ended.exception, ended.traceback = event.exception, event.traceback
    _append(task, ended)
    task.state = _STATES[outcome]
    return True


def _append(task: Task, run: Run) -> None:
    """Adds a run after the others; it gets the message that waits, if there is one."""
    _open(task)
    runs = list(task.runs)
    if runs and runs[-1].waiting:
        message = runs.pop()
        run.invocation, run.eta, run.replacing = message.invocation, run.eta or message.eta, message.replacing
    elif runs:
        run.invocation = runs[-1].invocation
    else:
        run.invocation = _own_invocation(task)
    _close(task, [*runs, run])


def _running(task: Task, event: Event) -> bool:
    """From its worker's answer: it is running, since when, and with which arguments. The start event was missed."""
    _drop_wrong_end(task)
    if _is_of_another(task, event):  # it was replaced, without any event
        fact = Fact(event.timestamp, "started", event.hostname, event.pid, invocation=_invocation(task, event))
        return not any(_is_recorded(run, event) for run in task.runs) and _rearrange(task, fact)
    active = any(run.worker == event.hostname and run.started is not None and run.ended is None for run in task.runs)
    changed = _discover(task, event)
    return (not active and _rearrange(task, Fact(event.timestamp, "started", event.hostname, event.pid))) or changed


def _is_recorded(run: Run, event: Event) -> bool:
    same = run.invocation is not None and run.invocation.name == event.name
    return same and run.worker == event.hostname and run.started is not None and run.ended is None


def _is_of_another(task: Task, event: Event) -> bool:
    """Whether it is about another message than the task shows. With a shadow, only the name differs."""
    if task.name is None or event.name is None or task.name == event.name:
        return False
    return None in {task.args, event.args} or (task.args, task.kwargs) != (event.args, event.kwargs)


def _on_worker(task: Task, event: Event) -> bool:
    """From a worker's answer: it has the task and has not started it. The time of receipt is unknown."""
    changed = _discover(task, event)
    _drop_wrong_end(task)
    last = task.runs[-1] if task.runs else None
    if last is not None and not last.waiting and (last.ended is None or task.state in FINISHED_STATES):
        return changed
    _append(task, Run(event.hostname, event.pid, event.retries, eta=parse_time(event.eta)))
    task.state = _state_of(task)
    return True


def _discover(task: Task, event: Event) -> bool:
    """Sets what the event adds to the task, which may have been unknown before."""
    if _is_of_another(task, event):
        return False
    before = msgspec.structs.astuple(task)
    if not task.runs and task.sent is None and task.discovered_at is None:
        task.discovered_at = event.discovered_at
    task.queue = task.queue or event.queue
    if task.routing_key is None:
        task.exchange, task.routing_key = event.exchange, event.routing_key
    _identify(task, event, latest=False)
    return before != msgspec.structs.astuple(task)


def _captured(task: Task, event: Event) -> bool:
    """The message itself, with facts that events leave out. It is not a lifecycle event.

    It may arrive before any event of the task, and does not create the task. Whoever announces it must have the task.
    """
    message = event.message
    if message is None or (task.name is not None and event.name not in {None, task.name}):
        return False
    if not any(run.worker == event.hostname for run in task.runs):
        return False  # from somewhere else: core/captures.py names the difference
    before = (task.name, task.queue, task.exchange, task.routing_key, task.root_id, task.parent_id)
    task.queue = task.queue or message.queue
    if task.routing_key is None:
        task.exchange, task.routing_key = message.exchange, message.routing_key
    _identify(task, event, latest=False)
    exists = bool(task.runs) or task.sent is not None
    return exists and before != (task.name, task.queue, task.exchange, task.routing_key, task.root_id, task.parent_id)


def _due(task: Task, _: Event) -> bool:
    """The ETA has come, and the worker may start the task at any time."""
    if task.state is not _SCHEDULED:
        return False
    task.state = _RECEIVED
    return True


def _found(task: Task, event: Event) -> bool:
    """The worker still has a task that was concluded to be lost."""
    found = False
    for run in task.runs:
        if run.outcome is Outcome.LOST and run.worker == event.hostname and run.pid == event.pid:
            run.outcome = run.ended = run.exception = run.runtime = None
            found = True
    if found:
        task.state = _state_of(task)
    return found


def _identify(task: Task, event: Event, *, latest: bool) -> None:
    """Sets name, arguments and relations from the message. The arguments of the latest run are the task's."""
    task.name = task.name or event.name
    if latest or task.args is None:
        task.args = event.args if event.args is not None else task.args
    if latest or task.kwargs is None:
        task.kwargs = event.kwargs if event.kwargs is not None else task.kwargs
    if event.expires and (latest or task.expires is None):
        task.expires = parse_time(event.expires)
    task.root_id = task.root_id or event.root_id
    if task.parent_id is None and event.parent_id != task.id:  # a retried task names itself as its parent
        task.parent_id = event.parent_id


_Snapshot = tuple[object, ...]


def _rearrange(task: Task, fact: Fact | None, message: Run | None = None) -> bool:
    """Sorts all facts of the task again with one more fact or message. False if nothing changed."""
    before = _snapshot(task)
    _open(task)
    recorded = list(task.runs)
    if not recorded and task.sent is not None:
        recorded.append(Run(invocation=_own_invocation(task)))
    facts, sent = facts_of(recorded), sent_of(recorded if message is None else [*recorded, message])
    if fact is not None:
        facts.append(fact)
    runs = arrange(facts, sent)
    if runs:
        _close(task, runs)
        task.state = _state_of(task)
    else:
        _close(task, task.runs)
    return before != _snapshot(task)


def _snapshot(task: Task) -> _Snapshot:
    return (*msgspec.structs.astuple(_own_invocation(task)), *map(msgspec.structs.astuple, task.runs))


def _own_invocation(task: Task) -> Invocation:
    """The message that the task's fields show."""
    return Invocation(
        task.name,
        task.args,
        task.kwargs,
        task.queue,
        task.exchange,
        task.routing_key,
        task.client,
        task.sent,
        task.expires,
        task.root_id,
        task.parent_id,
    )


def _open(task: Task) -> None:
    """Gives every run its own message, until ``_close``."""
    own = _own_invocation(task)
    for run in task.runs:
        if run.invocation is None:
            run.invocation = own


def _close(task: Task, runs: list[Run]) -> None:
    """Puts the message of the latest run into the task; only runs of other messages keep theirs."""
    own = _own_invocation(task)
    task.runs = [] if len(runs) == 1 and _is_plain(runs[0]) else runs
    if not runs:
        return
    shown = task.run or runs[-1]
    latest = shown.invocation
    if latest is not None:
        # A route that was discovered by asking workers, before any event had it.
        if own.sent is None and latest.queue is None and latest.routing_key is None and own.name in {None, latest.name}:
            latest = msgspec.structs.replace(
                latest, queue=own.queue, exchange=own.exchange, routing_key=own.routing_key
            )
        if latest.parent_id is None and (shown.retries or shown.replacing):
            latest = msgspec.structs.replace(latest, parent_id=_first_parent(runs))
        _show(task, latest)
    for run in runs:
        if run.invocation is not None:
            run.invocation = None if run is shown or run.invocation == latest else bounded(run.invocation)


def _is_plain(run: Run) -> bool:
    """Whether it is just a first message that was sent: the task has no run yet."""
    return run.waiting and not run.retries and not run.replacing


def _first_parent(runs: list[Run]) -> str | None:
    """A retried or replaced task names itself as its parent; the real one is in an earlier message."""
    parents = [run.invocation.parent_id for run in runs if run.invocation is not None]
    return next((parent for parent in reversed(parents) if parent is not None), None)


def _show(task: Task, message: Invocation) -> None:
    task.name = message.name
    task.args, task.kwargs = message.args, message.kwargs
    task.queue, task.exchange, task.routing_key = message.queue, message.exchange, message.routing_key
    task.client, task.sent, task.expires = message.client, message.sent, message.expires
    task.root_id, task.parent_id = message.root_id, message.parent_id


def _state_of(task: Task) -> TaskState:
    shown = task.run
    return TaskState.PENDING if shown is None else _state(shown)


def _state(run: Run) -> TaskState:
    if run.outcome is not None:
        return _STATES[run.outcome]
    if run.waiting:
        return TaskState.PENDING
    if run.started is not None:
        return _STARTED
    if run.eta is not None and (run.received is None or run.eta > run.received):
        return _SCHEDULED
    return _RECEIVED


def _revocation(event: Event) -> str:
    if event.expired:
        return "expired"
    if event.terminated:
        return f"terminated by signal {event.signum}" if event.signum else "terminated"
    return "revoked"


_HANDLERS: dict[str, Callable[[Task, Event], bool]] = {
    "task-sent": _sent,
    "task-received": _received,
    "task-started": _started,
    CAPTURED: _captured,
    "task-due": _due,  # ours: Celery has no event for an ETA
    "task-queue-discovered": lambda _task, _event: False,  # ours: the writer sets the only queue of the worker
    "task-found": _found,  # ours: reconcile.py
    RUNNING: _running,  # ours, like the next two: from lost_tasks.py after a gap
    ON_WORKER: _on_worker,
    IN_QUEUE: _discover,
    **dict.fromkeys(_OUTCOMES, _ended),
}
