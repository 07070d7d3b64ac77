"""A burst: 1,000,000 events, encoded before and written as fast as the broker takes them; then Flower on the same.

    python benchmarks/bench_burst.py [--events N] [--per-message N] [--only redis|amqp] [--without-flower]

It ends by itself when nothing more is stored for a while, and with exit code 1 where one of our tasks is missing.

*stored* counts tasks that stand in the record with the end that was sent; a gap is what the product itself shows as
missing. The broker is not asked to wait for its subscribers: Redis cuts off one that is 32 MB behind. For Flower,
*stored* is the number of events that its metrics count.
"""

import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.bench_sustained import gaps, stored
from benchmarks.burst import AmqpBurst, RedisBurst, prepare
from benchmarks.flow import Flow
from benchmarks.measuring import columns, cpu_seconds, ended, headed, memory, options, row, until, urls
from benchmarks.peer import flower, settled
from benchmarks.stream import EVENTS_OF_A_TASK, Message, heartbeat, publisher
from celery_monitor.records.task import TaskState
from tests.faults.dashboard import serving

SETTLE_SECONDS = 2.0
QUIET_SECONDS = 20.0


class Burst:
    """Messages prepared for one broker, and how they were sent."""

    def __init__(self, events: int, per_message: int) -> None:
        flow = Flow(per_message, min(events, 300_000))
        self.messages: list[Message] = []
        for message in flow:
            self.messages.append(message)
            if flow.events >= events:
                break
        self.events = flow.events
        self.ends: Counter[TaskState] = flow.sent
        self.seconds = 0.0

    def send(self, prepared: RedisBurst | AmqpBurst) -> None:
        self.seconds = prepared.send()


def ours(url: str, burst: Burst) -> bool:
    """Whether every task is stored as it was sent."""
    prepared = prepare(url, burst.messages)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-burst-")))
        dashboard = stack.enter_context(serving(url, directory))
        until(dashboard.connected, "connecting")
        out = stack.enter_context(publisher(url))
        out.publish(heartbeat())
        until(lambda: dashboard.health()["events_total"], "the first event")
        time.sleep(SETTLE_SECONDS)
        receiver = dashboard.pid("receiver")
        before, cpu = memory(receiver), cpu_seconds(receiver)
        began = time.monotonic()
        burst.send(prepared)
        total = sum(burst.ends.values())
        found = settled(lambda: sum(stored(dashboard, burst.ends).values()), total, QUIET_SECONDS)
        took = time.monotonic() - began
        cpu = cpu_seconds(receiver) - cpu
        wrong = sum(abs(count - stored(dashboard, burst.ends)[state]) for state, count in burst.ends.items())
        health = dashboard.health()
        row(
            url.partition(":")[0], "ours", f"{burst.events:,}", f"{burst.events / burst.seconds:,.0f}",
            f"{found:,} of {total:,} tasks", f"{wrong:,}", f"{health['dropped_total']:,}", gaps(dashboard),
            f"{took:.1f}" if found == total else "not all came", f"{cpu:.1f}", f"{before:.0f}",
            f"{memory(receiver, 'VmHWM'):.0f}",
        )  # fmt: skip
        return not wrong


def flowers(url: str, burst: Burst) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-burst-")))
        out = stack.enter_context(publisher(url))
        most = burst.events // EVENTS_OF_A_TASK
        peer = stack.enter_context(flower(url, out, directory, most_tasks=most))
        time.sleep(SETTLE_SECONDS)
        before, cpu, goal = peer.memory(), peer.cpu_seconds, peer.events + burst.events
        began = time.monotonic()
        burst.send(prepare(url, burst.messages))
        came = settled(lambda: peer.events, goal, QUIET_SECONDS)
        took = time.monotonic() - began
        missing = goal - came
        row(
            url.partition(":")[0], "Flower", f"{burst.events:,}", f"{burst.events / burst.seconds:,.0f}",
            f"{burst.events - missing:,} events", f"{missing:,} events", "not told", "not told",
            f"{took:.1f}" if not missing else "not all came", f"{peer.cpu_seconds - cpu:.1f}", f"{before:.0f}",
            f"{peer.memory('VmHWM'):.0f}",
        )  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--per-message", type=int, default=10)
    parser.add_argument("--only", choices=("redis", "amqp"))
    parser.add_argument("--without-flower", action="store_true")
    given = parser.parse_args()
    headed(f"Burst: {given.events:,} events, {given.per_message} in a message")
    columns(
        "broker", "who", "events", "events/s sent", "stored", "lost", "told as dropped", "gaps",
        "s until all is stored", "CPU s", "MB before", "MB at most",
    )  # fmt: skip
    complete = True
    for url in urls(given):
        complete &= ours(url, Burst(given.events, given.per_message))
        if not given.without_flower:
            flowers(url, Burst(given.events, given.per_message))
    ended()
    sys.exit(not complete)


if __name__ == "__main__":
    main()
