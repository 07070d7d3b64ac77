import msgspec
from sqlalchemy import select

from celery_monitor.records.page import Action
from celery_monitor.records.queue import Queue
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store import schema
from celery_monitor.store.actions import record_action
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import save_queues
from celery_monitor.store.receivers import close_gap, open_gap, read_secret
from celery_monitor.store.tasks.detail import link_retry, unlink_retry
from celery_monitor.store.tasks.keys import to_key
from celery_monitor.store.terms import cluster_id
from celery_monitor.store.workers import change_workers, load_workers, save_workers
from tests.factories import NOW


def test_an_action_gets_a_number_and_keeps_its_words(store: Store) -> None:
    action = Action(
        at=NOW, actor="ann", action="task.retry", cluster="shop", reason="späte \U0001f4a5", outcome="denied"
    )
    first = record_action(store, action)
    second = record_action(store, action)
    assert first.id is not None
    assert second.id == first.id + 1
    with store.read() as connection:
        rows = connection.execute(select(schema.action.c.reason, schema.action.c.outcome)).all()
    assert [tuple(row) for row in rows] == [("späte \U0001f4a5", "denied")] * 2


def test_the_minute_keeps_the_largest_depth_and_unknown_does_not_win(store: Store) -> None:
    for second, ready in enumerate([3, 41, None, 7]):
        save_queues(store, "shop", [Queue(cluster="shop", name="mail", ready=ready)], NOW + second)
    with store.read() as connection:
        assert connection.execute(select(schema.queue_sample.c.ready, schema.queue_sample.c.unacked)).all() == [
            (41, None)
        ]
        assert connection.execute(select(schema.queue.c.ready)).scalars().all() == [7]


def test_a_change_of_a_worker_starts_from_what_is_stored(store: Store) -> None:
    worker = Worker(cluster="shop", hostname="worker1@shop", status=WorkerStatus.ONLINE, pid=4711, last_heartbeat=NOW)
    with store.begin() as connection:
        save_workers(store, connection, cluster_id(store, connection, "shop"), [worker])

    def add_pool(known: Worker) -> Worker:
        return msgspec.structs.replace(known, pool="threads")

    change_workers(store, "shop", ["worker1@shop", "nobody@shop"], add_pool)
    with store.read() as connection:
        found = load_workers(connection, 1, ["worker1@shop", "nobody@shop"])
    assert found == {"worker1@shop": msgspec.structs.replace(worker, pool="threads")}


def test_a_gap_is_open_until_it_is_closed(store: Store) -> None:
    gap = open_gap(store, "shop", NOW, "the broker went away")
    with store.read() as connection:
        assert connection.execute(select(schema.gap.c.ended)).scalars().all() == [None]
    close_gap(store, gap, NOW + 5, dropped=12)
    with store.read() as connection:
        assert connection.execute(select(schema.gap.c.ended, schema.gap.c.dropped)).all() == [(NOW + 5, 12)]


def test_a_secret_is_made_once(store: Store) -> None:
    first = read_secret(store, "tokens")
    assert read_secret(store, "tokens") == first
    assert read_secret(store, "cookies") != first
    assert len(first) > 40


def test_lineage_is_noted_once(store: Store) -> None:
    for at in (NOW, NOW + 1):
        link_retry(store, "shop", "old", "new", "probable", at)
    with store.read() as connection:
        assert connection.execute(select(schema.retry.c.at)).scalars().all() == [NOW]


def test_a_link_is_made_once_and_can_be_taken_back(store: Store) -> None:
    assert link_retry(store, "shop", "old", "new", "probable", NOW)
    assert not link_retry(store, "shop", "old", "new", "edited", NOW + 1)
    assert link_retry(store, "shop", "old", "newer", "probable", NOW)
    unlink_retry(store, "shop", "old", "new")
    unlink_retry(store, "attic", "old", "newer")
    with store.read() as connection:
        assert connection.execute(select(schema.retry.c.new_key)).scalars().all() == [to_key("newer")]
