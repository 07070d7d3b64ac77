"""A stream of events as workers send it, and publishers that put it on a broker as kombu would, only faster."""

import json
import random
import socket
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import amqp
import redis
from kombu.utils.url import parse_url

from tests.confirms import Confirms

NAMES = [
    f"shop.{part}.{verb}" for part in ("pay", "mail", "report", "stock") for verb in ("add", "get", "do", "go", "ok")
]
WORKERS = [f"worker{number}@shop" for number in range(4)]
IN_FLIGHT = 8  # tasks of one worker that were received and have not ended
FAILURES = 0.05
EVENTS_OF_A_TASK = 3
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/venv/lib/python3.11/site-packages/celery/app/trace.py", line 585, in trace_task\n'
    "    R = retval = fun(*args, **kwargs)\n"
    '  File "/srv/shop/pay.py", line 77, in charge\n    gateway.charge(card, amount)\n'
    "TimeoutError: no answer within 30 s\n"
)
MOST_UNREAD_BYTES = 4_000_000  # Redis cuts off a subscriber at 32 MB

Message = tuple[str, bytes]  # routing key, body


def messages(events: int, per_message: int, seed: int = 31) -> list[Message]:
    """Received, started and ended for each of ``events / 3`` tasks, worker by worker as they would run."""
    dice = random.Random(seed)
    begin = time.time() - events / 5000
    tasks = events // EVENTS_OF_A_TASK
    lanes = [_of_worker(hostname, tasks // len(WORKERS), begin, dice) for hostname in WORKERS]
    return [message for group in zip(*(_packed(lane, per_message) for lane in lanes), strict=True) for message in group]


def _of_worker(hostname: str, tasks: int, begin: float, dice: random.Random) -> list[dict[str, Any]]:
    pid, at = pid_of(hostname), begin
    events: list[dict[str, Any]] = []
    waiting: list[str] = []

    def say(kind: str, uuid: str, **fields: object) -> None:
        head = {"hostname": hostname, "utcoffset": 0, "pid": pid, "clock": len(events) + 1}
        events.append({**head, "uuid": uuid, **fields, "timestamp": at + len(events) / 1000, "type": kind})

    for number in range(tasks):
        uuid = str(UUID(int=dice.getrandbits(128), version=4))
        message = {"root_id": uuid, "parent_id": None, "retries": 0, "eta": None, "expires": None}
        args, kwargs = f"({number}, 'EUR')", "{'card': 'visa', 'amount': 31}"
        say("task-received", uuid, name=dice.choice(NAMES), args=args, kwargs=kwargs, **message)
        waiting.append(uuid)
        if len(waiting) >= IN_FLIGHT or number >= tasks - IN_FLIGHT:
            _run(waiting.pop(0), say, dice)
    for uuid in waiting:
        _run(uuid, say, dice)
    return events


def _run(uuid: str, say: Any, dice: random.Random) -> None:
    say("task-started", uuid)
    if dice.random() < FAILURES:
        say("task-failed", uuid, exception="TimeoutError('no answer within 30 s')", traceback=TRACEBACK)
    else:
        say("task-succeeded", uuid, result="'OK'", runtime=dice.expovariate(20))


def _packed(events: list[dict[str, Any]], per_message: int) -> list[Message]:
    if per_message == 1:
        return [(each["type"].replace("-", "."), json.dumps(each).encode()) for each in events]
    return [
        ("task.multi", json.dumps(events[at : at + per_message]).encode()) for at in range(0, len(events), per_message)
    ]


def heartbeat() -> list[Message]:
    """One of each worker, of now."""
    body = '{{"type": "worker-heartbeat", "hostname": "{}", "timestamp": {}, "pid": {}, "clock": 1, "freq": 2}}'
    return [("worker.heartbeat", body.format(worker, time.time(), pid_of(worker)).encode()) for worker in WORKERS]


def pid_of(hostname: str) -> int:
    return 4000 + int(hostname[6])


class Publisher(Protocol):
    def publish(self, messages: Iterable[Message], *, careful: bool = True) -> int:
        """Sends them; gives the least number of subscribers that one of them reached, where that is known."""


class RedisPublisher:
    """PUBLISH in pipelines. ``careful`` waits for a subscriber that falls behind, so that Redis keeps it."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._channel = f"/{urlsplit(url).path.strip('/') or 0}.celeryev/"

    def envelope(self, message: Message) -> tuple[str, bytes]:
        key, body = message
        properties = {
            "delivery_mode": 1,
            "delivery_info": {"exchange": "celeryev", "routing_key": key},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "f6a1c4f0-3c51-4d4f-9f3e-7d1b6a0e9c21",
        }
        envelope = {
            "body": b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"hostname": "worker1@shop"},
            "properties": properties,
        }
        return self._channel + key, json.dumps(envelope).encode()

    def publish(self, messages: Iterable[Message], *, careful: bool = True) -> int:
        least = 1 << 30
        for chunk in _chunks(map(self.envelope, messages), 500):
            pipeline = self._client.pipeline(transaction=False)
            for channel, value in chunk:
                pipeline.publish(channel, value)
            least = min(least, *pipeline.execute())
            while careful and self._unread() > MOST_UNREAD_BYTES:
                time.sleep(0.01)
        return least

    def _unread(self) -> int:
        return max((int(each["omem"]) for each in self._client.client_list("pubsub")), default=0)

    def close(self) -> None:
        self._client.close()


def amqp_connection(url: str) -> amqp.Connection:
    """One that is open."""
    parts = parse_url(url)
    connection = amqp.Connection(
        f"{parts['hostname']}:{parts['port'] or 5672}",
        userid=parts["userid"] or "guest",
        password=parts["password"] or "guest",
        virtual_host=parts["virtual_host"] or "/",
        socket_settings={socket.TCP_USER_TIMEOUT: 120_000},  # RabbitMQ makes a fast publisher wait
    )
    connection.connect()
    return connection


def amqp_message(body: bytes) -> amqp.Message:
    """As kombu sends events."""
    return amqp.Message(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        application_headers={"hostname": "worker1@shop"},
        delivery_mode=1,
    )


class AmqpPublisher:
    """basic.publish on one channel; the broker has all of it when ``publish`` returns."""

    def __init__(self, url: str) -> None:
        self._connection = amqp_connection(url)
        self._channel = self._connection.channel()
        self._channel.exchange_declare("celeryev", "topic", durable=True, auto_delete=False)
        self._confirms = Confirms(self._channel)

    def publish(self, messages: Iterable[Message], *, careful: bool = True) -> int:  # noqa: ARG002  the queue keeps all
        for key, body in messages:
            self._channel.basic_publish(amqp_message(body), exchange="celeryev", routing_key=key)
            self._confirms.sent()
        self._confirms.wait()
        return 1

    def delete_queue(self, name: str) -> None:
        self._connection.channel().queue_delete(name)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def publisher(url: str) -> Iterator[RedisPublisher | AmqpPublisher]:
    """The publisher for this broker."""
    with closing(RedisPublisher(url) if url.startswith("redis") else AmqpPublisher(url)) as made:
        yield made


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
