"""The first minute of a stranger: whichever starts first, Retry of the first failed task works when it is pressed."""

from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from celery_monitor.control.perform import Controller
from celery_monitor.control.retry import RetryTask
from celery_monitor.errors import Conflict
from celery_monitor.records.task import TaskState
from celery_monitor.records.user import Actor, Role
from tests.control.watch import make_settings
from tests.receiver.watching import CLUSTER, Watching, watching
from tests.workers import Worker, running_worker, wait_for

# Sampled as by default; the question that goes to all workers from time to time is out of the way.
AS_SHIPPED = {"sample_seconds": 1.0, "inspect_seconds": 3600.0}
QUIET_SENDER = {"task_send_sent_event": False}


def press_retry(watch: Watching, url: str, directory: Path, task_id: str, queue: str | None = None) -> str:
    """The id of the new task."""
    command = RetryTask(cluster=CLUSTER, id=task_id, queue=queue, confirm=True)
    settings = make_settings(url, directory)
    performed = Controller(watch.store, settings).perform(Actor("olga", Role.OPERATOR), command)
    return str(performed.results[0].new_id)


def fail_and_retry(watch: Watching, worker: Worker, url: str, directory: Path) -> None:
    """An order whose card is refused once; its retry goes to the queue that the worker consumes."""
    order = uuid4().hex
    failed = watch.wait_for_state(worker.send("charge", str(directory), order, 7.5), TaskState.FAILURE)
    again = watch.wait_for_state(press_retry(watch, url, directory, failed.id), TaskState.SUCCESS)
    assert again.result == f"'order {order} is paid: 7.5 EUR'"
    assert again.worker == worker.hostname
    queue = wait_for(lambda: (each := watch.task(failed.id)) and each.queue, what="the queue of the first task")
    assert queue == worker.queue


def knows_events_are_on(watch: Watching, worker: Worker) -> bool:
    found = watch.worker(worker.hostname)
    return found is not None and found.events_enabled is True


@pytest.mark.slow
def test_workers_that_start_after_the_product(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path, **AS_SHIPPED) as watch, ExitStack() as workers:
        for options in ({"pool": "prefork"}, {"pool": "solo", "options": ()}):
            worker = workers.enter_context(running_worker(broker_url, concurrency=1, config=QUIET_SENDER, **options))
            fail_and_retry(watch, worker, broker_url, tmp_path)
            wait_for(lambda name=worker.queue: watch.queue(name), what="the queue in the list of queues")
        silent = workers.enter_context(
            running_worker(broker_url, concurrency=1, config=QUIET_SENDER, events=False, options=())
        )
        wait_for(lambda: knows_events_are_on(watch, silent), what="events that were turned on")
        fail_and_retry(watch, silent, broker_url, tmp_path)


def test_workers_that_ran_before_the_product_started(broker_url: str, tmp_path: Path) -> None:
    with (
        running_worker(broker_url, concurrency=1, config=QUIET_SENDER, pool="solo") as loud,
        running_worker(broker_url, concurrency=1, config=QUIET_SENDER, pool="solo", events=False) as silent,
        watching(broker_url, tmp_path, **AS_SHIPPED) as watch,
    ):
        fail_and_retry(watch, loud, broker_url, tmp_path)
        wait_for(lambda: knows_events_are_on(watch, silent), what="events that were turned on")
        fail_and_retry(watch, silent, broker_url, tmp_path)


def test_a_worker_of_several_queues_offers_them(broker_url: str, tmp_path: Path) -> None:
    queues = [f"{name}-{uuid4().hex[:8]}" for name in ("mail", "stock")]
    with (
        watching(broker_url, tmp_path, **AS_SHIPPED) as watch,
        running_worker(
            broker_url, queue=",".join(queues), hostname="two@shop", pool="solo", config=QUIET_SENDER
        ) as worker,
    ):
        order = uuid4().hex
        sent = worker.send("charge", str(tmp_path), order, 7.5, queue=queues[1])
        failed = watch.wait_for_state(sent, TaskState.FAILURE)
        with pytest.raises(Conflict, match="two@shop consumes") as caught:
            press_retry(watch, broker_url, tmp_path, failed.id)
        assert caught.value.detail["queues"] == queues
        again = press_retry(watch, broker_url, tmp_path, failed.id, queues[1])
        assert watch.wait_for_state(again, TaskState.SUCCESS).worker == "two@shop"
