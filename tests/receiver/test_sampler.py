"""Queues and workers as they are sampled: on real brokers with real workers."""

import time
from pathlib import Path
from uuid import uuid4

import pytest
from kombu import Connection
from msgspec.structs import replace

from celery_monitor.records.application import Application
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.actions import read_actions
from celery_monitor.store.queues import read_depths
from celery_monitor.store.receivers import read_receiver_records
from celery_monitor.store.schedule import read_entries
from celery_monitor.store.workers import change_workers
from tests.receiver.watching import CLUSTER, Watching, watching
from tests.workers import running_worker, wait_for


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


def test_queue_without_consumer_is_told_and_its_oldest_grows_older(broker_url: str, tmp_path: Path) -> None:
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


def test_task_events_are_turned_on_where_they_are_off_and_it_is_said(broker_url: str, tmp_path: Path) -> None:
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
        heard = "inspected_at" if options else "last_heartbeat"
        wait_for(lambda: (found := watch.worker(worker.hostname)) and getattr(found, heard) and found.inspected_at)
        asked = wait_for(lambda: _settled(watch, worker.hostname))
        worker.send("add", 3, 4)
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.events_enabled is False)
        found = watch.worker(worker.hostname)
        assert found is not None
        assert found.inspected_at == asked


def _settled(watch: Watching, hostname: str) -> float | None:
    """When it was asked with all others, once that has not happened for a while."""
    before = watch.worker(hostname)
    time.sleep(2)
    after = watch.worker(hostname)
    return after.inspected_at if before and after and before.inspected_at == after.inspected_at else None


def test_worker_that_ran_tasks_before_anybody_listened_is_not_said_to_send_no_events(
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
