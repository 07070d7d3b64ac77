"""Scopes of users, sessions and API tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("user_account", "user_session", "api_token"):
        op.add_column(table, sa.Column("scope", sa.Text, nullable=False, server_default=""))
