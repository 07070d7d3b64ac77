"""Measures queues on Redis (and Sentinel): one pipeline for all of them.

A queue is a list per priority step, newest message first; a list without messages does not exist, which is zero,
not unknown. Delivered and unacknowledged messages of all queues are together in one hash, by delivery tag
(kombu/transport/redis.py).
"""

import json
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from time import time
from typing import Any

from kombu import Connection
from redis import Redis

from monitor.brokers.generic import GenericProbe
from monitor.brokers.heads import Heads
from monitor.brokers.heads import task_id_of
from monitor.records import Queue

TAGS_COUNTED = 10_000  # unacknowledged messages told apart by queue at most; beyond, it is unknown
TAGS_READ = 500  # of them, how many new ones are read per sample


class RedisProbe(GenericProbe):
    """Ready by priorities, unacknowledged by queue, and since when the oldest has been at the head."""

    _channel: Any = None
    _heads: Heads | None = None
    _queue_of_tag: dict[bytes, str | None]

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        if self._channel is None:
            self._channel = connection.channel()
            self._queue_of_tag = {}
        self._heads = self._heads or Heads()
        # kombu's own client prefixes some commands and not others; this one prefixes none.
        client = Redis(connection_pool=self._channel.pool)
        lists = {name: self._lists(name) for name in queue_names}
        pipeline = client.pipeline(transaction=False)
        for key in (key for keys in lists.values() for key in keys):
            pipeline.llen(key)
            pipeline.lindex(key, -1)
        pipeline.hlen(self._key(self._channel.unacked_key))
        *answers, unacked = pipeline.execute()
        by_queue = self._unacked_by_queue(client, unacked)
        return [self._queue(name, lists[name], answers, by_queue) for name in queue_names]

    def close(self) -> None:
        self._channel = None
        super().close()

    def _key(self, key: str) -> str:
        return f"{self._channel.global_keyprefix}{key}"

    def _lists(self, name: str) -> list[str]:
        steps = self._channel.priority_steps
        return [self._key(f"{name}{self._channel.sep}{step}" if step else name) for step in steps]

    def _queue(self, name: str, keys: list[str], answers: list[Any], unacked: Counter[str] | None) -> Queue:
        """Takes this queue's share from the front of ``answers``: length and head of each list."""
        taken, answers[: 2 * len(keys)] = answers[: 2 * len(keys)], []
        heads = self._heads or Heads()
        now = time()
        messages: list[bytes | None] = taken[1::2]
        since = [
            heads.see(key, blake2b(head).digest() if head else None, now)
            for key, head in zip(keys, messages, strict=True)
        ]
        return Queue(
            cluster=self.broker.cluster,
            name=name,
            ready=sum(taken[::2]),
            unacked=None if unacked is None else unacked[name],
            oldest=min((each for each in since if each is not None), default=None),
            heads=tuple(task_id_of(head) for head in messages if head),
        )

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
