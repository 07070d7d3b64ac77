"""What workers answer beside what their events say, and the tasks that came before the answer."""

from threading import Thread

import msgspec

from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.terms import cluster_id
from celery_monitor.store.workers import change_workers, load_workers, read_workers, save_workers
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id

LATER = "2099-05-06T07:08:09+00:00"


def received(number: int, **fields: object) -> Event:
    return make_event("task-received", uuid=make_id(number), name="shop.pay", args="()", kwargs="{}", **fields)


def queue_of(store: Store, number: int) -> str | None:
    return read_task(store, make_id(number), "shop").queue


def learn(store: Store, *queues: str) -> None:
    """The worker says what it consumes; a writer that begins now knows that it is new."""

    def told(worker: Worker) -> Worker:
        return msgspec.structs.replace(worker, queues=queues)

    change_workers(store, "shop", ["worker1@shop"], told)
    writer = Writer(store, "shop", Settings())
    writer.write([Delivery(events=[make_event("worker-heartbeat", timestamp=NOW + 2)], arrived=NOW + 2)])
    writer.set_missing_queues(NOW + 3)


def test_tasks_get_the_only_queue_of_the_process_that_has_them(store: Store) -> None:
    failed = make_event("task-failed", uuid=make_id(1), exception="ValueError('x')", traceback="x")
    events = [
        received(1),
        failed,
        received(2, eta=LATER),
        received(3, pid=4710),
        received(4, hostname="worker2@shop"),
    ]
    Writer(store, "shop", Settings()).write([Delivery(events=events, arrived=NOW + 1)])
    change_workers(store, "shop", ["worker1@shop"], lambda each: msgspec.structs.replace(each, pid=4711))
    learn(store, "mail")
    assert [queue_of(store, number) for number in (1, 2, 3, 4)] == ["mail", "mail", None, None]
    states = [read_task(store, make_id(number), "shop").state for number in (1, 2)]
    assert states == [TaskState.FAILURE, TaskState.SCHEDULED]


def test_tasks_of_a_worker_of_several_queues_get_none(store: Store) -> None:
    Writer(store, "shop", Settings()).write([Delivery(events=[received(1)], arrived=NOW + 1)])
    learn(store, "mail", "stock")
    assert queue_of(store, 1) is None


def test_an_answer_and_an_event_at_the_same_time_are_both_kept(store: Store) -> None:
    def answered(worker: Worker) -> Worker:
        return msgspec.structs.replace(worker, events_enabled=True)

    Writer(store, "shop", Settings()).write([Delivery(events=[received(1)], arrived=NOW + 1)])
    names = ["worker1@shop"]
    answer = Thread(target=change_workers, args=(store, "shop", names, answered))
    with store.begin() as connection:
        number = cluster_id(store, connection, "shop")
        (worker,) = load_workers(connection, number, names).values()
        answer.start()
        answer.join(1.0)  # it waits for us; else it is over, and what it wrote would be written over
        heard = msgspec.structs.replace(worker, processed=17)
        save_workers(store, connection, number, [heard])
    answer.join()
    (found,) = read_workers(store, "shop")
    assert (found.events_enabled, found.processed) == (True, 17)
