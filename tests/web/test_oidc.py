"""Signing in at an identity provider: a real provider process, and one whose tokens are wrong in every way."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from starlette.testclient import TestClient

from celery_monitor.errors import SettingsError
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings, load
from celery_monitor.store.accounts.users import read_sessions
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import open_store
from celery_monitor.web.security.access import check_bind
from celery_monitor.web.security.oidc import email_of, role_of, scope_of
from tests.servers import free_port, wait_for_port
from tests.web.shop import BASE, serving

BROWSER = {"Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
KEY = RSAKey.generate_key(2048, {"kid": "k7"})
OTHER_KEY = RSAKey.generate_key(2048, {"kid": "k7"})
ADA = {"sub": "u-31", "email": "Ada@example.com", "email_verified": True, "groups": ["staff", "celery-ops"]}


@contextmanager
def dashboard(sqlite_url: str, issuer: str, **changes: object) -> Iterator[TestClient]:
    given = {
        "oidc_issuer": issuer,
        "oidc_client_id": "monitor-7",
        "oidc_client_secret": "s3cret",
        "oidc_operators": ("ada@example.com",),
        **changes,
    }
    settings = Settings(database=sqlite_url, **given)  # type: ignore[arg-type]
    with serving(settings, sqlite_url) as app:
        yield TestClient(app, base_url=BASE, follow_redirects=False, headers=BROWSER)


def callback_of(location: str) -> str:
    """Path and query of an address that leads back to the dashboard."""
    parts = urlsplit(location)
    assert f"{parts.scheme}://{parts.netloc}" == BASE
    return f"{parts.path}?{parts.query}"


@contextmanager
def provider(**claims: object) -> Iterator[str]:
    """The address of a provider process that knows one user."""
    port = free_port()
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--user-claims", json.dumps(claims)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait()


# --- roles


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"email": "ada@example.com", "email_verified": True}, Role.ADMIN),
        ({"email": "ADA@Example.COM", "email_verified": True}, Role.ADMIN),
        ({"email": "ned@example.org", "email_verified": True}, Role.VIEWER),
        ({"groups": ["staff", "celery-ops"]}, Role.OPERATOR),
        ({"groups": "celery-ops"}, Role.OPERATOR),
        # What must give no role: part of an address, a domain below, above or beside, nothing verified.
        ({"email": "ada@example.com", "email_verified": False}, None),
        ({"email": "ada@example.com", "email_verified": "true"}, None),
        ({"email": "ada@example.com"}, None),
        ({"email": "xada@example.com", "email_verified": True}, None),
        ({"email": "ada@example.com.evil.test", "email_verified": True}, None),
        ({"email": "ned@sub.example.org", "email_verified": True}, None),
        ({"email": "ned@xexample.org", "email_verified": True}, None),
        ({"email": "ned@evil.test@example.org", "email_verified": True}, None),
        ({"email": "ada@example.com\n", "email_verified": True}, None),
        ({"groups": ["celery-ops2"]}, None),
        ({"groups": {"celery-ops": True}}, None),
        ({"groups": ["ada@example.com"]}, None),
        ({"groups": ["@example.org"]}, None),
        ({"groups": 7, "email": ["ada@example.com"], "email_verified": True}, None),
        ({}, None),
    ],
)
def test_role_comes_from_exact_addresses_domains_and_values(claims: dict[str, Any], role: Role | None) -> None:
    settings = Settings(
        oidc_admins=("Ada@example.com",),
        oidc_operators=("celery-ops",),
        oidc_viewers=("@example.org",),
        oidc_role_claim="groups",
    )
    assert role_of(settings, claims) is role


def test_scope_is_of_the_first_entry_that_fits() -> None:
    settings = Settings(
        oidc_scopes=("Ada@example.com=queue:a", "cn=mail=queue:mail,post-*", "@example.com=cluster:eu"),
        oidc_role_claim="groups",
    )
    ada = {"email": "ada@example.com", "email_verified": True}
    assert scope_of(settings, {**ada, "groups": ["cn=mail"]}) == "queue:a"
    assert scope_of(settings, {"groups": ["cn=mail"]}) == "(queue:mail OR queue:post-*)"
    assert scope_of(settings, {"email": "ned@example.com", "email_verified": True}) == "cluster:eu"
    assert scope_of(settings, {"groups": ["mail2"]}) == ""


def test_claim_within_another_is_named_by_its_path() -> None:
    settings = Settings(oidc_admins=("ops",), oidc_role_claim="realm_access.roles")
    assert role_of(settings, {"realm_access": {"roles": ["x", "ops"]}}) is Role.ADMIN
    assert role_of(settings, {"realm_access": ["ops"], "roles": ["ops"]}) is None


def test_default_role_is_of_anybody_the_provider_knows() -> None:
    assert role_of(Settings(oidc_default_role="viewer"), {"sub": "u"}) is Role.VIEWER
    assert email_of({"sub": "u"}) is None


# --- a real provider


def test_sign_in_at_a_real_provider(sqlite_url: str) -> None:
    with (
        provider(sub="u-31", email="ada@example.com", email_verified=True) as issuer,
        dashboard(sqlite_url, issuer) as client,
    ):
        page = client.get("/sign-in?next=/tasks%3Fq%3Dx").text
        assert "Sign in with single sign-on" in page
        away = client.get("/sign-in/provider?next=/tasks%3Fq%3Dx").headers["location"]
        asked = parse_qs(urlsplit(away).query)
        assert asked["code_challenge_method"] == ["S256"]
        assert {"state", "nonce", "code_challenge"} <= asked.keys()
        assert "s3cret" not in away
        back = httpx.post(away, data={"sub": "u-31"}).headers["location"]
        response = client.get(callback_of(back))
        assert (response.status_code, response.headers["location"]) == (303, "/tasks?q=x"), response.text
        assert "Role: operator" in client.get("/account").text
        (session,) = read_sessions(client.app.state.store)  # type: ignore[attr-defined]
        assert (session.user, session.source, session.role) == ("ada@example.com", "oidc", Role.OPERATOR)
        # The same answer a second time: its state is used up.
        assert client.get(callback_of(back)).status_code == 401


def test_who_has_no_role_is_refused_and_recorded(sqlite_url: str) -> None:
    with (
        provider(sub="u-32", email="eve@example.com", email_verified=True) as issuer,
        dashboard(sqlite_url, issuer) as client,
    ):
        away = client.get("/sign-in/provider").headers["location"]
        back = httpx.post(away, data={"sub": "u-32"}).headers["location"]
        response = client.get(callback_of(back))
        assert response.status_code == 403
        assert "has no role" in response.text
        store = client.app.state.store  # type: ignore[attr-defined]
        assert read_sessions(store) == []
        (action,) = read_actions(store).items
        assert (action.actor, action.outcome) == ("eve@example.com", "denied")


def test_refusal_at_the_provider_opens_nothing(sqlite_url: str) -> None:
    with provider(sub="u-31") as issuer, dashboard(sqlite_url, issuer) as client:
        away = client.get("/sign-in/provider").headers["location"]
        state = parse_qs(urlsplit(away).query)["state"][0]
        response = client.get(f"/sign-in/provider/callback?error=access_denied&state={state}")
        assert response.status_code == 401


# --- a provider that is wrong


class Forger(ThreadingHTTPServer):
    """A provider that answers any code with the ID token that ``make`` gives for a nonce."""

    def __init__(self, answer: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), answer)
        self.issuer = f"http://127.0.0.1:{self.server_port}"
        self.metadata: dict[str, Any] = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
        }
        self.nonce = ""
        self.make: Callable[[dict[str, Any]], str | None] = signed

    def claims(self) -> dict[str, Any]:
        now = int(time.time())
        return {**ADA, "iss": self.issuer, "aud": "monitor-7", "iat": now, "exp": now + 60, "nonce": self.nonce}


class _Answer(BaseHTTPRequestHandler):
    server: Forger

    def do_GET(self) -> None:
        document = {"keys": [KEY.as_dict(private=False)]} if self.path == "/jwks" else self.server.metadata
        self._answer(document)

    def do_POST(self) -> None:
        token = self.server.make(self.server.claims())
        self._answer({"access_token": "a7", "token_type": "Bearer", **({} if token is None else {"id_token": token})})

    def _answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


def signed(claims: dict[str, Any], key: RSAKey = KEY) -> str:
    return jwt.encode({"alg": "RS256", "kid": "k7"}, claims, key)


@contextmanager
def serving_http(answer: type[BaseHTTPRequestHandler]) -> Iterator[Forger]:
    server = Forger(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def forger() -> Iterator[Forger]:
    with serving_http(_Answer) as server:
        yield server


def try_to_sign_in(client: TestClient, forger: Forger) -> int:
    """The status with which the dashboard answers the browser that comes back."""
    away = client.get("/sign-in/provider")
    if away.status_code != 302:
        return away.status_code
    asked = parse_qs(urlsplit(away.headers["location"]).query)
    forger.nonce = asked["nonce"][0]
    return client.get(f"/sign-in/provider/callback?code=c7&state={asked['state'][0]}").status_code


def test_right_token_of_the_forger_opens_the_door(sqlite_url: str, forger: Forger) -> None:
    with dashboard(sqlite_url, forger.issuer) as client:
        assert try_to_sign_in(client, forger) == 303


def _without(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda claims: signed({key: value for key, value in claims.items() if key != name})


def _with(**changes: object) -> Callable[[dict[str, Any]], str]:
    return lambda claims: signed({**claims, **changes})


def _by_secret(claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key("s3cret"))


def _unsigned(claims: dict[str, Any]) -> str:
    _, body, _ = signed(claims).split(".")
    return f"eyJhbGciOiJub25lIn0.{body}."


def _broken(claims: dict[str, Any]) -> str:
    head, body, signature = signed(claims).split(".")
    return f"{head}.{body}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


WRONG: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "no token": lambda _: None,
    "no JWT": lambda _: "x.y.z",
    "another key": lambda claims: signed(claims, OTHER_KEY),
    "signed by the client secret": _by_secret,
    "not signed": _unsigned,
    "broken signature": _broken,
    "another issuer": _with(iss="https://accounts.google.com"),
    "another audience": _with(aud="other-app"),
    "another nonce": _with(nonce="n-other"),
    "no nonce": _without("nonce"),
    "expired": _with(exp=int(time.time()) - 1000),
    "no expiry": _without("exp"),
    "issued in the future": _with(iat=int(time.time()) + 5000),
    "no subject": _without("sub"),
    "subject is no text": _with(sub=31),
    "no audience": _without("aud"),
    "no issuer": _without("iss"),
}


@pytest.mark.parametrize("what", WRONG)
def test_token_that_is_wrong_opens_nothing(sqlite_url: str, forger: Forger, what: str) -> None:
    forger.make = WRONG[what]
    with dashboard(sqlite_url, forger.issuer) as client:
        assert try_to_sign_in(client, forger) == 401
        assert read_sessions(client.app.state.store) == []  # type: ignore[attr-defined]


def test_answer_with_another_state_or_none_opens_nothing(sqlite_url: str, forger: Forger) -> None:
    with dashboard(sqlite_url, forger.issuer) as client:
        client.get("/sign-in/provider")
        for query in ("code=c7&state=other", "code=c7", "state=x", ""):
            assert client.get(f"/sign-in/provider/callback?{query}").status_code == 401
        other = TestClient(client.app, base_url=BASE, follow_redirects=False)
        state = parse_qs(urlsplit(client.get("/sign-in/provider").headers["location"]).query)["state"][0]
        assert other.get(f"/sign-in/provider/callback?code=c7&state={state}").status_code == 401


def test_provider_that_names_another_issuer_is_not_used(sqlite_url: str, forger: Forger) -> None:
    forger.metadata["issuer"] = "https://accounts.google.com"
    with dashboard(sqlite_url, forger.issuer) as client:
        assert try_to_sign_in(client, forger) == 503


def test_provider_that_is_away_is_said(sqlite_url: str) -> None:
    with dashboard(sqlite_url, "http://127.0.0.1:9") as client:
        response = client.get("/sign-in/provider")
        assert response.status_code == 503
        assert "cannot be reached" in response.text


# --- GitHub


class GitHub(_Answer):
    """A GitHub of a company's own, where u-31 has an address that ``verified`` speaks of."""

    verified: ClassVar[bool] = True

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer a7":
            self.send_error(401)
        elif self.path == "/api/v3/user":
            self._answer({"id": 31, "login": "ada"})
        else:
            primary = {"email": "ada@example.com", "primary": True, "verified": self.verified}
            self._answer([{"email": "old@example.com", "primary": False, "verified": True}, primary])

    def do_POST(self) -> None:
        self._answer({"access_token": "a7", "token_type": "bearer", "scope": "user:email"})


@pytest.mark.parametrize(("verified", "status"), [(True, 303), (False, 403)])
def test_user_of_github_signs_in_by_the_verified_primary_address(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, verified: bool, status: int
) -> None:
    monkeypatch.setattr(GitHub, "verified", verified)
    with serving_http(GitHub) as server, dashboard(sqlite_url, server.issuer, oidc_provider="github") as client:
        away = client.get("/sign-in/provider").headers["location"]
        assert away.startswith(f"{server.issuer}/login/oauth/authorize?")
        state = parse_qs(urlsplit(away).query)["state"][0]
        assert client.get(f"/sign-in/provider/callback?code=c7&state={state}").status_code == status
        users = [each.user for each in read_sessions(client.app.state.store)]  # type: ignore[attr-defined]
        assert users == (["ada@example.com"] if verified else [])


# --- settings


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"oidc_client_id": "x"}, "oidc_issuer"),
        ({"oidc_client_id": "x", "oidc_provider": "google"}, "oidc_client_secret"),
        ({"oidc_client_id": "x", "oidc_provider": "google", "oidc_client_secret": "y"}, "nobody"),
    ],
)
def test_settings_that_let_nobody_in_are_refused_at_start(
    sqlite_url: str, options: dict[str, object], says: str
) -> None:
    store = open_store(sqlite_url)
    with pytest.raises(SettingsError, match=says):
        check_bind(load(options, {}), store)
    store.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"oidc_issuer": "http://sso.example.com"}, "https"), ({"oidc_provider": "myspace"}, "keycloak")],
)
def test_provider_that_cannot_be_meant_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load(options, {})
