"""Run a registered task: a form for its name, arguments and queue."""

from urllib.parse import quote
from uuid import uuid4

from celery_monitor.control.inspect import names_by_worker
from celery_monitor.control.run import RunTask
from celery_monitor.errors import MonitorError
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.queues import read_queues
from celery_monitor.store.terms import find_terms
from celery_monitor.store.workers import read_workers
from celery_monitor.web.pages import TONES, Context, FormRequest, Page, Result, View, fields, seconds
from celery_monitor.web.security.reach import IN_PART

MOST_CHOICES = 500  # queues in the form
FIELDS = ("name", "args", "kwargs", "queue", "countdown")


def context(view: View) -> Context:
    clusters = view.settings.clusters
    cluster = view.cluster if view.cluster in clusters else clusters[0] if len(clusters) == 1 else None
    empty = {"name": view.query.get("name", ""), "args": "[]", "kwargs": "{}", "countdown": ""}
    return {
        "clusters": clusters,
        "of_cluster": cluster,
        "registered": lambda: _registered(view, cluster),  # called by the page, not by live updates
        "queues": sorted({queue.name for queue in read_queues(view.store, cluster)})[:MOST_CHOICES] if cluster else [],
        "editor": {**empty, "queue": view.query.get("queue", "")},
        "editor_error": None,
        "editor_field": None,
        "request_id": str(uuid4()),
        "may_run": view.may(RunTask.action),
    }


def _registered(view: View, cluster: str | None) -> list[str] | None:
    """The task names that workers have registered; ``None`` if no worker answers."""
    if cluster is None:
        return None
    living = [
        worker.hostname for worker in read_workers(view.store, cluster) if worker.status is not WorkerStatus.OFFLINE
    ]
    try:
        names = names_by_worker(view.settings, cluster, living) if living else {}
    except MonitorError:
        return None  # the page says that no worker answered; sending gives the reason
    found = set().union(*names.values()) if names else set()
    if view.store.limits.scope.is_partial:
        found &= set(find_terms(view.store, "name", "", MOST_CHOICES))
    return sorted(found) if names else None


def send(view: View, request: FormRequest) -> Result:
    """Sends the task, or shows the form again with the error."""
    form = fields(request.form)
    try:
        command = RunTask(
            cluster=form.get("of_cluster", ""),
            name=form.get("name", "").strip(),
            queue=form.get("queue", ""),
            args=form.get("args", ""),
            kwargs=form.get("kwargs", ""),
            countdown=seconds(form, "countdown"),
            request_id=form.get("request_id") or None,
        )
        performed = request.controller.perform(request.actor, command)
    except MonitorError as error:
        editor = {name: form.get(name, "") for name in FIELDS}
        problem = {"editor_error": error.message, "editor_field": error.detail.get("field")}
        return Result(context={"editor": editor, "of_cluster": form.get("of_cluster"), **problem}, status=error.status)
    return Result(
        "/run",
        {"cluster": view.cluster},
        performed.message,
        TONES[performed.outcome],
        link=f"/tasks/{quote(performed.results[0].id, safe='')}",
        link_query={"cluster": view.cluster},
    )


PAGE = Page("/run", "run.html", context, title="Run a task", actions={"send": send}, script="tasks.js", access=IN_PART)
