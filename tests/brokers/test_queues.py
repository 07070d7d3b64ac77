"""Queues measured on real brokers."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest
from kombu import Connection, Exchange
from kombu import Queue as Declared

from celery_monitor.brokers.queues import Markers, QueueHeads
from celery_monitor.brokers.transports import make_probe
from celery_monitor.errors import BrokerUnavailable
from celery_monitor.records.queue import Queue
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

SETTINGS = Settings()


@contextmanager
def declared(
    url: str, *, arguments: dict[str, object] | None = None, **options: object
) -> Iterator[tuple[Connection, Declared]]:
    """A queue of its own on a real broker, deleted afterwards."""
    name = f"depth-{uuid4().hex[:8]}"
    if url.startswith("amqp"):
        options.setdefault("transport_options", {"confirm_publish": True})  # measured over another connection
    with Connection(url, **options) as connection:
        queue = Declared(name, Exchange(name), routing_key="rk", queue_arguments=arguments)(connection.default_channel)
        queue.declare()
        yield connection, queue
        connection.collect()
    with Connection(url, **options) as connection:
        bound = queue.bind(connection.default_channel)
        bound.delete()
        bound.exchange.delete()


def publish(connection: Connection, queue: Declared, count: int, **options: object) -> None:
    producer = connection.Producer()
    for number in range(count):
        producer.publish({"n": number}, exchange=queue.exchange, routing_key="rk", **options)


def measure(url: str, *names: str, settings: Settings = SETTINGS) -> list[Queue]:
    probe = make_probe(Broker("shop", url), settings)
    try:
        return probe.sample(names)
    finally:
        probe.close()


def test_waiting_messages_are_counted(broker_url: str) -> None:
    with declared(broker_url) as (connection, queue):
        publish(connection, queue, 7)
        [found] = measure(broker_url, queue.name)
    assert (found.cluster, found.name, found.ready) == ("shop", queue.name, 7)


def test_redis_queue_that_does_not_exist_is_empty(redis_url: str) -> None:
    [found] = measure(redis_url, "never-used")
    assert (found.ready, found.unacked, found.consumers, found.oldest) == (0, 0, None, None)


def test_amqp_queue_that_does_not_exist_is_unknown_and_spoils_no_other(amqp_url: str) -> None:
    with declared(amqp_url) as (connection, queue):
        publish(connection, queue, 3)
        missing, impossible, found = measure(amqp_url, "never-declared", "ü" * 128, queue.name)
    for unknown in (missing, impossible):
        assert (unknown.ready, unknown.consumers) == (None, None)
    assert (found.ready, found.consumers) == (3, 0)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_rabbitmq_queue_of_each_kind_tells_ready_and_consumers(amqp_url: str, kind: str) -> None:
    with declared(amqp_url, arguments={"x-queue-type": kind}) as (connection, queue):
        publish(connection, queue, 4)
        connection.default_channel.basic_qos(0, 1, False)
        with connection.Consumer([queue], callbacks=[lambda body, message: None]):
            connection.drain_events(timeout=5)
            [found] = measure(amqp_url, queue.name)
            assert (found.ready, found.consumers, found.unacked) == (3, 1, None)


def test_priorities_on_redis_are_summed(redis_url: str) -> None:
    with declared(redis_url) as (connection, queue):
        for priority in (0, 3, 5, 9):
            publish(connection, queue, 2, priority=priority)
        [found] = measure(redis_url, queue.name)
    assert found.ready == 8


def test_redis_transport_options_are_honoured(redis_url: str) -> None:
    options: dict[str, object] = {"global_keyprefix": "shop:", "sep": ":", "priority_steps": [0, 5]}
    with declared(redis_url, transport_options=options) as (connection, queue):
        publish(connection, queue, 3, priority=0)
        publish(connection, queue, 2, priority=7)
        held = queue.get()
        [found] = measure(redis_url, queue.name, settings=Settings(broker_options=options))
        [bare] = measure(redis_url, queue.name)
        assert held is not None
    assert (found.ready, found.unacked) == (4, 1)
    assert bare.ready == 0


def test_unacknowledged_messages_on_redis_are_counted_by_queue(redis_url: str) -> None:
    with declared(redis_url) as (connection, queue), declared(redis_url) as (_, other):
        publish(connection, queue, 5)
        held = [queue.get() for _ in range(3)]
        found, beside = measure(redis_url, queue.name, other.name)
        assert (found.ready, found.unacked, beside.unacked) == (2, 3, 0)
        for message in held:
            message.ack()
        assert measure(redis_url, queue.name)[0].unacked == 0


def test_age_of_the_oldest_rises_while_nothing_is_consumed_and_is_a_bound_when_the_head_is_new(broker_url: str) -> None:
    probe = make_probe(Broker("shop", broker_url), SETTINGS)
    with declared(broker_url) as (connection, queue):
        publish(connection, queue, 3)
        before = time.time()
        assert probe.sample([queue.name])[0].oldest is None
        after = time.time()
        publish(connection, queue, 1)
        oldest = probe.sample([queue.name])[0].oldest
        assert oldest is not None
        assert before <= oldest <= after
        assert probe.sample([queue.name])[0].oldest == oldest
        queue.get(no_ack=True)
        # Redis shows that a message is still there that was seen then; what RabbitMQ has at the head, nobody knows.
        assert probe.sample([queue.name])[0].oldest == (oldest if broker_url.startswith("redis") else None)
        queue.purge()
        assert probe.sample([queue.name])[0].oldest is None
    probe.close()


def test_age_of_the_oldest_is_bounded_while_a_backlog_drains_on_redis(redis_url: str) -> None:
    probe = make_probe(Broker("shop", redis_url), SETTINGS)
    with declared(redis_url) as (connection, queue):
        moments = []
        for _ in range(4):
            publish(connection, queue, 50)
            probe.sample([queue.name])
            moments.append(time.time())
        for taken in range(1, 5):
            for _ in range(45 if taken < 4 else 60):  # the head is new at each sample; 155, 110, 65 and 5 are left
                queue.get(no_ack=True)
            [found] = probe.sample([queue.name])
            bound = next(at for at, sent in enumerate((50, 100, 150, 200)) if sent > 200 - (found.ready or 0))
            assert found.oldest is not None
            assert found.oldest == pytest.approx(moments[bound], abs=0.5)
            assert found.oldest <= moments[bound]
            assert probe.sample([queue.name])[0].oldest == found.oldest
        queue.purge()
        publish(connection, queue, 3)
        assert probe.sample([queue.name])[0].oldest is None
    probe.close()


def test_unreachable_broker_is_reported_and_tried_again(redis_url: str) -> None:
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        measure("redis://127.0.0.1:1/0", "x")
    with pytest.raises(BrokerUnavailable):
        measure("amqp://guest:secret@127.0.0.1:1//", "x")


def test_probe_connects_again_after_its_connection_was_cut(redis_url: str) -> None:
    probe = make_probe(Broker("shop", redis_url), SETTINGS)
    with declared(redis_url) as (connection, queue):
        publish(connection, queue, 2)
        probe.sample([queue.name])
        probe.close()
        assert probe.sample([queue.name])[0].ready == 2
    probe.close()


def test_other_transports_tell_what_waits(tmp_path: Path) -> None:
    folder = str(tmp_path)
    options: dict[str, object] = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": folder}
    with Connection("filesystem://", transport_options=options) as connection:
        queue = connection.SimpleQueue("depth-files")
        queue.put({"n": 1})
        queue.put({"n": 2})
        [found] = measure("filesystem://", "depth-files", settings=Settings(broker_options=options))
        queue.close()
    assert (found.ready, found.unacked, found.consumers, found.oldest) == (2, None, None, None)


class _ManagementApi(BaseHTTPRequestHandler):
    """Answers as RabbitMQ's management plug-in does, with what the test says."""

    rows: list[dict[str, object]]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.rows).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@contextmanager
def management_api(rows: list[dict[str, object]]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    asked: list[tuple[str, str | None]] = []
    handler = type("Handler", (_ManagementApi,), {"rows": rows, "asked": asked})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://bob:pa%20ss@127.0.0.1:{server.server_port}/api/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_management_api_tells_unacknowledged_and_whether_anything_was_delivered(amqp_url: str) -> None:
    with declared(amqp_url) as (connection, queue):
        publish(connection, queue, 3)
        row: dict[str, object] = {"name": queue.name, "messages_unacknowledged": 6, "message_stats": {"deliver_get": 9}}
        with management_api([row]) as (address, asked):
            probe = make_probe(Broker("shop", amqp_url), Settings(broker_api=address))
            first, second = probe.sample([queue.name])[0], probe.sample([queue.name])[0]
            row["message_stats"] = {"deliver_get": 10}
            third = probe.sample([queue.name])[0]
            probe.close()
        assert (first.unacked, first.oldest) == (6, None)
        assert second.oldest is not None
        assert third.oldest is None
        path, authorization = asked[0]
        vhost = amqp_url.split("/", 3)[3]
        assert path == "/api/queues/" + quote(vhost, safe="")
        assert authorization == "Basic Ym9iOnBhIHNz"


def test_management_api_that_fails_leaves_unknown(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with declared(amqp_url) as (connection, queue):
        publish(connection, queue, 2)
        probe = make_probe(Broker("shop", amqp_url), Settings(broker_api="http://127.0.0.1:1/api/"))
        probe.sample([queue.name])
        [found] = probe.sample([queue.name])
        probe.close()
    assert (found.ready, found.unacked) == (2, None)
    assert caplog.text.count("Check --broker-api") == 1


def test_markers_leave_in_order_and_are_asked_for_seldom() -> None:
    markers = Markers()
    for at in range(100):
        markers.observe(b"%d" % at, float(at))
    asked = []

    def is_there(payload: bytes) -> bool:
        asked.append(payload)
        return int(payload) >= 90

    since = markers.since(is_there)
    assert since is not None
    assert 90 <= since <= 96
    assert len(asked) < 12
    assert markers.since(lambda _: None) is None
    assert markers.since(is_there) == since
    markers.observe(None, 100.0)
    assert markers.since(lambda _: True) is None


def test_head_of_a_queue_without_consumers_is_new_once_it_shrinks() -> None:
    heads = QueueHeads()
    assert heads.observe("mail", "unconsumed", 100.0, 5) is None
    assert heads.observe("mail", "unconsumed", 103.0, 9) == 100.0
    assert heads.observe("mail", "unconsumed", 107.0, 8) is None
    assert heads.observe("mail", "unconsumed", 111.0, 8) == 107.0
