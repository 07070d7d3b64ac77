"""nginx and Caddy in front, with the files of deploy/; and with the mistakes that people make, which the page names."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Faults
from tests.e2e.product import Product, serving
from tests.proxies import DEPLOY, UPSTREAM, caddy, nginx
from tests.workers import running_worker

HOSTS = ("--trusted-hosts", "monitor.example.com", "--trusted-hosts", "www.example.com")
BEHIND = (*HOSTS, "--trusted-proxies", "127.0.0.1")
UPGRADE = 'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
PLAIN = "Cross-Origin-Opener-Policy header has been ignored"  # without TLS, for a name
HOST = "proxy_set_header Host $http_host;"


def file(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def server(*lines: str) -> str:
    """What people write who copy no example."""
    inside = "\n".join((f"proxy_pass http://{UPSTREAM};", *lines))
    return f"server {{ listen 80; location / {{ {inside} }} }}"


@pytest.mark.parametrize(
    "name", ["nginx/site.conf", "nginx/prefix.conf", "caddy/site.Caddyfile", "caddy/prefix.Caddyfile"]
)
def test_pages_live_updates_and_buttons_work_behind_a_proxy(
    name: str, redis_url: str, tmp_path: Path, page: Page, faults: Faults
) -> None:
    faults.expect(PLAIN)
    prefixed = "prefix" in name
    options = ("--url-prefix", "/monitor") if prefixed else ()
    with serving(redis_url, tmp_path, *BEHIND, *options) as product:
        target = product.address.removesuffix("monitor/")
        with (nginx if "nginx" in name else caddy)(file(name), target, tmp_path) as port:
            base = f"http://www.example.com:{port}/monitor" if prefixed else f"http://monitor.example.com:{port}"
            page.goto(f"{base}/tasks")
            expect(page.locator("#live")).to_have_text("live")
            with running_worker(redis_url) as worker:
                task = worker.send("add", 3, 4)
                expect(page.locator(f'[data-key="shop {task}"]')).to_be_visible()
            page.goto(f"{base}/tasks?q=state%3Asucceeded")
            page.get_by_label("Name for this view").evaluate("field => field.closest('details').open = true")
            page.get_by_label("Name for this view").fill("of the proxy")
            page.get_by_role("button", name="Save", exact=True).click()
            expect(page.get_by_text("of the proxy").first).to_be_attached()
            assert "of the proxy" in product.get("views")
            page.goto("about:blank")  # its socket would find nobody


@pytest.fixture
def product(redis_url: str, tmp_path: Path) -> Iterator[Product]:
    with serving(redis_url, tmp_path, *BEHIND) as product:
        yield product


def test_a_proxy_that_replaces_the_host_is_named(product: Product, tmp_path: Path, page: Page, faults: Faults) -> None:
    faults.expect(PLAIN)
    faults.expect("WebSocket connection to .* failed")
    with nginx(server(UPGRADE), product.address, tmp_path) as port:
        base = f"http://monitor.example.com:{port}"
        page.goto(f"{base}/tasks")
        banner = page.locator("#not-live")
        expect(banner).to_contain_text(
            f"it is at {base}, but the proxy in front of the dashboard sends Host 127.0.0.1:"
        )
        expect(banner).to_contain_text(HOST)
        expect(page.locator("#live")).to_have_text("not updated")
        refused = httpx2.post(
            f"{base.replace('monitor.example.com', '127.0.0.1')}/views/save",
            headers={"Origin": base},
            timeout=60,
        )
        assert refused.status_code == 403
        assert HOST in refused.text


def test_a_proxy_that_passes_on_no_websocket_is_named(
    product: Product, tmp_path: Path, page: Page, faults: Faults
) -> None:
    faults.expect(PLAIN)
    faults.expect("WebSocket connection to .* failed")
    with nginx(server(HOST), product.address, tmp_path) as port:
        page.goto(f"http://monitor.example.com:{port}/tasks")
        expect(page.locator("#not-live")).to_contain_text("Websockets do not reach the dashboard")
        expect(page.locator("#not-live")).to_contain_text("proxy_set_header Upgrade $http_upgrade;")


def test_the_banner_goes_when_the_proxy_is_repaired(
    product: Product, tmp_path: Path, page: Page, faults: Faults
) -> None:
    faults.expect(PLAIN)
    faults.expect("WebSocket connection to .* failed")
    faults.expect("Failed to load resource")
    with nginx(server(UPGRADE), product.address, tmp_path) as port:
        page.goto(f"http://monitor.example.com:{port}/tasks")
        expect(page.locator("#not-live")).to_contain_text(HOST)
    with nginx(server(UPGRADE, HOST), product.address, tmp_path, port):
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("#not-live")).to_be_empty()


def test_a_dashboard_that_is_down_is_no_fault_of_the_proxy(
    redis_url: str, tmp_path: Path, page: Page, faults: Faults
) -> None:
    faults.expect(PLAIN)
    faults.expect("WebSocket connection to .* failed")
    faults.expect("Failed to load resource")
    with ExitStack() as proxies:
        with serving(redis_url, tmp_path, *BEHIND) as product:
            port = proxies.enter_context(nginx(server(UPGRADE, HOST), product.address, tmp_path))
            page.goto(f"http://monitor.example.com:{port}/tasks")
            expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("#live")).to_contain_text("stale since")
        expect(page.locator("#not-live")).to_be_empty()
