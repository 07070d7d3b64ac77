"""Bulk by query: its tasks are chosen once, shown, and become a job when somebody says yes."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple
from uuid import UUID, uuid4, uuid5

from msgspec import Meta

from celery_monitor.control.allowed import REFUSED, WARNINGS, retried_as_words, retried_words, why_not_revoke
from celery_monitor.control.arguments import FoundArguments, find_all_arguments
from celery_monitor.control.commands import ClusterCommand, Command, Performed, RequestId
from celery_monitor.control.inspect import consumed
from celery_monitor.control.retry import SAMPLES, PreparedRetry, prepare, recorded_route
from celery_monitor.control.revoke import FORGETFUL
from celery_monitor.control.target import Target
from celery_monitor.core.filters.parser import parse
from celery_monitor.errors import ArgumentsUnknown, Conflict, InvalidInput, NotFound
from celery_monitor.records.job import Job, JobPreview, JobState
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.job_steps import start_job, stop_job
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
    states_of,
)
from celery_monitor.store.tasks.page import count_tasks

_REQUESTS = UUID("8d2ac9a4-3a57-4c0b-8a1f-6a8f1f2b7f10")  # of jobs made from a request's id
JUDGED = 1000  # tasks whose arguments a preview reads; of more, it is an estimate
MOST_REVOKED = 50_000  # that a worker remembers (CELERY_WORKER_REVOKES_MAX in celery/worker/state.py)
MIN_RATE, MAX_RATE = 0.01, 100_000.0
LONGEST_REASON = 200
GONE = "it is no longer in the record"
NO_QUEUE = "its queue is unknown: events name it only with task_send_sent_event"


Rate = Annotated[
    float,
    Meta(
        ge=MIN_RATE,
        le=MAX_RATE,
        description="Tasks per second; left out: as fast as it goes",
        extra={"unit": " tasks per second"},
    ),
]


class BulkCommand(Command, frozen=True, kw_only=True):
    """Something that is done to every task that matches a filter, as a job.

    ``job`` is the number of a preview: then exactly its tasks. Else they are chosen now. ``rate`` is in tasks per
    second; ``cluster`` may stay open where the filter finds tasks of one cluster alone. The same ``request_id``
    starts one job, however often it comes. Tasks that were retried before are skipped unless ``include_retried``;
    ``None`` is as in the preview.
    """

    role = Role.OPERATOR
    note = "see [bulk](bulk.md)"
    verb: ClassVar[Literal["retry", "revoke"]]
    query: str
    job: int | None = None
    rate: Rate | None = None
    include_retried: bool | None = None
    request_id: RequestId | None = None

    def run(self, target: Target) -> Performed:
        """Makes a job of a preview, or of what matches now. The second yes to a preview changes nothing."""
        job = _confirmed(target, self) if self.job is not None else _chosen(target, self)
        if self.include_retried is not None:
            set_include_retried(target.store, job.id, self.include_retried)
        began = start_job(target.store, job.id, target.actor, self.reason, self.rate)
        job = read_job(target.store, job.id)
        if not began and job.state is JobState.PREPARING:
            raise Conflict(f"The tasks of job {job.id} were never chosen to the end: make a new preview.")
        details = {"job": job.id, "count": job.total, "query": job.query, "rate": job.rate}
        if not began:
            message = f"Job {job.id} was started before, and is {job.state}. Nothing was started a second time."
            return Performed(outcome="done", message=message, details=details)
        message = f"Job {job.id} started: {self.verb} {job.total} task{'s' if job.total != 1 else ''}."
        return Performed(outcome="done", message=message, details=details)


class BulkRetry(BulkCommand, frozen=True, kw_only=True):
    """Send every task again that matches a filter, as a job."""

    action = "bulk.retry"
    verb = "retry"


class BulkRevoke(BulkCommand, frozen=True, kw_only=True):
    """Revoke every task that matches a filter, as a job."""

    action = "bulk.revoke"
    verb = "revoke"


class AbortJob(ClusterCommand, frozen=True, kw_only=True):
    """End a job; what was not sent yet is left alone."""

    action = "bulk.abort"
    subject = "job {0.job}"
    role = Role.OPERATOR
    route = "bulk/{id:int}/abort"
    note = "what is already sent stays sent"
    job: int

    def run(self, target: Target) -> Performed:
        """Raises Conflict for a job that has ended."""
        job = _mine(target, self.job)
        if not stop_job(target.store, job.id, f"Aborted by {target.actor}."):
            raise Conflict(f"Job {job.id} is {read_job(target.store, job.id).state}: there is nothing to abort.")
        details = {"job": job.id, "count": job.total, "query": job.query}
        message = f"Job {job.id} ends: what was not sent yet is left alone."
        return Performed(outcome="done", message=message, details=details)


class Skip(NamedTuple):
    """Why a task is not sent: in words that can be counted, and in those for this task."""

    reason: str
    of_task: str


def cluster_of(store: Store, settings: Settings, command: BulkCommand) -> str:
    """The one cluster whose tasks match. Raises InvalidInput where there are several, NotFound where there is none."""
    if command.cluster is not None:
        return command.cluster
    if command.job is not None:
        return read_job(store, command.job).cluster
    wanted = parse(command.query, Target.now())
    found = [name for name in settings.clusters if count_tasks(store, wanted.in_cluster(name)).value]
    if len(found) > 1:
        terms = " or ".join(f"cluster:{name}" for name in found)
        raise InvalidInput(f"Tasks of several clusters match, and a job works on one: add {terms}.", clusters=found)
    if not found:
        raise NotFound(f"No task matches {str(wanted) or 'any filter'!r}.")
    return found[0]


def preview(target: Target, command: BulkCommand) -> Job:
    """Chooses the tasks, and says what would be done to them; nothing is done.

    Raises FilterError, InvalidInput, and NotFound where nothing matches.
    """
    wanted = parse(command.query, target.now())
    within = wanted.in_cluster(target.cluster)
    token = token_of(command)
    again = bool(command.include_retried)
    job = create_job(
        target.store, target.cluster, command.verb, within, str(wanted), target.actor, token, include_retried=again
    )
    if not job.total:
        delete_job(target.store, job.id)
        raise NotFound(f"No task of cluster {target.cluster} matches {str(wanted) or 'any filter'!r}.")
    save_preview(target.store, job.id, look(target, job))
    return read_job(target.store, job.id)


def look_again(target: Target, number: int, *, include_retried: bool) -> None:
    """The same preview, with or without the tasks that were retried before."""
    job = _mine(target, number)
    if job.state is not JobState.PREVIEW or job.verb != "retry":
        raise Conflict(f"Job {job.id} is not the preview of a retry.")
    set_include_retried(target.store, job.id, include_retried)
    job = read_job(target.store, job.id)
    save_preview(target.store, job.id, look(target, job))


def token_of(command: BulkCommand) -> str:
    """One request makes one job, so that its second coming finds the first one's."""
    return str(uuid4() if command.request_id is None else uuid5(_REQUESTS, command.request_id))


def _chosen(target: Target, command: BulkCommand) -> Job:
    """The job that this request has made before, else the tasks that match now."""
    before = job_of(target.store, token_of(command)) if command.request_id is not None else None
    if before is None:
        return preview(target, command)
    again = bool(command.include_retried)
    same = (before.verb, before.query, before.include_retried)
    if same != (command.verb, str(parse(command.query, target.now())), again):
        raise Conflict(f"The request {command.request_id!r} was another one: job {before.id}. Choose another id.")
    return _mine(target, before.id)


def _confirmed(target: Target, command: BulkCommand) -> Job:
    job = _mine(target, command.job or 0)
    if job.verb != command.verb:
        raise Conflict(f"Job {job.id} is to {job.verb} tasks, not to {command.verb} them.")
    if str(parse(command.query, target.now())) != job.query:
        raise Conflict(f"Job {job.id} is of the filter {job.query!r}: make a preview of {command.query!r} first.")
    return job


def _mine(target: Target, number: int) -> Job:
    job = read_job(target.store, number)
    if job.cluster != target.cluster:
        raise Conflict(f"Job {job.id} is of cluster {job.cluster}, not of {target.cluster}.")
    return job


def look(target: Target, job: Job) -> JobPreview:
    """What would come of the tasks; of many, what would come of some taken evenly from among all."""
    members = sample_members(target.store, job, JUDGED)
    if job.verb == "revoke":
        refused = [why for each in members if (why := why_not_bulk_revoke(each)) is not None]
        return _summed(job, len(members), [], refused, _revoke_warnings(target, job))
    plans = list(plan_all(target, job, members).values())
    prepared = [each for each in plans if isinstance(each, PreparedRetry)]
    refused = [each.reason for each in plans if isinstance(each, Skip)]
    retried = retried_before(target.store, job)
    return _summed(job, len(members), prepared, refused, _retry_warnings(target, job, retried), retried)


def plan_all(target: Target, job: Job, members: Sequence[Member]) -> dict[int, PreparedRetry | Skip]:
    """What would be sent, or why nothing, by the members' numbers."""
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
    """By anybody else: what this job has linked, it settles itself."""
    link = member.task.retried if member.task is not None else None
    if link is None or link.id == sent_as(job, member.id):
        return None
    return Skip(retried_words(link), retried_as_words(link))


def _plan(target: Target, member: Member, found: FoundArguments | None) -> PreparedRetry | str:
    """In words that say nothing of the one task, so that reasons can be counted."""
    task = member.task
    if task is None:
        return GONE
    if task.state is not member.was:
        return f"it was {member.was.word} when it was chosen, and is {task.state.word} now"
    if why := REFUSED.get(task.state):
        return f"{task.state.word}: {why}"
    if found is None or (found.message is None and found.queue is None and not _has_route(target, task)):
        return NO_QUEUE
    try:
        return prepare(target, task, found)
    except ArgumentsUnknown as error:
        return f"its arguments are not known: {error.detail.get('reason')}"[:LONGEST_REASON]
    except Conflict as error:
        return error.message.replace(f"task {task.id}", "it").replace(task.id, "it")[:LONGEST_REASON]


def _has_route(target: Target, task: Task) -> bool:
    """Whether its queue is known, or is the only one that its worker consumes."""
    if recorded_route(task) is not None:
        return True
    found = consumed(target, task)
    return found is not None and found.sole is not None


def why_not_bulk_revoke(member: Member) -> str | None:
    """The same for a revoke; ``None`` when it may be."""
    if member.task is None:
        return GONE
    if why_not_revoke(member.task):
        return f"it is {member.task.state.word}: there is nothing left to revoke"
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
        tasks = "task was already retried and runs" if retried == 1 else "tasks were already retried and run"
        found.append(f"{retried} {tasks} once more.")
    return found


def _revoke_warnings(target: Target, job: Job) -> list[str]:
    states = states_of(target.store, job)
    found = [f"Workers are told, and {FORGETFUL}."]
    if running := states.get(TaskState.STARTED):
        found.append(f"{running} {'is' if running == 1 else 'are'} running: a revoke does not end what runs.")
    if job.total > MOST_REVOKED:
        found.append(f"A worker remembers {MOST_REVOKED} revoked tasks, and forgets the oldest of more.")
    return found
