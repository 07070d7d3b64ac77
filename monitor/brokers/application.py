"""The broker that a user's application is configured for."""

from celery import Celery

from monitor.brokers.connection import load_app
from monitor.settings import DEFAULT_CLUSTER
from monitor.settings import Broker


def broker_of_app(name: str) -> Broker:
    """Where the application ``module:attribute`` reads its tasks. Imports the user's code; raises SettingsError."""
    return broker_of(load_app(name))


def broker_of(app: Celery) -> Broker:
    """Where a loaded application reads its tasks."""
    return Broker(DEFAULT_CLUSTER, app.connection_for_read().as_uri(include_password=True))
