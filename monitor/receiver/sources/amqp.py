"""Events from RabbitMQ: py-amqp opens the connection and the queue, then deliveries are split here.

py-amqp builds a Message and several calls for each delivery; on the stream of frames that follows basic.consume
we look at three numbers each, and hand every other frame back to it.
"""

import struct
import time
from contextlib import closing
from contextlib import suppress

from amqp import Channel
from amqp import Connection
from amqp import basic_message
from amqp.exceptions import AMQPError
from kombu import Connection as KombuConnection

from monitor.brokers.connection import CONNECT_SECONDS
from monitor.brokers.connection import app_for
from monitor.brokers.connection import explained
from monitor.receiver.decode import Content
from monitor.receiver.decode import opened
from monitor.receiver.sources.base import ReadSource
from monitor.receiver.sources.buffer import Buffer
from monitor.receiver.sources.buffer import pump
from monitor.receiver.sources.queue import declare
from monitor.receiver.sources.queue import remember
from monitor.receiver.sources.reader import SEND_SECONDS
from monitor.receiver.sources.reader import Body
from monitor.receiver.sources.reader import BrokerSocket
from monitor.receiver.sources.reader import Packed
from monitor.receiver.sources.reader import ReaderThread
from monitor.receiver.sources.reader import pack
from monitor.records import RefusedEvents
from monitor.settings import Broker
from monitor.settings import Settings

HEARTBEAT_SECONDS = 5  # two of them missed: the peer is dead
METHOD, HEADER, BODY = 1, 2, 3
FRAME_OVERHEAD = 8  # type, channel and size before, the end mark behind
FRAME_END = 0xCE
DELIVER = struct.pack(">HH", 60, 60)
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_frame = struct.Struct(">BHI").unpack_from
_body_size = struct.Struct(">Q").unpack_from
_ack = struct.Struct(">BHIHHQBB").pack
NO_EVENTS = b"[]"  # instead of a body that is refused
KNOWN_PROPERTIES = 1000  # senders whose message properties are remembered; each worker's are constant


class AmqpSource(ReadSource):
    """The fast path for RabbitMQ: a durable queue, acknowledged after the commit."""

    name = "amqp"
    keeps_events = True
    missed = True

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
        # kombu reads ssl_ca_certs=... from a URL and py-amqp knows it as ca_certs.
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
        self._kombu = kombu  # which closes the connection when it goes
        self._connection: Connection = kombu.connection
        self._buffer = buffer
        self.refused: set[RefusedEvents] = set()  # who sends what is not read
        self._channel_id: int = channel.channel_id
        self._rest = b""
        self._awaited = 0  # bytes of the present body that are still to come
        self._chunks: list[bytes] = []
        self._content: Content | None = None  # None: JSON as it stands
        self._contents: dict[bytes, Content | None] = {}
        self._committed = 0
        self._acknowledged = 0
        self._sent_at = time.monotonic()

    def commit(self, number: int) -> None:
        # Deliveries of a channel are numbered from 1 in their order; acknowledged at the next tick.
        self._committed = max(number, self._committed)

    def receive(self, data: bytes) -> None:
        if bodies := self.split(data):
            self._buffer.put(pack(bodies, self.refused))
        else:
            self._buffer.heard_at = time.time()

    def resume(self) -> None: ...

    def split(self, data: bytes) -> list[Body]:
        """The bodies that are complete now; raises ConnectionError where it is no AMQP."""
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
            self._content = self._learn(properties, data[start:end])
        if not self._awaited:
            bodies.append(b"")

    def _learn(self, properties: bytes, header: bytes) -> Content | None:
        message = basic_message.Message()
        message.inbound_header(header)
        headers = message.properties.get("application_headers") or {}
        given = (message.properties.get("content_type"), headers.get("compression"), headers.get("hostname"))
        found = Content(*(None if each is None else str(each) for each in given))
        content = None if found.is_plain else found
        if len(self._contents) < KNOWN_PROPERTIES:
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
        bodies.append(chunk if self._content is None else opened(chunk, self._content))

    def _other(self, kind: int, channel: int, payload: bytes) -> None:
        # py-amqp answers what must be answered, and raises what ends the channel or the connection.
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
