"""From an event that is published to its row in a browser's page, with many browsers connected.

    python benchmarks/bench_live.py [--rate N] [--seconds N] [--clients N] [--uncompressed] [--only redis|amqp]

Each task carries the time at which it was published in its arguments; a script in the page notes the clock when the
row of such a task comes into the table. The list keeps new rows behind "+12 new": the script presses that button as
soon as it appears. Only the newest 50 tasks are ever shown, so at high rates most tasks are in no sample. All but one
of the clients are sockets that ask for the same page and read what they are told, as a browser does; with
--uncompressed they ask for text.
"""

import asyncio
import html
import json
import multiprocessing
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.flow import Flow, Sending
from benchmarks.measuring import chromium, columns, cpu_seconds, ended, headed, options, quantile, row, until, urls
from benchmarks.stream import publisher
from tests.faults.dashboard import serving

WARM_SECONDS = 5.0
CONNECT_SECONDS = 120.0
LARGEST_MESSAGE = 16 * 1024 * 1024
OBSERVE = """() => {
  window.seen = [];
  const note = (row) => {
    const sent = /\\((\\d+\\.\\d+),\\)/.exec(row.textContent ?? "");
    if (sent) window.seen.push(Date.now() / 1000 - Number(sent[1]));
  };
  const pill = document.getElementById("show-new");
  new MutationObserver((changes) => {
    for (const change of changes) for (const row of change.addedNodes) note(row);
  }).observe(document.getElementById("region-tasks"), { childList: true });
  new MutationObserver(() => pill.hidden || pill.click()).observe(pill, { attributes: true, childList: true });
}"""


@dataclass
class Heard:
    """What the sockets were told."""

    messages: int = 0
    characters: int = 0
    ended: int = 0  # sockets that the server has closed


async def listen(address: str, token: str, heard: Heard, joined: list[bool], *, compressed: bool) -> None:
    async with connect(address, compression=None, max_size=LARGEST_MESSAGE, open_timeout=60) as socket:
        await socket.send(json.dumps({"token": token, "view": "/tasks", "extra": [], "deflate": compressed}))
        joined.append(True)
        try:
            async for message in socket:
                heard.messages += 1
                heard.characters += len(message)
        except ConnectionClosed:
            pass
        heard.ended += 1


async def _all(address: str, token: str, number: int, pipe: Connection, *, compressed: bool) -> None:
    heard = Heard()
    joined: list[bool] = []
    tasks = [asyncio.create_task(listen(address, token, heard, joined, compressed=compressed)) for _ in range(number)]
    deadline = time.monotonic() + CONNECT_SECONDS
    while len(joined) < number and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    pipe.send(len(joined))
    await asyncio.to_thread(pipe.recv)
    at_once = heard.ended
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    pipe.send((heard.messages, heard.characters, at_once))


def crowd(address: str, token: str, number: int, pipe: Connection, compressed: bool) -> None:
    asyncio.run(_all(address, token, number, pipe, compressed=compressed))


def measure(url: str, rate: float, seconds: float, clients: int, *, compressed: bool) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-live-")))
        dashboard = stack.enter_context(serving(url, directory))
        until(dashboard.connected, "connecting")
        out = stack.enter_context(publisher(url))
        flow = Flow(stamped=True)
        sending = Sending(out, flow, rate)
        sending.start()
        found = re.search(r'data-token="([^"]+)"', dashboard.get("/tasks"))
        token = html.unescape(found.group(1)) if found else ""
        address = f"ws{dashboard.url.removeprefix('http')}/live"
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=crowd, args=(address, token, clients - 1, theirs, compressed), daemon=True
        )
        process.start()
        stack.callback(process.kill)
        connected = ours.recv() + 1
        tab = stack.enter_context(chromium()).new_page(viewport={"width": 1400, "height": 900})
        tab.goto(f"{dashboard.url}/tasks")
        tab.wait_for_selector('#live[data-live="live"]', timeout=60_000)
        tab.evaluate(OBSERVE)
        time.sleep(WARM_SECONDS)
        tab.evaluate("() => { window.seen = []; }")
        web, receiver = dashboard.pid("web"), dashboard.pid("receiver")
        cpu, began = (cpu_seconds(web), cpu_seconds(receiver)), time.monotonic()
        time.sleep(seconds)
        late = [float(each) for each in tab.evaluate("() => window.seen")]
        took = time.monotonic() - began
        busy = [(cpu_seconds(pid) - was) / took for pid, was in zip((web, receiver), cpu, strict=True)]
        ours.send("end")
        messages, characters, closed = ours.recv()
        sent = sending.finish()
        if not late:
            raise RuntimeError(f"no row came into the page within {seconds:.0f} s; it is {connected} clients")
        told = (f"{quantile(late, share) * 1000:.0f}" for share in (0.5, 0.95, 0.99))
        row(
            url.partition(":")[0], f"{sent:,.0f}", connected, "yes" if compressed else "no", len(late), *told,
            f"{max(late) * 1000:.0f}", *(f"{each:.0%}" for each in busy),
            f"{messages / max(1, clients - 1) / (took + WARM_SECONDS):.1f}",
            f"{characters / max(1, messages) / 1000:.0f}", closed,
        )  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rate", type=float, default=2000.0, help="events per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=200, help="the browser among them")
    parser.add_argument("--uncompressed", action="store_true")
    parser.add_argument("--only", choices=("redis", "amqp"), default="redis")
    given = parser.parse_args()
    headed(f"Live: {given.rate:,.0f} events/s, {given.clients} clients")
    columns(
        "broker", "events/s sent", "clients", "compressed", "rows seen", "p50 ms", "p95 ms", "p99 ms", "max ms",
        "CPU web", "CPU receiver", "messages/s for each", "kB a message", "clients dropped",
    )  # fmt: skip
    for url in urls(given):
        measure(url, given.rate, given.seconds, given.clients, compressed=not given.uncompressed)
    ended()


if __name__ == "__main__":
    main()
