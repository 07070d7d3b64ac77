"""The palette, saved views, exports and the sign in the tab, in a real browser, by keyboard alone."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.product import Product, serving
from tests.workers import Worker, running_worker, wait_for

TASKS = 6


@pytest.fixture
def product(redis_url: str, tmp_path: Path) -> Iterator[Product]:
    with serving(redis_url, tmp_path) as product:
        yield product


@pytest.fixture
def worker(product: Product, redis_url: str) -> Iterator[Worker]:
    with running_worker(redis_url, pool="threads", concurrency=2) as worker:
        for number in range(TASKS):
            worker.send("add", number, 1)
        wait_for(lambda: product.heard >= 3 * TASKS, what="what the worker has done")
        yield worker


def open_palette(page: Page, text: str) -> None:
    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox", name=re.compile("^Page, task id"))).to_be_focused()
    page.keyboard.type(text)


def rows_lead_to_things(product: Product, page: Page, path: str) -> None:
    page.goto(f"{product.address}{path}")
    row = page.locator("main table.list tbody tr").first
    expect(row).to_be_visible()
    page.keyboard.press("j")
    expect(row).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"/{path}/.+"))


def test_palette_goes_everywhere_by_keyboard(product: Product, worker: Worker, page: Page) -> None:
    page.goto(f"{product.address}tasks?q=state:succeeded")
    expect(page.locator("#live")).to_have_text("live")
    task_id = page.locator("#region-tasks tr").first.get_attribute("data-key")
    assert task_id
    option = page.locator("#palette-list").get_by_role("option")
    palette = page.get_by_role("dialog", name="Go to")

    open_palette(page, "workers")
    expect(option.first).to_have_text(re.compile("Workers.*page"))
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/workers$"))

    open_palette(page, task_id.partition(" ")[2][:9])
    expect(option.first).to_contain_text(task_id.partition(" ")[2])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="basic.add")).to_be_visible()

    open_palette(page, "basic.add")
    expect(option.filter(has_text="task name")).to_be_visible()
    page.keyboard.press("ArrowDown")
    expect(option.nth(1)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#palette-text")).to_have_attribute("aria-activedescendant", "palette-1")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(option.last).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/tasks\?q=basic\.add$"))

    for path in ("queues", "workers"):
        rows_lead_to_things(product, page, path)

    before = page.locator("html").get_attribute("data-theme")
    open_palette(page, "light and dark")
    page.keyboard.press("Enter")
    expect(palette).to_be_hidden()
    assert page.locator("html").get_attribute("data-theme") != before
    page.keyboard.press("Control+k")
    page.keyboard.press("Escape")
    expect(palette).to_be_hidden()
    page.get_by_role("button", name="Go to").click()
    expect(palette).to_be_visible()


def rows_counted(page: Page, *pieces: str) -> int:
    """By the script of the page, in pieces of CSV as they come."""
    counted: int = page.evaluate(
        """async (pieces) => {
            const app = document.querySelector('script[src*="app.js"]').src;
            const { RowCounter } = await import(app.replace("app.js", "export.js"));
            const counter = new RowCounter(true);
            for (const piece of pieces) counter.add(new TextEncoder().encode(piece));
            return counter.rows;
        }""",
        pieces,
    )
    return counted


def test_view_is_saved_and_found_and_what_it_shows_is_exported(
    product: Product, worker: Worker, page: Page, tmp_path: Path
) -> None:
    page.goto(f"{product.address}tasks?q=state:succeeded")
    expect(page.locator("#live")).to_have_text("live")
    open_palette(page, "save this")
    page.keyboard.press("Enter")
    name = page.get_by_label("Name for this view")
    name.fill("What went <b>well</b>")
    name.press("Enter")
    expect(page.get_by_text("for everybody.")).to_be_visible()

    page.goto(f"{product.address}queues")
    open_palette(page, "well")
    expect(page.locator("#palette-list li").filter(has_text="saved view")).to_contain_text("What went <b>well</b>")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/tasks\?q=state%3Asucceeded$"))

    open_palette(page, "export")
    page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").press("Enter")
    expect(page.get_by_text(f"Saved {TASKS} rows as tasks.csv.")).to_be_visible()
    download.value.save_as(tmp_path / "tasks.csv")
    with (tmp_path / "tasks.csv").open(encoding="utf-8", newline="") as file:
        assert {row["state"] for row in csv.DictReader(file)} == {"SUCCESS"}
    assert rows_counted(page, 'id,args\r\n1,"a\nb', '"\r\n2,"say ""x', '"" \n"\r\n3,\r\n') == 3

    # The sign in the tab counts new failures until somebody looks.
    page.goto(f"{product.address}workers")
    expect(page.locator("#live")).to_have_text("live")
    sign = page.locator('link[rel="icon"]')
    expect(sign).to_have_attribute("href", re.compile(r"/mark\.svg$"))
    worker.send("fail")
    worker.send("fail")
    expect(page).to_have_title("(2) Workers · celery-monitor")
    expect(sign).to_have_attribute("href", re.compile(r"/mark-failing\.svg$"))
    page.evaluate("dispatchEvent(new Event('focus'))")
    expect(page).to_have_title("Workers · celery-monitor")
    expect(sign).to_have_attribute("href", re.compile(r"/mark\.svg$"))
