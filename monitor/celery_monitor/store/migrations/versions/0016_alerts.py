"""Alerts: rules, channels, alerts and their messages."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alert_rule",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "alert_channel",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.Column("sent_at", sa.Double),
        sa.Column("digest_at", sa.Double),
        sa.Column("error", sa.Text),
    )
    _alerts()
    op.create_table(
        "alert_message",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("channel_id", sa.Integer, nullable=False),
        sa.Column("alert_id", sa.Integer),
        sa.Column("transition", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("batch", sa.Text),
        sa.Column("claimed_at", sa.Double),
        sa.Column("sent_at", sa.Double),
        sa.Column("error", sa.Text),
        sa.UniqueConstraint("channel_id", "alert_id", "transition"),
    )
    op.create_index("alert_message_state", "alert_message", ["state", "due_at"])
    op.create_index("alert_message_sent", "alert_message", ["channel_id", "sent_at"])


def _alerts() -> None:
    op.create_table(
        "alert",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("cluster_id", sa.SmallInteger, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fired_at", sa.Double),
        sa.Column("resolved_at", sa.Double),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    op.create_index("alert_fired", "alert", ["fired_at", "id"])
    still_open = sa.text("resolved_at IS NULL")
    op.create_index(
        "alert_open",
        "alert",
        ["cluster_id", "rule", "subject"],
        unique=True,
        sqlite_where=still_open,
        postgresql_where=still_open,
    )
