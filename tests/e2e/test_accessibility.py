"""For everybody: axe finds nothing on any page in either theme, the keyboard is enough, and a phone is wide enough."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.e2e.conftest import WIDE, Faults
from tests.e2e.product import Product, serving
from tests.workers import ROOT, Worker, running_worker, wait_for

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
PHONE: ViewportSize = {"width": 360, "height": 740}
TABLET: ViewportSize = {"width": 768, "height": 1024}
TOO_WIDE = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
TABLES_TOO_WIDE = (
    "Math.max(0, ...[...document.querySelectorAll('.table-scroll')].map(e => e.scrollWidth - e.clientWidth))"
)
FIT_A_PHONE = {"/tasks", "/failures", "/queues", "/workers", "/actions", "/views", "failure", "worker"}
TASKS = 13
HREF = "link => link.href"


@pytest.fixture
def product(redis_url: str, tmp_path: Path) -> Iterator[Product]:
    with serving(redis_url, tmp_path) as product:
        yield product


@pytest.fixture
def worker(product: Product, redis_url: str, tmp_path: Path) -> Iterator[Worker]:
    """Has done a little of everything."""
    with running_worker(redis_url, pool="threads", concurrency=2) as worker:
        for order in range(3):
            worker.send("charge", str(tmp_path), f"order-{order}", 12.5)
        worker.send("charge", str(tmp_path), "order-7", 12.5, "a" * 3000)
        worker.send("recurse")
        for number in range(5):
            worker.send("add", number, 1)
        worker.send("sleep", 0.1, countdown=600)
        root = worker.send("add", 7, 1)
        worker.send("add", 8, 1, root_id=root, parent_id=root)
        wait_for(lambda: product.heard >= 3 * TASKS, what="what the worker has done")
        yield worker


def pages(product: Product, page: Page) -> dict[str, str]:
    """Every page, each panel, what is empty and what is wrong, by what it shows."""
    base = product.address.rstrip("/")
    page.goto(f"{base}/tasks?q=state:failed+name:basic.charge+-args:order-7")
    task = page.locator("#region-tasks a.open").first.evaluate(HREF)
    page.goto(f"{base}/tasks?q=args:order-7")
    cut = page.locator("#region-tasks a.open").first.evaluate(HREF)
    page.goto(f"{base}/tasks?q=state:scheduled")
    later = page.locator("#region-tasks a.open").first.evaluate(HREF)
    page.goto(f"{base}/queues")
    queue = page.locator("main table a").first.evaluate(HREF)
    page.goto(f"{base}/workers")
    worker = page.locator("main table a").first.evaluate(HREF)
    page.goto(f"{base}/failures")
    failure = page.locator("main table a[href*='/failures/']").first.evaluate(HREF)
    page.goto(f"{base}/workflows")
    workflow = page.locator("main table a[href*='/workflows/']").first.evaluate(HREF)
    job = previewed(page, base)
    lists = ("/", "/tasks", "/tasks?q=state:failed", "/failures", "/queues", "/workers", "/workflows", "/schedule")
    rest = ("/actions", "/run", "/views", "/failures?state=muted", "/alerts", "/alerts?kind=queue+depth&for_seconds=0")
    odd = ("/tasks?q=name:nobody", "/tasks?q=foo:bar", "/tasks/nobody", "/nothing")
    found = {path: f"{base}{path}" for path in (*lists, *rest, *odd)}
    panels = {
        "task": task,
        "retry": f"{task}?panel=retry",
        "edit": f"{cut}?panel=edit",
        "revoke": f"{later}?panel=revoke",
    }
    things = {"queue": queue, "worker": worker, "failure": failure, "workflow": workflow, "job": job}
    return found | panels | things


def previewed(page: Page, base: str) -> str:
    """A job that waits for a yes; and on the way a saved view."""
    page.goto(f"{base}/tasks?q=state:failed")
    page.locator(".views-menu summary").click()
    page.get_by_label("Name for this view").fill("What failed")
    page.get_by_label("Name for this view").press("Enter")
    page.get_by_label(re.compile("Select all [0-9]")).check()
    page.get_by_role("button", name=re.compile("^Retry all")).click()
    page.wait_for_url("**/jobs/*")
    return page.url


def open_palette(page: Page) -> None:
    """With something in it."""
    page.keyboard.press("Control+k")
    page.keyboard.type("basic")
    page.locator("#palette-list li").filter(has_text="task name").first.wait_for()


def open_help(page: Page) -> None:
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keyboard").wait_for()


def open_suggestions(page: Page) -> None:
    page.get_by_role("combobox", name="Filter").type("state:")
    page.keyboard.press("ArrowDown")
    page.get_by_role("option", selected=True).wait_for()


def open_folds(page: Page) -> None:
    """All that folds away and is no menu."""
    page.locator("main details:not(.menu) > summary").evaluate_all("all => all.forEach(each => each.click())")


def open_menu(name: str) -> Callable[[Page], None]:
    return lambda page: page.locator("main summary", has_text=name).click()


OPENED: dict[str, tuple[str, Callable[[Page], None]]] = {
    "palette": ("tasks", open_palette),
    "help": ("tasks", open_help),
    "suggestions": ("tasks", open_suggestions),
    "selection": ("tasks?q=state:failed", lambda page: page.locator("tbody .pick input").first.check()),
    **{f"menu {name}": ("tasks", open_menu(name)) for name in ("Views", "Fields", "Export", "Columns")},
    "workers unfolded": ("workers", open_folds),
}


def violations(page: Page) -> list[str]:
    """What axe finds, one line for each rule and element."""
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {node['html'][:160]} ({node['failureSummary'][:240]})"
        for each in found["violations"]
        for node in each["nodes"]
    ]


def needs_axe() -> str:
    if AXE.exists():
        return AXE.read_text(encoding="utf-8")
    reason = "there is no node_modules/axe-core: npm ci --ignore-scripts"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def looking(chromium: Browser, faults: Faults) -> Iterator[tuple[Page, dict[str, list[str]]]]:
    """A page with axe in it, and what is found; nothing may have been found at the end."""
    axe = needs_axe()
    context = chromium.new_context(bypass_csp=True, reduced_motion="reduce", viewport=WIDE)
    context.on("page", faults.watch)
    context.add_init_script(axe)
    found: dict[str, list[str]] = {}
    yield context.new_page(), found
    context.close()
    assert found == {}, json.dumps(found, indent=1)


def go(page: Page, address: str) -> None:
    page.set_viewport_size(WIDE)
    page.goto(address)
    expect(page.locator("#live")).not_to_have_text("not live")


def look(page: Page, name: str, found: dict[str, list[str]]) -> None:
    """In both themes with axe, and at each width."""
    themes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for theme in themes:
        page.emulate_media(color_scheme=theme)
        if wrong := violations(page):
            found[f"{name} {theme}"] = wrong
    for window in (WIDE, TABLET, PHONE):
        page.set_viewport_size(window)
        if beyond := page.evaluate(TOO_WIDE):
            found[f"{name} at {window['width']}"] = [f"{beyond} px too wide"]
    if name in FIT_A_PHONE and (beyond := page.evaluate(TABLES_TOO_WIDE)):
        found[f"tables of {name}"] = [f"{beyond} px too wide for a phone"]


def test_axe_finds_nothing_and_no_page_is_wider_than_its_window(
    product: Product, worker: Worker, chromium: Browser, faults: Faults
) -> None:
    faults.expect("the server responded with a status of 404")
    with looking(chromium, faults) as (page, found):
        for name, address in pages(product, page).items():
            go(page, address)
            look(page, name, found)


def test_axe_finds_nothing_in_what_opens(product: Product, worker: Worker, chromium: Browser, faults: Faults) -> None:
    with looking(chromium, faults) as (page, found):
        for name, (path, open_it) in OPENED.items():
            go(page, f"{product.address}{path}")
            open_it(page)
            look(page, name, found)


def test_main_flow_by_keyboard_alone(product: Product, worker: Worker, page: Page) -> None:
    page.goto(product.address)
    expect(page.locator("#live")).to_have_text("live")
    keys = page.keyboard
    keys.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    keys.press("Escape")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_hidden()

    keys.press("/")
    expect(page.get_by_role("searchbox", name="Search tasks")).to_be_focused()
    keys.type("state:failed name:basic.charge")
    keys.press("Enter")
    expect(page.get_by_text("4 tasks")).to_be_visible()
    for key, row in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
        keys.press(key)
        expect(page.locator("#region-tasks tr").nth(row)).to_have_attribute("aria-selected", "true")
    keys.press("x")
    keys.press("j")
    keys.press("x")
    expect(page.get_by_text("2 selected")).to_be_visible()
    keys.press("r")
    asked = page.get_by_role("region", name=re.compile("^Retry [12] of 2 selected tasks"))
    expect(asked.get_by_role("button", name=re.compile("^Retry"))).to_be_focused()
    keys.press("Enter")
    expect(page.get_by_role("link", name="Show new tasks")).to_be_visible()

    page.goto(f"{product.address}tasks?q=state:failed+name:basic.charge+args:order-0")
    keys.press("j")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="basic.charge")).to_be_visible()
    keys.press("r")
    expect(page.get_by_role("button", name="Retry task")).to_be_focused()
    keys.press("Enter")
    again = page.get_by_role("region", name="Retried as")
    expect(again.get_by_text("succeeded").first).to_be_visible()


def test_every_control_shows_that_it_has_the_focus(product: Product, worker: Worker, page: Page) -> None:
    page.goto(f"{product.address}tasks")
    expect(page.locator("#live")).to_have_text("live")
    seen: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        about = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.tagName + ' ' + (e.ariaLabel || e.innerText || e.name || ''),"
            " s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0] }"
        )
        assert about[1], f"no focus can be seen on {about[0]}"
        seen.add(about[0])
    assert len(seen) > 20
