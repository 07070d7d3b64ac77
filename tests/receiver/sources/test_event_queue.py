"""The queue of celery_monitor_capture, on SQS and on brokers that only kombu speaks to."""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from kombu import Connection, Producer, Queue

from celery_monitor.errors import BrokerUnavailable, Unsupported
from celery_monitor.receiver.sources import event_queue, make_source
from celery_monitor.receiver.sources.base import Source
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from tests.receiver.sources.conftest import MakeSource
from tests.receiver.traffic import numbered, read_all, read_dropping
from tests.servers import free_port
from tests.workers import wait_for

# Of kombu's transport for SQL
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

EVENTS = "shop-events"  # not the default
NO_WAIT: dict[str, Any] = {"wait_time_seconds": 0}  # while a request waits, moto keeps a processor busy


class Batches:
    """Sends batches of events as celery_monitor_capture does."""

    def __init__(self, connection: Connection, queue: str) -> None:
        channel = connection.channel()
        Queue(queue)(channel).declare()
        self._producer = Producer(channel)
        self._queue = queue

    def send(self, body: str | bytes, *, dropped: object = 0, **given: Any) -> None:
        headers = {"hostname": "worker7@shop", "sender": "812-a", "sequence": 1, "dropped": dropped}
        options = {"content_type": "application/json", "content_encoding": "utf-8", **given}
        headers |= options.pop("headers", {})
        self._producer.publish(body, routing_key=self._queue, headers=headers, **options)

    def send_numbered(self, first: int, last: int, **given: Any) -> None:
        self.send(f"[{','.join(map(numbered, range(first, last + 1)))}]", **given)


@contextmanager
def batches(url: str, queue: str = EVENTS, **options: Any) -> Iterator[Batches]:
    with Connection(url, transport_options=options) as connection:
        yield Batches(connection, queue)


@pytest.fixture(params=["sqs", "filesystem", "sqlalchemy"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """The address of a broker without events, and transport options for it."""
    if request.param == "sqs":
        return request.getfixturevalue("sqs_url"), NO_WAIT
    if request.param == "sqlalchemy":
        return f"sqla+sqlite:///{tmp_path}/broker.db", {}
    folder, control = tmp_path / "messages", tmp_path / "control"
    folder.mkdir()
    control.mkdir()
    names = ("data_folder_in", "data_folder_out")
    return "filesystem://", {"control_folder": str(control), **dict.fromkeys(names, str(folder))}


def clocks(source: Source, expected: int) -> list[int]:
    return sorted(event.clock or 0 for event in read_all(source, expected))


def client_of(url: str) -> Any:
    return boto3.client("sqs", endpoint_url=url.replace("sqs://test:test@", "http://"))


def counts(url: str, queue: str = EVENTS) -> tuple[int, int]:
    """Messages that are visible and in flight, as boto3 says."""
    client = client_of(url)
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    address = client.get_queue_url(QueueName=queue)["QueueUrl"]
    found = client.get_queue_attributes(QueueUrl=address, AttributeNames=names)["Attributes"]
    return int(found[names[0]]), int(found[names[1]])


def test_what_was_sent_while_no_receiver_ran_arrives(place: tuple[str, dict[str, Any]], source_of: MakeSource) -> None:
    url, options = place
    with batches(url, **options) as sender:
        sender.send_numbered(1, 40)
        source = source_of(url, source="queue", event_queue=EVENTS, broker_options=options)
        assert (source.name, source.keeps_events) == ("queue", True)
        assert clocks(source, 40) == list(range(1, 41))
        source.acknowledge()
        sender.send_numbered(41, 42)
        assert clocks(source, 2) == [41, 42]


def test_every_form_of_a_batch(place: tuple[str, dict[str, Any]], source_of: MakeSource) -> None:
    url, options = place
    source = source_of(url, source="queue", event_queue=EVENTS, broker_options=options)
    with batches(url, **options) as sender:
        sender.send(numbered(1))
        sender.send(zlib.compress(f"[{numbered(2)}]".encode()), headers={"compression": "application/x-gzip"})
        sender.send(b"\x80\x04pickled", content_type="application/x-python-serialize", content_encoding="binary")
        sender.send("{no json")
        sender.send(json.dumps([17, {"type": "task-started"}, json.loads(numbered(3))]))
        sender.send_numbered(4, 5, dropped=7)
        sender.send_numbered(6, 6, dropped="many")
    events: list[Event] = []
    malformed = dropped = 0
    refused: set[RefusedEvents] = set()
    while len(events) < 6 or malformed < 3 or not refused:
        delivery = source.read(30)
        assert delivery.events or delivery.malformed or delivery.refused
        events += delivery.events
        malformed += delivery.malformed
        dropped += delivery.dropped
        refused |= {*delivery.refused}
    assert sorted(event.clock or 0 for event in events) == [1, 2, 3, 4, 5, 6]
    assert (malformed, dropped) == (3, 7)
    assert refused == {RefusedEvents("worker7@shop", "application/x-python-serialize")}


def test_a_message_is_deleted_once_it_is_stored_and_else_delivered_again(
    sqs_url: str, source_of: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "HIDDEN_SECONDS", 2)
    with batches(sqs_url) as sender:
        for number in range(1, 26):
            sender.send_numbered(number, number)
    source = source_of(sqs_url, event_queue=EVENTS, broker_options=NO_WAIT)
    assert clocks(source, 25) == list(range(1, 26))
    source.close()  # nothing was acknowledged
    again = source_of(sqs_url, event_queue=EVENTS, broker_options=NO_WAIT)
    assert clocks(again, 25) == list(range(1, 26))
    assert not again.missed
    again.acknowledge()
    wait_for(lambda: counts(sqs_url) == (0, 0), what="the deletion of all messages")


def test_what_is_stored_is_deleted_at_the_end(sqs_url: str, source_of: MakeSource) -> None:
    source = source_of(sqs_url, event_queue=EVENTS, broker_options=NO_WAIT)
    with batches(sqs_url) as sender:
        sender.send_numbered(1, 2)
    assert clocks(source, 2) == [1, 2]
    source.acknowledge()
    source.close()
    assert counts(sqs_url) == (0, 0)


def test_a_full_buffer_loses_nothing(place: tuple[str, dict[str, Any]], source_of: MakeSource) -> None:
    url, options = place
    with batches(url, **options) as sender:
        for first in range(1, 401, 10):
            sender.send_numbered(first, first + 9)
    limits = {"buffer_bytes": 3000, "broker_options": options}  # a batch has about 2000
    source = source_of(url, source="queue", event_queue=EVENTS, **limits)
    assert read_dropping(source, 400) == (400, 0)


def test_messages_of_a_fifo_queue(sqs_url: str, source_of: MakeSource) -> None:
    name = f"{EVENTS}.fifo"
    source = source_of(sqs_url, event_queue=name, broker_options=NO_WAIT)
    with batches(sqs_url, name) as sender:
        for number in range(1, 16):
            sender.send_numbered(number, number, MessageGroupId="worker7@shop")
    read: list[int | None] = []
    while len(read) < 15:
        read += [event.clock for event in source.read(30).events]
        source.acknowledge()
    assert read == list(range(1, 16))


def test_the_prefix_of_queue_names_is_used(sqs_url: str, source_of: MakeSource) -> None:
    options = {"queue_name_prefix": "stage-", **NO_WAIT}
    source = source_of(sqs_url, event_queue=EVENTS, broker_options=options)
    with batches(sqs_url, **options) as sender:
        sender.send_numbered(3, 3)
    assert clocks(source, 1) == [3]
    assert counts(sqs_url, f"stage-{EVENTS}") == (0, 1)


def test_a_queue_that_is_not_predefined_is_named(sqs_url: str, source_of: MakeSource) -> None:
    options = {"predefined_queues": {"celery": {"url": "http://127.0.0.1/1/celery"}}}
    with pytest.raises(Unsupported, match=f"{EVENTS} is not among the predefined_queues"):
        source_of(sqs_url, event_queue=EVENTS, broker_options=options)


def test_a_deleted_queue_ends_the_connection_and_the_next_one_makes_it_again(
    sqs_url: str, source_of: MakeSource
) -> None:
    source = source_of(sqs_url, event_queue=EVENTS, broker_options=NO_WAIT)
    client = client_of(sqs_url)
    client.delete_queue(QueueUrl=client.get_queue_url(QueueName=EVENTS)["QueueUrl"])
    with pytest.raises(BrokerUnavailable, match="does not exist"):
        source.read(60)
    source.connect()
    with batches(sqs_url) as sender:
        sender.send_numbered(9, 9)
    assert clocks(source, 1) == [9]


def test_no_endpoint_is_reported() -> None:
    source = make_source(Broker("shop", f"sqs://test:test@127.0.0.1:{free_port()}"), Settings())
    with pytest.raises(BrokerUnavailable, match="Could not connect to the endpoint"):
        source.connect()


@pytest.mark.parametrize("dropped", [None, True, -3, 2.5, "1", [1]])
def test_a_count_that_is_none_counts_nothing(dropped: object) -> None:
    assert event_queue.dropped_before({"dropped": dropped}) == 0
