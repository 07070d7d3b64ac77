"""Bulk commands: the tasks of a filter are chosen once, previewed, and become a job when confirmed."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple
from uuid import UUID, uuid4, uuid5

from msgspec import Meta

from celery_monitor.control.allowed import (
    NOT_REMEMBERED,
    REFUSED,
    WARNINGS,
    retried_as_words,
    retried_words,
    why_not_revoke,
)
from celery_monitor.control.arguments import FoundArguments, find_all_arguments
from celery_monitor.control.commands import ClusterCommand, Command, Performed, RequestId, Target
from celery_monitor.control.inspect import consumed, recorded_route
from celery_monitor.control.retry import SAMPLES, PreparedRetry, prepare
from celery_monitor.core.filters.parser import parse
from celery_monitor.core.words import counted
from celery_monitor.errors import ArgumentsUnknown, Conflict, InvalidInput, NotFound
from celery_monitor.records.job import Job, JobPreview, JobState
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.jobs import (
    Member,
    create_job,
    delete_job,
    job_of,
    read_job,
    retried_before,
    sample_members,
    save_preview,
    sent_as,
    set_include_retried,
    start_job,
    states_of,
    stop_job,
)
from celery_monitor.store.tasks.page import count_tasks

_REQUESTS = UUID("8d2ac9a4-3a57-4c0b-8a1f-6a8f1f2b7f10")  # namespace of job tokens from request ids
MOST_JUDGED = 1000  # tasks whose arguments a preview reads; with more, it is an estimate
MOST_REVOKED = 50_000  # remembered by a worker (CELERY_WORKER_REVOKES_MAX in celery/worker/state.py)
MIN_RATE, MAX_RATE = 0.01, 100_000.0
LONGEST_REASON = 200
GONE = "no longer recorded"
DIFFERS = "a message was announced that differs from the task's events; retry it on its own"
NO_QUEUE = "queue unknown: events name it only with task_send_sent_event"


Rate = Annotated[
    float,
    Meta(
        ge=MIN_RATE,
        le=MAX_RATE,
        description="Tasks per second; no limit by default",
        extra={"unit": " tasks per second"},
    ),
]


class BulkCommand(Command, frozen=True, kw_only=True):
    """Something that is done to every task that matches a filter, as a job.

    ``job`` is the number of a preview, which selects its tasks; without one they are chosen now. ``rate`` is in
    tasks per second; ``cluster`` may be left out if all matching tasks are of one cluster. Repeated requests with one
    ``request_id`` start one job. Tasks that were retried before are skipped unless ``include_retried``; ``None`` is as
    in the preview.
    """

    role = Role.OPERATOR
    in_part = True
    note = "see [bulk](bulk.md)"
    finds_cluster = True
    verb: ClassVar[Literal["retry", "revoke"]]
    query: str
    job: int | None = None
    rate: Rate | None = None
    include_retried: bool | None = None
    request_id: RequestId | None = None

    def run(self, target: Target) -> Performed:
        """Starts the job of a preview, or of the tasks that match now. A second confirmation changes nothing."""
        job = _confirmed(target, self) if self.job is not None else _chosen(target, self)
        if self.include_retried is not None:
            set_include_retried(target.store, job.id, self.include_retried)
        began = start_job(target.store, job.id, target.actor, self.reason, self.rate)
        job = read_job(target.store, job.id)
        if not began and job.state is JobState.PREPARING:
            raise Conflict(f"The preview of job {job.id} was never completed. Make a new one.")
        details = {"job": job.id, "count": job.total, "query": job.query, "rate": job.rate}
        if not began:
            message = f"Job {job.id} was already started and is {job.state}. Nothing was started twice."
            return Performed(outcome="done", message=message, details=details)
        message = f"Job {job.id} started: {self.verb} {counted(job.total, 'task')}."
        return Performed(outcome="done", message=message, details=details)

    def find_cluster(self, store: Store, settings: Settings) -> str:
        """The one cluster whose tasks match. Raises InvalidInput for several, NotFound for none."""
        if self.job is not None:
            return read_job(store, self.job).cluster
        wanted = parse(self.query, Target.now())
        found = [name for name in settings.clusters if count_tasks(store, wanted.in_cluster(name)).value]
        if len(found) > 1:
            terms = " or ".join(f"cluster:{name}" for name in found)
            raise InvalidInput(f"Tasks of several clusters match; a job is for one. Add {terms}.", clusters=found)
        if not found:
            raise NotFound(f"No task matches {str(wanted) or 'any filter'!r}.")
        return found[0]

    def preview(self, target: Target) -> Job:
        """Chooses the tasks and says what would be done to them. ``job``: renews that preview of a retry.

        Raises FilterError, InvalidInput, and NotFound where nothing matches.
        """
        if self.job is not None:
            return _preview_again(target, self.job, include_retried=bool(self.include_retried))
        wanted = parse(self.query, target.now())
        again = bool(self.include_retried)
        within, token = wanted.in_cluster(target.cluster), token_of(self)
        job = create_job(
            target.store, target.cluster, self.verb, within, str(wanted), target.actor, token, include_retried=again
        )
        if not job.total:
            delete_job(target.store, job.id)
            raise NotFound(f"No task of cluster {target.cluster} matches {str(wanted) or 'any filter'!r}.")
        save_preview(target.store, job.id, _preview(target, job))
        return read_job(target.store, job.id)


class BulkRetry(BulkCommand, frozen=True, kw_only=True):
    """Retry every task that matches a filter, as a job."""

    action = "bulk.retry"
    verb = "retry"


class BulkRevoke(BulkCommand, frozen=True, kw_only=True):
    """Revoke every task that matches a filter, as a job."""

    action = "bulk.revoke"
    verb = "revoke"


class AbortJob(ClusterCommand, frozen=True, kw_only=True):
    """Abort a job; tasks not sent yet will not be sent."""

    action = "bulk.abort"
    subject = "job {0.job}"
    role = Role.OPERATOR
    in_part = True
    route = "bulk/{id:int}/abort"
    note = "tasks already sent stay sent"
    job: int

    def run(self, target: Target) -> Performed:
        """Raises Conflict for a job that has ended."""
        job = _own_job(target, self.job)
        if not stop_job(target.store, job.id, f"Aborted by {target.actor}."):
            raise Conflict(f"Job {job.id} is {read_job(target.store, job.id).state}: there is nothing to abort.")
        details = {"job": job.id, "count": job.total, "query": job.query}
        message = f"Job {job.id} is being aborted: tasks not sent yet will not be sent."
        return Performed(outcome="done", message=message, details=details)


class Skip(NamedTuple):
    """Why a task is skipped: a reason that can be counted, and one with the details of this task."""

    reason: str
    for_task: str


def _preview_again(target: Target, number: int, *, include_retried: bool) -> Job:
    job = _own_job(target, number)
    if job.state is not JobState.PREVIEW or job.verb != "retry":
        raise Conflict(f"Job {job.id} is not the preview of a retry.")
    set_include_retried(target.store, job.id, include_retried)
    save_preview(target.store, job.id, _preview(target, read_job(target.store, job.id)))
    return read_job(target.store, job.id)


def token_of(command: BulkCommand) -> str:
    """A job's token. A repeated request has the token of its first job."""
    return str(uuid4() if command.request_id is None else uuid5(_REQUESTS, command.request_id))


def _chosen(target: Target, command: BulkCommand) -> Job:
    """The job of an earlier request with this id, else a job of the tasks that match now."""
    before = job_of(target.store, token_of(command)) if command.request_id is not None else None
    if before is None:
        return command.preview(target)
    again = bool(command.include_retried)
    same = (before.verb, before.query, before.include_retried)
    if same != (command.verb, str(parse(command.query, target.now())), again):
        raise Conflict(f"The request id {command.request_id!r} is used by job {before.id}. Choose another id.")
    return _own_job(target, before.id)


def _confirmed(target: Target, command: BulkCommand) -> Job:
    job = _own_job(target, command.job or 0)
    if job.verb != command.verb:
        raise Conflict(f"Job {job.id} is to {job.verb} tasks, not to {command.verb} them.")
    if str(parse(command.query, target.now())) != job.query:
        raise Conflict(f"Job {job.id} is for the filter {job.query!r}: make a preview of {command.query!r} first.")
    return job


def _own_job(target: Target, number: int) -> Job:
    job = read_job(target.store, number)
    if job.cluster != target.cluster:
        raise Conflict(f"Job {job.id} belongs to cluster {job.cluster}, not to {target.cluster}.")
    return job


def _preview(target: Target, job: Job) -> JobPreview:
    """What would be done to the tasks; of many tasks, estimated from an even sample."""
    members = sample_members(target.store, job, MOST_JUDGED)
    if job.verb == "revoke":
        refused = [why for each in members if (why := why_not_bulk_revoke(each)) is not None]
        return _summed(job, len(members), [], refused, _revoke_warnings(target, job))
    plans = list(plan_all(target, job, members).values())
    prepared = [each for each in plans if isinstance(each, PreparedRetry)]
    refused = [each.reason for each in plans if isinstance(each, Skip)]
    retried = retried_before(target.store, job)
    return _summed(job, len(members), prepared, refused, _retry_warnings(target, job, retried), retried)


def plan_all(target: Target, job: Job, members: Sequence[Member]) -> dict[int, PreparedRetry | Skip]:
    """What would be sent, or why a task is skipped, by the members' numbers."""
    plans: dict[int, PreparedRetry | Skip] = {}
    if not job.include_retried:
        plans = {each.number: skip for each in members if (skip := _retried_before(job, each)) is not None}
    rest = [each for each in members if each.number not in plans]
    tasks = [each.task for each in rest if each.task is not None and each.task.state not in REFUSED]
    known = find_all_arguments(target, tasks)
    for each in rest:
        plan = _plan(target, each, known.get(each.task.id) if each.task else None)
        plans[each.number] = Skip(plan, plan) if isinstance(plan, str) else plan
    return plans


def _retried_before(job: Job, member: Member) -> Skip | None:
    """By anything but this job, which handles its own retries."""
    link = member.task.retried if member.task is not None else None
    if link is None or link.id == sent_as(job, member.id):
        return None
    return Skip(retried_words(link), retried_as_words(link))


def _plan(target: Target, member: Member, found: FoundArguments | None) -> PreparedRetry | str:
    """Reasons do not name the task, so that they can be counted."""
    task = member.task
    if task is None:
        return GONE
    if task.state is not member.was:
        return f"{member.was.word} when it was chosen, {task.state.word} now"
    if why := REFUSED.get(task.state):
        return f"{task.state.word}: {why}"
    if found is None or (found.message is None and found.queue is None and not _has_route(target, task)):
        return NO_QUEUE
    if found.arguments.warning:  # a person has to see it, on the task's page
        return DIFFERS
    try:
        return prepare(target, task, found)
    except ArgumentsUnknown as error:
        return f"arguments unknown: {error.detail.get('reason')}"[:LONGEST_REASON]
    except Conflict as error:
        return error.message.replace(f"task {task.id}", "it").replace(task.id, "it")[:LONGEST_REASON]


def _has_route(target: Target, task: Task) -> bool:
    """Whether its queue is known, or is the only queue of its worker."""
    if recorded_route(task) is not None:
        return True
    found = consumed(target, task)
    return found is not None and found.only_queue is not None


def why_not_bulk_revoke(member: Member) -> str | None:
    """Why a task is not revoked by a job; ``None`` if it may be."""
    if member.task is None:
        return GONE
    if why_not_revoke(member.task):
        return f"{member.task.state.word}: there is nothing left to revoke"
    return None


def _summed(
    job: Job,
    judged: int,
    prepared: Sequence[PreparedRetry],
    refused: Sequence[str],
    warnings: list[str],
    retried: int = 0,
) -> JobPreview:
    estimated = judged < job.total

    def share(number: int) -> int:
        return round(number * job.total / judged) if estimated else number

    unknown = sum("arguments" in reason for reason in refused)
    fidelity = Counter[str](each.arguments.fidelity for each in prepared)
    fidelity["unknown"] += unknown
    known = {name: share(fidelity[name]) for name in ("exact", "probable", "unknown")} if job.verb == "retry" else {}
    skipped = {reason: share(number) for reason, number in Counter(refused).most_common(10)}
    return JobPreview(
        judged=judged,
        estimated=estimated,
        sendable=job.total - share(len(refused)),
        fidelity=known,
        skipped=skipped,
        retried=retried,
        samples=[_sample(each) for each in prepared[:: max(1, len(prepared) // SAMPLES)][:SAMPLES]],
        warnings=warnings,
    )


def _sample(prepared: PreparedRetry) -> dict[str, str]:
    task: Task = prepared.task
    return {
        "id": task.id,
        "name": prepared.name,
        "args": prepared.arguments.args or "",
        "kwargs": prepared.arguments.kwargs or "",
        "fidelity": prepared.arguments.fidelity,
        "to": str(prepared.route),
    }


def _retry_warnings(target: Target, job: Job, retried: int) -> list[str]:
    states = states_of(target.store, job)
    found = [f"{states[state]} {state.word}. {text}" for state, text in WARNINGS.items() if states.get(state)]
    if retried and job.include_retried:
        found.append(f"{counted(retried, 'task')} already retried, would run again.")
    return found


def _revoke_warnings(target: Target, job: Job) -> list[str]:
    states = states_of(target.store, job)
    found = [f"Sent to all workers; {NOT_REMEMBERED}."]
    if running := states.get(TaskState.STARTED):
        found.append(f"{running} {'is' if running == 1 else 'are'} running: a revoke does not stop running tasks.")
    if job.total > MOST_REVOKED:
        found.append(f"A worker remembers only the last {MOST_REVOKED} revoked tasks.")
    return found
