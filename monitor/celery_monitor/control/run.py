"""Sending a task by name: one that workers have registered, or an entry of beat's schedule now."""

from typing import Literal
from uuid import UUID, uuid4, uuid5

import msgspec

from celery_monitor.brokers.publish import Route, TaskCall, publisher
from celery_monitor.control.commands import ClusterCommand, Name, Performed, RequestId, Seconds, TaskResult, TypedName
from celery_monitor.control.inspect import names_by_worker
from celery_monitor.control.retry import find_route
from celery_monitor.control.target import Target
from celery_monitor.core.arguments import parse_json_arguments
from celery_monitor.errors import ArgumentsUnknown, ConfirmationRequired, Conflict, NotFound, TakenUnknown
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.records.user import Role
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.schedule import read_entry_runs, schedule_entry
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.workers import read_workers

_REQUESTS = UUID("0f0ee3f5-14b4-4a4e-93a7-0d1d7f1f1c55")  # of ids made from a request's


class RunTask(ClusterCommand, frozen=True, kw_only=True):
    """Send a task that a worker has registered.

    ``args`` and ``kwargs`` are JSON texts; ``countdown`` is in seconds. The same ``request_id`` gives the same task
    id, so that a repeated form is recognised.
    """

    action = "task.run"
    subject = "{0.name}"
    role = Role.OPERATOR
    route = "run"
    note = "only tasks that a worker says it has; routes of your application do not apply"
    name: TypedName
    queue: Name
    args: str = "[]"
    kwargs: str = "{}"
    countdown: Seconds | None = None
    request_id: RequestId | None = None

    def run(self, target: Target) -> Performed:
        """Raises InvalidInput or Conflict with the reason; nothing was sent then."""
        args, kwargs = parse_json_arguments(self.args, self.kwargs)
        known = target.queue_names()
        if self.queue not in known:
            names = ", ".join(known) or "none"
            raise Conflict(f"No queue {self.queue!r} is known; known are {names}.", queues=known)
        workers = workers_that_have(target, self.name)
        new_id = str(uuid5(_REQUESTS, self.request_id) if self.request_id else uuid4())
        if _is_known(target, new_id):
            return _performed("done", f"This was asked for before: it is task {new_id}.", new_id, self)
        call = TaskCall(
            id=new_id, name=self.name, args=args, kwargs=kwargs, route=Route("", self.queue), countdown=self.countdown
        )
        with publisher(target.broker, target.settings) as sender:
            try:
                sender.send(call)
            except TakenUnknown as error:
                return _performed("unconfirmed", error.message, new_id, self)
        message = f"Sent {self.name} as {new_id} to queue {self.queue}. {_who_takes(target, self, workers)}"
        return _performed("done", message.strip(), new_id, self)


def workers_that_have(target: Target, name: str) -> list[str]:
    """The workers that say they have the task. Raises Conflict where nobody does."""
    living = target.living_workers()
    names = names_by_worker(target.settings, target.cluster, living)
    having = [worker for worker, tasks in names.items() if name in tasks]
    if having:
        return having
    if not names:
        raise Conflict("No worker answered, so nobody is known to have this task. Try again when one does.")
    silent = sorted(set(living) - set(names))
    unasked = f" {', '.join(silent)} did not answer, and may have it." if silent else ""
    raise Conflict(f"No worker that answered has a task {name!r}.{unasked}", workers=sorted(names))


def _who_takes(target: Target, command: RunTask, having: list[str]) -> str:
    """A warning where no worker takes from the queue, or one does that lacks the task."""
    taking = {
        worker.hostname
        for worker in read_workers(target.store, target.cluster)
        if worker.status is not WorkerStatus.OFFLINE and command.queue in (worker.queues or ())
    }
    if not taking:
        return "No worker is known to take from that queue: it waits there."
    if lacking := sorted(taking - set(having)):
        return f"{', '.join(lacking)} takes from that queue and did not say that it has the task: it may refuse it."
    return ""


def _is_known(target: Target, task_id: str) -> bool:
    try:
        read_task(target.store, task_id, target.cluster)
    except NotFound:
        return False
    return True


def _performed(outcome: Literal["done", "unconfirmed"], message: str, new_id: str, command: RunTask) -> Performed:
    result = TaskResult(id=new_id, outcome=outcome, message=message, new_id=new_id)
    details = {"new_id": new_id, "queue": command.queue, "countdown": command.countdown}
    return Performed(outcome=outcome, message=message, results=(result,), details=details)


_args = msgspec.json.Decoder(list[object])
_kwargs = msgspec.json.Decoder(dict[str, object])


class RunScheduled(ClusterCommand, frozen=True, kw_only=True):
    """Send what an entry of the schedule sends, now.

    ``confirm``: its arguments were seen.
    """

    action = "schedule.run"
    subject = "{0.entry}"
    role = Role.OPERATOR
    route = "schedule/run"
    note = "the entry's task is sent once, now; beat's own next run stays as it was"
    entry: str
    confirm: bool = False

    def run(self, target: Target) -> Performed:
        """Raises NotFound, ArgumentsUnknown, Conflict for an unknown queue, and asks back without ``confirm``."""
        entry = schedule_entry(target.store, self.entry, target.cluster)
        if entry.args_json is None or entry.kwargs_json is None:
            raise ArgumentsUnknown(
                f"The arguments of {entry.name!r} are not known well enough to send it: they hold something "
                "that is not JSON, or a secret that is masked.",
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
        return Performed(
            outcome="done", message=message, results=(result,), details={"new_id": call.id, "to": str(route)}
        )


def _route(target: Target, entry: ScheduleEntry) -> Route:
    """The queue that the entry names, else the one that its last run had."""
    if entry.queue is not None:
        return Route("", entry.queue)
    for run in read_entry_runs(target.store, entry, 0.0, limit=5):
        return find_route(target, read_task(target.store, run.id, target.cluster), None)
    raise Conflict(f"{entry.name!r} names no queue, and no run of it is in the record that would tell where it goes.")
