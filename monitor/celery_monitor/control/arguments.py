"""Finding the arguments and the message of a task: in the record, the broker, the result backend or a worker.

The record comes first. The broker is searched where reading changes nothing. The result backend, and the worker that
has the task, are asked if the arguments are still unknown. Nothing here changes anything.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

from celery_monitor.brokers import task_messages
from celery_monitor.brokers.results import result_backend, stored_results
from celery_monitor.brokers.task_messages import can_read_by_delivery, can_read_messages, find_task_messages
from celery_monitor.control.commands import Target, find_broker
from celery_monitor.control.inspect import consumed, workers_of
from celery_monitor.core.arguments import Arguments, ReportedArguments, from_result, from_worker, judge_message
from celery_monitor.core.captures import Trust
from celery_monitor.core.filters.scope import Limits
from celery_monitor.core.message import Unreadable, why_not_exact
from celery_monitor.core.words import counted
from celery_monitor.errors import MonitorError, NotFound
from celery_monitor.records.event import UNACKED, Message
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_queues
from celery_monitor.store.receivers import read_receiver_records
from celery_monitor.store.tasks.detail import read_message, read_messages

log = logging.getLogger(__name__)

# States in which the broker may still have the message.
IN_BROKER = frozenset({state for state in TaskState if not state.finished} | {TaskState.LOST, TaskState.REVOKED})
WITH_WORKER = frozenset({TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.STARTED, TaskState.LOST})
WAITING = frozenset({TaskState.PENDING, TaskState.RETRY})
MOST_QUEUES = 20  # searched for a task whose queue is unknown
WORKER_SECONDS = 0.5
CACHE_SECONDS = 2.0  # for a page that is rendered again
MOST_CACHED = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundArguments:
    """``name`` and ``queue`` are from the same source as the arguments, for a task whose events leave them out."""

    arguments: Arguments
    message: Message | None = None
    name: str | None = None
    queue: str | None = None
    place: str | None = None  # where its message is, if that was checked
    doubtful: bool = False  # a message was captured and is not used; a queue that only it names is not, either


def find_arguments(target: Target, task: Task) -> FoundArguments:
    """The arguments of one task, from all sources."""
    found = find_all_arguments(target, [task], IN_BROKER)[task.id]
    if task.state in WAITING and found.place is None:
        found = replace(found, place=_unchecked(target, task))
    if found.arguments.known or task.state not in WITH_WORKER:
        return found
    return _from_worker(target, task, found)


def find_all_arguments(
    target: Target, tasks: Sequence[Task], in_broker: frozenset[TaskState] = frozenset({TaskState.LOST})
) -> dict[str, FoundArguments]:
    """The arguments of many tasks, by id; workers are not asked. The broker is searched once, for the given states."""
    messages = read_messages(target.store, target.cluster, [task.id for task in tasks])
    found = {task.id: _in_record(target.settings, task, messages.get(task.id)) for task in tasks}
    for task in tasks:
        if found[task.id].doubtful and task.sent is None:  # only its worker can say where it was from
            queues = known.queues if (known := consumed(target, task)) else ()
            found[task.id] = _in_record(target.settings, task, messages[task.id], queues)
    inexact = [task for task in tasks if task.state in in_broker and found[task.id].arguments.fidelity != "exact"]
    if inexact and can_read_messages(target.broker):
        found |= _from_broker(target, inexact, found)
    unknown = [task for task in tasks if not found[task.id].arguments.known]
    backend = result_backend(target.broker, target.settings)
    if unknown and backend.is_read:
        found |= _from_results(target, unknown, found)
    elif backend.kind == "unreadable":
        why = f"the result backend {backend.address} cannot be read: {backend.reason}"
        found |= {task.id: _with_reason(found[task.id], why) for task in unknown}
    return found


def _in_record(settings: Settings, task: Task, message: Message | None, queues: Sequence[str] = ()) -> FoundArguments:
    arguments, usable = judge_message(task, message, Trust(settings.capture_key, queues))
    if usable is not None or message is None:
        return FoundArguments(arguments=arguments, message=usable)
    # Of a message without its body, the facts are shown.
    shown = message if message.body is None and arguments.warning is None else None
    return FoundArguments(arguments=arguments, message=shown, doubtful=message.worker is not None)


def _from_broker(target: Target, tasks: Sequence[Task], found: dict[str, FoundArguments]) -> dict[str, FoundArguments]:
    ids = {task.id for task in tasks}
    try:
        search = find_task_messages(target.broker, target.settings, ids, _queues_of(target, tasks))
    except MonitorError as error:
        log.warning("cannot look for messages: %s", error.message)
        why = "the broker could not be searched for the message"
        return {each: replace(_with_reason(found[each], why), place=why) for each in ids}
    result = {}
    for task in tasks:
        message = search.messages.get(task.id)
        result[task.id] = found[task.id]
        if message is not None and why_not_exact(message, task) is None:
            result[task.id] = _with_warning(_in_record(target.settings, task, message), found[task.id])
        elif message is None and not search.whole:
            why = f"the message is not among the first {task_messages.MOST_READ:,} in the broker"
            result[task.id] = _with_reason(found[task.id], why)
        result[task.id] = replace(result[task.id], place=_place(task, message, whole=search.whole))
    return result


def _with_warning(found: FoundArguments, before: FoundArguments) -> FoundArguments:
    return replace(found, arguments=replace(found.arguments, warning=before.arguments.warning))


def _place(task: Task, message: Message | None, *, whole: bool) -> str:
    """Where the search found the message, on Redis."""
    queue = task.queue or "a known queue"
    if message is None and whole:
        return f"the message was neither in {queue} nor unacknowledged just now; the next check is within minutes"
    if message is None:
        return f"the message was not among the first {task_messages.MOST_READ:,} in the broker just now"
    if message.why == UNACKED:
        return "the message is with a worker and not acknowledged yet"
    return f"the message was in {message.queue or queue} just now"


def _unchecked(target: Target, task: Task) -> str:
    """Where the message may be, with a broker that shows a message only by delivering it."""
    if not can_read_by_delivery(target.broker):
        return "the message was not searched for"
    sampled = [each for each in read_queues(target.store, target.cluster) if each.name == task.queue]
    if not sampled or sampled[0].ready is None or sampled[0].sampled_at is None:
        return "the message was not searched for: RabbitMQ shows messages only by delivering them"
    ago = max(0.0, target.now() - sampled[0].sampled_at)
    return (
        "the message was not searched for: RabbitMQ shows messages only by delivering them; "
        f"{task.queue} had {counted(sampled[0].ready, 'message')} {ago:.0f} s ago"
    )


def _queues_of(target: Target, tasks: Sequence[Task]) -> list[str]:
    named = [task.queue for task in tasks]
    if None in named:
        named += [queue.name for queue in read_queues(target.store.whole, target.cluster)]  # for its message alone
    return [name for name in dict.fromkeys(named) if name is not None][:MOST_QUEUES]


def _from_results(target: Target, tasks: Sequence[Task], found: dict[str, FoundArguments]) -> dict[str, FoundArguments]:
    try:
        stored = stored_results(target.broker, target.settings, [task.id for task in tasks])
    except MonitorError as error:
        log.warning("cannot read results: %s", error.message)
        return {task.id: _with_reason(found[task.id], "the result backend does not answer") for task in tasks}
    by_id = {task.id: task for task in tasks}
    result = {}
    for task_id, value in stored.items():
        try:
            result[task_id] = _with_reported(found[task_id], by_id[task_id], from_result(task_id, value))
        except Unreadable as error:
            result[task_id] = _with_reason(found[task_id], str(error))
    return result


def _from_worker(target: Target, task: Task, found: FoundArguments) -> FoundArguments:
    workers = [each for each in workers_of(target) if each.hostname == task.worker]
    if not workers or workers[0].status is not WorkerStatus.ONLINE:
        return found
    name = workers[0].hostname
    try:
        reply = target.remote.ask("query_task", {"ids": [task.id]}, [name], WORKER_SECONDS).get(name)
    except MonitorError as error:
        log.warning("cannot ask %s: %s", name, error.message)
        return found
    if reply is None or reply.error is not None:
        return _with_reason(found, f"{name} did not report them")
    if reply.altered:
        return _with_reason(found, f"{name} reported values that JSON cannot carry")
    answer = reply.ok.get(task.id) if isinstance(reply.ok, dict) else None
    try:
        return _with_reported(found, task, from_worker(name, answer))
    except Unreadable as error:
        return _with_reason(found, str(error))


def _with_reported(found: FoundArguments, task: Task, reported: ReportedArguments) -> FoundArguments:
    """With the reported arguments. Raises Unreadable if they are from a call that the task has since replaced."""
    replaced = {run.invocation.name for run in task.runs if run.invocation is not None} - {task.name}
    if reported.name is not None and reported.name in replaced:
        raise Unreadable(f"only the arguments of {reported.name} are available, which {task.name} has replaced")
    arguments = replace(reported.arguments, warning=found.arguments.warning)
    return replace(found, arguments=arguments, name=reported.name, queue=reported.queue)


def _with_reason(found: FoundArguments, more: str) -> FoundArguments:
    return replace(found, arguments=replace(found.arguments, reason=f"{found.arguments.reason}; {more}"))


_HIDDEN = FoundArguments(
    arguments=Arguments(
        args=None,
        kwargs=None,
        args_value=None,
        kwargs_value=None,
        fidelity="unknown",
        source=None,
        reason="arguments are hidden from viewers on this dashboard",
    )
)
_Key = tuple[str, str, str, TaskState, int, Limits]
_cache: dict[_Key, tuple[float, FoundArguments]] = {}
_cache_lock = Lock()


def look_up(store: Store, settings: Settings, task: Task) -> FoundArguments:
    """``find_arguments`` for pages, with a cache for one that is rendered again; hidden for who may not see them."""
    if not store.limits.arguments:
        return _HIDDEN
    stored = _in_record(settings, task, read_message(store, task))
    if stored.arguments.fidelity == "exact":
        return stored
    try:
        broker = find_broker(settings, task.cluster)
    except NotFound:  # its broker is not monitored any more
        return stored
    key = (settings.database, broker.url, task.id, task.state, len(task.runs), store.limits)
    now = time.monotonic()
    with _cache_lock:
        at, found = _cache.get(key, (float("-inf"), stored))
    if now - at < CACHE_SECONDS:
        return found
    target = Target(store, settings, broker)
    unreachable = any(each.cluster == task.cluster and not each.connected for each in read_receiver_records(store))
    # A page must not wait for a broker that the receiver cannot reach either.
    found = find_all_arguments(target, [task], frozenset())[task.id] if unreachable else find_arguments(target, task)
    with _cache_lock:
        if len(_cache) >= MOST_CACHED:
            _cache.clear()
        _cache[key] = (time.monotonic(), found)
    return found
