"""Sending a task by name: one that workers have registered, or the task of a schedule entry."""

from typing import Literal
from uuid import UUID, uuid4, uuid5

import msgspec

from celery_monitor.brokers.connection import application_of, applies_to
from celery_monitor.brokers.publish import Route, TaskCall, publisher
from celery_monitor.brokers.results import mark_aborted
from celery_monitor.control.commands import (
    ClusterCommand,
    Name,
    Performed,
    RequestId,
    Seconds,
    Target,
    TaskResult,
    TypedName,
    done,
)
from celery_monitor.control.inspect import find_route, living_workers, names_by_worker, queues_of, workers_of
from celery_monitor.core.arguments import parse_json_arguments
from celery_monitor.core.filters.scope import Scope
from celery_monitor.errors import ArgumentsUnknown, ConfirmationRequired, Conflict, Forbidden, NotFound, TakenUnknown
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.records.user import Role
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.schedule import read_entry_runs, schedule_entry
from celery_monitor.store.tasks.detail import read_task

_REQUESTS = UUID("0f0ee3f5-14b4-4a4e-93a7-0d1d7f1f1c55")  # namespace of task ids from request ids


class RunTask(ClusterCommand, frozen=True, kw_only=True):
    """Run a task that a worker has registered.

    ``args`` and ``kwargs`` are JSON texts; ``countdown`` is in seconds. The same ``request_id`` gives the same task
    id, so that a repeated request is recognised.
    """

    action = "task.run"
    subject = "{0.name}"
    role = Role.OPERATOR
    in_part = True
    route = "run"
    note = "only registered tasks; sent by name, so your app's routes and task options don't apply"
    name: TypedName
    queue: Name
    args: str = "[]"
    kwargs: str = "{}"
    countdown: Seconds | None = None
    request_id: RequestId | None = None

    def check_scope(self, scope: Scope) -> None:
        super().check_scope(scope)
        if not scope.has_task(self.cluster, self.name, self.queue):
            raise Forbidden(f"{self.name} on the queue {self.queue} is outside of {scope}, the scope of this user")

    def run(self, target: Target) -> Performed:
        """Raises InvalidInput or Conflict with the reason; then nothing was sent."""
        args, kwargs = parse_json_arguments(self.args, self.kwargs)
        names = queues_of(target)
        if self.queue not in names:
            raise Conflict(f"Unknown queue {self.queue!r}. Known queues: {', '.join(names) or 'none'}.", queues=names)
        workers = workers_with_task(target, self.name)
        new_id = str(uuid5(_REQUESTS, self.request_id) if self.request_id else uuid4())
        if _is_recorded(target, new_id):
            return _performed("done", f"Already sent by this request as task {new_id}.", new_id, self)
        call = TaskCall(
            id=new_id, name=self.name, args=args, kwargs=kwargs, route=Route("", self.queue), countdown=self.countdown
        )
        with publisher(target.broker, target.settings) as sender:
            try:
                sender.send(call)
            except TakenUnknown as error:
                return _performed("unconfirmed", error.message, new_id, self)
        message = f"Sent {self.name} as {new_id} to queue {self.queue}. {_consumer_warning(target, self, workers)}"
        return _performed("done", message.strip(), new_id, self)


def workers_with_task(target: Target, name: str) -> list[str]:
    """The workers that have registered the task. Raises Conflict if none has."""
    living = living_workers(target)
    names = names_by_worker(target.settings, target.cluster, living)
    if workers := [worker for worker, tasks in names.items() if name in tasks]:
        return workers
    if not names:
        raise Conflict("No worker answered, so it is unknown which one has this task. Try again when one answers.")
    silent = sorted(set(living) - set(names))
    others = f" {', '.join(silent)} did not answer and may have it." if silent else ""
    raise Conflict(f"No worker that answered has a task {name!r}.{others}", workers=sorted(names))


def _consumer_warning(target: Target, command: RunTask, workers: list[str]) -> str:
    """A warning if no worker consumes the queue, or one does that has not registered the task."""
    consumers = {
        worker.hostname
        for worker in workers_of(target)
        if worker.status is not WorkerStatus.OFFLINE and command.queue in (worker.queues or ())
    }
    if not consumers:
        return "No known worker consumes that queue: the task waits there."
    if others := sorted(consumers - set(workers)):
        return f"{', '.join(others)} also consumes that queue, but has not reported this task: it may refuse it."
    return ""


def _is_recorded(target: Target, task_id: str) -> bool:
    try:  # of the whole record: its queue may be unknown, and then it is in no scope of queues
        read_task(target.store.whole, task_id, target.cluster)
    except NotFound:
        return False
    return True


def _performed(outcome: Literal["done", "unconfirmed"], message: str, new_id: str, command: RunTask) -> Performed:
    result = TaskResult(id=new_id, outcome=outcome, message=message, new_id=new_id)
    details = {"new_id": new_id, "queue": command.queue, "countdown": command.countdown}
    return Performed.of_one(result, details)


class SendTask(ClusterCommand, frozen=True, kw_only=True):
    """Send a task by name, whether or not a worker has registered it.

    ``options`` are those of Celery's ``apply_async``.
    """

    action = RunTask.action
    subject = "{0.name}"
    role = RunTask.role
    name: TypedName
    id: str
    args: list[object]
    kwargs: dict[str, object]
    options: dict[str, object]

    def run(self, target: Target) -> Performed:
        """Raises InvalidInput for options that Celery refuses, NotTaken and TakenUnknown."""
        application = application_of(target.settings)
        is_ours = application is not None and applies_to(application, target.broker, target.settings)
        own = application.tasks.get(self.name, {}) if application is not None and is_ours else {}
        with publisher(target.broker, target.settings) as sender:
            sender.send_with_options(self.id, self.name, self.args, self.kwargs, {**own, **self.options})
        result = TaskResult(id=self.id, outcome="done", message=f"Sent {self.name} as {self.id}.", new_id=self.id)
        return Performed.of_one(result, {"new_id": self.id, "options": sorted(self.options)})


class AbortTask(ClusterCommand, frozen=True, kw_only=True):
    """Ask a running task to end itself, by the state ABORTED in the result backend.

    Only a task that is an ``AbortableTask`` and checks ``is_aborted()`` ends.
    """

    action = "task.abort"
    subject = "{0.id}"
    role = Role.OPERATOR
    note = "only tasks of Celery's `AbortableTask` that check `is_aborted()`; result backends in Redis"
    id: Name

    def run(self, target: Target) -> Performed:
        """Raises Unsupported for a result backend that is not written, and BrokerUnavailable."""
        mark_aborted(target.broker, target.settings, self.id)
        return Performed.of_one(done(self.id, f"Marked {self.id} as aborted in the result backend."), {})


_args = msgspec.json.Decoder(list[object])
_kwargs = msgspec.json.Decoder(dict[str, object])


class RunScheduled(ClusterCommand, frozen=True, kw_only=True):
    """Send the task of a schedule entry now.

    ``confirm``: the arguments were checked.
    """

    action = "schedule.run"
    subject = "{0.entry}"
    role = Role.OPERATOR
    in_part = True
    route = "schedule/run"
    note = "sent once; the next run by beat does not change"
    entry: str
    confirm: bool = False

    def run(self, target: Target) -> Performed:
        """Raises NotFound, ArgumentsUnknown, Conflict for an unknown queue, and ConfirmationRequired."""
        entry = schedule_entry(target.store, self.entry, target.cluster)
        if entry.args_json is None or entry.kwargs_json is None:
            raise ArgumentsUnknown(
                f"Can't send {entry.name!r}: its arguments contain something that is not JSON, or a masked secret.",
                args=entry.args,
                kwargs=entry.kwargs,
            )
        route = _route(target, entry)
        if not self.confirm:
            raise ConfirmationRequired(
                f"{entry.task} goes to {route} with args {entry.args} and kwargs {entry.kwargs}. Confirm to send it.",
                args=entry.args,
                kwargs=entry.kwargs,
                queue=route.queue,
            )
        call = TaskCall(
            id=str(uuid4()),
            name=entry.task,
            args=_args.decode(entry.args_json),
            kwargs=_kwargs.decode(entry.kwargs_json),
            route=route,
        )
        with publisher(target.broker, target.settings) as sender:
            sender.send(call)
        message = f"Sent {entry.task} as {call.id} to {route}."
        result = TaskResult(id=call.id, outcome="done", message=message, new_id=call.id)
        return Performed.of_one(result, {"new_id": call.id, "to": str(route)})


def _route(target: Target, entry: ScheduleEntry) -> Route:
    """The queue of the entry, else the route of its last run."""
    if entry.queue is not None:
        return Route("", entry.queue)
    for run in read_entry_runs(target.store, entry, 0.0, limit=5):
        return find_route(target, read_task(target.store, run.id, target.cluster), None)
    raise Conflict(f"{entry.name!r} names no queue, and no run of it is recorded that shows one.")
