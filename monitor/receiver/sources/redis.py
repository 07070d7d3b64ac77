"""Events from Redis: a plain socket, RESP2, one PSUBSCRIBE, parsed in C.

kombu publishes an event on ``{global_keyprefix}/{db}.celeryev/<routing key>`` as a JSON envelope around a
base64 body (kombu/transport/redis.py, Channel._get_publish_topic). Redis keeps nothing for us while we are away.
"""

import socket
from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import Any

import hiredis
import msgspec
from celery import Celery

from monitor.brokers.connection import app_for
from monitor.brokers.connection import explained
from monitor.brokers.connection import transport_options
from monitor.brokers.connection import unavailable
from monitor.errors import BrokerUnavailable
from monitor.errors import Unsupported
from monitor.receiver.helpers import Helpers
from monitor.receiver.sources.base import Body
from monitor.receiver.sources.base import Inbox
from monitor.receiver.sources.base import spool_of
from monitor.receiver.sources.content import JSON
from monitor.receiver.sources.content import Content
from monitor.receiver.sources.content import opened
from monitor.receiver.sources.inlet import closed_by_error
from monitor.receiver.sources.inlet import open_inlet
from monitor.receiver.sources.redis_address import Address
from monitor.receiver.sources.redis_address import open_socket
from monitor.receiver.sources.redis_address import parse_redis_address
from monitor.receiver.sources.wire import Drain
from monitor.records import Delivery
from monitor.records import RefusedEvents
from monitor.settings import Broker
from monitor.settings import Settings

PING_AFTER_SECONDS = 3.0
DEAD_AFTER_SECONDS = 9.0
# hiredis moves all that it still holds each time it gives a reply: of a megabyte at once, ten times the work.
PARSED_BYTES = 16 * 1024
# Transport options that do not change where and how events are published, or that channel_pattern() heeds.
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
    """The part of kombu's virtual message that matters; a worker's headers hold its hostname, rarely more."""

    properties: dict[str, msgspec.Raw]
    headers: dict[str, msgspec.Raw] = {}
    content_type: str | None = msgspec.field(name="content-type", default=None)

    def header(self, name: str) -> str | None:
        """A header that is a text; ValueError for any other."""
        found = self.headers.get(name)
        return None if found is None else msgspec.json.decode(found, type=str | None)

    @property
    def is_base64(self) -> bool:
        """So it says of its body."""
        return bytes(self.properties.get("body_encoding", b"null")) == b'"base64"'


class TextEnvelope(Envelope, gc=False, kw_only=True):
    """Whatever its body is."""

    body: str

    def opened(self) -> bytes:
        """Raises ValueError where the body is not what is said of it."""
        return a2b_base64(self.body) if self.is_base64 else self.body.encode()


class Base64Envelope(Envelope, gc=False, kw_only=True):
    """With base64 without a flaw, which the JSON decoder reads six times as fast as binascii."""

    body: bytes

    def opened(self) -> bytes:
        """The bytes that were wrapped."""
        return self.body


_decode_text_envelope = msgspec.json.Decoder(TextEnvelope).decode
_decode_base64_envelope = msgspec.json.Decoder(Base64Envelope).decode


def unwrap(message: bytes) -> bytes | RefusedEvents | None:
    """The JSON inside an envelope; what is refused where it is in another form; ``None`` in no message of kombu's."""
    try:
        envelope = _envelope(message)
        body = envelope.opened()
        if envelope.content_type in JSON and "compression" not in envelope.headers:
            return body
        return opened(body, Content(envelope.content_type, envelope.header("compression"), envelope.header("hostname")))
    except (ValueError, Base64Error, RecursionError):
        return None


def _envelope(message: bytes) -> TextEnvelope | Base64Envelope:
    try:
        envelope = _decode_base64_envelope(message)
    except msgspec.ValidationError:  # a body that is plain text, or base64 that only binascii reads
        return _decode_text_envelope(message)
    return envelope if envelope.is_base64 else _decode_text_envelope(message)


def channel_pattern(app: Celery, db: int) -> str:
    """What to PSUBSCRIBE to."""
    options = transport_options(app)
    prefix = options.get("fanout_prefix", True)
    prefix = "/{db}." if prefix is True else prefix or ""
    pattern = "/*" if options.get("fanout_patterns", True) else ""
    return f"{options.get('global_keyprefix', '')}{prefix.format(db=db)}{app.conf.event_exchange}{pattern}"


def serves(broker: Broker, settings: Settings) -> bool:
    """Nothing in the address or options of this Redis needs kombu."""
    app = app_for(broker, settings)
    if app.conf.broker_use_ssl or not transport_options(app).keys() <= KNOWN_OPTIONS:
        return False
    try:
        parse_redis_address(broker.url)
    except Unsupported:
        return False
    return True


class RedisSource:
    """The fast path for Redis."""

    name = "redis"
    keeps_events = False
    missed = True

    def __init__(self, broker: Broker, settings: Settings, helpers: Helpers | None = None) -> None:
        self._helpers = helpers or Helpers()
        self._url = broker.url
        self._settings = settings
        self._address = parse_redis_address(broker.url)
        self._pattern = channel_pattern(app_for(broker, settings), self._address.db)
        self._spool = spool_of(broker, settings)
        self._inbox = self._new_inbox()
        self._drain: Drain | None = None

    def _new_inbox(self) -> Inbox:
        bound = self._settings.buffer_bytes
        return Inbox(bound, drops=True, unwrap=unwrap, spool=self._spool)

    @property
    def heard_at(self) -> float:
        return self._inbox.heard_at

    @property
    def kept_until(self) -> float | None:
        return self._inbox.kept_until

    @property
    def waits(self) -> bool:
        return self._inbox.waits

    def connect(self) -> None:
        self.close()
        self._inbox = self._new_inbox()
        with explained(self._url), closed_by_error(open_socket(self._address)) as sock:
            wire = RedisWire(self._url, self._pattern)
            bodies = wire.greet(sock, self._address)
            if bodies:
                self._inbox.put(bodies)
            inlet = open_inlet(sock, self._settings.spool_directory, self._settings.spool_bytes, self._helpers)
            with closed_by_error(inlet):
                self._drain = Drain(sock, wire, self._inbox, drops=True, inlet=inlet)
        self._drain.start()

    def read(self, timeout: float) -> Delivery:
        return self._inbox.take(timeout, self._settings.batch_events, self._settings.batch_seconds)

    def acknowledge(self) -> None:
        """Nothing to say to Redis, which forgot the events as it sent them; the spool may forget them too."""
        self._inbox.commit()

    def discard(self, before: float) -> None:
        self._inbox.discard(before)

    def close(self) -> None:
        drain, self._drain = self._drain, None
        if drain:
            drain.stop()
            self._inbox.close()


class RedisWire:
    """RESP2 in subscriber mode."""

    def __init__(self, url: str, pattern: str) -> None:
        self._url = url
        self._pattern = pattern
        self._reader = hiredis.Reader()
        self._pinged = False

    def greet(self, sock: socket.socket, address: Address) -> list[Body]:
        """Log in and subscribe; returns events that came along. Raises BrokerUnavailable."""
        if address.password is not None:
            user = [address.username] if address.username else []
            self._ask(sock, "AUTH", *user, address.password)
        self._ask(sock, "PSUBSCRIBE", self._pattern)
        return self.feed(b"")

    def _ask(self, sock: socket.socket, *command: Any) -> None:
        sock.sendall(hiredis.pack_command(command))
        while (reply := self._reader.gets()) is False:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError("the broker closed the connection")
            self._reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise unavailable(self._url, reply)

    def feed(self, data: bytes) -> list[Body]:
        reader = self._reader
        gets = reader.gets
        self._pinged = False
        bodies: list[Body] = []
        for start in range(0, len(data) or 1, PARSED_BYTES):
            reader.feed(data[start : start + PARSED_BYTES])
            while (reply := gets()) is not False:
                if type(reply) is list:
                    if len(reply) == 4:  # pmessage, pattern, channel, data; others confirm and pong
                        bodies.append(reply[3])
                elif isinstance(reply, hiredis.ReplyError):
                    raise unavailable(self._url, reply)
        return bodies

    def tick(self, idle: float) -> bytes:
        if idle > DEAD_AFTER_SECONDS:
            raise TimeoutError(f"no answer for {idle:.0f} s")
        if idle < PING_AFTER_SECONDS or self._pinged:
            return b""
        self._pinged = True
        return bytes(hiredis.pack_command(("PING",)))

    def explain(self, error: Exception) -> BrokerUnavailable:
        return unavailable(self._url, error)
