"""A steady stream for a minute, with the web process and an open browser: what is lost, how far behind, at what CPU.

    python benchmarks/bench_sustained.py [--rate N] [--seconds N] [--page /] [--only redis|amqp]

The publisher, the broker and the browser run on the same machine and take their share of it. Each event is stamped
when it is sent; the lag is what /api/v1/health says four times a second. Every task that was sent to its end must be
stored with that end; the others (a few per worker, still running when the stream stops) are not counted.
"""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.flow import Flow, Sending
from benchmarks.measuring import (
    chromium,
    columns,
    cpu_seconds,
    ended,
    headed,
    memory,
    options,
    quantile,
    row,
    sampling,
    until,
    urls,
)
from benchmarks.peer import settled
from benchmarks.stream import publisher
from celery_monitor.records.task import TaskState
from tests.faults.dashboard import Dashboard, serving

SAMPLE_SECONDS = 0.25
WARM_SECONDS = 2.0
SPANS = 6  # the lag is also told by sixths of the time


def stored(dashboard: Dashboard, ends: Mapping[TaskState, int]) -> dict[TaskState, int]:
    counts = dashboard.counts(*(state.word for state in ends))
    return {state: counts[state.word] for state in ends}


def lost(dashboard: Dashboard, sent: Mapping[TaskState, int]) -> int:
    """Tasks that were sent to their end and are not stored with it, once nothing more comes."""
    settled(lambda: sum(stored(dashboard, sent).values()), sum(sent.values()))
    found = stored(dashboard, sent)
    return sum(abs(count - found[state]) for state, count in sent.items())


def gaps(dashboard: Dashboard) -> int:
    """Without that of the first start, of which nothing is known."""
    return sum(each["dropped"] != 0 for each in dashboard.health()["gaps"])


def measure(url: str, rate: float, seconds: float, page: str) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-sustained-")))
        dashboard = stack.enter_context(serving(url, directory))
        until(dashboard.connected, "connecting")
        tab = stack.enter_context(chromium()).new_page(viewport={"width": 1400, "height": 900})
        tab.goto(f"{dashboard.url}{page}")
        tab.wait_for_selector('#live[data-live="live"]', timeout=20_000)
        out = stack.enter_context(publisher(url))
        receiver, web = dashboard.pid("receiver"), dashboard.pid("web")
        flow = Flow()
        sending = Sending(out, flow, rate)
        sending.start()
        time.sleep(WARM_SECONDS)
        before, began = (cpu_seconds(receiver), cpu_seconds(web)), time.monotonic()
        with sampling(lambda: float(dashboard.health()["lag_seconds"] or 0.0), SAMPLE_SECONDS) as lags:
            time.sleep(seconds)
        took = time.monotonic() - began
        busy = [(cpu_seconds(pid) - was) / took for pid, was in zip((receiver, web), before, strict=True)]
        sent = sending.finish()
        live = tab.locator("#live").get_attribute("data-live")
        missing = lost(dashboard, flow.sent)
        broker = url.partition(":")[0]
        told = (f"{quantile(lags, 0.5):.2f}", f"{quantile(lags, 0.99):.2f}", f"{max(lags):.2f}")
        cpu = (f"{each:.0%}" for each in busy)
        row(broker, page, f"{sent:,.0f}", f"{flow.events:,}", missing, gaps(dashboard), *told, *cpu,
            f"{memory(receiver, 'VmHWM'):.0f} MB", live)  # fmt: skip
        part = max(1, len(lags) // SPANS)
        series = ", ".join(f"{max(lags[at : at + part]):.2f}" for at in range(0, part * SPANS, part))
        print(f"<!-- {broker}: largest lag in each sixth of the time: {series} -->", flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rate", type=float, default=20_000.0, help="events per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--page", default="/", help="what the browser looks at: / or /tasks")
    parser.add_argument("--only", choices=("redis", "amqp"))
    given = parser.parse_args()
    headed(f"Sustained: {given.rate:,.0f} events/s for {given.seconds:.0f} s, web process, one browser")
    columns(
        "broker", "page", "events/s sent", "events", "tasks lost", "gaps", "lag p50 s", "lag p99 s", "lag max s",
        "CPU receiver", "CPU web", "receiver's largest", "the page is",
    )  # fmt: skip
    for url in urls(given):
        measure(url, given.rate, given.seconds, given.page)
    ended()


if __name__ == "__main__":
    main()
