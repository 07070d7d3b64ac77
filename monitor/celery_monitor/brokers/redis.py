"""Redis and Sentinel: queue depths and the messages of a queue, without removing any.

A queue is a list per priority step, the newest message first; an empty list does not exist, which is zero, not unknown.
The delivered, unacknowledged messages of all queues are in one hash, by delivery tag (kombu/transport/redis.py). Depths
of all queues are read in one pipeline.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from time import time
from typing import Any
from uuid import uuid4

from kombu import Connection

from celery_monitor.brokers.connection import link
from celery_monitor.brokers.lazy import redis
from celery_monitor.brokers.queues import (
    GenericProbe,
    Markers,
    QueueMessage,
    QueueMessages,
    ReadMessages,
    describe_payload,
    digest_of,
    task_id_of,
)
from celery_monitor.core.untrusted import decode_json
from celery_monitor.records.queue import Queue

MOST_BEFORE_MARKER = 20_000  # messages from the head on that are searched for a marker
TAGS_COUNTED = 10_000  # more unacknowledged messages are not counted by queue
TAGS_READ = 500  # new ones that are read per sample


class RedisProbe(GenericProbe):
    """Ready over all priorities, unacknowledged by queue, and since when the oldest message has been at the head."""

    _channel: Any = None
    _markers: dict[str, Markers]
    _queue_of_tag: dict[bytes, str | None]

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        if self._channel is None:
            self._channel = connection.channel()
            self._queue_of_tag = {}
            self._markers = {}
        # kombu's own client prefixes some commands and not others; this one prefixes none.
        client = redis.Redis(connection_pool=self._channel.pool)
        lists = {name: lists_of(self._channel, name) for name in queue_names}
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

    def _queue(
        self, client: Any, name: str, keys: list[str], answers: list[Any], unacked: Counter[str] | None
    ) -> Queue:
        """Removes the answers for this queue from the front: length, head and newest message of each list."""
        own, answers[: 3 * len(keys)] = answers[: 3 * len(keys)], []
        lengths, heads, newest = own[::3], own[1::3], own[2::3]
        now = time()
        bounds = [self._head_sent_before(client, *each, now) for each in zip(keys, lengths, heads, newest, strict=True)]
        return Queue(
            cluster=self.broker.cluster,
            name=name,
            ready=sum(lengths),
            unacked=None if unacked is None else unacked[name],
            oldest=min((each for each in bounds if each is not None), default=None),
            next_tasks=tuple(task_id_of(head) for head in heads if head),
        )

    def _head_sent_before(
        self, client: Any, key: str, length: int, head: bytes | None, newest: bytes | None, now: float
    ) -> float | None:
        """The time at or before which the head of a list was sent; ``None``: unknown."""
        since = self.heads.observe(key, blake2b(head).digest() if head else None, now)
        if head is None:
            self._markers.pop(key, None)
            return None
        markers = self._markers.setdefault(key, Markers())
        if since is None:
            marked = markers.since(lambda payload: _is_queued(client, key, length, payload))
            since = self.heads.backdate(key, marked)
        markers.observe(newest, now)
        return since

    def _unacked_by_queue(self, client: Any, count: int) -> Counter[str] | None:
        """How many messages of each queue are delivered and unacknowledged; ``None``: unknown."""
        if count > TAGS_COUNTED:
            return None
        key = self._key(self._channel.unacked_key)
        tags: list[bytes] = list(client.hkeys(key)) if count else []
        before = self._queue_of_tag
        self._queue_of_tag = {tag: before[tag] for tag in tags if tag in before}
        new = [tag for tag in tags if tag not in before]
        self._read_queues_of(client, key, new[:TAGS_READ])
        if len(new) > TAGS_READ:
            return None
        queues = [self._queue_of_tag[tag] for tag in tags if tag in self._queue_of_tag]
        return None if None in queues else Counter(name for name in queues if name is not None)

    def _read_queues_of(self, client: Any, key: str, tags: list[bytes]) -> None:
        """Reads the queues of these messages. One that was acknowledged meanwhile is left out."""
        values: Any = client.hmget(key, tags) if tags else []
        tables: dict[str, list[tuple[str, ...]]] = {}
        for tag, value in zip(tags, values, strict=True):
            if value is not None:
                self._queue_of_tag[tag] = self._origin(client, value, tables)

    def _origin(self, client: Any, value: bytes, tables: dict[str, list[tuple[str, ...]]]) -> str | None:
        """The queue of a message, from its exchange and routing key and the stored bindings; ``None``: several."""
        try:
            _, exchange, routing_key = decode_json(value)
        except (ValueError, TypeError):
            return None
        if not exchange or not isinstance(exchange, str):
            return str(routing_key) if not exchange else None
        if exchange not in tables:
            members: Any = client.smembers(self._key(self._channel.keyprefix_queue % (exchange,)))
            tables[exchange] = [tuple(each.decode(errors="replace").split(self._channel.sep)) for each in members]
        queues = {row[-1] for row in tables[exchange] if row[0] == routing_key}
        return queues.pop() if len(queues) == 1 else None


def _is_queued(client: Any, key: str, length: int, payload: bytes) -> bool | None:
    """Searches from the head on, up to a bound, as Redis serves nobody else meanwhile. ``None``: unknown."""
    try:
        if client.lpos(key, payload, rank=-1, maxlen=MOST_BEFORE_MARKER) is not None:
            return True
    except redis.ResponseError:  # before Redis 6.0.6
        return None
    return False if length <= MOST_BEFORE_MARKER else None


CHUNK = 20  # payloads fetched at once: each may be megabytes
MOST_BYTES = 32_000_000  # fetched for one reading
ASIDE_SECONDS = 3600  # after which Redis deletes a list that is being purged, in case we are killed meanwhile
MOST_SEARCHED = 20_000


class RedisMessages(QueueMessages):
    """Workers receive from the end of the first priority's list that has messages (kombu/transport/redis.py)."""

    def read(self, limit: int) -> ReadMessages:
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
        with self._lists() as (client, keys):
            for number, (key, payload) in enumerate(walk(client, keys)):
                if digest_of(payload) == digest:
                    return payload if client.lrem(key, -1, payload) else None
                if number == MOST_SEARCHED:
                    break
        raise self.not_found(MOST_SEARCHED)

    def purge(self, see: Callable[[bytes], bool]) -> int:
        """Each list is renamed first: exactly what was seen is removed, whatever is sent or received meanwhile."""
        number = 0
        with self._lists() as (client, keys):
            for key in keys:
                aside = f"{key}.purged-{uuid4().hex}"
                try:
                    client.pipeline().rename(key, aside).expire(aside, ASIDE_SECONDS).execute()
                except redis.ResponseError as error:
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
            yield redis.Redis(connection_pool=channel.pool), lists_of(channel, self.queue)


def lists_of(channel: Any, queue: str) -> list[str]:
    """The keys of a queue's lists, one for each priority."""
    return [f"{channel.global_keyprefix}{channel._q_for_pri(queue, step)}" for step in channel.priority_steps]


def walk(client: Any, keys: list[str]) -> Iterator[tuple[str, bytes]]:
    """The oldest first. Messages that are received meanwhile make us skip a few; new ones go to the other end."""
    for key in keys:
        start = -1
        while chunk := client.lrange(key, start - CHUNK + 1, start):
            for payload in reversed(chunk):
                yield key, payload
            start -= CHUNK
