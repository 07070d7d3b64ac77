"""Retrying tasks: with a new id, to the same queue, and only with arguments that are certain enough.

A captured message is resent unchanged: the same bytes, headers, route and callbacks. Without one, a new message is
built from the name and the arguments.
"""

import json
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
from celery_monitor.control.commands import (
    ClusterCommand,
    Performed,
    RequestId,
    Seconds,
    Target,
    TaskResult,
    distinct,
    summary,
)
from celery_monitor.control.inspect import find_route
from celery_monitor.core.arguments import Arguments, edit, is_whole, without_secrets
from celery_monitor.core.captures import (
    PROPERTIES,
    is_delayed,
    is_of_delivery,
    undelayed,
)
from celery_monitor.core.message import JSON, Unreadable, facts, json_text
from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.words import counted
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
from celery_monitor.store.tasks.detail import link_retry, read_lineage, read_task, unlink_retry

REPR_LENGTH = 1024  # as in Celery

ArgumentsToSend = tuple[list[object], dict[str, object]]


def route_of(message: Message) -> Route:
    """The route of the message; for native delayed delivery, the queue that it was meant for."""
    exchange, key = message.exchange or "", message.routing_key or ""
    if is_delayed(exchange, key):
        return Route("", message.queue or undelayed(key))
    return Route(exchange, key) if key else Route("", message.queue or "")


def copy_of(
    message: Message,
    task_id: str,
    new_id: str,
    route: Route,
    countdown: float | None = None,
    edited: ArgumentsToSend | None = None,
) -> Copy:
    """The message with a new id, no retries, no expiry, and no ETA but that of ``countdown`` (seconds).

    ``edited`` replaces the arguments of a JSON body; links stay. Raises Conflict if the body cannot be read.
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
        properties["expiration"] = int(given["expiration"]) / 1000  # milliseconds in the message, seconds in kombu
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
    headers = {name: value for name, value in given.items() if not is_of_delivery(name)}
    eta = None if countdown is None else (datetime.now(UTC) + timedelta(seconds=countdown)).isoformat()
    headers |= {"id": new_id, "retries": 0, "eta": eta, "expires": None}
    # A task that Celery retried names itself as its parent.
    headers |= {name: new_id for name in ("root_id", "parent_id") if headers.get(name) == task_id}
    return headers


def _edited_body(message: Message, edited: ArgumentsToSend) -> bytes:
    try:
        document = json.loads(json_text(message))
    except (Unreadable, ValueError) as error:
        raise Conflict(f"The arguments of this message cannot be replaced: {error}.") from None
    links = document[2] if isinstance(document, list) and len(document) > 2 else {}
    return json.dumps([*edited, links]).encode()


SAMPLES = 5
SAME_ID_SECONDS = 5.0  # within which a second retry with the same id counts as a double click
_REQUESTS = UUID("5b0c7d52-6f5f-4a8e-9d4b-0c5a3b9d3f61")  # namespace of task ids from request ids


@dataclass(frozen=True, slots=True)
class PreparedRetry:
    """A task that can be retried."""

    task: Task
    name: str
    arguments: Arguments
    route: Route
    message: Message | None = None  # the message to resend; None: a new one from name and arguments
    same_id: bool = False
    at: float | None = None  # when it was prepared

    @property
    def warning(self) -> str | None:
        warnings = warnings_of(self.task, self.message, same_id=self.same_id, now=self.at)
        return " ".join((*warnings, *([self.arguments.warning] if self.arguments.warning else []))) or None

    @property
    def needs_confirmation(self) -> bool:
        return self.arguments.fidelity == "probable" or self.warning is not None


class RetryTask(ClusterCommand, frozen=True, kw_only=True):
    """Retry a task under a new id.

    ``args`` and ``kwargs`` are JSON texts that replace the task's own; ``countdown`` is in seconds. ``confirm`` means
    that the arguments were checked. The same ``request_id`` sends at most once: forms have one, so that a double click
    is one retry. ``same_id`` reuses the same task id.
    """

    action = "task.retry"
    subject = "{0.id}"
    role = Role.OPERATOR
    in_part = True
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
        """Raises Conflict or one of its subclasses with the reason; then nothing was sent."""
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
        details = {
            "new_id": result.new_id,
            "to": str(prepared.route),
            "fidelity": result.fidelity,
            "countdown": self.countdown,
            "same_id": self.same_id,
        }
        return Performed.of_one(result, details)


class RetryTasks(ClusterCommand, frozen=True, kw_only=True):
    """Retry several tasks; each has its own outcome, and those that cannot be sent are skipped with a reason.

    Tasks that were retried before are skipped unless ``include_retried``.
    """

    action = RetryTask.action
    role = RetryTask.role
    in_part = True
    ids: tuple[str, ...]
    include_retried: bool = False
    confirm: bool = False
    request_id: RequestId | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.ids

    def run(self, target: Target) -> Performed:
        """One confirmation for all tasks that can be sent."""
        prepared, others, retried = _prepare_all(target, distinct(self.ids), self)
        skipped = [*others, *retried]
        if not self.confirm and (retried or any(each.needs_confirmation for each in prepared)):
            raise _confirmation_of_many(prepared, skipped, retried, Redactor(target.settings.redact))
        if not prepared:
            return summary("{} retried", skipped)
        with publisher(target.broker, target.settings) as sender:
            sent = send_all(target, sender, prepared, self.request_id, twice=self.include_retried)
        new_ids = {each.id: each.new_id for each in sent if each.new_id}
        return summary("{} retried", [*sent, *skipped], new_ids=new_ids)


def prepare(
    target: Target,
    task: Task,
    found: FoundArguments,
    args: str | None = None,
    kwargs: str | None = None,
    queue: str | None = None,
) -> PreparedRetry:
    """The message to send and its route. Raises Conflict, ArgumentsUnknown or InvalidInput."""
    refuse(task)
    arguments, message = found.arguments, found.message
    if message is not None and arguments.fidelity == "exact" and (arguments.args is not None or args is kwargs is None):
        arguments = edit(arguments, args, kwargs)
        name = str(facts(message).name)
        route = route_of(message) if queue is None else find_route(target, task, queue)
        return PreparedRetry(task, name, arguments, route, message)
    return _prepare_call(target, task, found, edit(arguments, args, kwargs), queue)


def refuse(task: Task, place: str | None = None) -> None:
    """Raises Conflict for a task that is waiting or running. ``place``: where its message is, if that was checked."""
    if why := why_not_retry(task, place):
        raise Conflict(f"Task {task.id} is {task.state.word}: {why}.", state=task.state.word)


def _prepare_call(
    target: Target, task: Task, found: FoundArguments, arguments: Arguments, queue: str | None
) -> PreparedRetry:
    """A new message from the name and the arguments."""
    name = found.name or task.name
    if name is None or not is_whole(name):
        raise Conflict(f"Can't retry task {task.id}: its full name is unknown.")
    if arguments.args_value is None or arguments.kwargs_value is None:
        raise ArgumentsUnknown(
            f"Can't retry {name}: {arguments.reason}. Use Edit and retry, or give args and kwargs as JSON.",
            reason=arguments.reason,
        )
    route = find_route(target, task, queue, found.queue, doubtful=found.doubtful)
    return PreparedRetry(task, name, arguments, route)


def _prepare_all(
    target: Target, ids: list[str], command: RetryTasks
) -> tuple[list[PreparedRetry], list[TaskResult], list[TaskResult]]:
    """Tasks that can be sent, tasks that cannot, and tasks that are skipped because they were retried before."""
    prepared = []
    skipped = []
    retried = []
    tasks = _tasks(target, ids)
    found = find_all_arguments(target, [task for task in tasks.values() if isinstance(task, Task)])
    for task_id, task in tasks.items():
        try:
            if isinstance(task, NotFound):
                raise task
            if task.retried is not None and not _may_retry_again(task, task.retried, command):
                retried.append(TaskResult(id=task_id, outcome="skipped", message=_already_retried(task.retried)))
                continue
            prepared.append(prepare(target, task, found[task.id]))
        except ArgumentsUnknown as error:
            skipped.append(TaskResult(id=task_id, outcome="skipped", message=error.message, fidelity="unknown"))
        except MonitorError as error:
            if error.status >= 500:  # the record cannot be read, which is not about the task
                raise
            skipped.append(TaskResult(id=task_id, outcome="skipped", message=error.message))
    return prepared, skipped, retried


def _may_retry_again(task: Task, link: Link, command: RetryTasks) -> bool:
    """A repeated request finds its own link, and gets the same answer."""
    own = command.request_id is not None and link.id == _new_id(task, command.request_id)
    return command.include_retried or own


def _already_retried(link: Link) -> str:
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
    """One result each. If it is uncertain whether a message was sent, the connection is lost, and the rest is not sent.

    Tasks that somebody else retries meanwhile are skipped, unless ``twice``.
    """
    results: list[TaskResult] = []
    for each in prepared:
        if results and results[-1].outcome == "unconfirmed":
            message = "Not sent: the connection to the broker was lost."
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
    """The link is stored first, and removed if the broker certainly has no message."""
    task = prepared.task
    new_id = task.id if prepared.same_id else _new_id(task, request_id)
    fidelity = prepared.arguments.fidelity
    again_after = SAME_ID_SECONDS if prepared.same_id else None
    cluster, now = target.cluster, target.now()
    if not link_retry(target.store, cluster, task.id, new_id, fidelity, now, again_after, first_only=first_only):
        others = read_lineage(target.store, task).retried_as if first_only else ()
        if others and new_id not in {link.id for link in others}:
            return TaskResult(id=task.id, outcome="skipped", message=_already_retried(others[-1]))
        message = f"Already sent by this request as task {new_id}. Nothing was sent twice."
        return TaskResult(id=task.id, outcome="done", message=message, new_id=new_id, fidelity=fidelity)
    try:
        sender.send(call_of(prepared, new_id, countdown))
    except TakenUnknown as error:
        return TaskResult(id=task.id, outcome="unconfirmed", message=error.message, new_id=new_id, fidelity=fidelity)
    except NotTaken as error:
        unlink_retry(target.store, target.cluster, task.id, new_id)
        return TaskResult(id=task.id, outcome="failed", message=error.message, fidelity=fidelity)
    message = f"Retried as {new_id}, sent to {prepared.route}."
    return TaskResult(id=task.id, outcome="done", message=message, new_id=new_id, fidelity=fidelity)


def call_of(prepared: PreparedRetry, new_id: str, countdown: float | None = None) -> TaskCall | Copy:
    """The message to send: a copy of the original one if there is one."""
    task, arguments = prepared.task, prepared.arguments
    args, kwargs = arguments.args_value or [], arguments.kwargs_value or {}
    if prepared.message is not None:
        edited = (args, kwargs) if arguments.fidelity == "edited" else None
        return copy_of(prepared.message, task.id, new_id, prepared.route, countdown, edited)
    return TaskCall(
        id=new_id,
        name=prepared.name,
        args=args,
        kwargs=kwargs,
        route=prepared.route,
        countdown=countdown,
        root_id=task.root_id if task.root_id != task.id else None,
        parent_id=task.parent_id,
    )


def _new_id(task: Task, request_id: str | None) -> str:
    """One id per request and task, so that a repeated request finds the link of the first one."""
    if request_id is None:
        return str(uuid4())
    return str(uuid5(_REQUESTS, f"{request_id}\0{task.cluster}\0{task.id}"))


def _confirmation(prepared: PreparedRetry, redactor: Redactor) -> ConfirmationRequired:
    arguments = without_secrets(prepared.arguments, redactor)
    warning = f"{prepared.warning} " if prepared.warning else ""
    return ConfirmationRequired(
        f"{warning}Check the arguments, then confirm: {prepared.name} is sent to {prepared.route}.",
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
        f"{counted(len(prepared), 'task')} can be retried, {len(skipped)} skipped. Check the arguments, then confirm.",
        sendable=len(prepared),
        skipped=len(skipped),
        retried=len(retried),
        fidelity=dict(fidelities),
        reasons=dict(reasons.most_common(SAMPLES)),
        warnings=sorted({each.warning for each in prepared if each.warning}),
        samples=samples,
    )
