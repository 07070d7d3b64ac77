"""Which requests come from our own page: host names, Sec-Fetch-Site, Origin and the page token.

itsdangerous signs the token. Libraries such as asgi-csrf compare it with a cookie, which we do not set.
"""

import time
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.datastructures import Headers

from celery_monitor.errors import Forbidden
from celery_monitor.records.user import Actor

BROWSER_HEADERS = ("origin", "referer", "cookie", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")
MOST_SHOWN = 200  # characters of a header in a message
OWN_SITES = frozenset({"same-origin", "none"})
TOKEN_SECONDS = 86_400.0
CLOCK_DIFFERENCE_SECONDS = 300.0  # between two web processes, one of which made the token
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def is_address(host: str) -> bool:
    """Whether a host is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback."""
    if not is_address(host):
        return host == "localhost"
    address = ip_address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def split_host(host: str) -> tuple[str, int | None]:
    """Name, in lower case and without brackets, and port of a Host header. Raises Forbidden for an invalid one."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        name, port = None, None
    if not name or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise Forbidden("The Host header of the request is not valid.")
    return name.rstrip("."), port


class Hosts:
    """The allowed host names. Protects from DNS rebinding: another site whose name resolves to this machine.

    With users, any IP address is allowed: an address cannot be rebound.
    """

    def __init__(self, names: Iterable[str], *, any_address: bool) -> None:
        self.names = frozenset(name.lower().strip("[]").rstrip(".") for name in names)
        self.any_address = any_address

    def check(self, headers: Headers) -> None:
        """Raises Forbidden unless the one Host header is ours."""
        given = headers.getlist("host")
        name, _ = split_host(given[0] if len(given) == 1 else "")
        if is_loopback(name) or name in self.names or (self.any_address and is_address(name)):
            return
        raise Forbidden(f"Host name {name} is not allowed; add it to the setting trusted_hosts.")


def check_site(headers: Headers) -> None:
    """Raises Forbidden if a browser sends the request for a page of another site.

    Browsers that send no Sec-Fetch-Site (plain HTTP to another machine) still send Origin with a POST and with a
    websocket handshake.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        allowed = site in OWN_SITES
    else:
        allowed = "origin" not in headers or is_own_origin(headers["origin"], headers.get("host", ""))
    if not allowed:
        proxy = "" if site is not None else f" {foreign_host(headers['origin'], headers.get('host', ''))}"
        raise Forbidden(f"The request came from another site's page. Open the dashboard and try again there.{proxy}")


def foreign_host(origin: str, host: str) -> str:
    """Advice for whoever runs a proxy that replaces the Host header."""
    return (
        f"If this is the dashboard's own page: it is at {origin[:MOST_SHOWN]}, but the proxy in front of the dashboard "
        f"sends Host {host[:MOST_SHOWN]}. Pass on the browser's; nginx: proxy_set_header Host $http_host;"
    )


def is_own_origin(origin: str, host: str) -> bool:
    """Ignores the scheme, which is unknown behind a proxy that terminates TLS."""
    try:
        parts = urlsplit(origin)
        default = DEFAULT_PORTS.get(parts.scheme)
        own = urlsplit(f"//{host}")
        return bool(parts.hostname) and (parts.hostname, parts.port or default) == (
            own.hostname,
            own.port or default,
        )
    except ValueError:
        return False


def is_script(headers: Headers) -> bool:
    """Whether no browser sent this: browsers add one of these headers to every unsafe request."""
    return not any(header in headers for header in BROWSER_HEADERS)


class Tokens:
    """Signed proofs that a page was rendered by us for this actor and session.

    They end after a day; a page that stays open gets new ones over its socket. Without the actor's own credentials and
    our own origin a token opens nothing; the end of its session ends it, and another secret key ends them all.
    """

    def __init__(self, secret: str) -> None:
        self._serializer = URLSafeTimedSerializer(secret, salt="page-token")

    def make(self, actor: Actor, session: str) -> str:
        """A token of URL-safe characters."""
        token = self._serializer.dumps([actor.name, session])
        return token if isinstance(token, str) else token.decode()

    def check(self, token: str | None, actor: Actor, session: str) -> float:
        """Its age in seconds. Raises Forbidden unless the token was made for this actor and session, within a day."""
        content, age = self._content(token or "")
        if content != [actor.name, session]:
            raise Forbidden("The page's token is missing or not valid. Reload the page and try again.")
        if not -CLOCK_DIFFERENCE_SECONDS <= age <= TOKEN_SECONDS:
            raise Forbidden("The page's token is no longer valid. Reload the page and try again.")
        return age

    def _content(self, token: str) -> tuple[object, float]:
        try:
            content, made = self._serializer.loads(token, return_timestamp=True)
        except BadSignature:
            return None, 0.0
        return content, time.time() - made.timestamp()
