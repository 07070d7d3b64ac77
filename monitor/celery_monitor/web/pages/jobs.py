"""A bulk action: its preview; once started, its progress and outcomes."""

import math
import time
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from celery_monitor.control.bulk import AbortJob, BulkRetry, BulkRevoke
from celery_monitor.core.filters.parser import Filter
from celery_monitor.core.filters.terms import any_of, exactly
from celery_monitor.errors import InvalidInput, MonitorError, NotFound
from celery_monitor.records.job import Job, JobOutcome, JobState
from celery_monitor.records.task import Task, TaskState
from celery_monitor.store.engine import Store
from celery_monitor.store.jobs import read_job, read_job_tasks
from celery_monitor.store.tasks.page import find_tasks
from celery_monitor.store.tasks.where import states_of_sent
from celery_monitor.web.pages import Context, FormRequest, Page, Result, View
from celery_monitor.web.security.reach import IN_PART

LISTED = 50
READ_AT_ONCE = 25
COUNTED_EACH_TIME = 20_000
RECOUNT_SECONDS = 5.0
LISTABLE = (JobOutcome.DONE, JobOutcome.SKIPPED, JobOutcome.FAILED, JobOutcome.UNCONFIRMED)

_recounts: WeakKeyDictionary[Store, dict[int, tuple[float, dict[TaskState, int]]]] = WeakKeyDictionary()


def context(view: View) -> Context:
    job = read_job(view.store, number(view))
    outcome = _outcome(view) or (JobOutcome.DONE if job.verb == "retry" and job.count(JobOutcome.DONE) else None)
    listed = job.state not in {JobState.PREPARING, JobState.PREVIEW} and outcome is not None
    cursor = view.query.get("cursor") or None
    members = read_job_tasks(view.store, job, outcome=outcome, limit=LISTED, cursor=cursor) if listed else None
    return {
        "title": f"{'Preview' if job.state is JobState.PREVIEW else 'Job'} {job.id}",
        "job": job,
        "preview": job.preview,
        "ended": job.state.ended,
        "counts": {each: job.count(each) for each in LISTABLE},
        "reasons": [each for each in job.reasons if each.reason],
        "rate_now": _rate_now(job, view.now),
        "outcome": outcome,
        "members": members,
        "sent": _sent(view, job),
        "retries": _retries(view, job, [each.new_id for each in members.items if each.new_id] if members else []),
    }


class SentTasks(NamedTuple):
    """The tasks that a job retried or revoked: how many are in each state; ``unseen``: not in the record."""

    total: int
    states: list[tuple[TaskState, int]]
    unseen: int


def _sent(view: View, job: Job) -> SentTasks | None:
    total = sum(job.count(each) for each in (JobOutcome.DONE, JobOutcome.UNCONFIRMED))
    if not total:
        return None
    states = states_of_sent(view.store, job) if total <= COUNTED_EACH_TIME else _cached_states(view.store, job)
    listed = [(state, states[state]) for state in TaskState if states.get(state)]
    return SentTasks(total, listed, max(0, total - sum(states.values())))


def _cached_states(store: Store, job: Job) -> dict[TaskState, int]:
    """Counted every RECOUNT_SECONDS: 100,000 tasks take 0.4 s, and the page is read twice a second."""
    recounts = _recounts.setdefault(store, {})
    read_at, states = recounts.get(job.id, (0.0, {}))
    if not read_at or time.monotonic() - read_at > RECOUNT_SECONDS:
        states = states_of_sent(store, job)
        recounts[job.id] = (time.monotonic(), states)
    return states


def _retries(view: View, job: Job, new_ids: list[str]) -> dict[str, Task]:
    """The recorded tasks among ``new_ids``, by id."""
    found: dict[str, Task] = {}
    for at in range(0, len(new_ids), READ_AT_ONCE):
        asked = Filter(any_of(exactly("id", each) for each in new_ids[at : at + READ_AT_ONCE]))
        page = find_tasks(view.store, asked.in_cluster(job.cluster), limit=READ_AT_ONCE)
        found |= {task.id: task for task in page.items}
    return found


def number(view: View) -> int:
    """The job number in the path. Raises NotFound."""
    text = str(view.params["id"])
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise NotFound(f"Job {text!r} not found.")
    return int(text)


def _outcome(view: View) -> JobOutcome | None:
    text = view.query.get("outcome") or None
    if text is not None and text not in {each.value for each in LISTABLE}:
        raise InvalidInput(f"outcome {text!r} is not one of {', '.join(LISTABLE)}")
    return JobOutcome(text) if text else None


def _rate_now(job: Job, now: float) -> float | None:
    """Tasks per second since it started."""
    seconds = (job.ended or now) - job.started if job.started else 0.0
    return (job.total - job.left) / seconds if seconds > 0 else None


def start(view: View, request: FormRequest) -> Result:
    """Starts the job of a preview."""
    job = read_job(view.store, number(view))
    kind = BulkRetry if job.verb == "retry" else BulkRevoke
    try:
        command = kind(
            cluster=job.cluster,
            query=job.query,
            job=job.id,
            rate=_rate(request),
            reason=str(request.form.get("reason") or "").strip() or None,
        )
        performed = request.controller.perform(request.actor, command)
    except MonitorError as error:
        return _back(view, job, error.message, "bad")
    request.jobs.start()
    return _back(view, job, performed.message, "good")


def include_retried(view: View, request: FormRequest) -> Result:
    """Previews again, with or without already retried tasks."""
    job = read_job(view.store, number(view))
    again = request.form.get("include_retried") == "1"
    command = BulkRetry(cluster=job.cluster, query=job.query, job=job.id, include_retried=again)
    try:
        request.controller.preview(request.actor, command)
    except MonitorError as error:
        return _back(view, job, error.message, "bad")
    return Result(f"/jobs/{job.id}", {"cluster": view.cluster})


def abort(view: View, request: FormRequest) -> Result:
    """Ends the job after its current batch."""
    job = read_job(view.store, number(view))
    try:
        performed = request.controller.perform(request.actor, AbortJob(cluster=job.cluster, job=job.id))
    except MonitorError as error:
        return _back(view, job, error.message, "bad")
    request.jobs.start()
    return _back(view, job, performed.message, "warning")


def _rate(request: FormRequest) -> float | None:
    text = str(request.form.get("rate") or "").strip()
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if math.isnan(rate):
        raise InvalidInput(f"{text!r} is not a number of tasks per second; leave it empty for no limit.")
    return rate


def _back(view: View, job: Job, notice: str, tone: str) -> Result:
    query: dict[str, Any] = {"cluster": view.cluster}
    return Result(f"/jobs/{job.id}", query, notice, tone)


PAGE = Page(
    "/jobs/{id}",
    "job.html",
    context,
    title="Job",
    regions=("job",),
    actions={"start": start, "abort": abort, "include-retried": include_retried},
    access=IN_PART,
)
