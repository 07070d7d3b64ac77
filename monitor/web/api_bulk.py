"""Bulk by query in the JSON API: preview, start, watch, abort."""

from dataclasses import replace

from monitor.control.commands import AbortJob
from monitor.control.commands import BulkCommand
from monitor.control.commands import BulkRetry
from monitor.control.commands import BulkRevoke
from monitor.errors import Conflict
from monitor.errors import NotFound
from monitor.errors import TooLarge
from monitor.errors import UnsupportedType
from monitor.store import jobs
from monitor.web import api_requests as ask
from monitor.web import api_shapes as tell
from monitor.web.api_operation import Call
from monitor.web.api_operation import Operation

BULK_ERRORS = (NotFound, Conflict, TooLarge, UnsupportedType)


def preview_bulk(call: Call, _: ask.NoParameters, body: ask.BulkBody) -> tell.PreviewItem:
    return tell.preview_item(call.controller.preview(call.actor, _command(body, None)))


def start_bulk(call: Call, _: ask.NoParameters, body: ask.BulkStartBody) -> tell.JobItem:
    command = replace(_command(body, None if body.preview is None else int(body.preview)), request_id=body.request_id)
    performed = call.controller.perform(call.actor, command)
    call.runner.start()
    return tell.job_item(jobs.job(call.store, int(str(performed.details["job"]))))


def list_bulk(call: Call, given: ask.JobListing) -> tell.JobList:
    found = jobs.jobs(call.store, limit=given.limit, cluster=given.cluster)
    return tell.JobList(items=[tell.job_item(job) for job in found])


def get_bulk(call: Call, given: ask.JobAddress) -> tell.JobItem:
    return tell.job_item(jobs.job(call.store, given.id))


def list_bulk_tasks(call: Call, given: ask.JobTaskListing) -> tell.JobTaskPage:
    job = jobs.job(call.store, given.id)
    page = jobs.job_tasks(call.store, job, outcome=given.outcome, limit=given.limit, cursor=given.cursor)
    return tell.JobTaskPage(items=tell.shapes(tell.JobTaskItem, page.items), next=page.next)


def abort_bulk(call: Call, given: ask.JobAddress, body: ask.AbortBody) -> tell.JobItem:
    job = jobs.job(call.store, given.id)
    call.controller.perform(call.actor, AbortJob(cluster=job.cluster, job=job.id, reason=body.reason))
    call.runner.start()
    return tell.job_item(jobs.job(call.store, given.id))


def _command(body: ask.BulkBody, preview: int | None) -> BulkCommand:
    kind = BulkRetry if body.action == "retry" else BulkRevoke
    return kind(cluster=body.cluster, query=body.q, job=preview, rate=body.rate, reason=body.reason)


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/v1/bulk/preview",
        handle=preview_bulk,
        summary="What would be done to every task that matches; its tasks are chosen now, and nothing is done yet",
        answer=tell.PreviewItem,
        body=ask.BulkBody,
        errors=BULK_ERRORS,
    ),
    Operation(
        method="POST",
        path="/api/v1/bulk",
        handle=start_bulk,
        summary="Retry or revoke every task of a preview, or every task that matches now, as a job",
        answer=tell.JobItem,
        body=ask.BulkStartBody,
        errors=BULK_ERRORS,
    ),
    Operation(
        method="GET",
        path="/api/v1/jobs",
        handle=list_bulk,
        summary="Jobs, the newest first",
        answer=tell.JobList,
        parameters=ask.JobListing,
    ),
    Operation(
        method="GET",
        path="/api/v1/bulk/{id:int}",
        handle=get_bulk,
        summary="How far a job is, with the most common reasons for what was not done",
        answer=tell.JobItem,
        parameters=ask.JobAddress,
        errors=(NotFound,),
    ),
    Operation(
        method="GET",
        path="/api/v1/bulk/{id:int}/tasks",
        handle=list_bulk_tasks,
        summary="What came of each task of a job",
        answer=tell.JobTaskPage,
        parameters=ask.JobTaskListing,
        errors=(NotFound,),
    ),
    Operation(
        method="POST",
        path="/api/v1/bulk/{id:int}/abort",
        handle=abort_bulk,
        summary="End a job; what was not sent yet is left alone",
        answer=tell.JobItem,
        parameters=ask.JobAddress,
        body=ask.AbortBody,
        errors=BULK_ERRORS,
    ),
)
