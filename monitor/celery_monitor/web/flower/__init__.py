"""Flower's HTTP API at Flower's paths, read from the record: what was made for Flower works here. docs/flower.md"""

from starlette.routing import BaseRoute

from celery_monitor.web.flower import control, send, tasks
from celery_monitor.web.flower.call import Handler, endpoint
from celery_monitor.web.security.reach import IN_PART, Access, LimitedRoute, Reach

GET: dict[str, Handler] = {
    "/api/workers": control.list_workers,
    "/api/tasks": tasks.list_tasks,
    "/api/task/types": tasks.list_types,
    "/api/task/info/{target:path}": tasks.task_info,
    "/api/task/result/{target:path}": send.task_result,
    "/api/queues/length": tasks.queue_lengths,
}
POST: dict[str, Handler] = {
    "/api/worker/shutdown/{target:path}": control.shut_down,
    "/api/worker/pool/restart/{target:path}": control.restart_pool,
    "/api/worker/pool/grow/{target:path}": control.grow_pool,
    "/api/worker/pool/shrink/{target:path}": control.shrink_pool,
    "/api/worker/pool/autoscale/{target:path}": control.autoscale,
    "/api/worker/queue/add-consumer/{target:path}": control.add_consumer,
    "/api/worker/queue/cancel-consumer/{target:path}": control.cancel_consumer,
    "/api/task/revoke/{target:path}": control.revoke,
    "/api/task/timeout/{target:path}": control.set_time_limits,
    "/api/task/rate-limit/{target:path}": control.set_rate_limit,
    "/api/task/abort/{target:path}": send.abort,
    "/api/task/apply/{target:path}": send.apply,
    "/api/task/async-apply/{target:path}": send.async_apply,
    "/api/task/send-task/{target:path}": send.send_task,
}


# The others ask workers or the result backend, or act: commands check the scope once more.
IN_PARTS = {"/api/tasks", "/api/task/types", "/api/task/info/{target:path}", "/api/queues/length"}
WHOLE = {"/api/workers", "/api/task/result/{target:path}"}


def routes() -> list[BaseRoute]:
    """Every route of Flower's API."""
    return [
        LimitedRoute(path, endpoint(handle), methods=[method], name=f"flower:{handle.__name__}", access=_access(path))
        for method, handlers in (("GET", GET), ("POST", POST))
        for path, handle in handlers.items()
    ]


def _access(path: str) -> Access:
    if path in IN_PARTS:
        return IN_PART
    return Access() if path in WHOLE else Access(Reach.CLUSTERS)
