"""The JSON API: one table of operations makes the routes and the OpenAPI document.

Each module is a noun: what it may be asked, what it answers, and what it does. Every key of an answer is always there;
times are epoch seconds; unknown is null.
"""

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route

from monitor.web import names
from monitor.web.api import actions
from monitor.web.api import bulk
from monitor.web.api import export
from monitor.web.api import failures
from monitor.web.api import health
from monitor.web.api import jobs
from monitor.web.api import queues
from monitor.web.api import run
from monitor.web.api import schedule
from monitor.web.api import search
from monitor.web.api import series
from monitor.web.api import task
from monitor.web.api import tasks
from monitor.web.api import views
from monitor.web.api import worker
from monitor.web.api import workers
from monitor.web.api import workflows
from monitor.web.api.openapi import document
from monitor.web.api.operation import Operation
from monitor.web.api.operation import json_response
from monitor.web.api.operation import route

OPERATIONS: tuple[Operation, ...] = (
    *tasks.OPERATIONS,
    *task.OPERATIONS,
    *workers.OPERATIONS,
    *worker.OPERATIONS,
    *queues.OPERATIONS,
    *failures.OPERATIONS,
    *workflows.OPERATIONS,
    *schedule.OPERATIONS,
    *series.OPERATIONS,
    *actions.OPERATIONS,
    *health.OPERATIONS,
    *bulk.OPERATIONS,
    *jobs.OPERATIONS,
    *run.OPERATIONS,
    *export.OPERATIONS,
    *search.OPERATIONS,
    *views.OPERATIONS,
)


def routes() -> list[BaseRoute]:
    """``/healthcheck`` and everything below ``/api/v1``, for app.py's table."""
    names.register()
    return [
        Route("/healthcheck", healthcheck, name="healthcheck"),
        Route("/api/v1/openapi.json", openapi, name="openapi"),
        *[route(operation) for operation in OPERATIONS],
    ]


def healthcheck(_: Request) -> PlainTextResponse:
    """The web process is up; needs no login."""
    return PlainTextResponse("OK")


def openapi(request: Request) -> Response:
    """The document that says all of this."""
    return json_response(document(OPERATIONS, request.scope.get("root_path", "")))
