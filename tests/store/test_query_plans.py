"""Which index each list reads. A scan of all tasks would pass every other test and stop the page at a million."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from celery_monitor.core.filters.parser import UNHANDLED, parse
from celery_monitor.records.task import TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.tasks.page import Selection, select_tasks
from celery_monitor.store.tasks.unfinished import (
    ProcessKey,
    last_number,
    sent_messages,
    tasks_by_process,
    tasks_of_process,
    unfinished_tasks,
    waiting_tasks,
)
from tests.factories import NOW, make_id
from tests.store.traffic import seed

CASES = {
    "": "task_seen",
    "received:>-4m": "task_seen",
    "runtime:>5s": "task_seen",
    "timeout": "task_seen",
    "cluster:eu retries:2": "task_seen",
    "state:failed": "task_state",
    "state:unfinished": "task_state|task_eta",  # the few that are scheduled have an index of their own
    "-state:succeeded received:>-4m": "task_state|task_eta",
    "name:shop.pay.charge": "task_name",
    "name:shop.pay.*": "task_name",
    "name:shop.pay.charge state:failed": "task_name|task_state",
    "queue:slow": "task_state|task_name",
    f"root:{make_id(11)}": "task_root|task_pkey|INTEGER PRIMARY KEY",
    f"parent:{make_id(11)}": "task_root",
    "job:1": "task_key",
    "job:1 runtime:>5s": "task_key",
    "retried:yes": "task_key",
    "retried:succeeded state:failed": "task_key",
    "state:failed retried:no": "task_state",
    UNHANDLED: "task_state",
    "group:1": "task_failure_group",
    "group:1 runtime:>5s": "task_failure_group",
    f"id:{make_id(8)}": "task_pkey|INTEGER PRIMARY KEY",
}


@pytest.fixture(params=["analyzed", "never analyzed"])
def store(database_url: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    opened = open_store(database_url)
    seed(opened)
    if request.param == "analyzed":
        with opened.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("ANALYZE"))
    yield opened
    opened.close()


def selected(connection: Connection, text: str) -> Selection:
    return select_tasks(connection, parse(text, NOW + 300), 20)


def explain(connection: Connection, statement: sa.Select[tuple[float, int]]) -> list[str]:
    """The plan of the statement as it is sent, with its parameters apart."""
    sent: list[tuple[str, tuple[object, ...]]] = []

    def note(_connection: object, _cursor: object, sql: str, values: tuple[object, ...], *_: object) -> None:
        sent.append((sql, values))

    sa.event.listen(connection, "before_cursor_execute", note)
    connection.execute(statement)
    sa.event.remove(connection, "before_cursor_execute", note)
    sql, values = sent[-1]
    words = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    return [str(row[-1]) for row in connection.exec_driver_sql(f"{words} {sql}", values)]


def reads_of_task(lines: list[str]) -> list[str]:
    """Of what is kept there is nothing here: in an empty partition every index is as good."""
    return [line for line in lines if re.search(r"\b(SCAN|SEARCH) task\b|Scan.* on task_\d+_\d+\b", line)]


def in_each_partition(names: str) -> str:
    """An index of a partition is named for it and for the columns."""
    return "|".join(re.sub("^task_", r"task_(?:(?:kept|\\d+_\\d+)_)?", each) + r"\w*" for each in names.split("|"))


@pytest.mark.parametrize("page", ["first", "next", "previous", "stopped"])
def test_a_list_reads_its_index(store: Store, page: str) -> None:
    at = (NOW + 150.0, 4 << 6)
    places: dict[str, dict[str, Any]] = {
        "next": {"after": at},
        "previous": {"before": at},
        "stopped": {"search_limit": at},
    }
    with store.read() as connection:
        for text, index in CASES.items():
            found = selected(connection, text)
            assert found.plan.index in {"id", *index.split("|")}, text
            lines = reads_of_task(explain(connection, found.positions(20, **places.get(page, {}))))
            assert lines, text
            # PostgreSQL weighs each partition by itself: in so small a one the order of time can cost as little.
            weighed = "task_state" in index or "task_name" in index or "received:" in text or "job:" in text
            weighed |= "retried:" in text
            allowed = f"{index}|task_seen" if weighed and connection.dialect.name == "postgresql" else index
            for line in lines:
                assert re.search(rf"(INDEX|using|USING) ({in_each_partition(allowed)})\b|USING {allowed}", line), (
                    text,
                    line,
                )
                assert "Seq Scan" not in line


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("text", ["job:1", "job:1 state:failed", "state:failed job:1"])
def test_tasks_of_a_job_are_looked_up_by_their_keys(store: Store, text: str) -> None:
    """Every task of the cluster was read; and to find where to stop, all that follows was done twice."""
    with store.read() as connection:
        found = selected(connection, text)
        assert found.search_limit(connection) is None
        lines = reads_of_task(explain(connection, found.positions(20)))
    assert lines == ["SEARCH task USING INDEX task_key (cluster_id=? AND key=?)"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_whether_a_row_was_retried_is_looked_up_by_its_key(store: Store) -> None:
    with store.read() as connection:
        found = selected(connection, "state:failed retried:no")
        lines = explain(connection, found.positions(20))
        assert any(re.search(r"SEARCH link USING .*cluster_id=\? AND key=\?", line) for line in lines), lines
        found = selected(connection, "name:shop.pay.charge -retried:failed")
        lines = explain(connection, found.positions(20))
        assert any(re.search(r"SEARCH again USING .*cluster_id=\? AND key=\?", line) for line in lines), lines


def test_a_page_is_not_sorted_when_its_index_has_the_order(store: Store) -> None:
    with store.read() as connection:
        for text in ("", "state:failed", "name:shop.pay.charge", "group:1", "received:>-4m"):
            statement = selected(connection, text).positions(20, after=(NOW + 150.0, 4))
            lines = " ".join(explain(connection, statement))
            assert not re.search(r"TEMP B-TREE|\bSort\b(?! Key)", lines), (text, lines)


def test_more_columns_of_a_row_are_no_second_read(store: Store) -> None:
    with store.read() as connection:
        for text in ("", "state:failed", "name:shop.pay.charge"):
            found = selected(connection, text)
            plain = reads_of_task(explain(connection, found.positions(20)))
            more = reads_of_task(explain(connection, found.positions(20, also=(schema.task.c.exception,))))
            assert len(more) == len(plain), text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("ask", "walks"),
    [
        (lambda store: tasks_by_process(store, "shop"), "INDEX task_state"),
        (
            lambda store: tasks_of_process(store, "shop", ProcessKey("worker1@shop", 4711)),
            "INDEX task_state",
        ),
        (
            lambda store: unfinished_tasks(store, "shop", TaskState.LOST, 1 << 40, (0.0, 0), 5),
            "INDEX task_state",
        ),
        (
            lambda store: last_number(store, "shop"),
            r"PRIMARY KEY \(rowid<\?\)$",
        ),  # backwards, and stops at the first
        (lambda store: sent_messages(store, "shop", [make_id(1), make_id(2)]), "INDEX task_key"),
        (lambda store: waiting_tasks(store, "shop"), "INDEX task_state"),
    ],
    ids=["tasks_by_process", "tasks_of_process", "unfinished_tasks", "last_number", "sent_messages", "waiting_tasks"],
)
def test_what_is_asked_every_second_reads_no_task_that_has_ended(
    store: Store, ask: Callable[[Store], object], walks: str
) -> None:
    """At ten million tasks it took a minute, in which the log of SQLite could not begin anew."""
    sent: list[tuple[str, tuple[object, ...]]] = []

    def note(_connection: object, _cursor: object, sql: str, values: tuple[object, ...], *_: object) -> None:
        if re.search(r"\bFROM task\b", sql):
            sent.append((sql, values))

    sa.event.listen(store.engine, "before_cursor_execute", note)
    ask(store)
    sa.event.remove(store.engine, "before_cursor_execute", note)
    assert sent
    for sql, values in sent:
        with store.read() as connection:
            plan = [str(row[-1]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert reads_of_task(plan)
        assert all(re.search(walks, line) for line in reads_of_task(plan)), plan
