"""The socket on a real server, with a real client, on a record that another connection writes."""

import asyncio
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
import pytest
import uvicorn
from starlette.websockets import WebSocketState
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from celery_monitor.core.filters.parser import UNHANDLED
from celery_monitor.core.filters.scope import UNLIMITED
from celery_monitor.errors import Forbidden
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.writer import Writer
from celery_monitor.web.app import create_app
from celery_monitor.web.live import MOST_SOCKETS_OF_USER, OUTBOX, Client, Live, LiveMessage, Visitor
from celery_monitor.web.present import ViewSnapshot, Watched
from tests.factories import make_event, make_id
from tests.servers import free_port
from tests.web import shop
from tests.workers import happens, wait_for

PATIENCE_SECONDS = 60.0


class Site:
    """A dashboard that runs, and the record behind it."""

    def __init__(self, base: str, store: Store, prefix: str) -> None:
        self.base = base
        self.store = store
        self.prefix = prefix
        self.writer = Writer(store, "shop", Settings())

    def write(self, *events: Event) -> None:
        self.writer.write([Delivery(events=list(events), arrived=time.time())])

    @contextmanager
    def look(self, view: str, **more: object) -> Iterator[ClientConnection]:
        with self.connect() as browser:
            browser.send(msgspec.json.encode({"token": self.token(), "view": view, **more}).decode())
            yield browser

    def connect(self) -> ClientConnection:
        """A socket that has sent nothing yet."""
        address = f"{self.base.replace('http', 'ws')}{self.prefix}/live"
        return connect(address, origin=Origin(self.base), max_size=2**24)

    def token(self) -> str:
        """The token of a page."""
        page = httpx2.get(f"{self.base}{self.prefix}/tasks", timeout=PATIENCE_SECONDS).text
        found = re.search(r'data-token="([^"]+)"', page)
        assert found
        return unescape(found.group(1))


@contextmanager
def run_site(database: str, prefix: str = "") -> Iterator[Site]:
    port = free_port()
    brokers = (Broker("shop", "redis://127.0.0.1:6379/3"),)
    app = create_app(Settings(broker=brokers, database=database, port=port, url_prefix=prefix))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, what="the server")
    store = open_store(database)
    try:
        shop.fill(store)
        yield Site(f"http://127.0.0.1:{port}", store, prefix)
    finally:
        server.should_exit = True
        thread.join()
        store.close()
        app.state.store.close()


@pytest.fixture
def site(sqlite_url: str) -> Iterator[Site]:
    with run_site(sqlite_url) as running:
        yield running


def receive(browser: ClientConnection) -> dict[str, Any]:
    return msgspec.json.decode(browser.recv(timeout=PATIENCE_SECONDS), type=dict[str, Any])


def receive_until(browser: ClientConnection, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        message = receive(browser)
        if wanted(message):
            return message
    raise AssertionError("was not sent in time")


def received(task_id: str, name: str = "shop.mail") -> Event:
    return make_event(
        "task-received", timestamp=time.time(), uuid=task_id, name=name, args="(8,)", kwargs="{}", retries=0
    )


def test_browser_is_told_everything_first(site: Site) -> None:
    with site.look("/tasks?q=state%3Afailed") as browser:
        message = receive(browser)
    assert set(message["regions"]) >= {"shell_nav", "shell_banners", "facets", "summary", "pager"}
    rows = message["rows"]["tasks"]
    assert rows["order"] == [f"shop {shop.TRUNCATED}", f"shop {shop.PROBABLE}"]
    assert "TimeoutError" in rows["html"][f"shop {shop.PROBABLE}"]


def test_new_row_is_told_alone(site: Site) -> None:
    with site.look("/tasks") as browser:
        receive(browser)
        site.write(received(make_id(501)))
        message = receive_until(browser, lambda message: make_id(501) in str(message.get("rows")))
    rows = message["rows"]["tasks"]
    assert set(rows["html"]) - {f"shop {shop.RUNNING}"} == {f"shop {make_id(501)}"}  # that one says how long it runs
    assert rows["order"][0] == f"shop {make_id(501)}"
    assert "tabs" not in message["regions"]


def test_a_change_of_one_row_says_nothing_of_the_order(site: Site) -> None:
    with site.look("/tasks") as browser:
        receive(browser)
        site.write(make_event("task-succeeded", timestamp=time.time(), uuid=shop.RUNNING, result="7", runtime=3.5))
        rows = receive_until(browser, lambda message: "3.5 s" in str(message.get("rows")))["rows"]["tasks"]
    assert rows["order"] is None
    assert list(rows["html"]) == [f"shop {shop.RUNNING}"]


def test_task_page_follows_its_task(site: Site) -> None:
    because = {"exception": "KeyError('sku')", "traceback": ""}
    failure = make_event("task-failed", timestamp=time.time(), uuid=shop.RUNNING, **because)
    with site.look(f"/tasks/{shop.RUNNING}") as browser:
        assert "started" in receive(browser)["regions"]["head"]
        site.write(failure)
        message = receive_until(browser, lambda message: "head" in message.get("regions", {}))
    assert "failed" in message["regions"]["head"]
    assert "KeyError" in message["regions"]["failure"]


def test_those_who_share_a_view_hear_the_same(site: Site) -> None:
    with site.look("/tasks") as one, site.look("/tasks") as other:
        receive(one)
        receive(other)
        site.write(received(make_id(502)))
        first, second = (
            receive_until(each, lambda message: make_id(502) in str(message.get("rows"))) for each in (one, other)
        )
    assert first == second


def test_other_view_is_not_told_of_rows_it_does_not_have(site: Site) -> None:
    with site.look("/tasks?q=name%3Ashop.refund") as browser:
        receive(browser)
        site.write(received(make_id(503)))
        message = receive_until(browser, lambda message: "shell_nav" in message.get("regions", {}))
    assert "rows" not in message


def test_row_that_left_the_page_is_kept_true_while_it_is_shown(site: Site) -> None:
    key = f"shop {shop.RUNNING}"
    with site.look("/tasks?limit=25", extra=[key]) as browser:
        receive(browser)
        site.write(*(received(make_id(600 + number)) for number in range(30)))
        receive_until(browser, lambda message: "rows" in message)
        site.write(make_event("task-succeeded", timestamp=time.time(), uuid=shop.RUNNING, result="7", runtime=3.5))
        message = receive_until(
            browser, lambda message: key in message.get("rows", {}).get("tasks", {}).get("html", {})
        )
    assert message["rows"]["tasks"]["order"] is None
    assert "succeeded" in message["rows"]["tasks"]["html"][key]


def test_a_view_that_nobody_looked_at_for_a_while_is_read_anew(site: Site) -> None:
    key = f"shop {shop.RUNNING}"
    with site.look("/tasks") as browser:
        receive(browser)
        browser.send(msgspec.json.encode({"view": "/tasks", "extra": [key]}).decode())
        site.write(received(make_id(504)))
        receive_until(browser, lambda message: f"shop {make_id(504)}" in str(message.get("rows")))
        browser.send('{"view": "/tasks"}')
        first = receive_until(browser, lambda message: "tabs" in message.get("regions", {}))
    assert first["rows"]["tasks"]["order"][0] == f"shop {make_id(504)}"


def test_quiet_record_is_heard_of_every_few_seconds(site: Site) -> None:
    with site.look("/tasks") as browser:
        receive(browser)
        message = msgspec.json.decode(browser.recv(timeout=PATIENCE_SECONDS), type=dict[str, Any])
    assert message["at"] == pytest.approx(time.time(), abs=5)


def test_view_that_is_no_page_is_an_error_not_an_end(site: Site) -> None:
    with site.look("/nowhere") as browser:
        assert receive(browser)["error"]["code"] == "not_found"
        browser.send('{"view": "/tasks"}')
        assert "regions" in receive_until(browser, lambda message: "error" not in message)


@pytest.mark.parametrize("text", ["", "[]", '{"view": 7}', '{"view": "tasks"}', '{"view": "/tasks", "do": "retry"}'])
def test_what_is_no_view_ends_the_connection(site: Site, text: str) -> None:
    with site.look("/tasks") as browser:
        receive(browser)
        browser.send(text)
        with pytest.raises(ConnectionClosed) as ended:
            receive_until(browser, lambda message: False)
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1008


def test_foreign_page_cannot_listen(site: Site) -> None:
    address = f"{site.base.replace('http', 'ws')}/live"
    with pytest.raises(InvalidStatus), connect(address, origin=Origin("http://evil.example")):
        pass


def test_everything_works_below_a_prefix(sqlite_url: str) -> None:
    with run_site(sqlite_url, "/ops/celery") as site, site.look("/tasks") as browser:
        message = receive(browser)
        assert f'href="/ops/celery/tasks?q={quote(UNHANDLED)}"' in message["regions"]["shell_nav"]
        assert f'href="/ops/celery/tasks/{shop.PROBABLE}"' in message["rows"]["tasks"]["html"][f"shop {shop.PROBABLE}"]
        page = httpx2.get(f"{site.base}/ops/celery/tasks", timeout=PATIENCE_SECONDS).text
        assert all(link.startswith("/ops/celery/") for link in re.findall(r'(?:href|src|action)="(/[^"]*)"', page))


def test_browser_that_takes_nothing_is_dropped_not_waited_for() -> None:
    client = Client()
    for number in range(OUTBOX + 1):
        client.send(LiveMessage(str(number)))
    assert client.outbox.get_nowait() is None
    assert client.outbox.empty()


def test_what_is_long_is_compressed_for_who_asks_and_short_words_are_not(site: Site) -> None:
    with site.look("/tasks") as plain, site.look("/tasks", deflate=True) as packing:
        whole, packed = plain.recv(timeout=PATIENCE_SECONDS), packing.recv(timeout=PATIENCE_SECONDS)
        assert isinstance(whole, str)
        assert isinstance(packed, bytes)
        assert len(packed) < len(whole) / 4
        assert msgspec.json.decode(zlib.decompress(packed))["rows"] == msgspec.json.decode(whole)["rows"]
        assert isinstance(packing.recv(timeout=PATIENCE_SECONDS), str)  # that it lives


# --- who may open how much


class FakeSocket:
    """A browser without a network: what it is sent, and how it was closed."""

    def __init__(self, *messages: str | bytes) -> None:
        self.application_state = WebSocketState.CONNECTING
        self.incoming: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        for message in messages:
            self.write(message)

    def write(self, message: str | bytes) -> None:
        field = "text" if isinstance(message, str) else "bytes"
        self.incoming.put_nowait({"type": "websocket.receive", field: message})

    async def accept(self) -> None:
        self.application_state = WebSocketState.CONNECTED

    async def receive(self) -> dict[str, object]:
        return await self.incoming.get()

    async def send_text(self, text: str) -> None:
        self.sent.append(msgspec.json.decode(text))

    async def close(self, code: int, reason: str) -> None:
        assert self.application_state is WebSocketState.CONNECTED
        self.application_state = WebSocketState.DISCONNECTED
        self.closed = (code, reason)
        self.leave()

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "websocket.disconnect"})


class Silent:
    """A record that nobody writes."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def wait(self, timeout: float) -> bool:
        return self.closed.wait(timeout)

    def close(self) -> None:
        self.closed.set()


class Hub:
    """A hub whose views are counted as they are read, in order."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.read: list[str] = []
        self.seconds = seconds
        self.live = Live(self._snapshot, Silent)
        self.tasks: list[asyncio.Task[None]] = []

    def _snapshot(self, watched: Watched) -> ViewSnapshot:
        self.read.append(watched.address)
        time.sleep(self.seconds)
        return ViewSnapshot({"head": watched.address}, {})

    def open(self, user: str, *messages: str | bytes, most: int = MOST_SOCKETS_OF_USER) -> FakeSocket:
        def check(token: str) -> float:
            if token != "right":
                raise Forbidden("reload the page")
            return 60.0

        socket = FakeSocket(*messages)
        visitor = Visitor(user, Role.VIEWER, UNLIMITED, "", check, lambda: "fresh", most)
        self.tasks.append(asyncio.create_task(self.live.serve(socket, visitor)))  # type: ignore[arg-type]
        return socket

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def view(path: str, token: str = "right") -> str:
    return msgspec.json.encode({"token": token, "view": path}).decode()


def test_views_of_one_user_do_not_starve_those_of_another() -> None:
    async def crowd() -> tuple[list[str], list[FakeSocket], list[FakeSocket]]:
        hub = Hub(seconds=0.01)
        try:
            greedy = [hub.open("eve", view(f"/e{number}")) for number in range(800)]
            await happens(lambda: sum(each.closed is not None for each in greedy) == 800 - MOST_SOCKETS_OF_USER)
            await happens(lambda: len(hub.read) > 10)
            modest = [hub.open(user, view(f"/{user}")) for user in ("ada", "bob")]
            began = len(hub.read)
            await happens(lambda: all(each.sent for each in modest))
            greeted_after = hub.read[began:]
            await happens(lambda: all(len(each.sent) >= 3 for each in modest))
            return greeted_after, greedy, modest
        finally:
            await hub.end()

    greeted_after, greedy, _ = asyncio.run(crowd())
    assert len(greeted_after) <= 8  # not the fifty of the other
    refused = [each.closed for each in greedy if each.closed]
    assert {code for code, _ in refused} == {1013}
    assert all(f"{MOST_SOCKETS_OF_USER} live pages are open for this user" in reason for _, reason in refused)


def test_rounds_read_one_view_of_each_user_in_turn() -> None:
    async def rounds() -> list[str]:
        hub = Hub(seconds=0.005)
        try:
            for number in range(40):
                hub.open("eve", view(f"/eve/{number}"))
            ada = hub.open("ada", view("/ada"))
            await happens(lambda: len(ada.sent) >= 3)
            return hub.read
        finally:
            await hub.end()

    read = asyncio.run(rounds())
    places = [number for number, path in enumerate(read) if path == "/ada"]
    assert places[0] <= 45
    assert len(places) >= 3


def test_slow_view_of_one_user_holds_up_no_other() -> None:
    async def slow() -> int:
        hub = Hub()
        stuck = threading.Event()
        plain = hub.live._read

        waiting: list[str] = []

        def read(watched: Watched) -> ViewSnapshot:
            if watched.address.startswith("/slow"):
                waiting.append(watched.address)
                stuck.wait(PATIENCE_SECONDS)
            return plain(watched)

        hub.live._read = read
        try:
            for number in range(5):
                hub.open("eve", view(f"/slow/{number}"))
            await happens(lambda: waiting)
            ada = hub.open("ada", view("/ada"))
            await happens(lambda: len(ada.sent) >= 2)
            return len(ada.sent)
        finally:
            stuck.set()
            await hub.end()

    assert asyncio.run(slow()) >= 2


def test_all_sockets_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_monitor.web.live.MOST_SOCKETS", 30)

    async def crowd() -> FakeSocket:
        hub = Hub()
        try:
            others = [hub.open(f"user {number}", view("/tasks")) for number in range(30)]
            await happens(lambda: all(each.sent for each in others))
            late = hub.open("ada", view("/tasks"))
            await happens(lambda: late.closed)
            hub.tasks[0].cancel()
            await asyncio.wait(hub.tasks[:1])
            again = hub.open("ada", view("/tasks"))
            await happens(lambda: again.sent)
            return late
        finally:
            await hub.end()

    assert asyncio.run(crowd()).closed == (
        1013,
        "30 live pages are open on this dashboard, the most allowed; close some",
    )


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\0\xff", 1003),
        (b'{"token": "right", "view": "/tasks"}', 1003),
        (view("/" + "x" * 20_000), 1009),
        (view("/tasks", token="wrong"), 4403),
        ('{"view": "/tasks"}', 4403),
        ("{", 1008),
    ],
)
def test_what_is_no_request_is_closed_politely_and_sent_nothing(message: str | bytes, code: int) -> None:
    async def ask() -> FakeSocket:
        hub = Hub()
        try:
            socket = hub.open("ada", message)
            await happens(lambda: socket.closed)
            assert hub.read == []
            return socket
        finally:
            await hub.end()

    socket = asyncio.run(ask())
    assert socket.closed is not None
    assert socket.closed[0] == code
    assert socket.closed[1]
    assert socket.sent == []


def test_socket_without_a_token_is_sent_nothing_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_monitor.web.live.ADMISSION_SECONDS", 0.2)

    async def wait() -> tuple[FakeSocket, FakeSocket]:
        hub = Hub()
        try:
            other, socket = hub.open("ada", view("/tasks")), hub.open("ada")
            await happens(lambda: socket.closed)  # by then the time of the other, which began first, is over too
            await happens(lambda: other.sent)
            return socket, other
        finally:
            await hub.end()

    silent, other = asyncio.run(wait())
    assert silent.closed is not None
    assert silent.closed[0] == 1008
    assert silent.sent == []
    assert other.sent
    assert other.closed is None


def test_open_page_is_sent_a_new_token_before_the_old_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_monitor.web.live.RENEWAL_SECONDS", 60.2)  # the page's is 60 s old

    async def wait() -> FakeSocket:
        hub = Hub()
        try:
            socket = hub.open("ada", view("/tasks"))
            await happens(lambda: any("token" in each for each in socket.sent))
            return socket
        finally:
            await hub.end()

    tokens = [each["token"] for each in asyncio.run(wait()).sent if "token" in each]
    assert tokens == ["fresh"]


def test_changing_the_view_all_the_time_reads_what_is_still_wanted_only() -> None:
    async def flip() -> list[str]:
        hub = Hub(seconds=0.02)
        try:
            socket = hub.open("eve", view("/first"))
            for number in range(200):
                socket.write(view(f"/v{number}"))
            ada = hub.open("ada", view("/ada"))
            await happens(lambda: len(ada.sent) >= 2)
            return hub.read
        finally:
            await hub.end()

    assert len(asyncio.run(flip())) < 60


def test_binary_and_too_large_messages_end_the_connection_politely(site: Site) -> None:
    for message, code in ((b"\1\2", 1003), ("x" * 20_000, 1009)):
        with site.look("/tasks") as browser:
            receive(browser)
            browser.send(message)
            with pytest.raises(ConnectionClosed) as ended:
                receive_until(browser, lambda message: False)
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == code


def test_address_of_the_socket_holds_no_token_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    token = site.token()
    with caplog.at_level("INFO", "uvicorn.error"), site.look("/tasks") as browser:
        receive(browser)
    assert '"WebSocket /live" [accepted]' in caplog.text
    assert token not in caplog.text
    assert "token" not in caplog.text
