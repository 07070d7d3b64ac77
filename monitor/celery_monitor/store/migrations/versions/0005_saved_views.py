"""Who saved a view, and when; that it may be pinned was never used."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("saved_view", sa.Column("actor", sa.Text, nullable=False, server_default=""))
    op.add_column("saved_view", sa.Column("at", sa.Double))
    op.drop_column("saved_view", "pinned")
