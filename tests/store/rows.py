"""Rows for every table, and all rows of a record, to compare two databases."""

from typing import Any

import sqlalchemy as sa

from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.retention.partitions import KEPT_OFFSET, create_partition, first_id

TEXT = "naïve 'quoted' \\N \t\n \\\\ \u202e 🎉 {}"
BYTES = b"\x00\\x00\xff\n\tempty"
KEYS = {"key", "new_key", "root", "parent", "signature"}  # in indexes, which bound their length
Rows = dict[str, list[tuple[Any, ...]]]


def fill_all(store: Store) -> None:
    """Three rows in each table that is empty: without optional values, with ordinary ones, and with extreme ones."""
    with store.begin() as connection:
        for table in schema.metadata.sorted_tables:
            if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is None:
                for number in (1, 2, 3):
                    connection.execute(table.insert().values(row_of(table, number)))


def row_of(table: sa.Table, number: int) -> dict[str, Any]:
    columns = [each for each in table.columns if number > 1 or not each.nullable]
    return {each.name: value_of(each, number) for each in columns}


def value_of(column: sa.Column[Any], number: int) -> object:
    kind = column.type
    key = column.primary_key or bool(column.unique)
    if isinstance(kind, sa.Boolean):
        return number == 2
    if isinstance(kind, sa.LargeBinary):
        return BYTES * number if number < 3 or column.name in KEYS else bytes(range(256)) * 400
    if isinstance(kind, sa.Text):
        return f"{TEXT}{number}"
    if isinstance(kind, sa.Double):
        return (1_790_000_000.123456789, 0.1 + 0.2, 1e-300)[number - 1]
    if key or number < 3:
        return number
    limit = {"SMALLINT": 15, "INTEGER": 31}.get(str(kind), 62)
    return (1 << limit) - 1


def fill_partitions(store: Store, cluster: int) -> None:
    """Tasks and runs in a partition of PostgreSQL, and some that were moved to the kept one."""
    number = first_id(cluster) + (4711 << 6) + cluster
    with store.begin() as connection:
        create_partition(connection, cluster, first_id(cluster), 10_000)
        for at, task in enumerate((number, number + 64, number + 128 - KEPT_OFFSET)):
            row = row_of(schema.task, 2) | {"id": task, "cluster_id": cluster, "key": b"key %d" % at}
            connection.execute(schema.task.insert().values(row))
            connection.execute(schema.run.insert().values(row_of(schema.run, 2) | {"task_id": task}))


def all_rows(store: Store) -> Rows:
    """All rows of all tables, those of ``meta`` too."""
    with store.read() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
            for table in schema.metadata.sorted_tables
        }
