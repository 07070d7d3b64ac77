"""An operation of the JSON API, from whose declaration its route and its OpenAPI entry follow.

Also what operations of several nouns share: parameters (unknown ones are refused), answers (unknown is null), errors
and the outcome of a command; and the OpenAPI 3.1 document, from the same table of operations as the routes. msgspec
generates its schemas; Starlette's generator only collects YAML from docstrings.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from inspect import getdoc
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, defstruct, structs
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celery_monitor.control.commands import (
    NO_NUL,
    Command,
    Performed,
    Reason,
    TaskResult,
    given_fields,
    is_whole,
    kinds_of,
    summary_of,
)
from celery_monitor.control.perform import Controller, JobRunner
from celery_monitor.errors import (
    ArgumentsUnknown,
    BrokerUnavailable,
    ConfirmationRequired,
    Conflict,
    Forbidden,
    InvalidInput,
    MethodNotAllowed,
    MonitorError,
    NotFound,
    NotTaken,
    StoreUnavailable,
    TakenUnknown,
    TooLarge,
    Unauthenticated,
    Unsupported,
    UnsupportedType,
)
from celery_monitor.records.user import Actor
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.keys import Cursor as ListCursor
from celery_monitor.store.tasks.keys import read_cursor, write_cursor
from celery_monitor.web.problems import ErrorBody
from celery_monitor.web.security.guard import JSON_TYPE, content_type
from celery_monitor.web.security.reach import Access, LimitedRoute, Reach, within

DAY = 86400.0
LONGEST_SPAN = 731 * DAY  # the retention of roll-ups
MOST_ITEMS = 500
MOST_NAMED = 5000
LATEST = 4_102_444_800.0  # the year 2100
Cluster = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Name of a cluster")]
Cursor = Annotated[
    str,
    Meta(pattern=NO_NUL, description="next of the previous page", extra_json_schema={"format": "cursor"}),
]
Limit = Annotated[int, Meta(ge=1, le=MOST_ITEMS, description="Maximum number of items")]
Query = Annotated[
    str, Meta(pattern=NO_NUL, description="Filter; see docs/filters.md", extra_json_schema={"format": "task-filter"})
]
TaskId = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Id of a task, percent-encoded")]
Time = Annotated[float, Meta(ge=0, le=LATEST, description="Seconds since 1970, UTC")]
Name = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Exact name")]


class NoParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """An operation without parameters."""


class InCluster(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cluster, or all."""

    cluster: Cluster | None = None


class NamedListing(InCluster, frozen=True, kw_only=True):
    """Pagination of a list by name."""

    limit: Annotated[int, Meta(ge=1, le=MOST_NAMED, description="Maximum number of items")] = 1000
    cursor: Cursor | None = None


class ReasonBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An optional reason, recorded with the action."""

    reason: Reason | None = None


Row = TypeVar("Row")
Shape = TypeVar("Shape", bound=Struct)


def shape(kind: type[Shape], record: object, **more: object) -> Shape:
    """A record as ``kind``: its fields are read by name."""
    fields: dict[str, Any] = {name: getattr(record, name) for name in kind.__struct_fields__ if name not in more}
    return kind(**fields, **more)


def page_by_name(
    rows: Iterable[Row], given: NamedListing, sort: str, key: Callable[[Row], tuple[str, str]]
) -> tuple[list[Row], str | None]:
    """The rows of the page by cluster and name, and the cursor of the next one. Raises InvalidInput."""
    ordered = sorted(rows, key=key)
    start = 0
    if given.cursor is not None:
        cluster, _, name = str(read_cursor(given.cursor, sort, by_text=True).key).partition("\n")
        start = bisect_right(ordered, (cluster, name), key=key)
    page = ordered[start : start + given.limit]
    if start + given.limit >= len(ordered):
        return page, None
    return page, write_cursor(ListCursor(sort, "next", "\n".join(key(page[-1])), 0))


def shapes(kind: type[Shape], records: Iterable[object]) -> list[Shape]:
    return [shape(kind, record) for record in records]


class AnswerItem(Struct, frozen=True, kw_only=True):
    """The answer of one worker; ``unconfirmed``: none."""

    worker: str
    outcome: Literal["done", "unconfirmed", "skipped", "failed"]
    message: str


class CommandAnswer(Struct, frozen=True, kw_only=True):
    """``unconfirmed``: sent, but not every worker has answered or done it yet."""

    outcome: Literal["done", "unconfirmed"]
    message: str
    answers: list[AnswerItem]


LONGEST_KEY = 200
_path_parameter = re.compile(r"\{(\w+)(?::\w+)?\}")


@dataclass(frozen=True, slots=True)
class Call:
    """The user, and what a handler needs."""

    actor: Actor
    store: Store
    settings: Settings
    controller: Controller
    runner: JobRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """``handle`` gets the call, the parameters and, if there is a ``body``, the body. Its name is the default ``id``.

    ``errors`` come in addition to those of every operation. With ``media`` the handler returns a response of one of
    these types; ``answer`` is then the shape of one line.
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
    access: Access = Access()  # by default for those alone who see everything

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


def route(*operations: Operation) -> Route:
    """Decodes, calls the handler in a thread, encodes. Of all operations on one path, so that it knows its methods."""
    endpoints = {operation.method: _endpoint(operation) for operation in operations}

    async def endpoint(request: Request) -> Response:
        return await endpoints["POST" if request.method == "POST" else "GET"](request)

    access, *others = {operation.access for operation in operations}
    if others:
        raise ValueError(f"operations on {operations[0].path} are for different users")
    return LimitedRoute(operations[0].path, endpoint, methods=[*endpoints], name=operations[0].name, access=access)


def _endpoint(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        given = [read_parameters(operation, request)]
        if operation.body is not None:
            if content_type(request.headers) != JSON_TYPE:
                raise UnsupportedType(f"Send the body as Content-Type: {JSON_TYPE}, at least {{}}.")
            body = _decode(operation.body, await request.body())
            given.append(_with_request_id(body, request.headers.get("idempotency-key")))
        response = await run_in_threadpool(_answer, operation, _call(request), given)
        if request.method == "HEAD":  # a stream is not started
            return Response(status_code=response.status_code, headers=response.headers)
        return response

    return endpoint


def _answer(operation: Operation, call: Call, given: list[msgspec.Struct]) -> Response:
    """Runs in a thread, encoding included: a page of large arguments takes a while to encode."""
    answer = operation.handle(call, *given)
    return answer if isinstance(answer, Response) else json_response(answer)


def json_response(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})


def _call(request: Request) -> Call:
    return Call(*within(request), request.app.state.controller, request.app.state.runner)


def read_parameters(operation: Operation, request: Request) -> msgspec.Struct:
    """Path and query parameters. Raises InvalidInput for an unknown, repeated or invalid one."""
    allowed = set(operation.parameters.__struct_fields__) - set(operation.path_parameters)
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in allowed:
            raise InvalidInput(f"Unknown parameter {name!r}; use: {', '.join(sorted(allowed)) or 'none'}.")
        if times > 1:
            raise InvalidInput(f"The parameter {name!r} is given {times} times; give it once.")
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
        raise InvalidInput(f"The body is not JSON: {error}.") from None


def _with_request_id(body: msgspec.Struct, key: str | None) -> msgspec.Struct:
    """The body with the request id of the header Idempotency-Key, if given. Raises InvalidInput."""
    if key is None or "request_id" not in body.__struct_fields__:
        return body
    request_id = getattr(body, "request_id", None)
    if request_id not in {None, key}:
        raise InvalidInput("request_id and the header Idempotency-Key differ; give one of them.")
    if not 0 < len(key) <= LONGEST_KEY:
        raise InvalidInput(f"Idempotency-Key must have 1 to {LONGEST_KEY} characters.")
    return msgspec.structs.replace(body, request_id=key)


def _invalid(what: str, error: msgspec.ValidationError) -> InvalidInput:
    message, _, place = str(error).partition(" - at `")
    return InvalidInput(f"The {what} is not valid: {message}.", at=place.rstrip("`") or "$")


CHANGE_ERRORS = (NotFound, Conflict, TooLarge, UnsupportedType)
ACTION_ERRORS = (*CHANGE_ERRORS, Unsupported, BrokerUnavailable)
RETRY_ERRORS = (*ACTION_ERRORS, ArgumentsUnknown, ConfirmationRequired, NotTaken, TakenUnknown)
ERRORS: tuple[type[MonitorError], ...] = (
    NotFound, Conflict, ConfirmationRequired, TooLarge, UnsupportedType, Unsupported, BrokerUnavailable,
)  # fmt: skip
_capital = re.compile(r"(?<!^)[A-Z]")
_bodies: dict[str, type[Struct]] = {ReasonBody.__name__: ReasonBody}


def answer_of(performed: Performed) -> CommandAnswer:
    """Raises Conflict if every worker refused; else refusals are among the answers."""
    answers = [AnswerItem(worker=each.id, outcome=each.outcome, message=each.message) for each in performed.results]
    if performed.outcome == "failed":
        raise Conflict(performed.message, answers=[structs.asdict(each) for each in answers])
    return CommandAnswer(outcome=performed.outcome, message=performed.message, answers=answers)


def perform(call: Call, command: Command) -> Performed:
    return call.controller.perform(call.actor, command)


def cluster_named(call: Call, name: str | None) -> str:
    """The named cluster, or the only one. Raises Conflict."""
    if name is not None:
        return name
    if len(call.settings.clusters) != 1:
        raise Conflict(
            f"Several clusters are monitored: add cluster= to the URL, one of {', '.join(call.settings.clusters)}."
        )
    return call.settings.clusters[0]


def operation(
    command: type[Command],
    parameters: type[Struct],
    address: Callable[[Call, Any], dict[str, Any]],
    answer: type[Struct] = CommandAnswer,
    reply: Callable[[Performed], Struct] = answer_of,
    errors: tuple[type[MonitorError], ...] = ERRORS,
    access: Access | None = None,
) -> Operation:
    """The operation that performs a command. ``address`` returns the fields that the path gives, and may raise."""

    def handle(call: Call, given: Struct, body: Struct) -> Struct:
        return reply(perform(call, command(**address(call, given), **_given(command, body))))

    return Operation(
        method="POST",
        path=f"/api/v1/{command.route}",
        handle=handle,
        id=_capital.sub(r"_\g<0>", command.__name__).lower(),
        summary=summary_of(command),
        answer=answer,
        parameters=parameters,
        body=body_of(command),
        errors=errors,
        access=access or (Access(Reach.PART) if command.in_part else Access(Reach.CLUSTERS)),
    )


def body_of(command: type[Command]) -> type[Struct]:
    """The request body: the fields of a command that the path does not give. Commands may share one."""
    if command.body not in _bodies:
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
            (each.name, each.type) if each.required else (each.name, each.type, each.default)
            for each in given_fields(command)
        ]
        text = {"__doc__": (getdoc(command) or "").partition("\n\n")[2]}
        _bodies[command.body] = defstruct(
            command.body, fields, frozen=True, forbid_unknown_fields=True, kw_only=True, namespace=text, module=__name__
        )
    return _bodies[command.body]


def _given(command: type[Command], body: Struct) -> dict[str, Any]:
    kinds = kinds_of(command)
    values = {name: getattr(body, name) for name in body.__struct_fields__}
    return {
        name: int(value) if is_whole(kinds[name]) and value is not None else value for name, value in values.items()
    }


def outcome(performed: Performed) -> Literal["done", "unconfirmed"]:
    if performed.outcome == "failed":
        raise Conflict(performed.message)
    return performed.outcome


def json_text(raw: Raw | UnsetType) -> str | None:
    return None if raw is UNSET else bytes(raw).decode()


def only_result(performed: Performed) -> TaskResult:
    if not performed.results:
        raise Conflict(performed.message)
    return performed.results[0]


def given_or(value: float | UnsetType, default: float) -> float:
    return default if value is UNSET else value


ANY_ERRORS: tuple[type[MonitorError], ...] = (
    InvalidInput,
    Unauthenticated,
    Forbidden,
    MethodNotAllowed,
    MonitorError,
    StoreUnavailable,
)
API_VERSION = "1"  # of /api/v1, not of the program
REFERENCE = "#/components/schemas/{name}"
DESCRIPTION = """Every error has the shape of `ErrorBody`. Times are seconds since 1970 in UTC; unknown is null.

If the dashboard has users, scripts sign in with basic authentication. Send POST requests as `application/json`; from a
page in a browser they also need the header `X-CSRF-Token`."""
Schema = dict[str, Any]


def document(operations: Sequence[Operation], base: str = "") -> Schema:
    """``base`` is the path under which the dashboard is served."""
    paths: dict[str, Schema] = {}
    for operation in operations:
        paths.setdefault(operation.public_path, {})[operation.method.lower()] = _operation(operation)
    described = {
        "openapi": "3.1.0",
        "info": {"title": "celery-monitor", "version": API_VERSION, "description": DESCRIPTION},
        "servers": [{"url": base or "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(_types(operations)),
            "securitySchemes": {"password": {"type": "http", "scheme": "basic"}},
        },
        "security": [{"password": []}, {}],
    }
    plain: Schema = msgspec.json.decode(msgspec.json.encode(described))  # defaults that are tuples are lists in JSON
    return plain


def _types(operations: Iterable[Operation]) -> list[type[msgspec.Struct]]:
    named = {each for operation in operations for each in (operation.answer, operation.body) if each is not None}
    return [ErrorBody, *sorted(named, key=lambda each: each.__name__)]


def _schemas(types: Iterable[type[msgspec.Struct]]) -> Schema:
    _, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    return components


def _operation(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": {"200": _success(operation), **_errors(operation)},
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _parameters(operation: Operation) -> list[Schema]:
    _, components = msgspec.json.schema_components([operation.parameters], ref_template=REFERENCE)
    fields: dict[str, Schema] = components[operation.parameters.__name__]["properties"]
    return [_parameter(name, schema, in_path=name in operation.path_parameters) for name, schema in fields.items()]


def _parameter(name: str, schema: Schema, *, in_path: bool) -> Schema:
    """A query has no null: an optional parameter may be left out."""
    alternatives = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    shown = {**schema, **alternatives[0]}
    shown.pop("anyOf", None)
    if shown.get("default", ...) is None:
        del shown["default"]
    description = shown.pop("description", "")
    place = "path" if in_path else "query"
    return {"name": name, "in": place, "required": in_path, "description": description, "schema": shown}


def _errors(operation: Operation) -> Schema:
    by_status: dict[int, list[str]] = {}
    for error in (*ANY_ERRORS, *operation.errors):
        by_status.setdefault(error.status, []).append(error.code)
    return {
        str(status): _response(f"{HTTPStatus(status).phrase}: {', '.join(codes)}", ErrorBody)
        for status, codes in sorted(by_status.items())
    }


def _success(operation: Operation) -> Schema:
    if not operation.media:
        return _response("Success", operation.answer)
    content = {media: {"schema": {"type": "string"}} for media in operation.media}
    return {"description": f"Lines, each one {operation.answer.__name__}", "content": content}


def _response(description: str, kind: type[msgspec.Struct]) -> Schema:
    return {"description": description, "content": _content(kind)}


def _content(kind: type[msgspec.Struct]) -> Schema:
    return {"application/json": {"schema": {"$ref": REFERENCE.format(name=kind.__name__)}}}
