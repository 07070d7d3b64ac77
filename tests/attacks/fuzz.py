"""Made-up input at every door, by the thousand: ``python -m tests.attacks.fuzz --count 1000000 --seed 7``.

Each door takes one input, must end within the errors that it may raise, and is timed by the CPU of its thread; the
slowest input of each door is printed. Inputs are mutations of good ones: parts cut out, doubled, nested and replaced.
"""

import argparse
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.testclient import TestClient

from celery_monitor.core.arguments import judge
from celery_monitor.core.failures import signature
from celery_monitor.core.filters.parser import parse
from celery_monitor.core.message import Unreadable, facts, with_links
from celery_monitor.core.sanitize import Sanitizer
from celery_monitor.errors import FilterError, InvalidInput
from celery_monitor.receiver.decode import Content, decode, to_json
from celery_monitor.records.event import Message
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import Task, TaskState
from celery_monitor.settings import REDACTED_KEYS, Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.page import find_tasks
from celery_monitor.store.writer import Writer
from celery_monitor.web.live import parse_request
from celery_monitor.web.wording import exception_line, parts, short, visible
from tests.web.shop import BASE, fill, serving

FILTERS = (
    b"state:failed -name:report.* (queue:payments OR queue:mail) runtime:>5s received:>-1h",
    b'name:"shop.pay" wait:100ms..2s args:token kwargs.key:7 "connection reset"',
    b"root:00000000-0000-4000-8000-000000000065 retried:no group:open -state:revoked",
)
EVENTS = (
    b'{"type":"task-received","uuid":"u-31","timestamp":1796112584.5,"hostname":"w7@shop","name":"shop.pay",'
    b'"args":"(31, \\"EUR\\")","kwargs":"{\\"token\\": \\"x\\"}","pid":7,"clock":3,"retries":0,"eta":null}',
    b'[{"type":"task-failed","uuid":"u-32","timestamp":1796112585.5,"hostname":"w7@shop","exception":"E(1)",'
    b'"traceback":"Traceback","runtime":1.5},{"type":"worker-heartbeat","timestamp":1.5,"hostname":"w","freq":2.0}]',
)
BODIES = (
    b'{"confirm": true, "reason": "again"}',
    b'{"action": "retry", "q": "state:failed", "rate": 5.5}',
    b'{"name": "shop.pay", "queue": "payments", "args": [1, {"a": null}], "kwargs": {"k": "v"}}',
    b'{"number": 2, "queue": "payments", "stamps": ["b7"], "header": "batch"}',
)
CAPTURED = b'[[31, "EUR"], {"key": "v", "deep": {"a": [1, 2]}}, {"callbacks": null, "chain": [], "chord": null}]'
HEADERS = b'{"id":"u-31","task":"shop.pay","stamps":{"a":1}}'
FAILURE = b"Traceback (most recent call last):\n  File \"/srv/shop/pay.py\", line 7, in charge\nE: card 'x\\'y' at 12"
FRAME = b'{"view":"/tasks?q=state%3Afailed","held":["a","b"],"deflate":true}'
PIECES = (
    *(b'"', b"\\", b"{", b"[", b"(", b")", b"]", b"}", b":", b",", b"'", b"-", b"*", b"\0", b"\xff", b"\xed\xa0\x80"),
    *(b"\\u0000", b"\\ud800", b"1e308", b"-1", b"NaN", b"null", b"true", b"://u:p@h", b"token=", b"OR", b"..", b"%00"),
    *(b"1e400", b"2147483648", b")" * 300, b"\\'" * 200, b".zip/" * 100, b'  File "a.py", line 1\n' * 20),
    *(b"[" * 200, b"(" * 200, b"\\" * 300, b"9" * 300, b"a" * 300, b'{"a":' * 100),
)
UNSAFE_PATHS = (
    "/api/v1/tasks/u-31/retry",
    "/api/v1/tasks/u-31/revoke",
    "/api/v1/bulk/preview",
    "/api/v1/run",
    "/api/v1/views/save",
    "/api/v1/workers/w7@shop/grow",
    "/api/v1/queues/payments/messages",
    "/api/v1/failures/1/mute",
)
NOW = 1796112590.0
Door = Callable[[bytes], None]


def mutated(random_source: random.Random, seed: bytes) -> bytes:
    """The seed with a few changes."""
    data = bytearray(seed)
    for _ in range(random_source.randint(1, 6)):
        at = random_source.randrange(len(data) + 1)
        to = min(len(data), at + random_source.randint(0, 12))
        kind = random_source.randrange(4)
        if kind == 0:
            del data[at:to]
        elif kind == 1:
            data[at:at] = data[at:to] * random_source.randint(1, 20)
        elif kind == 2:
            data[at:to] = random_source.choice(PIECES)
        else:
            data[at:at] = random_source.choice(PIECES)
    return bytes(data)


class Doors:
    """What takes an input, each by a method; on a small record of its own."""

    def __init__(self, client: TestClient, store: Store) -> None:
        self._client = client
        self._store = store
        self._writer = Writer(store, "shop", Settings())
        self._sanitizer = Sanitizer(65536, REDACTED_KEYS)
        self._task = Task(cluster="shop", id="u-31", state=TaskState.FAILURE, name="shop.pay", args="(31, 'EUR')")
        self._posted = 0

    def read_filter(self, data: bytes) -> None:
        with suppress(FilterError, InvalidInput):
            find_tasks(self._store, parse(data.decode("utf-8", "surrogateescape"), NOW), limit=5)

    def read_event(self, data: bytes) -> None:
        events, _ = decode(data)
        list(self._sanitizer.clean_all(events))

    def store_event(self, data: bytes) -> None:
        events, malformed = decode(data)
        self._writer.write([Delivery(list(events), NOW, malformed)])

    def read_packed_event(self, data: bytes) -> None:
        for kind in ("application/x-msgpack", "application/x-yaml", "application/x-pickle"):
            to_json(data, Content(kind))
        for compression in ("gzip", "bzip2", "xz", "brotli"):
            to_json(data, Content("application/json", compression))
        to_json(zlib.compress(data), Content("application/json", "application/x-gzip"))

    def show_text(self, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        signature("shop.pay", text, text)
        parts(text)
        exception_line(text)
        short(visible(text))

    def read_captured_body(self, data: bytes) -> None:
        message = Message(
            why="failed",
            size=len(data),
            headers='{"id": "u-31", "task": "shop.pay"}',
            properties="{}",
            body=data,
            content_type="application/json",
            content_encoding="utf-8",
            routing_key="payments",
        )
        judge(self._task, with_links(message))

    def read_captured_headers(self, data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        with suppress(Unreadable):
            facts(Message(why="failed", size=0, headers=text, properties=text))

    def post(self, data: bytes) -> None:
        self._posted += 1
        path = UNSAFE_PATHS[self._posted % len(UNSAFE_PATHS)]
        answer = self._client.post(path, content=data, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500 or answer.status_code == 501, (path, answer.status_code, answer.text)

    def show(self, data: bytes) -> None:
        answer = self._client.get("/tasks", params={"q": data.decode("utf-8", "replace")})
        assert answer.status_code < 500, answer.text

    def read_frame(self, data: bytes) -> None:
        parse_request(data.decode("utf-8", "replace"))

    def all(self) -> dict[str, tuple[tuple[bytes, ...], float, Door]]:
        """By name: seeds, the share of all inputs, and what takes one."""
        return {
            "filter": (FILTERS, 0.1, self.read_filter),
            "event": (EVENTS, 0.45, self.read_event),
            "event, stored": (EVENTS, 0.02, self.store_event),
            "event, msgpack and YAML": (EVENTS, 0.02, self.read_packed_event),
            "captured body": ((CAPTURED,), 0.19, self.read_captured_body),
            "text of a failure": ((FAILURE,), 0.01, self.show_text),
            "captured headers": ((HEADERS,), 0.1, self.read_captured_headers),
            "API body": (BODIES, 0.01, self.post),
            "page of tasks": (FILTERS, 0.005, self.show),
            "websocket frame": ((FRAME,), 0.095, self.read_frame),
        }


@contextmanager
def opened_doors() -> Iterator[Doors]:
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder)}/record.db"
        with serving(Settings(secret_key="a key"), url) as app:
            fill(app.state.store)
            yield Doors(TestClient(app, base_url=BASE, raise_server_exceptions=False), app.state.store)


def fuzz(count: int, seed: int) -> dict[str, tuple[int, float, bytes]]:
    """For each door: how many inputs, the CPU seconds of the slowest, and that input."""
    found = {}
    with opened_doors() as doors:
        for name, (seeds, share, door) in doors.all().items():
            source = random.Random(f"{seed} {name}")
            slowest, worst = 0.0, b""
            number = max(1, int(count * share))
            for _ in range(number):
                data = mutated(source, source.choice(seeds))
                began = time.thread_time()
                try:
                    door(data)
                except BaseException:
                    print(f"{name}: {data!r}", file=sys.stderr)  # noqa: T201
                    raise
                took = time.thread_time() - began
                if took > slowest:
                    slowest, worst = took, data
            found[name] = (number, slowest, worst)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    for door_name, (inputs, seconds, data) in fuzz(given.count, given.seed).items():
        print(f"{door_name}: {inputs} inputs, the slowest {seconds * 1000:.1f} ms: {data[:120]!r}")  # noqa: T201
