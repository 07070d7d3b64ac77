"""Telling workers not to run a task, and killing the process that runs one; with what they answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from celery_monitor.brokers.remote import Reply
from celery_monitor.control.allowed import why_not_revoke
from celery_monitor.control.commands import ClusterCommand, Performed, Signal, TaskResult, distinct, summary
from celery_monitor.control.target import ANSWER_SECONDS, Target
from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.task import Task, TaskState
from celery_monitor.records.user import Role
from celery_monitor.store.tasks.detail import read_task

# A worker holds the task in these: its answer is the one that counts. Else any living worker may take it.
HELD = frozenset({TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.STARTED})
FORGETFUL = "workers remember a revoke only while they run, so a worker that starts later may still run it"


@dataclass(frozen=True, slots=True)
class Answers:
    """Who lives, and what they said."""

    living: tuple[str, ...]
    replies: Mapping[str, Reply]

    @property
    def silent(self) -> list[str]:
        return [worker for worker in self.living if worker not in self.replies]

    @property
    def agreed(self) -> list[str]:
        return [worker for worker, reply in self.replies.items() if reply.error is None]


class RevokeTask(ClusterCommand, frozen=True, kw_only=True):
    """Tell the workers not to run a task, or to end it.

    How to revoke a task.
    """

    action = "task.revoke"
    subject = "{0.id}"
    role = Role.OPERATOR
    route = "tasks/{id:name}/revoke"
    body = "RevokeBody"
    address = ("cluster", "id")
    id: str
    terminate: bool = False
    signal: Signal = "SIGTERM"

    def run(self, target: Target) -> Performed:
        """Raises Conflict when it is finished, or is to be terminated and does not run."""
        task = read_task(target.store, self.id, target.cluster)
        _check_legal(task, terminate=self.terminate)
        answers = tell(target, [task.id], self.terminate, self.signal)
        result = judge_revoke(task, answers, terminate=self.terminate)
        outcome = result.outcome if result.outcome in {"done", "failed"} else "unconfirmed"
        details = {"terminate": self.terminate, "answered": sorted(answers.replies), "silent": answers.silent}
        details |= {"signal": self.signal} if self.terminate else {}
        return Performed(outcome=outcome, message=result.message, results=(result,), details=details)


class RevokeTasks(ClusterCommand, frozen=True, kw_only=True):
    """Revoke several tasks with one message; those that cannot be revoked are skipped with the reason."""

    action = RevokeTask.action
    role = RevokeTask.role
    ids: tuple[str, ...]
    terminate: bool = False
    signal: Signal = "SIGTERM"

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.ids

    def run(self, target: Target) -> Performed:
        tasks, skipped = _legal(target, distinct(self.ids), terminate=self.terminate)
        if not tasks:
            return summary("Revoke", skipped)
        answers = tell(target, [task.id for task in tasks], self.terminate, self.signal)
        results = [judge_revoke(task, answers, terminate=self.terminate) for task in tasks]
        return summary("Revoke", [*results, *skipped], terminate=self.terminate, silent=answers.silent)


def _check_legal(task: Task, *, terminate: bool) -> None:
    if why := why_not_revoke(task, terminate=terminate):
        raise Conflict(why, state=task.state.word)


def _legal(target: Target, ids: Sequence[str], *, terminate: bool) -> tuple[list[Task], list[TaskResult]]:
    tasks = []
    skipped = []
    for task_id in ids:
        try:
            task = read_task(target.store, task_id, target.cluster)
            _check_legal(task, terminate=terminate)
            tasks.append(task)
        except (Conflict, NotFound) as error:
            skipped.append(TaskResult(id=task_id, outcome="skipped", message=error.message))
    return tasks, skipped


def tell(target: Target, ids: Sequence[str], terminate: bool, signal: str) -> Answers:
    """Tells every worker, and waits for what they say."""
    living = tuple(target.living_workers())
    arguments = {"task_id": list(ids), "terminate": terminate, "signal": signal}
    return Answers(living, target.remote.ask("revoke", arguments, timeout=ANSWER_SECONDS, expected=living))


def judge_revoke(task: Task, answers: Answers, *, terminate: bool) -> TaskResult:
    """What the answers mean for this task."""
    if task.state in HELD and task.worker:
        return _judge_held(task, task.worker, answers, terminate=terminate)
    if errors := [f"{reply.worker}: {reply.error}" for reply in answers.replies.values() if reply.error]:
        return TaskResult(id=task.id, outcome="failed", message="; ".join(errors))
    if not answers.replies:
        return _unconfirmed(task, f"Sent, and no worker answered; {FORGETFUL}.")
    if answers.silent:
        return _unconfirmed(task, f"Sent, and {', '.join(answers.silent)} did not answer: it may still run there.")
    message = f"{_number(answers.agreed)} will drop it when it comes; {FORGETFUL}."
    return TaskResult(id=task.id, outcome="done", message=message)


def _judge_held(task: Task, holder: str, answers: Answers, *, terminate: bool) -> TaskResult:
    reply = answers.replies.get(holder)
    if reply is None:
        return _unconfirmed(task, f"Sent, and {holder}, which has the task, did not answer: it may do so later.")
    if reply.error:
        return TaskResult(id=task.id, outcome="failed", message=f"{holder} answered: {reply.error}")
    if terminate and task.id not in str(reply.ok):
        return _unconfirmed(task, f"{holder} does not run it any more; it may have ended meanwhile ({reply.ok}).")
    if terminate:
        return TaskResult(id=task.id, outcome="done", message=f"{holder} kills the process that runs it.")
    if task.state is TaskState.STARTED:
        message = f"{holder} runs it to its end: only terminating stops it. It will not be started again."
        return TaskResult(id=task.id, outcome="done", message=message)
    return TaskResult(id=task.id, outcome="done", message=f"{holder}, which has it, will not run it.")


def _unconfirmed(task: Task, message: str) -> TaskResult:
    return TaskResult(id=task.id, outcome="unconfirmed", message=message)


def _number(workers: Sequence[str]) -> str:
    return workers[0] if len(workers) == 1 else f"{len(workers)} workers"
