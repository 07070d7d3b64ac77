"""What holds for every source: the fast paths and kombu, on Redis and on RabbitMQ."""

import json
import time
from collections import Counter

import pytest

from celery_monitor.errors import SettingsError, Unsupported
from celery_monitor.receiver.sources import make_source
from celery_monitor.receiver.sources.base import Source
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from tests.receiver.sources.conftest import MakeSource
from tests.receiver.traffic import as_dicts, make_traffic, numbered, publisher, read_all, read_rest, recorded
from tests.workers import running_worker, wait_for


@pytest.fixture(params=["auto", "kombu"])
def source(request: pytest.FixtureRequest, broker_url: str, source_of: MakeSource) -> Source:
    return source_of(broker_url, source=request.param)


def expected_events(name: str) -> list[Event]:
    """The recording as plain JSON says it, beside our decoder."""
    events: list[Event] = []
    for _, body in recorded(name):
        items = json.loads(body)
        for item in items if isinstance(items, list) else [items]:
            fields = {key: value for key, value in item.items() if key in Event.__struct_fields__}
            if isinstance(fields.get("loadavg"), list):
                fields["loadavg"] = tuple(fields["loadavg"])
            events.append(Event(**fields))
    return events


@pytest.mark.parametrize("recording", ["redis", "amqp"])
def test_recorded_traffic_arrives_whole_and_in_order(source: Source, broker_url: str, recording: str) -> None:
    with publisher(broker_url) as publish:
        for routing_key, body in recorded(recording):
            publish.send(routing_key, body)
    expected = expected_events(recording)
    assert len(expected) > 40
    assert as_dicts(read_all(source, len(expected))) == as_dicts(expected)


def test_a_real_workers_events_are_equal_through_both_paths(broker_url: str, source_of: MakeSource) -> None:
    fast = source_of(broker_url)
    slow = source_of(broker_url, source="kombu")
    with running_worker(broker_url) as worker:
        make_traffic(worker)
        # The last things to happen: a crash, a time limit, the second retry, a countdown of 1 s.
        last = ("Hard time limit", "signal 9", "in 0.1s", "succeeded in")
        wait_for(lambda: all(words in worker.log for words in last), what="the end of each task")
        wait_for(lambda: worker.log.count(" succeeded in ") == 7, what="seven successes")
    events = read_rest(fast, broker_url)

    # RabbitMQ keeps the order of each sender, and not between two who send to two queues at once.
    def by_sender(event: Event) -> tuple[str | None, int | None]:
        return event.hostname, event.pid

    assert sorted(read_rest(slow, broker_url), key=by_sender) == sorted(events, key=by_sender)
    kinds = Counter(event.type for event in events)
    assert kinds["task-sent"] >= 14  # and the worker's own for each retry
    assert kinds["task-received"] >= 14
    assert kinds["task-retried"] == 2
    assert {"task-succeeded", "task-failed", "task-rejected", "worker-online"} <= set(kinds)
    if broker_url.startswith("redis"):  # RabbitMQ throws most expired messages away by itself
        assert "task-revoked" in kinds
    assert fast.name != slow.name


def test_the_senders_own_clock_is_kept(source: Source, broker_url: str) -> None:
    with publisher(broker_url) as publish:
        publish.send("task.received", numbered(3))
    (event,) = read_all(source, 1)
    assert event.timestamp == 1_780_000_003.5


def test_bodies_that_are_no_events_are_counted_and_the_rest_arrives(source: Source, broker_url: str) -> None:
    big = numbered(2).replace("shop.pay", "é" * 2_500_000)
    with publisher(broker_url) as publish:
        publish.send("task.received", numbered(1))
        publish.send("task.received", b"\x80\x04pickled", content_type="application/x-python-serialize")
        publish.send("task.received", b"\xff{not json")
        publish.send("task.multi", f'[17, {numbered(4)}, {{"type": "task-started"}}]')
        publish.send("task.received", b"")
        publish.send("task.received", big)
        publish.send("task.received", numbered(5), compression="zlib")
    events: list[Event] = []
    malformed = 0
    refused: set[RefusedEvents] = set()
    deadline = time.monotonic() + 60
    while len(events) < 4 and time.monotonic() < deadline:
        delivery = source.read(0.2)
        events += delivery.events
        malformed += delivery.malformed
        refused |= {*delivery.refused}
    assert [event.clock for event in events] == [1, 4, 2, 5]
    assert len(events[2].name or "") == 2_500_000
    assert malformed == 4
    assert refused == {RefusedEvents("worker7@shop", "application/x-python-serialize")}


def test_read_comes_back_when_something_is_there_and_in_time_when_not(source: Source, broker_url: str) -> None:
    assert source.read(0.3).events == []
    with publisher(broker_url) as publish:
        publish.send("task.received", numbered(6))
        before = time.time()
        delivery = source.read(600)  # longer than the test may take
    assert [event.clock for event in delivery.events] == [6]
    assert before - 1 < delivery.arrived <= time.time()


def test_a_burst_arrives_whole_in_batches(source: Source, broker_url: str) -> None:
    with publisher(broker_url) as publish:
        publish.send_numbered(1, 3000)
    assert [event.clock for event in read_all(source, 3000)] == list(range(1, 3001))


def test_close_may_be_called_twice_and_connect_again(source: Source, broker_url: str) -> None:
    source.close()
    source.close()
    source.connect()
    with publisher(broker_url) as publish:
        publish.send("task.received", numbered(8))
    assert [event.clock for event in read_all(source, 1)] == [8]


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("redis://localhost:6390/3", {}, "redis"),
        ("rediss://:pw@localhost:6390/3?ssl_cert_reqs=none", {}, "redis"),
        ("redis+socket:///run/redis.sock?virtual_host=3", {}, "redis"),
        ("redis://localhost/3", {"global_keyprefix": "shop:", "visibility_timeout": 7200}, "redis"),
        ("redis://localhost/3", {"credential_provider": "shop.Provider"}, "kombu"),
        ("redis://localhost/3;redis://other/3", {}, "kombu"),
        ("sentinel://localhost:26379/3", {"master_name": "shop"}, "kombu"),
        ("filesystem://", {}, "kombu"),
        ("amqp://localhost/shop", {}, "amqp"),
        ("amqps://localhost/shop", {}, "amqp"),
        ("pyamqp://localhost/shop", {}, "amqp"),
        ("sqs://key:secret@", {}, "queue"),
        ("sqla+sqlite:///x.db", {}, "queue"),
        ("kafka://localhost", {}, "queue"),
        ("my.own:Transport://localhost", {}, "queue"),
    ],
)
def test_the_fastest_source_that_serves(url: str, options: dict[str, object], expected: str) -> None:
    assert make_source(Broker("shop", url), Settings(broker_options=options)).name == expected


def test_an_unknown_transport_lists_what_is_known() -> None:
    with pytest.raises(SettingsError, match=r"'carrier-pigeon'.*use one of.*redis"):
        make_source(Broker("shop", "carrier-pigeon://roof"), Settings())


def test_a_source_can_be_forced() -> None:
    assert make_source(Broker("shop", "redis://localhost/3"), Settings(source="kombu")).name == "kombu"
    assert make_source(Broker("shop", "redis://localhost/3"), Settings(source="redis")).name == "redis"
    assert make_source(Broker("shop", "amqp://localhost/3"), Settings(source="amqp")).name == "amqp"
    assert make_source(Broker("shop", "filesystem://"), Settings(source="queue")).name == "queue"


@pytest.mark.parametrize(
    ("url", "source"), [("redis://localhost/3", "amqp"), ("amqp://:s3cret@h/", "redis"), ("filesystem://", "amqp")]
)
def test_a_forced_source_that_cannot_serve_is_refused(url: str, source: str) -> None:
    with pytest.raises(Unsupported, match="use auto or kombu") as caught:
        make_source(Broker("shop", url), Settings(source=source))
    assert "s3cret" not in caught.value.message
