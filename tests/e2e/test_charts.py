"""Charts and the pages around them in a real browser, under our own content security policy."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import uvicorn
from playwright.sync_api import BrowserContext, Locator, Page, Response, expect

from celery_monitor.records.event import Event
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.queues import save_queues
from celery_monitor.store.workers import save_workers
from celery_monitor.store.writer import Writer
from celery_monitor.web.app import create_app
from tests.factories import make_event, make_id, make_message
from tests.web.pages.house import HOSTILE

CANVAS = "document.querySelector('#chart-throughput time-chart').shadowRoot.querySelector('canvas')"

TOLD = """all => import(document.querySelector("script[src*='/charts.js']").src)
    .then(charts => all.map(charts.formatSeconds))"""
CUT_CELLS = """table => [...document.querySelectorAll(`${table} td.num`)].filter(each => each.checkVisibility()
    && each.scrollWidth > each.clientWidth).map(each => each.innerText)"""
BEYOND_ITS_BOX = (
    "document.querySelector('.table-scroll').scrollWidth - document.querySelector('.table-scroll').clientWidth"
)
CUT_ENTRIES = """[...document.querySelectorAll('.nav li:not(.more-pages) > a, .nav ul')]
    .filter(each => each.checkVisibility() && each.scrollWidth > each.clientWidth).map(each => each.innerText)"""


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The application on a port of its own."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=60)


@pytest.fixture
def settings(sqlite_url: str) -> Settings:
    return Settings(broker=(Broker("shop", "redis://127.0.0.1:1/0"),), database=sqlite_url)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings.database)
    yield opened
    opened.close()


@pytest.fixture
def page(settings: Settings, store: Store, context: BrowserContext) -> Iterator[Page]:
    """A page of this application; its paths need no address."""
    with served(settings) as address:
        opened = context.new_page()
        visit = opened.goto
        opened.goto = lambda path, **options: visit(f"{address}{path}", **options)  # type: ignore[method-assign]
        yield opened
        visit("about:blank")


def legend(page: Page) -> Locator:
    return page.locator("#chart-throughput .legend")


def succeed(store: Store, first: int, many: int, name: str = "shop.mail") -> None:
    now = time.time()
    events: list[Event] = [make_event("worker-heartbeat", hostname=HOSTILE, timestamp=now, freq=2.0, active=1)]
    for number in range(first, first + many):
        known = {"uuid": make_id(number), "hostname": HOSTILE}
        events.append(make_event("task-received", timestamp=now - 1, name=name, **known))
        events.append(make_event("task-succeeded", timestamp=now, runtime=0.7, **known))
    health = ReceiverHealth(cluster="shop", connected=True, updated_at=now, last_event_at=now)
    Writer(store, "shop", Settings()).write([Delivery(events=events, arrived=now)], health)


def test_chart_follows_the_record_without_being_rebuilt(page: Page, store: Store) -> None:
    succeed(store, 0, 11)
    page.goto("/?range=15m")
    expect(legend(page)).to_contain_text("succeeded11")
    page.evaluate(f"window.before = {CANVAS}")
    succeed(store, 100, 23)
    expect(legend(page)).to_contain_text("succeeded34")
    assert page.evaluate(f"window.before === {CANVAS}")


def test_a_cold_page_asks_for_at_most_a_dozen_files_and_keeps_all_but_itself(page: Page, store: Store) -> None:
    succeed(store, 0, 5)
    for path in ("/", "/tasks"):
        answers: list[Response] = []

        def note(response: Response, answers: list[Response] = answers) -> None:
            answers.append(response)

        page.on("response", note)
        page.goto(path)
        expect(page.locator("#live")).to_have_attribute("data-live", "live")
        page.remove_listener("response", note)
        assert len(answers) <= 12, [each.url for each in answers]
        files = [each for each in answers if "/static/" in each.url]
        assert files or path != "/"  # what the first page has fetched is kept
        assert all("immutable" in each.headers["cache-control"] for each in files)


def test_legend_tells_durations_as_the_pages_do(page: Page) -> None:
    page.goto("/")
    words = {
        0: "0 ms",
        0.00002: "<0.1 ms",
        0.00609: "6.1 ms",
        0.00996: "10 ms",
        0.3404: "340 ms",
        2.06: "2.1 s",
        59.96: "1 m 0 s",
        119.7: "2 m 0 s",
        192.4: "3 m 12 s",
        7530: "2 h 5 m",
        274000: "3 d 4 h",
    }
    assert page.evaluate(TOLD, list(words)) == list(words.values())


@pytest.mark.parametrize("width", [1400, 1024, 768, 360])
def test_counts_of_a_large_cluster_fit_the_navigation(page: Page, store: Store, width: int) -> None:
    now = time.time()
    crowd = [
        Worker(cluster="shop", hostname=f"pick{number}@shop", status=WorkerStatus.ONLINE, last_heartbeat=now)
        for number in range(2300)
    ]
    succeed(store, 0, 3)
    with store.begin() as connection:
        save_workers(store, connection, 1, crowd)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto("/")
    assert "2301/2301" in page.locator(".nav").inner_text()
    assert page.evaluate(CUT_ENTRIES) == []


def test_a_queue_without_consumer_reads_well_on_a_phone(page: Page, store: Store) -> None:
    now = time.time()
    succeed(store, 0, 3)
    waits = Queue(cluster="shop", name="picks-of-the-day", ready=1959, consumers=0, oldest=now - 1540)
    save_queues(store, "shop", [waits], now)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/queues")
    row = page.locator(".queues-list tbody tr")
    expect(row).to_contain_text("no consumer")
    boxes = [row.locator(f"td.{each} > *").first.bounding_box() for each in ("grow", "keep", "num")]
    name, verdict, ready = [each for each in boxes if each]
    assert name["y"] + name["height"] <= verdict["y"] + 1
    assert verdict["y"] >= ready["y"] + ready["height"] - 1 or verdict["x"] + verdict["width"] <= ready["x"]
    assert page.evaluate(CUT_CELLS, ".queues-list") == []


def test_queues_with_waits_since_receipt_fit_a_screen(page: Page, store: Store) -> None:
    now = time.time()
    known = {"name": "shop.pick", "hostname": "warehouse@shop"}
    tell = [make_event("task-sent", timestamp=now - 9, uuid=make_id(40), queue="demo-shop.warehouse", **known)]
    message = make_message(make_id(41), queue="demo-shop.warehouse")  # its sending was not seen
    tell.append(make_event("capture-message", timestamp=now - 8, uuid=make_id(41), message=message, **known))
    for number in (40, 41):
        tell += [make_event("task-received", timestamp=now - 8, uuid=make_id(number), **known)]
        tell += [make_event("task-started", timestamp=now - 7.95, uuid=make_id(number), **known)]
    workers = ("warehouse@shop",)
    measured = Queue(cluster="shop", name="demo-shop.warehouse", ready=0, unacked=4, consumers=1, workers=workers)
    save_queues(store, "shop", [measured], now)
    health = ReceiverHealth(cluster="shop", connected=True, updated_at=now, last_event_at=now)
    Writer(store, "shop", Settings()).write([Delivery(events=tell, arrived=now)], health)
    page.set_viewport_size({"width": 1400, "height": 740})
    page.goto("/queues")
    expect(page.locator(".queues-list tbody tr")).to_contain_text("50 % since receipt")
    assert page.locator(".table-scroll").evaluate(BEYOND_ITS_BOX) == 0


@pytest.mark.parametrize("width", [1400, 768])
def test_a_task_that_runs_for_long_keeps_to_its_column(page: Page, store: Store, width: int) -> None:
    now = time.time()
    known = {"uuid": make_id(31), "hostname": "pick@shop"}
    events = [
        make_event("task-received", timestamp=now - 1760, name="shop.pick", **known),
        make_event("task-started", timestamp=now - 1760, **known),
    ]
    health = ReceiverHealth(cluster="shop", connected=True, updated_at=now, last_event_at=now)
    Writer(store, "shop", Settings()).write([Delivery(events=events, arrived=now)], health)
    page.set_viewport_size({"width": width, "height": 740})
    page.goto("/tasks")
    expect(page.locator("#region-tasks")).to_contain_text(re.compile(r"29 m \d+ s"))
    assert page.evaluate(CUT_CELLS, "table.tasks") == []


def test_charts_share_one_cursor(page: Page, store: Store) -> None:
    succeed(store, 0, 5)
    page.goto("/?range=15m")
    expect(legend(page)).to_contain_text("succeeded5")
    page.locator("#chart-run time-chart").hover()
    for name in ("throughput", "wait", "run"):
        expect(page.locator(f"#chart-{name} .when")).to_have_text(re.compile(r"\d\d:\d\d$"))


def test_dragging_over_a_chart_sets_the_range_of_the_page(page: Page, store: Store) -> None:
    succeed(store, 0, 5)
    page.goto("/?range=1h")
    expect(legend(page)).to_contain_text("succeeded5")
    box = page.locator("#chart-throughput time-chart").bounding_box()
    assert box
    page.mouse.move(box["x"] + 120, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 80, steps=4)
    page.mouse.up()
    page.wait_for_url("**/?since=*&until=*")
    assert page.locator(".range-given").is_visible()


def test_hostile_names_run_nothing_and_no_page_is_wider_than_a_phone(page: Page, store: Store) -> None:
    succeed(store, 0, 3, name=HOSTILE)
    save_queues(store, "shop", [Queue(cluster="shop", name=HOSTILE, ready=9, consumers=0)], time.time())
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", "/queues", "/workers", "/failures", "/actions"):
        page.goto(path)
        page.locator("main").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    page.goto("/workers")
    page.locator(".workers-list a").first.click()
    page.locator("h1.name").wait_for()
    assert "alert(1)" in page.locator("h1.name").inner_text()
