"""What a proxy before us says is believed from trusted proxies alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from celery_monitor.control.users import perform_locally
from celery_monitor.errors import SettingsError
from celery_monitor.settings import Settings, load
from celery_monitor.store.engine import Store, open_store
from celery_monitor.web.problems import handlers
from celery_monitor.web.security.access import check_bind
from celery_monitor.web.security.guard import actor_of, middleware

PROXY, STRANGER = "10.7.0.9", "192.0.2.66"
HEADER = "x-forwarded-user"


def show(request: Request) -> Response:
    actor = actor_of(request)
    client = request.client.host if request.client else "-"
    return PlainTextResponse(f"{actor.name} {actor.role.name} {client} {request.url.scheme}")


@contextmanager
def asked_by(peer: str, sqlite_url: str, **changes: object) -> Iterator[tuple[TestClient, Store]]:
    """A dashboard behind a proxy in 10.7.0.0/16, asked by ``peer``."""
    given = {"host": "0.0.0.0", "auth_proxy_header": HEADER, "trusted_proxies": ("10.7.0.0/16",), **changes}
    store = open_store(sqlite_url)
    settings = Settings(database=sqlite_url, **given)  # type: ignore[arg-type]
    app = Starlette(
        routes=[Route("/page", show)], middleware=middleware(settings, store), exception_handlers=handlers()
    )
    app.state.settings = settings
    yield TestClient(app, base_url="http://127.0.0.1:5757", client=(peer, 4711)), store
    store.close()


def test_trusted_proxy_names_the_user(sqlite_url: str) -> None:
    with asked_by(PROXY, sqlite_url) as (client, _):
        headers = {HEADER: "ada@example.com", "X-Forwarded-For": STRANGER, "X-Forwarded-Proto": "https"}
        assert client.get("/page", headers=headers).text == f"ada@example.com VIEWER {STRANGER} https"
        assert client.get("/page").status_code == 401


def test_stranger_names_nobody_and_no_address(sqlite_url: str) -> None:
    with asked_by(STRANGER, sqlite_url) as (client, _):
        headers = {HEADER: "ada", "X-Forwarded-For": PROXY, "X-Forwarded-Proto": "https"}
        assert client.get("/page", headers=headers).status_code == 401


def test_client_cannot_pass_for_the_proxy_by_its_address(sqlite_url: str) -> None:
    with asked_by(STRANGER, sqlite_url) as (client, _):
        for spoofed in (PROXY, f"{PROXY}, {PROXY}", "127.0.0.1"):
            assert client.get("/page", headers={HEADER: "ada", "X-Forwarded-For": spoofed}).status_code == 401


def test_header_that_came_twice_names_nobody(sqlite_url: str) -> None:
    with asked_by(PROXY, sqlite_url) as (client, _):
        assert client.get("/page", headers=[(HEADER, "ada"), (HEADER, "root")]).status_code == 401


def test_user_of_the_proxy_has_the_role_that_is_stored(sqlite_url: str) -> None:
    with asked_by(PROXY, sqlite_url) as (client, _):
        settings = Settings(database=sqlite_url)
        perform_locally(settings, "user.add", name="ada")  # the first one: admin
        perform_locally(settings, "user.add", name="ned", role_name="operator")
        perform_locally(settings, "user.disable", name="ned")
        assert client.get("/page", headers={HEADER: "ada"}).text.startswith("ada ADMIN ")
        assert client.get("/page", headers={HEADER: "ned"}).status_code == 401
        perform_locally(settings, "user.enable", name="ned")
        assert client.get("/page", headers={HEADER: "ned"}).text.startswith("ned OPERATOR ")


def test_header_without_a_trusted_proxy_is_refused_at_start(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    with pytest.raises(SettingsError, match="trusted-proxies"):
        check_bind(Settings(auth_proxy_header=HEADER), store)
    store.close()


@pytest.mark.parametrize(
    "options",
    [
        {"trusted_proxies": ("example.com",)},
        {"trusted_proxies": ("10.0.0.0/99",)},
        {"auth_proxy_header": "Cookie"},
        {"auth_proxy_header": "X Y"},
        {"auth_proxy_header": ""},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="for example"):
        load(options, {})
