"""Errors as responses, and as a note in place of the part of a page that failed.

Errors have one JSON shape under ``/api/v1``, are text elsewhere under ``/api``, and a page anywhere else.

A region that cannot be read or rendered becomes a note: what a record holds was written by many (workers, publishers,
older versions of this program), and one value that a chart cannot draw must not hide the list beside it. A MonitorError
is about the whole page, and passes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import Any

import msgspec
from jinja2 import StrictUndefined, TemplateRuntimeError
from jinja2.runtime import Context as TemplateContext
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from celery_monitor.errors import (
    INTERNAL_ERROR,
    Forbidden,
    InvalidInput,
    MethodNotAllowed,
    MonitorError,
    NotFound,
    TooManyRequests,
)

log = logging.getLogger(__name__)

MOST_LOGGED = 200
_NOTE = Markup(
    '<section id="region-{name}" class="panel empty failed-part" role="status">'
    "<h2>This part cannot be shown: {title}</h2>"
    "<p>{error} The other parts of the page are not affected. The log of the web process has the details.</p></section>"
)

Block = Callable[[TemplateContext], Iterator[str]]


class PartFailed(TemplateRuntimeError):
    """A template used a value that could not be read; already logged."""


class FailureLog:
    """Logs each kind of failure once, as a page is rendered every second."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, str]] = set()
        self._lock = Lock()

    def note(self, part: str, error: Exception) -> None:
        kind = (part, type(error).__name__)
        with self._lock:
            if kind in self._logged or len(self._logged) >= MOST_LOGGED:
                return
            self._logged.add(kind)
        log.error("cannot show %s; this is logged once", part, exc_info=error)


_failures = FailureLog()


def read_part(read: Callable[[], dict[str, Any]], *names: str) -> dict[str, Any]:
    """The part of a page's context with these names. Where it cannot be read, only the regions that use it fail."""
    try:
        return read()
    except MonitorError:
        raise
    except Exception as error:  # noqa: BLE001 - logged; the regions show it
        _failures.note(", ".join(names), error)
        hint = f"{type(error).__name__}."
        return {name: StrictUndefined(hint=hint, name=name, exc=PartFailed) for name in names}


def guarded(page: str, name: str, block: Block) -> Block:
    """The block of a region; it renders a note if it fails."""

    def render(context: TemplateContext) -> Iterator[str]:
        try:
            yield "".join(block(context))
        except MonitorError:
            raise
        except PartFailed as error:
            yield _note(name, str(error))
        except Exception as error:  # noqa: BLE001 - logged; the note shows it
            _failures.note(f"{name} of {page}", error)
            yield _note(name, f"{type(error).__name__}.")

    return render


def _note(name: str, error: str) -> str:
    return str(_NOTE.format(name=name, title=name.replace("_", " "), error=error))


log = logging.getLogger(__name__)

ErrorPage = Callable[[Request, MonitorError], Response]
Handler = Callable[[Request, Any], Response]
API_PATH = "/api/v1/"
FLOWER_PATH = "/api/"
CHALLENGE = 'Basic realm="celery-monitor", charset="UTF-8"'


def local_path(scope: Scope, prefix: str = "") -> str:
    """The path below the mount point and the URL prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/")).removeprefix(prefix.rstrip("/"))


def is_flower(scope: Scope, prefix: str = "") -> bool:
    """Whether the path belongs to Flower's API."""
    return local_path(scope, prefix).startswith(FLOWER_PATH) and not is_api(scope, prefix)


def is_api(scope: Scope, prefix: str = "") -> bool:
    """Whether the path belongs to the JSON API."""
    return f"{local_path(scope, prefix)}/".startswith(API_PATH)


class Problem(msgspec.Struct, frozen=True):
    """What went wrong, and what to do."""

    code: str
    message: str
    detail: dict[str, Any]


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error response."""

    error: Problem


def error_json(error: MonitorError, headers: Mapping[str, str] | None = None) -> Response:
    body = ErrorBody(Problem(error.code, error.message, error.detail))
    return Response(msgspec.json.encode(body), error.status, _headers(error, headers), "application/json")


def error_text(error: MonitorError, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{error.message}\n", error.status, _headers(error, headers))


def _headers(error: MonitorError, headers: Mapping[str, str] | None) -> dict[str, str]:
    challenge = {"WWW-Authenticate": CHALLENGE} if error.status == 401 else {}
    return {**challenge, "Cache-Control": "no-store", **retry_header(error), **(headers or {})}


def retry_header(error: MonitorError) -> dict[str, str]:
    """When to try again, where the error knows it."""
    return {"Retry-After": str(error.retry_after)} if isinstance(error, TooManyRequests) else {}


def _show_as_text(_: Request, error: MonitorError) -> Response:
    return error_text(error)


def handlers(page: ErrorPage = _show_as_text) -> dict[Any, Handler]:
    """Starlette's ``exception_handlers``: JSON below ``/api/v1``, text below ``/api``, else a ``page``."""

    def show(request: Request, error: MonitorError, headers: Mapping[str, str] | None = None) -> Response:
        if is_api(request.scope, _prefix(request)):
            return error_json(error, headers)
        response = error_text(error) if is_flower(request.scope, _prefix(request)) else page(request, error)
        response.headers.update(_headers(error, headers))
        return response

    def on_http(request: Request, error: HTTPException) -> Response:
        return show(request, _from_http(error, request), error.headers)

    def on_unexpected(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return show(request, MonitorError(INTERNAL_ERROR))

    return {MonitorError: show, HTTPException: on_http, Exception: on_unexpected}


def _prefix(connection: HTTPConnection) -> str:
    settings = getattr(connection.app.state, "settings", None)
    return settings.url_prefix if settings else ""


def _from_http(error: HTTPException, request: Request) -> MonitorError:
    if error.status_code == 404:
        return NotFound(f"There is nothing at {request.url.path}.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"{request.method} is not allowed here; allowed: {allowed}.", allowed=allowed)
    if error.status_code == 403:
        return Forbidden(error.detail)
    other = InvalidInput(error.detail) if error.status_code < 500 else MonitorError(error.detail)
    other.status = error.status_code
    return other
