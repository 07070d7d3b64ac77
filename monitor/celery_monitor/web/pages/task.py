"""One task: runs, arguments, exception, details, retries and actions."""

import json
import time
from functools import partial
from typing import NamedTuple
from urllib.parse import quote
from uuid import uuid4

from msgspec import structs

from celery_monitor.control.allowed import REFUSED, SAME_ID, warnings_of
from celery_monitor.control.arguments import WAITING, FoundArguments, look_up
from celery_monitor.control.commands import SIGNALS, Target, find_broker
from celery_monitor.control.inspect import Consumed, consumed, why_no_control
from celery_monitor.control.queues import HAZARD, FindMessage, why_not_find
from celery_monitor.control.retry import RetryTask
from celery_monitor.control.revoke import RevokeTask
from celery_monitor.core.arguments import Arguments, without_secrets
from celery_monitor.core.message import Unreadable, facts, stamps_of
from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.workers import task_process_state
from celery_monitor.errors import ArgumentsUnknown, Conflict, InvalidInput, MonitorError, NotFound
from celery_monitor.records.event import Message
from celery_monitor.records.page import Action
from celery_monitor.records.task import Link, Run, Task, TaskState
from celery_monitor.store.actions import record_action
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_queues
from celery_monitor.store.tasks.detail import read_lineage, read_task
from celery_monitor.store.workers import read_workers
from celery_monitor.web.pages import (
    TONES,
    Context,
    FormRequest,
    Page,
    Result,
    View,
    command_of,
    fields,
    perform_form,
    seconds,
)
from celery_monitor.web.problems import read_part
from celery_monitor.web.security.reach import IN_PART
from celery_monitor.web.wording import parts

PANELS = ("retry", "edit", "revoke", "terminate")
ONE_LINE = 88
MOST_CHOICES = 500  # queues in the form
MOST_DRAWN = 50  # latest runs in the timeline


class Bar(NamedTuple):
    """A run in the timeline; positions are percent of its width."""

    run: Run
    number: int
    waited_from: float
    ran_from: float
    ends: float
    ended: bool


class Retry(NamedTuple):
    """A retry of this task by a person; ``task`` is ``None`` until an event of it arrives."""

    link: Link
    task: Task | None


def context(view: View) -> Context:
    """Raises NotFound."""
    task = read_task(view.store, view.params["id"], view.cluster)
    found = look_up(view.store, view.settings, task)
    known, message = found.arguments, found.message
    redactor = Redactor(view.settings.redact)
    arguments = without_secrets(known, redactor)
    panel = _panel(view, task, found, arguments)
    return {
        "title": task.name or task.id,
        "task": task,
        "arguments": arguments,
        **read_part(lambda: {"bars": timeline(task)}, "bars"),
        "earlier": max(0, len(task.runs) - MOST_DRAWN),
        **read_part(lambda: {"parts": parts(task.traceback) if task.traceback else []}, "parts"),
        **read_part(lambda: _lineage(view, task), "origin", "retry_of", "retries"),
        "can": allowed(view, task),
        "no_control": None if task.state.finished else _no_control(view, task),
        "signals": SIGNALS,
        **read_part(lambda: {"message_details": message_details(message, redactor)}, "message_details"),
        "can_find": _can_find(view, task, known),
        "find_hazard": HAZARD,
        **panel,
        **_editor(view, task, found, arguments, panel["consumed"]),
        "place": found.place if task.state in WAITING else None,
        "worker_state": task_process_state(task, read_workers(view.store, task.cluster)),
        "warning": " ".join((*warnings_of(task, message), *([known.warning] if known.warning else []))) or None,
        "queue": _sure_queue(task, found),
    }


def _lineage(view: View, task: Task) -> Context:
    """The task that this one retries, and those that retry it."""
    lineage = read_lineage(view.store, task)
    return {
        "origin": _read(view.store, task.cluster, lineage.retry_of),
        "retry_of": lineage.retry_of,
        "retries": [Retry(link, _read(view.store, task.cluster, link.id)) for link in reversed(lineage.retried_as)],
    }


def allowed(view: View, task: Task) -> frozenset[str]:
    """The actions that this state and the user's role allow."""
    can = set()
    if view.may("task.retry") and task.state not in REFUSED:
        can |= {"retry", "edit"}
    if view.may("task.revoke") and not task.state.finished and task.state is not TaskState.LOST:
        can |= {"terminate"} if task.state is TaskState.STARTED else {"revoke"}
    return frozenset(can - {"revoke", "terminate"} if can and _no_control(view, task) else can)


def _no_control(view: View, task: Task) -> str | None:
    """Why no worker can receive a command about the task."""
    try:
        broker = find_broker(view.settings, task.cluster)
    except NotFound:
        return None
    return why_no_control(Target(view.store, view.settings, broker))


def _panel(view: View, task: Task, origin: FoundArguments, arguments: Arguments) -> Context:
    """The open confirmation. A task with unknown arguments can only be edited and retried."""
    panel = view.query.get("panel")
    if panel not in PANELS or panel not in allowed(view, task):
        panel = None
    if panel == "retry" and not arguments.known:
        panel = "edit"
    found = _consumed(view, task) if panel and _sure_queue(task, origin) is None else None
    queues = sorted({each.name for each in read_queues(view.store, task.cluster)})[:MOST_CHOICES] if panel else []
    return {
        "panel": panel,
        "consumed": found,
        "queues": list(dict.fromkeys([*(found.queues if found else ()), *queues])),
        "request_id": str(uuid4()) if panel else None,
        "same_id": SAME_ID,
    }


def _consumed(view: View, task: Task) -> Consumed | None:
    try:
        broker = find_broker(view.settings, task.cluster)
    except NotFound:
        return None
    return consumed(Target(view.store, view.settings, broker), task)


def _editor(view: View, task: Task, found: FoundArguments, shown: Arguments, worker_queues: Consumed | None) -> Context:
    """Initial values of the form: no masked values, since they would be sent masked."""
    known = found.arguments
    readable = not shown.masked or view.may("message.read")
    values = (known.args_value, known.kwargs_value) if readable else (None, None)
    texts = {"args": editable(values[0]), "kwargs": editable(values[1])}
    empty = not readable or known.args_value is None
    queue = _sure_queue(task, found) or (worker_queues.only_queue if worker_queues else None) or found.queue
    unmasked = shown.masked and readable and known.args_value is not None
    return {
        "note_read": partial(_note_read, view.store, task) if unmasked else None,  # called by the page as it shows them
        "editor": {**texts, "queue": queue, "countdown": ""},
        "editor_empty": empty,
        "loses_links": known.fidelity == "exact" and known.args_value is None,
        "editor_error": None,
        "editor_field": None,
    }


def _note_read(store: Store, task: Task, actor: str) -> str:
    """Records that somebody sees arguments with their secrets. Raises StoreUnavailable: then nobody sees them."""
    noted = Action(at=time.time(), actor=actor, action="message.read", cluster=task.cluster, target=task.id)
    record_action(store, noted)
    return ""


def _sure_queue(task: Task, found: FoundArguments) -> str | None:
    """Its queue, unless only a message that is not used names it."""
    return task.queue if task.sent is not None or not found.doubtful else None


def message_details(message: Message | None, redactor: Redactor) -> list[tuple[str, str]]:
    """Labels and texts of what only the message contains."""
    if message is None:
        return []
    try:
        known = facts(message)
    except Unreadable:
        return []
    member = f" (member {known.group_index + 1})" if known.group_index is not None else ""
    rows = [
        ("Real name", known.name if known.shadow else None),
        ("Priority", str(known.priority) if known.priority is not None else None),
        ("Group", f"{known.group}{member}" if known.group else None),
        ("Chord body", message.chord),
        ("Chain", f"{message.chain} more" if message.chain else None),
        ("Callbacks and chain", None if message.links else "unknown: the message body is not decoded"),
        ("Callbacks", str(message.callbacks) if message.callbacks else None),
        ("Error callbacks", str(message.errbacks) if message.errbacks else None),
        ("Stamps", ", ".join(f"{name}={value}" for name, value in stamps_of(known, redactor).items()) or None),
        ("Sent by beat as", known.beat),
        ("Message", f"{message.size:,} bytes of {message.content_type or 'unknown type'}"),
    ]
    return [(label, text) for label, text in rows if text is not None]


def editable(value: object) -> str:
    """Initial text of an editor field: empty if the value is unknown, never an invented ``[]``."""
    return (
        "" if value is None else json.dumps(value, indent=2 if len(str(value)) > ONE_LINE else None, ensure_ascii=False)
    )


def _read(store: Store, cluster: str, task_id: str | None) -> Task | None:
    try:
        return read_task(store, task_id, cluster) if task_id is not None else None
    except NotFound:
        return None


def timeline(task: Task) -> list[Bar]:
    """The latest runs on one scale, from sending (or receipt) to the last recorded time."""
    runs = task.runs[-MOST_DRAWN:]
    moments = [at for run in runs for at in (run.ready, run.received, run.started, run.ended) if at is not None]
    sent = [(run.invocation or task).sent for run in runs]
    if len(task.runs) <= MOST_DRAWN:
        moments += [at for at in sent if at is not None]
    if not runs:
        return []
    begin, end = min(moments, default=0.0), max(moments, default=0.0)
    span = max(end - begin, 0.001) * (1.0 if all(run.ended is not None for run in runs) else 1.15)
    first = len(task.runs) - len(runs)
    return [_bar(run, first + index + 1, begin, span, sent[index]) for index, run in enumerate(runs)]


def _bar(run: Run, number: int, begin: float, span: float, sent: float | None) -> Bar:
    def place(at: float | None, otherwise: float) -> float:
        return otherwise if at is None else round(min(100.0, max(0.0, (at - begin) / span * 100)), 2)

    received = place(run.received, place(sent, 0.0) if run.waiting else place(run.started, 0.0))
    started = place(run.started, place(run.ended, 100.0))
    if run.started is not None and run.wait is not None:
        received = place(run.started - run.wait, received)
    return Bar(run, number, received, started, place(run.ended, 100.0), run.ended is not None)


def retry(view: View, request: FormRequest) -> Result:
    """Retries the task with its own or edited arguments."""
    form = fields(request.form)
    edited = form.get("edited") == "1"
    command = RetryTask(
        cluster=_cluster(view, form),
        id=view.params["id"],
        args=form.get("args", "") if edited else None,
        kwargs=form.get("kwargs", "") if edited else None,
        queue=form.get("queue") or None,
        same_id=form.get("same_id") == "1",
        confirm=form.get("confirm") == "1",
        request_id=form.get("request_id") or None,
    )
    try:
        command = structs.replace(command, countdown=seconds(form, "countdown"))
        performed = request.controller.perform(request.actor, command)
    except (InvalidInput, ArgumentsUnknown, Conflict) as error:
        return _show_again(form, error, "edit" if edited or isinstance(error, ArgumentsUnknown) else "retry")
    except MonitorError as error:
        return _to_task(view, f"Nothing was sent. {error.message}", "bad")
    return _to_task(view, performed.message, TONES[performed.outcome])


def revoke(view: View, request: FormRequest) -> Result:
    """Revokes the task; with ``terminate``, the worker kills its process."""
    return _perform(view, request, RevokeTask)


def find(view: View, request: FormRequest) -> Result:
    """Searches the queue for the message on a broker where that touches messages."""
    return _perform(view, request, FindMessage)


def _perform(view: View, request: FormRequest, command: type[RevokeTask | FindMessage]) -> Result:
    cluster, task_id = _cluster(view, fields(request.form)), view.params["id"]
    path = f"/tasks/{quote(task_id, safe='')}"
    return perform_form(path, view, request, lambda form: command_of(command, form, cluster=cluster, id=task_id))


def _can_find(view: View, task: Task, known: Arguments) -> bool:
    """Whether the message may still be in a queue that is only searched on request."""
    if known.fidelity == "exact" or not view.may("task.find_message"):
        return False
    try:
        broker = find_broker(view.settings, task.cluster)
    except NotFound:
        return False
    return why_not_find(Target(view.store, view.settings, broker), task) is None


def _cluster(view: View, form: dict[str, str]) -> str:
    return form.get("of_cluster") or read_task(view.store, view.params["id"], view.cluster).cluster


def _show_again(form: dict[str, str], error: MonitorError, panel: str) -> Result:
    editor = {name: form.get(name, "") for name in ("args", "kwargs", "queue", "countdown")}
    problem = {"panel": panel, "editor_error": error.message, "editor_field": error.detail.get("field")}
    edited = {"editor": editor} if form.get("edited") == "1" else {}
    return Result(context={**problem, **edited, "request_id": str(uuid4())}, status=error.status)


def _to_task(view: View, notice: str, tone: str) -> Result:
    return Result(f"/tasks/{quote(view.params['id'], safe='')}", {"cluster": view.cluster}, notice, tone)


PAGE = Page(
    "/tasks/{id:name}",
    "task.html",
    context,
    title="Task",
    regions=("head", "timeline", "failure", "data", "retries"),
    actions={"retry": retry, "revoke": revoke, "find-message": find},
    script="tasks.js",
    access=IN_PART,
)
