"""What the product is for, as a user does it: by the words on the page, on each broker, with real workers."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.product import Product, serving
from tests.workers import Worker, running_worker, wait_for


@pytest.fixture
def product(broker_url: str, tmp_path: Path) -> Iterator[Product]:
    with serving(broker_url, tmp_path) as product:
        yield product


@pytest.fixture
def worker(product: Product, broker_url: str) -> Iterator[Worker]:
    """It comes after the dashboard, which therefore sees all it does."""
    with running_worker(broker_url, concurrency=1) as worker:
        yield worker


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    folder = tmp_path / "ledger"
    folder.mkdir()
    return str(folder)


def fail_some(worker: Worker, ledger: str) -> None:
    """Three kinds of failures, and work that goes well."""
    for order in ("1701", "1702"):
        worker.send("charge", ledger, order, 12.5)
    worker.send("charge", ledger, "1703", 99.0, "a" * 3000)
    worker.send("fail", "out of lamps")
    worker.send("add", 19, 23)


def expect_live(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text=re.compile("^live$"))).to_be_visible()


def test_failed_task_is_found_retried_and_seen_to_succeed_without_reload(
    product: Product, worker: Worker, ledger: str, page: Page
) -> None:
    fail_some(worker, ledger)
    page.goto(product.address)
    expect_live(page)
    page.get_by_role("link", name="Failed").click()
    expect(page.get_by_text("4 tasks")).to_be_visible()
    page.get_by_role("link", name="CardRefusedError 3").click()
    expect(page.get_by_text("3 tasks")).to_be_visible()
    page.get_by_role("row").filter(has_text="1701").get_by_role("link", name="basic.charge").click()
    expect(page.get_by_text("the card of order 1701 was refused").first).to_be_visible()

    page.get_by_role("button", name="Retry", exact=True).click()
    shown = page.get_by_role("region", name="Retry this task with these arguments?")
    expect(shown).to_contain_text("1701")
    expect(shown).to_contain_text("12.5")
    expect(shown).to_contain_text("probable")
    worker.send("sleep", 3)  # the only process is busy: the new task has to wait, and its success comes by itself
    shown.get_by_role("button", name="Retry task").click()

    expect(page.get_by_role("heading", name="Retried as")).to_be_visible()
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    expect_live(page)
    again = page.get_by_role("region", name="Retried as")
    expect(again).to_contain_text(re.compile("sent|pending|received"))
    expect(again.get_by_text("succeeded")).to_be_visible()
    assert loads == []

    again.get_by_role("link").first.click()
    expect(page.get_by_role("main")).to_contain_text("order 1701 is paid: 12.5 EUR")
    expect(page.get_by_role("main")).to_contain_text("retry of")


def test_several_are_retried_from_the_list_and_the_skipped_one_says_why(
    product: Product, worker: Worker, ledger: str, page: Page
) -> None:
    fail_some(worker, ledger)
    # All failures before the page is opened: a row that comes later waits behind "1 new".
    wait_for(lambda: product.count("state:failed name:basic.charge") == 3, what="three failures")
    page.goto(f"{product.address}tasks?q=state:failed+name:basic.charge")
    expect(page.get_by_role("row").filter(has_text="was refused")).to_have_count(3)
    expect(page.get_by_text("3 tasks")).to_be_visible()
    for order in ("1701", "1702", "1703"):
        page.get_by_role("row").filter(has_text=order).get_by_role("checkbox").check()
    page.get_by_role("button", name="Retry 3 tasks").click()
    asked = page.get_by_role("region", name="Retry 2 of 3 selected tasks?")
    expect(asked).to_contain_text("2 probable, 1 can't be retried")
    expect(asked).to_contain_text("1 skipped: Can't retry basic.charge")
    expect(asked.get_by_role("cell").filter(has_text="1701")).to_be_visible()
    asked.get_by_role("button", name="Retry 2 tasks").click()

    notice = page.get_by_role("status").filter(has_text="skipped")
    expect(notice).to_contain_text("2 tasks retried, 1 skipped")
    expect(notice).to_contain_text("Can't retry")
    page.get_by_role("link", name="Show new tasks").click()
    expect(page.get_by_role("row").filter(has_text="succeeded")).to_have_count(2)
    expect_live(page)


def test_truncated_arguments_are_refused_and_the_edited_task_succeeds(
    product: Product, worker: Worker, ledger: str, page: Page
) -> None:
    worker.send("charge", ledger, "1822", 99.0, "a" * 3000)
    page.goto(f"{product.address}tasks?q=state:failed")
    page.get_by_role("row").get_by_role("link", name="basic.charge").click()
    page.get_by_role("button", name="Retry", exact=True).click()
    editor = page.get_by_role("region", name="Edit and retry")
    expect(editor).to_contain_text("Can't retry with the original arguments")
    arguments = editor.get_by_label("args, a JSON array")
    expect(arguments).to_have_value("")
    arguments.fill('["half of')
    editor.get_by_label("kwargs, a JSON object").fill("{}")
    expect(editor.get_by_label("kwargs, a JSON object")).to_be_focused()
    expect(editor.get_by_role("alert").first).to_contain_text("JSON")
    editor.get_by_role("button", name="Send edited task").click()
    arguments.fill(f'["{ledger}", "1822", 99.0, "short"]')
    editor.get_by_role("button", name="Send edited task").click()
    again = page.get_by_role("region", name="Retried as")
    expect(again.get_by_text("succeeded")).to_be_visible()
