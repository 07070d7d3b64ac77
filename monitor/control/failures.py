"""What people decide about failure groups. Nothing reaches the broker: it changes what the dashboard says of them."""

from typing import ClassVar

from monitor.access import Role
from monitor.control.commands import ClusterCommand
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.control.target import Target
from monitor.errors import Conflict
from monitor.errors import NotFound
from monitor.records import FailureState
from monitor.store import failures

ON_FAILURE = "failures/{id}/"


class ChangeFailure(ClusterCommand, frozen=True, kw_only=True):
    """Another state of a failure group."""

    role = Role.OPERATOR
    subject = "failure group {0.group}"
    body = "FailureBody"
    address = ("cluster", "group")
    note = "only marks the group"
    state: ClassVar[FailureState]
    message: ClassVar[str]
    group: int

    def run(self, target: Target) -> Performed:
        """Raises NotFound, and Conflict where the group is in that state already."""
        group = failures.failure_group(target.store, self.group)
        if group.cluster != target.cluster:
            raise NotFound(f"failure group {group.id} is not of the cluster {target.cluster}", id=group.id)
        unresolved = self.state is FailureState.OPEN and group.state in failures.UNRESOLVED
        if group.state is self.state or unresolved:
            raise Conflict(f"Failure group {group.id} is {group.state} already.", state=group.state)
        failures.set_failure_state(target.store, group.id, self.state, target.now())
        details = {"before": group.state, "name": group.name, "exception_type": group.exception_type}
        result = TaskResult(id=str(group.id), outcome="done", message=self.message)
        return Performed(outcome="done", message=self.message, results=(result,), details=details)


class ResolveFailure(ChangeFailure, frozen=True, kw_only=True):
    """Call a kind of failure mended; its next failure is a regression.

    Why the state of a failure group is changed.
    """

    action = "failure.resolve"
    route = ON_FAILURE + "resolve"
    note = "only marks the group; one that fails again is *regressed*"
    state = FailureState.RESOLVED
    message = "Resolved. When it fails again, it is shown as regressed."


class MuteFailure(ChangeFailure, frozen=True, kw_only=True):
    """Leave a kind of failure out of the open ones."""

    action = "failure.mute"
    route = ON_FAILURE + "mute"
    state = FailureState.MUTED
    message = "Muted. It is still counted, and left out of the list of open failures."


class ReopenFailure(ChangeFailure, frozen=True, kw_only=True):
    """Take a resolved or muted kind of failure back."""

    action = "failure.reopen"
    route = ON_FAILURE + "reopen"
    state = FailureState.OPEN
    message = "Open again."


FAILURE_COMMANDS: tuple[type[ChangeFailure], ...] = (ResolveFailure, MuteFailure, ReopenFailure)
