"""The live socket: each distinct view is read once per commit, for all clients that share it.

The socket is read-only. A browser sends ``{"view": "/tasks?q=state%3Afailed", "extra": ["key" ...]}``, the first time
with the page's ``"token"``, without which nothing is sent to it, and receives
``{"at": seconds, "regions": {name: html}, "rows": {name: {"order": [key ...], "html": {key: html}}}}`` with the
changes, ``{"at": seconds}`` every few seconds, and ``{"at", "error": {"code", "message"}}`` if the page fails. With
``"deflate": true`` long messages come as zlib data (RFC 1950) in a binary message: compressed once for all clients of
a view, where permessage-deflate would compress them for each client. ``{"at", "token"}`` is a new token for the page,
sent before the old one ends.

Sockets are bounded, for each user too, and users take turns at reading (turns.py).

Users take turns, so that one with many views does not hold up the others.
"""

import asyncio
import logging
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from celery_monitor.core.filters.scope import Limits
from celery_monitor.errors import INTERNAL_ERROR, Forbidden, MonitorError
from celery_monitor.records.user import Role
from celery_monitor.web.present import RowSet, ViewSnapshot, Watched

View = TypeVar("View", bound=Hashable)


@dataclass(slots=True)
class _Queue(Generic[View]):
    """The views of one user that wait. Dictionaries, for their order and since a view waits once."""

    urgent: dict[View, None] = field(default_factory=dict)  # somebody has seen nothing of it yet
    later: dict[View, None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[View]:
        yield from [*self.urgent, *self.later]

    def remove(self, view: View) -> None:
        self.urgent.pop(view, None)
        self.later.pop(view, None)


class Turns(Generic[View]):
    """Round robin over users; at most one view of a user is read at a time, and a view is read once for all users."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue[View]] = {}  # the user whose turn is next at the front
        self._waiting: set[View] = set()
        self._busy: dict[str, View] = {}

    def ask(self, view: View, users: Iterable[str], *, urgent: bool = False) -> None:
        """The view shall be read; the turn of any of these users will do."""
        self._waiting.add(view)
        for user in users:
            queue = self._queues.setdefault(user, _Queue())
            if urgent:
                queue.later.pop(view, None)
                queue.urgent[view] = None
            elif view not in queue.urgent:
                queue.later[view] = None

    def drop(self, view: View, user: str) -> None:
        """Nobody has the view open any more; ``user`` was the last."""
        self._waiting.discard(view)
        if (queue := self._queues.get(user)) is not None:
            queue.remove(view)

    def take(self) -> tuple[str, View] | None:
        """Whose turn it is, and the view to be read; ``None`` while nothing can be read."""
        for user in list(self._queues):
            if user in self._busy:
                continue
            view = self._next(self._queues[user])
            queue = self._queues.pop(user)
            if queue.urgent or queue.later:
                self._queues[user] = queue  # at the end
            if view is not None:
                self._waiting.discard(view)
                self._busy[user] = view
                return user, view
        return None

    def done(self, user: str) -> None:
        """The view that was taken for this user has been read."""
        del self._busy[user]

    def _next(self, queue: _Queue[View]) -> View | None:
        for view in queue:
            if view in self._waiting and view in self._busy.values():
                continue  # read just now, for another user; what has changed since must be read after that
            queue.remove(view)
            if view in self._waiting:  # else it was read in another user's turn
                return view
        return None


log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.5
BEAT_SECONDS = 2.0  # also how often views are read without a commit: a silent receiver depends on the clock
OUTBOX = 16  # messages a browser may lag behind before it is dropped
SHORT = 1000  # bytes sent uncompressed
COMPRESSION = 3  # zlib's level: HTML shrinks to a tenth
LONGEST_VIEW = 16_384
LARGEST_MESSAGE = 4 * LONGEST_VIEW  # bytes that the server puts together; beyond it the connection is closed with 1009
MOST_EXTRA = 250
READERS = 2  # views that are read at a time, of two users: a slow one must not hold up all others
REQUEST_PAUSE_SECONDS = 0.1  # between two requests of a socket
WHOLE_SECONDS = 0.5  # how long the message with a whole view is sent again: it says what time it is
ADMISSION_SECONDS = 10.0  # for the first message, with the token
RENEWAL_SECONDS = 6 * 3600.0  # the age at which a page's token is replaced
MOST_SOCKETS = 2000
MOST_SOCKETS_OF_USER = 50
MOST_ANONYMOUS_SOCKETS = 500  # without users this is everybody whom another application lets in
UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
TOO_BIG = 1009
TRY_AGAIN_LATER = 1013
TOKEN_REFUSED = 4403  # the page reloads itself


class Watcher(Protocol):
    """Waits for commits: celery_monitor.store.engine.Changes."""

    def wait(self, timeout: float) -> bool: ...

    def close(self) -> None: ...


class ViewRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a browser sends."""

    view: str
    extra: list[str] = []  # keys of rows that the browser still shows, though they left the page
    deflate: bool = False
    token: str = ""  # the page's, in the first message


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who opened a socket. Users are told apart by name: all sessions of one share the bound and the turns."""

    user: str
    role: Role
    limits: Limits
    base: str
    check: Callable[[str], float]  # the age in seconds of a page's token; raises Forbidden
    fresh_token: Callable[[], str]
    most_sockets: int = MOST_SOCKETS_OF_USER


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

    def __init__(self, user: str = "") -> None:
        self.user = user
        self.outbox: asyncio.Queue[LiveMessage | None] = asyncio.Queue(OUTBOX)
        self.watched: Watched | None = None
        self.greeted = False  # has the whole view, so that differences mean something
        self.deflate = False
        self.renewal: asyncio.TimerHandle | None = None  # set once its token has been accepted

    def send(self, message: LiveMessage) -> None:
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.drop()

    def drop(self) -> None:
        while not self.outbox.empty():
            self.outbox.get_nowait()
        self.outbox.put_nowait(None)


class _Shown:
    """A view as its clients have it."""

    def __init__(self, snapshot: ViewSnapshot) -> None:
        self.snapshot = snapshot
        self._whole: LiveMessage | None = None
        self._made = 0.0

    def whole(self) -> LiveMessage:
        """All of it: what a page that was disconnected still shows is unknown."""
        if self._whole is None or time.monotonic() - self._made > WHOLE_SECONDS:
            rows = {name: (rows.order, rows.html) for name, rows in self.snapshot.rows.items()}
            self._whole, self._made = _message(self.snapshot.regions, rows), time.monotonic()
        return self._whole


class Live:
    """The open views and their clients. Runs only while there are any."""

    def __init__(self, read: Callable[[Watched], ViewSnapshot], changes: Callable[[], Watcher]) -> None:
        self._read = read
        self._changes = changes
        self._views: dict[Watched, _Shown] = {}
        self._watchers: dict[Watched, set[Client]] = {}
        self._clients: set[Client] = set()
        self._sockets: Counter[str] = Counter()  # by user
        self._turns: Turns[Watched] = Turns()
        self._work = asyncio.Event()
        self._committed = asyncio.Event()
        self._stopped = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, websocket: WebSocket, visitor: Visitor) -> None:
        """One browser, until it leaves or is dropped."""
        await websocket.accept()
        if full := self._full(visitor):
            await close(websocket, TRY_AGAIN_LATER, full)
            return
        client = Client(visitor.user)
        self._join(client)
        sender = asyncio.create_task(_deliver(client, websocket))
        try:
            await self._listen(client, websocket, visitor)
        finally:
            self._leave(client)
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender

    def _full(self, visitor: Visitor) -> str | None:
        """Why there is no place for another socket."""
        if self._sockets[visitor.user] >= visitor.most_sockets:
            return f"{visitor.most_sockets} live pages are open for this user, the most allowed; close some"
        if len(self._clients) >= MOST_SOCKETS:
            return f"{MOST_SOCKETS} live pages are open on this dashboard, the most allowed; close some"
        return None

    async def _listen(self, client: Client, websocket: WebSocket, visitor: Visitor) -> None:
        admission = asyncio.get_running_loop().time() + ADMISSION_SECONDS
        with suppress(WebSocketDisconnect):
            # The sender may have noticed first that the browser is gone; receiving would raise then.
            while websocket.application_state is WebSocketState.CONNECTED:
                try:
                    async with asyncio.timeout_at(None if client.renewal else admission):
                        message = await websocket.receive()
                except TimeoutError:
                    await close(websocket, POLICY_VIOLATION, f"no token within {ADMISSION_SECONDS:.0f} s")
                    return
                if message["type"] == "websocket.disconnect":
                    return
                if refused := self._request(client, message, visitor):
                    await close(websocket, *refused)
                    return
                await asyncio.sleep(REQUEST_PAUSE_SECONDS)

    def _request(self, client: Client, message: Mapping[str, object], visitor: Visitor) -> tuple[int, str] | None:
        """Close code and reason of what is no request."""
        text = message.get("text")
        if not isinstance(text, str):
            return UNSUPPORTED_DATA, "send text, not binary data"
        if len(text) > LONGEST_VIEW:
            return TOO_BIG, f"a message has at most {LONGEST_VIEW} characters"
        request = parse_request(text)
        if request is None:
            return POLICY_VIOLATION, "send the view, as {'view': '/tasks'}"
        if client.renewal is None:
            try:
                self._renew_in(RENEWAL_SECONDS - visitor.check(request.token), client, visitor)
            except Forbidden:
                return TOKEN_REFUSED, "the page's token has expired or is invalid; reload the page"
        client.deflate = request.deflate
        extra = tuple(sorted(request.extra))
        self._show(client, Watched(request.view, visitor.base, visitor.role, visitor.limits, extra))
        return None

    def _renew_in(self, seconds: float, client: Client, visitor: Visitor) -> None:
        loop = asyncio.get_running_loop()
        client.renewal = loop.call_later(max(0.0, seconds), self._renew, client, visitor)

    def _renew(self, client: Client, visitor: Visitor) -> None:
        client.send(_encode({"at": time.time(), "token": visitor.fresh_token()}))
        self._renew_in(RENEWAL_SECONDS, client, visitor)

    def _show(self, client: Client, watched: Watched) -> None:
        """Sends the whole view: at once if others have it open, else in the user's next turn."""
        if watched != client.watched:
            self._unwatch(client)
            client.watched = watched
            self._watchers.setdefault(watched, set()).add(client)
        shown = self._views.get(watched)
        client.greeted = shown is not None
        if shown is not None:
            client.send(shown.whole())
        else:
            self._turns.ask(watched, (client.user,), urgent=True)
            self._work.set()

    def _unwatch(self, client: Client) -> None:
        """Views without clients are not read again, so their snapshots would be stale."""
        if client.watched is None:
            return
        clients = self._watchers[client.watched]
        clients.discard(client)
        if not clients:
            del self._watchers[client.watched]
            self._views.pop(client.watched, None)
            self._turns.drop(client.watched, client.user)
        client.watched = None

    def _join(self, client: Client) -> None:
        self._clients.add(client)
        self._sockets[client.user] += 1
        if not self._tasks:
            self._stopped, self._committed, self._work = threading.Event(), asyncio.Event(), asyncio.Event()
            self._turns = Turns()
            arguments = (self._stopped, asyncio.get_running_loop())
            threading.Thread(target=self._watch, args=arguments, name="live-commits", daemon=True).start()
            self._tasks = [asyncio.create_task(self._read_forever()) for _ in range(READERS)]
            self._tasks.append(asyncio.create_task(self._refresh_forever()))

    def _leave(self, client: Client) -> None:
        self._clients.discard(client)
        self._unwatch(client)
        if client.renewal is not None:
            client.renewal.cancel()
        self._sockets[client.user] -= 1
        if not self._sockets[client.user]:
            del self._sockets[client.user]
        if not self._clients:
            self._stopped.set()
            for task in self._tasks:
                task.cancel()
            self._tasks = []

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
            self._ask_all()
            await asyncio.sleep(REFRESH_SECONDS)

    def _ask_all(self) -> None:
        """Every view shall be read again. One that still waits keeps its place."""
        for watched, clients in self._watchers.items():
            self._turns.ask(watched, {client.user for client in clients})
        self._work.set()

    async def _read_forever(self) -> None:
        """Reads what users ask for, in turn."""
        while True:
            turn = self._turns.take()
            if turn is None:
                self._work.clear()
                await self._work.wait()
                continue
            user, watched = turn
            try:
                await self._update(watched)
            except Exception:  # one view must not stop the others
                log.exception("cannot update %s", watched.address)
            finally:
                self._turns.done(user)
                self._work.set()  # the other reader may have waited for this user or view

    async def _update(self, watched: Watched) -> None:
        """Reads a view and sends its clients what has changed."""
        try:
            snapshot = await asyncio.to_thread(self._read, watched)
        except MonitorError as error:
            self._fail(watched, error.code, error.message)
            return
        except Exception:
            log.exception("cannot show %s", watched.address)
            self._fail(watched, MonitorError.code, INTERNAL_ERROR)
            return
        clients = self._watchers.get(watched)
        if not clients:
            return
        before, now = self._views.get(watched), _Shown(snapshot)
        self._views[watched] = now
        difference = None if before is None else _difference(before.snapshot, snapshot)
        for client in clients:
            client.send(difference if client.greeted and difference is not None else now.whole())
            client.greeted = True

    def _fail(self, watched: Watched, code: str, text: str) -> None:
        message = _encode({"at": time.time(), "error": {"code": code, "message": text}})
        for client in self._watchers.get(watched, ()):
            client.send(message)


async def close(websocket: WebSocket, code: int, reason: str) -> None:
    """Closes a socket that others may have closed."""
    if websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(code, reason)


async def _deliver(client: Client, websocket: WebSocket) -> None:
    with suppress(WebSocketDisconnect):
        while (message := await client.outbox.get()) is not None:
            packed = message.packed if client.deflate else None
            await (websocket.send_bytes(packed) if packed is not None else websocket.send_text(message.text))
        await close(websocket, TRY_AGAIN_LATER, "too slow; connect again")


def parse_request(text: str) -> ViewRequest | None:
    """``None`` for what is no request."""
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
