"""The door, each hole of other dashboards tried on ours."""

import time
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from celery_monitor.errors import Forbidden, SettingsError
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store, open_store
from celery_monitor.web.problems import handlers
from celery_monitor.web.security.access import check_bind
from celery_monitor.web.security.guard import (
    BODY_LIMIT,
    CONTENT_SECURITY_POLICY,
    actor_of,
    check_page_token,
    make_gate,
    middleware,
    page_token,
)
from tests.web.shop import QUICK, user

BASE = "http://127.0.0.1:5757"
SOCKET = "ws://127.0.0.1:5757/live"
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
HASH = QUICK.hash("s3cret:with:colons")
PLAIN = (f"vera:{HASH}", "olga:operator:0lga", "root:admin:toor")
USERS = (f"vera:{HASH}", user("olga", "operator", "0lga"), user("root", "admin", "toor"))
SIGNED_IN = ("olga", "0lga")
OLGA = {"Authorization": "Basic b2xnYTowbGdh"}
DAY = 86_400.0


def show_actor(request: Request) -> Response:
    actor = actor_of(request)
    return PlainTextResponse(f"{actor.name} {actor.role.name} {page_token(request)}")


async def act(request: Request) -> Response:
    """Like a handler that reads its form after the guard has read it."""
    body = await request.body()
    return PlainTextResponse(f"acted on {body.decode()}")


async def live(websocket: WebSocket) -> None:
    """Like the real one, which looks at the token that it is sent first."""
    await websocket.accept()
    try:
        check_page_token(websocket, await websocket.receive_text())
    except Forbidden as error:
        await websocket.close(1008, error.message)
        return
    await websocket.send_text(actor_of(websocket).name)
    await websocket.close()


def healthcheck(_: Request) -> Response:
    return PlainTextResponse("OK")


def make_app(store: Store, settings: Settings) -> Starlette:
    """The guard before routes that do nothing, so that only the guard can refuse."""
    app = Starlette(
        routes=[
            Route("/page", show_actor),
            Route("/act", act, methods=["POST", "PUT", "DELETE"]),
            Route("/api/v1/act", act, methods=["POST"]),
            Route("/healthcheck", healthcheck),
            Route("/metrics", healthcheck),
            WebSocketRoute("/live", live),
        ],
        middleware=middleware(settings, store),
        exception_handlers=handlers(),
    )
    app.state.settings = settings
    return app


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    store = open_store(sqlite_url)
    yield store
    store.close()


@pytest.fixture
def open_client(store: Store) -> TestClient:
    """Loopback, no users."""
    return TestClient(make_app(store, Settings()), base_url=BASE)


@pytest.fixture
def client(store: Store) -> TestClient:
    """Every address, with users."""
    return TestClient(make_app(store, Settings(host="0.0.0.0", basic_auth=USERS)), base_url=BASE)


def token_of(client: TestClient, **given: tuple[str, str]) -> str:
    return client.get("/page", **given).text.split()[-1]  # type: ignore[arg-type]


# --- where we listen


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.7.7", "monitor.example.com", "2001:db8::7"])
def test_public_bind_without_authentication_refuses_to_start(host: str, store: Store) -> None:
    with pytest.raises(SettingsError, match="users add"):
        check_bind(Settings(host=host), store)
    with pytest.raises(SettingsError, match="users add"):
        middleware(Settings(host=host), store)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"])
def test_loopback_needs_no_authentication(host: str, store: Store) -> None:
    check_bind(Settings(host=host), store)


def test_public_bind_with_authentication_starts(store: Store) -> None:
    check_bind(Settings(host="0.0.0.0", basic_auth=USERS), store)


@pytest.mark.parametrize("peer", ["192.168.7.7", "2001:db8::7", "::ffff:10.0.0.9"])
def test_without_users_other_machines_are_refused_however_we_are_served(store: Store, peer: str) -> None:
    client = TestClient(make_app(store, Settings()), base_url=BASE, client=(peer, 4711))
    assert client.get("/page").status_code == 403


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_without_users_this_machine_is_answered(store: Store, peer: str) -> None:
    client = TestClient(make_app(store, Settings()), base_url=BASE, client=(peer, 4711))
    assert client.get("/page").text.startswith("anonymous ADMIN ")


# --- who signs in


@pytest.mark.parametrize(
    ("name", "password", "role"),
    [("vera", "s3cret:with:colons", "VIEWER"), ("olga", "0lga", "OPERATOR"), ("root", "toor", "ADMIN")],
)
def test_user_has_the_role_of_the_entry(store: Store, name: str, password: str, role: str) -> None:
    client = TestClient(make_app(store, Settings(host="0.0.0.0", basic_auth=PLAIN)), base_url=BASE)
    for _ in range(2):  # the second is answered from memory
        assert client.get("/page", auth=(name, password)).text.startswith(f"{name} {role} ")


@pytest.mark.parametrize(
    ("name", "password"), [("olga", "0lgA"), ("olga", ""), ("ol", "0lga"), ("Olga", "0lga"), ("nobody", "0lga")]
)
def test_wrong_password_or_user_is_refused(client: TestClient, name: str, password: str) -> None:
    client.get("/page", auth=SIGNED_IN)
    response = client.get("/page", auth=(name, password))
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("header", ["", "Basic", "Basic !!!", "Basic b2xnYQ==", "Bearer b2xnYTowbGdh", "Basic //79"])
def test_malformed_authorization_is_refused(client: TestClient, header: str) -> None:
    assert client.get("/page", headers={"Authorization": header}).status_code == 401


def test_refusal_of_the_api_is_json(client: TestClient) -> None:
    error = client.get("/api/v1/tasks").json()["error"]
    assert error["code"] == "unauthenticated"
    assert "Sign in" in error["message"]


@pytest.mark.parametrize("path", ["/healthcheck", "/metrics"])
def test_healthcheck_and_metrics_need_no_login(client: TestClient, path: str) -> None:
    assert client.get(path).text == "OK"
    assert client.post(path).status_code == 401


@pytest.mark.parametrize("path", ["/healthcheck/", "//healthcheck", "/healthcheck/../page", "/page?/healthcheck"])
def test_only_those_paths_are_open(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("olga", "user:password"),
        ("olga:", "user:password"),
        (":0lga", "user:password"),
        ("olga:$argon2id$v=19$m=64", "damaged"),
        ("olga:$2y$12$abcdefghijklmnopqrstuv", "not argon2"),
        ("olga:operator:$6$salt$hash", "not argon2"),
        ("olga:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "not argon2"),
        ("olga:operator[state:failed]:0lga", "scope"),
    ],
)
def test_unusable_entry_is_refused_at_start(entry: str, says: str, store: Store) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        make_gate(Settings(basic_auth=(entry,)), store)
    assert entry.split(":", 1)[-1] not in caught.value.message or entry.endswith(":")


def test_user_named_twice_is_refused_at_start(store: Store) -> None:
    with pytest.raises(SettingsError, match="'olga'"):
        make_gate(Settings(basic_auth=("olga:one", "olga:viewer:two")), store)


# --- the name we are asked by


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b", "u@localhost"]
)
def test_rebound_host_name_is_refused(open_client: TestClient, host: str) -> None:
    assert open_client.get("/page", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:5757", "127.0.0.1:80", "[::1]:5757", "localhost."])
def test_loopback_names_are_answered(open_client: TestClient, host: str) -> None:
    assert open_client.get("/page", headers={"Host": host}).status_code == 200


def test_without_users_an_address_of_the_network_is_refused(open_client: TestClient) -> None:
    assert open_client.get("/page", headers={"Host": "192.168.7.7:5757"}).status_code == 403


def test_trusted_host_is_answered_and_others_named_in_the_refusal(store: Store) -> None:
    settings = Settings(trusted_hosts=("Monitor.example.com",))
    client = TestClient(make_app(store, settings), base_url=BASE)
    assert client.get("/page", headers={"Host": "monitor.example.com:8443"}).status_code == 200
    refused = client.get("/page", headers={"Host": "x.monitor.example.com"})
    assert refused.status_code == 403
    assert "trusted_hosts" in refused.text


def test_with_users_any_address_is_answered_and_any_name_is_not(client: TestClient) -> None:
    assert client.get("/page", headers={"Host": "192.168.7.7:5757"}, auth=SIGNED_IN).status_code == 200
    assert client.get("/page", headers={"Host": "evil.example"}, auth=SIGNED_IN).status_code == 403


# --- what changes something

CROSS_SITE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": BASE},
    {"Sec-Fetch-Site": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1:8000"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://127.0.0.1:5757.evil.example"},
]


@pytest.mark.parametrize("headers", CROSS_SITE)
@pytest.mark.parametrize("path", ["/act", "/api/v1/act"])
def test_cross_site_post_is_refused_even_with_a_token(
    open_client: TestClient, path: str, headers: dict[str, str]
) -> None:
    given = {**headers, "X-CSRF-Token": token_of(open_client), "Content-Type": "application/json"}
    assert open_client.post(path, headers=given, content="{}").status_code == 403


@pytest.mark.parametrize("headers", [OWN_PAGE, {"Sec-Fetch-Site": "none"}, {"Origin": BASE}])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_own_page_acts_with_its_token_only(open_client: TestClient, method: str, headers: dict[str, str]) -> None:
    token = token_of(open_client)
    assert open_client.request(method, "/act", headers={**headers, "X-CSRF-Token": token}).status_code == 200
    for wrong in ("", "x", token[:-1], token + "x"):
        assert open_client.request(method, "/act", headers={**headers, "X-CSRF-Token": wrong}).status_code == 403
    assert open_client.request(method, "/act", headers=headers).status_code == 403


def test_form_field_carries_the_token_and_the_handler_reads_the_form(open_client: TestClient) -> None:
    token = token_of(open_client)
    response = open_client.post("/act", headers=OWN_PAGE, data={"id": "7f", "csrf_token": token})
    assert response.status_code == 200
    assert response.text == f"acted on id=7f&csrf_token={token}"
    assert open_client.post("/act", headers=OWN_PAGE, data={"id": "7f"}).status_code == 403


def test_token_of_one_user_is_nothing_to_another(client: TestClient) -> None:
    token = token_of(client, auth=("root", "toor"))
    headers = {**OWN_PAGE, "X-CSRF-Token": token}
    assert client.post("/act", headers=headers, auth=("root", "toor")).status_code == 200
    assert client.post("/act", headers=headers, auth=SIGNED_IN).status_code == 403


def test_token_survives_a_restart_and_not_another_key(store: Store) -> None:
    def client(settings: Settings) -> TestClient:
        return TestClient(make_app(store, settings), base_url=BASE)

    headers = {**OWN_PAGE, "X-CSRF-Token": token_of(client(Settings()))}
    assert client(Settings()).post("/act", headers=headers).status_code == 200
    assert client(Settings(secret_key="another")).post("/act", headers=headers).status_code == 403


@pytest.mark.parametrize(("age", "status"), [(DAY - 60, 200), (DAY + 60, 403), (-60, 200), (-600, 403)])
def test_token_ends_after_a_day_whichever_process_made_it(
    open_client: TestClient, monkeypatch: pytest.MonkeyPatch, age: float, status: int
) -> None:
    token = token_of(open_client)
    now = time.time() + age
    monkeypatch.setattr("celery_monitor.web.security.origin.time.time", lambda: now)
    response = open_client.post("/act", headers={**OWN_PAGE, "X-CSRF-Token": token})
    assert response.status_code == status
    assert status == 200 or "Reload the page" in response.text


def test_script_needs_no_token_for_json(client: TestClient) -> None:
    response = client.post("/api/v1/act", json={"confirm": True}, auth=SIGNED_IN)
    assert response.text == 'acted on {"confirm":true}'


@pytest.mark.parametrize("header", ["Cookie", "Referer", "Sec-Fetch-Mode", "Sec-Fetch-Dest"])
def test_what_looks_like_a_browser_needs_the_token(open_client: TestClient, header: str) -> None:
    assert open_client.post("/api/v1/act", json={}, headers={header: "x"}).status_code == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", "application/jsonp"]
)
def test_what_a_foreign_form_can_send_is_no_json(open_client: TestClient, kind: str) -> None:
    response = open_client.post("/api/v1/act", content="{}", headers={"Content-Type": kind})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_type"


def test_preflight_of_another_site_is_not_granted(open_client: TestClient) -> None:
    headers = {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    response = open_client.options("/api/v1/act", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


# --- the socket


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_cross_site_websocket_is_refused(open_client: TestClient, headers: dict[str, str]) -> None:
    with pytest.raises(WebSocketDisconnect) as caught, open_client.websocket_connect(SOCKET, headers=headers):
        pass
    assert caught.value.code == 1008
    assert "another site" in caught.value.reason


@pytest.mark.parametrize("token", ["", "x", "another's"])
def test_websocket_without_its_token_is_refused(client: TestClient, token: str) -> None:
    if token == "another's":
        token = token_of(client, auth=("root", "toor"))
    with client.websocket_connect(SOCKET, headers={**OWN_PAGE, **OLGA}) as socket:
        socket.send_text(token)
        with pytest.raises(WebSocketDisconnect) as caught:
            socket.receive_text()
    assert caught.value.code == 1008
    assert "token" in caught.value.reason


@pytest.mark.parametrize("headers", [OWN_PAGE, {"Origin": BASE}])
def test_own_page_opens_the_websocket(client: TestClient, headers: dict[str, str]) -> None:
    with client.websocket_connect(SOCKET, headers={**headers, **OLGA}) as socket:
        socket.send_text(token_of(client, auth=SIGNED_IN))
        assert socket.receive_text() == "olga"


def test_websocket_needs_a_login(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect(SOCKET, headers=OWN_PAGE):
        pass
    assert caught.value.code == 1008
    assert "Sign in" in caught.value.reason


def test_websocket_of_a_rebound_host_is_refused(open_client: TestClient) -> None:
    headers = {"Host": "evil.example", **OWN_PAGE}
    with pytest.raises(WebSocketDisconnect) as caught, open_client.websocket_connect(SOCKET, headers=headers):
        pass
    assert caught.value.code == 1008
    assert "evil.example" in caught.value.reason


# --- what we say and how much we read


@pytest.mark.parametrize("path", ["/page", "/nowhere", "/healthcheck", "/api/v1/nowhere"])
def test_every_response_carries_the_policies(open_client: TestClient, path: str) -> None:
    headers = open_client.get(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_policy_allows_no_inline_and_no_foreign_code() -> None:
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["/act", "/api/v1/act"])
def test_too_large_a_body_is_refused(open_client: TestClient, path: str) -> None:
    headers = {**OWN_PAGE, "X-CSRF-Token": token_of(open_client), "Content-Type": "application/json"}
    assert open_client.post(path, headers=headers, content=b"x" * BODY_LIMIT).status_code == 200
    assert open_client.post(path, headers=headers, content=b"x" * (BODY_LIMIT + 1)).status_code == 413


def test_too_large_a_body_of_unknown_length_is_refused(open_client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x" * (BODY_LIMIT // 4)

    response = open_client.post("/api/v1/act", headers={"Content-Type": "application/json"}, content=chunks())
    assert response.status_code == 413
    assert response.json()["error"]["detail"] == {"limit": BODY_LIMIT}


def test_too_large_a_form_without_a_token_header_is_refused(open_client: TestClient) -> None:
    response = open_client.post("/act", headers=OWN_PAGE, data={"csrf_token": "x" * BODY_LIMIT})
    assert response.status_code == 413
