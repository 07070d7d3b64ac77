"""Hours of work in one run: a steady stream with retention on, looked at every few seconds.

    python benchmarks/soak.py [--minutes N] [--rate N] [--keep-tasks N] [--broker URL] [--csv FILE] [--plot FILE.svg]

Samples the receiver's and the web process's memory, the lag, the size of the file with its log and of the spool, and
what was stored and deleted. At the end nothing may be missing: as many tasks were stored as were sent, what is left is
what was stored without what was deleted, and the counters say what a count of the rows says. The file and the memory
are to be flat once retention works; the plot shows whether they are.
"""

import csv
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.flow import Flow, Sending
from benchmarks.measuring import (
    MEGABYTE,
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
)
from benchmarks.peer import settled
from benchmarks.stream import publisher
from tests.faults.dashboard import Dashboard, serving

SAMPLE_SECONDS = 5.0
WIDTH, HEIGHT, LEFT, PANEL = 720, 110, 64, 26  # of one panel in the plot; room for its numbers and its title
STROKE = "#3b6ea8"
GREY = "#777"


class Sample(NamedTuple):
    """What was seen at a moment; MB, seconds, tasks."""

    seconds: float
    receiver_mb: float
    web_mb: float
    lag_seconds: float
    file_mb: float
    log_mb: float
    spool_mb: float
    sent: int
    stored: int
    kept: int
    deleted: int
    receiver_cpu: float
    web_cpu: float


TITLES = {
    "receiver_mb": "receiver, MB",
    "web_mb": "web process, MB",
    "lag_seconds": "lag, s",
    "file_mb": "database file, MB",
    "log_mb": "write-ahead log, MB",
    "spool_mb": "spool, MB",
    "kept": "tasks kept",
    "deleted": "tasks deleted",
}


def size(path: Path) -> float:
    return path.stat().st_size / MEGABYTE if path.exists() else 0.0


def numbers(file: Path) -> tuple[int, int]:
    """Tasks that are kept by the counters, and that were ever stored: they are numbered from 1."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        kept = connection.execute("SELECT coalesce(sum(count), 0) FROM task_count").fetchone()[0]
        last = connection.execute("SELECT coalesce(max(id), 0) >> 6 FROM task").fetchone()[0]
    return int(kept), int(last)


class Watch:
    """Looks at a dashboard from outside."""

    def __init__(self, dashboard: Dashboard, flow: Flow) -> None:
        self._dashboard = dashboard
        self._flow = flow
        self._began = time.monotonic()
        self.receiver, self.web = dashboard.pid("receiver"), dashboard.pid("web")

    def look(self) -> Sample:
        file = self._dashboard.database
        spool = file.with_name(f"{file.name}.spool")
        kept, stored = numbers(file)
        return Sample(
            seconds=round(time.monotonic() - self._began, 1),
            receiver_mb=memory(self.receiver),
            web_mb=memory(self.web),
            lag_seconds=float(self._dashboard.health()["lag_seconds"] or 0.0),
            file_mb=size(file),
            log_mb=size(file.with_name(f"{file.name}-wal")),
            spool_mb=sum(size(each) for each in spool.rglob("*.spool")) if spool.is_dir() else 0.0,
            sent=sum(self._flow.sent.values()),
            stored=stored,
            kept=kept,
            deleted=stored - kept,
            receiver_cpu=cpu_seconds(self.receiver),
            web_cpu=cpu_seconds(self.web),
        )


def short(value: float) -> str:
    """As many digits as an axis needs."""
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.2g}"


def plot(samples: Sequence[Sample]) -> str:
    """A panel for each of TITLES, one under the other, over the same time; plain SVG."""
    last = max(samples[-1].seconds, 1.0)
    parts = []
    for number, (name, title) in enumerate(TITLES.items()):
        values = [float(getattr(each, name)) for each in samples]
        top, most = number * (HEIGHT + PANEL) + PANEL, max(*values, 1e-9)
        points = " ".join(
            f"{LEFT + each.seconds / last * WIDTH:.1f},{top + HEIGHT - value / most * HEIGHT:.1f}"
            for each, value in zip(samples, values, strict=True)
        )
        parts.append(
            f'<text x="{LEFT}" y="{top - 7}" font-weight="600">{title}</text>'
            f'<path d="M{LEFT} {top}v{HEIGHT}h{WIDTH}" fill="none" stroke="{GREY}" stroke-opacity=".5"/>'
            f'<text x="{LEFT - 6}" y="{top + 9}" text-anchor="end">{short(max(values))}</text>'
            f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>'
            f'<polyline points="{points}" fill="none" stroke="{STROKE}" stroke-width="1.5"/>'
        )
    height = len(TITLES) * (HEIGHT + PANEL) + PANEL
    parts.append(f'<text x="{LEFT + WIDTH}" y="{height - 6}" text-anchor="end">{last / 60:.1f} minutes</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 16} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{GREY}">{"".join(parts)}</svg>\n'
    )


def save(samples: Sequence[Sample], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(Sample._fields)
        writer.writerows([round(value, 3) for value in each] for each in samples)


def judge(dashboard: Dashboard, flow: Flow) -> bool:
    """Waits for the last events; compares what was sent, stored, deleted and counted."""
    begun = flow.tasks
    settled(lambda: numbers(dashboard.database)[1], begun)
    kept, stored = numbers(dashboard.database)
    with closing(sqlite3.connect(f"file:{dashboard.database}?mode=ro", uri=True)) as connection:
        connection.execute("BEGIN")  # one moment for both
        listed = dict(connection.execute("SELECT state, count(*) FROM task GROUP BY state").fetchall())
        counted = dict(connection.execute("SELECT state, sum(count) FROM task_count GROUP BY state").fetchall())
    ends = sum(dashboard.counts("succeeded", "failed").values())
    print(f"\ntasks sent {begun:,}, stored {stored:,}; kept {kept:,}, deleted {stored - kept:,}")
    print(f"rows by state {listed}, counters {counted}; {ends:,} ended by the API")
    health = dashboard.health()
    gaps = [each for each in health["gaps"] if each["dropped"] != 0]
    print(f"dropped {health['dropped_total']}, gaps {len(gaps)}")
    right = stored == begun and listed == {state: count for state, count in counted.items() if count}
    print("the ledger is equal" if right else "THE LEDGER DIFFERS", flush=True)
    return right


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=5000.0, help="events per second")
    parser.add_argument("--keep-tasks", type=int, default=500_000)
    parser.add_argument("--broker", help="else that of --redis")
    parser.add_argument("--csv", type=Path, default=Path("soak.csv"))
    parser.add_argument("--plot", type=Path, default=Path("soak.svg"), help="the plot, an SVG")
    given = parser.parse_args()
    url = given.broker or given.redis
    headed(f"Soak: {given.rate:,.0f} events/s for {given.minutes:g} minutes on {urlsplit(url).scheme}")
    print(f"{given.keep_tasks:,} tasks are kept at most\n", flush=True)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-soak-")))
        dashboard = stack.enter_context(serving(url, directory, "--keep-tasks", str(given.keep_tasks)))
        until(dashboard.connected, "connecting")
        flow = Flow()
        sending = Sending(stack.enter_context(publisher(url)), flow, given.rate)
        watch = Watch(dashboard, flow)
        sending.start()
        with sampling(watch.look, SAMPLE_SECONDS) as samples:
            time.sleep(given.minutes * 60)
        sent = sending.finish()
        right = judge(dashboard, flow)
        save(samples, given.csv)
        given.plot.write_text(plot(samples), encoding="utf-8")
        told(samples, sent)
    ended()
    sys.exit(not right)


def told(samples: Sequence[Sample], sent: float) -> None:
    print(f"\n{sent:,.0f} events/s were sent\n")
    columns("of", "first third, most", "second third, most", "last third, most", "p99", "most")
    third = max(1, len(samples) // 3)
    for name, title in TITLES.items():
        values = [float(getattr(each, name)) for each in samples]
        parts = [max(values[at : at + third]) for at in (0, third, 2 * third) if values[at : at + third]]
        row(title, *(f"{each:,.1f}" for each in (*parts, quantile(values, 0.99), max(values))))
    first, last = samples[0], samples[-1]
    took = max(1.0, last.seconds - first.seconds)
    for who, cpu in (("receiver", last.receiver_cpu - first.receiver_cpu), ("web", last.web_cpu - first.web_cpu)):
        print(f"\nCPU of {who}: {cpu / took:.0%} of a core")


if __name__ == "__main__":
    main()
