"""Counters that only grow, for metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "total",
        sa.Column("cluster_id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("name_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
