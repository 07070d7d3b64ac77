"""First tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
small = sa.SmallInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "action",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("query", sa.Text(), nullable=True),
        sa.Column("count", big, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "cluster",
        sa.Column("id", small, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "failure_group",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("exception_type", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("frame", sa.Text(), nullable=True),
        sa.Column("first_seen", sa.Double(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.Column("count", big, server_default="0", nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("cluster_id", "signature"),
    )
    op.create_table(
        "failure_rollup",
        sa.Column("resolution", sa.Integer(), nullable=False),
        sa.Column("at", big, nullable=False),
        sa.Column("group_id", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("resolution", "at", "group_id", "worker_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "gap",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("began", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("dropped", big, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("gap_began", "gap", ["cluster_id", "began"], unique=False)
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "queue",
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ready", big, nullable=True),
        sa.Column("unacked", big, nullable=True),
        sa.Column("consumers", sa.Integer(), nullable=True),
        sa.Column("oldest", sa.Double(), nullable=True),
        sa.Column("sampled_at", sa.Double(), nullable=True),
        sa.Column("workers", sa.Text(), server_default="[]", nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "name"),
    )
    op.create_table(
        "queue_sample",
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at", big, nullable=False),
        sa.Column("ready", big, nullable=True),
        sa.Column("unacked", big, nullable=True),
        sa.Column("consumers", sa.Integer(), nullable=True),
        sa.Column("oldest", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("cluster_id", "name", "at"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "receiver",
        sa.Column("cluster_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id"),
    )
    op.create_table(
        "retry",
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("new_key", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("fidelity", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "key", "new_key"),
    )
    op.create_index("retry_new_key", "retry", ["cluster_id", "new_key"], unique=False)
    op.create_table(
        "rollup",
        sa.Column("resolution", sa.Integer(), nullable=False),
        sa.Column("at", big, nullable=False),
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("name_id", sa.Integer(), nullable=False),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Integer(), nullable=False),
        sa.Column("received", sa.Integer(), server_default="0", nullable=False),
        sa.Column("started", sa.Integer(), server_default="0", nullable=False),
        sa.Column("succeeded", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("retried", sa.Integer(), server_default="0", nullable=False),
        sa.Column("revoked", sa.Integer(), server_default="0", nullable=False),
        sa.Column("rejected", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lost", sa.Integer(), server_default="0", nullable=False),
        sa.Column("wait", sa.LargeBinary(), nullable=True),
        sa.Column("run", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("resolution", "at", "cluster_id", "name_id", "queue_id", "worker_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "run",
        sa.Column("task_id", big, nullable=False),
        sa.Column("ordinal", sa.SmallInteger(), nullable=False),
        sa.Column("worker_id", sa.Integer(), server_default="0", nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=True),
        sa.Column("retries", sa.Integer(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("received", sa.Double(), nullable=True),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("eta", sa.Double(), nullable=True),
        sa.Column("runtime", sa.Double(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("exception", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("task_id", "ordinal"),
    )
    op.create_table(
        "saved_view",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "task",
        sa.Column("id", big, autoincrement=False, nullable=False),
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.Column("name_id", sa.Integer(), server_default="0", nullable=False),
        sa.Column("queue_id", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.Integer(), server_default="0", nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=True),
        sa.Column("retries", sa.Integer(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("received", sa.Double(), nullable=True),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("eta", sa.Double(), nullable=True),
        sa.Column("runtime", sa.Double(), nullable=True),
        sa.Column("sent", sa.Double(), nullable=True),
        sa.Column("expires", sa.Double(), nullable=True),
        sa.Column("client_id", sa.Integer(), server_default="0", nullable=False),
        sa.Column("exchange_id", sa.Integer(), server_default="0", nullable=False),
        sa.Column("routing_key_id", sa.Integer(), server_default="0", nullable=False),
        sa.Column("earlier_runs", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("failure_group_id", sa.Integer(), nullable=True),
        sa.Column("root", sa.LargeBinary(), nullable=True),
        sa.Column("parent", sa.LargeBinary(), nullable=True),
        sa.Column("args", sa.Text(), nullable=True),
        sa.Column("kwargs", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("exception", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "task_eta",
        "task",
        ["eta"],
        unique=False,
        sqlite_where=sa.text("state = 2"),
        postgresql_where=sa.text("state = 2"),
    )
    op.create_index(
        "task_failure_group",
        "task",
        ["failure_group_id", "seen", "id"],
        unique=False,
        sqlite_where=sa.text("failure_group_id IS NOT NULL"),
        postgresql_where=sa.text("failure_group_id IS NOT NULL"),
    )
    op.create_index("task_key", "task", ["cluster_id", "key"], unique=True)
    op.create_index("task_name", "task", ["name_id", "seen", "id"], unique=False)
    op.create_index(
        "task_root",
        "task",
        ["root"],
        unique=False,
        sqlite_where=sa.text("root IS NOT NULL AND length(root) > 0"),
        postgresql_where=sa.text("root IS NOT NULL AND length(root) > 0"),
    )
    op.create_index("task_seen", "task", ["seen", "id"], unique=False)
    op.create_index(
        "task_state",
        "task",
        ["state", "seen", "id"],
        unique=False,
        sqlite_where=sa.text("state <> 6"),
        postgresql_where=sa.text("state <> 6"),
    )
    op.create_table(
        "task_count",
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("name_id", sa.Integer(), nullable=False),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Integer(), nullable=False),
        sa.Column("count", big, nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "state", "name_id", "queue_id", "worker_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "term",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("kind", "text"),
    )
    op.create_table(
        "worker",
        sa.Column("cluster_id", sa.SmallInteger(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.Double(), nullable=True),
        sa.Column("last_heartbeat", sa.Double(), nullable=True),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "hostname"),
    )
