"""The fast path for Redis: who is let in, where events are looked for, and what a broken connection does."""

import gc
import json
import resource
import select
import socket
import ssl
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType

import pytest
import redis

from celery_monitor.errors import BrokerUnavailable, Unsupported
from celery_monitor.receiver.sources.buffer import PING_AFTER_SECONDS
from celery_monitor.receiver.sources.redis import parse_redis_address, unwrap
from tests.receiver.sources.conftest import MakeSource
from tests.receiver.traffic import numbered, publisher, read_all, read_dropping, read_for, read_rest, wait_until_read
from tests.servers import RedisServer, Tls, free_port, make_certificate, proxy, running_redis
from tests.workers import wait_for

BOTH = pytest.mark.parametrize("source_name", ["redis", "kombu"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path, "--requirepass", "s3cret/+", "--unixsocket", str(tmp_path / "r.sock")) as started:
        yield started


def arrives(source_of: MakeSource, url: str, name: str, **options: object) -> None:
    """An event that kombu publishes at ``url`` with these transport options reaches the source."""
    source = source_of(url, source=name, broker_options=options)
    with publisher(url, **options) as publish:
        publish.send("task.received", numbered(21))
    assert [event.clock for event in read_all(source, 1)] == [21]
    source.close()  # while there is a server: to connect again to one that ends leaves a socket of TLS open (CPython)


@BOTH
def test_password(server: RedisServer, source_of: MakeSource, source_name: str) -> None:
    arrives(source_of, f"redis://:s3cret%2F%2B@127.0.0.1:{server.port}/3", source_name)


@BOTH
@pytest.mark.parametrize("login", [":wr0ng-one@", ""])
def test_wrong_or_no_password_is_reported_and_not_shown(
    server: RedisServer, source_of: MakeSource, source_name: str, login: str
) -> None:
    with pytest.raises(BrokerUnavailable) as caught:
        source_of(f"redis://{login}127.0.0.1:{server.port}/3", source=source_name).read(3)
    assert "Check the user name and password" in caught.value.message
    assert f"127.0.0.1:{server.port}" in caught.value.message
    assert "wr0ng" not in caught.value.message


def test_acl_user_needs_only_what_events_need(server: RedisServer, source_of: MakeSource) -> None:
    admin = redis.Redis(port=server.port, password="s3cret/+")
    admin.acl_setuser(
        "watcher", enabled=True, passwords=["+w4tch"], commands=["+psubscribe", "+ping"], channels=["/3.celeryev/*"]
    )
    admin.close()
    url = f"redis://watcher:w4tch@127.0.0.1:{server.port}/3"
    source = source_of(url)
    with publisher(f"redis://:s3cret%2F%2B@127.0.0.1:{server.port}/3") as publish:
        publish.send("worker.heartbeat", numbered(5))
    assert [event.clock for event in read_all(source, 1)] == [5]
    with pytest.raises(BrokerUnavailable, match="lacks permissions"):
        source_of(f"redis://watcher:w4tch@127.0.0.1:{server.port}/4")


def test_unix_socket(server: RedisServer, source_of: MakeSource) -> None:
    source = source_of(f"redis+socket://:s3cret%2F%2B@{server.directory}/r.sock?virtual_host=6")
    assert source.name == "redis"
    with publisher(f"redis://:s3cret%2F%2B@127.0.0.1:{server.port}/6") as publish:
        publish.send("task.received", numbered(22))
    assert [event.clock for event in read_all(source, 1)] == [22]


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"global_keyprefix": "shop:"},
        {"fanout_prefix": "/other{db}."},
        {"fanout_prefix": False},
        {"fanout_patterns": False},
        {"global_keyprefix": "shop:", "fanout_prefix": "/p.", "fanout_patterns": False, "visibility_timeout": 77},
    ],
    ids=str,
)
def test_prefixes_and_patterns(
    redis_url: str, source_of: MakeSource, source_name: str, options: dict[str, object]
) -> None:
    arrives(source_of, redis_url, source_name, **options)


def test_another_database_and_another_prefix_stay_apart(tmp_path: Path, source_of: MakeSource) -> None:
    with running_redis(tmp_path) as server:
        source = source_of(f"redis://127.0.0.1:{server.port}/5")
        for number, (db, prefix) in enumerate([(15, ""), (0, ""), (5, "shop:"), (5, "")]):
            with publisher(f"redis://127.0.0.1:{server.port}/{db}", global_keyprefix=prefix) as publish:
                publish.send("task.received", numbered(number))
        assert [event.clock for event in read_rest(source, f"redis://127.0.0.1:{server.port}/5")] == [3]


@BOTH
def test_tls(tmp_path: Path, source_of: MakeSource, source_name: str) -> None:
    made = make_certificate(tmp_path)
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(made.certificate), "--tls-key-file", str(made.key)]
    with running_redis(tmp_path, *tls, "--tls-ca-cert-file", str(made.certificate)):
        options = f"ssl_cert_reqs=required&ssl_ca_certs={made.certificate}"
        options += f"&ssl_certfile={made.certificate}&ssl_keyfile={made.key}"
        arrives(source_of, f"rediss://localhost:{port}/2?{options}", source_name)


def test_tls_burst_of_large_messages(tmp_path: Path, source_of: MakeSource) -> None:
    made = make_certificate(tmp_path)
    with running_redis(tmp_path) as server, proxy(server.port, made) as front:
        source = source_of(
            f"rediss://localhost:{front.port}/2?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={made.certificate}"
        )
        with publisher(f"redis://127.0.0.1:{server.port}/2") as publish:
            for number in range(200):
                publish.send("task.received", numbered(number).replace("shop.pay", "x" * 20_000))
        assert [event.clock for event in read_all(source, 200)] == list(range(200))


def test_tls_events_that_come_with_the_subscription_are_not_left_until_more_comes(
    tmp_path: Path, source_of: MakeSource
) -> None:
    made = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    envelope = json.dumps({"body": numbered(7), "properties": {}, "content-type": "application/json"})
    confirmed = b"*3\r\n$10\r\npsubscribe\r\n$1\r\np\r\n:1\r\n"
    event = f"*4\r\n$8\r\npmessage\r\n$1\r\np\r\n$1\r\nc\r\n${len(envelope)}\r\n{envelope}\r\n".encode()

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with accepted, suppress(OSError):
            tls = Tls(accepted, context)
            tls.recv(1000)  # PSUBSCRIBE
            tls.sendall(confirmed + event)  # one record of TLS
            while tls.recv(1000):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        source = source_of(f"rediss://localhost:{listener.getsockname()[1]}/2?ssl_cert_reqs=none")
        assert [event.clock for event in source.read(PING_AFTER_SECONDS - 1).events] == [7]
        source.close()
        thread.join(60)


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path, source_of: MakeSource) -> None:
    made = make_certificate(tmp_path)
    with running_redis(tmp_path) as server, proxy(server.port, made) as front:
        with pytest.raises(BrokerUnavailable, match="ssl_ca_certs"):
            source_of(f"rediss://localhost:{front.port}/2?ssl_cert_reqs=required")
        source = source_of(f"rediss://localhost:{front.port}/2?ssl_cert_reqs=none")
        assert source.read(0.1).events == []
        source.close()


def test_nobody_there(source_of: MakeSource) -> None:
    with pytest.raises(BrokerUnavailable, match=r"redis://127.0.0.1:\d+/2: .*refused.*Check that the broker runs"):
        source_of(f"redis://127.0.0.1:{free_port()}/2")


@BOTH
def test_it_is_subscribed_when_it_is_connected(tmp_path: Path, source_of: MakeSource, source_name: str) -> None:
    """Whatever is sent from then on is received: kombu alone subscribes some time later."""
    with running_redis(tmp_path) as server, closing(redis.Redis(port=server.port)) as client:
        received = []
        for _ in range(30):
            source = source_of(f"redis://127.0.0.1:{server.port}/2", source=source_name)
            received.append(client.publish("/2.celeryev/task.received", "{}"))
            source.close()
            wait_for(lambda: client.pubsub_numpat() == 0, what="the end of the subscription")
        assert received == [1] * 30


@BOTH
def test_a_killed_broker_is_noticed_and_a_restarted_one_read_again(
    tmp_path: Path, source_of: MakeSource, source_name: str
) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/2"
    with running_redis(tmp_path, port=port) as server:
        source = source_of(url, source=source_name)
        with publisher(url) as publish:
            publish.send("task.received", numbered(1))
        wait_for(lambda: source.waits, what="the event")
        server.stop()
        # What had arrived is still given out.
        assert [event.clock for event in source.read(1).events] == [1]
        source.acknowledge()
        with pytest.raises(BrokerUnavailable):
            source.read(5)
        with pytest.raises(BrokerUnavailable):
            source.connect()
    with running_redis(tmp_path, port=port):
        source.connect()
        with publisher(url) as publish:
            publish.send("task.received", numbered(2))
        assert [event.clock for event in read_all(source, 1)] == [2]


@pytest.mark.slow
def test_a_peer_that_fell_silent_is_noticed(tmp_path: Path, source_of: MakeSource) -> None:
    with running_redis(tmp_path) as server, proxy(server.port) as front:
        source = source_of(f"redis://127.0.0.1:{front.port}/2")
        assert source.read(4).events == []  # a ping was answered meanwhile
        front.fall_silent()
        with pytest.raises(BrokerUnavailable, match="no answer"):
            read_for(source, 60)


def test_what_the_buffer_cannot_hold_is_dropped_and_counted_exactly(redis_url: str, source_of: MakeSource) -> None:
    source = source_of(redis_url, buffer_bytes=100_000, batch_events=50, spool_bytes=0)
    source.guard()
    with publisher(redis_url) as publish:
        for number in range(2000):
            publish.send("task.multi", f"[{numbered(2 * number)}, {numbered(2 * number + 1)}]")
    wait_until_read(redis_url)
    events, dropped = read_dropping(source, 4000)
    assert events + dropped == 4000
    assert 100 < events < 3000  # the pipe holds some as well
    with publisher(redis_url) as publish:
        publish.send("task.received", numbered(7))
    assert [event.clock for event in read_all(source, 1)] == [7]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"body": 7, "properties": {}}',
        b'{"body": "YQ=!", "properties": {"body_encoding": "base64"}}',
        b'{"body": "YQ==", "headers": {"compression": "application/x-gzip"}, "properties": {}}',
        b"\xff" * 50,
    ],
)
def test_an_envelope_that_is_none_is_not_opened(message: bytes) -> None:
    assert unwrap(message) is None


@pytest.mark.parametrize(
    ("body", "encoding", "opened"),
    [
        ('{"é": 1}', None, '{"é": 1}'.encode()),
        ("YWJj", None, b"YWJj"),  # looks like base64, and is not said to be
        ("YWJj", "base64", b"abc"),
        ("YWJj\nZA==", "base64", b"abcd"),  # in lines, as base64.encodebytes writes it
        ("", "base64", b""),
    ],
)
def test_a_body_is_taken_as_its_encoding_says(body: str, encoding: str | None, opened: bytes) -> None:
    assert unwrap(json.dumps({"body": body, "properties": {"body_encoding": encoding}}).encode()) == opened


@pytest.mark.parametrize(
    "url",
    [
        "redis://a;redis://b",
        "redis://localhost/0?credential_provider=shop.Provider",
        "redis+socket:///run/redis.sock?client_name=x",
        "redis://localhost/zero",
        "rediss://localhost/0?ssl_ca_path=/etc/ssl",
    ],
)
def test_unusual_addresses_are_left_to_kombu(url: str) -> None:
    with pytest.raises(Unsupported):
        parse_redis_address(url)


def left_open(connect: Callable[[], object], match: str) -> list[str]:
    """What is found unclosed after a connection that failed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(BrokerUnavailable, match=match):
            connect()
        gc.collect()
    return [str(each.message) for each in caught if each.category is ResourceWarning]


def test_a_unix_socket_that_is_not_there_leaves_none_of_ours_open(tmp_path: Path, source_of: MakeSource) -> None:
    address = f"redis+socket://{tmp_path}/r.sock"
    assert source_of(address, connect=False).name == "redis"
    assert left_open(lambda: source_of(address), "No such file") == []


def test_without_files_for_a_process_the_receiver_itself_goes_on_reading(
    redis_url: str, source_of: MakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(redis_url)
    source.close()
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path("/dev/null").open("rb") as lowest:
        free = lowest.fileno()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))  # for the broker's socket alone
        source.connect()
        source.guard()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "Too many open files" in caplog.text
    with publisher(redis_url) as publish:
        publish.send("task.received", numbered(3))
    assert [event.clock for event in read_all(source, 1)] == [3]


def test_a_connection_that_is_reset_as_tls_begins_leaves_no_socket_open(source_of: MakeSource) -> None:
    resets = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset(frame: FrameType, event: str, argument: object) -> None:
            """At the first step of Python's TLS socket for which there is a connection."""
            nonlocal resets
            inside = frame.f_code.co_filename == ssl.__file__ and frame.f_code.co_qualname.startswith("SSLSocket.")
            if inside and select.select([listener], [], [], 0)[0]:
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()  # which resets, for the sake of the option
                resets += 1

        def connect() -> None:
            sys.setprofile(reset)
            try:
                source_of(f"rediss://127.0.0.1:{listener.getsockname()[1]}/2")
            finally:
                sys.setprofile(None)

        assert left_open(connect, "127.0.0.1") == []
    assert resets == 1
