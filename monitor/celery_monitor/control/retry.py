"""Sending tasks again: under a new id, to the queue they had, and only with arguments that are certain enough.

A captured message is sent again as it was: the same bytes, headers, route and callbacks. Without one, a message is
made from the name and the known arguments.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4, uuid5

from celery.utils.saferepr import saferepr
from kombu.utils.json import loads

from celery_monitor.brokers.publish import Copy, Publisher, Route, TaskCall, publisher
from celery_monitor.control.allowed import retried_as_words, warnings_of, why_not_retry
from celery_monitor.control.arguments import WAITING, FoundArguments, find_all_arguments, find_arguments
from celery_monitor.control.commands import ClusterCommand, Performed, RequestId, Seconds, TaskResult, distinct, summary
from celery_monitor.control.inspect import Consumed, consumed
from celery_monitor.control.target import Target
from celery_monitor.core.arguments import Arguments, edit, is_whole, without_secrets
from celery_monitor.core.message import JSON, Unreadable, facts, json_text
from celery_monitor.core.sanitize import Redactor
from celery_monitor.errors import (
    ArgumentsUnknown,
    ConfirmationRequired,
    Conflict,
    MonitorError,
    NotFound,
    NotTaken,
    TakenUnknown,
)
from celery_monitor.records.event import Message
from celery_monitor.records.task import Link, Task
from celery_monitor.records.user import Role
from celery_monitor.store.tasks.detail import read_lineage, read_task
from celery_monitor.store.tasks.rows import link_retry, unlink_retry

# Native delayed delivery puts these in front of a routing key: kombu/transport/native_delayed_delivery.py.
DELAY = re.compile(r"^(?:[01]\.){28}")
DELAYED_EXCHANGE_PREFIX = "celery_delayed_"
# What brokers write into headers of a message that was delivered before.
DELIVERY_HEADERS = ("redelivered", "x-delivery-count", "x-acquired-count", "x-opt-")
DEAD_LETTER = re.compile(r"^x-(?:first-|last-)?death")
# Kept of the properties; the others are of one delivery, or (user_id) only true of who sent it first.
PROPERTIES = ("priority", "delivery_mode", "reply_to", "message_id", "timestamp", "type", "app_id")
REPR_LENGTH = 1024  # as Celery's own

ArgumentsToSend = tuple[list[object], dict[str, object]]


def route_of(message: Message) -> Route:
    """Where the message came from; out of native delayed delivery, the queue that it was for."""
    exchange, key = message.exchange or "", message.routing_key or ""
    undelayed = DELAY.sub("", key)
    if undelayed != key or DELAYED_EXCHANGE_PREFIX in exchange:
        return Route("", message.queue or undelayed)
    return Route(exchange, key) if key else Route("", message.queue or "")


def copy_of(
    message: Message,
    task_id: str,
    new_id: str,
    route: Route,
    countdown: float | None = None,
    edited: ArgumentsToSend | None = None,
) -> Copy:
    """The message with a new id, no retries yet, no expiry, and an ETA only by ``countdown``, in seconds.

    ``edited`` replaces the arguments of a JSON body; links stay. Raises Conflict where the body cannot be opened.
    """
    headers = _headers(message, task_id, new_id, countdown)
    body = message.body or b""
    if edited is not None:
        body = _edited_body(message, edited)
        headers.pop("compression", None)
        headers |= {name: saferepr(value, REPR_LENGTH) for name, value in zip(REPRS, edited, strict=True)}
    given: dict[str, Any] = loads(message.properties)
    properties = {name: given[name] for name in PROPERTIES if given.get(name) is not None}
    if str(given.get("expiration", "")).isdecimal():
        properties["expiration"] = int(given["expiration"]) / 1000  # milliseconds on the wire, seconds for kombu
    return Copy(
        id=new_id,
        route=route,
        queue=message.queue,
        body=body,
        content_type=message.content_type or JSON,
        content_encoding=message.content_encoding,
        headers=headers,
        properties={**properties, "correlation_id": new_id},
    )


REPRS = ("argsrepr", "kwargsrepr")


def _headers(message: Message, task_id: str, new_id: str, countdown: float | None) -> dict[str, Any]:
    given: dict[str, Any] = loads(message.headers)
    headers = {
        name: value
        for name, value in given.items()
        if not name.startswith(DELIVERY_HEADERS) and not DEAD_LETTER.match(name)
    }
    eta = None if countdown is None else (datetime.now(UTC) + timedelta(seconds=countdown)).isoformat()
    headers |= {"id": new_id, "retries": 0, "eta": eta, "expires": None}
    # A task that Celery retried names itself as its parent.
    headers |= {name: new_id for name in ("root_id", "parent_id") if headers.get(name) == task_id}
    return headers


def _edited_body(message: Message, edited: ArgumentsToSend) -> bytes:
    try:
        document = json.loads(json_text(message))
    except (Unreadable, ValueError) as error:
        raise Conflict(f"Its arguments cannot be replaced: {error}.") from None
    links = document[2] if isinstance(document, list) and len(document) > 2 else {}
    return json.dumps([*edited, links]).encode()


SAMPLES = 5
SAME_ID_SECONDS = 5.0  # within which a second press of the button is a double click
DELAYED_EXCHANGE = "celery_delayed_"  # native delayed delivery stands there instead of the task's own exchange
_REQUESTS = UUID("5b0c7d52-6f5f-4a8e-9d4b-0c5a3b9d3f61")  # of ids made from a request's


@dataclass(frozen=True, slots=True)
class PreparedRetry:
    """A task that can be sent again."""

    task: Task
    name: str
    arguments: Arguments
    route: Route
    message: Message | None = None  # what it is made of; None: of its name and arguments
    same_id: bool = False
    at: float | None = None  # when it was prepared

    @property
    def warning(self) -> str | None:
        return " ".join(warnings_of(self.task, self.message, same_id=self.same_id, now=self.at)) or None

    @property
    def needs_confirmation(self) -> bool:
        return self.arguments.fidelity == "probable" or self.warning is not None


class RetryTask(ClusterCommand, frozen=True, kw_only=True):
    """Send a task again under a new id.

    ``args`` and ``kwargs`` are JSON texts that replace what is known; ``countdown`` is in seconds. ``confirm`` says
    that the arguments were seen. The same ``request_id`` sends at most once: a form carries one, so that a double
    click is one retry. ``same_id`` sends it under the id that it has.
    """

    action = "task.retry"
    subject = "{0.id}"
    role = Role.OPERATOR
    route = "tasks/{id:name}/retry"
    id: str
    args: str | None = None
    kwargs: str | None = None
    queue: str | None = None
    countdown: Seconds | None = None
    same_id: bool = False
    confirm: bool = False
    request_id: RequestId | None = None

    def run(self, target: Target) -> Performed:
        """Raises Conflict and its kin with the reason; nothing was sent then."""
        task = read_task(target.store, self.id, target.cluster)
        if task.state not in WAITING:
            refuse(task)
        found = find_arguments(target, task)
        refuse(task, found.place)
        prepared = prepare(target, task, found, self.args, self.kwargs, self.queue)
        prepared = replace(prepared, same_id=self.same_id, at=target.now())
        if prepared.needs_confirmation and not self.confirm:
            raise _confirmation(prepared, Redactor(target.settings.redact))
        with publisher(target.broker, target.settings) as sender:
            result = _send(target, sender, prepared, self.request_id, self.countdown)
        if result.outcome == "failed":
            raise NotTaken(result.message)
        return Performed(
            outcome="unconfirmed" if result.outcome == "unconfirmed" else "done",
            message=result.message,
            results=(result,),
            details={
                "new_id": result.new_id,
                "to": str(prepared.route),
                "fidelity": result.fidelity,
                "countdown": self.countdown,
                "same_id": self.same_id,
            },
        )


class RetryTasks(ClusterCommand, frozen=True, kw_only=True):
    """Send several tasks again; each has an outcome of its own, and what cannot be sent is skipped with a reason.

    Tasks that were retried before are skipped unless ``include_retried``.
    """

    action = RetryTask.action
    role = RetryTask.role
    ids: tuple[str, ...]
    include_retried: bool = False
    confirm: bool = False
    request_id: RequestId | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.ids

    def run(self, target: Target) -> Performed:
        """What can be sent needs one confirmation."""
        prepared, others, retried = _prepare_all(target, distinct(self.ids), self)
        skipped = [*others, *retried]
        if not self.confirm and (retried or any(each.needs_confirmation for each in prepared)):
            raise _confirmation_of_many(prepared, skipped, retried, Redactor(target.settings.redact))
        if not prepared:
            return summary("Retry", skipped)
        with publisher(target.broker, target.settings) as sender:
            sent = send_all(target, sender, prepared, self.request_id, twice=self.include_retried)
        return summary("Retry", [*sent, *skipped], new_ids={each.id: each.new_id for each in sent if each.new_id})


def prepare(
    target: Target,
    task: Task,
    found: FoundArguments,
    args: str | None = None,
    kwargs: str | None = None,
    queue: str | None = None,
) -> PreparedRetry:
    """What would be sent, and where to. Raises Conflict, ArgumentsUnknown or InvalidInput."""
    refuse(task)
    arguments, message = found.arguments, found.message
    if message is not None and arguments.fidelity == "exact" and (arguments.args is not None or args is kwargs is None):
        arguments = edit(arguments, args, kwargs)
        name = str(facts(message).name)
        route = route_of(message) if queue is None else find_route(target, task, queue)
        return PreparedRetry(task, name, arguments, route, message)
    return _prepare_call(target, task, found, edit(arguments, args, kwargs), queue)


def refuse(task: Task, place: str | None = None) -> None:
    """Raises Conflict for a task that waits, or runs. ``place``: where its message is, where that was checked."""
    if why := why_not_retry(task, place):
        raise Conflict(f"Task {task.id} is {task.state.word}: {why}.", state=task.state.word)


def _prepare_call(
    target: Target, task: Task, found: FoundArguments, arguments: Arguments, queue: str | None
) -> PreparedRetry:
    """A message of our own making, of what is known."""
    name = found.name or task.name
    if name is None or not is_whole(name):
        raise Conflict(f"The name of task {task.id} is not known whole, so nobody can be asked to run it.")
    if arguments.args_value is None or arguments.kwargs_value is None:
        raise ArgumentsUnknown(
            f"The arguments of {name} are not known well enough to send it again: {arguments.reason}. "
            "Give args and kwargs as JSON.",
            reason=arguments.reason,
        )
    return PreparedRetry(task, name, arguments, find_route(target, task, queue, found.queue))


def find_route(target: Target, task: Task, queue: str | None, told: str | None = None) -> Route:
    """Where to send a task: Conflict lists the queues to choose from.

    The queue asked for, else the task's own, else its exchange and routing key, else the only queue that its worker
    consumes. ``told``: what a result backend calls the queue. It is the routing key, so it is only taken where a queue
    has that name (celery.backends.base).
    """
    if queue is not None:
        return _asked_for(target, task, queue)
    if route := recorded_route(task):
        return route
    found = consumed(target, task)
    if found is not None and found.sole is not None and is_whole(found.sole):
        return Route("", found.sole)
    names = target.queue_names()
    if told in names:
        return Route("", str(told))
    choice = list(found.queues) if found is not None and found.queues else names
    raise Conflict(
        f"The queue of task {task.id} is unknown: events name it only with task_send_sent_event{_says(found)}. "
        f"Choose {' or '.join(choice) if choice else 'one once a worker answers: no queue is known yet'}.",
        queues=choice,
    )


def _asked_for(target: Target, task: Task, queue: str) -> Route:
    known = target.queue_names()
    if queue not in known and ((found := consumed(target, task)) is None or queue not in found.queues):
        raise Conflict(f"No queue {queue!r} is known; known are {', '.join(known) or 'none'}.", queues=known)
    return Route("", queue)


def _says(found: Consumed | None) -> str:
    """What the worker of the task adds to it."""
    if found is None:
        return ""
    if not found.queues:
        return f", and {found.worker} does not say which queues it consumes"
    if not found.same_process:
        return f", and {found.worker} was restarted since; it consumes {', '.join(found.queues)} now"
    return f", and {found.worker} consumes {', '.join(found.queues)}"


def recorded_route(task: Task) -> Route | None:
    """Where a task went, as far as its events say so."""
    if task.queue and is_whole(task.queue):
        return Route("", task.queue)
    if task.routing_key and task.exchange is not None and not task.exchange.startswith(DELAYED_EXCHANGE):
        return Route(task.exchange, task.routing_key)
    return None


def _prepare_all(
    target: Target, ids: list[str], command: RetryTasks
) -> tuple[list[PreparedRetry], list[TaskResult], list[TaskResult]]:
    """What can be sent, what cannot, and what is left out because it was retried before."""
    prepared = []
    skipped = []
    retried = []
    tasks = _tasks(target, ids)
    known_of = find_all_arguments(target, [task for task in tasks.values() if isinstance(task, Task)])
    for task_id, task in tasks.items():
        try:
            if isinstance(task, NotFound):
                raise task
            if task.retried is not None and not _may_again(task, task.retried, command):
                retried.append(TaskResult(id=task_id, outcome="skipped", message=_left_out(task.retried)))
                continue
            prepared.append(prepare(target, task, known_of[task.id]))
        except ArgumentsUnknown as error:
            skipped.append(TaskResult(id=task_id, outcome="skipped", message=error.message, fidelity="unknown"))
        except MonitorError as error:
            if error.status >= 500:  # the record cannot be read: that is no fault of the task
                raise
            skipped.append(TaskResult(id=task_id, outcome="skipped", message=error.message))
    return prepared, skipped, retried


def _may_again(task: Task, link: Link, command: RetryTasks) -> bool:
    """The second coming of a request finds its own link, and is answered with it."""
    mine = command.request_id is not None and link.id == _new_id(task, command.request_id)
    return command.include_retried or mine


def _left_out(link: Link) -> str:
    words = retried_as_words(link)
    return f"{words[:1].upper()}{words[1:]}."


def _tasks(target: Target, ids: list[str]) -> dict[str, Task | NotFound]:
    found: dict[str, Task | NotFound] = {}
    for task_id in ids:
        try:
            found[task_id] = read_task(target.store, task_id, target.cluster)
        except NotFound as error:
            found[task_id] = error
    return found


def send_all(
    target: Target, sender: Publisher, prepared: list[PreparedRetry], request_id: str | None, *, twice: bool = False
) -> list[TaskResult]:
    """One result each. Once a message is in doubt the connection is gone, and the rest is not sent.

    What somebody else retries meanwhile is skipped, unless ``twice``.
    """
    results: list[TaskResult] = []
    for each in prepared:
        if results and results[-1].outcome == "unconfirmed":
            message = "Not sent: the connection to the broker was lost before."
            rest = prepared[len(results) :]
            return results + [TaskResult(id=one.task.id, outcome="failed", message=message) for one in rest]
        results.append(_send(target, sender, each, request_id, None, first_only=not twice))
    return results


def _send(
    target: Target,
    sender: Publisher,
    prepared: PreparedRetry,
    request_id: str | None,
    countdown: float | None,
    *,
    first_only: bool = False,
) -> TaskResult:
    """The link is written first, and taken back when the broker certainly has no message."""
    task = prepared.task
    new_id = task.id if prepared.same_id else _new_id(task, request_id)
    fidelity = prepared.arguments.fidelity
    again_after = SAME_ID_SECONDS if prepared.same_id else None
    cluster, now = target.cluster, target.now()
    if not link_retry(target.store, cluster, task.id, new_id, fidelity, now, again_after, first_only=first_only):
        others = read_lineage(target.store, task).retried_as if first_only else ()
        if others and new_id not in {link.id for link in others}:
            return TaskResult(id=task.id, outcome="skipped", message=_left_out(others[-1]))
        message = f"This was asked for before: it is task {new_id}. Nothing was sent a second time."
        return TaskResult(id=task.id, outcome="done", message=message, new_id=new_id, fidelity=fidelity)
    try:
        sender.send(call_of(prepared, new_id, countdown))
    except TakenUnknown as error:
        return TaskResult(id=task.id, outcome="unconfirmed", message=error.message, new_id=new_id, fidelity=fidelity)
    except NotTaken as error:
        unlink_retry(target.store, target.cluster, task.id, new_id)
        return TaskResult(id=task.id, outcome="failed", message=error.message, fidelity=fidelity)
    message = f"Sent again as {new_id} to {prepared.route}."
    return TaskResult(id=task.id, outcome="done", message=message, new_id=new_id, fidelity=fidelity)


def call_of(prepared: PreparedRetry, new_id: str, countdown: float | None = None) -> TaskCall | Copy:
    """What is sent: the message itself where it is known."""
    task, arguments = prepared.task, prepared.arguments
    if prepared.message is not None:
        edited = (arguments.args_value or [], arguments.kwargs_value or {})
        typed = edited if arguments.fidelity == "edited" else None
        return copy_of(prepared.message, task.id, new_id, prepared.route, countdown, typed)
    return TaskCall(
        id=new_id,
        name=prepared.name,
        args=arguments.args_value or [],
        kwargs=arguments.kwargs_value or {},
        route=prepared.route,
        countdown=countdown,
        root_id=task.root_id if task.root_id != task.id else None,
        parent_id=task.parent_id,
    )


def _new_id(task: Task, request_id: str | None) -> str:
    """One request makes one id per task, so that its second coming finds the first one's link."""
    if request_id is None:
        return str(uuid4())
    return str(uuid5(_REQUESTS, f"{request_id}\0{task.cluster}\0{task.id}"))


def _confirmation(prepared: PreparedRetry, redactor: Redactor) -> ConfirmationRequired:
    arguments = without_secrets(prepared.arguments, redactor)
    words = f"{prepared.warning} " if prepared.warning else ""
    return ConfirmationRequired(
        f"{words}Look at the arguments, then confirm: {prepared.name} goes to {prepared.route}.",
        args=arguments.args,
        kwargs=arguments.kwargs,
        fidelity=arguments.fidelity,
        source=arguments.source,
        reason=arguments.reason,
        warning=prepared.warning,
        queue=prepared.route.queue,
    )


def _confirmation_of_many(
    prepared: list[PreparedRetry], skipped: list[TaskResult], retried: list[TaskResult], redactor: Redactor
) -> ConfirmationRequired:
    fidelities = Counter(each.arguments.fidelity for each in prepared)
    reasons = Counter(each.message for each in skipped)
    shown = [(each, without_secrets(each.arguments, redactor)) for each in prepared[:SAMPLES]]
    samples = [
        {"id": each.task.id, "name": each.name, "args": clean.args, "kwargs": clean.kwargs} for each, clean in shown
    ]
    return ConfirmationRequired(
        f"{len(prepared)} tasks can be sent again, {len(skipped)} are skipped. Check the arguments, then confirm.",
        sendable=len(prepared),
        skipped=len(skipped),
        retried=len(retried),
        fidelity=dict(fidelities),
        reasons=dict(reasons.most_common(SAMPLES)),
        warnings=sorted({each.warning for each in prepared if each.warning}),
        samples=samples,
    )
