"""Whether a bulk retry sends tasks that were retried before; failures whose messages differ in names are one group."""

from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from alembic import op

from celery_monitor.core.failures import digest_of, loosen

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

MOST_VARIANTS = 50
# Of several groups that become one, what shows most wins.
STATES = ("open", "regressed", "muted", "resolved")
MOVE = """
INSERT INTO failure_rollup (resolution, at, group_id, worker_id, count)
SELECT resolution, at, :leader, worker_id, count FROM failure_rollup WHERE group_id = :number
ON CONFLICT (resolution, at, group_id, worker_id) DO UPDATE SET count = failure_rollup.count + excluded.count
"""


def upgrade() -> None:
    op.add_column("job", sa.Column("include_retried", sa.SmallInteger, nullable=False, server_default="0"))
    op.create_table(
        "failure_variant",
        sa.Column("group_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("message", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sqlite_with_rowid=False,
    )
    kinds: dict[tuple[object, ...], list[Any]] = defaultdict(list)
    for row in op.get_bind().execute(sa.text("SELECT * FROM failure_group ORDER BY id")).all():
        kinds[row.cluster_id, row.name, row.exception_type, loosen(row.message), row.frame].append(row)
    for (_, name, exception_type, message, frame), rows in kinds.items():
        if any(row.message != message for row in rows):
            _become_one(rows, str(message), digest_of(name, str(exception_type), str(message), frame))  # type: ignore[arg-type]


def _become_one(rows: list[Any], message: str, signature: bytes) -> None:
    connection, leader = op.get_bind(), rows[0].id
    for row in rows[1:]:
        move = {"leader": leader, "number": row.id}
        connection.execute(sa.text(MOVE), move)
        connection.execute(sa.text("DELETE FROM failure_rollup WHERE group_id = :number"), move)
        tasks = "UPDATE task SET failure_group_id = :leader WHERE failure_group_id = :number"
        connection.execute(sa.text(tasks), move)
        connection.execute(sa.text("DELETE FROM failure_group WHERE id = :number"), move)
    shown = min(rows, key=lambda row: STATES.index(row.state))
    group = sa.table("failure_group", *map(sa.column, ("id", *_merged(rows, shown), "message", "signature")))
    values = {**_merged(rows, shown), "message": message, "signature": signature}
    connection.execute(sa.update(group).where(group.c.id == leader).values(values))
    counts: dict[str, int] = defaultdict(int)
    for number, row in enumerate(row for row in rows if row.message != message):
        counts[row.message if number < MOST_VARIANTS else ""] += row._mapping["count"]
    variant = sa.table("failure_variant", *map(sa.column, ("group_id", "message", "count")))
    for text, count in counts.items():
        connection.execute(sa.insert(variant).values(group_id=leader, message=text, count=count))


def _merged(rows: list[Any], shown: Any) -> dict[str, object]:
    return {
        "first_seen": min(row.first_seen for row in rows),
        "last_seen": max(row.last_seen for row in rows),
        "count": sum(row._mapping["count"] for row in rows),
        "state": shown.state,
        "state_at": shown.state_at,
    }
