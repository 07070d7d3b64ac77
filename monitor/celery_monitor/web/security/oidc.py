"""Sign-in at an identity provider: OpenID Connect by discovery, and GitHub, which has OAuth 2 alone.

Authlib does the protocol: authorization code with PKCE, state and nonce, and the checks of the ID token (OpenID Connect
Core 1.0, 3.1.3.7). Loaded only where the setting oidc_client_id is given; needs the extra ``oidc``.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth, StarletteOAuth2App
from joserfc.errors import JoseError
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celery_monitor.core.filters.scope import parse_scope
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.web.security.identity import next_path, peer_of
from celery_monitor.web.security.sign_in import SignIn

log = logging.getLogger(__name__)

PATH = "/sign-in/provider"
STATE_COOKIE = "celery_monitor_sign_in"
STATE_SECONDS = 600
UNKNOWN_USER = "an unknown user"
TIMEOUT_SECONDS = 10.0
ISSUERS = {"google": "https://accounts.google.com", "gitlab": "https://gitlab.com", "github": "https://github.com"}
TITLES = {
    "google": "Google",
    "github": "GitHub",
    "gitlab": "GitLab",
    "okta": "Okta",
    "keycloak": "Keycloak",
    "oidc": "single sign-on",
}
GITHUB_API = "https://api.github.com"
# A shared secret is no proof here: whoever can verify could also sign.
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
FAILURES = (AuthlibBaseError, JoseError, httpx2.HTTPError, ValueError, RuntimeError, KeyError, TypeError)

Claims = Mapping[str, Any]


def role_of(settings: Settings, claims: Claims) -> Role | None:
    """The highest role that the settings give to these claims; ``None`` for somebody who has none.

    An entry with ``@`` is a whole address, or with nothing before it a whole domain; addresses count only if the
    provider has verified them. Any other entry is a value of the claim ``oidc_role_claim``. All are compared exactly,
    addresses whatever the case.
    """
    values = _values(settings, claims)
    for role, entries in (
        (Role.ADMIN, settings.oidc_admins),
        (Role.OPERATOR, settings.oidc_operators),
        (Role.VIEWER, settings.oidc_viewers),
    ):
        if any(_compared(each) in values for each in entries):
            return role
    return Role.VIEWER if settings.oidc_default_role == "viewer" else None


def scope_of(settings: Settings, claims: Claims) -> str:
    """The scope of the first entry of ``oidc_scopes`` that fits; empty: everything."""
    values = _values(settings, claims)
    entries = (each.rpartition("=") for each in settings.oidc_scopes)
    return next((str(parse_scope(scope)) for who, _, scope in entries if _compared(who) in values), "")


def _values(settings: Settings, claims: Claims) -> set[str]:
    address = email_of(claims) or ""
    return {*_claim_values(claims, settings.oidc_role_claim), address, f"@{address.rpartition('@')[2]}"} - {"", "@"}


def _compared(entry: str) -> str:
    return entry.lower() if "@" in entry else entry


def email_of(claims: Claims) -> str | None:
    """The address, in lower case, if the provider has verified it."""
    address = claims.get("email")
    if not isinstance(address, str) or claims.get("email_verified") is not True or address.count("@") != 1:
        return None
    return address.lower() if address.isprintable() and not any(map(str.isspace, address)) else None


def _claim_values(claims: Claims, path: str | None) -> Sequence[str]:
    """A text or a list of texts, such as ``groups`` or ``realm_access.roles``; none of them can be an address."""
    found: Any = claims
    for part in path.split(".") if path else ():
        found = found.get(part) if isinstance(found, Mapping) else None
    given = found if isinstance(found, list) else [found]
    return [each for each in given if isinstance(each, str) and "@" not in each] if path else []


def issuer_of(settings: Settings) -> str:
    """The issuer that is set, or the one that the provider is known to have."""
    return (settings.oidc_issuer or ISSUERS[settings.oidc_provider]).rstrip("/")


class Provider:
    """Sends a browser to the provider and opens a session for who comes back."""

    def __init__(self, settings: Settings, sign_in: SignIn, secret: str) -> None:
        self._settings = settings
        self._sign_in = sign_in
        self._secret = secret
        self._github = settings.oidc_provider == "github"
        self.title = TITLES[settings.oidc_provider]
        self._client: StarletteOAuth2App = self._registered()

    def _registered(self) -> StarletteOAuth2App:
        settings, issuer = self._settings, issuer_of(self._settings)
        common = {"client_id": settings.oidc_client_id, "client_secret": settings.oidc_client_secret}
        kwargs = {"code_challenge_method": "S256", "timeout": TIMEOUT_SECONDS}
        if self._github:
            return OAuth().register(
                "provider",
                **common,
                authorize_url=f"{issuer}/login/oauth/authorize",
                access_token_url=f"{issuer}/login/oauth/access_token",
                client_kwargs={**kwargs, "scope": "user:email"},
            )
        return OAuth().register(
            "provider",
            **common,
            server_metadata_url=f"{issuer}/.well-known/openid-configuration",
            client_kwargs={**kwargs, "scope": "openid email profile"},
        )

    def routes(self) -> list[Route]:
        # Holds state, nonce and code verifier until the browser is back, signed.
        state = Middleware(
            SessionMiddleware,
            secret_key=self._secret,
            session_cookie=STATE_COOKIE,
            max_age=STATE_SECONDS,
            same_site="lax",
            path=self._settings.url_prefix.rstrip("/") or "/",
        )
        return [
            Route(PATH, self.begin, methods=["GET"], middleware=[state]),
            Route(f"{PATH}/callback", self.finish, methods=["GET"], name="oidc-callback", middleware=[state]),
        ]

    async def begin(self, request: Request) -> Response:
        """To the provider."""
        try:
            await self._check_metadata()
            request.session["next"] = next_path(request.query_params.get("next", "/"))
            response: Response = await self._client.authorize_redirect(request, request.url_for("oidc-callback"))
        except FAILURES as error:
            log.warning("the identity provider cannot be used: %s", _described(error))
            return self._sign_in.page(request, error=f"{self.title} cannot be reached. Try again later.", status=503)
        return response

    async def finish(self, request: Request) -> Response:
        """Back from the provider."""
        following = next_path(str(request.session.get("next", "/")))
        try:
            await self._check_metadata()
            token = await self._client.authorize_access_token(request)
            claims = await self._github_claims(token) if self._github else self._checked(token)
        except FAILURES as error:
            log.warning("a sign-in at the identity provider failed: %s", _described(error))
            await self._sign_in.failed.note(UNKNOWN_USER, peer_of(request), f"refused by {self.title}")
            text = f"Signing in with {self.title} failed. Try again."
            return self._sign_in.page(request, following, error=text, status=401)
        request.session.clear()
        name = email_of(claims) or f"{claims['sub']}@{urlsplit(issuer_of(self._settings)).hostname}"
        role = role_of(self._settings, claims)
        if role is None:
            await self._sign_in.failed.note(name, peer_of(request), "the user has no role on this dashboard")
            return self._sign_in.page(request, following, error=f"{name} has no role on this dashboard.", status=403)
        scope = scope_of(self._settings, claims)
        return await self._sign_in.open(request, name, role, "oidc", following, scope)

    async def _check_metadata(self) -> None:
        """What discovery gave is of this issuer, and allows no ID token that anybody could sign."""
        if self._github:
            return
        metadata = await self._client.load_server_metadata()
        if str(metadata.get("issuer", "")).rstrip("/") != issuer_of(self._settings):
            metadata.pop("_loaded_at", None)
            raise ValueError(f"its document names the issuer {metadata.get('issuer')!r}")
        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        metadata["id_token_signing_alg_values_supported"] = [each for each in offered if each in ALGORITHMS]

    def _checked(self, token: Mapping[str, Any]) -> Claims:
        claims = token.get("userinfo")
        if not isinstance(claims, Mapping) or not isinstance(claims.get("sub"), str) or not claims["sub"]:
            raise ValueError("it gave no ID token")
        return claims

    async def _github_claims(self, token: Mapping[str, Any]) -> Claims:
        """GitHub gives no ID token: who the access token belongs to is asked."""
        issuer = issuer_of(self._settings)
        api = GITHUB_API if issuer == ISSUERS["github"] else f"{issuer}/api/v3"
        user = await self._client.get(f"{api}/user", token=token)
        addresses = await self._client.get(f"{api}/user/emails", token=token)
        user.raise_for_status()
        addresses.raise_for_status()
        primary: Claims = next((each for each in addresses.json() if each.get("primary")), {})
        return {
            "sub": str(user.json()["id"]),
            "email": primary.get("email"),
            "email_verified": primary.get("verified"),
            "login": user.json()["login"],
        }


def _described(error: Exception) -> str:
    """For the log: the kind of error and its text, without a code or a token, which no library puts there."""
    return f"{type(error).__name__}: {error}"[:500]
