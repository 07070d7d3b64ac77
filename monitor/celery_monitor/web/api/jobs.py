"""Bulk actions: a preview of all matching tasks, then a job with its progress and the outcome of each task."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from celery_monitor.control.bulk import AbortJob, BulkCommand, BulkRetry, BulkRevoke, Rate
from celery_monitor.control.commands import Reason, RequestId, summary_of
from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.job import Job, JobOutcome, JobState
from celery_monitor.records.page import Count
from celery_monitor.store.jobs import read_job, read_job_tasks, read_jobs
from celery_monitor.web.api.operation import (
    CHANGE_ERRORS,
    Call,
    Cluster,
    Cursor,
    InCluster,
    Limit,
    NoParameters,
    Operation,
    Query,
    ReasonBody,
    shapes,
)
from celery_monitor.web.security.reach import IN_PART

JobNumber = Annotated[int, Meta(ge=1, le=2**31 - 1, description="Number of a job")]


class AbortBody(ReasonBody, frozen=True, kw_only=True):
    """The reason for the abort."""


class JobAddress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One job."""

    id: JobNumber


class JobListing(InCluster, frozen=True, kw_only=True):
    """Pagination."""

    limit: Limit = 50


class JobTaskListing(JobAddress, frozen=True, kw_only=True):
    """Filter and pagination."""

    outcome: Annotated[JobOutcome, Meta(description="Only tasks with this outcome")] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class JobReasonItem(Struct, frozen=True, kw_only=True):
    """Number of tasks with this outcome and reason."""

    outcome: JobOutcome
    reason: str
    count: int


class JobItem(Struct, frozen=True, kw_only=True):
    """A bulk action and its progress."""

    id: int
    action: Literal["retry", "revoke"]
    cluster: str
    q: str
    actor: str
    reason: str | None
    rate: float | None
    state: JobState
    count: int
    done: int
    skipped: int
    failed: int
    unconfirmed: int
    left: int
    started: float | None
    ended: float | None
    message: str | None
    reasons: list[JobReasonItem]


class JobList(Struct, frozen=True, kw_only=True):
    """Started jobs, newest first."""

    items: list[JobItem]


class JobTaskItem(Struct, frozen=True, kw_only=True):
    """The outcome of one task of a job."""

    id: str
    outcome: JobOutcome
    reason: str | None
    new_id: str | None


class JobTaskPage(Struct, frozen=True, kw_only=True):
    """A page of a job's tasks, in the order in which they are processed."""

    items: list[JobTaskItem]
    next: str | None


def job_item(job: Job) -> JobItem:
    return JobItem(
        id=job.id,
        action=job.verb,
        cluster=job.cluster,
        q=job.query,
        actor=job.actor,
        reason=job.reason,
        rate=job.rate,
        state=job.state,
        count=job.total,
        done=job.count(JobOutcome.DONE),
        skipped=job.count(JobOutcome.SKIPPED),
        failed=job.count(JobOutcome.FAILED),
        unconfirmed=job.count(JobOutcome.UNCONFIRMED),
        left=job.left,
        started=job.started,
        ended=job.ended,
        message=job.message,
        reasons=shapes(JobReasonItem, [each for each in job.reasons if each.reason]),
    )


def list_bulk(call: Call, given: JobListing) -> JobList:
    found = read_jobs(call.store, limit=given.limit, cluster=given.cluster)
    return JobList(items=[job_item(job) for job in found])


def get_bulk(call: Call, given: JobAddress) -> JobItem:
    return job_item(read_job(call.store, given.id))


def list_bulk_tasks(call: Call, given: JobTaskListing) -> JobTaskPage:
    job = read_job(call.store, given.id)
    page = read_job_tasks(call.store, job, outcome=given.outcome, limit=given.limit, cursor=given.cursor)
    return JobTaskPage(items=shapes(JobTaskItem, page.items), next=page.next)


def abort_bulk(call: Call, given: JobAddress, body: AbortBody) -> JobItem:
    job = read_job(call.store, given.id)
    call.controller.perform(call.actor, AbortJob(cluster=job.cluster, job=job.id, reason=body.reason))
    call.runner.start()
    return job_item(read_job(call.store, given.id))


class BulkBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bulk action on all matching tasks."""

    action: Literal["retry", "revoke"]
    q: Query
    cluster: Cluster | None = None
    rate: Rate | None = None
    reason: Reason | None = None
    # Null: as in the preview if one is started, else false.
    include_retried: Annotated[bool, Meta(description="Also send already retried tasks")] | None = None


class BulkStartBody(BulkBody, frozen=True, kw_only=True):
    """A bulk action on the tasks of a preview, or on those that match now."""

    request_id: RequestId | None = None
    # JSON has one kind of number: 7.0 is 7, which msgspec refuses as an int.
    preview: Annotated[float, Meta(ge=1, le=2**31 - 1, multiple_of=1, description="Number of a preview")] | None = None


class Fidelities(Struct, frozen=True, kw_only=True):
    """Number of tasks by the fidelity of their arguments."""

    exact: int
    probable: int
    unknown: int


class SampleItem(Struct, frozen=True, kw_only=True):
    """One task as a retry would send it."""

    id: str
    name: str
    args: str
    kwargs: str
    fidelity: str
    to: str


class PreviewItem(Struct, frozen=True, kw_only=True):
    """A preview; ``id`` is the ``preview`` of the request that starts it.

    ``count`` and ``retried`` (already retried tasks, which are ``skipped`` unless ``include_retried``) are exact. With
    ``estimated`` the other numbers are extrapolated from ``judged`` evenly sampled tasks. ``fidelity`` is null for a
    revoke.
    """

    id: int
    action: Literal["retry", "revoke"]
    cluster: str
    q: str
    count: Count
    sendable: int
    judged: int
    estimated: bool
    fidelity: Fidelities | None
    skipped: dict[str, int]
    retried: int
    include_retried: bool
    samples: list[SampleItem]
    warnings: list[str]


def preview_item(job: Job) -> PreviewItem:
    preview = job.preview
    return PreviewItem(
        id=job.id,
        action=job.verb,
        cluster=job.cluster,
        q=job.query,
        count=Count(job.total),
        sendable=preview.sendable,
        judged=preview.judged,
        estimated=preview.estimated,
        fidelity=Fidelities(**preview.fidelity) if preview.fidelity else None,
        skipped=preview.skipped,
        retried=preview.retried,
        include_retried=job.include_retried,
        samples=[SampleItem(**sample) for sample in preview.samples],
        warnings=preview.warnings,
    )


def preview_bulk(call: Call, _: NoParameters, body: BulkBody) -> PreviewItem:
    return preview_item(call.controller.preview(call.actor, _command(body)))


def start_bulk(call: Call, _: NoParameters, body: BulkStartBody) -> JobItem:
    job = None if body.preview is None else int(body.preview)
    performed = call.controller.perform(call.actor, _command(body, job=job, request_id=body.request_id))
    call.runner.start()
    return job_item(read_job(call.store, int(str(performed.details["job"]))))


def _command(body: BulkBody, **more: Any) -> BulkCommand:
    if body.action == "revoke" and body.include_retried is not None:
        raise Conflict("include_retried is for the action retry; leave it out of a revoke.", field="include_retried")
    kind = BulkRetry if body.action == "retry" else BulkRevoke
    return kind(
        cluster=body.cluster,
        query=body.q,
        rate=body.rate,
        include_retried=body.include_retried,
        reason=body.reason,
        **more,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/jobs",
        handle=list_bulk,
        summary="List jobs, newest first",
        answer=JobList,
        parameters=JobListing,
        access=IN_PART,
    ),
    Operation(
        method="GET",
        path="/api/v1/bulk/{id:int}",
        handle=get_bulk,
        summary="Get a job: progress and the most common reasons for skipped and failed tasks",
        answer=JobItem,
        parameters=JobAddress,
        errors=(NotFound,),
        access=IN_PART,
    ),
    Operation(
        method="GET",
        path="/api/v1/bulk/{id:int}/tasks",
        handle=list_bulk_tasks,
        summary="List the tasks of a job with their outcomes",
        answer=JobTaskPage,
        parameters=JobTaskListing,
        errors=(NotFound,),
        access=IN_PART,
    ),
    Operation(
        method="POST",
        path=f"/api/v1/{AbortJob.route}",
        handle=abort_bulk,
        summary=summary_of(AbortJob),
        answer=JobItem,
        parameters=JobAddress,
        body=AbortBody,
        errors=CHANGE_ERRORS,
        access=IN_PART,
    ),
    Operation(
        method="POST",
        path="/api/v1/bulk/preview",
        handle=preview_bulk,
        summary="Preview a bulk action; selects its tasks, sends nothing",
        answer=PreviewItem,
        body=BulkBody,
        errors=CHANGE_ERRORS,
        access=IN_PART,
    ),
    Operation(
        method="POST",
        path="/api/v1/bulk",
        handle=start_bulk,
        summary="Retry or revoke all tasks of a preview, or all that match now, as a job",
        answer=JobItem,
        body=BulkStartBody,
        errors=CHANGE_ERRORS,
        access=IN_PART,
    ),
)
