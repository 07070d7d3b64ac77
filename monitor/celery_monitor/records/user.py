"""Users of the dashboard, and what proves who asks: a session of a browser, a token of a script."""

from dataclasses import dataclass
from enum import IntEnum

import msgspec


class Role(IntEnum):
    """Each role may do what the one before it may."""

    METRICS = 0  # a token for metrics and health alone
    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


ROLES = {role.name.lower(): role for role in Role}


@dataclass(frozen=True, slots=True)
class Actor:
    """The person who acts. ``name`` goes into the record of actions.

    ``scope`` is what this person may see and act on, as text of core/filters/scope.py; empty: everything.
    """

    name: str
    role: Role
    scope: str = ""
    sees_arguments: bool = True


ANONYMOUS = Actor("anonymous", Role.ADMIN)  # only on a loopback address


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may sign in. ``password`` is an argon2 hash; ``None``: there is none to sign in with."""

    name: str
    role: Role
    password: str | None = None
    disabled: bool = False
    scope: str = ""
    created_at: float


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A browser that has signed in. Times are epoch seconds."""

    id: str  # names it in pages and the trail; proves nothing
    user: str
    role: Role | None  # None: role and scope that the user has now
    source: str  # password, oidc
    created_at: float
    used_at: float
    address: str
    agent: str  # User-Agent, cut
    scope: str = ""


class ApiToken(msgspec.Struct, frozen=True, kw_only=True):
    """A key for scripts. Only a hash of it is stored."""

    id: int
    name: str
    role: Role
    actor: str  # who made it
    scope: str = ""
    created_at: float
    expires_at: float | None = None
    used_at: float | None = None


def of_scope(scope: str) -> str:
    """What is said behind a role of its scope."""
    return f" of {scope}" if scope else ""
