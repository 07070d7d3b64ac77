"""Telling workers not to run a task, and killing the process that runs one; with what they answered."""

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass

from monitor.brokers.remote import Reply
from monitor.control.commands import SIGNALS
from monitor.control.commands import Performed
from monitor.control.commands import RevokeTask
from monitor.control.commands import RevokeTasks
from monitor.control.commands import TaskResult
from monitor.control.legal import why_not_revoke
from monitor.control.target import ANSWER_SECONDS
from monitor.control.target import Target
from monitor.control.target import distinct
from monitor.control.target import summary
from monitor.errors import Conflict
from monitor.errors import InvalidInput
from monitor.errors import NotFound
from monitor.records import Task
from monitor.records import TaskState
from monitor.store import queries

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


def revoke_task(target: Target, command: RevokeTask) -> Performed:
    """Revokes one task. Raises Conflict when it is finished, or is to be terminated and does not run."""
    task = queries.task(target.store, command.id, target.cluster)
    _check_signal(command.signal)
    _check_legal(task, terminate=command.terminate)
    answers = tell(target, [task.id], command.terminate, command.signal)
    result = judge_revoke(task, answers, terminate=command.terminate)
    outcome = result.outcome if result.outcome in {"done", "failed"} else "unconfirmed"
    details = {"terminate": command.terminate, "answered": sorted(answers.replies), "silent": answers.silent}
    details |= {"signal": command.signal} if command.terminate else {}
    return Performed(outcome=outcome, message=result.message, results=(result,), details=details)


def revoke_tasks(target: Target, command: RevokeTasks) -> Performed:
    """Revokes several with one message; those that cannot be revoked are skipped with the reason."""
    _check_signal(command.signal)
    tasks, skipped = _legal(target, distinct(command.ids), terminate=command.terminate)
    if not tasks:
        return summary("Revoke", skipped)
    answers = tell(target, [task.id for task in tasks], command.terminate, command.signal)
    results = [judge_revoke(task, answers, terminate=command.terminate) for task in tasks]
    return summary("Revoke", [*results, *skipped], terminate=command.terminate, silent=answers.silent)


def _check_legal(task: Task, *, terminate: bool) -> None:
    if why := why_not_revoke(task, terminate=terminate):
        raise Conflict(why, state=task.state.word)


def _check_signal(signal: str) -> None:
    if signal not in SIGNALS:
        raise InvalidInput(f"signal {signal!r} is not one of {', '.join(SIGNALS)}")


def _legal(target: Target, ids: Sequence[str], *, terminate: bool) -> tuple[list[Task], list[TaskResult]]:
    tasks = []
    skipped = []
    for task_id in ids:
        try:
            task = queries.task(target.store, task_id, target.cluster)
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
