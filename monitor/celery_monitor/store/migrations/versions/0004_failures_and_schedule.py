"""When a failure group was resolved, muted or came back; and what beat sends when."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("failure_group", sa.Column("state_at", sa.Double))
    op.create_table(
        "schedule",
        sa.Column("cluster_id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "worker_start",
        sa.Column("cluster_id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, primary_key=True),
        sa.Column("hostname", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
