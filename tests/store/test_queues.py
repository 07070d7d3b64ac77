from celery_monitor.records.queue import Queue
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_depths, save_queues
from celery_monitor.store.rollups.flows import Flow, read_flows
from celery_monitor.store.schema import TERM_KINDS
from celery_monitor.store.terms import Terms, cluster_id
from tests.factories import NOW

MINUTE = NOW // 60 * 60


def add(store: Store, queue: str | None, worker: str, at: float, **counts: int) -> None:
    """A row of the rollup, as the writer makes it."""
    terms = Terms(store)
    with store.begin() as connection:
        kinds = [(TERM_KINDS["worker"], worker)] + ([(TERM_KINDS["queue"], queue)] if queue else [])
        terms.load(connection, kinds)
        values = {
            "resolution": 60,
            "at": int(at),
            "cluster_id": cluster_id(store, connection, "shop"),
            "name_id": 0,
            "queue_id": terms.id(TERM_KINDS["queue"], queue),
            "worker_id": terms.id(TERM_KINDS["worker"], worker),
            **counts,
        }
        connection.execute(schema.rollup.insert().values(values))


def test_flow_by_queue_sums_workers_and_minutes(store: Store) -> None:
    add(store, "emails", "w1", MINUTE, received=5, succeeded=3, failed=1)
    add(store, "emails", "w2", MINUTE - 60, received=7, succeeded=2)
    add(store, "emails", "w2", MINUTE - 600, received=100)
    found = read_flows(store, "queue", since=MINUTE - 60, now=MINUTE + 30)
    assert found.by_key == {("shop", "emails"): Flow(received=12, succeeded=5, failed=1)}
    assert found.seconds == 90


def test_flow_by_worker_and_its_failure_share(store: Store) -> None:
    add(store, "emails", "w1", MINUTE, received=5, succeeded=3, failed=1)
    add(store, "pay", "w2", MINUTE, received=4)
    found = read_flows(store, "worker", since=MINUTE, now=MINUTE + 10)
    assert found.by_key["shop", "w1"].failure_share == 0.25
    assert found.by_key["shop", "w2"].failure_share is None


def test_a_queue_without_runs_is_unknown_when_runs_have_no_queue(store: Store) -> None:
    add(store, "emails", "w1", MINUTE, received=5)
    assert read_flows(store, "queue", since=MINUTE, now=MINUTE).of("shop", "idle") == Flow()
    add(store, None, "w1", MINUTE, received=9)
    found = read_flows(store, "queue", since=MINUTE, now=MINUTE)
    assert found.of("shop", "idle") is None
    assert found.of("shop", "emails") == Flow(received=5)


def test_another_cluster_is_left_out(store: Store) -> None:
    add(store, "emails", "w1", MINUTE, received=5)
    assert read_flows(store, "queue", since=MINUTE, now=MINUTE, cluster="mail").by_key == {}


def test_depths_come_in_order_per_queue(store: Store) -> None:
    for minutes, ready in ((0, 30), (2, None), (1, 20)):
        save_queues(store, "shop", [Queue(cluster="shop", name="emails", ready=ready)], MINUTE - 60 * minutes)
    save_queues(store, "shop", [Queue(cluster="shop", name="pay", ready=1)], MINUTE - 3000)
    found = read_depths(store, since=MINUTE - 300)
    assert [(sample.at, sample.ready) for sample in found["shop", "emails"]] == [
        (MINUTE - 120, None),
        (MINUTE - 60, 20),
        (MINUTE, 30),
    ]
    assert ("shop", "pay") not in found
