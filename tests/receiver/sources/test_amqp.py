"""The fast path for RabbitMQ: nothing sent is lost, whoever is away, and a queue of ours stays ours."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import amqp
import pytest

from celery_monitor.errors import BrokerUnavailable
from celery_monitor.receiver.sources import buffer
from celery_monitor.records.event import Event
from tests.receiver.sources.conftest import MakeSource, amqp_connection
from tests.receiver.traffic import publisher, read_all, read_for, read_rest
from tests.servers import free_port, make_certificate, proxy
from tests.workers import running_worker, wait_for

BOTH = pytest.mark.parametrize("source_name", ["amqp", "kombu"])


def clocks(events: list[Event]) -> list[int | None]:
    return [event.clock for event in events]


def through(url: str, port: int, scheme: str = "amqp", host: str = "127.0.0.1", query: str = "") -> str:
    """The same broker by way of another port."""
    parts = urlsplit(url)
    return f"{scheme}://{parts.username or 'guest'}:{parts.password or 'guest'}@{host}:{port}{parts.path}{query}"


def port_of(url: str) -> int:
    return urlsplit(url).port or 5672


@BOTH
def test_what_is_sent_while_the_receiver_is_away_is_there_when_it_returns(
    amqp_url: str, source_of: MakeSource, source_name: str
) -> None:
    source = source_of(amqp_url, source=source_name)
    source.close()
    with publisher(amqp_url) as publish:
        publish.send_numbered(1, 400)
    source.connect()
    assert clocks(read_all(source, 400)) == list(range(1, 401))


def test_a_workers_events_are_kept_while_the_receiver_is_away(amqp_url: str, source_of: MakeSource) -> None:
    source = source_of(amqp_url)
    source.close()
    with running_worker(amqp_url) as worker:
        ids = {worker.send("add", number, 2) for number in range(30)}
        wait_for(lambda: worker.log.count("succeeded in") == 30, what="thirty successes")
    source.connect()
    events = read_rest(source, amqp_url)
    for kind in ("task-sent", "task-received", "task-started", "task-succeeded"):
        assert {event.uuid for event in events if event.type == kind} == ids


@BOTH
def test_what_was_not_acknowledged_comes_again_and_what_was_does_not(
    amqp_url: str, source_of: MakeSource, source_name: str
) -> None:
    source = source_of(amqp_url, source=source_name)
    with publisher(amqp_url) as publish:
        publish.send_numbered(1, 50)
        assert clocks(read_all(source, 50)) == list(range(1, 51))
        source.acknowledge()
        publish.send_numbered(51, 80)
        assert clocks(read_all(source, 30)) == list(range(51, 81))
    source.close()
    source.connect()
    assert clocks(read_rest(source, amqp_url)) == list(range(51, 81))


@BOTH
def test_a_cut_connection_loses_nothing(amqp_url: str, source_of: MakeSource, source_name: str) -> None:
    with proxy(port_of(amqp_url)) as front, publisher(amqp_url) as publish:
        source = source_of(through(amqp_url, front.port), source=source_name)
        publish.send_numbered(1, 20)
        assert clocks(read_all(source, 20)) == list(range(1, 21))
        source.acknowledge()
        publish.send_numbered(21, 40)
        seen = read_all(source, 20)
        front.cut()
        with pytest.raises(BrokerUnavailable):
            read_for(source, 60)
        publish.send_numbered(41, 60)
        wait_for(lambda: _connects(source.connect), what="the broker to let go of the first consumer")
        again = clocks(read_rest(source, amqp_url))
    assert clocks(seen) == list(range(21, 41))
    # The last acknowledgement may not have reached the broker before the cut.
    assert again in (list(range(1, 61)), list(range(21, 61)))


def _connects(connect: Callable[[], None]) -> bool:
    try:
        connect()
    except BrokerUnavailable:
        return False
    return True


@pytest.mark.slow
def test_heartbeats_go_out_while_the_store_stalls(amqp_url: str, source_of: MakeSource) -> None:
    source = source_of(amqp_url, batch_events=10)
    with publisher(amqp_url) as publish:
        publish.send_numbered(1, 5)
    first = read_all(source, 5)
    time.sleep(13)  # longer than two heartbeats of 5 s, after which the broker closes the connection
    source.acknowledge()
    with publisher(amqp_url) as publish:
        publish.send_numbered(6, 7)
    assert clocks(first + read_all(source, 2)) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_a_peer_that_fell_silent_is_noticed(amqp_url: str, source_of: MakeSource) -> None:
    with proxy(port_of(amqp_url)) as front:
        source = source_of(through(amqp_url, front.port))
        front.fall_silent()
        with pytest.raises(BrokerUnavailable, match="no heartbeat"):
            read_for(source, 60)


def test_a_full_buffer_leaves_the_rest_with_the_broker(
    amqp_url: str, source_of: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer, "READ_BYTES", 4096)
    source = source_of(amqp_url, buffer_bytes=20_000, batch_events=30)
    with publisher(amqp_url) as publish:
        publish.send_numbered(1, 3000)
    events: list[Event] = []
    while len(events) < 3000 and (batch := source.read(60)).events:
        assert batch.dropped == 0
        events += batch.events
        source.acknowledge()
    assert clocks(events) == list(range(1, 3001))


def test_a_second_receiver_under_the_same_name_is_refused(amqp_url: str, source_of: MakeSource) -> None:
    first = source_of(amqp_url, node_id="test-the-only-one")
    with pytest.raises(BrokerUnavailable, match="--node-id"):
        source_of(amqp_url, node_id="test-the-only-one")
    assert first.read(0.2).events == []


def test_a_queue_with_other_limits_is_used_as_it_is_and_reported(
    amqp_url: str, source_of: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(amqp_url, node_id="test-limits", event_queue_ttl=600)
    source.close()
    with publisher(amqp_url) as publish:
        publish.send_numbered(1, 10)
    with caplog.at_level(logging.WARNING):
        other = source_of(amqp_url, node_id="test-limits", event_queue_ttl=700)
    assert "another node_id" in caplog.text
    assert clocks(read_all(other, 10)) == list(range(1, 11))


def test_the_queue_is_durable_bounded_and_expires(amqp_url: str, source_of: MakeSource) -> None:
    source_of(amqp_url, node_id="test-shape", event_queue_ttl=500, event_queue_max=77, event_queue_max_bytes=88_000)
    arguments = {
        "x-queue-type": "quorum",
        "x-message-ttl": 500_000,
        "x-expires": 1_000_000,
        "x-max-length": 77,
        "x-max-length-bytes": 88_000,
    }
    with amqp_connection(amqp_url) as connection:
        # RabbitMQ accepts a second declaration only if it is the same.
        declared = connection.channel().queue_declare(
            "celeryev.test-shape", durable=True, auto_delete=False, arguments=arguments
        )
    assert declared.consumer_count == 1


def test_a_deleted_queue_is_noticed_and_made_again(amqp_url: str, source_of: MakeSource) -> None:
    source = source_of(amqp_url, node_id="test-deleted")
    with amqp_connection(amqp_url) as connection:
        connection.channel().queue_delete("celeryev.test-deleted")
    with pytest.raises(BrokerUnavailable):
        source.read(5)
    source.connect()
    with publisher(amqp_url) as publish:
        publish.send_numbered(4, 4)
    assert clocks(read_all(source, 1)) == [4]


@BOTH
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (("guest:wr0ng-one", ""), "user name and password"),
        (("nobody:wr0ng-one", ""), "user name and password"),
        (("guest:guest", "/no-such-vhost"), "virtual host"),
    ],
)
def test_why_we_are_not_let_in_is_reported_and_no_password_shown(
    amqp_url: str, source_of: MakeSource, source_name: str, change: tuple[str, str], advice: str
) -> None:
    parts = urlsplit(amqp_url)
    user, vhost = change
    url = f"amqp://{user}@{parts.hostname}:{port_of(amqp_url)}{vhost or parts.path}"
    with pytest.raises(BrokerUnavailable, match=advice) as caught:
        source_of(url, source=source_name)
    assert "wr0ng" not in caught.value.message


def test_nobody_there_is_reported(source_of: MakeSource) -> None:
    with pytest.raises(BrokerUnavailable, match="Check that the broker runs"):
        source_of(f"amqp://guest:guest@127.0.0.1:{free_port()}//")


@BOTH
def test_tls(amqp_url: str, tmp_path: Path, source_of: MakeSource, source_name: str) -> None:
    made = make_certificate(tmp_path)
    with proxy(port_of(amqp_url), made) as front:
        good = f"?ssl_cert_reqs=required&ssl_ca_certs={made.certificate}"
        source = source_of(through(amqp_url, front.port, "amqps", "localhost", good), source=source_name)
        with publisher(amqp_url) as publish:
            publish.send_numbered(1, 300)
        assert clocks(read_all(source, 300)) == list(range(1, 301))
        with pytest.raises(BrokerUnavailable, match="ssl_ca_certs"):
            source_of(
                through(amqp_url, front.port, "amqps", "localhost", "?ssl_cert_reqs=required"), source=source_name
            )


def test_an_address_list_is_tried_until_one_answers(amqp_url: str, source_of: MakeSource) -> None:
    source = source_of(f"amqp://guest:guest@127.0.0.1:{free_port()}//;{amqp_url}")
    with publisher(amqp_url) as publish:
        publish.send_numbered(9, 9)
    assert clocks(read_all(source, 1)) == [9]


def test_an_exchange_that_exists_in_another_shape_is_used_as_it_is(amqp_url: str, source_of: MakeSource) -> None:
    with amqp_connection(amqp_url) as connection:
        channel = connection.channel()
        try:
            channel.exchange_delete("celeryev")
            channel.exchange_declare("celeryev", "topic", durable=False, auto_delete=False)
            source = source_of(amqp_url)
            channel.basic_publish(amqp.Message("[]", content_type="application/json"), "celeryev", "task.multi")
            channel.basic_publish(amqp.Message("{", content_type="application/json"), "celeryev", "task.multi")
            assert wait_for(lambda: source.read(1).malformed) == 1
        finally:
            channel.exchange_delete("celeryev")
            channel.exchange_declare("celeryev", "topic", durable=True, auto_delete=False)


@BOTH
def test_a_full_buffer_loses_nothing(amqp_url: str, source_of: MakeSource, source_name: str) -> None:
    source = source_of(amqp_url, source=source_name, buffer_bytes=20_000)  # an event has about 200
    with publisher(amqp_url) as publish:
        publish.send_numbered(1, 3000)
    wait_for(lambda: source.waits)
    assert clocks(read_all(source, 3000)) == list(range(1, 3001))
