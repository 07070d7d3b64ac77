"""Since when a run could have started, how many waits are only counted from receipt, and ages of queues that are exact.

What is stored keeps its meaning: runs without ``ready`` wait from receipt, and so do all of a rollup without a count.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("task", "run"):
        op.add_column(table, sa.Column("ready", sa.Double))
    op.add_column("rollup", sa.Column("since_receipt", sa.Integer))
    op.add_column("queue", sa.Column("oldest_exact", sa.Boolean, nullable=False, server_default=sa.false()))
