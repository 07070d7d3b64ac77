"""What one message of a hostile publisher or worker may do: nothing breaks, and what was cut or refused says so."""

import json
import math
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import redis
from celery import Celery
from kombu import Connection, Consumer, Producer, Queue

from celery_monitor.brokers.connection import keep_compressed
from celery_monitor.core import sanitize
from celery_monitor.core.arguments import _no_duplicates
from celery_monitor.core.sanitize import LONGEST_RUNTIME, SLACK, Checked, Sanitizer
from celery_monitor.core.untrusted import CUT
from celery_monitor.errors import NotFound
from celery_monitor.receiver import decode as decoding
from celery_monitor.receiver import ingest
from celery_monitor.receiver.decode import decode, json_of
from celery_monitor.records.user import Role
from celery_monitor.settings import REDACTED_KEYS
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import read_gaps, read_receiver_records
from celery_monitor.store.writer import Writer
from celery_monitor.web.pages import failures, overview, workflows
from celery_monitor.web.pages import task as task_page
from celery_monitor.web.present import Watched
from tests.factories import make_event, make_id, make_message
from tests.receiver.conftest import RunReceiver, connected, health, task
from tests.receiver.test_ingest import own_redis, send_event  # noqa: F401 - a fixture
from tests.web.pages.house import House, open_house
from tests.workers import wait_for


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        yield opened


def stored(store: Store, task_id: str) -> bool:
    try:
        return task(store, task_id).id == task_id
    except NotFound:
        return False


# Numbers


HUGE: dict[str, object] = {
    "runtime": 1e308,
    "freq": 1e308,
    "loadavg": [1e308, 1, 1],
    "retries": 2**31 - 1,
    "pid": 2**31,
    "active": -1,
    "signum": "9" * 1000,
}


@pytest.mark.parametrize(("field", "value"), HUGE.items())
def test_number_beyond_its_bound_is_unknown(field: str, value: object) -> None:
    body = {"type": "worker-online" if field in {"freq", "loadavg"} else "task-revoked", "timestamp": 1.5}
    plain, more = ({"hostname": "w7@shop", "uuid": "u-31", **body, **extra} for extra in ({}, {field: value}))
    assert type(decode(json.dumps(plain).encode())[0][0]) is Checked
    (event,), malformed = decode(json.dumps(more).encode())
    assert malformed == 0
    (kept,) = Sanitizer(1000, REDACTED_KEYS).clean_all([event])
    assert kept is not None
    assert getattr(kept, field) in (None, "9" * sanitize.SIGNAL_LENGTH)


def test_every_number_of_an_event_has_a_bound() -> None:
    """A new field needs one too, in Checked and in LARGEST."""
    numbers = {
        field.name
        for field in msgspec.structs.fields(Checked)
        if {int, float} & set(_leaves(msgspec.inspect.type_info(field.type)))
    }
    by_hand = {"timestamp", "signum", "loadavg", "clock", "discovered_at"}
    assert numbers == set(sanitize.LARGEST) | by_hand


def _leaves(kind: object) -> Iterator[type]:
    if isinstance(kind, msgspec.inspect.UnionType):
        for each in kind.types:
            yield from _leaves(each)
    elif isinstance(kind, msgspec.inspect.VarTupleType):
        yield from _leaves(kind.item_type)
    elif isinstance(kind, msgspec.inspect.IntType):
        yield int
    elif isinstance(kind, msgspec.inspect.FloatType):
        yield float


def test_longest_run_time_that_is_accepted_is_shown(house: House) -> None:
    for number, runtime in enumerate((LONGEST_RUNTIME, 1e308)):
        body = {"type": "task-succeeded", "uuid": make_id(number), "hostname": "w7@shop", "timestamp": house.now - 9}
        (event,), _ = decode(json.dumps([{**body, "runtime": runtime, "result": "1"}])[1:-1].encode())
        house.write(event)
    assert task(house.store, make_id(0)).runtime == LONGEST_RUNTIME
    assert task(house.store, make_id(1)).runtime is None
    assert "cannot be shown" not in house.text("/")


@pytest.mark.parametrize("runtime", [1e308, 1e30])
def test_pages_stand_on_a_record_with_numbers_from_before_they_were_bounded(
    house: House, monkeypatch: pytest.MonkeyPatch, runtime: float
) -> None:
    monkeypatch.setitem(sanitize.LARGEST, "runtime", math.inf)
    for number in range(3):
        known = {"uuid": make_id(number), "timestamp": house.now - 9}
        house.write(
            make_event("task-received", name="shop.pay", queue="payments", args="()", kwargs="{}", **known),
            make_event("task-started", **known),
            make_event("task-succeeded", runtime=runtime, **known),
        )
    house.worker("worker1@shop")
    assert task(house.store, make_id(1)).runtime == runtime
    for path in ("/", "/tasks", f"/tasks/{make_id(1)}", "/workers/worker1@shop"):
        text = house.text(path)
        assert "cannot be shown" not in text, path
    assert "over 100000 d" in house.text(f"/tasks/{make_id(1)}")
    for path in ("/api/v1/tasks", "/api/v1/health", "/metrics"):
        assert house.client.get(path).status_code in {200, 404}, path


def test_part_that_fails_is_a_note_and_the_others_are_shown(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of a chart")

    house.worker("worker1@shop")
    monkeypatch.setattr(overview, "throughput", fail)
    pages = [house.text("/") for _ in range(3)]
    assert "This part cannot be shown: charts ZeroDivisionError." in pages[0]
    assert "worker1@shop" in pages[0]
    assert 'id="region-lists"' in house.html("/")
    assert [record.message for record in caplog.records if "logged once" in record.message] == [
        "cannot show charts; this is logged once"
    ]
    app = house.client.app
    snapshot = app.state.presenter.snapshot(Watched("/", "", Role.VIEWER))  # type: ignore[attr-defined]
    assert "cannot be shown: charts" in snapshot.regions["charts"]
    assert "worker1@shop" in snapshot.regions["strip"]


@pytest.mark.parametrize(
    ("module", "function", "path", "others"),
    [
        (task_page, "timeline", "/tasks/{id}", "cannot be charged"),
        (task_page, "message_details", "/tasks/{id}", "cannot be charged"),
        (task_page, "_lineage", "/tasks/{id}", "cannot be charged"),
        (failures, "read_failure_trend", "/failures/1", "Refused"),
        (failures, "_by_queue", "/failures/1", "Refused"),
        (failures, "read_latest_failure", "/failures/1", "shop.pay"),
        (workflows, "_lines", "/workflows/{id}", "shop.pay"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_the_rest_of_a_page_is_shown(
    house: House, monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str, path: str, others: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of this part")

    known = {"uuid": make_id(3), "timestamp": house.now - 9}
    house.write(
        make_event("task-received", name="shop.pay", queue="payments", args="()", kwargs="{}", **known),
        make_event("task-failed", exception="Refused('cannot be charged')", traceback="", **known),
    )
    monkeypatch.setattr(module, function, fail)
    text = house.text(path.format(id=make_id(3)))
    assert "ZeroDivisionError." in text
    assert others in text


def test_region_whose_template_fails_is_a_note(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.worker("worker1@shop")
    monkeypatch.setattr(overview, "_standbys", lambda _view: [object()])
    text = house.text("/")
    assert "This part cannot be shown: health" in text
    assert "worker1@shop" in text


# Texts


def test_secret_is_masked_where_the_text_is_cut() -> None:
    """The cut comes first, so the text that is masked may end anywhere in a secret."""
    sanitizer = Sanitizer(100, REDACTED_KEYS)
    for place in range(100 + SLACK - 60, 100 + SLACK + 10):
        for secret in ("password='Zq7x', ", "amqp://bob:Zq712345@h ", "token=Zq7, ", "('token', 'Zq7'), "):
            for filler in ("x" * place, "token='" + "y" * (place - 10) + "', "):
                text = sanitizer.text(filler[:place] + secret * 3 + "z" * 1000)
                assert "Zq7" not in text
                assert len(text) <= 100
                assert text.endswith(CUT)


def test_300_000_backslashes_are_stored_at_once_and_the_next_event_too(
    redis_url: str, receiving: RunReceiver, store: Store
) -> None:
    with receiving(redis_url) as receiver, Celery(broker=redis_url) as app:
        wait_for(connected(receiver))
        with app.events.default_dispatcher(hostname="worker1@shop") as dispatcher:
            dispatcher.send(
                "task-received", uuid="u-31", name="shop.pay", args="(token='" + "\\" * 300_000, kwargs="{}"
            )
        send_event(redis_url, "u-32")
        wait_for(lambda: stored(store, "u-32"))
    assert task(store, "u-31").args == "(token='***'" + CUT
    assert read_gaps(store, since=time.time() - 1) == []


# Parsers


class CountedKey(str):
    """A key that counts how often it is compared."""

    compared = 0
    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedKey.compared += 1
        return str.__eq__(self, other)


def test_duplicate_among_many_keys_is_found_with_few_comparisons() -> None:
    CountedKey.compared = 0
    keys = [CountedKey(f"k{number}") for number in range(30_000)]
    with pytest.raises(ValueError, match="duplicate key 'k29999'"):
        _no_duplicates([(key, 1) for key in [*keys, CountedKey("k29999")]])
    assert CountedKey.compared < 100


def test_captured_body_with_a_duplicate_among_many_keys_is_not_used_and_says_so(house: House) -> None:
    keys = ",".join(f'"k{number}":1' for number in range(30_000))
    body = f'[[],{{{keys},"k29999":2}},{{}}]'.encode()
    known = {"uuid": make_id(31), "timestamp": house.now - 9, "name": "shop.pay.charge"}
    house.write(
        make_event("task-received", args="()", kwargs="{}", retries=0, **known),
        make_event("task-failed", exception="ValueError()", uuid=make_id(31), timestamp=house.now - 8),
        make_event("capture-message", message=make_message(make_id(31), body=body), **known),
    )
    assert "It is not sent: check who can publish events" in house.text(f"/tasks/{make_id(31)}?panel=retry")


def test_decompression_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_BYTES", 100_000)
    event = b'{"type":"worker-online","hostname":"w7@shop","timestamp":1.5}'
    with Connection("memory://") as connection:
        channel = keep_compressed(connection.channel())
        queue = Queue("bombs")(channel)
        queue.declare()
        producer = Producer(channel, routing_key="bombs", serializer="json")
        bodies = []
        consumer = Consumer(channel, [queue], on_message=lambda message: bodies.append(json_of(message)), no_ack=True)
        for body in (event, b"[" + b" " * 1_000_000 + b"]", b"not compressed"):
            packed = body if body == b"not compressed" else zlib.compress(body)
            headers = {"compression": "application/x-gzip"}
            producer.publish(packed, content_type="application/json", content_encoding="binary", headers=headers)
        with consumer:
            for _ in range(3):
                connection.drain_events(timeout=5)
    assert bodies == [event, None, None]


def test_bomb_on_a_real_broker_counts_as_malformed(redis_url: str, receiving: RunReceiver, store: Store) -> None:
    bomb = zlib.compress(b"[" + b" " * (decoding.MOST_BYTES + 1) + b"]", 9)
    with receiving(redis_url) as receiver, Celery(broker=redis_url) as app:
        wait_for(connected(receiver))
        with app.connection_for_write() as connection, redis.Redis.from_url(redis_url) as client:
            message = connection.channel().prepare_message(
                b64encode(bomb).decode(),
                None,
                "application/json",
                "binary",
                {"compression": "application/x-gzip", "hostname": "w7@shop"},
            )
            message["properties"] |= {
                "body_encoding": "base64",
                "delivery_info": {"exchange": "celeryev", "routing_key": "worker.online"},
            }
            channel = f"/{client.connection_pool.connection_kwargs['db']}.celeryev/worker.online"
            assert client.publish(channel, json.dumps(message)) >= 1
        send_event(redis_url, "u-32")
        wait_for(lambda: stored(store, "u-32"))
        wait_for(lambda: health(store).malformed_total == 1)


# A batch in work


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set to let the writer go on; until then it works at its first batch with an event."""
    go_on = threading.Event()
    write = Writer.write

    def slow(self: Writer, deliveries: object, health: object = None) -> object:
        if any(each.events for each in deliveries):  # type: ignore[attr-defined]
            go_on.wait(60)
        return write(self, deliveries, health)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "write", slow)
    yield go_on
    go_on.set()


def test_batch_in_work_is_lag(redis_url: str, receiving: RunReceiver, store: Store, held: threading.Event) -> None:
    with receiving(redis_url) as receiver:
        wait_for(connected(receiver))
        wait_for(lambda: read_receiver_records(store) and health(store).connected)
        send_event(redis_url, "u-31")
        wait_for(lambda: (health(store).lag_seconds or 0.0) > 1.5)
        assert health(store).connected
        held.set()
        wait_for(lambda: stored(store, "u-31"))
        wait_for(lambda: health(store).lag_seconds == 0.0)
    assert health(store).events_total == 1


def test_gap_after_a_slow_batch_does_not_accuse_the_broker(
    own_redis: tuple[str, object],  # noqa: F811
    receiving: RunReceiver,
    store: Store,
    held: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ingest, "SLOW_SECONDS", 2.0)
    url, process = own_redis
    with receiving(url) as receiver:
        wait_for(connected(receiver))
        wait_for(lambda: read_receiver_records(store) and health(store).connected)
        send_event(url, "u-31")
        wait_for(lambda: (health(store).lag_seconds or 0.0) > 2.5)
        process.kill()  # type: ignore[attr-defined]
        held.set()
        wait_for(lambda: read_gaps(store, since=0.0))
    (gap,) = read_gaps(store, since=0.0)
    assert gap.cause.startswith("the receiver was busy with one batch for ")
    assert "lost its connection to the broker" in gap.cause
