"""80,000 events with 20,000 distinct names, hosts and queues: receiver, pages and API, measured from outside.

python benchmarks/cardinality.py [--distinct N] [--rest SECONDS] [--redis URL]
"""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measuring import columns, ended, headed, options, row, until
from benchmarks.stream import Message, publisher
from tests.faults.dashboard import serving

EVENTS_OF_A_TASK = 4
PATIENCE_SECONDS = 60.0
PATHS = (
    "/",
    "/queues",
    "/workers",
    "/tasks",
    "/failures",
    "/schedule",
    "/queues/queue7",
    "/workers/worker7@shop",
    "/run",
    "/api/v1/queues",
    "/api/v1/workers",
    "/api/v1/failures",
    "/api/v1/health",
    "/api/v1/tasks",
    "/metrics",
)


def distinct_messages(distinct: int, begin: float) -> Iterator[Message]:
    """A task of every name, on a host and in a queue of its own; every fourth fails."""
    for number in range(distinct):
        uuid = str(UUID(int=number + 1, version=4))
        host, task = f"worker{number}@shop", {"name": f"shop.task{number}", "args": "()"}
        ended: dict[str, object] = {"type": "task-succeeded", "result": "'OK'", "runtime": 0.01}
        if number % 4 == 0:
            ended = {"type": "task-failed", "exception": f"Error{number}('no')", "traceback": ""}
        events: tuple[dict[str, object], ...] = (
            {"type": "task-sent", "hostname": "gen1@web", "queue": f"queue{number}", **task},
            {"type": "task-received", "hostname": host, **task},
            {"type": "task-started", "hostname": host},
            {"hostname": host, **ended},
        )
        for clock, event in enumerate(events):
            body = {"uuid": uuid, "utcoffset": 0, "pid": 4000, "clock": clock, "timestamp": begin + clock / 1000}
            yield str(event["type"]).replace("-", "."), json.dumps({**body, **event}).encode()


def resident(job: str, parent: int) -> int:
    """The most megabytes that the child process with this job has used."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().rstrip().endswith(job):
            return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) // 1000
    return 0


def fetched(url: str) -> tuple[float, int | str]:
    """Seconds and bytes."""
    began = time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
            size: int | str = len(answer.read())
    except urllib.error.HTTPError as error:
        size = f"status {error.code}"
    except OSError as error:
        size = str(error)
    return time.monotonic() - began, size


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--distinct", type=int, default=20_000)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds for sampler and reconciler")
    given = parser.parse_args()
    headed("20,000 names, hosts and queues")
    with TemporaryDirectory() as directory, serving(given.redis, Path(directory)) as dashboard:
        until(dashboard.connected, "connecting")
        began = time.monotonic()
        goal = given.distinct * EVENTS_OF_A_TASK
        with publisher(given.redis) as sender:
            sender.publish(distinct_messages(given.distinct, time.time()))
        until(lambda: dashboard.health()["events_total"] >= goal, "storing the events", 0.5)
        columns("what", "figure")
        row("seconds until stored", f"{time.monotonic() - began:.1f}")
        time.sleep(given.rest)
        for path in PATHS:
            seconds, size = fetched(f"{dashboard.url}{path}")
            row(path, f"{seconds:.2f} s, {size} bytes" if isinstance(size, int) else f"{seconds:.2f} s, {size}")
        row("receiver", f"{resident('receiver of shop', dashboard.process.pid)} MB")
        row("web", f"{resident(' web', dashboard.process.pid)} MB")
        print(dashboard.log[-4000:])
    ended()


if __name__ == "__main__":
    main()
