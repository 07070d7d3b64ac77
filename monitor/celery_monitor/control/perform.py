"""The one door. Whatever changes a cluster passes here: may they, do it, write it down."""

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from getpass import getuser
from typing import Any, TypeVar

import msgspec

from celery_monitor.control.bulk import AbortJob, BulkCommand, BulkRetry, BulkRevoke, cluster_of, look_again, preview
from celery_monitor.control.commands import Actor, Command, Performed, require
from celery_monitor.control.queues import QUEUE_COMMANDS, FindMessage
from celery_monitor.control.retry import RetryTask, RetryTasks
from celery_monitor.control.revoke import RevokeTask, RevokeTasks
from celery_monitor.control.run import RunScheduled, RunTask
from celery_monitor.control.target import Target, find_broker
from celery_monitor.control.users import USER_COMMANDS
from celery_monitor.control.views import FAILURE_COMMANDS, VIEW_COMMANDS
from celery_monitor.control.workers import WORKER_COMMANDS, RevokeStamped
from celery_monitor.errors import ConfirmationRequired, Forbidden, MonitorError, StoreUnavailable
from celery_monitor.records.job import Job
from celery_monitor.records.page import Action
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.actions import record_action
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.jobs import read_job

COMMANDS: tuple[type[Command], ...] = (
    RetryTask, RetryTasks, RevokeTask, RevokeTasks, RevokeStamped, FindMessage, RunTask, RunScheduled, BulkRetry,
    BulkRevoke, AbortJob, *FAILURE_COMMANDS, *VIEW_COMMANDS, *WORKER_COMMANDS, *QUEUE_COMMANDS,
    *USER_COMMANDS,
)  # fmt: skip
REQUIRED_ROLE: dict[str, Role] = {
    **{command.action: command.role for command in COMMANDS},
    "message.read": Role.ADMIN,  # a captured message is stored as it is: with its secrets
}
UNRECORDED = "This could not be written to the record of actions: the database cannot be written now."
CommandT = TypeVar("CommandT", bound=Command)
log = logging.getLogger(__name__)


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
        command.check_texts()
        command = self._placed(actor, command)
        do = command.prepare(self.store, self.settings, actor.name)
        self._allow(actor, command)
        try:
            command.check()
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
        command.check_texts()
        command = self._placed(actor, command)
        target = Target(self.store, self.settings, find_broker(self.settings, command.cluster or ""), actor.name)
        self._allow(actor, command)
        command.check()
        return preview(target, command)

    def look_again(self, actor: Actor, command: BulkRetry, *, include_retried: bool) -> Job:
        """The preview that ``command`` names, with or without the tasks that were retried before."""
        command.check_texts()
        target = Target(self.store, self.settings, find_broker(self.settings, command.cluster or ""))
        self._allow(actor, command)
        look_again(target, command.job or 0, include_retried=include_retried)
        return read_job(self.store, command.job or 0)

    def _placed(self, actor: Actor, command: CommandT) -> CommandT:
        """A bulk command whose cluster is named. Who may not do it is told so first, and learns nothing else."""
        if not isinstance(command, BulkCommand) or command.cluster is not None:
            return command
        first = msgspec.structs.replace(command, cluster=next(iter(self.settings.clusters), ""))
        self._allow(actor, first)
        return msgspec.structs.replace(command, cluster=cluster_of(self.store, self.settings, command))

    def _allow(self, actor: Actor, command: Command) -> None:
        try:
            require(actor, command.action, command.role)
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
        subjects = command.subjects
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


def perform_locally(settings: Settings, action: str, **fields: Any) -> Performed:
    """Performs a command on the database alone, as the user of this machine who runs the command line."""
    command = next(each for each in COMMANDS if each.action == action)
    actor = Actor(f"{getuser()} (command line)", Role.ADMIN)
    with closing(open_store(settings.database)) as store:
        return Controller(store, replace(settings, read_only=False)).perform(actor, command(**fields))


def _require_writable(settings: Settings, command: Command) -> None:
    if settings.read_only:
        raise Forbidden(f"this dashboard is read-only; {command.action} is refused to everybody")
