"""What a browser fetches for a page, and how soon it paints: cold, then again with what it has kept. Flower beside.

    python benchmarks/bench_page.py [--rounds N] [--events N] [--without-flower]

Both watch the same stream before; then it is quiet. Cold is a fresh profile each time, on loopback. Bytes are those of
the wire, compressed, with their headers; requests are those until the page is at rest, without the live socket.

The floor is what this browser on this machine needs for any page: text as long as our HTML and one style sheet, both
from memory.
"""

import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from playwright.sync_api import Browser, BrowserContext

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.bench_memory import Feed
from benchmarks.measuring import chromium, columns, ended, headed, median, options, row, until
from benchmarks.peer import flower
from benchmarks.stream import EVENTS_OF_A_TASK, publisher
from tests.faults.dashboard import serving

REST_SECONDS = 1.5  # after "load": what scripts fetch comes too
FOREVER = "immutable"
STYLE = "body { font-family: sans-serif; margin: 2em; }"
HEAD = '<!doctype html><html lang="en"><head><title>floor</title><link rel="stylesheet" href="/style.css"></head><body>'
LINE = "<p>Nothing but text, and no more of it than in the page beside.</p>\n"
PAINT = """() => Object.fromEntries(performance.getEntriesByType("paint").map((each) => [each.name, each.startTime]))"""


def fetched(context: BrowserContext, address: str) -> dict[str, Any]:
    """One look at a page: bytes, requests, first paint in ms, and files that came without being kept for ever."""
    page = context.new_page()
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    size: dict[str, float] = {}
    asked: set[str] = set()
    served: dict[str, dict[str, Any]] = {}

    def answered(event: dict[str, Any]) -> None:
        served[event["requestId"]] = event["response"]

    network.on("Network.requestWillBeSent", lambda event: asked.add(event["requestId"]))
    network.on("Network.responseReceived", answered)
    network.on("Network.loadingFinished", lambda event: size.update({event["requestId"]: event["encodedDataLength"]}))
    page.goto(address, wait_until="load")
    page.wait_for_timeout(REST_SECONDS * 1000)
    paint = page.evaluate(PAINT)
    page.close()
    real = {
        each
        for each in asked & served.keys()
        if served[each]["url"].startswith("http") and not served[each].get("fromDiskCache")
    }
    static = [served[each] for each in real if "/static/" in served[each]["url"]]
    loose = [
        each["url"]
        for each in static
        if FOREVER not in {name.lower(): value for name, value in each["headers"].items()}.get("cache-control", "")
    ]
    return {
        "bytes": sum(size.get(each, 0.0) for each in real),
        "requests": len(real),
        "paint": paint.get("first-paint", float("nan")),
        "contentful": paint.get("first-contentful-paint", float("nan")),
        "loose": len(loose),
    }


@contextmanager
def floor(size: int) -> Iterator[str]:
    """The address of a page of so many bytes that nobody has to compute."""
    page = HEAD + LINE * (size // len(LINE))

    class Plain(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, text = ("css", STYLE) if self.path == "/style.css" else ("html", page)
            self.send_response(200)
            self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Nobody wants a line about each."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def length(address: str) -> int:
    """Bytes of a page's HTML."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        return len(answer.read())


def measure(browser: Browser, who: str, title: str, address: str, rounds: int) -> None:
    looks: dict[str, list[dict[str, Any]]] = {"cold": [], "again": []}
    for _ in range(rounds):
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        for each in looks.values():
            each.append(fetched(context, address))
        context.close()
    for kind, found in looks.items():
        numbers = (median([look[name] for look in found]) for name in ("bytes", "requests", "paint", "contentful"))
        size, requests, paint, contentful = numbers
        slowest = max(look["paint"] for look in found)
        row(
            who, title, kind, f"{size / 1000:.0f}", f"{requests:.0f}", f"{paint:.0f}", f"{slowest:.0f}",
            f"{contentful:.0f}", f"{median([look['loose'] for look in found]):.0f}",
        )  # fmt: skip


def fill(out: Any, taken: Callable[[], int], events: int) -> None:
    Feed(out, taken).up_to(events // EVENTS_OF_A_TASK)
    time.sleep(REST_SECONDS)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--without-flower", action="store_true")
    given = parser.parse_args()
    headed(f"Pages in a browser, after {given.events:,} events; medians of {given.rounds}")
    columns(
        "who", "page", "visit", "kB", "requests", "first paint ms", "slowest ms", "first content ms",
        "static files not kept for ever",
    )  # fmt: skip
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-page-")))
        browser = stack.enter_context(chromium())
        out = stack.enter_context(publisher(given.redis))
        with serving(given.redis, directory) as dashboard:
            until(dashboard.connected, "connecting")
            fill(out, lambda: int(dashboard.health()["events_total"] or 0), given.events)
            for title, path in (("overview", "/"), ("tasks", "/tasks")):
                measure(browser, "ours", title, f"{dashboard.url}{path}", given.rounds)
                with floor(length(f"{dashboard.url}{path}")) as address:
                    measure(browser, "the floor", title, address, given.rounds)
        if not given.without_flower:
            with flower(given.redis, out, directory, most_tasks=given.events) as peer:
                fill(out, lambda: peer.events, given.events)
                for title, path in (("workers (its start)", "/"), ("tasks", "/tasks")):
                    measure(browser, "Flower", title, f"{peer.address}{path}", given.rounds)
    ended()


if __name__ == "__main__":
    main()
