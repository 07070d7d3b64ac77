"""Runs of another message than their task's: replaced, retried or sent again under one id."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("task", sa.Column("replacing", sa.SmallInteger))
    op.add_column("run", sa.Column("replacing", sa.SmallInteger))
    op.add_column("run", sa.Column("message", sa.LargeBinary))
