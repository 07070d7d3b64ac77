"""A rule and a channel from the page to the message, the sign in the tab and a notification of the browser."""

from contextlib import closing
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, expect

from celery_monitor.store.alerts.facts import BEGAN
from celery_monitor.store.engine import open_store, put_value
from tests.alerts.listener import listening
from tests.databases import empty_record
from tests.e2e.product import CLUSTER, serving
from tests.workers import wait_for

# The browser's own class, which also notes what it showed.
NOTE = """
window.shown = [];
window.Notification = class extends window.Notification {
  constructor(title, options) { super(title, options); window.shown.push(`${title}: ${options.body}`); }
};
"""


def test_rule_and_channel_from_the_page_to_a_notification(
    context: BrowserContext, page: Page, redis_url: str, tmp_path: Path
) -> None:
    with closing(open_store(empty_record(tmp_path))) as store, store.begin() as connection:
        put_value(store, connection, f"{BEGAN}{CLUSTER}", "0.0")
    context.grant_permissions(["notifications"])
    page.add_init_script(NOTE)
    with listening() as there, serving(redis_url, tmp_path) as product:
        page.goto(f"{product.address}alerts")
        page.get_by_label("Channel name").fill("team")
        page.get_by_label("Kind").select_option("webhook")
        page.get_by_label("Address (secret, not shown again)").fill(f"{there.address}/t0ken-of-the-team")
        page.get_by_role("button", name="Add channel").click()
        page.get_by_role("button", name="Send a test to team").click()
        expect(page.get_by_text("The test was accepted by 'team'.")).to_be_visible()
        assert "t0ken-of-the-team" not in page.content()
        page.get_by_role("button", name="Notify me in this browser").click()
        expect(page.get_by_role("button", name="Stop notifying this browser")).to_be_visible()
        page.get_by_label("New rule").select_option("disk")
        page.get_by_role("button", name="Open editor").click()
        page.get_by_label("Bound, GiB").fill("1000000")
        page.locator("#editor select[name=severity]").select_option("critical")
        page.get_by_role("button", name="Preview").click()
        expect(page.get_by_text("No preview: The record keeps")).to_be_visible()
        page.get_by_role("button", name="Save rule").click()
        expect(page).to_have_title("(1) Alerts · celery-monitor")
        expect(page.locator("#region-firing")).to_contain_text("GiB free on the disk of the record")
        expect(page.locator('link[rel="icon"]')).to_have_attribute(
            "href", page.locator("link[data-failing]").get_attribute("data-failing") or ""
        )
        assert wait_for(lambda: page.evaluate("window.shown.length"), 20, "a notification") == 1
        assert "Disk: " in page.evaluate("window.shown[0]")
        assert wait_for(lambda: len(there.requests) == 2, 20, "the message")
        assert there.requests[1].json["severity"] == "critical"
        page.close()  # before the product, which its socket would miss
