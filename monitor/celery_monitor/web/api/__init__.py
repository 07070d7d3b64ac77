"""The JSON API: routes and the OpenAPI document come from one table of operations.

Each module is a noun with its parameters, answers and operations. An answer always has every key; times are epoch
seconds; unknown is null.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

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
from celery_monitor.web.api.operation import Operation, document, json_response, route
from celery_monitor.web.security.reach import IN_PART, LimitedRoute
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
    """Everything below ``/api/v1``."""
    register_names()
    paths = dict.fromkeys(operation.path for operation in OPERATIONS)
    return [
        LimitedRoute("/api/v1/openapi.json", openapi, name="openapi", access=IN_PART),
        *[route(*(each for each in OPERATIONS if each.path == path)) for path in paths],
    ]


def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return json_response(document(OPERATIONS, request.scope.get("root_path", "")))
