"""Bulk actions as durable jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("token", sa.Text, nullable=False, unique=True),
        sa.Column("cluster_id", sa.SmallInteger, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("query", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("rate", sa.Double),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("total", _big, nullable=False, server_default="0"),
        sa.Column("position", _big, nullable=False, server_default="0"),
        sa.Column("preview", sa.Text, nullable=False, server_default="{}"),
        sa.Column("started", sa.Double),
        sa.Column("ended", sa.Double),
        sa.Column("message", sa.Text),
        sa.Column("owner", sa.Text),
        sa.Column("lease", sa.Double),
        sa.Column("batch", sa.Text),
    )
    op.create_index("job_state", "job", ["state"])
    op.create_table(
        "job_task",
        sa.Column("job_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", _big, primary_key=True),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("outcome", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("reason", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job_outcome",
        sa.Column("job_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("outcome", sa.SmallInteger, primary_key=True),
        sa.Column("reason", sa.Text, primary_key=True),
        sa.Column("count", _big, nullable=False),
        sqlite_with_rowid=False,
    )
