"""All that match, as a user does it: choose, look, say why, watch, and read what was skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.product import Product, serving
from tests.workers import Worker, running_worker


@pytest.fixture
def product(redis_url: str, tmp_path: Path) -> Iterator[Product]:
    with serving(redis_url, tmp_path) as product:
        yield product


@pytest.fixture
def worker(product: Product, redis_url: str) -> Iterator[Worker]:
    """It comes after the dashboard, which therefore sees all it does."""
    with running_worker(redis_url, concurrency=1) as worker:
        yield worker


def run_job(page: Page, sends: int, reason: str) -> None:
    """From the preview to the end of the job, on one page."""
    page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name=f"Retry {sends} tasks").click()
    expect(page.get_by_role("heading", name="done")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text(reason)


def test_all_that_match_are_chosen_looked_at_run_and_accounted_for(
    product: Product, worker: Worker, tmp_path: Path, page: Page
) -> None:
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    for order in range(30):
        worker.send("charge", str(ledger), f"o{order}", 12.5)
    worker.send("charge", str(ledger), "o30", 99.0, "a" * 3000)
    worker.send("fail", "not meant")
    page.goto(f"{product.address}tasks?q=state:failed+name:basic.charge&limit=25")
    expect(page.get_by_text("31 tasks")).to_be_visible()
    page.reload()  # what came since the page was opened waits behind a button
    page.get_by_label("Select all on this page").check()
    expect(page.get_by_role("button", name="Retry 25 tasks")).to_be_visible()
    page.get_by_label("Select all 31").check()
    page.get_by_role("row").filter(has_text="o29").get_by_role("checkbox").uncheck()
    expect(page.get_by_label("Select all 31")).not_to_be_checked()
    expect(page.get_by_role("button", name="Retry 24 tasks")).to_be_visible()
    page.get_by_label("Select all 31").check()
    page.get_by_role("button", name="Retry all 31…").click()

    asked = page.get_by_role("region", name="Retry 31 tasks on shop?")
    expect(asked).to_contain_text("matched exactly 31 tasks")
    expect(asked).to_contain_text("1 skipped: arguments unknown")
    expect(asked).to_contain_text("30")
    late = worker.send("charge", str(ledger), "late", 1.0)
    page.goto(page.url)
    run_job(page, 30, "the bank is back")
    notice = page.get_by_role("main")
    expect(notice).to_contain_text("30 tasks retried, 1 skipped.")
    why = page.get_by_role("region", name="Reasons")
    expect(why.get_by_role("row").filter(has_text="skipped")).to_contain_text("arguments unknown")
    page.get_by_role("term").filter(has_text="skipped").locator("..").get_by_role("link").click()
    expect(page.get_by_role("region", name="Tasks: skipped").get_by_role("row")).to_have_count(2)

    page.goto(f"{product.address}tasks?q=name:basic.charge+state:succeeded")
    expect(page.get_by_text("30 tasks")).to_be_visible()
    page.goto(f"{product.address}tasks/{late}")
    expect(page.get_by_text("Retried as")).to_have_count(0)
    page.goto(f"{product.address}tasks?q=name:basic.fail")
    expect(page.get_by_text("1 task", exact=True)).to_be_visible()


def test_a_failure_group_is_retried_in_the_same_way(
    product: Product, worker: Worker, tmp_path: Path, page: Page
) -> None:
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    for order in range(3):
        worker.send("charge", str(ledger), f"o{order}", 12.5)
    for _ in range(2):
        worker.send("fail", "not meant")
    page.goto(f"{product.address}failures")
    page.get_by_role("link", name="CardRefusedError").first.click()
    page.get_by_role("link", name="Retry all").click()
    expect(page.get_by_label("Select all 3")).to_be_checked()
    page.reload()
    expect(page.get_by_role("row").get_by_role("checkbox", checked=True)).to_have_count(4)
    page.get_by_role("button", name="Retry all 3…").click()
    expect(page.get_by_role("region", name="Retry 3 tasks on shop?")).to_contain_text("group:")
    run_job(page, 3, "the bank is back")
    expect(page.get_by_role("main")).to_contain_text("3 tasks retried.")
    page.goto(f"{product.address}tasks?q=state:succeeded")
    expect(page.get_by_text("3 tasks")).to_be_visible()

    page.goto(f"{product.address}failures")
    page.get_by_role("link", name="CardRefusedError").first.click()
    page.get_by_role("link", name="Retry all").click()
    expect(page.get_by_text("↻ retried, succeeded")).to_have_count(3)
    page.get_by_role("button", name="Retry all 3…").click()
    again = page.get_by_role("region", name="Retry 3 tasks on shop?")
    expect(again).to_contain_text("3 skipped: already retried, succeeded")
    expect(again).to_contain_text("None of them can be retried.")
    page.get_by_label("Include 3 tasks already retried").check()
    page.get_by_role("button", name="Update preview").click()
    expect(page.get_by_role("button", name="Retry 3 tasks")).to_be_visible()
