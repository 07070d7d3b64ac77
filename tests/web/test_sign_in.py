"""Signing in and out, sessions, users and API tokens, as a browser and a script meet them."""

import re
import time
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from celery_monitor.control.users import perform_locally
from celery_monitor.records.user import Role, Session
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.accounts.users import find_user, open_session, read_sessions, read_tokens
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import Store
from tests.web.shop import BASE, fill, serving, user

OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
BROWSER = {"Sec-Fetch-Mode": "navigate", "Accept": "text/html,application/xhtml+xml"}
USERS = (user("vera", "viewer", "v3ra v3ra"), user("root", "admin", "r00t r00t"))
ADA = {"name": "ada", "password": "l0ng enough"}


@pytest.fixture
def client(sqlite_url: str) -> Iterator[TestClient]:
    """With two users of the setting, and ada, an operator who is stored."""
    broker = Broker("shop", "redis://127.0.0.1:1/0")
    settings = Settings(database=sqlite_url, basic_auth=USERS, secret_key="a key", broker=(broker,))
    with serving(settings, sqlite_url) as app:
        fill(app.state.store)
        perform_locally(settings, "user.add", role_name="operator", **ADA)
        yield TestClient(app, base_url=BASE, follow_redirects=False)


@pytest.fixture
def store(client: TestClient) -> Store:
    found: Store = client.app.state.store  # type: ignore[attr-defined]
    return found


def sign_in(client: TestClient, name: str = "ada", password: str = ADA["password"], **more: str) -> int:
    """The status; the client keeps the cookie."""
    form = {"name": name, "password": password, **more}
    return client.post("/sign-in", data=form, headers=OWN_PAGE).status_code


def post(client: TestClient, path: str, **form: object) -> int:
    """A form of our own page, with the token that the page of users has."""
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/account", headers=BROWSER).text)
    given = {**form, "csrf_token": token.group(1) if token else ""}
    return client.post(path, data=given, headers=OWN_PAGE).status_code


def close_code(socket: WebSocketTestSession) -> int:
    """With which the server closes it, whatever it sends before."""
    try:
        while True:
            socket.receive_json()
    except WebSocketDisconnect as end:
        return end.code


def trail(store: Store) -> list[tuple[str, str, str]]:
    return [(each.actor, each.action, each.outcome) for each in read_actions(store).items]


def test_browser_is_led_to_the_sign_in_page_and_back(client: TestClient) -> None:
    response = client.get("/tasks?q=state%3Afailed", headers=BROWSER)
    assert (response.status_code, response.headers["location"]) == (
        303,
        "/sign-in?next=%2Ftasks%3Fq%3Dstate%253Afailed",
    )
    page = client.get(response.headers["location"], headers=BROWSER)
    assert 'value="/tasks?q=state%3Afailed"' in page.text
    form = {**ADA, "next": "/tasks?q=state%3Afailed"}
    response = client.post("/sign-in", data=form, headers=OWN_PAGE)
    assert (response.status_code, response.headers["location"]) == (303, "/tasks?q=state%3Afailed")
    assert client.get("/tasks", headers=BROWSER).status_code == 200


def test_cookie_is_out_of_reach_of_scripts_and_other_sites(client: TestClient) -> None:
    response = client.post("/sign-in", data=ADA, headers=OWN_PAGE)
    flags = {each.strip().lower().partition("=")[0] for each in response.headers["set-cookie"].split(";")}
    assert {"httponly", "samesite", "max-age", "path"} <= flags
    assert "secure" not in flags  # plain HTTP here
    secure = client.post(f"{BASE.replace('http', 'https')}/sign-in", data=ADA, headers=OWN_PAGE)
    assert "secure" in secure.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "following",
    ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil.example", "/a\r\nX: 1", "/\t/evil", ""],
)
def test_sign_in_leads_to_our_own_pages_alone(client: TestClient, following: str) -> None:
    response = client.post("/sign-in", data={**ADA, "next": following}, headers=OWN_PAGE)
    assert response.headers["location"] == "/"


@pytest.mark.parametrize(
    ("name", "password"), [("ada", "wrong one"), ("ada", ""), ("nobody", "l0ng enough"), ("", ""), ("vera", "l0ng")]
)
def test_wrong_password_opens_nothing(client: TestClient, store: Store, name: str, password: str) -> None:
    response = client.post("/sign-in", data={"name": name, "password": password}, headers=OWN_PAGE)
    assert response.status_code == 401
    assert "is wrong" in response.text
    assert "set-cookie" not in response.headers
    assert read_sessions(store) == []


def test_another_sites_form_signs_nobody_in(client: TestClient, store: Store) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert client.post("/sign-in", data=ADA, headers=headers).status_code == 403
    assert read_sessions(store) == []


def test_users_of_the_setting_sign_in_too(client: TestClient) -> None:
    assert sign_in(client, "vera", "v3ra v3ra") == 303
    assert "Role: viewer" in client.get("/account", headers=BROWSER).text


def test_signing_out_ends_the_session(client: TestClient, store: Store) -> None:
    sign_in(client)
    cookie = dict(client.cookies)
    assert post(client, "/sign-out") == 303
    client.cookies.update(cookie)  # as somebody who has kept it
    assert client.get("/tasks").status_code == 401
    assert trail(store)[:2] == [("ada", "session.sign_out", "done"), ("ada", "session.sign_in", "done")]


def test_signing_out_everywhere_ends_every_browser(client: TestClient, store: Store) -> None:
    sign_in(client)
    other = TestClient(client.app, base_url=BASE, follow_redirects=False)
    sign_in(other)
    sign_in(other, "vera", "v3ra v3ra")
    assert post(client, "/account/sign-out-everywhere") == 303
    assert [each.user for each in read_sessions(store)] == ["vera"]


def test_signing_out_needs_the_token_of_the_session(client: TestClient, store: Store) -> None:
    sign_in(client)
    assert client.post("/sign-out", data={"csrf_token": "x"}, headers=OWN_PAGE).status_code == 403
    assert len(read_sessions(store)) == 1


def test_token_of_one_session_is_nothing_to_another_of_the_same_user(client: TestClient) -> None:
    sign_in(client)
    page = client.get("/account", headers=BROWSER).text
    token = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert token
    sign_in(client)
    form = {"csrf_token": token.group(1)}
    assert client.post("/sign-out", data=form, headers=OWN_PAGE).status_code == 403


@pytest.mark.parametrize("action", ["user.disable", "user.remove", "session.end_all"])
def test_what_is_done_to_a_user_ends_the_sessions_at_once(client: TestClient, store: Store, action: str) -> None:
    sign_in(client)
    assert client.get("/tasks").status_code == 200
    perform_locally(client.app.state.settings, action, name="ada")  # type: ignore[attr-defined]
    assert client.get("/tasks").status_code == 401
    assert read_sessions(store) == []


def test_new_role_holds_in_open_sessions(client: TestClient) -> None:
    sign_in(client)
    assert client.get("/users").status_code == 403
    perform_locally(client.app.state.settings, "user.role", name="ada", role_name="admin")  # type: ignore[attr-defined]
    assert client.get("/users").status_code == 200


@pytest.mark.parametrize(("used", "created"), [(-25 * 3600.0, -26 * 3600.0), (-60.0, -31 * 86400.0)])
def test_session_ends_when_it_is_idle_or_old(client: TestClient, store: Store, used: float, created: float) -> None:
    now = time.time()
    session = Session(
        id="",
        user="ada",
        role=None,
        source="password",
        created_at=now + created,
        used_at=now + used,
        address="",
        agent="",
    )
    client.cookies.set("celery_monitor_session", open_session(store, session))
    assert client.get("/tasks").status_code == 401


def test_unknown_cookie_opens_nothing(client: TestClient) -> None:
    client.cookies.set("celery_monitor_session", "x" * 43)
    assert client.get("/tasks").status_code == 401


def test_socket_needs_the_session_too(client: TestClient) -> None:
    sign_in(client)
    token = re.search(r'data-token="([^"]+)"', client.get("/tasks", headers=BROWSER).text)
    assert token
    with client.websocket_connect("ws://127.0.0.1:5757/live", headers=OWN_PAGE) as socket:
        socket.send_json({"token": token.group(1), "view": "/tasks"})
        assert "regions" in socket.receive_json()


@pytest.mark.parametrize(("action", "more"), [("session.end_all", {}), ("user.role", {"role_name": "viewer"})])
def test_socket_ends_with_its_session_or_role(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, action: str, more: dict[str, str]
) -> None:
    monkeypatch.setattr("celery_monitor.web.app.SESSION_CHECK_SECONDS", 0.1)
    sign_in(client)
    token = re.search(r'data-token="([^"]+)"', client.get("/tasks", headers=BROWSER).text)
    assert token
    with client.websocket_connect("ws://127.0.0.1:5757/live", headers=OWN_PAGE) as socket:
        socket.send_json({"token": token.group(1), "view": "/tasks"})
        socket.receive_json()
        perform_locally(client.app.state.settings, action, name="ada", **more)  # type: ignore[attr-defined]
        assert close_code(socket) == 4401


def test_page_of_users_is_for_admins(client: TestClient, store: Store) -> None:
    sign_in(client, "root", "r00t r00t")
    page = client.get("/users", headers=BROWSER).text
    assert "ada" in page
    assert "from the setting basic_auth" in page
    assert post(client, "/users/add", name="ned", password="l0ng enough", role_name="viewer") == 303
    assert post(client, "/users/disable", name="ned") == 303
    found = find_user(store, "ned")
    assert found is not None
    assert (found.role, found.disabled) == (Role.VIEWER, True)
    assert ("root", "user.disable", "done") in trail(store)


def test_api_token_is_shown_once_and_opens_what_its_role_may(client: TestClient, store: Store) -> None:
    sign_in(client, "root", "r00t r00t")
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/account", headers=BROWSER).text)
    assert token
    form = {"name": "ci", "role_name": "viewer", "csrf_token": token.group(1)}
    secret = re.search(r"cmt_[\w-]+", client.post("/users/make-token", data=form, headers=OWN_PAGE).text)
    assert secret
    assert secret.group() not in client.get("/users", headers=BROWSER).text
    assert all(secret.group() not in str(each) for each in read_actions(store).items)
    script = TestClient(client.app, base_url=BASE, headers={"Authorization": f"Bearer {secret.group()}"})
    assert script.get("/api/v1/tasks").status_code == 200
    assert script.post("/api/v1/run", json={"name": "shop.pay", "queue": "q"}).status_code == 403
    assert trail(store)[0] == ("token:ci", "task.run", "denied")
    (kept,) = read_tokens(store)
    assert kept.used_at is not None
    assert post(client, "/users/revoke-token", name="ci") == 303
    refused = script.get("/api/v1/tasks")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthenticated")


def test_expired_token_opens_nothing(client: TestClient) -> None:
    settings = client.app.state.settings  # type: ignore[attr-defined]
    secret = perform_locally(settings, "token.make", name="old", days=1e-9).secret
    script = TestClient(client.app, base_url=BASE, headers={"Authorization": f"Bearer {secret}"})
    assert script.get("/api/v1/tasks").status_code == 401


def test_first_user_closes_a_dashboard_that_was_open(sqlite_url: str) -> None:
    settings = Settings(database=sqlite_url)
    with serving(settings, sqlite_url) as app:
        client = TestClient(app, base_url=BASE)
        assert client.get("/tasks").status_code == 200
        perform_locally(settings, "user.add", role_name="viewer", **ADA)
        assert client.get("/tasks").status_code == 401
        assert sign_in(client) == 200  # followed to the start page
        assert "Role: admin" in client.get("/account", headers=BROWSER).text


def test_script_is_told_how_to_sign_in_and_a_browsers_script_is_not_prompted(client: TestClient) -> None:
    assert client.get("/api/v1/tasks").headers["www-authenticate"].startswith("Basic ")
    assert "www-authenticate" not in client.get("/api/v1/tasks", headers=OWN_PAGE).headers
