"""What was found out after a gap, and which tasks were learnt of by asking."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("gap", sa.Column("reconciliation", sa.Text))
    op.add_column("task", sa.Column("learnt", sa.Double))
