"""What a limited user reads of the record: the same on SQLite and PostgreSQL, whatever query reads it."""

import re
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from celery_monitor.core.filters.parser import Filter, parse
from celery_monitor.core.filters.scope import HIDDEN, Limits, parse_scope
from celery_monitor.errors import FilterError, Forbidden, NotFound
from celery_monitor.records.queue import Queue
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.records.task import Task
from celery_monitor.store import schema
from celery_monitor.store.accounts.limited import TABLES, LimitedStore, limited
from celery_monitor.store.engine import Store, force_index_scans
from celery_monitor.store.queues import read_depths, read_queues, save_queues
from celery_monitor.store.rollups.failures import read_failure_group, read_failure_groups
from celery_monitor.store.rollups.series import read_name_totals, read_series
from celery_monitor.store.schedule import read_entries, read_entry_runs, read_schedule, save_schedule
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.facets import read_facets
from celery_monitor.store.tasks.page import count_states, count_tasks, find_tasks, iterate_tasks
from celery_monitor.store.tasks.workflows import read_steps, read_workflows
from celery_monitor.store.terms import find_terms
from celery_monitor.store.views import search
from tests.factories import NOW
from tests.store.traffic import seed

SCOPES = ("cluster:eu", "queue:mail", "name:shop.pay.*", "cluster:shop queue:mail,payments name:shop.*")
# Tables that a limited user never reads, and the reason.
EMPTY = {
    "meta": "keys of everything; what is read of it is compared where it is read",
    "removal": "of the receiver",
    "total": "counters for metrics, of everything",
    "alert": "of those who see everything",
    "alert_channel": "of those who see everything",
    "alert_message": "of those who see everything",
    "alert_rule": "of those who see everything",
    "user_account": "of admins who see everything",
    "user_session": "of admins who see everything",
    "api_token": "of admins who see everything",
}


def within(store: Store, scope: str, *, arguments: bool = True) -> Store:
    return limited(store, Limits(parse_scope(scope), arguments, "olga"))


def every_task(store: Store) -> list[Task]:
    return [task for tasks in iterate_tasks(store, Filter()) for task in tasks]


def inside(store: Store, scope: str) -> list[Task]:
    known = parse_scope(scope)
    return [task for task in every_task(store) if known.has_task(task.cluster, task.name, task.queue)]


@pytest.fixture
def filled(store: Store) -> Store:
    seed(store)
    for cluster in ("shop", "eu"):
        queues = [
            Queue(cluster=cluster, name=name, ready=3, sampled_at=NOW) for name in ("payments", "mail", "o'clock")
        ]
        save_queues(store, cluster, queues, NOW)
    return store


def test_every_table_has_its_part_or_is_empty(store: Store) -> None:
    assert set(schema.metadata.tables) == set(TABLES) | set(EMPTY)
    with within(store, "queue:mail").read() as connection:
        for name in EMPTY:
            assert connection.execute(sa.text(f'SELECT * FROM "{name}"')).all() == [], name


@pytest.mark.parametrize("scope", SCOPES)
def test_all_that_is_read_is_inside(filled: Store, scope: str) -> None:
    mine, expected = within(filled, scope), inside(filled, scope)
    known = {(task.cluster, task.id) for task in expected}
    assert 0 < len(known) < len(every_task(filled))
    assert {(task.cluster, task.id) for task in every_task(mine)} == known
    assert count_tasks(mine, Filter()).value == len(known)
    assert sum(count_states(mine).values()) == len(known)
    for text in ("state:failed", "runtime:>1s", "-queue:payments", "charge", "args:EUR"):
        wanted = parse(text, NOW)
        everywhere = {(task.cluster, task.id) for tasks in iterate_tasks(filled, wanted) for task in tasks}
        for sort in ("-received", "name", "runtime"):
            page = find_tasks(mine, wanted, sort=sort, limit=1000)
            assert {(task.cluster, task.id) for task in page.items} == everywhere & known, (text, sort)
        assert count_tasks(mine, wanted).value == len(everywhere & known), text


@pytest.mark.parametrize("scope", SCOPES)
def test_counts_names_and_charts_are_of_what_is_inside(filled: Store, scope: str) -> None:
    mine, expected = within(filled, scope), inside(filled, scope)
    facets = read_facets(mine, Filter(), ("name", "queue", "worker", "cluster"))
    for field in ("name", "queue", "worker", "cluster"):
        found = {each.value: each.count.value for each in facets[field]}
        assert found == Counter(getattr(task, field) or "" for task in expected), field
    assert set(find_terms(mine, "name", "", 100)) == {task.name for task in expected} - {None}
    assert find_terms(mine, "client", "") == []
    for task in expected[:40]:
        assert read_task(mine, task.id, task.cluster) == read_task(filled, task.id, task.cluster)
    assert {hit.name for hit in search(mine, "shop.", limit=20) if hit.kind == "name"} <= {t.name for t in expected}
    assert {each.name for each in read_name_totals(mine, since=NOW - 60, until=NOW + 600)} <= {
        task.name for task in expected
    }
    received = sum(bucket.received for bucket in read_series(mine, since=NOW - 60, until=NOW + 600).buckets)
    assert received == sum(len(task.runs) for task in expected if task.received is not None)


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_outside_does_not_exist(filled: Store, scope: str) -> None:
    mine = within(filled, scope)
    known = {(task.cluster, task.id) for task in inside(filled, scope)}
    outside = next(task for task in every_task(filled) if (task.cluster, task.id) not in known)
    with pytest.raises(NotFound, match="no task"):
        read_task(mine, outside.id, outside.cluster)
    for page in (read_workflows(mine, limit=100),):
        for workflow in page.items:
            _, steps, _ = read_steps(mine, workflow.root.id, workflow.cluster)
            named = {(workflow.cluster, step.id) for step in steps if step.name is not None}
            assert named <= known


def test_queues_are_those_of_the_scope_and_no_queue_is_of_task_names_alone(filled: Store) -> None:
    assert {(each.cluster, each.name) for each in read_queues(within(filled, "queue:mail,o'clock"))} == {
        ("eu", "mail"), ("shop", "mail"), ("eu", "o'clock"), ("shop", "o'clock"),
    }  # fmt: skip
    assert {name for _, name in read_depths(within(filled, "cluster:eu queue:m*"), since=NOW - 60)} == {"mail"}
    assert {each.cluster for each in read_queues(within(filled, "cluster:eu"))} == {"eu"}
    assert read_queues(within(filled, "name:shop.*")) == []


def test_a_failure_group_is_inside_if_its_name_is_seen_in_no_queue_outside(filled: Store) -> None:
    everywhere = read_failure_groups(filled, since=0.0)
    assert {group.name for group in read_failure_groups(within(filled, "name:shop.pay.*"), since=0.0)} == {
        group.name for group in everywhere if str(group.name).startswith("shop.pay.")
    }
    assert read_failure_groups(within(filled, "queue:mail"), since=0.0) == []  # every name has several queues here
    both = read_failure_groups(within(filled, "queue:mail,payments,slow"), since=0.0)
    assert {group.id for group in both} == {group.id for group in everywhere}
    with pytest.raises(NotFound, match="failure group"):
        read_failure_group(within(filled, "queue:mail"), everywhere[0].id)


def test_hidden_texts_are_neither_shown_nor_found(filled: Store) -> None:
    viewer = within(filled, "", arguments=False)
    for task in every_task(viewer):
        full = read_task(viewer, task.id, task.cluster)
        for text in (
            full.args,
            full.kwargs,
            *(t for run in full.runs for t in (run.result, run.exception, run.traceback)),
        ):
            assert text in {None, HIDDEN}
    assert {group.message for group in read_failure_groups(viewer, since=0.0)} == {HIDDEN}
    assert all(not group.variants for group in read_failure_groups(viewer, since=0.0))
    for text in (
        "args:EUR",
        "kwargs.card:Visa_1",
        "result:OK",
        "exception:TimeoutError",
        "-traceback:pay1",
        "-args:EUR",
    ):
        with pytest.raises(FilterError, match="hidden"):
            find_tasks(viewer, parse(text, NOW))
    assert find_tasks(filled, parse("EUR", NOW)).items
    assert find_tasks(viewer, parse("EUR", NOW)).items == []
    assert find_tasks(viewer, parse("hidden", NOW)).items == []
    assert find_tasks(viewer, parse("charge", NOW)).items
    assert "exception" not in read_facets(viewer, Filter())


def test_runs_of_an_entry_are_recognised_by_arguments_that_are_hidden(filled: Store) -> None:
    viewer = within(filled, "", arguments=False)
    task = next(each for each in every_task(filled) if each.name == "shop.pay.charge" and each.args and each.kwargs)
    entry = ScheduleEntry(
        cluster=task.cluster,
        name="nightly",
        task="shop.pay.charge",
        schedule="3600.0",
        args=str(task.args),
        kwargs=str(task.kwargs),
    )
    save_schedule(filled, task.cluster, [entry], NOW)
    assert [each.id for each in read_entry_runs(viewer, entry, 0.0)] == [task.id]
    [shown] = read_schedule(viewer, task.cluster, NOW + 600, {})
    assert (shown.entry.args, shown.entry.kwargs, shown.entry.args_json) == (HIDDEN, HIDDEN, None)
    assert [run.id for run in shown.standing.runs] == [task.id]
    assert read_entries(viewer)[0].args == HIDDEN


def test_a_limited_store_runs_nothing_but_reads(filled: Store) -> None:
    store = within(filled, "queue:mail")
    assert isinstance(store, LimitedStore)
    with store.engine.connect() as connection, pytest.raises(Forbidden):
        connection.execute(sa.select(schema.task))  # not by read(): no part of it is known
    with store.read() as connection:
        for statement in (
            "DELETE FROM task",
            "UPDATE task SET state = 6",
            "PRAGMA table_info(task)",
            "DROP TABLE task",
        ):
            with pytest.raises(Forbidden):
                connection.execute(sa.text(statement))


@pytest.mark.parametrize("scope", SCOPES)
def test_lists_of_a_scope_read_an_index(filled: Store, scope: str) -> None:
    mine = within(filled, scope)
    sent: list[tuple[str, Any]] = []
    sa.event.listen(mine.engine, "after_cursor_execute", lambda _, __, sql, values, *___: sent.append((sql, values)))
    for text in ("", "state:failed", "runtime:>1s"):
        find_tasks(mine, parse(text, NOW))
    words = "EXPLAIN QUERY PLAN" if filled.is_sqlite else "EXPLAIN"
    lists = [(sql, values) for sql, values in sent if re.search(r"ORDER BY .*sort_time", sql, re.DOTALL)]
    assert lists
    with filled.read() as connection:
        force_index_scans(connection)
        for sql, values in lists:
            plan = [str(row[-1]) for row in connection.exec_driver_sql(f"{words} {sql}", values)]
            assert not [line for line in plan if re.search(r"^SCAN x$|MATERIALIZE|Seq Scan on task_\d", line)], plan
