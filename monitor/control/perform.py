"""The one door. Whatever changes a cluster passes here: may they, do it, write it down."""

import logging
import re
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import fields
from dataclasses import replace
from functools import partial
from typing import Any
from typing import TypeVar
from typing import assert_never

from monitor.access import Actor
from monitor.access import require
from monitor.control.bulk import abort
from monitor.control.bulk import cluster_of
from monitor.control.bulk import look_again
from monitor.control.bulk import preview
from monitor.control.bulk import start
from monitor.control.commands import AbortJob
from monitor.control.commands import BulkCommand
from monitor.control.commands import BulkRetry
from monitor.control.commands import BulkRevoke
from monitor.control.commands import ClusterCommand
from monitor.control.commands import Command
from monitor.control.commands import FindMessage
from monitor.control.commands import MuteFailure
from monitor.control.commands import Performed
from monitor.control.commands import ReopenFailure
from monitor.control.commands import ResolveFailure
from monitor.control.commands import RetryTask
from monitor.control.commands import RetryTasks
from monitor.control.commands import RevokeTask
from monitor.control.commands import RevokeTasks
from monitor.control.commands import RunScheduled
from monitor.control.failures import change_failure
from monitor.control.find import find_message
from monitor.control.queue_commands import QueueCommand
from monitor.control.queue_commands import RunTask
from monitor.control.queues import change_queue
from monitor.control.retry import retry_task
from monitor.control.retry import retry_tasks
from monitor.control.revoke import revoke_task
from monitor.control.revoke import revoke_tasks
from monitor.control.run import run_task
from monitor.control.schedule import run_scheduled
from monitor.control.target import Target
from monitor.control.target import find_broker
from monitor.control.view_commands import DeleteView
from monitor.control.view_commands import RenameView
from monitor.control.view_commands import SaveView
from monitor.control.view_commands import ViewCommand
from monitor.control.views import change_view
from monitor.control.worker_commands import RevokeStamped
from monitor.control.worker_commands import WorkerCommand
from monitor.control.workers import revoke_stamped
from monitor.control.workers import tell_workers
from monitor.errors import ConfirmationRequired
from monitor.errors import Forbidden
from monitor.errors import InvalidInput
from monitor.errors import MonitorError
from monitor.errors import StoreUnavailable
from monitor.records import Action
from monitor.records import Job
from monitor.settings import Settings
from monitor.store.engine import Store
from monitor.store.jobs import job
from monitor.store.journal import record_action

log = logging.getLogger(__name__)
UNSTORABLE = re.compile("[\\0\ud800-\udfff]")
UNRECORDED = "This could not be written to the record of actions: the database cannot be written now."
MAX_REASON = 2000
MAX_REQUEST_ID = 200
CommandT = TypeVar("CommandT", bound=Command)


class Controller:
    """Does what people ask for. Threads may share one."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings

    def perform(self, actor: Actor, command: Command) -> Performed:
        """Does it and records who, what, to what, why, and the outcome, whether it is done, denied or failed.

        A question back (ConfirmationRequired) is no action, and is not recorded. Raises a MonitorError that says
        why nothing was done.
        """
        _check_texts(command)
        command = self._placed(actor, command)
        do: Callable[[], Performed]
        if isinstance(command, ViewCommand):
            do = partial(change_view, self.store, command, actor.name)
        else:
            target = Target(self.store, self.settings, find_broker(self.settings, command.cluster or ""))
            do = partial(_do, target, actor, command)
        self._allow(actor, command)
        try:
            performed = do()
        except ConfirmationRequired:
            raise
        except Exception as error:
            message = error.message if isinstance(error, MonitorError) else f"{type(error).__name__}: {error}"
            self._record(actor, command, "failed", message)
            raise
        if self._record(actor, command, performed.outcome, performed.message, performed.details):
            return performed
        return replace(performed, message=f"{performed.message} {UNRECORDED}")

    def preview(self, actor: Actor, command: BulkCommand) -> Job:
        """What a bulk command would do, as a job that waits for a yes. Nothing is done; only a denial is recorded."""
        _check_texts(command)
        command = self._placed(actor, command)
        target = Target(self.store, self.settings, find_broker(self.settings, command.cluster or ""))
        self._allow(actor, command)
        return preview(target, command, actor.name)

    def look_again(self, actor: Actor, command: BulkRetry, *, include_retried: bool) -> Job:
        """The preview that ``command`` names, with or without the tasks that were retried before."""
        _check_texts(command)
        target = Target(self.store, self.settings, find_broker(self.settings, command.cluster or ""))
        self._allow(actor, command)
        look_again(target, command.job or 0, include_retried=include_retried)
        return job(self.store, command.job or 0)

    def _placed(self, actor: Actor, command: CommandT) -> CommandT:
        """A bulk command whose cluster is named. Who may not do it is told so first, and learns nothing else."""
        if not isinstance(command, (BulkRetry, BulkRevoke)) or command.cluster is not None:
            return command
        first = replace(command, cluster=next(iter(self.settings.clusters), ""))
        self._allow(actor, first)
        return replace(command, cluster=cluster_of(self.store, self.settings, command))

    def _allow(self, actor: Actor, command: Command) -> None:
        try:
            require(actor, command.action)
            _require_writable(self.settings, command)
        except Forbidden as error:
            self._record(actor, command, "denied", error.message)
            raise

    def _record(
        self,
        actor: Actor,
        command: Command,
        outcome: str,
        message: str,
        details: Mapping[str, object] | None = None,
    ) -> bool:
        """Whether it could be recorded. What was done is done: a database that is away must not hide it."""
        subjects = _subjects(command)
        known: dict[str, Any] = dict(details or {})
        action = Action(
            at=Target.now(),
            actor=actor.name,
            action=command.action,
            cluster=command.cluster,
            target=subjects[0] if len(subjects) == 1 else None,
            query=known.pop("query", getattr(command, "query", None)),
            count=known.pop("count", len(subjects) or None),
            reason=command.reason,
            parameters=({"subjects": list(subjects)} if len(subjects) > 1 else {}) | known,
            outcome=outcome,
            message=message,
        )
        try:
            record_action(self.store, action)
        except StoreUnavailable:
            log.exception("not recorded: %s by %s on %s: %s", action.action, action.actor, subjects, outcome)
            return False
        return True


def _do(target: Target, actor: Actor, command: ClusterCommand) -> Performed:  # noqa: C901  one case for each command
    match command:
        case RetryTask():
            return retry_task(target, command)
        case RetryTasks():
            return retry_tasks(target, command)
        case FindMessage():
            return find_message(target, command)
        case RevokeTask():
            return revoke_task(target, command)
        case RevokeTasks():
            return revoke_tasks(target, command)
        case RunTask():
            return run_task(target, command)
        case RevokeStamped():
            return revoke_stamped(target, command)
        case WorkerCommand():
            return tell_workers(target, command)
        case QueueCommand():
            return change_queue(target, command, actor.name)
        case ResolveFailure() | MuteFailure() | ReopenFailure():
            return change_failure(target, command)
        case BulkRetry() | BulkRevoke():
            return start(target, command, actor.name)
        case AbortJob():
            return abort(target, command.job, actor.name)
        case RunScheduled():
            return run_scheduled(target, command)
        case _:
            assert_never(command)


def _subjects(command: Command) -> tuple[str, ...]:  # noqa: C901  one case for each command
    match command:
        case RetryTask() | RevokeTask() | FindMessage():
            return (command.id,)
        case RetryTasks() | RevokeTasks():
            return command.ids
        case RunTask():
            return (command.name,)
        case RevokeStamped():
            return tuple(f"{command.header}={stamp}" for stamp in command.stamps)
        case WorkerCommand():
            return command.workers
        case QueueCommand():
            return (command.queue,)
        case ResolveFailure() | MuteFailure() | ReopenFailure():
            return (f"failure group {command.group}",)
        case BulkRetry() | BulkRevoke():
            return ()
        case AbortJob():
            return (f"job {command.job}",)
        case RunScheduled():
            return (command.entry,)
        case SaveView():
            return (command.name,)
        case RenameView() | DeleteView():
            return (f"view {command.view}",)
        case _:
            assert_never(command)


def _require_writable(settings: Settings, command: Command) -> None:
    if settings.read_only:
        raise Forbidden(f"this dashboard is read-only; {command.action} is refused to everybody")


def _check_texts(command: Command) -> None:
    """Texts that no database takes are refused before anything is done."""
    request_id = getattr(command, "request_id", None)
    for name, text, limit in (("reason", command.reason, MAX_REASON), ("request_id", request_id, MAX_REQUEST_ID)):
        if len(text or "") > limit:
            raise InvalidInput(f"{name} is longer than {limit} characters")
    named = _names(command) if isinstance(command, (WorkerCommand, QueueCommand, RunTask, ViewCommand)) else ()
    query = command.query if isinstance(command, (BulkRetry, BulkRevoke)) else None
    for text in (command.reason, request_id, query, *_subjects(command), *named):
        if text and UNSTORABLE.search(text):
            raise InvalidInput("a NUL or half of a surrogate pair stands in a text")


def _names(command: WorkerCommand | QueueCommand | RunTask | ViewCommand) -> tuple[str, ...]:
    """Everything in it that may come back in a message."""
    values = [getattr(command, field.name) for field in fields(command) if field.name not in {"args", "kwargs"}]
    return tuple(value for value in values if isinstance(value, str))
