"""What the palette finds, and by which index."""

import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.queues import save_queues
from celery_monitor.store.views import save_view, search
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id
from tests.store.traffic import seed


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    seed(opened, 60)
    for cluster in ("shop", "eu"):
        beat = make_event("worker-heartbeat", hostname="Worker1@shop_%")
        Writer(opened, cluster, Settings()).write([Delivery([beat], NOW)])
        save_queues(opened, cluster, [Queue(cluster=cluster, name="mail_%", ready=3)], NOW)
    save_view(opened, "Refunds that failed", "/tasks", "q=shop.pay.refund", "olga", NOW)
    yield opened
    opened.close()


def found(store: Store, text: str, **more: object) -> set[tuple[str, str]]:
    return {(hit.kind, hit.name) for hit in search(store, text, **more)}  # type: ignore[arg-type]


def test_a_task_is_found_by_the_beginning_of_its_id_with_its_name_and_state(store: Store) -> None:
    (hit,) = search(store, make_id(8))
    assert (hit.kind, hit.name, hit.cluster) == ("task", make_id(8), "shop")
    assert hit.state is not None
    assert str(hit.detail).startswith(("shop.", "100%"))
    assert ("task", "order-49") in found(store, "order-4")
    assert ("task", make_id(8)) in found(store, make_id(8).upper())


def test_few_characters_are_no_beginning_of_an_id(store: Store) -> None:
    assert not [hit for hit in search(store, "ord") if hit.kind == "task"]
    assert [hit for hit in search(store, "orde") if hit.kind == "task"]


def test_many_ids_with_one_beginning_are_cut(store: Store) -> None:
    assert len([hit for hit in search(store, make_id(8)[:20], limit=5) if hit.kind == "task"]) == 5


def test_things_are_found_by_any_part_of_their_name_in_any_case(store: Store) -> None:
    assert {("name", "shop.pay.refund"), ("view", "Refunds that failed")} <= found(store, "REFUND")
    assert ("worker", "Worker1@shop_%") in found(store, "worker1")
    assert ("queue", "mail_%") in found(store, "MAIL")


def test_wildcards_of_the_database_are_plain_characters(store: Store) -> None:
    assert found(store, "_%") == {("worker", "Worker1@shop_%"), ("queue", "mail_%")}
    assert found(store, "%") == {("worker", "Worker1@shop_%"), ("queue", "mail_%"), ("name", "100%_sure")}


def test_what_begins_so_comes_first(store: Store) -> None:
    names = [hit.name for hit in search(store, "shop") if hit.kind == "name"]
    assert names[0].startswith("shop")
    assert names == sorted(names, key=len)


def test_one_cluster_alone_is_searched(store: Store) -> None:
    both = [hit for hit in search(store, "mail_") if hit.kind == "queue"]
    assert {hit.cluster for hit in both} == {"shop", "eu"}
    assert {hit.cluster for hit in search(store, "mail_", cluster="eu") if hit.kind == "queue"} == {"eu"}
    assert found(store, make_id(8), cluster="eu") == set()


@pytest.mark.parametrize("text", ["", "   ", "a\0b", "half \ud83d", "\\", "'; --"])
def test_odd_texts_find_nothing(store: Store, text: str) -> None:
    assert found(store, text) == set()


def test_tasks_are_looked_up_by_the_index_of_their_keys(store: Store) -> None:
    sent: list[tuple[str, object]] = []

    def note(_connection: object, _cursor: object, sql: str, values: object, *_: object) -> None:
        sent.append((sql, values))

    sa.event.listen(store.engine, "before_cursor_execute", note)
    for text in (make_id(8), make_id(8)[:6], "order-4", "shop.pay"):
        search(store, text)
    sa.event.remove(store.engine, "before_cursor_execute", note)
    reads = [(sql, values) for sql, values in sent if re.search(r"FROM task\b", sql)]
    assert len(reads) > 4
    with store.read() as connection:
        if not store.is_sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        words = "EXPLAIN QUERY PLAN" if store.is_sqlite else "EXPLAIN"
        for sql, values in reads:
            plan = " ".join(str(row[-1]) for row in connection.exec_driver_sql(f"{words} {sql}", values))  # type: ignore[arg-type]
            assert re.search(r"task_key|task_kept_key|autoindex_task", plan), plan
            assert "TEMP B-TREE" not in plan, plan
