"""Running a task that workers have registered, without its code."""

from typing import Literal
from uuid import UUID
from uuid import uuid4
from uuid import uuid5

from monitor.access import Role
from monitor.brokers.publish import Call
from monitor.brokers.publish import Route
from monitor.brokers.publish import publisher
from monitor.control.commands import ClusterCommand
from monitor.control.commands import Name
from monitor.control.commands import Performed
from monitor.control.commands import RequestId
from monitor.control.commands import Seconds
from monitor.control.commands import TaskResult
from monitor.control.commands import TypedName
from monitor.control.inspect import names_by_worker
from monitor.control.target import Target
from monitor.errors import Conflict
from monitor.errors import NotFound
from monitor.errors import TakenUnknown
from monitor.fidelity import parse_json_arguments
from monitor.records import WorkerStatus
from monitor.store import queries

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
        call = Call(
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
        for worker in queries.workers(target.store, target.cluster)
        if worker.status is not WorkerStatus.OFFLINE and command.queue in (worker.queues or ())
    }
    if not taking:
        return "No worker is known to take from that queue: it waits there."
    if lacking := sorted(taking - set(having)):
        return f"{', '.join(lacking)} takes from that queue and did not say that it has the task: it may refuse it."
    return ""


def _is_known(target: Target, task_id: str) -> bool:
    try:
        queries.task(target.store, task_id, target.cluster)
    except NotFound:
        return False
    return True


def _performed(outcome: Literal["done", "unconfirmed"], message: str, new_id: str, command: RunTask) -> Performed:
    result = TaskResult(id=new_id, outcome=outcome, message=message, new_id=new_id)
    details = {"new_id": new_id, "queue": command.queue, "countdown": command.countdown}
    return Performed(outcome=outcome, message=message, results=(result,), details=details)
