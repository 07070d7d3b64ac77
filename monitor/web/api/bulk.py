"""Retry or revoke every task that matches: a preview, then a job."""

from typing import Annotated
from typing import Any
from typing import Literal

from msgspec import Meta
from msgspec import Struct

from monitor.control.bulk import BulkCommand
from monitor.control.bulk import BulkRetry
from monitor.control.bulk import BulkRevoke
from monitor.control.bulk import Rate
from monitor.control.commands import Reason
from monitor.control.commands import RequestId
from monitor.errors import Conflict
from monitor.records import Count
from monitor.records import Job
from monitor.store import jobs
from monitor.web.api.acting import CHANGE_ERRORS
from monitor.web.api.jobs import JobItem
from monitor.web.api.jobs import job_item
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import Cluster
from monitor.web.api.requests import NoParameters
from monitor.web.api.requests import Query


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
    return job_item(jobs.job(call.store, int(str(performed.details["job"]))))


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
