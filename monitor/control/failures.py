"""What people decide about failure groups. Nothing reaches the broker: it changes what the dashboard says of them."""

from monitor.control.commands import ChangeFailure
from monitor.control.commands import Performed
from monitor.control.target import Target
from monitor.errors import Conflict
from monitor.errors import NotFound
from monitor.records import FailureState
from monitor.store import failures

_MEANS = {
    FailureState.RESOLVED: "Resolved. When it fails again, it is shown as regressed.",
    FailureState.MUTED: "Muted. It is still counted, and left out of the list of open failures.",
    FailureState.OPEN: "Open again.",
}
_OPEN = frozenset(failures.UNRESOLVED)


def change_failure(target: Target, command: ChangeFailure) -> Performed:
    """Raises NotFound, and Conflict where the group is in that state already."""
    group = failures.failure_group(target.store, command.group)
    if group.cluster != target.cluster:
        raise NotFound(f"failure group {group.id} is not of the cluster {target.cluster}", id=group.id)
    if group.state is command.state or (command.state is FailureState.OPEN and group.state in _OPEN):
        raise Conflict(f"Failure group {group.id} is {group.state} already.", state=group.state)
    failures.set_failure_state(target.store, group.id, command.state, target.now())
    details = {"before": group.state, "name": group.name, "exception_type": group.exception_type}
    return Performed(outcome="done", message=_MEANS[command.state], details=details)
