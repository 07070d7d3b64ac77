"""Sending tasks and reading their results, in Flower's words."""

import asyncio
import time
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from starlette.responses import Response

from celery_monitor.brokers.connection import application_of
from celery_monitor.brokers.publish import IN_HEADERS, PUBLISHING
from celery_monitor.brokers.results import READY, TaskMeta, result_backend, task_meta
from celery_monitor.control.commands import find_broker
from celery_monitor.control.run import AbortTask, SendTask
from celery_monitor.core.sanitize import Redactor
from celery_monitor.errors import Conflict, InvalidInput, NotFound
from celery_monitor.settings.values import Broker
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.web.flower.call import FlowerCall, json_answer, message

POLL_SECONDS = 0.1
TIME = "%Y-%m-%d %H:%M:%S.%f"
OPTIONS = frozenset({*PUBLISHING, *IN_HEADERS, "task_id", "timeout"})


class Request(NamedTuple):
    """What a body asks for."""

    args: list[object]
    kwargs: dict[str, object]
    options: dict[str, object]
    timeout: float | None


def send_task(call: FlowerCall) -> Response:
    """Sends a task of any name."""
    return _sent(call, _read(call))


def async_apply(call: FlowerCall) -> Response:
    """Sends a task of the application."""
    request = _read(call)
    _check_task(call)
    return _sent(call, request)


async def apply(call: FlowerCall) -> Response:
    """Sends a task of the application, and waits for its result; without ``timeout`` for as long as the client does."""
    request = await asyncio.to_thread(_read, call)
    _check_task(call)
    task_id, broker = await asyncio.to_thread(_send, call, request)
    answer: dict[str, Any] = {"task-id": task_id}
    if not result_backend(broker, call.settings).is_read:
        return json_answer(answer)
    meta = await _ended(call, broker, task_id, request.timeout)
    return json_answer(answer | {"state": meta.state} | _result(call, meta))


async def task_result(call: FlowerCall) -> Response:
    """The state and, once it has ended, the result of a task. With ``timeout`` waits for it so many seconds."""
    timeout = call.value("timeout", float, None)
    broker = await asyncio.to_thread(_broker, call)
    meta = await _ended(call, broker, call.target, timeout or 0.0)
    return json_answer({"task-id": call.target, "state": meta.state} | _result(call, meta))


def abort(call: FlowerCall) -> Response:
    call.perform(AbortTask(cluster=_broker(call).cluster, id=call.target))
    return message(f"Aborted '{call.target}'")


async def _ended(call: FlowerCall, broker: Broker, task_id: str, timeout: float | None) -> TaskMeta:
    """The task once it has ended, or when the time is over. No thread waits meanwhile."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        meta = await asyncio.to_thread(task_meta, broker, call.settings, task_id)
        if meta.state in READY or (deadline is not None and time.monotonic() >= deadline):
            return meta
        await asyncio.sleep(POLL_SECONDS)


def _result(call: FlowerCall, meta: TaskMeta) -> dict[str, object]:
    if meta.state not in READY:
        return {}
    redactor = Redactor(call.settings.redact)
    result = {"result": redactor.plain(meta.result)}
    return result | ({"traceback": redactor.plain(meta.traceback)} if meta.state == "FAILURE" else {})


def _sent(call: FlowerCall, request: Request) -> Response:
    task_id, broker = _send(call, request)
    has_state = result_backend(broker, call.settings).is_read
    state = {"state": task_meta(broker, call.settings, task_id).state} if has_state else {}
    return json_answer({"task-id": task_id} | state)


def _send(call: FlowerCall, request: Request) -> tuple[str, Broker]:
    options = dict(request.options)
    task_id = str(options.pop("task_id", None) or uuid4())
    cluster = call.text("cluster") or _only_cluster(call)
    call.perform(
        SendTask(
            cluster=cluster, name=call.target, id=task_id, args=request.args, kwargs=request.kwargs, options=options
        )
    )
    return task_id, find_broker(call.settings, cluster)


def _only_cluster(call: FlowerCall) -> str:
    if len(call.settings.clusters) != 1:
        names = ", ".join(call.settings.clusters)
        raise Conflict(f"Several clusters are monitored: add cluster= to the address, one of {names}")
    return call.settings.clusters[0]


def _broker(call: FlowerCall) -> Broker:
    """Of the cluster where the task is recorded, else of the only one."""
    try:
        cluster = read_task(call.store, call.target, call.text("cluster")).cluster
    except NotFound:
        cluster = call.text("cluster") or _only_cluster(call)
    return find_broker(call.settings, cluster)


def _check_task(call: FlowerCall) -> None:
    application = application_of(call.settings)
    if application is None or call.target not in application.tasks:
        raise NotFound(f"Unknown task '{call.target}'")


def _read(call: FlowerCall) -> Request:
    """Raises InvalidInput."""
    try:
        body = msgspec.json.decode(call.body) if call.body else {}
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidInput("invalid options")
    args, kwargs = body.pop("args", []), body.pop("kwargs", {})
    if not isinstance(args, list):
        raise InvalidInput("args must be an array")
    if not isinstance(kwargs, dict):
        raise InvalidInput("kwargs must be an object")
    unknown = sorted(body.keys() - OPTIONS)
    if unknown:
        raise InvalidInput(f"Invalid option: {', '.join(unknown)}")
    return Request(args, kwargs, _options(body), _timeout(body.get("timeout")))


def _timeout(given: object) -> float | None:
    try:
        return None if given is None else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidInput("Invalid timeout") from None


def _options(body: dict[str, Any]) -> dict[str, object]:
    """Those of the message; times as in Flower, or in ISO 8601."""
    found = {name: value for name, value in body.items() if name != "timeout" and value is not None}
    try:
        if "countdown" in found:
            found["countdown"] = float(found["countdown"])
        for name in ("eta", "expires"):
            if name in found:
                found[name] = _moment(found[name], relative=name == "expires")
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput("Invalid option") from None
    return found


def _moment(value: object, *, relative: bool) -> object:
    if relative and (isinstance(value, int | float) or str(value).replace(".", "", 1).isdigit()):
        return float(str(value))
    try:
        return datetime.strptime(str(value), TIME)  # noqa: DTZ007 - Celery reads it in its own time zone
    except ValueError:
        return datetime.fromisoformat(str(value))
