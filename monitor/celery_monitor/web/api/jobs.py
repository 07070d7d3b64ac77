"""Bulk actions: a preview of every task that matches, then a job; its progress, the outcome of each task, and
aborting it.
"""

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
    Why,
    shapes,
)

JobNumber = Annotated[int, Meta(ge=1, le=2**31 - 1, description="Number of a job")]


class AbortBody(Why, frozen=True, kw_only=True):
    """Why a job is to end."""


class JobAddress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One job."""

    id: JobNumber


class JobListing(InCluster, frozen=True, kw_only=True):
    """How many jobs."""

    limit: Limit = 50


class JobTaskListing(JobAddress, frozen=True, kw_only=True):
    """Which tasks of a job, how many, from where."""

    outcome: Annotated[JobOutcome, Meta(description="Only tasks of this outcome")] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class JobReasonItem(Struct, frozen=True, kw_only=True):
    """How many tasks had this outcome for this reason."""

    outcome: JobOutcome
    reason: str
    count: int


class JobItem(Struct, frozen=True, kw_only=True):
    """A bulk action, and how far it is."""

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
    """Jobs that were started, the newest first."""

    items: list[JobItem]


class JobTaskItem(Struct, frozen=True, kw_only=True):
    """What came of one task of a job."""

    id: str
    outcome: JobOutcome
    reason: str | None
    new_id: str | None


class JobTaskPage(Struct, frozen=True, kw_only=True):
    """Tasks of a job, in the order in which they are taken."""

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
    """What to do to every task that matches, how fast, and why."""

    action: Literal["retry", "revoke"]
    q: Query
    cluster: Cluster | None = None
    rate: Rate | None = None
    reason: Reason | None = None
    # Null, when a preview is started: as in the preview; else no.
    include_retried: Annotated[bool, Meta(description="Also send tasks that were retried before")] | None = None


class BulkStartBody(BulkBody, frozen=True, kw_only=True):
    """The same, on the tasks of a preview, or else on those that match now."""

    request_id: RequestId | None = None
    # To JSON 7.0 is the integer 7; msgspec takes it for a number alone.
    preview: Annotated[float, Meta(ge=1, le=2**31 - 1, multiple_of=1, description="Number of a preview")] | None = None


class Fidelities(Struct, frozen=True, kw_only=True):
    """How surely the arguments of tasks are known."""

    exact: int
    probable: int
    unknown: int


class SampleItem(Struct, frozen=True, kw_only=True):
    """One task as it would be sent again."""

    id: str
    name: str
    args: str
    kwargs: str
    fidelity: str
    to: str


class PreviewItem(Struct, frozen=True, kw_only=True):
    """What would be done; ``id`` goes into the ``preview`` of the request that does it.

    ``count`` is exact. With ``estimated`` the other numbers are those of ``judged`` tasks, taken evenly from among all
    and multiplied. ``fidelity`` is null where nothing is sent again. ``retried`` counts the tasks that somebody has
    retried before, exactly; they are among ``skipped`` unless ``include_retried``.
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
        raise Conflict(
            "include_retried belongs to the action retry; leave it out of a revoke.", field="include_retried"
        )
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
        summary="Jobs, the newest first",
        answer=JobList,
        parameters=JobListing,
    ),
    Operation(
        method="GET",
        path="/api/v1/bulk/{id:int}",
        handle=get_bulk,
        summary="How far a job is, with the most common reasons for what was not done",
        answer=JobItem,
        parameters=JobAddress,
        errors=(NotFound,),
    ),
    Operation(
        method="GET",
        path="/api/v1/bulk/{id:int}/tasks",
        handle=list_bulk_tasks,
        summary="What came of each task of a job",
        answer=JobTaskPage,
        parameters=JobTaskListing,
        errors=(NotFound,),
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
    ),
    Operation(
        method="POST",
        path="/api/v1/bulk/preview",
        handle=preview_bulk,
        summary="What would be done to every task that matches; its tasks are chosen now, and nothing is done yet",
        answer=PreviewItem,
        body=BulkBody,
        errors=CHANGE_ERRORS,
    ),
    Operation(
        method="POST",
        path="/api/v1/bulk",
        handle=start_bulk,
        summary="Retry or revoke every task of a preview, or every task that matches now, as a job",
        answer=JobItem,
        body=BulkStartBody,
        errors=CHANGE_ERRORS,
    ),
)
