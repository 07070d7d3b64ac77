"""The middleware before every route: security headers, body limit, host, user, origin and token.

Whatever is not allowed here is denied: a new route needs no code to be guarded.

A script that uses the JSON API needs no page token. It shows that it is not a browser by sending none of the headers
that every browser adds to an unsafe request, and by ``Content-Type: application/json``, which a page of another site
cannot send without a preflight, which is never granted. Both are required: the guard refuses any other type, and the
operation refuses a body without a type.
"""

from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_monitor.control.commands import ANONYMOUS, Actor
from celery_monitor.errors import (
    Forbidden,
    InvalidInput,
    MonitorError,
    SettingsError,
    TooLarge,
    Unauthenticated,
    UnsupportedType,
)
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import read_secret
from celery_monitor.web.problems import error_json, error_text, is_api, local_path
from celery_monitor.web.security.auth import SIGN_IN, Gate, User, parse_users
from celery_monitor.web.security.origin import Hosts, Tokens, check_site, is_address, is_loopback, is_script

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/healthcheck", "/metrics"})
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"
SOCKET_FIELD = "token"  # in the query: a browser cannot add a header to a websocket handshake
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


def check_bind(settings: Settings) -> None:
    """Raises SettingsError if other machines could connect without authentication."""
    _users(settings)


def _users(settings: Settings) -> dict[str, User]:
    users = parse_users(settings.basic_auth)
    if users or is_loopback(settings.host.strip("[]")):
        return users
    raise SettingsError(
        f"refusing to listen on {settings.host or 'every address'} without authentication: anybody there could retry "
        "and revoke tasks. Add --basic-auth USER:PASSWORD, or listen on --host 127.0.0.1"
    )


def middleware(settings: Settings, store: Store) -> list[Middleware]:
    """Outermost first. Raises SettingsError as ``check_bind`` does."""
    secret = settings.secret_key or read_secret(store, "secret_key")
    return [
        Middleware(SecurityHeaders),
        Middleware(BodyLimit),
        Middleware(Guard, settings=settings, users=_users(settings), secret=secret),
    ]


def actor_of(connection: HTTPConnection) -> Actor:
    """The user. Raises Unauthenticated on a path that the guard leaves open (``/metrics``)."""
    actor = connection.scope.get("actor")
    if not isinstance(actor, Actor):
        raise Unauthenticated(SIGN_IN)
    return actor


def page_token(connection: HTTPConnection) -> str:
    """The token for the page's forms (field ``csrf_token``), fetches (``X-CSRF-Token``) and socket (``?token=``)."""
    tokens: Tokens = connection.scope["tokens"]
    return tokens.make(actor_of(connection))


def check_socket(websocket: HTTPConnection) -> None:
    """Raises Forbidden unless our own page opens the socket."""
    check_site(websocket.headers)
    tokens: Tokens = websocket.scope["tokens"]
    tokens.check(websocket.query_params.get(SOCKET_FIELD), actor_of(websocket))


class SecurityHeaders:
    """Adds the headers to every response, errors and static files included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "private, no-cache")
            await send(message)

        await self.app(scope, receive, send_with_headers)


class BodyLimit:
    """Reading more than ``limit`` bytes of a body raises TooLarge."""

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

        await self.app(scope, receive_bounded, send)


def _content_length(scope: Scope) -> int:
    text = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


class Guard:
    """Checks host, then user, then origin and token, before the application is called."""

    def __init__(self, app: ASGIApp, settings: Settings, users: dict[str, User], secret: str) -> None:
        self.app = app
        self.gate = Gate(users) if users else None
        self.hosts = Hosts((settings.host, *settings.trusted_hosts), any_address=bool(users))
        self.tokens = Tokens(secret)
        self.prefix = settings.url_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        try:
            scope["tokens"] = self.tokens
            receive = await self._check(scope, receive)
        except MonitorError as error:
            await self._refuse(error, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive) -> Receive:
        path = local_path(scope, self.prefix)
        safe = scope["type"] == "http" and scope["method"] in SAFE_METHODS
        if path == "/healthcheck" and safe:
            return receive  # load balancers use any host name, and it reveals nothing
        self.hosts.check(Headers(scope=scope))
        if path in OPEN_PATHS and safe:
            return receive
        scope["actor"] = await self._admit(scope)
        if scope["type"] == "websocket":
            check_socket(HTTPConnection(scope))
            return receive
        return receive if safe else await self._check_unsafe(Request(scope, receive), scope["actor"])

    async def _admit(self, scope: Scope) -> Actor:
        if self.gate is not None:
            return await self.gate.admit(Headers(scope=scope).get("authorization", ""))
        _check_peer(scope)
        return ANONYMOUS

    async def _check_unsafe(self, request: Request, actor: Actor) -> Receive:
        check_site(request.headers)
        kind = content_type(request.headers)
        if is_api(request.scope, self.prefix):
            if kind not in {JSON_TYPE, ""}:  # an operation with a body refuses a missing type itself
                raise UnsupportedType(f"Send the body as Content-Type: {JSON_TYPE}.", given=kind)
            if is_script(request.headers):
                return request.receive
        token = request.headers.get(CSRF_HEADER)
        if token is None and kind == FORM_TYPE:
            body = await request.body()
            self.tokens.check(_form_token(body), actor)
            return _replay(body, request.receive)
        self.tokens.check(token, actor)
        return request.receive

    async def _refuse(self, error: MonitorError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # answered with 403; a browser's script sees neither status nor text
            await send({"type": "websocket.close", "code": 1008, "reason": error.message})
            return
        respond = error_json if is_api(scope, self.prefix) else error_text
        await respond(error)(scope, receive, send)


def _check_peer(scope: Scope) -> None:
    """Without users only this machine may connect, whatever server runs the application."""
    peer = scope.get("client")
    if peer and is_address(peer[0]) and not is_loopback(peer[0]):
        raise Forbidden("Without authentication only this machine may connect; set basic_auth.", client=peer[0])


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
