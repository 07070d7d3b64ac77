"""Event traffic for tests: recorded from real workers, published again as celery.events publishes.

To record anew: ``python -m tests.receiver.traffic URL FILE`` runs a worker through every kind of task.
"""

import json
import socket
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
import redis
from celery import Celery
from celery.events.event import get_exchange
from kombu import Connection, Producer, Queue

from celery_monitor.receiver.sources.base import Source
from celery_monitor.records.event import Event
from tests.apps.basic import make_app
from tests.confirms import Confirms
from tests.workers import ROOT, Worker, running_worker, wait_for

RECORDED = Path(__file__).parent / "recorded"
SETTLE_SECONDS = 4
LAST = 999_999  # the clock of no other event
# A recording says nothing of the machine it was made on.
NEUTRAL = {sysconfig.get_path("purelib"): "/srv/python", str(ROOT): "/srv/shop", socket.gethostname(): "client"}


def recorded(name: str) -> list[tuple[str, str]]:
    """(routing key, body) of each message in a recording."""
    lines = (RECORDED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(message["routing_key"], message["body"]) for message in map(json.loads, lines)]


class Publisher:
    """Sends bodies as events, as they are."""

    def __init__(self, app: Celery, connection: Connection) -> None:
        self._exchange = get_exchange(connection, name=app.conf.event_exchange)
        channel = connection.channel()
        self._producer = Producer(channel, exchange=self._exchange)
        self._confirms = Confirms(channel) if connection.transport.driver_type == "amqp" else None

    def send(self, routing_key: str, body: str | bytes, **options: object) -> None:
        self._producer.publish(
            body,
            routing_key=routing_key,
            declare=[self._exchange],
            **{
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "headers": {"hostname": "worker7@shop"},
                "delivery_mode": 1,
                **options,
            },
        )
        if self._confirms is not None:
            self._confirms.sent()

    def wait(self) -> None:
        """Until the broker has everything that was sent."""
        if self._confirms is not None:
            self._confirms.wait()

    def send_numbered(self, first: int, last: int) -> None:
        """One task-received per number, the number being its clock."""
        for number in range(first, last + 1):
            self.send("task.received", numbered(number))


def numbered(number: int) -> str:
    return json.dumps(
        {
            "type": "task-received",
            "uuid": f"task-{number}",
            "name": "shop.pay",
            "hostname": "worker7@shop",
            "timestamp": 1_780_000_000.5 + number,
            "utcoffset": -7,
            "pid": 812,
            "clock": number,
        }
    )


@contextmanager
def publisher(url: str, **transport_options: object) -> Iterator[Publisher]:
    app = make_app(url, broker_transport_options=transport_options)
    with app.connection_for_write() as connection:
        sender = Publisher(app, connection)
        yield sender
        sender.wait()
    app.close()


def as_dicts(events: Iterable[Event]) -> list[dict[str, object]]:
    """The fields of events, as equal events may be of two classes."""
    return [msgspec.structs.asdict(event) for event in events]


def read_all(source: Source, expected: int) -> list[Event]:
    """Events until there are as many as expected; what has come after a minute in any case."""
    events: list[Event] = []
    deadline = time.monotonic() + 60
    while len(events) < expected and time.monotonic() < deadline:
        events += source.read(0.2).events
    return events


def read_for(source: Source, seconds: float, into: list[Event] | None = None) -> None:
    """Read for so long, or until it raises."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        events = source.read(1).events
        if into is not None:
            into += events


def read_rest(source: Source, url: str) -> list[Event]:
    """All events of senders that have ended: what arrives before one that is sent now."""
    with publisher(url) as publish:
        publish.send_numbered(LAST, LAST)
    events: list[Event] = []
    while LAST not in [event.clock for event in events]:
        batch = source.read(60).events
        assert batch, f"the last event did not arrive after {len(events)} others"
        events += batch
    return [event for event in events if event.clock != LAST]


def read_dropping(source: Source, expected: int) -> tuple[int, int]:
    """How many events arrive and how many are reported as dropped, until these are as many as expected."""
    arrived = dropped = 0
    while arrived + dropped < expected:
        delivery = source.read(60)
        assert delivery.events or delivery.dropped, f"{arrived} arrived and {dropped} were dropped, and no more"
        arrived += len(delivery.events)
        dropped += delivery.dropped
    return arrived, dropped


def wait_until_read(redis_url: str) -> None:
    """Until the subscribers of this Redis have read from their sockets all that was published."""
    server = f":{urlsplit(redis_url).port or 6379:04X}"
    with closing(redis.Redis.from_url(redis_url)) as client:

        def all_read() -> bool:
            subscribers = client.client_list(_type="pubsub")
            ends = {f":{int(each['addr'].rpartition(':')[2]):04X}" for each in subscribers}
            rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
            queues = [row[4] for row in rows if {row[1][8:], row[2][8:]} in [{server, end} for end in ends]]
            return {each["omem"] for each in subscribers} <= {"0"} and set(queues) <= {"00000000:00000000"}

        wait_for(all_read, what="the end of what was published")


def make_traffic(worker: Worker) -> None:
    """Every way a task can end that takes little time."""
    for number in range(4):
        worker.send("add", number, 40)
    worker.send("fail", "card 4711 declined")
    worker.send("retry_then_succeed")
    worker.send("reject")
    worker.send("ignore")
    worker.send("recurse", 3)
    worker.send("echo", "ünï\x00\u202e<b>", key=[1, {"a": None}])
    worker.send("add", 1, 2, expires=-1)
    worker.send("add", 1, 2, countdown=1)
    worker.send("overrun")
    worker.send("crash")


def _record(url: str, file: Path) -> None:
    app = make_app(url)
    with app.connection_for_read() as connection, file.open("w", encoding="utf-8") as out:

        def write(message: object) -> None:
            body = getattr(message, "body")  # noqa: B009  kombu's own message class differs by transport
            key = getattr(message, "delivery_info")["routing_key"]  # noqa: B009
            text = body if isinstance(body, str) else bytes(body).decode()
            for path, neutral in NEUTRAL.items():
                text = text.replace(path, neutral)
            out.write(json.dumps({"routing_key": key, "body": text}) + "\n")

        queue = Queue(f"record-{uuid4().hex}", get_exchange(connection), routing_key="#", auto_delete=True)
        with connection.Consumer([queue], on_message=write, no_ack=True), running_worker(url) as worker:
            make_traffic(worker)
            deadline = time.monotonic() + SETTLE_SECONDS
            while time.monotonic() < deadline:
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    continue
    app.close()


if __name__ == "__main__":
    _record(sys.argv[1], Path(sys.argv[2]))
