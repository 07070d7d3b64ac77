"""The live socket: each distinct view is read once per commit, for all clients that share it.

The socket is read-only. A browser sends ``{"view": "/tasks?q=state%3Afailed", "extra": ["key" ...]}`` and receives
``{"at": seconds, "regions": {name: html}, "rows": {name: {"order": [key ...], "html": {key: html}}}}`` with the
changes, ``{"at": seconds}`` every few seconds, and ``{"at", "error": {"code", "message"}}`` if the page fails. With
``"deflate": true`` long messages come as zlib data (RFC 1950) in a binary message: compressed once for all clients of
a view, where permessage-deflate would compress them for each client.
"""

import asyncio
import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Protocol

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from celery_monitor.errors import INTERNAL_ERROR, MonitorError
from celery_monitor.records.user import Role
from celery_monitor.web.present import RowSet, ViewSnapshot, Watched

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.5
BEAT_SECONDS = 2.0  # also how often views are read without a commit: a silent receiver depends on the clock
OUTBOX = 16  # messages a browser may lag behind before it is dropped
SHORT = 1000  # bytes sent uncompressed
COMPRESSION = 3  # zlib's level: HTML shrinks to a tenth
LONGEST_VIEW = 16_384
MOST_EXTRA = 250
TRY_AGAIN_LATER = 1013
POLICY_VIOLATION = 1008


class Watcher(Protocol):
    """Waits for commits: celery_monitor.store.engine.Changes."""

    def wait(self, timeout: float) -> bool: ...

    def close(self) -> None: ...


class ViewRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a browser sends."""

    view: str
    extra: list[str] = []  # keys of rows that the browser still shows, though they left the page
    deflate: bool = False


class LiveMessage:
    """A message for all clients of a view."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def packed(self) -> bytes | None:
        """Compressed; ``None`` where that is not worth it."""
        data = self.text.encode()
        return zlib.compress(data, COMPRESSION) if len(data) > SHORT else None


class Client:
    """One browser. It is dropped when it reads too slowly; after reconnecting it gets the whole view."""

    def __init__(self) -> None:
        self.outbox: asyncio.Queue[LiveMessage | None] = asyncio.Queue(OUTBOX)
        self.watched: Watched | None = None
        self.deflate = False

    def send(self, message: LiveMessage) -> None:
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.drop()

    def drop(self) -> None:
        while not self.outbox.empty():
            self.outbox.get_nowait()
        self.outbox.put_nowait(None)


class Live:
    """The open views and their clients. Runs only while there are any."""

    def __init__(self, read: Callable[[Watched], ViewSnapshot], changes: Callable[[], Watcher]) -> None:
        self._read = read
        self._changes = changes
        self._views: dict[Watched, ViewSnapshot] = {}
        self._clients: set[Client] = set()
        self._committed = asyncio.Event()
        # A view that is read twice at once would send a wrong difference to some clients.
        self._reading = asyncio.Lock()
        self._stopped = threading.Event()
        self._task: asyncio.Task[None] | None = None

    async def serve(self, websocket: WebSocket, role: Role, base: str) -> None:
        """One browser, until it leaves or is dropped."""
        await websocket.accept()
        client = Client()
        self._join(client)
        sender = asyncio.create_task(_deliver(client, websocket))
        try:
            await self._listen(client, websocket, role, base)
        finally:
            self._leave(client)
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender

    async def _listen(self, client: Client, websocket: WebSocket, role: Role, base: str) -> None:
        with suppress(WebSocketDisconnect):
            # The sender may have noticed first that the browser is gone; receiving would raise then.
            while websocket.application_state is WebSocketState.CONNECTED:
                text = await websocket.receive_text()
                request = parse_request(text)
                if request is None:
                    await websocket.close(POLICY_VIOLATION, "send the view, as {'view': '/tasks'}")
                    return
                client.deflate = request.deflate
                client.watched = Watched(request.view, base, role, tuple(sorted(request.extra)))
                self._forget_unwatched()
                await self._send_all(client, client.watched)

    async def _send_all(self, client: Client, watched: Watched) -> None:
        """The whole view: what a page that was disconnected still shows is unknown."""
        async with self._reading:
            snapshot = self._views.get(watched) or await self._read_view(watched)
        if snapshot is not None:
            rows = {name: (rows.order, rows.html) for name, rows in snapshot.rows.items()}
            client.send(_message(snapshot.regions, rows))

    def _join(self, client: Client) -> None:
        self._clients.add(client)
        if self._task is None or self._task.done():
            self._stopped, self._committed, self._reading = threading.Event(), asyncio.Event(), asyncio.Lock()
            arguments = (self._stopped, asyncio.get_running_loop())
            threading.Thread(target=self._watch, args=arguments, name="live-commits", daemon=True).start()
            self._task = asyncio.create_task(self._refresh_forever())

    def _leave(self, client: Client) -> None:
        self._clients.discard(client)
        self._forget_unwatched()
        if not self._clients and self._task is not None:
            self._stopped.set()
            self._task.cancel()
            self._task = None

    def _forget_unwatched(self) -> None:
        """Views without clients are not read again, so their snapshots would be stale."""
        watched = {each.watched for each in self._clients}
        self._views = {view: snapshot for view, snapshot in self._views.items() if view in watched}

    def _watch(self, stopped: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        """Runs in a thread: waits for commits of other processes."""
        changes = self._changes()
        while not stopped.is_set():
            try:
                if changes.wait(REFRESH_SECONDS):
                    loop.call_soon_threadsafe(self._committed.set)
            except MonitorError as error:
                log.warning("cannot watch for changes: %s", error.message)
                stopped.wait(BEAT_SECONDS)
            except RuntimeError:  # the loop has ended
                break
        changes.close()

    async def _refresh_forever(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._committed.wait(), BEAT_SECONDS)
            self._committed.clear()
            began = time.monotonic()
            await self._refresh()
            await asyncio.sleep(max(0.05, REFRESH_SECONDS - (time.monotonic() - began)))

    async def _refresh(self) -> None:
        """Reads each view once and sends the changes to its clients."""
        for watched in {client.watched for client in self._clients if client.watched is not None}:
            async with self._reading:
                before = self._views.get(watched)
                now = await self._read_view(watched)
                if now is not None and before is not None:
                    self._broadcast(watched, _difference(before, now))

    def _broadcast(self, watched: Watched, message: LiveMessage) -> None:
        for client in self._clients:
            if client.watched == watched:
                client.send(message)

    async def _read_view(self, watched: Watched) -> ViewSnapshot | None:
        try:
            snapshot = await asyncio.to_thread(self._read, watched)
        except MonitorError as error:
            self._fail(watched, error.code, error.message)
            return None
        except Exception:
            log.exception("cannot show %s", watched.address)
            self._fail(watched, MonitorError.code, INTERNAL_ERROR)
            return None
        if any(client.watched == watched for client in self._clients):
            self._views[watched] = snapshot
        return snapshot

    def _fail(self, watched: Watched, code: str, text: str) -> None:
        self._broadcast(watched, _encode({"at": time.time(), "error": {"code": code, "message": text}}))


async def _deliver(client: Client, websocket: WebSocket) -> None:
    with suppress(WebSocketDisconnect):
        while (message := await client.outbox.get()) is not None:
            packed = message.packed if client.deflate else None
            await (websocket.send_bytes(packed) if packed is not None else websocket.send_text(message.text))
        await websocket.close(TRY_AGAIN_LATER, "too slow; connect again")


def parse_request(text: str) -> ViewRequest | None:
    """``None`` for what is no request."""
    if len(text) > LONGEST_VIEW:
        return None
    try:
        request = msgspec.json.decode(text, type=ViewRequest)
    except msgspec.DecodeError:
        return None
    return request if request.view.startswith("/") and len(request.extra) <= MOST_EXTRA else None


def _difference(before: ViewSnapshot, now: ViewSnapshot) -> LiveMessage:
    regions = {name: html for name, html in now.regions.items() if before.regions.get(name) != html}
    return _message(regions, {name: _changed(before.rows[name], rows) for name, rows in now.rows.items()})


def _changed(before: RowSet, now: RowSet) -> tuple[tuple[str, ...] | None, Mapping[str, str]]:
    html = {key: row for key, row in now.html.items() if before.html.get(key) != row}
    return (None if before.order == now.order else now.order), html


def _message(
    regions: Mapping[str, str], rows: Mapping[str, tuple[tuple[str, ...] | None, Mapping[str, str]]]
) -> LiveMessage:
    message: dict[str, object] = {"at": time.time()}
    if regions:
        message["regions"] = regions
    new_rows = {n: {"order": order, "html": html} for n, (order, html) in rows.items() if order is not None or html}
    if new_rows:
        message["rows"] = new_rows
    return _encode(message)


def _encode(message: object) -> LiveMessage:
    return LiveMessage(msgspec.json.encode(message).decode())
