"""The page that stays open: nothing jumps, counters move, and it says itself when it no longer knows."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, WebSocketRoute, expect

from tests.e2e.conftest import Faults
from tests.e2e.product import Product, kill, serving
from tests.workers import Worker, running_worker, wait_for

STALE_AFTER_SECONDS = 13  # static/live.js: the server says something every 4 s
LOST = "WebSocket connection to|ERR_CONNECTION|ERR_EMPTY_RESPONSE"


@pytest.fixture
def product(redis_url: str, tmp_path: Path) -> Iterator[Product]:
    with serving(redis_url, tmp_path) as product:
        yield product


@pytest.fixture
def worker(product: Product, redis_url: str) -> Iterator[Worker]:
    with running_worker(redis_url, pool="threads", concurrency=2) as worker:
        yield worker


def sign(page: Page) -> Locator:
    return page.locator("#live")


def add(worker: Worker, many: int) -> None:
    for number in range(many):
        worker.send("add", number, 1000)


def waiting(page: Page) -> int:
    found = re.search(r"\+(\d+)", page.get_by_role("button", name=re.compile(r"^\+\d+")).inner_text())
    return int(found.group(1)) if found else 0


def test_row_under_the_pointer_stays_while_hundreds_of_tasks_arrive(
    product: Product, worker: Worker, page: Page
) -> None:
    add(worker, 30)
    # Before the page is opened: a row that comes later waits.
    wait_for(lambda: product.count("state:succeeded") == 30, what="30 successes")
    page.goto(f"{product.address}tasks")
    rows = page.locator("tbody tr[data-key]")
    expect(rows.filter(has_text="succeeded")).to_have_count(30)
    expect(sign(page)).to_have_text("live")
    hovered = rows.nth(7)
    key, place = hovered.get_attribute("data-key"), hovered.bounding_box()
    hovered.hover()
    add(worker, 300)
    expect(page.get_by_text(re.compile("^330 tasks"))).to_be_visible()
    expect(page.get_by_role("button", name=re.compile(r"^\+\d+.* new"))).to_be_visible()
    assert waiting(page) >= 50
    assert (hovered.get_attribute("data-key"), hovered.bounding_box()) == (key, place)
    assert page.locator("tbody tr:hover").get_attribute("data-key") == key

    page.get_by_role("button", name=re.compile(r"^\+\d+")).click()
    expect(page.locator(f'tr[data-key="{key}"]')).to_have_count(0)
    expect(rows).to_have_count(50)


def test_counters_of_the_overview_move_without_reload(product: Product, worker: Worker, page: Page) -> None:
    add(worker, 7)
    page.goto(product.address)
    chart = page.locator("#chart-throughput .legend")
    expect(chart).to_contain_text(re.compile("succeeded7"))
    page.evaluate("window.opened = 'this very page'")
    add(worker, 12)
    worker.send("fail", "out of lamps")
    expect(chart).to_contain_text("succeeded19")
    expect(page.get_by_role("navigation", name="Pages")).to_contain_text(re.compile(r"Tasks\s*20"))
    expect(page.get_by_role("region", name="Health")).to_contain_text("1 failure in 15 min")
    expect(page.get_by_role("main")).to_contain_text("out of lamps")
    assert page.evaluate("window.opened") == "this very page"
    assert page.title().startswith("Overview") or page.title().startswith("(1) Overview")


def test_tab_says_that_the_web_process_is_away_and_recovers_by_itself(
    product: Product, worker: Worker, page: Page, faults: Faults
) -> None:
    faults.expect(LOST)
    page.goto(f"{product.address}tasks")
    expect(sign(page)).to_have_text("live")
    page.evaluate("window.opened = 'this very page'")
    hung = product.web_pid()
    os.kill(hung, signal.SIGSTOP)
    expect(sign(page)).to_have_text(
        re.compile(r"^stale since \d\d:\d\d:\d\d$"), timeout=1000 * (STALE_AFTER_SECONDS + 4)
    )
    add(worker, 3)
    kill(hung)
    expect(sign(page)).to_have_text("live")
    expect(page.get_by_text("3 tasks")).to_be_visible()

    kill(product.web_pid())
    expect(sign(page)).to_have_text("reconnecting")
    add(worker, 2)
    expect(sign(page)).to_have_text("live")
    expect(page.get_by_text("5 tasks")).to_be_visible()
    assert page.evaluate("window.opened") == "this very page"


def test_page_uses_the_tokens_that_it_is_sent_and_reloads_itself_once_its_own_has_expired(
    product: Product, page: Page, faults: Faults
) -> None:
    faults.expect(LOST)
    addresses: list[str] = []
    tokens = iter(["one that came later"])

    def relay(route: WebSocketRoute) -> None:
        addresses.append(route.url)
        route.connect_to_server()
        for token in tokens:
            route.send(json.dumps({"at": time.time(), "token": token}))

    page.route_web_socket(re.compile("/live"), relay)
    page.goto(f"{product.address}tasks")
    expect(page.locator("body")).to_have_attribute("data-token", "one that came later")
    expect(sign(page)).to_have_text("live")
    kill(product.web_pid())  # the page connects again, with that token, which is refused as an expired one is
    reloaded = re.compile(r"^[\w.-]{40,}$")
    expect(page.locator("body")).to_have_attribute("data-token", reloaded)
    expect(sign(page)).to_have_text("live")
    assert {re.sub(r".*:\d+", "", address) for address in addresses} == {"/live"}


def test_worker_that_stops_shows_everywhere_within_seconds(product: Product, worker: Worker, page: Page) -> None:
    page.goto(f"{product.address}workers")
    row = page.get_by_role("row").filter(has_text=worker.hostname)
    expect(row).to_contain_text("online")
    worker.stop()
    expect(page.get_by_text("No worker is up.")).to_be_visible()
    expect(page.locator("main").get_by_text("offline").first).to_be_visible()
    page.goto(product.address)
    expect(page.get_by_text("No worker is up.").first).to_be_visible()
