"""The tables: on a fresh database, and on one that an older version made."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from celery_monitor.core.filters.parser import parse
from celery_monitor.errors import SettingsError
from celery_monitor.store import migrations, schema
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.retention.partitions import LEAST, create_partition, first_id
from celery_monitor.store.rollups.failures import read_failure_group, read_failure_groups
from celery_monitor.store.tasks.keys import to_key
from celery_monitor.store.tasks.page import find_tasks
from tests.factories import NOW, make_event, make_id
from tests.store.rows import row_of
from tests.store.test_writer import counts, one_task, write

OLDER = sorted(each.name[:4] for each in migrations.VERSIONS.glob("[0-9]*.py"))[:-1]

RENAMED = {"seen": "sort_time", "learnt": "discovered_at"}  # by 0012, columns of task
REGROUPED = {"failure_group", "failure_rollup", "failure_group_id"}  # 0011 changes tables and column: see below
REMOVED = {"pinned"}  # by 0005, a column of task


def tables(store: Store) -> Mapping[str, Mapping[str, tuple[str, bool]]]:
    inspector = sa.inspect(store.engine)
    return {
        table: {each["name"]: (str(each["type"]), each["nullable"]) for each in inspector.get_columns(table)}
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def sqlite_details(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Of each table its columns with defaults and keys, and its indexes with their columns and conditions."""
    with store.read() as connection:
        run = connection.exec_driver_sql
        names = run("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").scalars()
        found: dict[str, list[tuple[object, ...]]] = {}
        for table in list(names):
            columns = run(f"SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_xinfo('{table}')")
            indexes = run(
                f'SELECT i."unique", i.origin, i.partial, group_concat(c.name || c."desc"), m.sql '
                f"FROM pragma_index_list('{table}') i, pragma_index_xinfo(i.name) c "
                "LEFT JOIN sqlite_master m ON m.name = i.name WHERE c.key GROUP BY i.name"
            )
            found[table] = sorted([*map(tuple, columns), *map(tuple, indexes)], key=repr)
    return found


def test_a_new_file_has_what_the_migrations_make(sqlite_url: str) -> None:
    created = open_store(sqlite_url)
    assert len(sqlite_details(created)) > 20
    migrated = Store(sa.create_engine(sqlite_url.replace(".db", "-migrated.db")))
    with migrated.engine.begin() as connection:
        migrations.upgrade(connection)
    assert sqlite_details(created) == sqlite_details(migrated)
    assert migrations.head() == created.engine.connect().exec_driver_sql("SELECT * FROM alembic_version").scalar()
    created.close()
    migrated.close()


def empty(store: Store) -> None:
    with store.begin() as connection:
        schema.metadata.drop_all(connection)
        connection.exec_driver_sql("DELETE FROM alembic_version")


def reflected(store: Store) -> sa.MetaData:
    """The tables of an older revision, without PostgreSQL's partitions."""
    found = sa.MetaData()
    names = schema.metadata.tables.keys() & set(sa.inspect(store.engine).get_table_names())
    found.reflect(store.engine, only=sorted(names))
    return found


def values_of(connection: sa.Connection, table: sa.Table) -> list[dict[str, Any]]:
    rows = connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
    return [dict(row) for row in rows]


def test_the_migrations_make_what_the_schema_says(database_url: str) -> None:
    store = open_store(database_url)
    made = tables(store)
    empty(store)
    with store.begin() as connection:
        schema.metadata.create_all(connection)
    assert tables(store) == made
    store.close()


def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    store = open_store(database_url)
    before = tables(store)
    with store.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SettingsError, match="newer version of celery-monitor"):
        open_store(database_url)
    assert tables(store) == before
    store.close()


def test_the_newest_revision_is_alembics_head() -> None:
    config = Config()
    config.set_main_option("script_location", "celery_monitor.store:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.head()]


def test_opening_a_new_or_current_database_loads_no_alembic(sqlite_url: str) -> None:
    code = "import sys; from celery_monitor.store.engine import open_store; open_store(sys.argv[1]).close()"
    code += "; open_store(sys.argv[1]).close()"
    code += "; print([each for each in sys.modules if each.startswith('alembic')])"
    ran = subprocess.run([sys.executable, "-c", code, sqlite_url], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize("revision", OLDER)
def test_an_older_database_is_brought_up_to_date_and_keeps_the_rows_of_every_table(
    database_url: str, revision: str
) -> None:
    store = open_store(database_url)
    made = tables(store)
    empty(store)
    with store.begin() as connection:
        migrations.upgrade(connection, revision)
        assert migrations.revision_of(connection) == revision != migrations.head()
    older = reflected(store).sorted_tables
    with store.begin() as connection:
        for table in older:
            for number in (1, 2):
                connection.execute(table.insert().values(row_of(table, number)))
        before = {table.name: values_of(connection, table) for table in older}
    store.close()
    changed = REMOVED | (REGROUPED if revision < "0011" else set())
    store = open_store(database_url)
    assert tables(store) == made
    with store.read() as connection:
        for name in before.keys() - changed:
            after = values_of(connection, schema.metadata.tables[name])
            assert len(after) == 2, name
            for row, upgraded in zip(before[name], after, strict=True):
                kept = {RENAMED.get(column, column): value for column, value in row.items()} if name == "task" else row
                assert {each: upgraded[each] for each in kept.keys() - changed} == {
                    each: kept[each] for each in kept.keys() - changed
                }, name
    store.close()


@pytest.mark.parametrize("revision", ["0005", "0011"])
def test_tasks_of_an_older_database_stay_and_are_found(database_url: str, revision: str) -> None:
    """On PostgreSQL those from before 0007 are in no partition by number, and a repeated event must still find them."""
    store = open_store(database_url)
    empty(store)
    number = 1 << 6 | 1 if store.is_sqlite or revision < "0007" else first_id(1) + (1 << 6 | 1)
    task = {"id": number, "cluster_id": 1, "key": to_key(make_id(1)), "state": 3, "seen": NOW + 3, "received": NOW}
    if revision > "0006":
        task["learnt"] = NOW + 7
    with store.begin() as connection:
        migrations.upgrade(connection, revision)
        connection.execute(schema.cluster.insert().values(name="shop"))
        if not store.is_sqlite and revision > "0007":
            create_partition(connection, 1, first_id(1), LEAST)
        connection.execute(sa.table("task", *map(sa.column, task)).insert().values(task))
        count = {"cluster_id": 1, "state": 3, "name_id": 0, "queue_id": 0, "worker_id": 0, "count": 1}
        connection.execute(schema.task_count.insert().values(**count))
    store.close()
    store = open_store(database_url)
    (found,) = find_tasks(store, parse("", NOW)).items
    assert (found.id, found.received, found.discovered_at) == (make_id(1), NOW, task.get("learnt"))
    with store.read() as connection:
        assert connection.execute(sa.select(schema.task.c.id, schema.task.c.sort_time)).all() == [(number, NOW + 3)]
    write(store, *one_task(1), *one_task(2))
    assert counts(store) == {"succeeded": 2}
    assert {each.id for each in find_tasks(store, parse("", NOW)).items} == {make_id(1), make_id(2)}
    with store.read() as connection:
        kept = connection.execute(sa.select(schema.task.c.id).order_by(schema.task.c.id)).scalars().all()
    assert kept[0] == number
    assert len(kept) == 2
    store.close()


def test_groups_that_differ_in_a_name_become_one_with_what_they_counted(database_url: str) -> None:
    store = open_store(database_url)
    empty(store)
    with store.begin() as connection:
        migrations.upgrade(connection, "0007")
        connection.execute(schema.cluster.insert().values(name="shop"))
        rows = [("Acme", 2, "muted"), ("Globex", 3, "resolved"), ("Initech", 4, "regressed")]
        for number, (customer, count, state) in enumerate(rows, 1):
            message = f"price list of {customer} cannot be read"
            connection.execute(
                schema.failure_group.insert().values(
                    cluster_id=1, signature=bytes([number]) * 16, name="shop.pay", exception_type="ValueError",
                    message=message, first_seen=NOW - number, last_seen=NOW + number, count=count, state=state,
                )
            )  # fmt: skip
            place = {"resolution": 60, "at": NOW // 60 * 60, "group_id": number, "worker_id": 0, "count": count}
            connection.execute(schema.failure_rollup.insert().values(place))
    store.close()
    store = open_store(database_url)
    (group,) = read_failure_groups(store, since=NOW - 60)
    assert (group.id, group.message, group.count) == (1, "price list of <name> cannot be read", 9)
    assert (group.state, group.first_seen, group.last_seen) == ("regressed", NOW - 3, NOW + 3)
    assert [each.count for each in group.variants] == [4, 3, 2]
    failure = {"uuid": make_id(7), "exception": "ValueError('price list of Hooli cannot be read')"}
    received = make_event("task-received", uuid=make_id(7), name="shop.pay", timestamp=NOW)
    write(store, received, make_event("task-failed", timestamp=NOW + 9, **failure))
    assert read_failure_group(store, 1).count == 10
    store.close()
