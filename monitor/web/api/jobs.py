"""Jobs: how far they are, what came of each task, and ending them."""

from typing import Annotated
from typing import Literal

from msgspec import Meta
from msgspec import Struct

from monitor.control.bulk import AbortJob
from monitor.control.commands import summary_of
from monitor.errors import NotFound
from monitor.records import Job
from monitor.records import JobOutcome
from monitor.records import JobState
from monitor.store import jobs
from monitor.web.api.acting import CHANGE_ERRORS
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import Cursor
from monitor.web.api.requests import InCluster
from monitor.web.api.requests import Limit
from monitor.web.api.requests import Why
from monitor.web.api.shapes import shapes

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
    found = jobs.jobs(call.store, limit=given.limit, cluster=given.cluster)
    return JobList(items=[job_item(job) for job in found])


def get_bulk(call: Call, given: JobAddress) -> JobItem:
    return job_item(jobs.job(call.store, given.id))


def list_bulk_tasks(call: Call, given: JobTaskListing) -> JobTaskPage:
    job = jobs.job(call.store, given.id)
    page = jobs.job_tasks(call.store, job, outcome=given.outcome, limit=given.limit, cursor=given.cursor)
    return JobTaskPage(items=shapes(JobTaskItem, page.items), next=page.next)


def abort_bulk(call: Call, given: JobAddress, body: AbortBody) -> JobItem:
    job = jobs.job(call.store, given.id)
    call.controller.perform(call.actor, AbortJob(cluster=job.cluster, job=job.id, reason=body.reason))
    call.runner.start()
    return job_item(jobs.job(call.store, given.id))


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
)
