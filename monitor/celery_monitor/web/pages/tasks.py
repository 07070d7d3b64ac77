"""The list of tasks: filter, facets, rows, and actions on selected or all matching tasks."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from celery_monitor.control.allowed import REFUSED
from celery_monitor.control.bulk import BulkCommand, BulkRetry, BulkRevoke
from celery_monitor.control.commands import MAX_TASKS, Performed
from celery_monitor.control.retry import RetryTasks
from celery_monitor.control.revoke import RevokeTasks
from celery_monitor.control.views import canonical
from celery_monitor.core.filters.parser import Filter, parse
from celery_monitor.core.filters.terms import (
    FIELDS,
    Expression,
    Kind,
    State,
    ValueRange,
    any_of,
    exactly,
    field_of,
    read_interval,
)
from celery_monitor.errors import ConfirmationRequired, FilterError, InvalidInput, MonitorError, NotFound
from celery_monitor.records.page import ListPage
from celery_monitor.records.task import Task, TaskState
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.facets import Facet, read_facets
from celery_monitor.store.tasks.page import find_tasks
from celery_monitor.store.views import read_views
from celery_monitor.web.pages import Context, FormRequest, Page, Result, Rows, View
from celery_monitor.web.security.reach import IN_PART

NEWEST = "-received"
SIZES = (25, 50, 100, 200)
MOST_EXTRA = 60
MOST_CHOICES = 8  # of a facet, plus the selected ones
LINKED = 30  # new ids in the link of a notice
COLUMNS = {
    "name": "Name",
    "args": "Arguments",
    "queue": "Queue",
    "worker": "Worker",
    "received": "Received",
    "wait": "Wait",
    "runtime": "Run time",
    "retries": "Retries",
    "cluster": "Cluster",
    "id": "Id",
    "started": "Started",
    "finished": "Finished",
    "result": "Result",
}
SHOWN = ("name", "args", "queue", "worker", "received", "wait", "runtime", "retries")
SORTABLE = ("name", "received", "wait", "runtime", "retries")
FACETS = {
    "state": "State",
    "exception": "Exception",
    "name": "Name",
    "queue": "Queue",
    "worker": "Worker",
    "retried": "Retried",
}
SPANS: dict[str, str | None] = {"any time": None, "15 min": "-15m", "1 h": "-1h", "24 h": "-24h", "7 d": "-7d"}
RETRYABLE = {state.word for state in TaskState} - {state.word for state in REFUSED}
REVOKABLE = {state.word for state in TaskState if not state.finished}
TABS: dict[str, str | None] = {"All": None, "Unfinished": "unfinished", "Failed": "failed", "Succeeded": "succeeded"}
_ASSIGNED = re.compile(r"(?<![^\s(])([A-Za-z_]\w*)=(\S+)")


@dataclass(frozen=True, slots=True)
class FilterLink:
    """A link that changes the filter; ``on`` if the filter already has it."""

    label: str
    query: str
    on: bool


def row_key(task: Task) -> str:
    """Cluster and id: an id may exist in several clusters."""
    return f"{task.cluster} {task.id}"


def context(view: View) -> Context:
    """An invalid filter lists no tasks and shows its error."""
    text = view.query.get("q", "").strip()
    sort, limit = view.query.get("sort", NEWEST), _limit(view)
    common: Context = {
        "q": text,
        "columns": _columns(view),
        "col": _columns(view) if _columns(view) != SHOWN else None,
        "all_columns": COLUMNS,
        "sort": sort,
        "limit": limit,
        "sortable": SORTABLE,
        "fields": FIELDS.values(),
        "problem": None,
        "preview": None,
        "request_id": str(uuid4()),  # so that a double click is one retry
        "saved_views": read_views(view.store),
        "this_query": canonical(urlencode(view.query.multi_items())),
    }
    try:
        asked = parse(text, view.now)
        return common | _found(view, asked, sort, limit)
    except FilterError as error:
        empty = {
            "filter": Filter(),
            "page": ListPage[Task]([]),
            "tasks": [],
            "facets": {},
            "chips": [],
            "spans": list(_spans(Filter())),
            "tabs": list(_tabs(Filter())),
            "offered": (),
        }
        return common | empty | {"problem": error, "first": True}


def _found(view: View, asked: Filter, sort: str, limit: int) -> Context:
    within = asked.in_cluster(view.cluster)
    cursor = view.query.get("cursor") or None
    facets = read_facets(view.store, within, tuple(FACETS))
    page = find_tasks(view.store, within, sort=sort, limit=limit, cursor=cursor)
    choices = {name: (FACETS[name], _choices(asked, name, values)) for name, values in facets.items()}
    return {
        "filter": asked,
        "page": page,
        "tasks": page.items,
        "extra": _extra(view),
        "first": cursor is None,
        "chips": [FilterLink(str(each), str(asked.without(each)), True) for each in asked.terms],
        "facets": choices,
        "offered": tuple(_offered(view, choices["state"][1])),
        "spans": list(_spans(asked)),
        "tabs": list(_tabs(asked)),
        "suggested": None if page.items else _suggested(str(asked)),
    }


def _suggested(text: str) -> str | None:
    """The filter that was meant by ``language=pl``, which searches for these characters; ``None`` for others."""
    meant = _ASSIGNED.sub(r"kwargs.\1:\2", text)
    return meant if meant != text else None


def _extra(view: View) -> list[Task]:
    """Tasks that the browser still shows, though they left the page."""
    found = []
    for key in view.extra[:MOST_EXTRA]:
        cluster, _, task_id = key.partition(" ")
        try:
            found.append(read_task(view.store, task_id, cluster))
        except NotFound:
            continue
    return found


def _choices(asked: Filter, field: str, facets: list[Facet]) -> list[tuple[FilterLink, Facet]]:
    rest = asked.without_field(field)
    shown = [(each, each.term in asked.terms) for each in facets]
    return [
        (FilterLink(each.value, str(rest if on else rest & each.term), on), each)
        for number, (each, on) in enumerate(shown)
        if number < MOST_CHOICES or on or field == "state"
    ]


def _offered(view: View, states: list[tuple[FilterLink, Facet]]) -> Iterable[str]:
    """The bulk actions that the states of the matching tasks allow."""
    on = [facet.value for choice, facet in states if choice.on] or [facet.value for _, facet in states]
    if view.may("bulk.retry") and set(on) & RETRYABLE:
        yield "retry"
    if view.may("bulk.revoke") and set(on) & REVOKABLE:
        yield "revoke"


def _spans(asked: Filter) -> Iterable[FilterLink]:
    for label, span in SPANS.items():
        term = ValueRange("received", read_interval(Kind.TIME, f">{span}", 1, asked.now)) if span else None
        yield _instead(asked, "received", label, term)


def _tabs(asked: Filter) -> Iterable[FilterLink]:
    for label, word in TABS.items():
        yield _instead(asked, "state", label, State(word) if word else None)


def _instead(asked: Filter, field: str, label: str, term: Expression | None) -> FilterLink:
    """A link to the same filter with ``term``, or nothing, instead of its terms of this field."""
    rest = asked.without_field(field)
    on = [each for each in asked.terms if field_of(each) == field] == ([term] if term else [])
    return FilterLink(label, str(rest & term if term else rest), on)


def _columns(view: View) -> tuple[str, ...]:
    asked = view.query.getlist("col")
    return tuple(name for name in COLUMNS if name in asked) or SHOWN


def _limit(view: View) -> int:
    text = view.query.get("limit", "50")
    if text not in {str(size) for size in SIZES}:
        raise InvalidInput(f"limit {text!r} is not one of {', '.join(map(str, SIZES))}")
    return int(text)


def retry(view: View, request: FormRequest) -> Result:
    """Retries the selected tasks, or previews all matching ones. Uncertain arguments are shown first."""
    if request.form.get("all") == "1":
        return bulk_retry(view, request)
    confirmed, include_retried = (request.form.get(name) == "1" for name in ("confirm", "include_retried"))
    request_id = str(request.form.get("request_id") or uuid4())
    selected = _selected(request)
    done: list[Performed] = []
    try:
        for cluster, ids in selected.items():
            done.append(
                request.controller.perform(
                    request.actor,
                    RetryTasks(
                        cluster=cluster,
                        ids=tuple(ids),
                        include_retried=include_retried,
                        confirm=confirmed,
                        request_id=request_id,
                    ),
                )
            )
    except ConfirmationRequired as error:
        preview = {"detail": error.detail, "message": error.message, "keys": _keys(selected), "request_id": request_id}
        return Result(context={"preview": preview})
    except MonitorError as error:
        return _back(view, f"{_summary(done)} {error.message}".strip(), "bad")
    new = [result.new_id for each in done for result in each.results if result.new_id]
    return _back(view, _summary(done), _tone(done), new)


def revoke(view: View, request: FormRequest) -> Result:
    """Revokes the selected tasks, or previews all matching ones."""
    if request.form.get("all") == "1":
        return bulk_revoke(view, request)
    done: list[Performed] = []
    try:
        for cluster, ids in _selected(request).items():
            done.append(request.controller.perform(request.actor, RevokeTasks(cluster=cluster, ids=tuple(ids))))
    except MonitorError as error:
        return _back(view, f"{_summary(done)} {error.message}".strip(), "bad")
    return _back(view, _summary(done), _tone(done))


def bulk_retry(view: View, request: FormRequest) -> Result:
    """Selects all matching tasks and previews their retry."""
    return _preview(view, request, BulkRetry)


def bulk_revoke(view: View, request: FormRequest) -> Result:
    """Selects all matching tasks and previews their revocation."""
    return _preview(view, request, BulkRevoke)


def _preview(view: View, request: FormRequest, kind: type[BulkCommand]) -> Result:
    query = view.query.get("q", "").strip()
    try:
        job = request.controller.preview(request.actor, kind(cluster=view.cluster, query=query))
    except MonitorError as error:
        return _back(view, error.message, "bad")
    return Result(f"/jobs/{job.id}", {"cluster": view.cluster})


def _selected(request: FormRequest) -> dict[str, list[str]]:
    keys = [str(value) for value in request.form.getlist("task")]
    if not keys:
        raise InvalidInput("No task is selected; select some in the list first.")
    if len(keys) > MAX_TASKS:
        raise InvalidInput(f"{len(keys)} tasks are selected; at most {MAX_TASKS} are allowed at once.")
    selected: dict[str, list[str]] = {}
    for key in keys:
        cluster, separator, task_id = key.partition(" ")
        if not separator:
            raise InvalidInput(f"{key!r} is not a task; write cluster, space, id.")
        selected.setdefault(cluster, []).append(task_id)
    return selected


def _keys(selected: dict[str, list[str]]) -> list[str]:
    return [f"{cluster} {task_id}" for cluster, ids in selected.items() for task_id in ids]


def _summary(done: list[Performed]) -> str:
    messages = [each.message for each in done]
    reasons = {result.message for each in done for result in each.results if result.outcome in {"skipped", "failed"}}
    return " ".join([*(f"{text.rstrip('.')}." for text in messages), *sorted(reasons)[:3]])


def _tone(done: list[Performed]) -> str:
    outcomes = {result.outcome for each in done for result in each.results}
    return "bad" if "failed" in outcomes else "warning" if outcomes - {"done"} else "good"


def _back(view: View, notice: str, tone: str, new: list[str] | None = None) -> Result:
    query: dict[str, Any] = {name: view.query.get(name) for name in ("q", "sort", "limit", "cluster")}
    query["col"] = view.query.getlist("col")
    shown = str(any_of(exactly("id", task_id) for task_id in (new or [])[:LINKED]))
    return Result("/tasks", query, notice, tone, link="/tasks" if shown else None, link_query={"q": shown})


PAGE = Page(
    "/tasks",
    "tasks.html",
    context,
    title="Tasks",
    nav="Tasks",
    regions=("tabs", "facets", "summary", "bulk", "pager"),
    rows={"tasks": Rows("_task_row.html", "tasks", row_key)},
    actions={"retry": retry, "revoke": revoke, "bulk-retry": bulk_retry, "bulk-revoke": bulk_revoke},
    script="tasks.js",
    access=IN_PART,
)
