"""The socket on a real server, with a real client, on a record that another connection writes."""

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
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from celery_monitor.core.filters.parser import UNHANDLED
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Broker, Settings
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.writer import Writer
from celery_monitor.web.app import create_app
from celery_monitor.web.live import OUTBOX, Client, LiveMessage
from tests.factories import make_event, make_id
from tests.servers import free_port
from tests.web import shop

PATIENCE_SECONDS = 20.0


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
        page = httpx2.get(f"{self.base}{self.prefix}/tasks", timeout=PATIENCE_SECONDS).text
        found = re.search(r'data-token="([^"]+)"', page)
        assert found
        address = f"{self.base.replace('http', 'ws')}{self.prefix}/live?token={unescape(found.group(1))}"
        with connect(address, origin=Origin(self.base), max_size=2**24) as browser:
            browser.send(msgspec.json.encode({"view": view, **more}).decode())
            yield browser


@contextmanager
def run_site(database: str, prefix: str = "") -> Iterator[Site]:
    port = free_port()
    brokers = (Broker("shop", "redis://127.0.0.1:6379/3"),)
    app = create_app(Settings(broker=brokers, database=database, port=port, url_prefix=prefix))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    store = open_store(database)
    try:
        shop.fill(store)
        yield Site(f"http://127.0.0.1:{port}", store, prefix)
    finally:
        server.should_exit = True
        thread.join()
        store.close()
        app.state.store.close()


def until(happens: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


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
        message = msgspec.json.decode(browser.recv(timeout=9), type=dict[str, Any])
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
