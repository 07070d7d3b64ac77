"""The tables of jobs, on a fresh database and on one of the version before."""

from collections.abc import Mapping

import sqlalchemy as sa

from monitor.store import schema
from monitor.store.engine import open_store

TABLES = ("job", "job_task", "job_outcome")


def columns(engine: sa.Engine, table: str) -> Mapping[str, tuple[str, bool]]:
    return {each["name"]: (str(each["type"]), each["nullable"]) for each in sa.inspect(engine).get_columns(table)}


def test_the_migration_makes_what_the_schema_says(database_url: str) -> None:
    store = open_store(database_url)
    made = {table: columns(store.engine, table) for table in TABLES}
    with store.begin() as connection:
        for table in TABLES:
            connection.exec_driver_sql(f"DROP TABLE {table}")
        schema.metadata.create_all(connection)
    assert {table: columns(store.engine, table) for table in TABLES} == made
    store.close()


def test_a_database_of_the_first_version_gets_them_and_keeps_what_it_has(database_url: str) -> None:
    store = open_store(database_url)
    with store.begin() as connection:
        connection.execute(schema.cluster.insert().values(name="shop"))
        for table in TABLES:
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    store.close()
    store = open_store(database_url)
    assert set(TABLES) <= set(sa.inspect(store.engine).get_table_names())
    with store.read() as connection:
        assert connection.execute(sa.select(schema.cluster.c.name)).scalars().all() == ["shop"]
    store.close()
