import threading
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import bindparam, select, update

from celery_monitor.errors import SettingsError, StoreUnavailable
from celery_monitor.store import schema
from celery_monitor.store.engine import Changes, KeyTaken, PreparedStatement, open_store
from celery_monitor.store.tasks.keys import from_key, to_key


def test_opening_twice_finds_what_was_written(database_url: str) -> None:
    store = open_store(database_url)
    with store.begin() as connection:
        connection.execute(schema.cluster.insert().values(name="shop"))
    store.close()
    store = open_store(database_url)
    with store.read() as connection:
        assert connection.execute(select(schema.cluster.c.name)).scalars().all() == ["shop"]
    store.close()


def test_an_exception_rolls_back(database_url: str) -> None:
    store = open_store(database_url)
    with pytest.raises(StoreUnavailable, match=r"(?i)unique"), store.begin() as connection:
        connection.execute(schema.cluster.insert(), [{"name": "shop"}, {"name": "shop"}])
    with store.read() as connection:
        assert connection.execute(select(schema.cluster.c.name)).all() == []
    store.close()


def test_a_commit_by_another_connection_wakes_the_watcher(database_url: str) -> None:
    store = open_store(database_url)
    other = open_store(database_url)
    changes = Changes(store)
    assert not changes.wait(0)

    def commit() -> None:
        with other.begin() as connection:
            connection.execute(schema.cluster.insert().values(name="shop"))

    timer = threading.Timer(0.1, commit)
    timer.start()
    assert changes.wait(60)
    timer.join()
    assert not changes.wait(0.15)
    changes.close()
    store.close()
    other.close()


def test_a_database_that_cannot_be_opened_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="check that the folder exists"):
        open_store(f"sqlite:///{tmp_path}/nowhere/record.db")


@pytest.mark.parametrize("url", ["mysql://localhost/x", "no address", "sqlite://"])
def test_an_address_that_is_not_served_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="sqlite:///"):
        open_store(url)


@pytest.mark.parametrize(
    ("task_id", "length"),
    [
        ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", 16),
        ("3F2504E0-4F89-41D3-9A0C-0305E82C3301", 37),
        ("order-17", 9),
        ("fifteen-letters", 17),
        ("fourteen-lette", 15),
        ("zahlung-ü", 11),
        ("3f2504e0-4f89-41d3-9a0c-0305e82c33zz", 37),
    ],
)
def test_any_id_comes_back_from_its_key(task_id: str, length: int) -> None:
    key = to_key(task_id)
    assert from_key(key) == task_id
    assert len(key) == length


@pytest.mark.parametrize("number", [3, 70])  # one by one, and on PostgreSQL by COPY
def test_a_prepared_statement_does_the_same_for_few_rows_and_for_many(database_url: str, number: int) -> None:
    store = open_store(database_url)
    table = schema.task_count
    keys = [column.name for column in table.primary_key]
    adding = store.insert(table)
    adding = adding.on_conflict_do_update(
        index_elements=keys, set_={"count": table.c["count"] + adding.excluded["count"]}
    )
    prepared = PreparedStatement(store, adding, [*keys, "count"])
    changing = update(schema.term).where(schema.term.c.id == bindparam("number")).values(text=bindparam("text"))
    renamed = PreparedStatement(store, changing, ["text", "number"])
    terms = PreparedStatement(store, schema.term.insert(), ["id", "kind", "text"])
    ugly = ["tab\t", "line\n", "\\N", "\\", "ü€𝄞"]
    numbers = count(1)
    with store.begin() as connection:
        for _ in range(2):  # in one transaction
            prepared.run(connection, [(1, 6, each, 0, 0, 5) for each in range(number)])
        terms.run(connection, [(next(numbers), 1, f"{each}{ugly[each % 5]}") for each in range(number)])
        renamed.run(connection, [(f"new {each}{ugly[each % 5]}", each + 1) for each in range(number)])
    with store.read() as connection:
        assert connection.execute(select(table.c["count"])).scalars().all() == [10] * number
        texts = connection.execute(select(schema.term.c.text).order_by(schema.term.c.id)).scalars().all()
    assert texts == [f"new {each}{ugly[each % 5]}" for each in range(number)]
    with pytest.raises(KeyTaken), store.begin() as connection:
        terms.run(connection, [(each, 2, f"{each}") for each in range(number, 2 * number)])
    store.close()
