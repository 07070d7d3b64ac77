"""Alembic's migrations, run from inside: a database is brought up to date when it is opened."""

from functools import cache

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection


@cache
def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "celery_monitor.store:migrations")
    config.set_main_option("path_separator", "os")
    return config


@cache
def _head() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def is_current(connection: Connection) -> bool:
    """The tables are those that this version works with."""
    return MigrationContext.configure(connection).get_current_revision() == _head()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Brings the tables up to date, or to an older revision, inside the connection's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    finally:
        del config.attributes["connection"]
