"""One task: details and commands; and running a registered task."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from celery_monitor.control.arguments import WAITING, FoundArguments, look_up
from celery_monitor.control.commands import NO_NUL, Name, Performed, Reason, RequestId, Seconds, summary_of
from celery_monitor.control.queues import FindMessage
from celery_monitor.control.retry import RetryTask
from celery_monitor.control.revoke import RevokeTask
from celery_monitor.control.run import RunTask
from celery_monitor.core.arguments import Fidelity, without_secrets
from celery_monitor.core.message import Unreadable, facts, stamps_of
from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.workers import ProcessState, task_process_state
from celery_monitor.errors import Conflict, NotFound, NotTaken, TakenUnknown
from celery_monitor.records.event import Message
from celery_monitor.records.task import Lineage, Outcome, Task, WaitSince
from celery_monitor.store.tasks.detail import read_lineage, read_task
from celery_monitor.store.workers import read_workers
from celery_monitor.web.api.operation import (
    ACTION_ERRORS,
    ERRORS,
    RETRY_ERRORS,
    Call,
    InCluster,
    Operation,
    ReasonBody,
    TaskId,
    cluster_named,
    json_text,
    only_result,
    operation,
    outcome,
    perform,
    shape,
)
from celery_monitor.web.api.tasks import TaskItem, retried_item
from celery_monitor.web.security.reach import IN_PART


class TaskAddress(InCluster, frozen=True, kw_only=True):
    """One task."""

    id: TaskId


class RetryBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to retry a task; without args and kwargs, with its own."""

    # Raw, so that numbers reach the worker exactly as written.
    args: Annotated[Raw, Meta(extra_json_schema={"type": "array"})] | UnsetType = UNSET
    kwargs: Annotated[Raw, Meta(extra_json_schema={"type": "object"})] | UnsetType = UNSET
    queue: Annotated[str, Meta(pattern=NO_NUL, min_length=1)] | None = None
    countdown: Seconds | None = None
    same_id: bool = False
    confirm: bool = False
    reason: Reason | None = None
    request_id: RequestId | None = None


class RunItem(Struct, frozen=True, kw_only=True):
    """One attempt of a task on one worker. ``name`` differs from the task's if it was replaced by another one."""

    name: str | None
    worker: str | None
    pid: int | None
    retries: int | None
    outcome: Outcome | None
    received: float | None
    started: float | None
    ended: float | None
    eta: float | None
    runtime: float | None
    runtime_estimated: bool
    wait: float | None
    wait_since: WaitSince | None
    result: str | None
    exception: str | None
    traceback: str | None


class ArgumentsItem(Struct, frozen=True, kw_only=True):
    """The arguments that a retry would send, their fidelity and their source."""

    args: list[Any] | None
    kwargs: dict[str, Any] | None
    fidelity: Fidelity
    source: str | None
    reason: str


class MessageItem(Struct, frozen=True, kw_only=True):
    """What the message contains beyond the events. Its body is not shown."""

    name: str | None
    content_type: str | None
    size: int
    priority: int | None
    exchange: str | None
    routing_key: str | None
    group: str | None
    group_index: int | None
    chord: str | None
    # Null if the body is not decoded and no worker reported them.
    chain: int | None
    callbacks: int | None
    errbacks: int | None
    stamps: dict[str, Any]
    beat: str | None


class TaskDetail(TaskItem, frozen=True, kw_only=True):
    """One task in full."""

    runs: list[RunItem]
    arguments: ArgumentsItem
    message: MessageItem | None
    retry_of: str | None
    retried_as: list[str]
    message_place: str | None  # of a waiting task: where its message is, as checked just now
    worker_state: ProcessState | None  # of the process that has the task; "shutting down": finishing its running tasks
    # When it was discovered by querying workers or the broker; no sent or received event was seen.
    discovered_at: float | None = field(name="learnt")


class Retried(Struct, frozen=True, kw_only=True):
    """The new task, and the fidelity of its arguments."""

    id: str
    fidelity: Fidelity | None
    outcome: Literal["done", "unconfirmed"]
    message: str


class FoundMessage(Struct, frozen=True, kw_only=True):
    """The message was found and is stored like a captured one."""

    message: str


class Revoked(Struct, frozen=True, kw_only=True):
    """``unconfirmed``: sent, but not every worker answered."""

    outcome: Literal["done", "unconfirmed"]
    message: str


def message_item(message: Message | None, redactor: Redactor) -> MessageItem | None:
    try:
        content = facts(message) if message is not None else None
    except Unreadable:
        return None
    if message is None or content is None:
        return None
    return MessageItem(
        name=content.name,
        content_type=message.content_type,
        size=message.size,
        priority=content.priority,
        exchange=message.exchange,
        routing_key=message.routing_key,
        group=content.group,
        group_index=content.group_index,
        chord=message.chord,
        chain=message.chain if message.links else None,
        callbacks=message.callbacks if message.links else None,
        errbacks=message.errbacks if message.links else None,
        stamps=stamps_of(content, redactor),
        beat=content.beat,
    )


def task_detail(
    task: Task, lineage: Lineage, found: FoundArguments, redactor: Redactor, worker_state: ProcessState | None = None
) -> TaskDetail:
    shown = without_secrets(found.arguments, redactor)
    arguments = ArgumentsItem(
        args=shown.args_value,
        kwargs=shown.kwargs_value,
        fidelity=shown.fidelity,
        source=shown.source,
        reason=shown.reason,
    )
    return shape(
        TaskDetail,
        task,
        retried=retried_item(task),
        runs=[shape(RunItem, run, name=(run.invocation or task).name) for run in task.runs],
        arguments=arguments,
        message=message_item(found.message, redactor),
        retry_of=lineage.retry_of,
        retried_as=[link.id for link in lineage.retried_as],
        message_place=found.place if task.state in WAITING else None,
        worker_state=worker_state,
    )


def get_task(call: Call, given: TaskAddress) -> TaskDetail:
    task = read_task(call.store, given.id, given.cluster)
    found = look_up(call.store, call.settings, task)
    state = task_process_state(task, read_workers(call.store, task.cluster))
    return task_detail(task, read_lineage(call.store, task), found, Redactor(call.settings.redact), state)


def retry_task(call: Call, given: TaskAddress, body: RetryBody) -> Retried:
    command = RetryTask(
        **_task(call, given),
        args=json_text(body.args),
        kwargs=json_text(body.kwargs),
        queue=body.queue,
        countdown=body.countdown,
        same_id=body.same_id,
        confirm=body.confirm,
        reason=body.reason,
        request_id=body.request_id,
    )
    performed = call.controller.perform(call.actor, command)
    result = only_result(performed)
    if result.new_id is None:
        raise Conflict(result.message)
    return Retried(id=result.new_id, fidelity=result.fidelity, outcome=outcome(performed), message=performed.message)


def _task(call: Call, given: TaskAddress) -> dict[str, Any]:
    task = read_task(call.store, given.id, given.cluster)
    return {"cluster": task.cluster, "id": task.id}


def _found(performed: Performed) -> FoundMessage:
    return FoundMessage(message=performed.message)


def _revoked(performed: Performed) -> Revoked:
    return Revoked(outcome=outcome(performed), message=performed.message)


class RunBody(ReasonBody, frozen=True, kw_only=True):
    """A registered task to run."""

    name: Name
    queue: Name
    # Raw, so that numbers reach the worker exactly as written.
    args: Annotated[Raw, Meta(extra_json_schema={"type": "array"})] | UnsetType = UNSET
    kwargs: Annotated[Raw, Meta(extra_json_schema={"type": "object"})] | UnsetType = UNSET
    countdown: Seconds | None = None
    request_id: RequestId | None = None


class RunAnswer(Struct, frozen=True, kw_only=True):
    """The new task."""

    id: str
    outcome: Literal["done", "unconfirmed"]
    message: str


def run_task(call: Call, given: InCluster, body: RunBody) -> RunAnswer:
    command = RunTask(
        cluster=cluster_named(call, given.cluster),
        name=body.name,
        queue=body.queue,
        args=json_text(body.args) or "[]",
        kwargs=json_text(body.kwargs) or "{}",
        countdown=body.countdown,
        reason=body.reason,
        request_id=body.request_id,
    )
    performed = perform(call, command)
    return RunAnswer(id=performed.results[0].id, outcome=outcome(performed), message=performed.message)


OPERATIONS = (
    Operation(
        method="POST",
        path=f"/api/v1/{RetryTask.route}",
        handle=retry_task,
        summary=summary_of(RetryTask),
        answer=Retried,
        parameters=TaskAddress,
        body=RetryBody,
        errors=RETRY_ERRORS,
        access=IN_PART,
    ),
    operation(FindMessage, TaskAddress, _task, FoundMessage, _found, ACTION_ERRORS),
    operation(RevokeTask, TaskAddress, _task, Revoked, _revoked, ACTION_ERRORS),
    Operation(
        method="GET",
        path="/api/v1/tasks/{id:name}",
        handle=get_task,
        summary="Get a task",
        answer=TaskDetail,
        parameters=TaskAddress,
        errors=(NotFound, Conflict),
        access=IN_PART,
    ),
    Operation(
        method="POST",
        path=f"/api/v1/{RunTask.route}",
        handle=run_task,
        summary=summary_of(RunTask),
        answer=RunAnswer,
        parameters=InCluster,
        body=RunBody,
        errors=(*ERRORS, NotTaken, TakenUnknown),
        access=IN_PART,
    ),
)
