"""Failure groups and their state."""

import time
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from celery_monitor.control.commands import Performed
from celery_monitor.control.views import FAILURE_COMMANDS, ChangeFailure
from celery_monitor.errors import InvalidInput, NotFound
from celery_monitor.records.failure import FailureState, FailureSummary, FailureTrend
from celery_monitor.records.task import Task
from celery_monitor.store.rollups.failures import (
    UNRESOLVED,
    read_failure_group,
    read_failure_summaries,
    read_failure_summary,
    read_failure_trend,
    read_latest_failure,
)
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.web.api.operation import (
    CHANGE_ERRORS,
    DAY,
    LONGEST_SPAN,
    Call,
    InCluster,
    Limit,
    Operation,
    Time,
    given_or,
    only_result,
    operation,
    shape,
    shapes,
)
from celery_monitor.web.api.tasks import TaskItem, task_item
from celery_monitor.web.security.reach import IN_PART

FAILURE_STATES: dict[str, tuple[FailureState, ...] | None] = {
    **{state.value: (state,) for state in FailureState},
    "unresolved": UNRESOLVED,
    "all": None,
}
FailureStates = Annotated[
    Literal["unresolved", "open", "regressed", "resolved", "muted", "all"],
    Meta(description="Groups in this state; unresolved: open and regressed"),
]
GroupId = Annotated[int, Meta(ge=1, lt=2**31, description="Number of a failure group")]


class FailureListing(InCluster, frozen=True, kw_only=True):
    """``since`` defaults to a day ago."""

    since: Time | UnsetType = UNSET
    state: FailureStates = "unresolved"
    limit: Limit = 50


class FailureAddress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One failure group; ``since``, by default a day ago, is the start of the counted span."""

    id: GroupId
    since: Time | UnsetType = UNSET


class VariantItem(Struct, frozen=True, kw_only=True):
    """One message of a failure group; null: all messages after the first fifty."""

    message: str | None
    count: int


class FailureItem(Struct, frozen=True, kw_only=True):
    """A failure group; ``count``, ``workers`` and ``trend`` (in equal steps) cover the requested span.

    If messages differ in names only, ``message`` has <name>, and ``variants`` the messages with total counts.
    """

    id: int
    cluster: str
    name: str | None
    exception_type: str
    message: str
    frame: str | None
    state: FailureState
    state_at: float | None
    first_seen: float
    last_seen: float
    count: int
    count_hour: int
    count_day: int
    count_week: int
    workers: int
    trend: tuple[int, ...]
    variants: list[VariantItem]


class WorkerShare(Struct, frozen=True):
    """Failures on one worker; null: unknown."""

    worker: str | None
    count: int


class FailureDetail(FailureItem, frozen=True, kw_only=True):
    """One failure group. ``count_all`` is the total since it was first seen; ``sample`` is the latest stored task."""

    count_all: int
    step: int
    by_worker: list[WorkerShare]
    sample: TaskItem | None


class FailureChanged(Struct, frozen=True, kw_only=True):
    """The new state of the group."""

    id: int
    state: FailureState
    message: str


class FailureList(Struct, frozen=True):
    """Failure groups, the most frequent first."""

    items: list[FailureItem]


def _failure_fields(summary: FailureSummary) -> dict[str, Any]:
    windows = summary.windows
    return {
        "count_hour": windows.hour,
        "count_day": windows.day,
        "count_week": windows.week,
        "workers": windows.workers,
        "trend": windows.trend,
        "variants": shapes(VariantItem, summary.group.variants),
    }


def failure_item(summary: FailureSummary) -> FailureItem:
    return shape(FailureItem, summary.group, **_failure_fields(summary))


def failure_detail(summary: FailureSummary, trend: FailureTrend, sample: Task | None) -> FailureDetail:
    return shape(
        FailureDetail,
        summary.group,
        **_failure_fields(summary) | {"trend": trend.counts, "count": sum(trend.counts)},
        count_all=summary.group.count,
        step=trend.step,
        by_worker=[WorkerShare(worker, count) for worker, count in trend.by_worker],
        sample=task_item(sample) if sample is not None else None,
    )


def list_failures(call: Call, given: FailureListing) -> FailureList:
    since = given_or(given.since, time.time() - DAY)
    found = read_failure_summaries(
        call.store,
        since=since,
        now=time.time(),
        cluster=given.cluster,
        states=FAILURE_STATES[given.state],
        limit=given.limit,
    )
    return FailureList([failure_item(summary) for summary in found])


def get_failure(call: Call, given: FailureAddress) -> FailureDetail:
    now = time.time()
    since = given_or(given.since, now - DAY)
    if not 0 < now - since <= LONGEST_SPAN:
        raise InvalidInput("since must be in the past, at most 731 days ago.", since=since)
    summary = read_failure_summary(call.store, given.id, since=since, now=now)
    trend = read_failure_trend(call.store, given.id, since=since, until=now)
    latest = read_latest_failure(call.store, given.id, 1)
    sample = read_task(call.store, latest[0].id, latest[0].cluster) if latest else None
    return failure_detail(summary, trend, sample)


def _group(call: Call, given: FailureAddress) -> dict[str, Any]:
    group = read_failure_group(call.store, given.id)
    return {"cluster": group.cluster, "group": group.id}


def _change(command: type[ChangeFailure]) -> Operation:
    def changed(performed: Performed) -> FailureChanged:
        return FailureChanged(id=int(only_result(performed).id), state=command.state, message=performed.message)

    return operation(command, FailureAddress, _group, FailureChanged, changed, CHANGE_ERRORS)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/failures",
        handle=list_failures,
        summary="List failure groups; by default of the last day",
        answer=FailureList,
        parameters=FailureListing,
        access=IN_PART,
    ),
    *(_change(command) for command in FAILURE_COMMANDS),
    Operation(
        method="GET",
        path="/api/v1/failures/{id}",
        handle=get_failure,
        summary="Get a failure group with its latest task",
        answer=FailureDetail,
        parameters=FailureAddress,
        errors=(NotFound,),
        access=IN_PART,
    ),
)
