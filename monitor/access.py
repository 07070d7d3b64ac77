"""Users and roles. What role an action needs stands in its command."""

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


def require(actor: Actor, action: str, needed: Role) -> None:
    """Raises Forbidden unless the actor's role may do the action."""
    if actor.role < needed:
        raise Forbidden(f"{actor.name} is {actor.role.name.lower()}; {action} needs the role {needed.name.lower()}")
