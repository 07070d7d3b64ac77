"""fold: one event into what is known of its task. No I/O, no clock.

A task is a set of facts: each run was received, started and ended at times stamped by one worker. Events come
late, twice, out of order, or not at all, so the common case (the next event of the only run) is taken directly,
and every other case by sorting all facts anew: whatever the order of arrival, the same facts give the same task.
Which message a run is of, and whether a task waits again, is decided in invocations.py.
"""

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from celery_monitor.core.failures import unwrapped
from celery_monitor.core.invocations import bounded, replacing_of
from celery_monitor.core.runs import DUPLICATE_SECONDS, Fact, arrange, facts_of, measured, sent_of
from celery_monitor.records.event import Event
from celery_monitor.records.task import FINISHED_STATES, Invocation, Outcome, Run, Task, TaskState

CAPTURED = "capture-message"  # sent by celery_monitor_capture
# By name once: Python 3.11 looks a member of an enum up in a function of its own, each time.
_RECEIVED, _STARTED, _SCHEDULED = TaskState.RECEIVED, TaskState.STARTED, TaskState.SCHEDULED
_REJECTED, _REVOKED, _REQUEUED = Outcome.REJECTED, Outcome.REVOKED, Outcome.REQUEUED
# What is concluded after a gap. No name that an application would give to an event of its own.
RUNNING, HELD_BY_WORKER, IN_QUEUE = "monitor-running", "monitor-held", "monitor-waiting"
REMOVED = "monitor-removed"  # its message was removed from its queue, by us or since it expired; the exception says how
_UNRUN = frozenset({Outcome.LOST, _REVOKED})  # of what no worker is known to have
_OUTCOMES = {
    "task-succeeded": Outcome.SUCCEEDED,
    "task-failed": Outcome.FAILED,
    "task-retried": Outcome.RETRIED,
    "task-revoked": Outcome.REVOKED,
    "task-rejected": Outcome.REJECTED,
    "task-cancelled": Outcome.CANCELLED,
    REMOVED: Outcome.REVOKED,
    "task-lost": Outcome.LOST,  # ours: reconcile.py says so, with its evidence as the exception
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
    Outcome.REPLACED: TaskState.PENDING,  # never of the last run: what replaced it comes behind
}


def fold(task: Task, event: Event) -> bool:
    """Takes an event into its task; True if it said anything new. Never raises for an Event.

    An event of a type that is not a task's lifecycle says nothing.
    """
    handler = _HANDLERS.get(event.type)
    return handler(task, event) if handler else False


def is_lifecycle(event_type: str) -> bool:
    """``fold`` knows this type."""
    return event_type in _HANDLERS


def parse_time(text: str | None) -> float | None:
    """Epoch seconds of an ISO time as Celery sends it; one without a zone is UTC. ``None`` if it is no time."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _sent(task: Task, event: Event) -> bool:
    if task.sent is None:
        runs = task.runs
        # The first event of a task, or the second one of its only message.
        if not runs and not event.retries and not replacing_of(event):
            _tell_sending(task, event)
            return True
        if len(runs) == 1 and runs[0].received is not None and _is_of_message(task, event, runs[0]):
            _tell_sending(task, event)
            return True
    elif task.sent == event.timestamp and task.client == event.hostname:
        return False
    message = Run(retries=event.retries, eta=parse_time(event.eta), replacing=replacing_of(event))
    message.invocation = _invocation(task, event, sent=event.timestamp)
    return _rearrange(task, None, message)


def _tell_sending(task: Task, event: Event) -> None:
    """Of all that is known of a message, this event alone tells its route, and the name that is no shadow."""
    task.discovered_at = None
    task.sent, task.client = event.timestamp, event.hostname
    task.queue = event.queue or task.queue
    if event.routing_key is not None:
        task.exchange, task.routing_key = event.exchange, event.routing_key
    name, task.name = task.name, event.name
    _identify(task, event, latest=False)
    task.name = task.name or name


def _is_of_message(task: Task, event: Event, run: Run) -> bool:
    """Whether an event tells of the message that the task shows, which ``run`` is of."""
    same = _agree(event.args, task.args) and _agree(event.kwargs, task.kwargs)
    if not same or (event.retries or 0) != (run.retries or 0) or replacing_of(event) != run.replacing:
        return False
    return bool(event.retries or run.replacing) or task.parent_id == event.parent_id


def _agree(one: str | None, other: str | None) -> bool:
    return one == other or one is None or other is None


def _received(task: Task, event: Event) -> bool:
    task.discovered_at = None
    if task.runs:
        _take_back(task)
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
    """What an event says of its message. A retried task names itself as its parent."""
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
    _take_back(task)
    if task.discovered_at is not None and any(_told_already(run, event) for run in runs):
        return False
    return _rearrange(task, Fact(event.timestamp, "started", event.hostname, event.pid))


def _take_back(task: Task) -> None:
    """A worker has the task after all: that it would not run was concluded of its message alone."""
    last = task.runs[-1] if task.runs else None
    if last is not None and last.worker is None and last.outcome in _UNRUN:
        _drop_concluded(task)
        task.state = _state_of(task)


def _told_already(run: Run, event: Event) -> bool:
    """Its worker was asked since when it runs, and the event of its start came after all."""
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
        return _ended_somewhere(task, event, outcome)
    runs = task.runs
    if runs and runs[-1].worker is None and runs[-1].ended is not None:
        _drop_concluded(task)
        runs = task.runs
    if len(runs) == 1:
        run = runs[0]
        begun = run.started if run.started is not None else run.received
        mine = run.worker == event.hostname and run.ended is None
        if mine and (begun <= event.timestamp if begun is not None else event.pid in (None, run.pid)):
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
    """Takes back what was concluded without knowing the worker: what its worker says counts."""
    last = task.runs.pop()
    if task.runs:  # the message waits for the run that is now told of
        task.runs.append(Run(retries=last.retries, eta=last.eta, replacing=last.replacing, invocation=last.invocation))


def _ended_somewhere(task: Task, event: Event, outcome: Outcome) -> bool:
    """An end that was found out, and nobody knows on which worker. Where a run goes on, its worker would be named."""
    last = task.runs[-1] if task.runs else None
    if last is not None and not last.waiting and last.ended is None and last.started is None and event.type == REMOVED:
        last.ended, last.outcome = event.timestamp, _REQUEUED  # it lay in the queue: its worker had given it back
    if last is not None and not last.waiting and (last.ended is None or task.state in FINISHED_STATES):
        return False
    if last is not None and not last.waiting and last.worker is None:
        _drop_concluded(task)  # it was believed lost, nobody knew where
        last = task.runs[-1] if task.runs else None
    retries = None if last is None else last.retries if last.waiting else (last.retries or 0) + 1
    ended = Run(None, None, retries, ended=event.timestamp, outcome=outcome, runtime=event.runtime, result=event.result)
    ended.exception, ended.traceback = event.exception, event.traceback
    _append(task, ended)
    task.state = _STATES[outcome]
    return True


def _append(task: Task, run: Run) -> None:
    """Puts a run behind the others; it is of the message that waits, if one does."""
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
    """Its worker says that it runs, since when, and with what: the event of its start was missed."""
    _take_back(task)
    other = _is_of_another(task, event)
    if other:  # it was replaced, and nobody told
        fact = Fact(event.timestamp, "started", event.hostname, event.pid, invocation=_invocation(task, event))
        return not any(_is_known(run, event) for run in task.runs) and _rearrange(task, fact)
    known = any(run.worker == event.hostname and run.started is not None and run.ended is None for run in task.runs)
    discovered = _discover(task, event)
    return (not known and _rearrange(task, Fact(event.timestamp, "started", event.hostname, event.pid))) or discovered


def _is_known(run: Run, event: Event) -> bool:
    same = run.invocation is not None and run.invocation.name == event.name
    return same and run.worker == event.hostname and run.started is not None and run.ended is None


def _is_of_another(task: Task, event: Event) -> bool:
    """Whether it tells of another message than the task shows: under a shadow the name differs, and nothing else."""
    if task.name is None or event.name is None or task.name == event.name:
        return False
    return None in {task.args, event.args} or (task.args, task.kwargs) != (event.args, event.kwargs)


def _held(task: Task, event: Event) -> bool:
    """A worker says that it has the task and has not begun it. When it was received nobody knows any more."""
    discovered = _discover(task, event)
    _take_back(task)
    last = task.runs[-1] if task.runs else None
    if last is not None and not last.waiting and (last.ended is None or task.state in FINISHED_STATES):
        return discovered
    _append(task, Run(event.hostname, event.pid, event.retries, eta=parse_time(event.eta)))
    task.state = _state_of(task)
    return True


def _waiting(task: Task, event: Event) -> bool:
    """Its message lies in a queue, and nobody told that it was sent."""
    return _discover(task, event)


def _discover(task: Task, event: Event) -> bool:
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
    """The message itself: it knows what events leave out, and is no event in the task's life.

    It may come before anything else is known of the task, and makes none by itself.
    """
    message = event.message
    if message is None or (task.name is not None and event.name not in {None, task.name}):
        return False
    before = (task.name, task.queue, task.exchange, task.routing_key, task.root_id, task.parent_id)
    task.queue = task.queue or message.queue
    if task.routing_key is None:
        task.exchange, task.routing_key = message.exchange, message.routing_key
    _identify(task, event, latest=False)
    known = bool(task.runs) or task.sent is not None
    return known and before != (task.name, task.queue, task.exchange, task.routing_key, task.root_id, task.parent_id)


def _due(task: Task, _: Event) -> bool:
    """The ETA has come, and the worker may start the task at any time."""
    if task.state is not _SCHEDULED:
        return False
    task.state = _RECEIVED
    return True


def _found(task: Task, event: Event) -> bool:
    """The worker still knows a task that was believed lost."""
    found = False
    for run in task.runs:
        if run.outcome is Outcome.LOST and run.worker == event.hostname and run.pid == event.pid:
            run.outcome = run.ended = run.exception = run.runtime = None
            found = True
    if found:
        task.state = _state_of(task)
    return found


def _identify(task: Task, event: Event, *, latest: bool) -> None:
    """What the message says of itself. A retry may bring other arguments: the latest run's are the task's."""
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
    """Sorts all facts of the task anew with one more, or with one more message. False if nothing comes of it."""
    before = _snapshot(task)
    _open(task)
    known = list(task.runs)
    if not known and task.sent is not None:
        known.append(Run(invocation=_own_invocation(task)))
    facts, sent = facts_of(known), sent_of(known if message is None else [*known, message])
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
    """Gives every run its own message, until they are closed again."""
    own = _own_invocation(task)
    for run in task.runs:
        if run.invocation is None:
            run.invocation = own


def _close(task: Task, runs: list[Run]) -> None:
    """The task shows the message of its latest run; only runs of another one keep theirs."""
    own = _own_invocation(task)
    task.runs = [] if len(runs) == 1 and _is_plain(runs[0]) else runs
    if not runs:
        return
    shown = task.run or runs[-1]
    mine = shown.invocation
    if mine is not None:
        # What was discovered by asking, before any event of the message.
        if own.sent is None and mine.queue is None and mine.routing_key is None and own.name in {None, mine.name}:
            mine = msgspec.structs.replace(mine, queue=own.queue, exchange=own.exchange, routing_key=own.routing_key)
        if mine.parent_id is None and (shown.retries or shown.replacing):
            mine = msgspec.structs.replace(mine, parent_id=_parent_before(runs))
        _show(task, mine)
    for run in runs:
        if run.invocation is not None:
            run.invocation = None if run is shown or run.invocation == mine else bounded(run.invocation)


def _is_plain(run: Run) -> bool:
    """A first message that was sent, and nothing more: the task has no run yet."""
    return run.waiting and not run.retries and not run.replacing


def _parent_before(runs: list[Run]) -> str | None:
    """A retried or replaced task names itself as its parent: the one that called it is that of its first message."""
    known = [run.invocation.parent_id for run in runs if run.invocation is not None]
    return next((parent for parent in reversed(known) if parent is not None), None)


def _show(task: Task, known: Invocation) -> None:
    task.name = known.name
    task.args, task.kwargs = known.args, known.kwargs
    task.queue, task.exchange, task.routing_key = known.queue, known.exchange, known.routing_key
    task.client, task.sent, task.expires = known.client, known.sent, known.expires
    task.root_id, task.parent_id = known.root_id, known.parent_id


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
    "task-due": _due,  # ours: no event tells that an ETA has come
    "task-queue-discovered": lambda _task, _event: False,  # ours: the writer names the only queue of its worker
    "task-found": _found,  # ours: reconcile.py
    RUNNING: _running,  # ours, as the next two: concluded after a gap by lost_tasks.py
    HELD_BY_WORKER: _held,
    IN_QUEUE: _waiting,
    **dict.fromkeys(_OUTCOMES, _ended),
}
