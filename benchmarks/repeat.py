"""Makes a record of one day one of many: each earlier day is the same tasks again, with other ids, a day older.

It stays as the writer made it: names, counters, roll-ups and failure groups fit, but sketches of days that two copies
share are those of one, and workflows stand in the last day only.
"""

import sqlalchemy as sa

from celery_monitor.store import schema
from celery_monitor.store.engine import Store

DAY = 86_400
TIMES = ("sort_time", "received", "started", "ended", "eta", "ready", "sent", "expires")
COUNTS = ("received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "lost", "since_receipt")
STEPS = 10  # transactions for a day


def repeat(store: Store, days: int) -> None:
    """Adds ``days - 1`` days before the one that is there. SQLite only."""
    if days < 2:
        return
    with store.read() as connection:
        first, last = connection.execute(sa.select(sa.func.min(schema.task.c.id), sa.func.max(schema.task.c.id))).one()
    for day in range(1, days):
        _tasks(store, day, first, last)
    with store.begin() as connection:
        _rollups(connection, days)
        for table in (schema.task_count, schema.failure_group):
            connection.execute(sa.update(table).values({"count": table.c["count"] * days}))
        connection.execute(
            sa.update(schema.failure_group).values(first_seen=schema.failure_group.c.first_seen - (days - 1) * DAY)
        )
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))


def _tasks(store: Store, day: int, first: int, last: int) -> None:
    table = schema.task
    changed = {name: table.c[name] - day * DAY for name in TIMES}
    changed["id"] = table.c.id + day * (last - first + 64)
    changed["key"] = sa.func.randomblob(16)
    changed["root"] = sa.literal(b"")
    changed["parent"] = sa.null()
    columns = [changed.get(column.name, column).label(column.name) for column in table.columns]
    own = sa.or_(table.c.root.is_(None), sa.func.length(table.c.root) == 0)
    step = (last - first) // STEPS + 1
    for start in range(first, last + 1, step):
        wanted = sa.select(*columns).where(table.c.id >= start, table.c.id < min(start + step, last + 1), own)
        with store.begin() as connection:
            connection.execute(table.insert().from_select([column.name for column in table.columns], wanted))


def _rollups(connection: sa.Connection, days: int) -> None:
    for table, counts in ((schema.rollup, COUNTS), (schema.failure_rollup, ("count",))):
        names = [column.name for column in table.columns]
        key = ", ".join(column.name for column in table.primary_key)
        added = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in counts)
        connection.exec_driver_sql(f"CREATE TEMP TABLE a_day AS SELECT * FROM {table.name}")
        for day in range(1, days):
            values = ", ".join(f"at - {day * DAY}" if name == "at" else name for name in names)
            connection.exec_driver_sql(
                f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {values} FROM a_day WHERE true"
                f" ON CONFLICT ({key}) DO UPDATE SET {added}"
            )
        connection.exec_driver_sql("DROP TABLE a_day")
