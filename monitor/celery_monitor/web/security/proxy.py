"""A proxy before us: whose word is believed about the client's address, the scheme and the user."""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from celery_monitor.web.security.identity import FROM_PROXY

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
