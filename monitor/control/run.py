"""Running a task that workers have registered, without its code."""

import math
from typing import Literal
from uuid import UUID
from uuid import uuid4
from uuid import uuid5

from monitor.brokers.publish import Call
from monitor.brokers.publish import Route
from monitor.brokers.publish import publisher
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.control.inspect import names_by_worker
from monitor.control.queue_commands import RunTask
from monitor.control.retry import MAX_COUNTDOWN
from monitor.control.target import Target
from monitor.control.worker_commands import check_name
from monitor.errors import Conflict
from monitor.errors import InvalidInput
from monitor.errors import NotFound
from monitor.errors import TakenUnknown
from monitor.fidelity import parse_json_arguments
from monitor.records import WorkerStatus
from monitor.store import queries

_REQUESTS = UUID("0f0ee3f5-14b4-4a4e-93a7-0d1d7f1f1c55")  # of ids made from a request's


def run_task(target: Target, command: RunTask) -> Performed:
    """Sends it. Raises InvalidInput or Conflict with the reason; nothing was sent then."""
    args, kwargs = parse_json_arguments(command.args, command.kwargs)
    _check(target, command)
    workers = workers_that_have(target, command.name)
    new_id = str(uuid5(_REQUESTS, command.request_id) if command.request_id else uuid4())
    if _is_known(target, new_id):
        return _performed("done", f"This was asked for before: it is task {new_id}.", new_id, command)
    call = Call(
        id=new_id,
        name=command.name,
        args=args,
        kwargs=kwargs,
        route=Route("", command.queue),
        countdown=command.countdown,
    )
    with publisher(target.broker, target.settings) as sender:
        try:
            sender.send(call)
        except TakenUnknown as error:
            return _performed("unconfirmed", error.message, new_id, command)
    message = f"Sent {command.name} as {new_id} to queue {command.queue}. {_who_takes(target, command, workers)}"
    return _performed("done", message.strip(), new_id, command)


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


def _check(target: Target, command: RunTask) -> None:
    check_name("name", command.name)
    check_name("queue", command.queue)
    countdown = command.countdown
    if countdown is not None and not (math.isfinite(countdown) and 0 <= countdown <= MAX_COUNTDOWN):
        raise InvalidInput(f"countdown {countdown} is not between 0 and {MAX_COUNTDOWN:.0f} seconds", field="countdown")
    known = target.queue_names()
    if command.queue not in known:
        raise Conflict(f"No queue {command.queue!r} is known; known are {', '.join(known) or 'none'}.", queues=known)


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
