"""The OpenAPI 3.1 document, generated from the same table of operations as the routes.

msgspec generates the schemas; Starlette's generator only collects YAML from docstrings.
"""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from celery_monitor.errors import (
    Forbidden,
    InvalidInput,
    MethodNotAllowed,
    MonitorError,
    StoreUnavailable,
    Unauthenticated,
)
from celery_monitor.web.api.operation import Operation
from celery_monitor.web.problems import ErrorBody

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
