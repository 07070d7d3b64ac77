"""The receiver's memory while tasks come and come: its resident size at 100 thousand, 1 million, 10 million tasks.

    python benchmarks/bench_memory.py [--tasks N] [--only redis|amqp] [--flower-tasks N] [--without-flower]

The stream waits for the receiver, so this is no burst: at most 60,000 events are on their way. 10 million tasks are
30 million events, which take ten minutes and more, and about 4 GB where temporary files are (TMPDIR). Beside it
Flower, by default with the 100 thousand tasks that it keeps at most.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.flow import HEARTBEAT_SECONDS, Flow
from benchmarks.measuring import columns, cpu_seconds, ended, headed, memory, options, row, until
from benchmarks.peer import flower
from benchmarks.stream import EVENTS_OF_A_TASK, Message, Publisher, heartbeat, publisher
from tests.faults.dashboard import serving

MARKS = (10_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
ON_THE_WAY = 60_000  # events
STEP = 200  # messages
SETTLE_SECONDS = 2.0


class Feed:
    """Sends a flow as fast as it is taken."""

    def __init__(self, out: Publisher, taken: Callable[[], int]) -> None:
        self.flow = Flow()
        self._source: Iterator[Message] = iter(self.flow)
        self._out = out
        self._taken = taken
        self._before = taken()
        self._beat_at = 0.0

    def up_to(self, tasks: int) -> None:
        """Until so many have ended, and all of it was taken."""
        while self.ended < tasks:
            if time.monotonic() > self._beat_at:
                self._out.publish(heartbeat())
                self._beat_at = time.monotonic() + HEARTBEAT_SECONDS
            self._out.publish(list(islice(self._source, STEP)))
            if self._left() > ON_THE_WAY:
                until(lambda: self._left() < ON_THE_WAY // 2, "taking the stream", 0.05)
        until(lambda: self._left() <= 0, "taking the stream")

    @property
    def ended(self) -> int:
        return sum(self.flow.sent.values())

    def _left(self) -> int:
        return self._before + self.flow.events - self._taken()


def marks(tasks: int) -> list[int]:
    return [*(each for each in MARKS if each < tasks), tasks]


def ours(url: str, tasks: int) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-memory-")))
        dashboard = stack.enter_context(serving(url, directory))
        until(dashboard.connected, "connecting")
        out = stack.enter_context(publisher(url))
        receiver = dashboard.pid("receiver")
        feed = Feed(out, lambda: int(dashboard.health()["events_total"] or 0))
        for mark in (0, *marks(tasks)):
            began, cpu = time.monotonic(), cpu_seconds(receiver)
            feed.up_to(mark)
            took, cpu = time.monotonic() - began, cpu_seconds(receiver) - cpu
            time.sleep(SETTLE_SECONDS)
            sizes = (f"{memory(receiver, name):.0f}" for name in ("VmRSS", "RssAnon", "VmHWM"))
            file = (directory / "record.db").stat().st_size / max(1, feed.ended)
            told = f"{file:,.0f}" if mark else ""
            row(url.partition(":")[0], "ours", f"{feed.ended:,}", *sizes, told, f"{took:.0f}", f"{cpu:.0f}")


def flowers(url: str, tasks: int) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-memory-")))
        out = stack.enter_context(publisher(url))
        peer = stack.enter_context(flower(url, out, directory, most_tasks=tasks * 2))
        feed = Feed(out, lambda: peer.events)
        first = 0.0
        for mark in (0, *(each for each in marks(tasks) if each <= tasks)):
            began, cpu = time.monotonic(), peer.cpu_seconds
            feed.up_to(mark)
            took, cpu = time.monotonic() - began, peer.cpu_seconds - cpu
            time.sleep(SETTLE_SECONDS)
            sizes = [peer.memory(name) for name in ("VmRSS", "RssAnon", "VmHWM")]
            first = first or sizes[0]
            each_task = f"{(sizes[0] - first) * 1_000_000 / feed.ended:,.0f} in memory" if feed.ended else ""
            row(url.partition(":")[0], "Flower", f"{feed.ended:,}", *(f"{each:.0f}" for each in sizes), each_task,
                f"{took:.0f}", f"{cpu:.0f}")  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--flower-tasks", type=int, default=100_000)
    parser.add_argument("--only", choices=("redis", "amqp"), default="redis")
    parser.add_argument("--without-flower", action="store_true")
    given = parser.parse_args()
    url = given.redis if given.only == "redis" else given.amqp
    headed(f"Memory of the receiver: up to {given.tasks:,} tasks of {EVENTS_OF_A_TASK} events, messages of 10")
    columns("broker", "who", "tasks", "MB", "of them its own", "MB at most", "bytes per task", "s", "CPU s")
    ours(url, given.tasks)
    if not given.without_flower:
        flowers(url, given.flower_tasks)
    ended()


if __name__ == "__main__":
    main()
