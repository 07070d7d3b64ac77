"""Revoking tasks, terminating their processes, and what the workers' answers mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from celery_monitor.brokers.remote import Reply
from celery_monitor.control.allowed import NOT_REMEMBERED, why_not_revoke
from celery_monitor.control.commands import (
    ANSWER_SECONDS,
    ClusterCommand,
    Name,
    Performed,
    Signal,
    Target,
    TaskResult,
    TypedName,
    distinct,
    done,
    failed,
    summary,
    unconfirmed,
)
from celery_monitor.control.inspect import living_workers, why_no_control
from celery_monitor.control.workers import Answer, WorkerCommand, ask_workers
from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.user import Role
from celery_monitor.store.tasks.detail import read_task

# A worker has the task in these states, so its answer decides. In any other, every online worker may receive it.
WITH_WORKER = frozenset({TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.STARTED})


@dataclass(frozen=True, slots=True)
class Answers:
    """The workers that were asked, and the replies of those that answered."""

    workers: tuple[str, ...]
    replies: Mapping[str, Reply]

    @property
    def silent(self) -> list[str]:
        return [worker for worker in self.workers if worker not in self.replies]


class RevokeTask(ClusterCommand, frozen=True, kw_only=True):
    """Tell the workers not to run a task, or terminate it.

    How to revoke a task.
    """

    action = "task.revoke"
    subject = "{0.id}"
    role = Role.OPERATOR
    in_part = True
    route = "tasks/{id:name}/revoke"
    body = "RevokeBody"
    address = ("cluster", "id")
    id: str
    terminate: bool = False
    signal: Signal = "SIGTERM"

    def run(self, target: Target) -> Performed:
        """Raises Conflict for a task that is finished, or that is to be terminated and is not running."""
        task = read_task(target.store, self.id, target.cluster)
        _check_allowed(task, terminate=self.terminate)
        answers = send_revoke(target, [task.id], self.terminate, self.signal)
        result = judge_revoke(task, answers, terminate=self.terminate)
        details = {"terminate": self.terminate, "answered": sorted(answers.replies), "silent": answers.silent}
        details |= {"signal": self.signal} if self.terminate else {}
        return Performed.of_one(result, details)


class RevokeTasks(ClusterCommand, frozen=True, kw_only=True):
    """Revoke several tasks with one message; those that cannot be revoked are skipped with the reason."""

    action = RevokeTask.action
    role = RevokeTask.role
    in_part = True
    ids: tuple[str, ...]
    terminate: bool = False
    signal: Signal = "SIGTERM"

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.ids

    def run(self, target: Target) -> Performed:
        tasks, skipped = _allowed(target, distinct(self.ids), terminate=self.terminate)
        if not tasks:
            return summary("{} revoked", skipped)
        answers = send_revoke(target, [task.id for task in tasks], self.terminate, self.signal)
        results = [judge_revoke(task, answers, terminate=self.terminate) for task in tasks]
        return summary("{} revoked", [*results, *skipped], terminate=self.terminate, silent=answers.silent)


class RevokeById(ClusterCommand, frozen=True, kw_only=True):
    """Tell the workers not to run the task of an id, in whatever state it is, and even if it is not recorded."""

    action = RevokeTask.action
    subject = "{0.id}"
    role = RevokeTask.role
    id: Name
    terminate: bool = False
    signal: Signal = "SIGTERM"

    def run(self, target: Target) -> Performed:
        answers = send_revoke(target, [self.id], self.terminate, self.signal)
        names = ", ".join(sorted(answers.replies))
        result = done(self.id, f"Sent; received by {names}.") if names else unconfirmed(self.id, "Sent; no answer.")
        return Performed.of_one(result, {"terminate": self.terminate, "silent": answers.silent})


class RevokeStamped(WorkerCommand, frozen=True, kw_only=True):
    """Revoke tasks by a stamp on every worker.

    Tasks with one of these stamps under this header.
    """

    action = "task.revoke_stamped"
    route = "revoke-stamped"
    body = "StampBody"
    remote = "revoke_by_stamped_headers"
    note = "sent to every worker that is up; one that starts later does not get it"
    workers: tuple[str, ...] = ()  # none: all that are up
    header: TypedName
    stamps: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=1000)]
    terminate: bool = False
    signal: Signal = "SIGTERM"

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(f"{self.header}={stamp}" for stamp in self.stamps)

    @property
    def arguments(self) -> dict[str, object]:
        return {"headers": {self.header: list(self.stamps)}, "terminate": self.terminate, "signal": self.signal}

    def run(self, target: Target) -> Performed:
        workers = self.workers or tuple(living_workers(target))
        if not workers:
            raise Conflict("No worker is up to receive the revoke, and one that starts later would not get it.")
        return ask_workers(target, msgspec.structs.replace(self, workers=workers))

    def judge(self, answer: Answer) -> TaskResult:
        skips = "Will skip tasks with this stamp until the worker restarts."
        if not self.terminate:
            return answer.done(f"{skips} Running tasks continue.")
        if "not terminated" in str(answer.value):
            return answer.done(f"{skips} No running task has the stamp.")
        return answer.done(f"{skips} Running ones are terminated: {answer.value}.")


def _check_allowed(task: Task, *, terminate: bool) -> None:
    if why := why_not_revoke(task, terminate=terminate):
        raise Conflict(why, state=task.state.word)


def _allowed(target: Target, ids: Sequence[str], *, terminate: bool) -> tuple[list[Task], list[TaskResult]]:
    tasks = []
    skipped = []
    for task_id in ids:
        try:
            task = read_task(target.store, task_id, target.cluster)
            _check_allowed(task, terminate=terminate)
            tasks.append(task)
        except (Conflict, NotFound) as error:
            skipped.append(TaskResult(id=task_id, outcome="skipped", message=error.message))
    return tasks, skipped


def send_revoke(target: Target, ids: Sequence[str], terminate: bool, signal: str) -> Answers:
    """Sends the revoke to all workers and waits for their answers. Raises Conflict where none can receive it."""
    if why := why_no_control(target):
        raise Conflict(why)
    workers = tuple(living_workers(target))
    arguments = {"task_id": list(ids), "terminate": terminate, "signal": signal}
    return Answers(workers, target.remote.ask("revoke", arguments, timeout=ANSWER_SECONDS, expected=workers))


def judge_revoke(task: Task, answers: Answers, *, terminate: bool) -> TaskResult:
    """The result of this task by the workers' answers."""
    if task.state in WITH_WORKER and task.worker:
        return _judge_with_worker(task, task.worker, answers, terminate=terminate)
    if errors := [f"{reply.worker}: {reply.error}" for reply in answers.replies.values() if reply.error]:
        return failed(task.id, "; ".join(errors))
    if not answers.replies:
        return unconfirmed(task.id, f"Sent, but no worker answered; {NOT_REMEMBERED}.")
    if answers.silent:
        return unconfirmed(task.id, f"Sent, but {', '.join(answers.silent)} did not answer: it may still run there.")
    who = next(iter(answers.replies)) if len(answers.replies) == 1 else f"{len(answers.replies)} workers"
    return done(task.id, f"{who} will not run it; {NOT_REMEMBERED}.")


def _judge_with_worker(task: Task, worker: str, answers: Answers, *, terminate: bool) -> TaskResult:
    reply = answers.replies.get(worker)
    if reply is None:
        return unconfirmed(task.id, f"Sent, but {worker}, which has the task, did not answer: it may act later.")
    if reply.error:
        return failed(task.id, f"{worker} answered: {reply.error}")
    if terminate and task.id not in str(reply.ok):
        return unconfirmed(task.id, f"{worker} does not run it any more; it may have finished meanwhile ({reply.ok}).")
    if terminate:
        return done(task.id, f"{worker} terminates the process that runs it.")
    if task.state is TaskState.STARTED:
        return done(task.id, f"{worker} finishes running it and will not start it again. To stop it now, terminate it.")
    return done(task.id, f"{worker}, which has it, will not run it.")
