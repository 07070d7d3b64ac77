"""One operation of the JSON API: the same facts make its route and its place in the OpenAPI document."""

import re
from collections import Counter
from collections.abc import Awaitable
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitor.access import Actor
from monitor.control.jobs import Runner
from monitor.control.perform import Controller
from monitor.errors import InvalidInput
from monitor.errors import MonitorError
from monitor.errors import UnsupportedType
from monitor.settings import Settings
from monitor.store.engine import Store
from monitor.web.api.requests import NoParameters
from monitor.web.security import JSON_TYPE
from monitor.web.security import actor
from monitor.web.security import content_type

LONGEST_KEY = 200
_path_parameter = re.compile(r"\{(\w+)(?::\w+)?\}")


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks, and what an answer is made from."""

    actor: Actor
    store: Store
    settings: Settings
    controller: Controller
    runner: Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """``handle`` takes the call, the parameters and, with a ``body``, the body. Its name is the operation's id, unless
    ``id`` is given.

    ``errors`` are those beyond what any operation may answer. With ``media`` the handler gives a response itself, of
    one of these types; ``answer`` is then the shape of one line.
    """

    method: Literal["GET", "POST"]
    path: str
    handle: Callable[..., msgspec.Struct | Response]
    summary: str
    answer: type[msgspec.Struct]
    parameters: type[msgspec.Struct] = NoParameters
    body: type[msgspec.Struct] | None = None
    errors: tuple[type[MonitorError], ...] = ()
    media: tuple[str, ...] = ()
    id: str = ""

    @property
    def name(self) -> str:
        return self.id or self.handle.__name__

    @property
    def path_parameters(self) -> tuple[str, ...]:
        return tuple(_path_parameter.findall(self.path))

    @property
    def public_path(self) -> str:
        """The path without Starlette's converters."""
        return _path_parameter.sub(r"{\1}", self.path)


def route(operation: Operation) -> Route:
    """A route that decodes, calls the handler in a thread, and encodes."""
    return Route(operation.path, _endpoint(operation), methods=[operation.method], name=operation.name)


def _endpoint(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        given = [read_parameters(operation, request)]
        if operation.body is not None:
            if content_type(request.headers) != JSON_TYPE:
                raise UnsupportedType(f"Send the body as Content-Type: {JSON_TYPE}, at least {{}}.")
            body = _decode(operation.body, await request.body())
            given.append(_with_request_id(body, request.headers.get("idempotency-key")))
        response = await run_in_threadpool(_answer, operation, _call(request), given)
        if request.method == "HEAD":  # what is streamed is not even begun
            return Response(status_code=response.status_code, headers=response.headers)
        return response

    return endpoint


def _answer(operation: Operation, call: Call, given: list[msgspec.Struct]) -> Response:
    """In a thread from the first read to the last byte: a page of large arguments takes a while to encode."""
    answer = operation.handle(call, *given)
    return answer if isinstance(answer, Response) else json_response(answer)


def json_response(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})


def _call(request: Request) -> Call:
    state = request.app.state
    return Call(actor(request), state.store, state.settings, state.controller, state.runner)


def read_parameters(operation: Operation, request: Request) -> msgspec.Struct:
    """Path and query together. Raises InvalidInput for an unknown, a repeated or a wrong one, never ignores it."""
    allowed = set(operation.parameters.__struct_fields__) - set(operation.path_parameters)
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in allowed:
            raise InvalidInput(f"Unknown parameter {name!r}; known are: {', '.join(sorted(allowed)) or 'none'}.")
        if times > 1:
            raise InvalidInput(f"The parameter {name!r} stands {times} times; give it once.")
    given = {**request.query_params, **request.path_params}
    try:
        return msgspec.convert(given, type=operation.parameters, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid("parameter", error) from None


def _decode(kind: type[msgspec.Struct], body: bytes) -> msgspec.Struct:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid("body", error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"The body is no JSON: {error}.") from None


def _with_request_id(body: msgspec.Struct, key: str | None) -> msgspec.Struct:
    """The body, its request id taken from the header Idempotency-Key where that is given. Raises InvalidInput."""
    if key is None or "request_id" not in body.__struct_fields__:
        return body
    said = getattr(body, "request_id", None)
    if said not in {None, key}:
        raise InvalidInput("request_id and the header Idempotency-Key differ; give one of them.")
    if not 0 < len(key) <= LONGEST_KEY:
        raise InvalidInput(f"Idempotency-Key must have 1 to {LONGEST_KEY} characters.")
    return msgspec.structs.replace(body, request_id=key)


def _invalid(what: str, error: msgspec.ValidationError) -> InvalidInput:
    message, _, place = str(error).partition(" - at `")
    return InvalidInput(f"The {what} is wrong: {message}.", at=place.rstrip("`") or "$")
