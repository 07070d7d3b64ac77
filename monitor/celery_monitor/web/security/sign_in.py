"""The sign-in page, the account page, and sign-out. They stand outside the pages: nobody need be signed in."""

import asyncio
import time
from collections.abc import Mapping

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from celery_monitor.core.words import counted
from celery_monitor.errors import MonitorError, Unauthenticated
from celery_monitor.records.page import Action
from celery_monitor.records.user import Role, Session
from celery_monitor.settings import Settings
from celery_monitor.store.accounts import users
from celery_monitor.store.accounts.users import has_users
from celery_monitor.store.actions import record_action
from celery_monitor.store.engine import Store
from celery_monitor.web.present import csrf_field, make_asset
from celery_monitor.web.problems import retry_header
from celery_monitor.web.security.auth import Gate
from celery_monitor.web.security.guard import page_token
from celery_monitor.web.security.identity import (
    DAY,
    HOUR,
    SESSION_COOKIE,
    SIGN_IN_PATH,
    Identity,
    next_path,
    peer_of,
    sign_in_address,
)
from celery_monitor.web.security.reach import EVERYBODY, LimitedRoute

WRONG = "The user name or the password is wrong, or the user is disabled."


class SignIn:
    """Opens and ends sessions."""

    def __init__(self, settings: Settings, store: Store, gate: Gate, environment: Environment) -> None:
        self._settings = settings
        self.store = store
        self.failed = gate.failed
        self._gate = gate
        self._environment = environment
        self.provider: str | None = None  # the title of an identity provider, where one is set

    def routes(self) -> list[Route]:
        """Of everybody's own session: they read no record."""
        return [
            LimitedRoute(path, endpoint, methods=[method], name=name, access=EVERYBODY)
            for path, endpoint, method, name in (
                (SIGN_IN_PATH, self.show, "GET", "sign-in"),
                (SIGN_IN_PATH, self.sign_in, "POST", None),
                ("/sign-out", self.sign_out, "POST", None),
                ("/account", self.account, "GET", "account"),
                ("/account/sign-out-everywhere", self.sign_out_everywhere, "POST", None),
            )
        ]

    def show(self, request: Request) -> Response:
        return self.page(request, next_path(request.query_params.get("next", "/")))

    async def sign_in(self, request: Request) -> Response:
        form = await request.form()
        name, password = str(form.get("name", "")), str(form.get("password", ""))
        following = next_path(str(form.get("next", "/")))
        try:
            actor = await self._gate.check(name, password, peer_of(request))
        except MonitorError as error:
            message = WRONG if isinstance(error, Unauthenticated) else error.message
            page = self.page(request, following, name=name, error=message, status=error.status)
            page.headers.update(retry_header(error))
            return page
        return await self.open(request, actor.name, None, "password", following)

    async def open(
        self, request: Request, name: str, role: Role | None, source: str, following: str, scope: str = ""
    ) -> Response:
        """A session for somebody whose name is proved; role and scope are given where we have no record of the user."""
        now = time.time()
        agent = request.headers.get("user-agent", "")
        opened = Session(
            id="",
            user=name,
            role=role,
            source=source,
            created_at=now,
            used_at=now,
            address=peer_of(request),
            agent=agent,
            scope=scope,
        )
        secret = await asyncio.to_thread(self._open, opened)
        response = RedirectResponse(f"{_base(request)}{following}", 303)
        response.set_cookie(
            SESSION_COOKIE,
            secret,
            max_age=int(self._settings.session_days * DAY),
            path=_base(request) or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )
        return response

    def _open(self, session: Session) -> str:
        idle, oldest = self._settings.session_idle_hours * HOUR, self._settings.session_days * DAY
        now = session.created_at
        users.delete_expired(self.store, used_before=now - idle, created_before=now - oldest)
        secret = users.open_session(self.store, session)
        record(self.store, "session.sign_in", session.user, "done", f"Signed in from {session.address}.")
        return secret

    async def sign_out(self, request: Request) -> Response:
        return await self._end(request, everywhere=False)

    async def sign_out_everywhere(self, request: Request) -> Response:
        return await self._end(request, everywhere=True)

    async def _end(self, request: Request, *, everywhere: bool) -> Response:
        identity: Identity = request.scope["identity"]
        await asyncio.to_thread(self._end_sessions, identity, everywhere=everywhere)
        response = RedirectResponse(sign_in_address(_base(request), "/"), 303)
        response.delete_cookie(SESSION_COOKIE, path=_base(request) or "/")
        return response

    def _end_sessions(self, identity: Identity, *, everywhere: bool) -> None:
        name = identity.actor.name
        if everywhere:
            count = users.end_sessions(self.store, name)
        elif identity.session:
            users.end_session(self.store, identity.session)
            count = 1
        else:
            return
        record(self.store, "session.sign_out", name, "done", f"Signed out; {counted(count, 'session')} ended.")

    def account(self, request: Request) -> Response:
        identity: Identity = request.scope["identity"]
        own = users.read_sessions(self.store, identity.actor.name)
        return self._show(request, "account.html", {"identity": identity, "sessions": own, "title": "Account"})

    def page(
        self, request: Request, following: str = "/", *, name: str = "", error: str | None = None, status: int = 200
    ) -> Response:
        """The sign-in page, which leads to ``following``."""
        context = {
            "following": following,
            "name": name,
            "error": error,
            "title": "Sign in",
            "provider": self.provider,
            "passwords": self._gate.accounts or has_users(self.store),
        }
        return self._show(request, "sign_in.html", context, status)

    def _show(self, request: Request, template: str, context: Mapping[str, object], status: int = 200) -> Response:
        base = _base(request)
        common = {
            "base": base,
            "asset": make_asset(base, str(self._environment.globals["static"])),
            "csrf_field": csrf_field(page_token(request) if "identity" in request.scope else ""),
            "theme": request.cookies.get("celery_monitor_theme"),
        }
        return HTMLResponse(self._environment.get_template(template).render({**common, **context}), status)


def record(store: Store, action: str, name: str, outcome: str, message: str) -> None:
    """Adds a sign-in or sign-out to the trail."""
    record_action(
        store,
        Action(at=time.time(), actor=name, action=action, cluster=None, target=name, outcome=outcome, message=message),
    )


def _base(request: Request) -> str:
    base: str = request.scope.get("root_path", "")
    return base.rstrip("/")
