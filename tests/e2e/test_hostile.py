"""Nothing that a broker, or an address, says is ever run; and the page stays readable."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.e2e import hostile
from tests.e2e.conftest import Faults
from tests.e2e.product import Product, serving
from tests.receiver.traffic import publisher
from tests.workers import wait_for

COLUMNS = "&".join(f"col={name}" for name in ("name", "args", "queue", "worker", "received", "id", "result", "cluster"))
LISTS = (
    "/",
    "/?range=24h",
    "/tasks",
    f"/tasks?{COLUMNS}",
    "/tasks?q=state:failed",
    "/failures",
    "/failures?range=24h",
    "/queues",
    "/workers",
    "/actions",
    "/views",
    "/alerts",
    "/alerts?kind=failure+share&for_seconds=0",
)
PLACES = (
    "/tasks/{}",
    "/tasks/{}?panel={}",
    "/queues/{}",
    "/workers/{}",
    "/nothing/{}",
    "/tasks?q={}",
    "/tasks?q=name:%22{}%22",
    "/tasks?sort={}",
    "/tasks?limit={}",
    "/tasks?cursor={}",
    "/tasks?col={}",
    "/?range={}",
    "/?since={}",
    "/failures?range={}",
    "/alerts?edit={}",
    "/alerts?kind=disk&for_seconds=0&name={}&scope={}",
    "/?cluster={}",
)

ADDRESSED = (hostile.TEXTS[0], "javascript:" + hostile.TEXTS[2].replace("\ud83d", "\n") + hostile.TEXTS[-1])


@contextmanager
def hostile_shop(broker_url: str, tmp_path: Path) -> Iterator[Product]:
    """The dashboard of a broker on which everything is hostile."""
    with serving(broker_url, tmp_path) as product:
        with publisher(broker_url) as sender:
            for routing_key, body in hostile.bodies():
                sender.send(routing_key, body)
        wait_for(lambda: product.heard == _events(), what=f"the receipt of {_events()} events")
        yield product
        assert "Traceback (most recent call last)" not in product.log_text


@pytest.fixture
def product(redis_url: str, tmp_path: Path) -> Iterator[Product]:
    with hostile_shop(redis_url, tmp_path) as product:
        yield product


def _events() -> int:
    return sum(1 for _ in hostile.bodies())


def expect_harmless(page: Page) -> None:
    """Nothing ran, nothing was sent elsewhere, and there is something to read."""
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('base, main svg[onload], main script, main style').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, page.url
    expect(page.locator("main")).to_be_visible()
    assert len(page.locator("main").inner_text().split()) > 2


def open_page(page: Page, path: str) -> int:
    response = page.goto(path)
    assert response is not None
    expect_harmless(page)
    return response.status


def test_hostile_records_run_nothing_on_any_page(broker_url: str, tmp_path: Path, page: Page) -> None:
    with hostile_shop(broker_url, tmp_path) as product:
        visit_every_page(page, product.address.rstrip("/"))
        page.goto("about:blank")


def visit_every_page(page: Page, base: str) -> None:
    for path in LISTS:
        assert open_page(page, f"{base}{path}") == 200, path
        expect(page.locator("#live")).to_have_text("live")
        expect_harmless(page)
    visited: set[str] = set()
    for path in ("/tasks", "/queues", "/workers", "/failures"):
        page.goto(f"{base}{path}")
        links = page.locator("main table a[href]").evaluate_all("links => links.map(link => link.href)")
        own = {link for link in links if link.startswith(base)}
        assert own == set(links)
        visited |= {link for link in own if "?q=" not in link}
    assert len(visited) >= 4 * len(hostile.TEXTS) + 1  # two tasks, a queue and a worker of each
    for link in sorted(visited):
        assert open_page(page, link) == 200, link


def test_hostile_task_is_looked_at_retried_and_recorded(product: Product, page: Page) -> None:
    page.goto(f"{product.address}tasks?q=state:failed&sort=-received&limit=100")
    page.get_by_label("Select all on this page").check()
    page.get_by_role("button", name=f"Retry {len(hostile.TEXTS) + 1} tasks").click()
    expect(page.get_by_text("skipped").first).to_be_visible()
    expect_harmless(page)
    for number, text in enumerate(hostile.TEXTS):
        where = f"{product.address}tasks/{quote(_stored(hostile.task_id(text, number)), safe='')}"
        for panel in ("", "?panel=retry", "?panel=edit"):
            assert open_page(page, where + panel) == 200
        expect(page.get_by_role("region", name="Edit and retry")).to_be_visible()
    page.goto(f"{product.address}actions")
    expect(page.get_by_role("cell", name="task.retry")).to_be_visible()
    expect_harmless(page)


def _stored(text: str) -> str:
    """NUL and half surrogates are replaced in the record."""
    return "".join("\ufffd" if each == "\0" or "\ud800" <= each <= "\udfff" else each for each in text)


def test_hostile_addresses_run_nothing(product: Product, page: Page, faults: Faults) -> None:
    faults.expect("the server responded with a status of 4")
    for text in ADDRESSED:
        for place in PLACES:
            word = quote(text, safe="")
            status = open_page(page, product.address.rstrip("/") + place.format(word, word))
            assert status in {200, 400, 404, 422}, (place, text, status)
