"""The thread that keeps a broker's socket empty, whatever the store does meanwhile.

Redis cuts off a subscriber that lets 32 MB pile up, RabbitMQ one that sends no heartbeat. So one thread does
nothing but read, split into messages, and answer; decoding and storing happen elsewhere.
"""

import logging
import select
import socket
import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from amqp.exceptions import AMQPError
from hiredis import HiredisError

from monitor.errors import BrokerUnavailable
from monitor.receiver.sources.base import Body
from monitor.receiver.sources.base import Inbox
from monitor.receiver.sources.inlet import Direct
from monitor.receiver.sources.inlet import Inlet
from monitor.receiver.sources.inlet import Piece

SEND_SECONDS = 5.0
TICK_SECONDS = 0.5
PAUSE_SECONDS = 0.02

log = logging.getLogger(__name__)


class Wire(Protocol):
    """A protocol on a connected socket: it knows bytes, the drain knows the socket."""

    def feed(self, data: bytes) -> Sequence[Body]:
        """Complete messages in what was read; may raise what closes the connection."""

    def tick(self, idle: float) -> bytes:
        """What to send now, ``idle`` seconds after the last byte came; raises OSError if the peer is dead."""

    def explain(self, error: Exception) -> BrokerUnavailable:
        """What a person should read when the connection ends with this error."""


class Drain(threading.Thread):
    """Reads into ``inbox`` until it is stopped or the connection ends. Owns the socket and the inlet."""

    def __init__(
        self, sock: socket.socket, wire: Wire, inbox: Inbox, *, drops: bool, inlet: Inlet | None = None
    ) -> None:
        super().__init__(name=f"drain-{type(wire).__name__}", daemon=True)
        self._sock = sock
        self._inlet = inlet or Direct(sock)
        self._wire = wire
        self._inbox = inbox
        self._drops = drops
        self._stopping = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)

    def wake(self) -> None:
        """Have tick() called soon."""
        # Full of earlier calls to wake, which will do; or the thread has ended, which read() says.
        with suppress(OSError):
            self._wake_write.send(b"w")

    def stop(self) -> None:
        """End the thread and close the socket."""
        self._stopping = True
        self.wake()
        self.join(SEND_SECONDS)
        self._wake_write.close()

    def run(self) -> None:
        try:
            self._loop()
            self._leave()
        except BrokerUnavailable as error:
            self._inbox.fail(error)
        except (OSError, EOFError, AMQPError, HiredisError) as error:
            self._inbox.fail(self._wire.explain(error))
        except Exception as error:
            # A thread that died in silence would look like a quiet broker.
            log.exception("reading from the broker failed")
            self._inbox.fail(self._wire.explain(error))
        finally:
            self._inlet.close()
            self._sock.close()
            self._wake_read.close()

    def _loop(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        last_byte = last_tick = time.monotonic()
        while not self._stopping:
            paused = not self._drops and self._inbox.full
            wait = PAUSE_SECONDS if paused else TICK_SECONDS
            poll.register(self._inlet, 0 if paused else select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(wait * 1000)}
            now = time.monotonic()
            if self._inlet.fileno() in ready and (pieces := self._inlet.receive()):
                last_byte = now
                self._take(pieces)
            if woken := self._wake_read.fileno() in ready:
                self._wake_read.recv(4096)
            if woken or now - last_tick >= TICK_SECONDS:
                last_tick = now
                self._send(self._wire.tick(0.0 if paused else now - last_byte))
            if paused:
                last_byte = now

    def _take(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self._inbox.heard_at = piece.arrived
            if bodies := self._wire.feed(piece.data):
                self._inbox.put(bodies, piece.arrived)

    def _leave(self) -> None:
        with suppress(OSError):
            self._send(self._wire.tick(0.0))
            self._sock.shutdown(socket.SHUT_WR)
            self._take(self._inlet.last())

    def _send(self, data: bytes) -> None:
        if data:
            self._sock.settimeout(SEND_SECONDS)
            self._sock.sendall(data)
