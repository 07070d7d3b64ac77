"""Two columns of tasks get clearer names, in place: no row is rewritten, and indexes follow (their names stay)."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # On PostgreSQL the partitions follow. As SQL, for Alembic would copy the whole table on SQLite.
    op.execute("ALTER TABLE task RENAME COLUMN seen TO sort_time")
    op.execute("ALTER TABLE task RENAME COLUMN learnt TO discovered_at")
