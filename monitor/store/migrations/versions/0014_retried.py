"""Whether a bulk retry sends tasks that somebody has retried before."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("include_retried", sa.SmallInteger, nullable=False, server_default="0"))
