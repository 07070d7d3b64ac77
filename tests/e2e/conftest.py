"""A real Chromium, and pages of it that fail the test for whatever a user would call broken."""

import os
import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.workers import ROOT

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP *.example.com 127.0.0.1",  # of the proxies
)
RESULTS = ROOT / "test-results"
WIDE: ViewportSize = {"width": 1400, "height": 900}
WAIT_MILLISECONDS = 60_000
expect.set_options(timeout=WAIT_MILLISECONDS)  # else 5 s: a busy machine is no fault of the page


class Faults:
    """What went wrong in the pages of a test. A test that breaks something says what it expects."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.expected: list[str] = []

    def expect(self, pattern: str) -> None:
        self.expected.append(pattern)

    @property
    def unexpected(self) -> list[str]:
        return [each for each in self.found if not any(re.search(pattern, each) for pattern in self.expected)]

    def watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.found.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("crash", lambda _: self.found.append("the page crashed"))

    def _dialog(self, dialog: Dialog) -> None:
        self.found.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.found.append(f"console: {message.text}")


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """One browser for the folder. It ends before the tests of other folders: its event loop is in their way."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        reason = f"none of {', '.join(PROGRAMS)} is on PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Errors, violations of the page's policy, dialogs: none may be left at the end."""
    faults = Faults()
    yield faults
    assert faults.unexpected == []


@pytest.fixture
def context(chromium: Browser, faults: Faults, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    """A browser of a new user; its pages are kept as pictures when the test fails."""
    opened = chromium.new_context(viewport=WIDE, locale="en-GB", reduced_motion="reduce")
    opened.set_default_timeout(WAIT_MILLISECONDS)
    opened.on("page", faults.watch)
    yield opened
    if request.node.stash.get(FAILED, False):
        _keep_pictures(opened, request.node.name)
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def _keep_pictures(context: BrowserContext, name: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    for number, page in enumerate(context.pages):
        file = Path(re.sub(r"[^\w.-]+", "_", f"{name}-{number}.png"))
        page.screenshot(path=RESULTS / file, full_page=True)
