"""Which tasks' messages Redis has now: waiting in queues, or delivered and not acknowledged. Nothing is taken.

RabbitMQ cannot be asked without delivering, and keeps our events while we are away; there nothing is looked at.
"""

import time
from collections.abc import Collection
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import msgspec
from redis import Redis
from redis.exceptions import ResponseError

from monitor.brokers.held import MOST_BYTES
from monitor.brokers.held import MOST_SEARCHED
from monitor.brokers.held import MOST_SECONDS
from monitor.brokers.held import Place
from monitor.brokers.held import can_look
from monitor.brokers.held import places
from monitor.brokers.held import read_entry
from monitor.brokers.link import link
from monitor.brokers.link import said
from monitor.brokers.link import unavailable
from monitor.settings import Broker
from monitor.settings import Settings


class Headers(msgspec.Struct, frozen=True):
    """What Celery writes above a task's message (protocol 2)."""

    id: str
    task: str
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    retries: int | None = None
    eta: str | None = None
    expires: str | None = None


class Seen(NamedTuple):
    """A message; ``queue`` is None where it is delivered and not acknowledged."""

    headers: Headers
    queue: str | None


class Survey(NamedTuple):
    """Messages by the ids of their tasks. ``whole``: nothing was left out of the search."""

    messages: dict[str, Seen]
    whole: bool


class _Envelope(msgspec.Struct):
    headers: Headers


_read_envelope = msgspec.json.Decoder(_Envelope).decode


def survey(broker: Broker, settings: Settings, queues: Collection[str]) -> Survey:
    """The messages of these queues and the unacknowledged ones, within the bounds of held.py.

    Raises BrokerUnavailable.
    """
    if not can_look(broker):
        return Survey({}, whole=False)
    with link(broker, settings) as connection:
        channel: Any = connection.default_channel
        try:
            return _collect(places(Redis(connection_pool=channel.pool), channel, sorted(queues)))
        except ResponseError as error:  # a key of another type, or one that we may not read
            raise unavailable(broker, f"does not let its messages be read ({said(error)})") from error


def _collect(found: Iterator[Place]) -> Survey:
    messages: dict[str, Seen] = {}
    until, size = time.monotonic() + MOST_SECONDS, 0
    for number, place in enumerate(found):
        size += len(place.payload)
        if number == MOST_SEARCHED or size > MOST_BYTES or time.monotonic() > until:
            return Survey(messages, whole=False)
        headers = _headers_of(place)
        if headers is not None:
            messages[headers.id] = Seen(headers, place.queue)
    return Survey(messages, whole=True)


def _headers_of(place: Place) -> Headers | None:
    try:
        payload = place.payload
        if place.queue is None:
            raw, _, _ = read_entry(payload)
            payload = bytes(raw)
        return _read_envelope(payload).headers
    except (ValueError, TypeError):  # no message of a task
        return None
