"""Events from Redis: a plain socket, RESP2, one PSUBSCRIBE, parsed in C.

kombu publishes an event on ``{global_keyprefix}/{db}.celeryev/<routing key>`` as a JSON envelope around a
base64 body (kombu/transport/redis.py, Channel._get_publish_topic). Redis keeps nothing for us while we are away.
"""

import logging
import socket
import ssl
from binascii import Error as Base64Error
from binascii import a2b_base64
from contextlib import closing
from typing import Any, NamedTuple

import hiredis
import msgspec
from celery import Celery
from kombu.utils.url import url_to_parts

from celery_monitor.brokers.connection import CONNECT_SECONDS, app_for, explained, parse_address, transport_options
from celery_monitor.errors import Unsupported
from celery_monitor.receiver.decode import JSON, Content, to_json
from celery_monitor.receiver.helper_failures import FEWEST_FAILURES, SOCKET_PROCESS, HelperFailures
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.sources.buffer import CLOSED, MESSAGE, read_redis
from celery_monitor.receiver.sources.reader import (
    BrokerSocket,
    OwnSocket,
    QuietReader,
    ReaderThread,
    SocketProcess,
    closed_by_error,
)
from celery_monitor.records.receiver import Delivery, RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

log = logging.getLogger(__name__)

DEFAULT_PORT = 6379
# What may stand in a URL; all else is left to kombu.
KNOWN_PARTS = {"transport", "hostname", "port", "userid", "password", "virtual_host", "ssl"}
KNOWN_TLS = {"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}

# hiredis moves its whole buffer for each reply: a megabyte at once would be ten times the work.
PARSED_BYTES = 16 * 1024
# Transport options that do not change where and how events are published, or that channel_pattern() uses.
KNOWN_OPTIONS = frozenset(
    {
        "global_keyprefix",
        "fanout_prefix",
        "fanout_patterns",
        "sep",
        "ack_emulation",
        "unacked_key",
        "unacked_index_key",
        "unacked_mutex_key",
        "unacked_mutex_expire",
        "visibility_timeout",
        "unacked_restore_limit",
        "unacked_restore_interval",
        "unacked_restore_throttle",
        "socket_timeout",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_keepalive_options",
        "queue_order_strategy",
        "max_connections",
        "health_check_interval",
        "retry_on_timeout",
        "priority_steps",
        "client_name",
        "body_encoding",
        "polling_interval",
        "max_retries",
        "interval_start",
        "interval_step",
        "interval_max",
    }
)


class Envelope(msgspec.Struct, gc=False, kw_only=True):
    """The parts of kombu's virtual message that are needed; a worker's headers have its hostname, rarely more."""

    properties: dict[str, msgspec.Raw]
    headers: dict[str, msgspec.Raw] = {}
    content_type: str | None = msgspec.field(name="content-type", default=None)

    def header(self, name: str) -> str | None:
        """A text header; raises ValueError for any other."""
        found = self.headers.get(name)
        return None if found is None else msgspec.json.decode(found, type=str | None)

    @property
    def is_base64(self) -> bool:
        """Whether its body is in base64."""
        return bytes(self.properties.get("body_encoding", b"null")) == b'"base64"'


class TextEnvelope(Envelope, gc=False, kw_only=True):
    """With any body."""

    body: str

    def unwrap(self) -> bytes:
        """Raises ValueError where the body is not in its stated encoding."""
        return a2b_base64(self.body) if self.is_base64 else self.body.encode()


class Base64Envelope(Envelope, gc=False, kw_only=True):
    """With strict base64, which the JSON decoder reads six times as fast as binascii."""

    body: bytes

    def unwrap(self) -> bytes:
        return self.body


_decode_text_envelope = msgspec.json.Decoder(TextEnvelope).decode
_decode_base64_envelope = msgspec.json.Decoder(Base64Envelope).decode


def unwrap(message: bytes) -> bytes | RefusedEvents | None:
    """The JSON inside an envelope; RefusedEvents for another format; ``None`` if it is not a message of kombu's."""
    try:
        envelope = _envelope(message)
        body = envelope.unwrap()
        if envelope.content_type in JSON and "compression" not in envelope.headers:
            return body
        return to_json(
            body, Content(envelope.content_type, envelope.header("compression"), envelope.header("hostname"))
        )
    except (ValueError, Base64Error, RecursionError):
        return None


def _envelope(message: bytes) -> TextEnvelope | Base64Envelope:
    try:
        envelope = _decode_base64_envelope(message)
    except msgspec.ValidationError:  # a body that is plain text, or base64 that only binascii reads
        return _decode_text_envelope(message)
    return envelope if envelope.is_base64 else _decode_text_envelope(message)


def channel_pattern(app: Celery, db: int) -> str:
    """The pattern to PSUBSCRIBE to."""
    options = transport_options(app)
    prefix = options.get("fanout_prefix", True)
    prefix = "/{db}." if prefix is True else prefix or ""
    pattern = "/*" if options.get("fanout_patterns", True) else ""
    return f"{options.get('global_keyprefix', '')}{prefix.format(db=db)}{app.conf.event_exchange}{pattern}"


def serves(broker: Broker, settings: Settings) -> bool:
    """Whether nothing in the address or options of this Redis needs kombu."""
    app = app_for(broker, settings)
    if app.conf.broker_use_ssl or not transport_options(app).keys() <= KNOWN_OPTIONS:
        return False
    try:
        parse_redis_address(broker.url)
    except Unsupported:
        return False
    return True


class Address(NamedTuple):
    """The address of a Redis, with credentials."""

    host: str
    port: int
    path: str | None  # a unix socket
    username: str | None
    password: str | None
    db: int
    tls: dict[str, Any] | None


def parse_redis_address(url: str) -> Address:
    """Parses a redis, rediss or redis+socket URL as kombu does. Raises Unsupported for what only kombu serves."""
    if ";" in url:
        raise Unsupported("several Redis addresses are served by kombu")
    if url.partition("://")[0].endswith("+socket"):
        return _socket_address(url)
    parts = parse_address(url)
    tls = parts.get("ssl") or ({} if parts["transport"] == "rediss" else None)
    unusual = (parts.keys() - KNOWN_PARTS) | ((tls or {}).keys() - KNOWN_TLS)
    if unusual:
        raise Unsupported(f"kombu serves these options of a Redis URL: {', '.join(sorted(unusual))}")
    return Address(
        host=parts["hostname"] or "127.0.0.1",
        port=parts["port"] or DEFAULT_PORT,
        path=None,
        username=parts["userid"],
        password=parts["password"],
        db=_database(parts["virtual_host"]),
        tls=tls,
    )


def _socket_address(url: str) -> Address:
    parts = url_to_parts(url)
    unusual = parts.query.keys() - {"virtual_host"}
    if unusual:
        raise Unsupported(f"kombu serves these options of a Redis URL: {', '.join(sorted(unusual))}")
    db = _database(parts.query.get("virtual_host"))
    return Address("", 0, f"/{parts.path}", parts.username, parts.password, db, None)


def _database(virtual_host: str | None) -> int:
    text = (virtual_host or "0").lstrip("/") or "0"
    if not text.isdecimal():
        raise Unsupported(f"a Redis database is a number, not {text!r}: /0, /1 ...")
    return int(text)


def open_socket(address: Address) -> socket.socket:
    """A connected socket, after at most CONNECT_SECONDS a step, with TLS as kombu and redis-py would do it."""
    if address.path is not None:
        return _connected(socket.AF_UNIX, address.path)
    tls = None if address.tls is None else _tls_context(address.tls)
    problem = OSError(f"{address.host} has no address")
    for family, _, _, _, endpoint in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        try:
            sock = _connected(family, endpoint, tls, address.host)
        except OSError as error:
            problem = error
            continue
        with closed_by_error(sock):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            return sock
    raise problem


def _connected(family: int, endpoint: Any, tls: ssl.SSLContext | None = None, host: str = "") -> socket.socket:
    """A socket connected to ``endpoint``, before the TLS handshake.

    The socket is wrapped in TLS before it connects: if the server resets the connection while a connected socket is
    wrapped, Python creates a second object, raises, and leaves that object open.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    with closed_by_error(sock):
        sock.settimeout(CONNECT_SECONDS)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    with closed_by_error(sock):
        sock.connect(endpoint)
        return sock


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    # kombu reads a rediss URL without ssl_cert_reqs as "none", with a warning, and many users depend on it.
    requirement = options.get("ssl_cert_reqs", ssl.CERT_REQUIRED if options else ssl.CERT_NONE)
    context.check_hostname = requirement != ssl.CERT_NONE and options.get("ssl_check_hostname", True)
    context.verify_mode = requirement
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context


class RedisSource(Source):
    """The fast path for Redis."""

    name = "redis"
    keeps_events = False

    def __init__(self, broker: Broker, settings: Settings, helpers: HelperFailures | None = None) -> None:
        super().__init__(broker, settings)
        self._helpers = helpers or HelperFailures()
        self._address = parse_redis_address(broker.url)
        self._pattern = channel_pattern(app_for(broker, settings), self._address.db)
        self._socket: BrokerSocket | None = None  # if a thread reads it
        self._quiet: QuietReader | None = None

    def connect(self) -> None:
        self.close()
        self._quiet = None
        with explained(self._url), closed_by_error(open_socket(self._address)) as sock:
            subscribe(sock, self._address, self._pattern)
            if isinstance(sock, ssl.SSLSocket) or self._process_keeps_failing():  # the state of TLS is in this process
                self._read_from(self._start_thread(sock), RedisFormat(), unwrap)
                return
            own, start = OwnSocket(sock), self._start_process
            self._quiet = QuietReader(self._url, own, RedisFormat(), self._settings, unwrap, self._folder, start)
        self._use(self._quiet)
        self._quiet.hand_over()  # at once: a burst of 2,000,000 events/s is cut off before a process has started

    def read(self, timeout: float) -> Delivery:
        if self._socket is not None:
            self._socket.yield_to_reader()
        return super().read(timeout)

    def guard(self) -> None:
        if (quiet := self._quiet) is not None:
            quiet.hand_over()

    def discard(self, before: float) -> None:
        self.guard()  # what others have not stored yet may be much
        super().discard(before)

    def _process_keeps_failing(self) -> bool:
        failing = self._helpers.failures(SOCKET_PROCESS) >= FEWEST_FAILURES
        if failing:
            log.warning(
                "the broker's socket is read by a thread, as the process for it ended unexpectedly several times"
            )
        return failing

    def _start_process(self, sock: socket.socket, before: int) -> SocketProcess:
        return SocketProcess(sock, self._settings, self._folder, self._helpers, before)

    def _start_thread(self, sock: socket.socket) -> ReaderThread:
        self._socket = broker = BrokerSocket(sock)

        def read(out: int) -> None:
            with closing(broker):
                read_redis(broker, out, self._settings.buffer_bytes, self._folder, self._settings.spool_bytes)

        thread = ReaderThread(self._url, read)
        thread.start()
        return thread


def subscribe(sock: socket.socket, address: Address, pattern: str) -> None:
    """Logs in and subscribes. Raises ConnectionError where Redis refuses."""
    if address.password is not None:
        user = [address.username] if address.username else []
        _ask(sock, "AUTH", *user, address.password)
    _ask(sock, "PSUBSCRIBE", pattern)


def _ask(sock: socket.socket, *command: Any) -> None:
    sock.sendall(hiredis.pack_command(command))
    reader = hiredis.Reader()
    while (reply := reader.gets()) is False:
        data = sock.recv(1)  # events behind the reply are left to the reader
        if not data:
            raise ConnectionError(CLOSED)
        reader.feed(data)
    if isinstance(reply, hiredis.ReplyError):
        raise ConnectionError(str(reply))


class RedisFormat:
    """Parses RESP2 in subscriber mode."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._skipped: bytes | None = None

    @property
    def pending(self) -> bool:
        return bool(self._skipped) or self._reader.has_data()

    def restart(self) -> None:
        self._reader = hiredis.Reader()
        self._skipped = b""

    def feed(self, data: bytes) -> list[bytes]:
        if self._skipped is not None:
            data = self._skipped + data
            begin = data.find(MESSAGE)
            if begin < 0:
                self._skipped = data[-len(MESSAGE) :]
                return []
            data, self._skipped = data[begin:], None
        return self._parse(data)

    def _parse(self, data: bytes) -> list[bytes]:
        reader = self._reader
        gets = reader.gets
        bodies: list[bytes] = []
        for start in range(0, len(data), PARSED_BYTES):
            reader.feed(data[start : start + PARSED_BYTES])
            while (reply := gets()) is not False:
                if type(reply) is list:
                    if len(reply) == 4:  # pmessage, pattern, channel, data; others confirm and pong
                        bodies.append(reply[3])
                elif isinstance(reply, hiredis.ReplyError):
                    raise ConnectionError(str(reply))
        return bodies
