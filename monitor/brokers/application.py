"""The broker that a user's application is configured for."""

from celery import Celery

from monitor.brokers.connection import load_app
from monitor.errors import SettingsError
from monitor.settings import DEFAULT_CLUSTER
from monitor.settings import Broker


def broker_of_app(name: str) -> Broker:
    """Where the application ``module:attribute`` reads its tasks. Imports the user's code; raises SettingsError."""
    return broker_of(load_app(name))


def broker_of(app: Celery) -> Broker:
    """Where a loaded application reads its tasks. Raises SettingsError for an address that cannot be parsed."""
    try:
        url = app.connection_for_read().as_uri(include_password=True)
    except (ValueError, KeyError, TypeError):  # their texts may repeat the password
        raise SettingsError(
            "the broker address of the application cannot be used; check its broker_url, and percent-encode special "
            "characters in its password (@ as %40, / as %2F, [ as %5B)"
        ) from None
    return Broker(DEFAULT_CLUSTER, url)
