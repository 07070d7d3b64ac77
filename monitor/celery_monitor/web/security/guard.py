"""The middleware before every route: security headers, body limit, host, user, origin and token.

Whatever is not allowed here is denied: a new route needs no code to be guarded.

A script that uses the JSON API needs no page token. It shows that it is not a browser by sending none of the headers
that every browser adds to an unsafe request, and by ``Content-Type: application/json``, which a page of another site
cannot send without a preflight, which is never granted. Both are required: the guard refuses any other type, and the
operation refuses a body without a type. A script that uses Flower's API sends forms, so there the first alone decides.
"""

from contextlib import suppress
from functools import partial
from urllib.parse import parse_qsl, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_monitor.errors import (
    InvalidInput,
    MonitorError,
    TooLarge,
    Unauthenticated,
    UnsupportedType,
)
from celery_monitor.records.user import Actor
from celery_monitor.settings import Settings
from celery_monitor.store.accounts.users import find_user
from celery_monitor.store.actions import record_action
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import read_secret
from celery_monitor.web.problems import error_json, error_text, is_api, is_flower, local_path
from celery_monitor.web.security.access import check_bind
from celery_monitor.web.security.auth import SIGN_IN, FailedSignIns, Gate, parse_accounts
from celery_monitor.web.security.identity import (
    SIGN_IN_PATH,
    Identities,
    Identity,
    TrustedProxies,
    sign_in_address,
)
from celery_monitor.web.security.origin import Hosts, Tokens, check_site, is_loopback, is_script

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PROBES = frozenset({"/healthcheck", "/livez", "/readyz"})
OPEN_PATHS = PROBES | {"/metrics"}
STATIC_PATH = "/static/"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"
FORM_TYPE = "application/x-www-form-urlencoded"
JSON_TYPE = "application/json"
MOST_FIELDS = 10_000
BODY_LIMIT = 4 * 1024 * 1024

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # no-referrer would make the Origin of our own forms "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def make_gate(settings: Settings, store: Store) -> Gate:
    """What checks passwords. Raises SettingsError for an entry of basic_auth that cannot be used."""
    failed = FailedSignIns(partial(record_action, store))
    return Gate(parse_accounts(settings.basic_auth), partial(find_user, store), failed)


def secret_of(settings: Settings, store: Store) -> str:
    """What signs page tokens."""
    return settings.secret_key or read_secret(store, "secret_key")


def middleware(settings: Settings, store: Store, gate: Gate | None = None) -> list[Middleware]:
    """What stands before the routes, outermost first. Raises SettingsError as ``check_bind`` does."""
    gate = gate or make_gate(settings, store)
    check_bind(settings, store)
    secret = secret_of(settings, store)
    return [
        Middleware(SecurityHeaders),
        Middleware(TrustedProxies, networks=settings.trusted_proxies, unix_socket=settings.unix_socket is not None),
        Middleware(BodyLimit),
        Middleware(Guard, settings=settings, identities=Identities(settings, store, gate), secret=secret),
    ]


def actor_of(connection: HTTPConnection) -> Actor:
    """The user. Raises Unauthenticated on a path that the guard leaves open (``/metrics``)."""
    actor = connection.scope.get("actor")
    if not isinstance(actor, Actor):
        raise Unauthenticated(SIGN_IN)
    return actor


def page_token(connection: HTTPConnection) -> str:
    """The token for the page's forms (field ``csrf_token``), fetches (``X-CSRF-Token``) and socket (first message)."""
    tokens: Tokens = connection.scope["tokens"]
    return tokens.make(actor_of(connection), _session_of(connection))


def _session_of(connection: HTTPConnection) -> str:
    identity: Identity = connection.scope["identity"]
    return identity.session


def check_page_token(connection: HTTPConnection, token: str) -> float:
    """The age in seconds of a token that the socket was sent. Raises Forbidden.

    It comes as a message, since addresses are logged, and a browser cannot add a header to a websocket handshake.
    """
    tokens: Tokens = connection.scope["tokens"]
    return tokens.check(token, actor_of(connection), _session_of(connection))


class SecurityHeaders:
    """Adds the headers to every response, errors and static files included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-store")  # static files say otherwise
            await send(message)

        await self.app(scope, receive, send_with_headers)


class BodyLimit:
    """Reading more than ``limit`` bytes of a body raises TooLarge. A client that leaves half-way is no error."""

    def __init__(self, app: ASGIApp, limit: int = BODY_LIMIT) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        claimed = _content_length(scope)
        read = 0

        async def receive_bounded() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if max(claimed, read) > self.limit:
                    raise TooLarge(f"The request is larger than {self.limit} bytes; send less.", limit=self.limit)
            return message

        with suppress(ClientDisconnect):  # there is nobody to be answered, and nothing to be logged
            await self.app(scope, receive_bounded, send)


def _content_length(scope: Scope) -> int:
    text = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


class Guard:
    """Checks host, then user, then origin and token, before the application is called."""

    def __init__(self, app: ASGIApp, settings: Settings, identities: Identities, secret: str) -> None:
        self.app = app
        self.identities = identities
        loopback = is_loopback(settings.host.strip("[]"))
        self.hosts = Hosts(
            (settings.host, *settings.trusted_hosts), any_address=not loopback or bool(settings.basic_auth)
        )
        self.tokens = Tokens(secret)
        self.prefix = settings.url_prefix
        self.open_paths = OPEN_PATHS - {"/metrics"} if settings.metrics_need_token else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        try:
            scope["tokens"], scope["identities"] = self.tokens, self.identities
            receive = await self._check(scope, receive)
        except MonitorError as error:
            await self._refuse(error, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive) -> Receive:
        path = local_path(scope, self.prefix)
        safe = scope["type"] == "http" and scope["method"] in SAFE_METHODS
        if path in PROBES and safe:
            return receive  # load balancers use any host name, and these reveal nothing
        self.hosts.check(Headers(scope=scope))
        if path in self.open_paths and safe:
            return receive
        if path.startswith(STATIC_PATH) and safe:  # the same for everybody, and the sign-in page needs them
            return receive
        if f"{path}/".startswith(f"{SIGN_IN_PATH}/") and scope["type"] == "http":
            if not safe:  # an identity provider leads back here by a link
                check_site(Headers(scope=scope))
            return receive
        scope["identity"] = await self.identities.identify(HTTPConnection(scope))
        scope["actor"] = scope["identity"].actor
        if scope["type"] == "websocket":
            check_site(Headers(scope=scope))  # the token is its first message
            return receive
        return receive if safe else await self._check_unsafe(Request(scope, receive))

    async def _check_unsafe(self, request: Request) -> Receive:
        check_site(request.headers)
        kind = content_type(request.headers)
        api = is_api(request.scope, self.prefix)
        if api and kind not in {JSON_TYPE, ""}:  # an operation with a body refuses a missing type itself
            raise UnsupportedType(f"Send the body as Content-Type: {JSON_TYPE}.", given=kind)
        if (api or is_flower(request.scope, self.prefix)) and is_script(request.headers):
            return request.receive
        actor, session = actor_of(request), _session_of(request)
        token = request.headers.get(CSRF_HEADER)
        if token is None and kind == FORM_TYPE:
            body = await request.body()
            self.tokens.check(_form_token(body), actor, session)
            return _replay(body, request.receive)
        self.tokens.check(token, actor, session)
        return request.receive

    async def _refuse(self, error: MonitorError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # answered with 403; a browser's script sees neither status nor text
            await send({"type": "websocket.close", "code": 1008, "reason": error.message})
            return
        api = is_api(scope, self.prefix)
        for_scripts = api or is_flower(scope, self.prefix)
        if isinstance(error, Unauthenticated) and not for_scripts and _is_browser(scope):
            path = scope["path"].removeprefix(base := scope.get("root_path", "").rstrip("/"))
            address = sign_in_address(base + self.prefix, _following(scope, path.removeprefix(self.prefix)))
            await RedirectResponse(address, 303)(scope, receive, send)
            return
        respond = error_json if api else error_text
        response = respond(error)
        if not is_script(Headers(scope=scope)) and "www-authenticate" in response.headers:
            del response.headers["www-authenticate"]  # a browser would ask for a password over our page
        await response(scope, receive, send)


def _is_browser(scope: Scope) -> bool:
    """A script sends no Sec-Fetch-Mode and does not ask for HTML."""
    headers = Headers(scope=scope)
    return headers.get("sec-fetch-mode", "navigate") == "navigate" and "text/html" in headers.get("accept", "")


def _following(scope: Scope, path: str) -> str:
    """Where the sign-in page leads: what was asked for, or the start page after a form."""
    if scope["method"] not in SAFE_METHODS:
        return "/"
    query = scope["query_string"].decode("latin-1")
    return quote(path, safe="/:@", errors="replace") + (f"?{query}" if query else "")


def content_type(headers: Headers) -> str:
    """The media type of a body, without parameters; empty if missing."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _form_token(body: bytes) -> str | None:
    try:
        fields = parse_qsl(body.decode("latin-1"), max_num_fields=MOST_FIELDS)
    except ValueError:
        raise InvalidInput(f"The form has more than {MOST_FIELDS} fields; send fewer.") from None
    return dict(fields).get(CSRF_FIELD)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
