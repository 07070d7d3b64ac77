"""Runs the migrations."""

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection


def upgrade(connection: Connection, revision: str) -> None:
    """Inside the connection's transaction, which ``env`` gets from the configuration."""
    config = Config()
    config.set_main_option("script_location", "celery_monitor.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
