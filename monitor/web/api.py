"""The JSON API: one table of operations makes the routes and the OpenAPI document."""

import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Literal

from msgspec import UNSET
from msgspec import Raw
from msgspec import UnsetType
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route

from monitor import filters
from monitor import workflow
from monitor.control.commands import ChangeFailure
from monitor.control.commands import FindMessage
from monitor.control.commands import MuteFailure
from monitor.control.commands import Performed
from monitor.control.commands import ReopenFailure
from monitor.control.commands import ResolveFailure
from monitor.control.commands import RetryTask
from monitor.control.commands import RevokeTask
from monitor.control.commands import RunScheduled
from monitor.control.commands import TaskResult
from monitor.control.known import look
from monitor.errors import ArgumentsUnknown
from monitor.errors import BrokerUnavailable
from monitor.errors import ConfirmationRequired
from monitor.errors import Conflict
from monitor.errors import InvalidInput
from monitor.errors import NotFound
from monitor.errors import NotTaken
from monitor.errors import TakenUnknown
from monitor.errors import TooLarge
from monitor.errors import Unsupported
from monitor.errors import UnsupportedType
from monitor.records import FailureState
from monitor.records import Pause
from monitor.records import Percentiles
from monitor.records import Queue
from monitor.redact import Redactor
from monitor.store import breakdowns
from monitor.store import queries
from monitor.store.failures import UNRESOLVED
from monitor.store.timetable import read_schedule
from monitor.web import api_bulk
from monitor.web import api_control
from monitor.web import api_export
from monitor.web import api_requests as ask
from monitor.web import api_search
from monitor.web import api_shapes as tell
from monitor.web import api_views
from monitor.web import names
from monitor.web.api_operation import Call
from monitor.web.api_operation import Operation
from monitor.web.api_operation import json_response
from monitor.web.api_operation import route
from monitor.web.openapi import document
from monitor.web.receivers import known_until
from monitor.web.receivers import read_health
from monitor.web.receivers import read_standbys

HOUR = 3600.0
DAY = 24 * HOUR
WAIT_SECONDS = 300.0
LONGEST_SPAN = 731 * DAY  # as long as rollups are kept
GAPS_SHOWN = 7 * DAY
FAILURE_STATES: dict[str, tuple[FailureState, ...] | None] = {
    **{state.value: (state,) for state in FailureState},
    "unresolved": UNRESOLVED,
    "all": None,
}
ACTION_ERRORS = (NotFound, Conflict, TooLarge, UnsupportedType, Unsupported, BrokerUnavailable)
RETRY_ERRORS = (*ACTION_ERRORS, ArgumentsUnknown, ConfirmationRequired, NotTaken, TakenUnknown)


def list_tasks(call: Call, given: ask.TaskListing) -> tell.TaskPage:
    found = filters.parse(given.q, time.time())
    return tell.task_page(queries.tasks(call.store, found, sort=given.sort, limit=given.limit, cursor=given.cursor))


def get_task(call: Call, given: ask.TaskAddress) -> tell.TaskDetail:
    task = queries.task(call.store, given.id, given.cluster)
    found = look(call.store, call.settings, task)
    return tell.task_detail(task, queries.lineage(call.store, task), found, Redactor(call.settings.redact))


def retry_task(call: Call, given: ask.TaskAddress, body: ask.RetryBody) -> tell.Retried:
    task = queries.task(call.store, given.id, given.cluster)
    command = RetryTask(
        cluster=task.cluster,
        id=task.id,
        args=_text(body.args),
        kwargs=_text(body.kwargs),
        queue=body.queue,
        countdown=body.countdown,
        same_id=body.same_id,
        confirm=body.confirm,
        reason=body.reason,
        request_id=body.request_id,
    )
    performed = call.controller.perform(call.actor, command)
    result = _only_result(performed)
    if result.new_id is None:
        raise Conflict(result.message)
    return tell.Retried(
        id=result.new_id, fidelity=result.fidelity, outcome=_outcome(performed), message=performed.message
    )


def find_message(call: Call, given: ask.TaskAddress, body: ask.FindBody) -> tell.FoundMessage:
    task = queries.task(call.store, given.id, given.cluster)
    performed = call.controller.perform(call.actor, FindMessage(cluster=task.cluster, id=task.id, reason=body.reason))
    return tell.FoundMessage(message=performed.message)


def revoke_task(call: Call, given: ask.TaskAddress, body: ask.RevokeBody) -> tell.Revoked:
    task = queries.task(call.store, given.id, given.cluster)
    command = RevokeTask(
        cluster=task.cluster, id=task.id, terminate=body.terminate, signal=body.signal, reason=body.reason
    )
    performed = call.controller.perform(call.actor, command)
    return tell.Revoked(outcome=_outcome(performed), message=performed.message)


def list_workers(call: Call, given: ask.InCluster) -> tell.WorkerList:
    return tell.WorkerList(tell.shapes(tell.WorkerItem, queries.workers(call.store, given.cluster)))


def list_queues(call: Call, given: ask.InCluster) -> tell.QueueList:
    pauses = queries.pauses(call.store, given.cluster)
    waits = breakdowns.waits(call.store, since=time.time() - WAIT_SECONDS, cluster=given.cluster)
    found = queries.queues(call.store, given.cluster)
    return tell.QueueList([_queue_item(queue, pauses, waits.get((queue.cluster, queue.name))) for queue in found])


def _queue_item(queue: Queue, pauses: Mapping[tuple[str, str], Pause], wait: Percentiles | None) -> tell.QueueItem:
    pause = pauses.get((queue.cluster, queue.name))
    paused = None if pause is None else tell.shape(tell.PauseItem, pause)
    return tell.shape(tell.QueueItem, queue, wait=wait, paused=paused)


def list_failures(call: Call, given: ask.FailureListing) -> tell.FailureList:
    since = _given(given.since, time.time() - DAY)
    found = queries.failure_summaries(
        call.store,
        since=since,
        now=time.time(),
        cluster=given.cluster,
        states=FAILURE_STATES[given.state],
        limit=given.limit,
    )
    return tell.FailureList([tell.failure_item(summary) for summary in found])


def get_failure(call: Call, given: ask.FailureAddress) -> tell.FailureDetail:
    now = time.time()
    since = _given(given.since, now - DAY)
    if not 0 < now - since <= LONGEST_SPAN:
        raise InvalidInput("since must be in the past, at most 731 days ago.", since=since)
    summary = queries.failure_summary(call.store, given.id, since=since, now=now)
    trend = queries.failure_trend(call.store, given.id, since=since, until=now)
    latest = queries.latest_of_group(call.store, given.id, 1)
    sample = queries.task(call.store, latest[0].id, latest[0].cluster) if latest else None
    return tell.failure_detail(summary, trend, sample)


def resolve_failure(call: Call, given: ask.FailureAddress, body: ask.FailureBody) -> tell.FailureChanged:
    return _change_failure(call, ResolveFailure, given, body)


def mute_failure(call: Call, given: ask.FailureAddress, body: ask.FailureBody) -> tell.FailureChanged:
    return _change_failure(call, MuteFailure, given, body)


def reopen_failure(call: Call, given: ask.FailureAddress, body: ask.FailureBody) -> tell.FailureChanged:
    return _change_failure(call, ReopenFailure, given, body)


def _change_failure(
    call: Call, command: Callable[..., ChangeFailure], given: ask.FailureAddress, body: ask.FailureBody
) -> tell.FailureChanged:
    group = queries.failure_group(call.store, given.id)
    change = command(cluster=group.cluster, group=group.id, reason=body.reason)
    performed = call.controller.perform(call.actor, change)
    return tell.FailureChanged(id=group.id, state=change.state, message=performed.message)


def list_workflows(call: Call, given: ask.WorkflowListing) -> tell.WorkflowPage:
    return tell.workflow_page(
        queries.workflows(call.store, cluster=given.cluster, limit=given.limit, cursor=given.cursor)
    )


def get_workflow(call: Call, given: ask.WorkflowAddress) -> tell.WorkflowDetail:
    cluster, steps, complete = queries.steps(call.store, given.root_id, given.cluster)
    return tell.workflow_detail(workflow.build(steps), cluster, complete=complete)


def list_schedule(call: Call, given: ask.InCluster) -> tell.ScheduleList:
    now = time.time()
    watched = [name for name in call.settings.clusters if given.cluster in (None, name)]
    found = read_schedule(call.store, given.cluster, now, known_until(call.store, now))
    unheard = [name for name in watched if queries.schedule_heard_at(call.store, name) is None]
    beats = [queries.beat_health(call.store, name) for name in watched]
    return tell.ScheduleList([tell.schedule_item(each) for each in found], unheard, beats)


def run_scheduled(call: Call, _: ask.NoParameters, body: ask.RunScheduledBody) -> tell.ScheduledSent:
    named = [each.cluster for each in queries.schedule(call.store, body.cluster) if each.name == body.name]
    if len(named) != 1:
        raise NotFound(f"{len(named)} clusters have an entry {body.name!r}; name one that exists, and its cluster.")
    command = RunScheduled(cluster=named[0], entry=body.name, confirm=body.confirm, reason=body.reason)
    performed = call.controller.perform(call.actor, command)
    return tell.ScheduledSent(id=_only_result(performed).id, message=performed.message)


def get_series(call: Call, given: ask.SeriesSpan) -> tell.SeriesItem:
    until = _given(given.until, time.time())
    since = _given(given.since, until - HOUR)
    if not 0 < until - since <= LONGEST_SPAN:
        raise InvalidInput("since must be before until, and at most 731 days before it.", since=since, until=until)
    series = queries.series(
        call.store,
        since=since,
        until=until,
        cluster=given.cluster,
        name=given.name,
        queue=given.queue,
        worker=given.worker,
    )
    return tell.series_item(series)


def list_actions(call: Call, given: ask.ActionListing) -> tell.ActionPage:
    page = queries.actions(
        call.store,
        limit=given.limit,
        cursor=given.cursor,
        actor=given.actor,
        action=given.action,
        outcome=None if given.outcome is UNSET else given.outcome,
        target=given.target,
        cluster=given.cluster,
    )
    return tell.ActionPage(items=tell.shapes(tell.ActionItem, page.items), next=page.next)


def get_health(call: Call, _: ask.NoParameters) -> tell.HealthList:
    """Every cluster that we watch or have watched; ``null`` where its receiver has not spoken yet."""
    now = time.time()
    since = now - GAPS_SHOWN
    spoken = {health.cluster: health for health in read_health(call.store, now)}
    waiting = read_standbys(call.store, now)
    names = sorted({*spoken, *call.settings.clusters})
    return tell.HealthList(
        [
            tell.health_item(spoken[name], queries.gaps(call.store, since, name), waiting.get(name, ()))
            if name in spoken
            else tell.unknown_health(name)
            for name in names
        ]
    )


def list_clusters(call: Call, _: ask.NoParameters) -> tell.ClusterList:
    names = sorted({*queries.clusters(call.store), *call.settings.clusters})
    return tell.ClusterList([tell.ClusterItem(name) for name in names])


def _given(value: float | UnsetType, default: float) -> float:
    return default if value is UNSET else value


def _text(raw: Raw | UnsetType) -> str | None:
    return None if raw is UNSET else bytes(raw).decode()


def _outcome(performed: Performed) -> Literal["done", "unconfirmed"]:
    if performed.outcome == "failed":
        raise Conflict(performed.message)
    return performed.outcome


def _only_result(performed: Performed) -> TaskResult:
    if not performed.results:
        raise Conflict(performed.message)
    return performed.results[0]


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/tasks",
        handle=list_tasks,
        summary="Tasks that match a filter, newest first",
        answer=tell.TaskPage,
        parameters=ask.TaskListing,
    ),
    Operation(
        method="POST",
        path="/api/v1/tasks/{id:name}/retry",
        handle=retry_task,
        summary="Send a task again under a new id",
        answer=tell.Retried,
        parameters=ask.TaskAddress,
        body=ask.RetryBody,
        errors=RETRY_ERRORS,
    ),
    Operation(
        method="POST",
        path="/api/v1/tasks/{id:name}/find-message",
        handle=find_message,
        summary="Look for a task's message in its queue on RabbitMQ, which takes messages out and puts them back",
        answer=tell.FoundMessage,
        parameters=ask.TaskAddress,
        body=ask.FindBody,
        errors=ACTION_ERRORS,
    ),
    Operation(
        method="POST",
        path="/api/v1/tasks/{id:name}/revoke",
        handle=revoke_task,
        summary="Tell the workers not to run a task, or to end it",
        answer=tell.Revoked,
        parameters=ask.TaskAddress,
        body=ask.RevokeBody,
        errors=ACTION_ERRORS,
    ),
    Operation(
        method="GET",
        path="/api/v1/tasks/{id:name}",
        handle=get_task,
        summary="All that is known of one task",
        answer=tell.TaskDetail,
        parameters=ask.TaskAddress,
        errors=(NotFound, Conflict),
    ),
    Operation(
        method="GET",
        path="/api/v1/workers",
        handle=list_workers,
        summary="Workers",
        answer=tell.WorkerList,
        parameters=ask.InCluster,
    ),
    Operation(
        method="GET",
        path="/api/v1/queues",
        handle=list_queues,
        summary="Queues as last measured",
        answer=tell.QueueList,
        parameters=ask.InCluster,
    ),
    Operation(
        method="GET",
        path="/api/v1/failures",
        handle=list_failures,
        summary="Failures by kind, of the last day unless since says otherwise",
        answer=tell.FailureList,
        parameters=ask.FailureListing,
    ),
    *[
        Operation(
            method="POST",
            path=f"/api/v1/failures/{{id}}/{verb}",
            handle=handle,
            summary=summary,
            answer=tell.FailureChanged,
            parameters=ask.FailureAddress,
            body=ask.FailureBody,
            errors=(NotFound, Conflict, TooLarge, UnsupportedType),
        )
        for verb, handle, summary in (
            ("resolve", resolve_failure, "Call a kind of failure mended; its next failure is a regression"),
            ("mute", mute_failure, "Leave a kind of failure out of the open ones"),
            ("reopen", reopen_failure, "Take a resolved or muted kind of failure back"),
        )
    ],
    Operation(
        method="GET",
        path="/api/v1/failures/{id}",
        handle=get_failure,
        summary="One kind of failure, with the latest task that failed so",
        answer=tell.FailureDetail,
        parameters=ask.FailureAddress,
        errors=(NotFound,),
    ),
    Operation(
        method="GET",
        path="/api/v1/workflows",
        handle=list_workflows,
        summary="Workflows of more than one task, those first that were heard of last",
        answer=tell.WorkflowPage,
        parameters=ask.WorkflowListing,
    ),
    Operation(
        method="GET",
        path="/api/v1/workflows/{root_id:path}",
        handle=get_workflow,
        summary="One workflow: its tasks, what it waits for, and its critical path",
        answer=tell.WorkflowDetail,
        parameters=ask.WorkflowAddress,
        errors=(NotFound,),
    ),
    Operation(
        method="GET",
        path="/api/v1/schedule",
        handle=list_schedule,
        summary="What beat sends: last, next, missed and late runs of the last day",
        answer=tell.ScheduleList,
        parameters=ask.InCluster,
    ),
    Operation(
        method="POST",
        path="/api/v1/schedule/run",
        handle=run_scheduled,
        summary="Send what an entry of the schedule sends, now",
        answer=tell.ScheduledSent,
        body=ask.RunScheduledBody,
        errors=RETRY_ERRORS,
    ),
    Operation(
        method="GET",
        path="/api/v1/series",
        handle=get_series,
        summary="Throughput, wait and run time over time, of the last hour unless since says otherwise",
        answer=tell.SeriesItem,
        parameters=ask.SeriesSpan,
    ),
    Operation(
        method="GET",
        path="/api/v1/actions",
        handle=list_actions,
        summary="Who did what, newest first",
        answer=tell.ActionPage,
        parameters=ask.ActionListing,
    ),
    Operation(
        method="GET",
        path="/api/v1/health",
        handle=get_health,
        summary="The receivers, and the spans of the last week in which they may have missed events",
        answer=tell.HealthList,
    ),
    Operation(
        method="GET",
        path="/api/v1/clusters",
        handle=list_clusters,
        summary="Clusters",
        answer=tell.ClusterList,
    ),
    *api_control.OPERATIONS,
    *api_bulk.OPERATIONS,
    *api_export.OPERATIONS,
    *api_search.OPERATIONS,
    *api_views.OPERATIONS,
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
