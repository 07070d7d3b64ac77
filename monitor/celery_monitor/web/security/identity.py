"""Who asks: an API token, a password, a trusted proxy's header, or the session of a browser that has signed in.

Also which proxies before us are believed about the client's address, the scheme and the user.
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlencode

from anyio import to_thread
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from celery_monitor.errors import Forbidden, Unauthenticated
from celery_monitor.records.user import ANONYMOUS, Actor, Role, Session
from celery_monitor.settings import Settings
from celery_monitor.store.accounts import users
from celery_monitor.store.accounts.users import find_user, has_users
from celery_monitor.store.engine import Store
from celery_monitor.web.security.auth import SIGN_IN, Gate
from celery_monitor.web.security.origin import is_address, is_loopback

FROM_PROXY = "from_trusted_proxy"  # in the scope of a request that came through one
SESSION_COOKIE = "celery_monitor_session"
HOUR = 3600.0
DAY = 86400.0
SIGN_IN_PATH = "/sign-in"
LONGEST_NEXT = 4000
UNKNOWN_TOKEN = "an unknown API token"  # noqa: S105 - a name
_own_path = re.compile(r"/(?![/\\])[^\\\x00-\x1f\x7f]*")


def next_path(text: str) -> str:
    """Where to go after signing in: a path of ours, never another site's address."""
    return text if len(text) <= LONGEST_NEXT and _own_path.fullmatch(text) else "/"


def sign_in_address(base: str, path: str) -> str:
    """The address of the sign-in page that leads back to ``path``."""
    query = "" if path in {"", "/"} else f"?{urlencode({'next': path})}"
    return f"{base}{SIGN_IN_PATH}{query}"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and by what that is proved. ``session`` is what page tokens are bound to beside the name."""

    actor: Actor
    source: str  # session, password, token, proxy, none
    session: str = ""


class Identities:
    """Finds out who asks. Sessions and tokens are read anew for each request, so what is revoked ends at once."""

    def __init__(self, settings: Settings, store: Store, gate: Gate) -> None:
        self._settings = settings
        self._store = store
        self._gate = gate

    async def identify(self, connection: HTTPConnection) -> Identity:
        """Raises Unauthenticated; Forbidden where nobody has to sign in, and another machine asks."""
        found = await self._identify(connection)
        if found.actor.role <= Role.VIEWER and not self._settings.viewer_sees_arguments:
            return replace(found, actor=replace(found.actor, sees_arguments=False))
        return found

    async def _identify(self, connection: HTTPConnection) -> Identity:
        authorization = connection.headers.get("authorization", "")
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return await self._admit_token(given.strip(), peer_of(connection))
        if authorization:
            return Identity(await self._gate.admit(authorization, peer_of(connection)), "password")
        if name := self._named_by_proxy(connection):
            return Identity(await self._admit_proxied(name, peer_of(connection)), "proxy")
        if secret := connection.cookies.get(SESSION_COOKIE):
            return await to_thread.run_sync(self._by_session, secret)
        if self._settings.has_sign_in or await to_thread.run_sync(has_users, self._store):
            raise Unauthenticated(SIGN_IN)
        _check_peer(connection)
        return Identity(ANONYMOUS, "none")

    def _named_by_proxy(self, connection: HTTPConnection) -> str | None:
        header = self._settings.auth_proxy_header
        if header is None or not connection.scope.get(FROM_PROXY):
            return None
        given = connection.headers.getlist(header)
        if len(given) > 1:  # one of them may be the client's own
            raise Unauthenticated(f"The proxy sent the header {header} twice.")
        return given[0] if given else None

    async def _admit_proxied(self, name: str, address: str) -> Actor:
        try:
            return await to_thread.run_sync(self._proxied, name)
        except Unauthenticated:
            await self._gate.failed.note(name, address, "named by the proxy, but disabled")
            raise

    async def _admit_token(self, secret: str, address: str) -> Identity:
        token = await to_thread.run_sync(users.find_token, self._store, secret)
        now = time.time()
        if token is None or (token.expires_at is not None and token.expires_at <= now):
            await self._gate.failed.note(f"token:{token.name}" if token else UNKNOWN_TOKEN, address, "API token")
            raise Unauthenticated("The API token is not valid: it was revoked, has expired, or never existed.")
        if now - (token.used_at or 0.0) > users.TOUCH_SECONDS:
            await to_thread.run_sync(users.touch_token, self._store, token, now)
        return Identity(Actor(f"token:{token.name}", token.role, token.scope), "token")

    def _proxied(self, name: str) -> Actor:
        """With role and scope of the stored user of this name; a viewer where there is none."""
        user = find_user(self._store, name)
        if user is not None and user.disabled:
            raise Unauthenticated("This user is disabled.")
        return Actor(name, user.role, user.scope) if user else Actor(name, Role.VIEWER)

    def _by_session(self, secret: str) -> Identity:
        session, now = users.find_session(self._store, secret), time.time()
        actor = None if session is None or self._is_over(session, now) else self._actor_of(session)
        if session is None or actor is None:
            raise Unauthenticated(SIGN_IN)
        if now - session.used_at > users.TOUCH_SECONDS:
            users.touch_session(self._store, session, now)
        return Identity(actor, "session", session.id)

    def _is_over(self, session: Session, now: float) -> bool:
        idle = self._settings.session_idle_hours * HOUR
        return now - session.used_at > idle or now - session.created_at > self._settings.session_days * DAY

    def _actor_of(self, session: Session) -> Actor | None:
        """``None`` where the user is gone or disabled. The role is the one that the user has now."""
        if session.role is not None:  # an identity provider said so
            return Actor(session.user, session.role, session.scope)
        if account := self._gate.accounts.get(session.user):
            return account.actor
        user = find_user(self._store, session.user)
        return None if user is None or user.disabled else Actor(user.name, user.role, user.scope)


def peer_of(connection: HTTPConnection) -> str:
    """The client's address, as far as it is known."""
    return connection.client.host if connection.client else ""


def _check_peer(connection: HTTPConnection) -> None:
    """Without users only this machine may ask, however we came to be served."""
    peer = connection.client
    if peer and is_address(peer.host) and not is_loopback(peer.host):
        raise Forbidden(
            "Without authentication, only this machine can use the dashboard. Add users to let others in.",
            client=peer.host,
        )


UNIX_PEER = "127.0.0.1"  # a socket file has no address; who may open it is a matter of its permissions


class TrustedProxies:
    """Reads X-Forwarded-For and X-Forwarded-Proto from trusted proxies alone, and marks what came through one."""

    def __init__(self, app: ASGIApp, networks: Iterable[str], *, unix_socket: bool) -> None:
        self.app = app
        self.unix_socket = unix_socket
        given = [*networks, *([UNIX_PEER] if unix_socket else [])]
        self.networks: list[IPv4Network | IPv6Network] = [ip_network(each) for each in given]
        self.forwarded: ASGIApp = ProxyHeadersMiddleware(app, trusted_hosts=given)  # type: ignore[arg-type,assignment]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and self._is_trusted(scope):
            scope[FROM_PROXY] = True
            await self.forwarded(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_trusted(self, scope: Scope) -> bool:
        if self.unix_socket and not scope.get("client"):
            scope["client"] = (UNIX_PEER, 0)
        client = scope.get("client")
        try:
            peer = ip_address(client[0]) if client else None
        except ValueError:
            return False
        return peer is not None and any(peer in network for network in self.networks)
