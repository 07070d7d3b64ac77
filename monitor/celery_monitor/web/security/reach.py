"""What a route asks of who calls it. A route that says nothing is denied to everybody who does not see everything.

The guard has found out who asks. Below it, a limited user gets a limited store: store/accounts/limited.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from celery_monitor.core.filters.scope import Limits, limits_of
from celery_monitor.errors import Forbidden
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.store.accounts.limited import limited, limited_settings
from celery_monitor.store.engine import Store
from celery_monitor.web.security.guard import actor_of


class Reach(IntEnum):
    """The smallest scope that a route is for."""

    PART = 1  # of a cluster: some queues or task names
    CLUSTERS = 2
    WHOLE = 3


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call a route. ``masked``: also who may not see arguments, as the route shows none."""

    reach: Reach = Reach.WHOLE
    masked: bool = False
    role: Role = Role.VIEWER


# The route reads the record alone, and no worker and no broker but for what is inside.
IN_PART = Access(Reach.PART, masked=True)
IN_CLUSTERS = Access(Reach.CLUSTERS, masked=True)
EVERYBODY = Access(Reach.PART, masked=True, role=Role.METRICS)


def allows(access: Access, limits: Limits) -> bool:
    """Whether somebody with these limits may call a route, if the role is sufficient."""
    reach = Reach.PART if limits.scope.is_partial else Reach.CLUSTERS if limits.scope.terms else Reach.WHOLE
    return reach >= access.reach and (limits.arguments or access.masked)


def within(request: Request) -> tuple[Actor, Store, Settings]:
    """The user, and the record and the settings within the limits of this user."""
    state, actor = request.app.state, actor_of(request)
    limits = limits_of(actor)
    return actor, limited(state.store, limits), limited_settings(state.settings, limits)


def check_access(actor: Actor, access: Access) -> None:
    """Raises Forbidden."""
    if actor.role < access.role:
        raise Forbidden(f"{actor.name} is for metrics and health only.")
    if not allows(access, limits_of(actor)):
        if actor.scope:
            raise Forbidden(f"This is for users who see all of a cluster; {actor.name} sees {actor.scope}.")
        raise Forbidden("This shows arguments of tasks, which are hidden from viewers.")


class LimitedRoute(Route):
    """A route that says who may call it."""

    def __init__(self, *args: Any, access: Access, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access = access


class LimitedWebSocketRoute(WebSocketRoute):
    """The same for a socket."""

    def __init__(self, *args: Any, access: Access, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access = access


class _Checked:
    """The application of a route, after the check."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        actor = scope.get("actor")
        if isinstance(actor, Actor):  # else the guard leaves the path open
            check_access(actor, self._access)
        await self._app(scope, receive, send)


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Puts the check before every route of a table."""
    for route in routes:
        if not isinstance(route, (Route, WebSocketRoute)):
            raise TypeError(f"nothing checks who calls {route!r}")
        route.app = _Checked(route.app, access_of(route))


def access_of(route: BaseRoute) -> Access:
    """What the route says, else for those alone who see everything."""
    return route.access if isinstance(route, (LimitedRoute, LimitedWebSocketRoute)) else Access()
