"""The JSON API: routes and the OpenAPI document come from one table of operations.

Each module is a noun with its parameters, answers and operations. An answer always has every key; times are epoch
seconds; unknown is null.
"""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from celery_monitor.web.api import (
    actions,
    alerts,
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
    *alerts.OPERATIONS,
    *actions.OPERATIONS,
    *health.OPERATIONS,
    *jobs.OPERATIONS,
    *views.OPERATIONS,
)


def routes() -> list[BaseRoute]:
    """``/healthcheck`` and everything below ``/api/v1``."""
    register_names()
    paths = dict.fromkeys(operation.path for operation in OPERATIONS)
    return [
        Route("/healthcheck", healthcheck, name="healthcheck"),
        Route("/api/v1/openapi.json", openapi, name="openapi"),
        *[route(*(each for each in OPERATIONS if each.path == path)) for path in paths],
    ]


def healthcheck(_: Request) -> PlainTextResponse:
    """The web process is up. Needs no authentication."""
    return PlainTextResponse("OK")


def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return json_response(document(OPERATIONS, request.scope.get("root_path", "")))
