"""Whether the dashboard may be started as it is set: who can sign in, and from where."""

from celery_monitor.core.filters.scope import parse_scope
from celery_monitor.errors import InvalidInput, SettingsError
from celery_monitor.settings import Settings
from celery_monitor.store.accounts.users import has_users_yet
from celery_monitor.store.engine import Store
from celery_monitor.web.security.auth import check_accounts
from celery_monitor.web.security.origin import is_loopback


def check_bind(settings: Settings, store: Store) -> None:
    """Raises SettingsError for users that cannot sign in, and where other machines could act without signing in."""
    check_accounts(settings.basic_auth)
    _check_provider(settings)
    if settings.auth_proxy_header and not settings.trusted_proxies and settings.unix_socket is None:
        raise SettingsError("auth_proxy_header needs --trusted-proxies: without it, anybody could sign in as any user")
    alone = settings.unix_socket is not None or is_loopback(settings.host.strip("[]"))
    if alone or settings.has_sign_in or has_users_yet(store):
        return
    raise SettingsError(
        f"refusing to listen on {settings.host or 'every address'} without authentication: anybody there could retry "
        "and revoke tasks. Add a user with celery-monitor users add, or listen on --host 127.0.0.1"
    )


def _check_provider(settings: Settings) -> None:
    """An identity provider that is named can be reached, and somebody has a role."""
    if settings.oidc_client_id is None:
        return
    if settings.oidc_issuer is None and settings.oidc_provider not in {"google", "github", "gitlab"}:
        raise SettingsError(
            f"oidc_issuer is missing: write the address of {settings.oidc_provider}, as its users see it"
        )
    if settings.oidc_client_secret is None:
        raise SettingsError("oidc_client_secret is missing: the identity provider shows it beside the client id")
    for entry in settings.oidc_scopes:
        who, _, scope = entry.rpartition("=")
        try:
            parse_scope(scope)
        except InvalidInput as error:
            raise SettingsError(f"oidc_scopes: {who}: {error.message}") from None
    anybody = settings.oidc_admins or settings.oidc_operators or settings.oidc_viewers
    if not anybody and settings.oidc_default_role == "none":
        raise SettingsError("nobody who signs in would have a role: set oidc_admins, oidc_operators or oidc_viewers")
