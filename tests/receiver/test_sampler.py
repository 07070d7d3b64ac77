"""Queues and workers as they are sampled: mostly on real brokers with real workers."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from kombu import Connection
from msgspec.structs import replace

from celery_monitor.core.waits import Senders
from celery_monitor.core.workers import fold_worker
from celery_monitor.receiver.sampler import FIRST_SECONDS, Newcomers, OldestMessages
from celery_monitor.receiver.task_events import ANSWER_SECONDS
from celery_monitor.records.application import Application
from celery_monitor.records.event import Event
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.queues import read_depths
from celery_monitor.store.receivers import read_receiver_records
from celery_monitor.store.schedule import read_entries
from celery_monitor.store.workers import change_workers
from celery_monitor.store.writer import Writer
from tests.factories import make_event, make_id
from tests.receiver.watching import CLUSTER, watching
from tests.workers import running_worker, wait_for

NOW = time.time()


def test_worker_says_its_queues_and_pool(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url, concurrency=3) as worker:
        wait_for(lambda: (each := watch.worker(worker.hostname)) and each.queues and each.events_enabled is not None)
        wait_for(lambda: (each := watch.worker(worker.hostname)) and each.last_heartbeat)
        found = watch.worker(worker.hostname)
        assert found is not None
        assert (found.queues, found.pool, found.pool_size) == ((worker.queue,), "prefork", 3)
        assert found.pid == worker.pid
        assert found.rusage is not None
        assert found.rusage["maxrss"] > 0
        assert found.events_enabled is True
        assert watch.notices == []


def test_queue_shows_waiting_unacknowledged_and_consumers(broker_url: str, tmp_path: Path) -> None:
    config = {"worker_prefetch_multiplier": 1}
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url, concurrency=1, config=config) as worker:
        for _ in range(6):
            worker.send("sleep", 5)
        wait_for(lambda: (found := watch.queue(worker.queue)) and found.ready and found.workers and found.consumers)
        found = wait_for(lambda: (each := watch.queue(worker.queue)) and each.ready in {4, 5} and each)
        assert (found.workers, found.consumers) == ((worker.hostname,), 1)
        if broker_url.startswith("redis"):
            assert found.unacked is not None
            assert found.unacked >= 1
        else:
            assert found.unacked is None
        [sample, *_] = read_depths(watch.store, since=0.0)[CLUSTER, worker.queue]
        assert sample.ready is not None
        assert sample.ready >= found.ready


def test_queue_without_consumer_is_reported_and_its_oldest_grows_older(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url, concurrency=1) as worker:
        orphan = f"{worker.queue}-orphan"
        try:
            worker.send("add", 1, 2, queue=orphan)
            found = wait_for(lambda: (each := watch.queue(orphan)) and each.oldest and each.consumers == 0 and each)
            assert (found.ready, found.workers) == (1, ())
            sampled = found.sampled_at
            later = wait_for(lambda: (each := watch.queue(orphan)) and each.sampled_at > sampled + 1 and each)
            assert later.oldest == found.oldest
        finally:
            with worker.app.connection_for_write() as connection:
                connection.default_channel.queue_delete(orphan)


def test_task_events_are_turned_on_where_they_are_off_and_it_is_reported(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url, events=False) as worker:
        wait_for(lambda: watch.notices)
        assert worker.hostname in watch.notices[0]
        watch.wait_for_state(worker.send("add", 3, 4), TaskState.SUCCESS)
        [action] = read_actions(watch.store, limit=10).items
        assert (action.actor, action.action, action.target) == ("celery-monitor", "enable_events", worker.hostname)
        found = watch.worker(worker.hostname)
        assert found is not None
        assert found.events_enabled is True
        assert len(watch.notices) == 1


@pytest.mark.parametrize("change", [{"enable_events": False}, {"read_only": True}])
def test_task_events_stay_off_where_that_is_wanted_and_it_is_seen(
    redis_url: str, tmp_path: Path, change: dict[str, object]
) -> None:
    with watching(redis_url, tmp_path, **change) as watch, running_worker(redis_url, events=False) as worker:
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.inspected_at)
        worker.send("add", 3, 4)
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.events_enabled is False)
        assert watch.notices == []
        assert read_actions(watch.store, limit=10).items == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--without-gossip", "--without-mingle", "--without-heartbeat")])
def test_task_events_that_are_off_are_seen_long_before_all_workers_are_asked_again(
    redis_url: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    quiet = {"enable_events": False, "inspect_seconds": 3600.0}
    with (
        running_worker(redis_url, events=False, options=options) as worker,
        watching(redis_url, tmp_path, **quiet) as watch,
    ):
        replied = "inspected_at" if options else "last_heartbeat"
        wait_for(lambda: (found := watch.worker(worker.hostname)) and getattr(found, replied) and found.inspected_at)
        asked = wait_for(
            lambda: (found := watch.worker(worker.hostname)) and _long_ago(found.inspected_at), what="no more questions"
        )
        worker.send("add", 3, 4)
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.events_enabled is False)
        found = watch.worker(worker.hostname)
        assert found is not None
        assert found.inspected_at == asked


def _long_ago(at: float | None) -> float | None:
    return at if at and time.time() - at > 2 else None


def test_worker_that_ran_tasks_before_anybody_listened_is_not_reported_to_send_no_events(
    redis_url: str, tmp_path: Path
) -> None:
    with running_worker(redis_url) as worker:
        worker.send("add", 3, 4)
        wait_for(lambda: "succeeded in" in worker.log)
        with watching(redis_url, tmp_path, enable_events=False, inspect_seconds=0.2) as watch:
            first = wait_for(lambda: (each := watch.worker(worker.hostname)) and each.inspected_at)
            wait_for(lambda: (each := watch.worker(worker.hostname)) and (each.inspected_at or 0) > first)
            found = watch.worker(worker.hostname)
            assert found is not None
            assert found.events_enabled is None
            worker.send("add", 5, 6)
            wait_for(lambda: (each := watch.worker(worker.hostname)) and each.events_enabled)


@pytest.mark.slow
def test_worker_that_sends_nothing_at_all_is_found_by_asking(redis_url: str, tmp_path: Path) -> None:
    silent = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, events=False, options=silent) as worker:
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.queues)
        found = watch.worker(worker.hostname)
        assert found is not None
        assert (found.last_heartbeat, found.pid) == (None, worker.pid)
        gone = {"status": WorkerStatus.OFFLINE, "offline_at": time.time()}
        change_workers(watch.store, CLUSTER, [worker.hostname], lambda each: replace(each, **gone))
        wait_for(lambda: (again := watch.worker(worker.hostname)) and again.status is WorkerStatus.ONLINE)


def test_schedule_is_learned_from_the_workers(broker_url: str, tmp_path: Path) -> None:
    entry = {"task": "shop.count", "schedule": 45.0, "args": ["Ada"], "options": {"queue": "stock"}}
    config = {"beat_schedule": {"count the stock": entry}}
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url, config=config):
        [found] = wait_for(lambda: read_entries(watch.store, CLUSTER))
        assert (found.name, found.task, found.every, found.queue) == ("count the stock", "shop.count", 45.0, "stock")
        assert (found.args, found.args_json, found.source) == ("('Ada',)", '["Ada"]', "workers")


def test_queues_of_the_application_are_measured_before_a_worker_answers(broker_url: str, tmp_path: Path) -> None:
    name = f"early-{uuid4().hex[:8]}"
    application = Application(queues=(name,), broker_read_url=broker_url, broker_write_url=broker_url)
    with watching(broker_url, tmp_path, application=application, inspect_seconds=0.5) as watch:
        if broker_url.startswith("amqp"):
            wait_for(lambda: read_receiver_records(watch.store), what="the receiver")
            assert watch.queue(name) is None  # nobody has declared it
        with Connection(broker_url) as connection:
            queue = connection.SimpleQueue(name)
            queue.put("first")
            found = wait_for(lambda: (each := watch.queue(name)) and each.ready and each, what="the queue")
            queue.queue.delete()
            queue.close()
        assert found.ready == 1


LONGEST = 45.0


def make_worker(hostname: str, pid: int, queues: tuple[str, ...] | None = None) -> Worker:
    return Worker(cluster="shop", hostname=hostname, status=WorkerStatus.ONLINE, pid=pid, queues=queues)


def test_a_worker_is_asked_until_it_says_its_queues() -> None:
    newcomers = Newcomers(LONGEST)
    up = [make_worker("mail@shop", 7)]
    assert newcomers.due(up, 1000.0) == ["mail@shop"]
    newcomers.asked(["mail@shop"], 1000.1)
    assert newcomers.due(up, 1000.2) == []
    assert newcomers.seconds_left(1000.2) == 1000.1 + FIRST_SECONDS - 1000.2
    assert newcomers.due(up, 1000.3) == ["mail@shop"]
    newcomers.answered([("mail@shop", 7)])
    assert newcomers.due([make_worker("mail@shop", 7, ("mail",))], 1000.4) == []
    assert newcomers.seconds_left(1000.4) is None


def test_a_new_process_of_the_same_name_is_asked() -> None:
    newcomers = Newcomers(LONGEST)
    newcomers.answered([("mail@shop", 7)])
    assert newcomers.due([make_worker("mail@shop", 7, ("mail",))], 1000.0) == []
    assert newcomers.due([make_worker("mail@shop", 8)], 1001.0) == ["mail@shop"]


def test_the_queues_of_a_new_process_are_unknown_until_it_says_them() -> None:
    worker = make_worker("worker1@shop", 7, ("mail",))
    assert fold_worker(worker, make_event("worker-heartbeat", pid=7), "shop", NOW).queues == ("mail",)
    assert fold_worker(worker, make_event("worker-heartbeat", pid=8), "shop", NOW).queues is None


def test_a_worker_that_never_answers_is_asked_and_awaited_by_its_age() -> None:
    newcomers = Newcomers(LONGEST)
    up = [make_worker("busy@shop", 7)]
    asked = []
    for now in range(1000, 2200):
        if newcomers.due(up, now):
            newcomers.asked(["busy@shop"], now)
            asked.append(now)
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 1  # the step of this test
    assert gaps[-1] == LONGEST
    assert newcomers.patience(["busy@shop"], 2200) == ANSWER_SECONDS


def test_who_came_up_just_now_is_not_waited_for() -> None:
    newcomers = Newcomers(LONGEST)
    newcomers.due([make_worker("new@shop", 7)], 1000.0)
    assert newcomers.patience(["new@shop"], 1000.1) == FIRST_SECONDS


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    yield opened
    opened.close()


def write(store: Store, *events: Event) -> None:
    Writer(store, "shop", Settings()).write([Delivery(list(events), NOW)])


def sent(number: int, ago: float) -> Event:
    fields = {"uuid": make_id(number), "name": "shop.pay", "queue": "payments", "hostname": "gen7@till"}
    return make_event("task-sent", timestamp=NOW - ago, **fields)


def oldest(store: Store, senders: Senders | None = None, **fields: object) -> tuple[float | None, bool]:
    """Seconds, and whether they are exact."""
    queue = Queue(cluster="shop", name="payments", **fields)  # type: ignore[arg-type]
    [found] = OldestMessages(store, "shop", senders).of([queue], {"worker1@shop": 0.0}, NOW)
    return (None if found.oldest is None else round(NOW - found.oldest, 3), found.oldest_exact)


def test_head_that_the_broker_shows_is_as_old_as_the_record_says(store: Store) -> None:
    write(store, sent(1, 60), sent(2, 26))
    assert oldest(store, ready=2, next_tasks=(make_id(1),)) == (60.0, True)
    assert oldest(store, ready=1, next_tasks=(make_id(2),), oldest=NOW - 1.3) == (26.0, True)
    assert oldest(store, ready=1, next_tasks=(make_id(9),), oldest=NOW - 1.3) == (1.3, False)
    assert oldest(store, ready=1, next_tasks=(None,)) == (None, False)
    assert oldest(store, ready=0) == (None, False)


def test_oldest_of_several_priorities_is_exact_where_all_heads_are_known(store: Store) -> None:
    write(store, sent(1, 60), sent(2, 26))
    assert oldest(store, ready=2, next_tasks=(make_id(2), make_id(1))) == (60.0, True)
    assert oldest(store, ready=2, next_tasks=(make_id(2), make_id(9))) == (26.0, False)


def test_retry_that_waits_is_as_old_as_the_end_of_the_run_before(store: Store) -> None:
    fields = {"uuid": make_id(1), "hostname": "worker1@shop"}
    write(
        store,
        sent(1, 300),
        make_event("task-received", timestamp=NOW - 200, name="shop.pay", retries=0, **fields),
        make_event("task-started", timestamp=NOW - 199, **fields),
        make_event("task-retried", timestamp=NOW - 40, exception="E()", traceback="T", **fields),
    )
    assert oldest(store, ready=1, next_tasks=(make_id(1),)) == (40.0, True)
    assert oldest(store, ready=1) == (40.0, True)


def test_broker_that_shows_no_head_is_believed_where_its_messages_are_those_of_the_record(store: Store) -> None:
    write(store, sent(1, 60), sent(2, 26), sent(3, 5))
    assert oldest(store, ready=3) == (60.0, True)
    assert oldest(store, ready=2) == (26.0, False)  # one is gone, and at worst it was the first
    assert oldest(store, ready=4, oldest=NOW - 9) == (9.0, False)


def test_nothing_is_inferred_where_tasks_come_of_whose_sending_nobody_tells(store: Store) -> None:
    fields = {"uuid": make_id(7), "hostname": "worker1@shop"}
    received = make_event("task-received", timestamp=NOW - 9, name="shop.pay", retries=0, **fields)
    write(store, sent(1, 60), received, make_event("task-started", timestamp=NOW - 8, **fields))
    assert oldest(store, ready=1) == (None, False)
    assert oldest(store, ready=1, next_tasks=(make_id(1),)) == (60.0, True)


def test_clock_of_the_client_is_taken_into_account(store: Store) -> None:
    write(store, sent(1, -600))  # its clock is ahead
    assert oldest(store, ready=1, next_tasks=(make_id(1),), oldest=NOW - 2) == (2.0, False)
    senders = Senders()
    senders.observe("gen7@till", NOW + 600, NOW - 30)
    assert oldest(store, senders, ready=1, next_tasks=(make_id(1),)) == (30.0, True)
