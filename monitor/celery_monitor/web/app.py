"""The web process: the route table, a handler per kind of route, and uvicorn on a bound socket."""

import asyncio
import os
import re
import socket
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from functools import partial
from pkgutil import resolve_name
from threading import Event, Thread
from urllib.parse import quote

import msgspec
import uvicorn
import uvicorn.server
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.websockets import WebSocket

from celery_monitor.brokers.connection import with_application
from celery_monitor.control import ALLOWED
from celery_monitor.control.jobs import Runner
from celery_monitor.control.perform import Controller
from celery_monitor.core.filters.scope import limits_of
from celery_monitor.errors import MonitorError, SettingsError, StoreUnavailable
from celery_monitor.records.user import ANONYMOUS
from celery_monitor.settings import Settings, load
from celery_monitor.store.engine import Changes, Store, open_store
from celery_monitor.web import api, flower, probes
from celery_monitor.web.deadlines import DeadlineProtocol
from celery_monitor.web.live import LARGEST_MESSAGE, MOST_ANONYMOUS_SOCKETS, MOST_SOCKETS_OF_USER, Live, Visitor, close
from celery_monitor.web.pages import (
    Context,
    FormRequest,
    Page,
    Result,
    View,
    actions,
    alerts,
    failures,
    jobs,
    overview,
    queues,
    run,
    schedule,
    task,
    tasks,
    users,
    views,
    workers,
    workflows,
)
from celery_monitor.web.present import Presenter, csrf_field
from celery_monitor.web.problems import handlers
from celery_monitor.web.render import Assets, assets, link, make_environment
from celery_monitor.web.security.guard import actor_of, check_page_token, make_gate, middleware, page_token, secret_of
from celery_monitor.web.security.origin import foreign_host, is_own_origin
from celery_monitor.web.security.reach import (
    EVERYBODY,
    IN_PART,
    Access,
    LimitedRoute,
    LimitedWebSocketRoute,
    Reach,
    check_routes,
)
from celery_monitor.web.security.sign_in import SignIn
from celery_monitor.web.usage import UseRecorder
from celery_monitor.web.wording import register_names

PAGES: tuple[Page, ...] = (  # in the order of the navigation
    overview.PAGE,
    tasks.PAGE,
    task.PAGE,
    failures.PAGE,
    failures.GROUP_PAGE,
    queues.PAGE,
    queues.QUEUE_PAGE,
    workers.PAGE,
    workers.WORKER_PAGE,
    workflows.PAGE,
    workflows.WORKFLOW_PAGE,
    schedule.PAGE,
    alerts.PAGE,
    actions.PAGE,
    run.PAGE,
    jobs.PAGE,
    views.PAGE,
    users.PAGE,
)
THEMES = ("light", "dark")
NOTICE_COOKIE = "celery_monitor_notice"
THEME_COOKIE = "celery_monitor_theme"
LONGEST_NOTICE = 1500
NOTICE_SECONDS = 60
SESSION_CHECK_SECONDS = 5.0
SIGNED_OUT = 4401
NO_WEBSOCKET = (
    "Websockets do not reach the dashboard. If there is a proxy in front of it, let it pass them on; nginx: "
    'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
)

Handler = Callable[[Request], Response]


class Notice(msgspec.Struct):
    """The outcome of a form, shown on the next page; kept in a cookie until then."""

    text: str
    tone: str
    link: str | None = None


def create_app(settings: Settings | None = None) -> Starlette:
    """The ASGI application. Opens the database; raises SettingsError or StoreUnavailable.

    Without settings those of the environment, as for ``uvicorn --factory celery_monitor.web.app:create_app``. It can be
    mounted in another application; ``settings.url_prefix`` is below that mount.
    """
    settings = with_application(load({}, os.environ)) if settings is None else settings
    register_names()
    store = open_store(settings.database)
    environment = make_environment()
    presenter = Presenter(PAGES, environment, store, settings, ALLOWED)
    gate = make_gate(settings, store)
    table = [*sign_in_routes(SignIn(settings, store, gate, environment), settings, store), *routes(presenter)]
    check_routes(table)
    latencies = probes.Latencies()
    around = [Middleware(probes.MeasureLatency, latencies=latencies), *middleware(settings, store, gate)]
    app = Starlette(
        routes=[Mount(settings.url_prefix.rstrip("/"), routes=table)] if settings.url_prefix.strip("/") else table,
        middleware=[*around, Middleware(UseRecorder, store=store)],
        exception_handlers=handlers(error_page),
        lifespan=_lifespan,
    )
    app.state.store = store
    app.state.settings = settings
    app.state.latencies = latencies
    app.state.controller = Controller(store, settings)
    app.state.runner = Runner(store, settings)
    app.state.presenter = presenter
    app.state.failed_sign_ins = gate.failed
    app.state.static_version = str(environment.globals["static"]).rpartition("/")[2]
    app.state.live = Live(presenter.snapshot, lambda: Changes(store))
    return app


def sign_in_routes(sign_in: SignIn, settings: Settings, store: Store) -> list[Route]:
    """Also those of an identity provider, where one is set. Raises SettingsError without the extra that it needs."""
    if settings.oidc_client_id is None:
        return sign_in.routes()
    try:
        provider_of = resolve_name("celery_monitor.web.security.oidc:Provider")
    except ImportError as error:
        raise SettingsError(f"oidc_client_id needs {error.name}; pip install 'celery-monitor[oidc]'") from None
    provider = provider_of(settings, sign_in, secret_of(settings, store))
    sign_in.provider = provider.title
    return [*provider.routes(), *sign_in.routes()]


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    """Runs jobs while the application is served. Where the application around it does not pass on its lifespan, jobs
    begin with the first one that is started here, and those of an ended process wait for that."""
    app.state.runner.start()
    yield
    await asyncio.to_thread(app.state.failed_sign_ins.flush)
    await asyncio.to_thread(app.state.runner.stop)


def routes(presenter: Presenter) -> list[BaseRoute]:
    """The whole route table."""
    table = [*probes.routes(), *api.routes(), *flower.routes()]
    table.append(LimitedWebSocketRoute("/live", live, name="live", access=Access(Reach.PART, masked=True)))
    table.append(LimitedRoute("/live", why_not_live, methods=["GET"], name="why-not-live", access=IN_PART))
    static = Assets(assets("static")).serve
    table.append(LimitedRoute("/static/{version}/{path:path}", static, name="static", access=EVERYBODY))
    for page in presenter.pages:
        for name, act in page.actions.items():
            path = f"{page.path.rstrip('/')}/{name}"
            handler, title = _action_handler(page, act), f"{page.template}:{name}"
            table.append(LimitedRoute(path, handler, methods=["POST"], name=title, access=page.access))
    table += [
        LimitedRoute(page.path, _page_handler(page), methods=["GET"], name=page.template, access=page.access)
        for page in presenter.pages
    ]
    if not any(page.path == "/" for page in presenter.pages):
        table.append(Route("/", lambda request: RedirectResponse(f"{_base(request)}/tasks"), name="start"))
    return table


def _page_handler(page: Page) -> Handler:
    def show(request: Request) -> Response:
        presenter: Presenter = request.app.state.presenter
        response = HTMLResponse(presenter.html(page, _view(request, request.scope["path"]), _request_context(request)))
        _clear_notice(request, response)
        return response

    return show


def _action_handler(page: Page, act: Callable[[View, FormRequest], Result]) -> Callable[[Request], object]:
    async def perform(request: Request) -> Response:
        form = await request.form()
        form_request = FormRequest(actor_of(request), request.app.state.controller, form, request.app.state.runner)
        return await asyncio.to_thread(_perform, page, act, request, form_request)

    return perform


def _perform(
    page: Page, act: Callable[[View, FormRequest], Result], request: Request, form_request: FormRequest
) -> Response:
    """POST → 303, or the page of the form again, with the error."""
    view = _view(request, request.scope["path"].rpartition("/")[0])
    result = act(view, form_request)
    if result.to is not None:
        response: Response = RedirectResponse(link(_base(request), result.to, result.query), 303)
        if result.notice:
            target = link(_base(request), result.link, result.link_query) if result.link else None
            _set_notice(request, response, Notice(result.notice[:LONGEST_NOTICE], result.tone, target))
        return response
    presenter: Presenter = request.app.state.presenter
    return HTMLResponse(presenter.html(page, view, _request_context(request) | result.context), result.status)


def error_page(request: Request, error: MonitorError) -> Response:
    """The error as a page; as plain text without a user or without the store."""
    presenter: Presenter = request.app.state.presenter
    try:
        context = _request_context(request) | {"error": error, "title": "Error", "script": None}
        body = presenter.bare("error.html", _view(request, request.scope["path"]), context)
    except MonitorError:
        return PlainTextResponse(f"{error.message}\n", error.status)
    return HTMLResponse(body, error.status)


async def live(websocket: WebSocket) -> None:
    """The guard has checked the handshake."""
    hub: Live = websocket.app.state.live
    watch = asyncio.create_task(_close_with_session(websocket))
    try:
        await hub.serve(websocket, _visitor(websocket))
    finally:
        watch.cancel()


def why_not_live(request: Request) -> Response:
    """For a page whose socket is refused, though requests are answered: what the proxy in front does wrong.

    A browser's script sees no reason of a refused handshake.
    """
    origin, host = request.query_params.get("origin", ""), request.headers.get("host", "")
    why = NO_WEBSOCKET if is_own_origin(origin, host) else foreign_host(origin, host)
    return JSONResponse({"why": why}, headers={"Cache-Control": "no-store"})


def _visitor(websocket: WebSocket) -> Visitor:
    actor = actor_of(websocket)
    return Visitor(
        user=actor.name,
        role=actor.role,
        limits=limits_of(actor),
        base=websocket.scope.get("root_path", ""),
        check=partial(check_page_token, websocket),
        fresh_token=partial(page_token, websocket),
        most_sockets=MOST_ANONYMOUS_SOCKETS if actor == ANONYMOUS else MOST_SOCKETS_OF_USER,
    )


async def _close_with_session(websocket: WebSocket) -> None:
    """Closes the socket of somebody who has been signed out, or has another role now."""
    actor, identities = actor_of(websocket), websocket.scope["identities"]
    while True:
        await asyncio.sleep(SESSION_CHECK_SECONDS)
        try:
            if (await identities.identify(websocket)).actor == actor:
                continue
        except StoreUnavailable:
            continue  # it says nothing about the session
        except MonitorError:
            pass
        await close(websocket, SIGNED_OUT, "sign in again")
        return


def _base(request: Request) -> str:
    base: str = request.scope.get("root_path", "")
    return base.rstrip("/")


def _view(request: Request, path: str) -> View:
    presenter: Presenter = request.app.state.presenter
    base = _base(request)
    actor = actor_of(request)
    path = quote(path.removeprefix(base), safe="/:@", errors="replace")  # names may contain ? and #
    return presenter.view(path or "/", request.query_params, base, actor.role, request.path_params, limits_of(actor))


def _request_context(request: Request) -> Context:
    token = page_token(request)
    theme = request.cookies.get(THEME_COOKIE)
    return {
        "actor": actor_of(request),
        "page_token": token,
        "csrf_field": csrf_field(token),
        "theme": theme if theme in THEMES else None,
        "notice": _read_notice(request),
    }


def _read_notice(request: Request) -> Notice | None:
    text = request.cookies.get(NOTICE_COOKIE)
    if not text:
        return None
    try:
        notice = msgspec.json.decode(urlsafe_b64decode(text), type=Notice)
    except (ValueError, msgspec.DecodeError):
        return None
    return notice if notice.link is None or re.match(r"/(?!/)", notice.link) else None


def _set_notice(request: Request, response: Response, notice: Notice) -> None:
    value = urlsafe_b64encode(msgspec.json.encode(notice)).decode()
    path = _base(request) or "/"
    response.set_cookie(NOTICE_COOKIE, value, NOTICE_SECONDS, path=path, httponly=True, samesite="strict")


def _clear_notice(request: Request, response: Response) -> None:
    if NOTICE_COOKIE in request.cookies:
        response.delete_cookie(NOTICE_COOKIE, path=_base(request) or "/")


CLOSE_SECONDS = 2  # then open /live sockets are closed; their pages reconnect


class _ServerState(uvicorn.server.ServerState):
    """Dates an answer when it is sent."""

    def __init__(self) -> None:
        self.total_requests = 0
        self.connections = set()
        self.tasks = set()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        return [(b"date", formatdate(usegmt=True).encode())]


class _Server(uvicorn.Server):
    """uvicorn wakes ten times a second, to look for signals and to write a date; this one waits for ``stop``."""

    def __init__(self, config: uvicorn.Config, stop: Event) -> None:
        super().__init__(config)
        self.server_state = _ServerState()
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # whoever made ``stop`` handles them

    async def main_loop(self) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()

        def wait() -> None:
            self._stop.wait()
            loop.call_soon_threadsafe(stopped.set)

        Thread(target=wait, name="stop", daemon=True).start()
        await stopped.wait()


def serve(settings: Settings, descriptor: int, stop: Event) -> None:
    """Serves the dashboard on a listening socket, given by its descriptor, until ``stop`` is set."""
    server = _Server(
        uvicorn.Config(
            create_app(settings),
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # anybody can send these headers; the client is the peer of the connection
            timeout_graceful_shutdown=CLOSE_SECONDS,
            http=DeadlineProtocol,
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE,
            ws_per_message_deflate=False,  # live.py compresses, once for all clients of a view
        ),
        stop,
    )
    server.run(sockets=[socket.socket(fileno=descriptor)])
