"""HTTP as uvicorn speaks it, with an end for requests that are never finished: it would wait for them for ever."""

import asyncio
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # from the connection, or the first byte of a later request, to the end of the headers
BODY_SECONDS = 30.0  # from there to the end of the body
TIMED_OUT = b"The request was not complete in time.\n"


class Deadline:
    """Calls ``expire`` when a phase lasts too long. Going on in a phase does not prolong it."""

    def __init__(self, expire: Callable[[], object]) -> None:
        self._expire = expire
        self._seconds: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, seconds: float | None) -> None:
        """The phase that has this time; ``None``: nothing is waited for."""
        if seconds == self._seconds:
            return
        self._seconds = seconds
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._expire)


class DeadlineProtocol(H11Protocol):
    """A connection that ends with 408 when its request stays half-sent, whatever the application does meanwhile."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = Deadline(self._time_out)
        self._deadline.enter(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.enter(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._deadline.enter(self._seconds())

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._deadline.enter(self._seconds())

    def _seconds(self) -> float | None:
        """The time of the phase in which the client must go on."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # a websocket has taken over
            return None
        if self.conn.their_state is h11.SEND_BODY:
            return BODY_SECONDS
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        return HEADER_SECONDS if begun else None  # between two requests the keep-alive time-out of uvicorn holds

    def _time_out(self) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(
                status_code=408,
                headers=[(b"content-type", b"text/plain"), (b"connection", b"close"), (b"cache-control", b"no-store")],
                reason=b"Request Timeout",
            )
            for event in (head, h11.Data(data=TIMED_OUT), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
