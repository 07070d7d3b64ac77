"""The only way to change a cluster: check the role, run the command, record the action."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import msgspec

from celery_monitor.control.commands import Command, Performed, Target, find_broker, require
from celery_monitor.core.filters.scope import limits_of, parse_scope
from celery_monitor.errors import ConfirmationRequired, Forbidden, MonitorError, NotFound, StoreUnavailable
from celery_monitor.records.job import Job
from celery_monitor.records.page import Action
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.store.accounts.limited import limited, limited_settings
from celery_monitor.store.actions import record_action
from celery_monitor.store.engine import Store

UNRECORDED = "Not added to the record of actions: the database cannot be written now."
CommandT = TypeVar("CommandT", bound=Command)
log = logging.getLogger(__name__)


class JobRunner(Protocol):
    """Runs jobs: celery_monitor.control.jobs.Runner."""

    def start(self) -> None: ...


class Controller:
    """Runs commands for people. Threads may share one."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings

    def perform(self, actor: Actor, command: Command) -> Performed:
        """Runs the command and records actor, action, target, reason and outcome, also of a denial or a failure.

        Not recorded: ConfirmationRequired, which asks back. Raises a MonitorError that says why nothing was done.
        """
        command.check_texts()
        command = self._with_cluster(actor, command)
        run = command.prepare(*self._within(actor), actor.name)
        self._check_allowed(actor, command)
        try:
            command.check()
            performed = run()
        except ConfirmationRequired:
            raise
        except Exception as error:
            message = error.message if isinstance(error, MonitorError) else f"{type(error).__name__}: {error}"
            self._record(actor, command, "failed", message)
            raise
        if self._record(actor, command, performed.outcome, performed.message, performed.details):
            return performed
        return replace(performed, message=f"{performed.message} {UNRECORDED}")

    def note(
        self, actor: Actor, action: str, role: Role, *, cluster: str | None, query: str, parameters: dict[str, object]
    ) -> None:
        """Records that somebody exports something, or was denied it. Raises Forbidden."""
        noted = Action(
            at=Target.now(), actor=actor.name, action=action, cluster=cluster, query=query, parameters=parameters
        )
        try:
            require(actor, action, role)
        except Forbidden as error:
            self._put(msgspec.structs.replace(noted, outcome="denied", message=error.message))
            raise
        count = noted.parameters.pop("count", None)
        self._put(msgspec.structs.replace(noted, count=count if isinstance(count, int) else None))

    def preview(self, actor: Actor, command: Command) -> Job:
        """The preview of a bulk command, as a job that waits for confirmation. Only a denial is recorded."""
        command.check_texts()
        command = self._with_cluster(actor, command)
        store, settings = self._within(actor)
        target = Target(store, settings, find_broker(settings, command.cluster or ""), actor.name)
        self._check_allowed(actor, command)
        command.check()
        return command.preview(target)

    def _with_cluster(self, actor: Actor, command: CommandT) -> CommandT:
        """The command with its cluster. The role is checked before, so that a denial reveals nothing of the record."""
        if not command.finds_cluster or command.cluster is not None:
            return command
        store, settings = self._within(actor)
        self._check_allowed(actor, msgspec.structs.replace(command, cluster=next(iter(settings.clusters), "")))
        return msgspec.structs.replace(command, cluster=command.find_cluster(store, settings))

    def _within(self, actor: Actor) -> tuple[Store, Settings]:
        """What a command of this person reads; it writes what it has checked."""
        limits = limits_of(actor)
        return limited(self.store, limits), limited_settings(self.settings, limits)

    def _check_allowed(self, actor: Actor, command: Command) -> None:
        try:
            require(actor, command.action, command.role)
            _require_writable(self.settings, command)
            command.check_scope(parse_scope(actor.scope))
        except (Forbidden, NotFound) as error:
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
        """Whether the action was recorded. A database that is down must not hide what was done."""
        subjects = command.subjects
        parameters: dict[str, Any] = dict(details or {})
        action = Action(
            at=Target.now(),
            actor=actor.name,
            action=command.action,
            cluster=command.cluster,
            target=subjects[0] if len(subjects) == 1 else None,
            query=parameters.pop("query", getattr(command, "query", None)),
            count=parameters.pop("count", len(subjects) or None),
            reason=command.reason,
            parameters=({"subjects": list(subjects)} if len(subjects) > 1 else {}) | parameters,
            outcome=outcome,
            message=message,
        )
        return self._put(action)

    def _put(self, action: Action) -> bool:
        try:
            record_action(self.store, action)
        except StoreUnavailable:
            log.exception(
                "not recorded: %s by %s on %s: %s", action.action, action.actor, action.target, action.outcome
            )
            return False
        return True


def _require_writable(settings: Settings, command: Command) -> None:
    if settings.read_only:
        raise Forbidden(f"this dashboard is read-only; {command.action} is refused for everybody")
