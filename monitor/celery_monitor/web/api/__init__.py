"""The JSON API: one table of operations makes the routes and the OpenAPI document.

Each module is a noun: what it may be asked, what it answers, and what it does. Every key of an answer is always there;
times are epoch seconds; unknown is null.
"""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from celery_monitor.web.api import (
    actions,
    failures,
    health,
    jobs,
    queues,
    schedule,
    series,
    task,
    tasks,
    views,
    workers,
    workflows,
)
from celery_monitor.web.api.openapi import document
from celery_monitor.web.api.operation import Operation, json_response, route
from celery_monitor.web.wording import register_names

OPERATIONS: tuple[Operation, ...] = (
    *tasks.OPERATIONS,
    *task.OPERATIONS,
    *workers.OPERATIONS,
    *queues.OPERATIONS,
    *failures.OPERATIONS,
    *workflows.OPERATIONS,
    *schedule.OPERATIONS,
    *series.OPERATIONS,
    *actions.OPERATIONS,
    *health.OPERATIONS,
    *jobs.OPERATIONS,
    *views.OPERATIONS,
)


def routes() -> list[BaseRoute]:
    """``/healthcheck`` and everything below ``/api/v1``, for app.py's table."""
    register_names()
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
