"""What was found out after a gap, which tasks were learnt of by asking, and receivers that share a cluster's tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("gap", sa.Column("shard", sa.SmallInteger, nullable=False, server_default="1"))
    op.add_column("gap", sa.Column("reconciliation", sa.Text))
    op.add_column("task", sa.Column("learnt", sa.Double))
    op.rename_table("receiver", "receiver_before")
    made = op.create_table(
        "receiver",
        sa.Column("cluster_id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False, server_default="1"),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    before = sa.table("receiver_before", sa.column("cluster_id"), sa.column("record"))
    op.execute(made.insert().from_select(["cluster_id", "record"], sa.select(before)))
    op.drop_table("receiver_before")
