"""Users, roles, and who may do what. Deny by default: an action that is not listed is nobody's."""

from dataclasses import dataclass
from enum import IntEnum

from monitor.errors import Forbidden


class Role(IntEnum):
    """Each role may do what the one before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. ``name`` goes into the record of actions."""

    name: str
    role: Role


ANONYMOUS = Actor("anonymous", Role.ADMIN)  # only behind a loopback address

REQUIRED_ROLE: dict[str, Role] = {
    "bulk.abort": Role.OPERATOR,
    "bulk.retry": Role.OPERATOR,
    "bulk.revoke": Role.OPERATOR,
    "failure.mute": Role.OPERATOR,
    "failure.reopen": Role.OPERATOR,
    "failure.resolve": Role.OPERATOR,
    "schedule.run": Role.OPERATOR,
    "message.read": Role.ADMIN,  # a captured message is stored as it is: with its secrets
    "queue.delete_message": Role.ADMIN,
    "queue.pause": Role.OPERATOR,
    "queue.purge": Role.ADMIN,
    "queue.read": Role.OPERATOR,
    "queue.resume": Role.OPERATOR,
    "task.find_message": Role.OPERATOR,
    "task.retry": Role.OPERATOR,
    "task.revoke": Role.OPERATOR,
    "task.revoke_stamped": Role.OPERATOR,
    "task.run": Role.OPERATOR,
    "view.delete": Role.OPERATOR,
    "view.rename": Role.OPERATOR,
    "view.save": Role.OPERATOR,
    "worker.add_consumer": Role.OPERATOR,
    "worker.autoscale": Role.OPERATOR,
    "worker.cancel_consumer": Role.OPERATOR,
    "worker.disable_events": Role.OPERATOR,
    "worker.enable_events": Role.OPERATOR,
    "worker.pool_grow": Role.OPERATOR,
    "worker.pool_restart": Role.OPERATOR,
    "worker.pool_shrink": Role.OPERATOR,
    "worker.rate_limit": Role.OPERATOR,
    "worker.shutdown": Role.ADMIN,
    "worker.time_limit": Role.OPERATOR,
}


def require(actor: Actor, action: str) -> None:
    """Raises Forbidden unless the actor's role may do the action."""
    needed = REQUIRED_ROLE.get(action)
    if needed is None:
        raise Forbidden(f"{action!r} is no action that anybody may do; known are {', '.join(sorted(REQUIRED_ROLE))}")
    if actor.role < needed:
        raise Forbidden(f"{actor.name} is {actor.role.name.lower()}; {action} needs the role {needed.name.lower()}")
