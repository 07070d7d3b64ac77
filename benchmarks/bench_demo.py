"""From ``celery-monitor demo`` on the command line to a page that shows live tasks.

    python benchmarks/bench_demo.py [--rounds N]

Counted from the start of the process: until the dashboard answers, until it prints its address, until a task stands in
the list of the page as anybody would get it. Each round has a folder, a port and a Redis of its own.
"""

import http.client
import re
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measuring import columns, ended, headed, load, median, options, row, running, until
from tests.servers import free_port

PAUSE_SECONDS = 0.02


def page(port: int, path: str) -> str:
    """What is there; nothing while nobody answers."""
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
    except OSError:
        return ""


def start() -> tuple[float, float, float]:
    """Seconds until it answers, until it says so, until a task is shown."""
    with TemporaryDirectory(prefix="bench-demo-") as folder:
        port = free_port()
        command = [sys.executable, "-m", "celery_monitor", "demo", "--port", str(port)]
        began = time.monotonic()
        with running(command, Path(folder), PYTHONUNBUFFERED="1"):
            log = Path(folder) / "log"
            until(lambda: page(port, "/healthcheck"), "the dashboard", PAUSE_SECONDS)
            answers = time.monotonic() - began
            until(lambda: "Dashboard:" in log.read_text(), "the greeting", PAUSE_SECONDS)
            greets = time.monotonic() - began
            until(lambda: re.search(r'data-key="', page(port, "/tasks")), "a task", PAUSE_SECONDS)
            return answers, greets, time.monotonic() - began


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    headed("The demo, from the command to live tasks")
    columns("round", "answers s", "says its address s", "a task is shown s", "load")
    found = []
    for number in range(given.rounds):
        found.append(start())
        row(number + 1, *(f"{each:.1f}" for each in found[-1]), load())
    row("median", *(f"{median(each):.1f}" for each in zip(*found, strict=True)), "")
    ended()


if __name__ == "__main__":
    main()
