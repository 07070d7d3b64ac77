"""Alembic's migrations, run from inside: a database is brought up to date when it is opened.

Alembic is loaded only for a database that needs it: it would be a quarter of what a process loads to open one. A new
SQLite file needs none: its tables are created as the schema has them, and a test compares them with what the
migrations make. On PostgreSQL they also make partitions.
"""

from functools import cache
from pathlib import Path
from pkgutil import resolve_name

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from celery_monitor.store.schema import metadata

VERSIONS = Path(__file__).parent / "versions"
# alembic.runtime.migration.MigrationContext keeps the revision of a database there.
_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


@cache
def head() -> str:
    """The newest revision: file names begin with theirs, and each follows the one before."""
    return max(each.name[:4] for each in VERSIONS.glob("[0-9]*.py"))


def revision_of(connection: Connection) -> str | None:
    """The revision of a database; ``None``: it has no tables of ours."""
    if not inspect(connection).has_table(_version.name):
        return None
    return connection.execute(select(_version.c.version_num)).scalar()


def create(connection: Connection) -> None:
    """Creates all tables in a new SQLite file, inside the connection's transaction."""
    metadata.create_all(connection, checkfirst=False)
    _version.create(connection, checkfirst=True)
    connection.execute(_version.insert().values(version_num=head()))


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Brings the tables up to date, or to an older revision, inside the connection's transaction."""
    resolve_name("celery_monitor.store.migrations.alembic_run:upgrade")(connection, revision)
