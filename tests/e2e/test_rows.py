"""What is under the pointer stays there, whatever arrives; in a real browser."""

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.factories import make_event, make_id
from tests.web import shop
from tests.web.test_live import Site, received, run_site


@pytest.fixture
def site(sqlite_url: str) -> Iterator[Site]:
    with run_site(sqlite_url) as running:
        yield running


@pytest.fixture
def page(site: Site, page: Page) -> Page:
    page.goto(f"{site.base}/tasks")
    expect(page.locator("#live")).to_have_text("live")
    return page


def test_hovered_row_stays_while_hundreds_of_tasks_arrive(site: Site, page: Page) -> None:
    row = page.locator("tr[data-key]").nth(2)
    key, box = row.get_attribute("data-key"), row.bounding_box()
    row.hover()
    page.evaluate(
        """() => {
          window.updates = 0;
          document.addEventListener("monitor:update", (event) => { window.updates += event.detail.rows ? 1 : 0; });
        }"""
    )
    for batch in range(4):
        before = page.evaluate("() => window.updates")
        site.write(*(received(make_id(1000 + batch * 100 + number)) for number in range(100)))
        page.wait_for_function("before => window.updates > before", arg=before)
    expect(page.get_by_text("+50 or more new")).to_be_visible()
    assert page.locator("tr[data-key]").nth(2).get_attribute("data-key") == key
    assert row.bounding_box() == box


def test_new_rows_come_when_asked_for(site: Site, page: Page) -> None:
    site.write(*(received(make_id(2000 + number), "shop.refund") for number in range(12)))
    page.get_by_text("+12 new").click()
    expect(page.locator("tr a.open", has_text="shop.refund")).to_have_count(12)
    expect(page.locator("#show-new")).to_be_hidden()


def test_rows_that_are_extra_only_for_a_moment_are_not_requested(site: Site, page: Page) -> None:
    site.write(*(received(make_id(2100 + number)) for number in range(60)))
    page.get_by_text("+50 or more new").click()
    page.wait_for_timeout(700)  # longer than EXTRA_PAUSE: extra rows would have been requested
    page.evaluate(
        """() => {
          window.asked = [];
          const send = WebSocket.prototype.send;
          WebSocket.prototype.send = function (text) { window.asked.push(text); send.call(this, text); };
          const pill = document.getElementById("show-new");
          new MutationObserver(() => pill.hidden || pill.click()).observe(pill, { attributes: true });
        }"""
    )
    for batch in range(3):  # rows of unfinished tasks leave the page, and newer ones take their places at once
        site.write(*(received(make_id(2200 + batch * 60 + number)) for number in range(60)))
        newest = page.locator(f'tr[data-key="shop {make_id(2200 + batch * 60 + 59)}"]')
        expect(newest).to_be_visible()
    page.wait_for_timeout(700)
    assert page.evaluate("() => window.asked") == []


def test_row_changes_in_place_and_what_is_ticked_stays_ticked(site: Site, page: Page) -> None:
    row = page.locator(f'tr[data-key="shop {shop.RUNNING}"]')
    row.get_by_role("checkbox").check()
    site.write(make_event("task-succeeded", timestamp=time.time(), uuid=shop.RUNNING, result="7", runtime=3.5))
    expect(row).to_contain_text("succeeded")
    expect(row).to_contain_text("3.5 s")
    expect(row.get_by_role("checkbox")).to_be_checked()
    expect(page.get_by_role("button", name="Retry 1 task")).to_be_visible()


def test_list_is_used_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox", name="Search tasks")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("x")
    expect(page.get_by_text("1 selected")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("shop.pay.charge")
    assert page.url.endswith(shop.RUNNING)
