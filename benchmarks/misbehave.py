"""How soon a page says in words what goes wrong, and how many clicks away the mend is.

python -m benchmarks.misbehave redis://127.0.0.1:6379/4 [--rounds 3] [--warm 40] [--only NAME ...]

The Redis database must be empty: it is emptied again at the end.

A small shop with real workers and beat on a real broker, watched by ``serve`` with its default settings. When it has
run well for a while, one part misbehaves at a time; the overview is asked for over HTTP until its sentence says so.
Then a browser walks from the overview to the mend by the words on the pages, and its clicks are counted.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import redis
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, sync_playwright

from tests.apps.basic import BROKER_VARIABLE, CONFIG_VARIABLE
from tests.e2e.conftest import SWITCHES
from tests.faults.dashboard import Dashboard, serving
from tests.workers import ROOT, Worker, running_worker, wait_for

APP = "tests.apps.misbehaving"
LONGEST_SECONDS = 75.0
LOOK_SECONDS = 0.1
TICK_SECONDS = 3.0
STEP_MILLISECONDS = 30_000  # a page of a busy machine
OPTIONS = ("--inspect-seconds", "30")


@dataclass
class Shop:
    """Two workers of the shop, one that only counts shelves, and beat."""

    dashboard: Dashboard
    picker: Worker
    counter: Worker
    beat: subprocess.Popen[bytes]
    calm: threading.Event = field(default_factory=threading.Event)

    def send(self, name: str, *args: object, to: Worker | None = None) -> str:
        return (to or self.picker).send(name, *args)

    def pool(self, worker: Worker) -> list[int]:
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text(encoding="ascii").split()
        return [int(pid) for pid in children]


@dataclass(frozen=True)
class Trouble:
    """Something that goes wrong: how it is made, what a page must say, how it is ended, and the way to its mend."""

    name: str
    make: Callable[[Shop], float]  # gives the moment since when it is wrong
    said: str  # a regular expression
    end: Callable[[Shop], None]
    way: tuple[str, ...] = ()  # of links and buttons by their words, from the overview to the mend


def new_error(shop: Shop) -> float:
    at = time.time()
    shop.send("shop.print_label", 1701)
    return at


def nothing(shop: Shop) -> None:
    """It has ended by itself."""


def stop_worker(shop: Shop) -> float:
    os.killpg(shop.picker.pid, signal.SIGSTOP)
    return time.time()


def go_on(shop: Shop) -> None:
    os.killpg(shop.picker.pid, signal.SIGCONT)


def stop_pool(shop: Shop) -> float:
    """The processes of the pool alone, in the middle of a task: their parent goes on to answer."""
    for _ in range(2):
        shop.send("shop.pick", 2)
    time.sleep(1)
    for pid in shop.pool(shop.picker):
        os.kill(pid, signal.SIGSTOP)
    return time.time()


def kill_pool(shop: Shop) -> float:
    for _ in range(2):
        shop.send("shop.pick", 60)
    time.sleep(0.5)
    at = time.time()
    for pid in shop.pool(shop.picker):
        os.kill(pid, signal.SIGKILL)
    return at


def kill_worker(shop: Shop) -> float:
    shop.counter.kill_main()
    return time.time()


def grow(shop: Shop) -> float:
    """More comes than two processes can take."""
    at = time.time()
    threading.Thread(target=_flood, args=(shop,), daemon=True).start()
    return at


def _flood(shop: Shop) -> None:
    while not shop.calm.is_set():
        for _ in range(20):
            shop.send("shop.pick", 0.1)
        shop.calm.wait(0.25)


def drain(shop: Shop) -> None:
    shop.calm.set()
    shop.picker.app.control.purge()


def stop_beat(shop: Shop) -> float:
    """The entry is missed when it would next have been sent."""
    wait_for(lambda: _next(shop) - time.time() > TICK_SECONDS - 1, 20, "a tick that has just been sent")
    os.kill(shop.beat.pid, signal.SIGSTOP)
    return _next(shop)


def _next(shop: Shop) -> float:
    [entry] = shop.dashboard.json("/api/v1/schedule")["items"]
    return float(entry["next"] or 0.0)


def start_beat(shop: Shop) -> None:
    os.kill(shop.beat.pid, signal.SIGCONT)


def stick(shop: Shop) -> float:
    """One member of a chord hangs."""
    at = time.time()
    shop.send("shop.report", 5, 3600, to=shop.counter)
    return at


def unstick(shop: Shop) -> None:
    for pid in shop.pool(shop.counter):
        os.kill(pid, signal.SIGKILL)


TROUBLES = (
    Trouble(
        "a new type of error",
        new_error,
        r"New: \S*LabelPrinterJammed",
        nothing,
        ("link New: .*LabelPrinterJammed", "link Retry all", "button Retry", "button Retry"),
    ),
    Trouble("pool processes killed", kill_pool, r"WorkerLostError", nothing),
    Trouble(
        "pool processes stopped",
        stop_pool,
        r"may be stuck",
        go_on,
        ("link pick@shop may be stuck", "link Terminate", "confirm Terminate"),
    ),
    Trouble("the whole worker stopped", stop_worker, r"silent for", go_on, ("link pick@shop has been silent",)),
    Trouble("a growing queue", grow, r"-queue is growing", drain, ("link pick-queue is growing", "button Grow pool")),
    Trouble(
        "a missed beat entry",
        stop_beat,
        r"tick was due|tick should have been|Beat seems",
        start_beat,
        ("link tick (was due|should)", "link Run now", "button Run now"),
    ),
    Trouble(
        "a stuck chord",
        stick,
        r"stood still|workflows? may be stuck|workflows? waits?",
        unstick,
        ("link workflows? may be stuck", "link count_shelf", "button Terminate", "confirm Terminate"),
    ),
    Trouble("a worker killed", kill_worker, r"silent for|without count", nothing),
)


def sentence(dashboard: Dashboard) -> str:
    html = dashboard.get("/")
    found = re.search(r'<p class="sentence">(.*?)</p>', html, re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", found.group(1))).split()) if found else ""


def await_words(dashboard: Dashboard, pattern: str, since: float) -> tuple[float, str]:
    """Seconds since then until the overview says it, and the words."""
    while time.time() - since < LONGEST_SECONDS:
        said = sentence(dashboard)
        if found := re.search(rf"[^.:]*(?:{pattern}).*?(?:\.(?=\s|$)|$)", said):
            return time.time() - since, found.group().strip()
        time.sleep(LOOK_SECONDS)
    return float("inf"), f"not said; the page says: {sentence(dashboard)}"


@contextmanager
def open_shop(broker: str, directory: Path, warm: float) -> Iterator[Shop]:
    config = {"result_backend": broker, "worker_prefetch_multiplier": 1, "worker_send_task_events": True}
    entry = {"tick": {"task": "shop.tick", "schedule": TICK_SECONDS, "options": {"queue": "pick-queue"}}}
    config["beat_schedule"] = entry
    config["task_routes"] = {"shop.count_shelf": {"queue": "count-queue"}, "shop.add_up": {"queue": "count-queue"}}
    with ExitStack() as stack:
        dashboard = stack.enter_context(serving(broker, directory, *OPTIONS))
        picker, counter = (
            stack.enter_context(
                running_worker(
                    broker,
                    app=APP,
                    queue=f"{name}-queue",
                    hostname=f"{name}@shop",
                    config=config,
                )
            )
            for name in ("pick", "count")
        )
        beat = stack.enter_context(running_beat(broker, directory, picker))
        shop = Shop(dashboard, picker, counter, beat)
        stop = threading.Event()
        everyday = threading.Thread(target=_everyday, args=(shop, stop), daemon=True)
        everyday.start()
        stack.callback(everyday.join, 5)
        stack.callback(stop.set)
        time.sleep(warm)
        yield shop


def _everyday(shop: Shop, stop: threading.Event) -> None:
    number = 0
    while not stop.wait(0.2):
        number += 1
        shop.send("shop.pick")
        if number % 10 == 0:
            shop.send("shop.report", 4, to=shop.counter)


@contextmanager
def running_beat(broker: str, directory: Path, worker: Worker) -> Iterator[subprocess.Popen[bytes]]:
    config = {name: worker.app.conf[name] for name in ("beat_schedule", "task_routes", "task_default_queue")}
    command = [sys.executable, "-m", "celery", "-A", APP, "beat", "-s", str(directory / "beat"), "--pidfile="]
    told = json.dumps(config)
    with (directory / "beat.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, BROKER_VARIABLE: broker, CONFIG_VARIABLE: told},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def walk(page: Page, shop: Shop, way: tuple[str, ...]) -> int:
    """Goes from the overview to the mend by the words on the pages, and does it; the clicks that it took."""
    page.goto(shop.dashboard.url + "/")
    main = page.get_by_role("main")
    for each in way:
        kind, _, words = each.partition(" ")
        role: Literal["link", "button"] = "link" if kind == "link" else "button"
        place = main.locator("#confirm") if kind == "confirm" else main
        place.get_by_role(role, name=re.compile(words)).locator("visible=true").first.click(timeout=STEP_MILLISECONDS)
        page.wait_for_load_state()
    page.wait_for_timeout(1500)
    notices = page.locator(".banners[role=status]").all_inner_texts()
    print("  ", len(way), "clicks:", " ".join(" ".join(notices).split()) or page.url, flush=True)
    return len(way)


def settle(shop: Shop, pattern: str) -> None:
    """What is over is no longer said, and the queues are empty; failures stay for their 15 minutes."""
    with suppress(TimeoutError):
        wait_for(
            lambda: (
                not any(each["ready"] for each in shop.dashboard.json("/api/v1/queues")["items"])
                and not re.search(pattern, sentence(shop.dashboard))
            ),
            25,
            "the end of the words and of the backlog",
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("broker")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--warm", type=float, default=40.0)
    options.add_argument("--only", nargs="*", default=())
    given = options.parse_args()
    wanted = [each for each in TROUBLES if not given.only or any(word in each.name for word in given.only)]
    found: dict[str, list[tuple[float, str]]] = {each.name: [] for each in wanted}
    clicks: dict[str, int] = {}
    with ExitStack() as stack:
        broker = stack.enter_context(closing(redis.Redis.from_url(given.broker)))
        if broker.dbsize():
            raise SystemExit(f"{given.broker} is not empty")
        stack.callback(broker.flushdb)
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=SWITCHES)
        stack.callback(browser.close)
        for _ in range(given.rounds):
            directory = stack.enter_context(TemporaryDirectory(prefix="misbehave-"))
            with open_shop(given.broker, Path(directory), given.warm) as shop:
                one_round(shop, wanted, found, clicks, browser.new_page())
    print("| what | seconds | words | clicks |\n|---|---|---|---|")
    for name, each in found.items():
        seconds = [one for one, _ in each]
        told = f"{statistics.median(seconds):.1f} (at most {max(seconds):.1f})"
        print(f"| {name} | {told} | {each[-1][1]} | {clicks.get(name, 'none')} |")


def one_round(
    shop: Shop, wanted: list[Trouble], found: dict[str, list[tuple[float, str]]], clicks: dict[str, int], page: Page
) -> None:
    print("before:", sentence(shop.dashboard), flush=True)
    for trouble in wanted:
        shop.calm.clear()
        since = trouble.make(shop)
        found[trouble.name].append(await_words(shop.dashboard, trouble.said, since))
        print(trouble.name, *found[trouble.name][-1], flush=True)
        if trouble.way:
            try:
                clicks[trouble.name] = walk(page, shop, trouble.way)
            except PlaywrightError as error:
                print("  no way:", page.url, str(error)[:300], flush=True)
        trouble.end(shop)
        settle(shop, trouble.said)


if __name__ == "__main__":
    main()
