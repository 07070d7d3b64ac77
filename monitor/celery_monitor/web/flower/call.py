"""A request of Flower's API: its arguments as Flower reads them, and its answer as Flower writes it."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from celery_monitor.control.commands import Command, Performed
from celery_monitor.control.perform import Controller
from celery_monitor.errors import BrokerUnavailable, InvalidInput, MonitorError, NotFound, Unsupported
from celery_monitor.records.user import Actor
from celery_monitor.records.worker import Worker
from celery_monitor.settings import Settings
from celery_monitor.settings.values import parse_bool
from celery_monitor.store.engine import Store
from celery_monitor.store.workers import read_workers
from celery_monitor.web.security.guard import FORM_TYPE, MOST_FIELDS, content_type
from celery_monitor.web.security.reach import within

JSON = "application/json; charset=UTF-8"
TEXT = "text/plain; charset=UTF-8"
READ_ONLY = "Read only mode is enabled"
UNAVAILABLE = "Broker or result backend unavailable"
KINDS: dict[type, Callable[[str], Any]] = {bool: parse_bool, int: int, float: float, str: str}

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class FlowerCall:
    """The user, the end of the path (a worker's or task's name, or an id), the arguments and the body."""

    actor: Actor
    store: Store
    settings: Settings
    controller: Controller
    target: str
    arguments: Mapping[str, str]
    body: bytes

    def text(self, name: str) -> str | None:
        """An argument of the address or the form; the form's where both have it."""
        value = self.arguments.get(name)
        return value.strip() if value is not None else None

    def required(self, name: str) -> str:
        if value := self.text(name):
            return value
        raise InvalidInput(f"Missing argument {name}")

    def value(self, name: str, kind: type[T], default: D) -> T | D:
        """An argument of this type. Raises InvalidInput."""
        text = self.text(name)
        return default if text is None else _read(text, kind)

    def worker(self, name: str) -> Worker:
        """The recorded worker, the latest one where several clusters have the name. Raises NotFound."""
        found = [each for each in read_workers(self.store, self.text("cluster")) if each.hostname == name]
        if not found:
            raise NotFound(f"Unknown worker '{name}'")
        return max(found, key=lambda each: each.last_heartbeat or 0.0)

    def perform(self, command: Command) -> Performed:
        return self.controller.perform(self.actor, command)


Handler = Callable[[FlowerCall], Response | Awaitable[Response]]


def _read(text: str, kind: type[T]) -> T:
    try:
        value: T = KINDS[kind](text)
    except (ValueError, MonitorError):
        raise InvalidInput(f"Invalid argument '{text}' of type '{kind.__name__}'") from None
    return value


def json_answer(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), headers={"Content-Type": JSON})


def message(text: str) -> Response:
    return json_answer({"message": text})


def refused(text: str, status: int = 403) -> Response:
    """What Flower answers where a worker says no, but never as HTML: a worker has chosen the words."""
    return Response(text, status, headers={"Content-Type": TEXT})


def endpoint(handle: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Reads the arguments and calls the handler, in a thread unless it is asynchronous."""

    async def answer(request: Request) -> Response:
        try:
            response = await run_in_threadpool(handle, await _call(request))
            response = response if isinstance(response, Response) else await response
            if request.method == "HEAD":  # a stream is not started
                return Response(status_code=response.status_code, headers=response.headers)
            return _with_tag(request, response)
        except MonitorError as error:
            if request.method == "POST" and request.app.state.settings.read_only:
                return refused(READ_ONLY)  # whatever else is wrong with it
            return _as_flower(error)

    return answer


async def _call(request: Request) -> FlowerCall:
    body = await request.body()
    sent: Iterable[tuple[str, str]] = ()
    if content_type(request.headers) == FORM_TYPE:
        try:
            sent = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            raise InvalidInput(f"The form has more than {MOST_FIELDS} fields; send fewer.") from None
    arguments = {**request.query_params, **dict(sent)}
    target = request.path_params.get("target", "")
    actor, store, settings = within(request)
    return FlowerCall(actor, store, settings, request.app.state.controller, target, arguments, body)


def _as_flower(error: MonitorError) -> Response:
    if isinstance(error, BrokerUnavailable):
        return refused(UNAVAILABLE, 503)
    return refused(error.message, 503 if isinstance(error, Unsupported) else error.status)


def _with_tag(request: Request, response: Response) -> Response:
    """With an ETag, and 304 for who has it: of an answer to GET that is not streamed."""
    body = getattr(response, "body", None)
    if request.method == "POST" or response.status_code != 200 or not isinstance(body, bytes):
        return response
    tag = f'"{sha1(body, usedforsecurity=False).hexdigest()}"'
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return response
