"""The outbox of celery_monitor_capture, in one process on kombu's own memory."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import celery_monitor_capture
import pytest
from celery import Celery
from celery_monitor_capture import events
from celery_monitor_capture.control import control_prefix, control_queue
from kombu import Connection, Queue

from celery_monitor.brokers.event_queue import post
from tests.workers import ROOT, wait_for

Read = Callable[[], list[tuple[list[dict[str, Any]], dict[str, Any]]]]


@pytest.fixture
def app() -> Iterator[Celery]:
    """An application whose events go to a queue of its own."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf[events.QUEUE_SETTING] = f"events-{uuid4().hex}"
    celery_monitor_capture.install(app, event_queue=True)
    yield app
    assert events.flush(60)
    app.close()


@contextmanager
def reading(app: Celery) -> Iterator[Read]:
    """``read()``: the events and headers of each message that is there."""
    with Connection("memory://") as connection:
        channel = connection.channel()
        queue = Queue(events.queue_name(app))(channel)

        def read() -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
            found = []
            while (message := queue.get(no_ack=True)) is not None:
                body = message.body if isinstance(message.body, bytes) else message.body.encode()
                found.append((json.loads(body), message.headers))
            return found

        yield read


def send(app: Celery, number: int, size: int = 10) -> None:
    with app.connection_for_write() as connection:
        dispatcher = app.events.Dispatcher(connection, hostname="worker7@shop")
        for each in range(number):
            dispatcher.send("task-received", uuid=f"task-{each}", name="x" * size)


def test_events_are_sent_in_batches_in_their_order(app: Celery) -> None:
    send(app, 300)
    assert events.flush(60)
    with reading(app) as read:
        messages = read()
    assert [event["uuid"] for batch, _ in messages for event in batch] == [f"task-{each}" for each in range(300)]
    assert len(messages) < 10
    headers = [head for _, head in messages]
    assert [head["sequence"] for head in headers] == list(range(1, len(messages) + 1))
    assert {(head["hostname"], head["dropped"]) for head in headers} == {("worker7@shop", 0)}
    assert len({head["sender"] for head in headers}) == 1


def test_a_producer_sends_task_sent(app: Celery) -> None:
    app.send_task("shop.pay", [7], queue=f"orders-{uuid4().hex}", task_id="task-7")
    assert events.flush(60)
    with reading(app) as read:
        ((batch, _),) = read()
    assert [(event["type"], event["uuid"], event["name"]) for event in batch] == [("task-sent", "task-7", "shop.pay")]


def test_what_does_not_fit_is_dropped_and_counted_while_the_broker_is_away(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = threading.Event()
    connect = events.connect

    def refuse(given: Celery) -> Connection:
        if away.is_set():
            raise ConnectionError("no route to the broker")
        return connect(given)

    monkeypatch.setattr(events, "connect", refuse)
    monkeypatch.setattr(events, "MOST_EVENTS", 50)
    monkeypatch.setattr(events, "RETRY_SECONDS", (0.01,))
    away.set()
    send(app, 80)  # returns although nothing can be sent
    assert not events.flush(0.3)
    away.clear()
    assert events.flush(60)
    with reading(app) as read:
        messages = read()
    assert [event["uuid"] for batch, _ in messages for event in batch] == [f"task-{each}" for each in range(50)]
    assert sum(head["dropped"] for _, head in messages) == 30
    send(app, 1)
    assert events.flush(60)
    with reading(app) as read:
        assert [head["dropped"] for _, head in read()] == [0]  # they were reported


def test_the_bytes_that_wait_are_bounded(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_BYTES", 100_000)
    monkeypatch.setattr(events, "GATHER_SECONDS", 0.5)
    send(app, 30, size=10_000)
    assert events.flush(60)
    with reading(app) as read:
        messages = read()
    arrived = sum(len(batch) for batch, _ in messages)
    assert 5 < arrived < 12
    send(app, 1)
    assert events.flush(60)
    with reading(app) as read:
        messages += read()
    assert sum(head["dropped"] for _, head in messages) == 30 - arrived


def test_a_batch_that_is_too_large_is_split_and_an_event_that_is_too_large_is_dropped(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(events.LARGEST, "memory", 2000)
    noise = "".join(uuid4().hex for _ in range(200))  # which compression cannot make small
    with app.connection_for_write() as connection:
        dispatcher = app.events.Dispatcher(connection, hostname="worker7@shop")
        dispatcher.send("task-received", uuid="large", name=noise)
        for each in range(60):
            dispatcher.send("task-received", uuid=f"task-{each}", name=uuid4().hex)
    assert events.flush(60)
    send(app, 1)
    assert events.flush(60)
    with reading(app) as read:
        messages = read()
    uuids = [event["uuid"] for batch, _ in messages for event in batch]
    assert uuids == [*(f"task-{each}" for each in range(60)), "task-0"]
    assert sum(head["dropped"] for _, head in messages) == 1


def test_an_event_that_is_not_json_harms_no_other(app: Celery) -> None:
    with app.connection_for_write() as connection:
        dispatcher = app.events.Dispatcher(connection, hostname="worker7@shop")
        dispatcher.send("custom-event", thing=object())
        dispatcher.send("task-received", uuid="task-1")
    assert events.flush(60)
    with reading(app) as read:
        assert [event["type"] for batch, _ in read() for event in batch] == ["task-received"]


PROGRAM = """
import os, sys, time
from celery import Celery
import celery_monitor_capture
app = Celery("shop", broker=sys.argv[1], set_as_current=False)
celery_monitor_capture.install(app)
app.send_task("shop.pay", task_id="of-the-parent")
if os.fork() == 0:
    app.send_task("shop.pay", task_id="of-the-child")
    celery_monitor_capture.events.flush()
    os._exit(0)
os.wait()
"""


def test_a_script_and_its_fork_send_their_events_before_they_end(sqs_url: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, sqs_url], cwd=ROOT, check=True, timeout=60)
    with Connection(sqs_url, transport_options={"wait_time_seconds": 1}) as connection:
        queue = Queue(events.DEFAULT_QUEUE)(connection.channel())
        found: set[str] = set()
        senders = set()

        def read() -> bool:
            if (message := queue.get()) is not None:
                message.ack()
                senders.add(message.headers["sender"])
                body = message.body
                found.update(event["uuid"] for event in json.loads(body if isinstance(body, str) else body.decode()))
            return len(found) == 2

        wait_for(read, what="both events")
    assert found == {"of-the-parent", "of-the-child"}
    assert len(senders) == 2


@pytest.mark.parametrize(
    ("url", "carried"), [("redis://localhost/3", True), ("amqp://localhost", True), ("sqs://a:b@localhost", False)]
)
def test_the_queue_is_used_where_the_broker_carries_no_events(url: str, carried: bool) -> None:
    app = Celery("shop", broker=url, set_as_current=False)
    celery_monitor_capture.install(app)
    assert issubclass(app.events.Dispatcher, events.QueueDispatcher) is not carried
    assert bool(app.steps["consumer"]) is not carried
    assert app.conf.task_send_sent_event is not carried
    app.close()


@pytest.mark.parametrize("hostname", ["celery@web-1", "w" * 300, "naïve worker@shop", "a.b@c", "a_b@c"])
@pytest.mark.parametrize("queue", ["celery-monitor-events", "events.fifo"])
def test_both_sides_derive_the_same_name_of_a_control_queue(hostname: str, queue: str) -> None:
    name = control_queue(queue, hostname)
    assert name == post.control_queue(queue, hostname)
    assert name.startswith(control_prefix(queue))
    assert control_prefix(queue) == post.control_prefix(queue)
    assert len(name) <= 80
    assert name.replace("-", "").replace("_", "").isascii()


def test_names_of_two_workers_never_share_a_control_queue() -> None:
    assert control_queue("events", "a.b@c") != control_queue("events", "a_b@c")


def test_a_large_batch_is_compressed_as_kombu_reads_it(app: Celery) -> None:
    send(app, 200)
    assert events.flush(60)
    with reading(app) as read:  # kombu has decompressed it
        messages = read()
    assert sum(len(batch) for batch, _ in messages) == 200
    assert "application/x-gzip" in {head.get("compression") for _, head in messages}
