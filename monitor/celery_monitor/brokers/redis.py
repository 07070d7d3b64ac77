"""Redis and Sentinel: queue depths and the messages of a queue, without removing any.

A queue is a list per priority step, the newest message first; a list without messages does not exist, which is zero,
not unknown. Delivered and unacknowledged messages of all queues are together in one hash, by delivery tag
(kombu/transport/redis.py). Depths of all queues are read in one pipeline.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from time import time
from typing import Any
from uuid import uuid4

from kombu import Connection
from redis import Redis
from redis.exceptions import ResponseError

from celery_monitor.brokers.connection import link
from celery_monitor.brokers.oldest_message import Markers, QueueHeads, task_id_of
from celery_monitor.brokers.queues import GenericProbe, QueueMessage, ReadMessages, describe_payload, digest_of
from celery_monitor.core.sanitize import Redactor
from celery_monitor.errors import NotFound
from celery_monitor.records.queue import Queue
from celery_monitor.settings import Broker, Settings

MOST_BEFORE_MARKER = 20_000  # messages from the head on among which an earlier one is looked for
TAGS_COUNTED = 10_000  # unacknowledged messages told apart by queue at most; beyond, it is unknown
TAGS_READ = 500  # of them, how many new ones are read per sample


class RedisProbe(GenericProbe):
    """Ready by priorities, unacknowledged by queue, and since when the oldest has been at the head."""

    _channel: Any = None
    _heads: QueueHeads | None = None
    _markers: dict[str, Markers]
    _queue_of_tag: dict[bytes, str | None]

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        if self._channel is None:
            self._channel = connection.channel()
            self._queue_of_tag = {}
            self._markers = {}
        self._heads = self._heads or QueueHeads()
        # kombu's own client prefixes some commands and not others; this one prefixes none.
        client = Redis(connection_pool=self._channel.pool)
        lists = {name: self._lists(name) for name in queue_names}
        pipeline = client.pipeline(transaction=False)
        for key in (key for keys in lists.values() for key in keys):
            pipeline.llen(key)
            pipeline.lindex(key, -1)
            pipeline.lindex(key, 0)
        pipeline.hlen(self._key(self._channel.unacked_key))
        *answers, unacked = pipeline.execute()
        by_queue = self._unacked_by_queue(client, unacked)
        return [self._queue(client, name, lists[name], answers, by_queue) for name in queue_names]

    def close(self) -> None:
        self._channel = None
        super().close()

    def _key(self, key: str) -> str:
        return f"{self._channel.global_keyprefix}{key}"

    def _lists(self, name: str) -> list[str]:
        steps = self._channel.priority_steps
        return [self._key(f"{name}{self._channel.sep}{step}" if step else name) for step in steps]

    def _queue(
        self, client: Any, name: str, keys: list[str], answers: list[Any], unacked: Counter[str] | None
    ) -> Queue:
        """Takes this queue's share from the front of ``answers``: length, head and newest message of each list."""
        taken, answers[: 3 * len(keys)] = answers[: 3 * len(keys)], []
        messages: list[bytes | None] = taken[1::3]
        now = time()
        since = [
            self._since(client, key, length, head, newest, now)
            for key, length, head, newest in zip(keys, taken[::3], messages, taken[2::3], strict=True)
        ]
        return Queue(
            cluster=self.broker.cluster,
            name=name,
            ready=sum(taken[::3]),
            unacked=None if unacked is None else unacked[name],
            oldest=min((each for each in since if each is not None), default=None),
            next_tasks=tuple(task_id_of(head) for head in messages if head),
        )

    def _since(
        self, client: Any, key: str, length: int, head: bytes | None, newest: bytes | None, now: float
    ) -> float | None:
        """The time at or before which the head of a list was sent; ``None``: not known."""
        heads = self._heads or QueueHeads()
        seen = heads.see(key, blake2b(head).digest() if head else None, now)
        if head is None:
            self._markers.pop(key, None)
            return None
        markers = self._markers.setdefault(key, Markers())
        if seen is None:
            seen = heads.was_there(key, markers.since(lambda payload: _is_there(client, key, length, payload)))
        markers.see(newest, now)
        return seen

    def _unacked_by_queue(self, client: Any, count: int) -> Counter[str] | None:
        """How many messages of each queue are delivered and unacknowledged; ``None``: cannot be told apart."""
        if count > TAGS_COUNTED:
            return None
        key = self._key(self._channel.unacked_key)
        tags: list[bytes] = list(client.hkeys(key)) if count else []
        known = self._queue_of_tag
        self._queue_of_tag = {tag: known[tag] for tag in tags if tag in known}
        new = [tag for tag in tags if tag not in known]
        if len(new) > TAGS_READ:
            self._learn(client, key, new[:TAGS_READ])
            return None
        self._learn(client, key, new)
        queues = [self._queue_of_tag[tag] for tag in tags if tag in self._queue_of_tag]
        return None if None in queues else Counter(name for name in queues if name is not None)

    def _learn(self, client: Any, key: str, tags: list[bytes]) -> None:
        """Reads of which queue these messages are. One that was acknowledged meanwhile is left out."""
        values: Any = client.hmget(key, tags) if tags else []
        tables: dict[str, list[tuple[str, ...]]] = {}
        for tag, value in zip(tags, values, strict=True):
            if value is not None:
                self._queue_of_tag[tag] = self._origin(client, value, tables)

    def _origin(self, client: Any, value: bytes, tables: dict[str, list[tuple[str, ...]]]) -> str | None:
        """The queue of a message, from its exchange and routing key and the stored bindings; ``None``: several."""
        try:
            _, exchange, routing_key = json.loads(value)
        except ValueError:
            return None
        if not exchange:
            return str(routing_key)
        if exchange not in tables:
            members: Any = client.smembers(self._key(self._channel.keyprefix_queue % (exchange,)))
            tables[exchange] = [tuple(each.decode(errors="replace").split(self._channel.sep)) for each in members]
        queues = {row[-1] for row in tables[exchange] if row[0] == routing_key}
        return queues.pop() if len(queues) == 1 else None


def _is_there(client: Any, key: str, length: int, payload: bytes) -> bool | None:
    """Looks from the head on, and not beyond so many: Redis serves nobody else meanwhile. ``None``: not known."""
    try:
        if client.lpos(key, payload, rank=-1, maxlen=MOST_BEFORE_MARKER) is not None:
            return True
    except ResponseError:  # before Redis 6.0.6
        return None
    return False if length <= MOST_BEFORE_MARKER else None


CHUNK = 20  # payloads fetched at once: each may be megabytes
MOST_BYTES = 32_000_000  # fetched for one reading
ASIDE_SECONDS = 3600  # after which a list that is being purged goes, should we be killed meanwhile
MOST_SEARCHED = 20_000  # messages looked at for the one to throw away


class RedisMessages:
    """Workers take from the first priority's list that has messages, its end first (kombu/transport/redis.py)."""

    def __init__(self, broker: Broker, settings: Settings, queue: str, redactor: Redactor) -> None:
        self.broker = broker
        self.settings = settings
        self.queue = queue
        self.redactor = redactor

    def read(self, limit: int) -> ReadMessages:
        """In the order of delivery; fewer where they are large."""
        found: list[QueueMessage] = []
        size = 0
        with self._lists() as (client, keys):
            waiting = sum(client.llen(key) for key in keys)
            for _, payload in walk(client, keys):
                found.append(describe_payload(payload, self.redactor))
                size += len(payload)
                if len(found) == limit or size > MOST_BYTES:
                    break
        return ReadMessages(messages=tuple(found), more=waiting > len(found))

    def delete(self, digest: str) -> bytes | None:
        """Removes that payload, and gives it; ``None`` when a worker received it while we looked."""
        with self._lists() as (client, keys):
            for number, (key, payload) in enumerate(walk(client, keys)):
                if digest_of(payload) == digest:
                    return payload if client.lrem(key, -1, payload) else None
                if number == MOST_SEARCHED:
                    break
        raise NotFound(
            f"It is not among the next {MOST_SEARCHED} messages of {self.queue}: a worker may have taken it."
        )

    def purge(self, see: Callable[[bytes], bool]) -> int:
        """Removes every message, and gives their number. ``see`` gets each payload until it has seen enough.

        Each list is renamed first: what is removed is exactly what is seen, whatever is sent or received meanwhile.
        """
        number = 0
        with self._lists() as (client, keys):
            for key in keys:
                aside = f"{key}.purged-{uuid4().hex}"
                try:
                    client.pipeline().rename(key, aside).expire(aside, ASIDE_SECONDS).execute()
                except ResponseError as error:
                    if "no such key" not in str(error):
                        raise
                    continue  # Redis has no empty lists
                number += client.llen(aside)
                for _, payload in walk(client, [aside]):
                    if not see(payload):
                        break
                client.unlink(aside)
        return number

    @contextmanager
    def _lists(self) -> Iterator[tuple[Any, list[str]]]:
        """A client, and the list of each priority. kombu's own client prefixes some commands and not others."""
        with link(self.broker, self.settings) as connection:
            channel: Any = connection.default_channel
            yield Redis(connection_pool=channel.pool), lists_of(channel, self.queue)


def lists_of(channel: Any, queue: str) -> list[str]:
    """The keys of a queue's lists, one for each priority."""
    return [f"{channel.global_keyprefix}{channel._q_for_pri(queue, step)}" for step in channel.priority_steps]


def walk(client: Any, keys: list[str]) -> Iterator[tuple[str, bytes]]:
    """The oldest first. What comes in meanwhile does so at the other end; what is taken makes us skip a few."""
    for key in keys:
        start = -1
        while chunk := client.lrange(key, start - CHUNK + 1, start):
            for payload in reversed(chunk):
                yield key, payload
            start -= CHUNK
