"""Events from RabbitMQ, through a queue of the receiver's own that keeps them while no receiver runs.

py-amqp opens the connection and the queue. It needs several calls for each delivery to build a Message, so the frames
after basic.consume are parsed here, and only frames other than deliveries are passed to py-amqp.

Workers publish events as transient messages, which a classic queue, durable or not, loses when its broker restarts; a
quorum queue keeps them. Events that were on their way to the broker at that moment are lost in any case. So beside the
queue there is a witness: a classic queue with one transient message, which is gone after a restart. Its exclusive
consumer also makes sure that no second receiver uses the same name. The event queue is bounded.
"""

import logging
import struct
import time
from contextlib import closing, suppress
from typing import Any, NamedTuple

from amqp import Channel, Connection, Message, basic_message
from amqp.exceptions import AMQPError, NotFound, PreconditionFailed
from amqp.spec import Basic
from celery import Celery
from kombu import Connection as KombuConnection

from celery_monitor.brokers.connection import CONNECT_SECONDS, app_for, explained
from celery_monitor.receiver.decode import Content, to_json
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.sources.buffer import Buffer, pump
from celery_monitor.receiver.sources.reader import SEND_SECONDS, Body, BrokerSocket, Packed, ReaderThread, pack
from celery_monitor.records.receiver import RefusedEvents
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

log = logging.getLogger(__name__)

LONGEST_MILLISECONDS = 2**32 - 1  # RabbitMQ's limit
EXPIRES_AFTER_TTLS = 2  # an abandoned queue is deleted long after its last event has expired
PREFETCH_BATCHES = 2  # one batch is stored while the next arrives
MOST_PREFETCH = 65_535
TRANSIENT = 1


class Declared(NamedTuple):
    """The queue, ready to consume from."""

    channel: Channel
    name: str
    missed: bool  # events may be missing that were sent since it was last consumed from
    remembered: bool  # the broker has not restarted since


def queue_name(app: Celery, settings: Settings) -> str:
    """Celery's own form: prefix and node id."""
    return f"{app.conf.event_queue_prefix}.{settings.node_id}"


def witness_name(queue: str) -> str:
    """The classic queue beside the event queue, which loses its message when the broker restarts."""
    return f"{queue}.witness"


def queue_arguments(settings: Settings) -> dict[str, Any]:
    """The limits of the queue in time, number and bytes. The oldest events are dropped first."""
    ttl = int(settings.event_queue_ttl * 1000)
    return {
        "x-message-ttl": min(ttl, LONGEST_MILLISECONDS),
        "x-expires": min(ttl * EXPIRES_AFTER_TTLS, LONGEST_MILLISECONDS),
        "x-max-length": settings.event_queue_max,
        "x-max-length-bytes": settings.event_queue_max_bytes,
    }


def prefetch(settings: Settings) -> int:
    """Messages that may be delivered and not committed."""
    return min(settings.batch_events * PREFETCH_BATCHES, MOST_PREFETCH)


def declare(connection: Connection, app: Celery, settings: Settings) -> Declared:
    """Declares and binds the queue, and reserves its name for this connection.

    A queue or an exchange that exists with other arguments is used as it is: deleting it could lose events.
    """
    exchange = app.conf.event_exchange
    name = queue_name(app, settings)
    before = _length(connection, name)
    remembered = _consume_witness(connection, name, settings)
    # As workers declare it: kombu's Exchange("celeryev", type="topic") is durable.
    channel = _or_as_it_is(
        connection,
        connection.channel(),
        "exchange_declare",
        {"exchange": exchange, "type": "topic", "durable": True, "auto_delete": False},
    )
    channel = _declare_queue(connection, channel, name, settings)
    channel.queue_bind(queue=name, exchange=exchange, routing_key="#")
    channel.basic_qos(prefetch_size=0, prefetch_count=prefetch(settings), a_global=False)
    overflowed = before is not None and before >= settings.event_queue_max
    return Declared(channel, name, before is None or overflowed or not remembered, remembered)


def remember(declared: Declared) -> None:
    """Publishes the witness's message, now that we consume: a failed attempt must not count."""
    if not declared.remembered:
        message = Message(b"consumed since the broker started", delivery_mode=TRANSIENT)
        # Not basic_publish: it reads first, and would consume events that have begun to arrive.
        arguments = (0, "", witness_name(declared.name), False, False)
        declared.channel.send_method(Basic.Publish, "Bssbb", arguments, message)


def _length(connection: Connection, name: str) -> int | None:
    """How many events wait in the queue; ``None`` where it does not exist."""
    channel = connection.channel()
    try:
        length: int = channel.queue_declare(queue=name, passive=True).message_count
    except NotFound:  # which closes the channel
        return None
    channel.close()
    return length


def _consume_witness(connection: Connection, name: str, settings: Settings) -> bool:
    """Consumes the witness until the connection ends; returns whether the broker has run since it was last consumed."""
    name = witness_name(name)
    arguments = {"x-expires": queue_arguments(settings)["x-expires"], "x-queue-type": "classic"}
    channel = _or_as_it_is(
        connection,
        connection.channel(),
        "queue_declare",
        {"queue": name, "durable": True, "auto_delete": False, "arguments": arguments},
    )
    length = channel.queue_declare(queue=name, passive=True).message_count
    # A queue with a consumer does not expire. The message is never acknowledged, so it stays in the queue.
    channel.basic_consume(name, exclusive=True, callback=lambda _: None)
    return bool(length)


def _declare_queue(connection: Connection, channel: Channel, name: str, settings: Settings) -> Channel:
    wanted = {"queue": name, "durable": True, "auto_delete": False}
    limits = queue_arguments(settings)
    quorum = {"x-queue-type": "quorum", **limits}
    if _major_version(connection) >= 4:  # where the default drops a message after 20 deliveries
        quorum["x-delivery-limit"] = -1
    try:
        channel.queue_declare(**wanted, arguments=quorum)
    except PreconditionFailed as error:
        channel = connection.channel()
        if _length(connection, name) is None:
            log.warning("%s; events that wait in the queue are lost when the broker restarts.", error.reply_text)
            channel.queue_declare(**wanted, arguments=limits)
        else:
            _warn_of_other_arguments(error)
    return channel


def _major_version(connection: Connection) -> int:
    version = str(connection.server_properties.get("version", "")).partition(".")[0]
    return int(version) if version.isdigit() else 0


def _or_as_it_is(connection: Connection, channel: Channel, method: str, arguments: dict[str, Any]) -> Channel:
    try:
        getattr(channel, method)(**arguments)
    except PreconditionFailed as error:
        _warn_of_other_arguments(error)
        channel = connection.channel()
        getattr(channel, method)(**{**arguments, "passive": True})
    return channel


def _warn_of_other_arguments(error: PreconditionFailed) -> None:
    log.warning(
        "%s; it is used as it is. To apply the current settings, delete it, or choose another node_id.",
        error.reply_text,
    )


HEARTBEAT_SECONDS = 5  # the peer is dead after two without data
METHOD, HEADER, BODY = 1, 2, 3
FRAME_OVERHEAD = 8  # type, channel and size before the payload, the end mark behind it
FRAME_END = 0xCE
DELIVER = struct.pack(">HH", 60, 60)
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_frame = struct.Struct(">BHI").unpack_from
_body_size = struct.Struct(">Q").unpack_from
_ack = struct.Struct(">BHIHHQBB").pack
MOST_PROPERTIES = 1000  # cached message properties; those of a worker are constant


class AmqpSource(Source):
    """The fast path for RabbitMQ: a durable queue, acknowledged after the commit."""

    name = "amqp"
    keeps_events = True

    def __init__(self, broker: Broker, settings: Settings) -> None:
        super().__init__(broker, settings)
        self._app = app_for(broker, settings)

    def connect(self) -> None:
        self.close()
        with explained(self._url):
            connection = open_connection(self._app.connection_for_read(heartbeat=HEARTBEAT_SECONDS))
            transport: Connection = connection.connection
            try:
                declared = declare(transport, self._app, self._settings)
                declared.channel.basic_consume(declared.name)
                remember(declared)
                self.missed = declared.missed
            except BaseException:
                transport.collect()
                raise
        self._start(connection, declared.channel)

    def _start(self, connection: KombuConnection, channel: Channel) -> None:
        broker = BrokerSocket(connection.connection.transport.sock)
        buffer = Buffer(self._settings.buffer_bytes)
        stream = AmqpStream(connection, channel, buffer)

        def read(out: int) -> None:
            with closing(broker):
                pump(broker, out, stream, buffer)
                with suppress(OSError):
                    broker.send(stream.goodbye())

        thread = ReaderThread(self._url, read)
        self._read_from(thread, Packed(), refused=stream.refused)
        thread.start()


def open_connection(connection: KombuConnection) -> KombuConnection:
    """Connect, trying each address of a failover list once."""
    connection.connect_timeout = int(CONNECT_SECONDS)
    if connection.transport.driver_type == "amqp" and isinstance(connection.ssl, dict):
        # kombu reads ssl_ca_certs=... from a URL, and py-amqp expects ca_certs.
        connection.ssl = {name.removeprefix("ssl_"): value for name, value in connection.ssl.items()}
        if connection.ssl.pop("check_hostname", True) and connection.ssl.get("cert_reqs"):
            connection.ssl.setdefault("server_hostname", connection.hostname)
    tries = max(len(connection.alt), 1)
    connection.ensure_connection(max_retries=tries, interval_start=0, interval_step=0, timeout=CONNECT_SECONDS * tries)
    return connection


class AmqpStream:
    """AMQP 0-9-1 after basic.consume."""

    errors: tuple[type[Exception], ...] = (OSError, AMQPError)
    tick_seconds = 0.5
    keeps_events = True

    def __init__(self, kombu: KombuConnection, channel: Channel, buffer: Buffer) -> None:
        self._kombu = kombu  # keeps the connection open
        self._connection: Connection = kombu.connection
        self._buffer = buffer
        self.refused: set[RefusedEvents] = set()
        self._channel_id: int = channel.channel_id
        self._rest = b""
        self._awaited = 0  # bytes of the current body that have not arrived
        self._chunks: list[bytes] = []
        self._content: Content | None = None  # None: uncompressed JSON
        self._contents: dict[bytes, Content | None] = {}
        self._committed = 0
        self._acknowledged = 0
        self._sent_at = time.monotonic()

    def commit(self, number: int) -> None:
        # Deliveries of a channel are numbered from 1 in their order; acknowledged at the next tick.
        self._committed = max(number, self._committed)

    def receive(self, data: bytes) -> None:
        if bodies := self.split(data):
            self._buffer.keep(pack(bodies, self.refused))
        else:
            self._buffer.last_received_at = time.time()

    def resume(self) -> None: ...

    def split(self, data: bytes) -> list[Body]:
        """The bodies that are complete now; raises ConnectionError if it is not AMQP."""
        data = self._rest + data if self._rest else data
        bodies: list[Body] = []
        start, length = 0, len(data)
        while length - start >= FRAME_OVERHEAD:
            kind, channel, size = _frame(data, start)
            end = start + size + FRAME_OVERHEAD
            if end > length:
                break
            if data[end - 1] != FRAME_END:
                raise ConnectionError("the broker sent a frame without an end")
            ours = channel == self._channel_id
            if ours and kind == HEADER:
                self._header(data, start + 7, end - 1, bodies)
            elif ours and kind == BODY:
                self._body(data[start + 7 : end - 1], bodies)
            elif not ours or kind != METHOD or data[start + 7 : start + 11] != DELIVER:
                self._other(kind, channel, data[start + 7 : end - 1])
            start = end
        self._rest = data[start:]
        return bodies

    def _header(self, data: bytes, start: int, end: int, bodies: list[Body]) -> None:
        (self._awaited,) = _body_size(data, start + 4)
        properties = data[start + 12 : end]
        try:
            self._content = self._contents[properties]
        except KeyError:
            self._content = self._read_properties(properties, data[start:end])
        if not self._awaited:
            bodies.append(b"")

    def _read_properties(self, properties: bytes, header: bytes) -> Content | None:
        message = basic_message.Message()
        message.inbound_header(header)
        headers = message.properties.get("application_headers") or {}
        given = (message.properties.get("content_type"), headers.get("compression"), headers.get("hostname"))
        found = Content(*(None if each is None else str(each) for each in given))
        content = None if found.is_plain else found
        if len(self._contents) < MOST_PROPERTIES:
            self._contents[properties] = content
        return content

    def _body(self, chunk: bytes, bodies: list[Body]) -> None:
        self._awaited -= len(chunk)
        if self._awaited > 0:
            self._chunks.append(chunk)
            return
        if self._chunks:
            chunk = b"".join((*self._chunks, chunk))
            self._chunks = []
        bodies.append(chunk if self._content is None else to_json(chunk, self._content))

    def _other(self, kind: int, channel: int, payload: bytes) -> None:
        # py-amqp sends the replies, and raises what ends the channel or the connection.
        self._connection.transport.sock.settimeout(SEND_SECONDS)
        self._connection.on_inbound_frame((kind, channel, payload))

    def tick(self, idle: float) -> bytes:
        now = time.monotonic()
        interval = self._connection.heartbeat or HEARTBEAT_SECONDS
        if self._connection.heartbeat and idle > 2 * interval:
            raise TimeoutError(f"no heartbeat for {idle:.0f} s")
        out = b""
        if self._committed > self._acknowledged:
            self._acknowledged = self._committed
            out = _ack(METHOD, self._channel_id, 13, 60, 80, self._committed, 1, FRAME_END)
        elif now - self._sent_at >= interval / 2:
            out = HEARTBEAT_FRAME
        if out:
            self._sent_at = now
        return out

    def goodbye(self) -> bytes:
        """The last acknowledgement, and connection.close 200."""
        return self.tick(0.0) + struct.pack(">BHIHHHBHHB", METHOD, 0, 11, 10, 50, 200, 0, 0, 0, FRAME_END)
