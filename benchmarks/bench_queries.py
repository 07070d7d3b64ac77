"""Pages over a large record, over HTTP from ``celery-monitor web``: list, filter, detail, next page, overview, text.

    python benchmarks/bench_queries.py [--tasks N] [--database sqlite:////tmp/ten-million.db] [--times N]

The record is that of benchmarks/ugly.py: a day of a million tasks through the product's own writer (two minutes);
for more, that day again and again (half a minute and more for each, benchmarks/repeat.py). With --database it is kept
and used again. Nothing is dropped from the operating system's memory before.
Each page is asked for once (*first*) and then --times times over one connection; details and next pages are those of
different tasks and different places. The CPU is that of the server for each request. Beside it Flower's page of
tasks, and the data that it then asks for, with as many tasks as it keeps at most.
"""

import http.client
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from html import unescape
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import ugly
from benchmarks.bench_memory import Feed
from benchmarks.measuring import columns, cpu_seconds, ended, headed, median, options, quantile, row
from benchmarks.peer import flower
from benchmarks.repeat import repeat
from benchmarks.stream import publisher
from celery_monitor.store.engine import open_store
from celery_monitor.store.tasks.page import count_states
from tests.servers import free_port

DAY_OF_TASKS = 1_000_000
LIST, TOTAL, TEXT = 50, 100, 300  # ms that a page may take
STEPS = 50  # pages that "next page" goes through


def tasks(query: str) -> str:
    return f"/tasks?q={quote(query)}"


PAGES = (
    ("list", tasks(""), LIST),
    ("failed", tasks("state:failed"), LIST),
    ("unfinished", tasks("state:unfinished"), LIST),
    ("not succeeded", tasks("-state:succeeded"), LIST),
    ("a common name", tasks(f"name:{ugly.PARTS[0]}.step0"), LIST),
    ("a rare name", tasks(f"name:{ugly.PARTS[3]}.step443"), LIST),
    ("a name's failures", tasks(f"name:{ugly.PARTS[0]}.step0 state:failed"), LIST),
    ("names by wildcard", tasks(f"name:{ugly.PARTS[3]}.*"), LIST),
    ("a queue", tasks(f"queue:{ugly.PARTS[7]}-7"), LIST),
    ("a worker", tasks("worker:worker7@shop"), LIST),
    ("a worker's failures", tasks("worker:worker7@shop state:failed"), LIST),
    ("a failure group", tasks("group:17"), LIST),
    ("the last hour", tasks("received:>-1h"), LIST),
    ("failures of the last hour", tasks("state:failed received:>-1h"), LIST),
    ("run time above 5 s", tasks("runtime:>5s"), LIST),
    ("several at once", ugly.SHOWN[4][1], LIST),
    ("sorted by run time", "/tasks?sort=-runtime", LIST),
    ("bare word, common", tasks("EUR"), TEXT),
    ("bare word, rare", tasks("EUR 77"), TEXT),
    ("bare word that nothing has", tasks("nothing-like-this"), TEXT),
    ("an argument", tasks("kwargs.card:visa state:failed"), TEXT),
    ("an exception", tasks("exception:Declined"), TEXT),
    ("overview", "/", TOTAL),
    ("overview, 7 days", "/?range=7d", TOTAL),
    ("failure groups", "/failures", TOTAL),
    ("a failure group's page", "/failures/17", TOTAL),
    ("API: list", "/api/v1/tasks?limit=50", LIST),
    ("API: failed", "/api/v1/tasks?limit=50&q=state:failed", LIST),
)


class Client:
    """One connection that stays open."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self.milliseconds = 0.0

    def get(self, path: str) -> str:
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        self.milliseconds = (time.perf_counter() - began) * 1000
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}")
        return body.decode()


def next_pages(client: Client, query: str, count: int) -> Iterator[str]:
    path = tasks(query)
    for _ in range(count):
        found = re.search(r'rel="next" href="([^"]+)"', client.get(path))
        if found is None:
            return
        path = unescape(found.group(1))
        yield path


def measure(client: Client, pid: int, title: str, paths: Sequence[str], times: int, limit: int | None) -> None:
    first, size, spent = 0.0, 0, []
    began = 0.0
    for number, path in enumerate(islice(cycle(paths), times + 1)):
        if number == 1:
            began = cpu_seconds(pid)
        size = len(client.get(path))
        if number:
            spent.append(client.milliseconds)
        else:
            first = client.milliseconds
    cpu = (cpu_seconds(pid) - began) * 1000 / times
    high = quantile(spent, 0.95)
    verdict = "" if limit is None else "yes" if high <= limit else f"no: {limit}"
    row(title, f"{size:,}", f"{first:.0f}", f"{median(spent):.0f}", f"{high:.0f}", f"{cpu:.0f}", verdict)


def prepared(database: str, wanted: int) -> int:
    """Makes the record unless it is there; gives the number of its tasks."""
    store = open_store(database)
    if not any(count_states(store).values()):
        began = time.monotonic()
        ugly.fill(store, min(wanted, DAY_OF_TASKS))
        repeat(store, wanted // DAY_OF_TASKS)
        print(f"made in {time.monotonic() - began:.0f} s\n", flush=True)
    ugly.freshen(store)
    total = sum(count_states(store).values())
    store.close()
    return total


def ours(database: str, times: int) -> None:
    port = free_port()
    with ugly.served(database, port) as process, closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        client = Client(connection)
        deep = [tasks(""), *next_pages(client, "", STEPS)]
        failed = [tasks("state:failed"), *next_pages(client, "state:failed", STEPS)]
        ids = [re.findall(r'href="(/tasks/[^"?]+)', client.get(path)) for path in deep[::10] + failed[::10]]
        details = [unescape(path) for page in ids for path in dict.fromkeys(page)][: 4 * times : 4]
        measure(client, process.pid, "a task", details, times, LIST)
        measure(client, process.pid, "next page", deep[1:], times, LIST)
        measure(client, process.pid, "next page of failed", failed[1:], times, LIST)
        for title, path, limit in PAGES:
            measure(client, process.pid, title, [path], times, limit)


def flowers(url: str, number: int, times: int) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-queries-")))
        out = stack.enter_context(publisher(url))
        peer = stack.enter_context(flower(url, out, directory, most_tasks=number))
        Feed(out, lambda: peer.events).up_to(number)
        client = Client(stack.enter_context(closing(http.client.HTTPConnection(urlsplit(peer.address).netloc))))
        asked = (
            "/tasks/datatable?draw=1&start={}&length=50&search[value]={}"
            "&order[0][column]=0&order[0][dir]=desc&columns[0][data]=received"
        )
        pages = [
            ("page of tasks, empty", ["/tasks"]),
            ("rows of the newest", [asked.format(0, "")]),
            ("rows of next pages", [asked.format(50 * each, "") for each in range(1, STEPS)]),
            ("rows of the failed", [asked.format(0, "state:FAILURE")]),
            ("rows of a bare word", [asked.format(0, "EUR")]),
        ]
        for title, paths in pages:
            measure(client, peer.process.pid, f"Flower, {number:,} tasks: {title}", paths, times, None)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, default=DAY_OF_TASKS, help="a number of millions, above one")
    parser.add_argument("--database", help="where the record is kept; else it is removed at the end")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--flower-tasks", type=int, default=100_000)
    parser.add_argument("--without-flower", action="store_true")
    given = parser.parse_args()
    headed(f"Pages: {given.tasks:,} tasks, {given.times} requests each")
    with TemporaryDirectory(prefix="bench-queries-") as folder:
        database = given.database or f"sqlite:///{folder}/record.db"
        print(f"{prepared(database, given.tasks):,} tasks\n", flush=True)
        columns("page", "bytes", "first ms", "p50 ms", "p95 ms", "CPU ms", "p95 reached")
        ours(database, given.times)
    if not given.without_flower:
        flowers(given.redis, given.flower_tasks, given.times)
    ended()


if __name__ == "__main__":
    main()
