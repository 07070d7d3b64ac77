"""What is known of tasks, from wherever it is known: the record, the broker, the result backend, a worker.

The record is asked first. What still lies in the broker is looked for where looking changes nothing; a result backend
and the worker that has the task are asked where the arguments are not known otherwise. Nothing here changes anything.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

from celery_monitor.brokers import task_messages
from celery_monitor.brokers.results import result_backend, stored_results
from celery_monitor.brokers.task_messages import can_read_by_delivery, can_read_messages, find_task_messages
from celery_monitor.control.target import Target, find_broker
from celery_monitor.core.arguments import Arguments, ReportedArguments, from_result, from_worker, judge
from celery_monitor.core.message import Unreadable, why_not_exact
from celery_monitor.errors import MonitorError, NotFound
from celery_monitor.records.event import UNACKED, Message
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_queues
from celery_monitor.store.receivers import read_receiver_records
from celery_monitor.store.tasks.messages import read_message, read_messages
from celery_monitor.store.workers import read_workers

log = logging.getLogger(__name__)

# States in which the broker may still have the message.
IN_BROKER = frozenset({state for state in TaskState if not state.finished} | {TaskState.LOST, TaskState.REVOKED})
WITH_WORKER = frozenset({TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.STARTED, TaskState.LOST})
WAITING = frozenset({TaskState.PENDING, TaskState.RETRY})
MOST_QUEUES = 20  # searched for a task whose queue is not known
WORKER_SECONDS = 0.5
REMEMBERED_SECONDS = 2.0  # for which a page that is rendered again does not ask again
MOST_REMEMBERED = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundArguments:
    """``name`` and ``queue`` are told by whoever told the arguments, and stand in for what events leave out."""

    arguments: Arguments
    message: Message | None = None
    name: str | None = None
    queue: str | None = None
    place: str | None = None  # where its message is, as far as that was checked


def find_arguments(target: Target, task: Task) -> FoundArguments:
    """All that can be known of one task."""
    found = find_all_arguments(target, [task], IN_BROKER)[task.id]
    if task.state in WAITING and found.place is None:
        found = replace(found, place=_unchecked(target, task))
    if found.arguments.known or task.state not in WITH_WORKER:
        return found
    return _ask_worker(target, task, found)


def find_all_arguments(
    target: Target, tasks: Sequence[Task], in_broker: frozenset[TaskState] = frozenset({TaskState.LOST})
) -> dict[str, FoundArguments]:
    """The same of many, by their ids; workers are not asked. The broker is searched once, for the states given."""
    messages = read_messages(target.store, target.cluster, [task.id for task in tasks])
    found = {task.id: _in_record(task, messages.get(task.id)) for task in tasks}
    looked_for = [task for task in tasks if task.state in in_broker and found[task.id].arguments.fidelity != "exact"]
    if looked_for and can_read_messages(target.broker):
        found |= _look_in_broker(target, looked_for, found)
    unknown = [task for task in tasks if not found[task.id].arguments.known]
    backend = result_backend(target.broker, target.settings)
    if unknown and backend.is_read:
        found |= _look_in_results(target, unknown, found)
    elif backend.kind == "unreadable":
        why = f"the result backend {backend.address} is not read: {backend.reason}"
        found |= {task.id: _adding(found[task.id], why) for task in unknown}
    return found


def _in_record(task: Task, message: Message | None) -> FoundArguments:
    return FoundArguments(arguments=judge(task, message), message=message)


def _look_in_broker(
    target: Target, tasks: Sequence[Task], found: dict[str, FoundArguments]
) -> dict[str, FoundArguments]:
    ids = {task.id for task in tasks}
    try:
        looked = find_task_messages(target.broker, target.settings, ids, _queues_of(target, tasks))
    except MonitorError as error:
        log.warning("cannot look for messages: %s", error.message)
        told = "the broker could not be asked for its message"
        return {each: replace(_adding(found[each], told), place=told) for each in ids}
    result = {}
    for task in tasks:
        message = looked.messages.get(task.id)
        result[task.id] = found[task.id]
        if message is not None and why_not_exact(message, task) is None:
            result[task.id] = _in_record(task, message)
        elif message is None and not looked.whole:
            where = f"its message is not among the first {task_messages.MOST_READ:,} that were looked at in the broker"
            result[task.id] = _adding(found[task.id], where)
        result[task.id] = replace(result[task.id], place=_place(task, message, whole=looked.whole))
    return result


def _place(task: Task, message: Message | None, *, whole: bool) -> str:
    """Where the message was found just now, on Redis."""
    queue = task.queue or "a known queue"
    if message is None and whole:
        return f"its message was neither in {queue} nor unacknowledged just now: it is looked for again within minutes"
    if message is None:
        return f"its message was not among the first {task_messages.MOST_READ:,} in the broker just now"
    if message.why == UNACKED:
        return "its message was delivered to a worker and not acknowledged just now"
    return f"its message was in {message.queue or queue} just now"


def _unchecked(target: Target, task: Task) -> str:
    """Where no message can be looked at without delivering it."""
    if not can_read_by_delivery(target.broker):
        return "its message was not looked for"
    sampled = [each for each in read_queues(target.store, target.cluster) if each.name == task.queue]
    if not sampled or sampled[0].ready is None or sampled[0].sampled_at is None:
        return "its message was not looked for: RabbitMQ shows none without delivering it"
    ready, ago = sampled[0].ready, max(0.0, target.now() - sampled[0].sampled_at)
    messages = "1 message" if ready == 1 else f"{ready:,} messages"
    return (
        f"its message was not looked for, since RabbitMQ shows none without delivering it; {task.queue} had {messages} "
        f"{ago:.0f} s ago"
    )


def _queues_of(target: Target, tasks: Sequence[Task]) -> list[str]:
    named = [task.queue for task in tasks]
    if None in named:
        named += [queue.name for queue in read_queues(target.store, target.cluster)]
    return [name for name in dict.fromkeys(named) if name is not None][:MOST_QUEUES]


def _look_in_results(
    target: Target, tasks: Sequence[Task], found: dict[str, FoundArguments]
) -> dict[str, FoundArguments]:
    try:
        stored = stored_results(target.broker, target.settings, [task.id for task in tasks])
    except MonitorError as error:
        log.warning("cannot look for results: %s", error.message)
        return {task.id: _adding(found[task.id], "the result backend does not answer") for task in tasks}
    by_id = {task.id: task for task in tasks}
    result = {}
    for task_id, value in stored.items():
        try:
            result[task_id] = _told(found[task_id], _of_latest(by_id[task_id], from_result(task_id, value)))
        except Unreadable as error:
            result[task_id] = _adding(found[task_id], str(error))
    return result


def _ask_worker(target: Target, task: Task, found: FoundArguments) -> FoundArguments:
    workers = [each for each in read_workers(target.store, target.cluster) if each.hostname == task.worker]
    if not workers or workers[0].status is not WorkerStatus.ONLINE:
        return found
    name = workers[0].hostname
    try:
        reply = target.remote.ask("query_task", {"ids": [task.id]}, [name], WORKER_SECONDS).get(name)
    except MonitorError as error:
        log.warning("cannot ask %s: %s", name, error.message)
        return found
    if reply is None or reply.error is not None:
        return _adding(found, f"{name} does not tell them")
    said = reply.ok.get(task.id) if isinstance(reply.ok, dict) else None
    try:
        return _told(found, _of_latest(task, from_worker(name, said)))
    except Unreadable as error:
        return _adding(found, str(error))


def _of_latest(task: Task, told: ReportedArguments) -> ReportedArguments:
    """The reported arguments, unless they are of a call that the task has since replaced. Raises Unreadable."""
    earlier = {run.invocation.name for run in task.runs if run.invocation is not None} - {task.name}
    if told.name is not None and told.name in earlier:
        raise Unreadable(f"only the arguments of {told.name} are kept, which {task.name} has replaced")
    return told


def _told(found: FoundArguments, told: ReportedArguments) -> FoundArguments:
    return replace(found, arguments=told.arguments, name=told.name, queue=told.queue)


def _adding(found: FoundArguments, more: str) -> FoundArguments:
    return replace(found, arguments=replace(found.arguments, reason=f"{found.arguments.reason}; {more}"))


_Key = tuple[str, str, str, TaskState, int]
_remembered: dict[_Key, tuple[float, FoundArguments]] = {}
_remembering = Lock()


def look_up(store: Store, settings: Settings, task: Task) -> FoundArguments:
    """The same for who only reads: a page that is rendered again at once is told what was found just before."""
    stored = _in_record(task, read_message(store, task))
    if stored.arguments.fidelity == "exact":
        return stored
    try:
        broker = find_broker(settings, task.cluster)
    except NotFound:  # its broker is not watched any more
        return stored
    key = (settings.database, broker.url, task.id, task.state, len(task.runs))
    now = time.monotonic()
    with _remembering:
        at, found = _remembered.get(key, (float("-inf"), stored))
    if now - at < REMEMBERED_SECONDS:
        return found
    target = Target(store, settings, broker)
    away = any(each.cluster == task.cluster and not each.connected for each in read_receiver_records(store))
    # A page must not wait for a broker that the receiver cannot reach either.
    found = find_all_arguments(target, [task], frozenset())[task.id] if away else find_arguments(target, task)
    with _remembering:
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        _remembered[key] = (time.monotonic(), found)
    return found
