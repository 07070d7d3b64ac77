"""Tasks and runs in partitions, on PostgreSQL: what is there becomes the partition of what is kept, as it stands."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BOUNDS = f"FROM (MINVALUE) TO ({1 << 50})"
# Of the parent; those of the partition are the table's. Which task has a key, each partition knows for itself.
INDEXES = {
    "task_seen": "ON task (seen, id)",
    "task_name": "ON task (name_id, seen, id)",
    "task_state": "ON task (state, seen, id) WHERE state <> 6",
    "task_root": "ON task (root) WHERE root IS NOT NULL AND length(root) > 0",
    "task_eta": "ON task (eta) WHERE state = 2",
    "task_failure_group": "ON task (failure_group_id, seen, id) WHERE failure_group_id IS NOT NULL",
}
KEYS = {"task": ("id", "id"), "run": ("task_id", "task_id, ordinal")}


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    for table, (column, key) in KEYS.items():
        op.execute(f"ALTER TABLE {table} RENAME TO {table}_kept")
        op.execute(f"ALTER TABLE {table}_kept RENAME CONSTRAINT {table}_pkey TO {table}_kept_pkey")
        if table == "task":
            for name in (*INDEXES, "task_key"):
                op.execute(f"ALTER INDEX {name} RENAME TO {name.replace('task_', 'task_kept_')}")
        op.execute(f"CREATE TABLE {table} (LIKE {table}_kept INCLUDING DEFAULTS) PARTITION BY RANGE ({column})")
        op.execute(f"ALTER TABLE {table} ADD PRIMARY KEY ({key})")
        if table == "task":
            for name, where in INDEXES.items():
                op.execute(f"CREATE INDEX {name} {where}")
        op.execute(f"ALTER TABLE {table} ATTACH PARTITION {table}_kept FOR VALUES {BOUNDS}")
