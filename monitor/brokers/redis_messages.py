"""The messages of a queue on Redis. Reading takes nothing: a queue is a list per priority, the oldest at its end."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.exceptions import ResponseError

from monitor.brokers.link import link
from monitor.brokers.message import QueueMessage
from monitor.brokers.message import Reading
from monitor.brokers.message import describe_payload
from monitor.brokers.message import digest_of
from monitor.errors import NotFound
from monitor.redact import Redactor
from monitor.settings import Broker
from monitor.settings import Settings

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

    def read(self, limit: int) -> Reading:
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
        return Reading(messages=tuple(found), more=waiting > len(found))

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
