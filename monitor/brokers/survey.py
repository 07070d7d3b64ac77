"""Which tasks' messages Redis has now: waiting in queues, or delivered and not acknowledged. Nothing is taken.

RabbitMQ cannot be asked without delivering, and keeps our events while we are away; there nothing is looked at.
"""

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from monitor.brokers.held import Place
from monitor.brokers.held import can_look
from monitor.brokers.held import places
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
    messages: dict[str, Seen] = {}
    with places(broker, settings, sorted(queues)) as there:
        for place in there:
            headers = _headers_of(place)
            if headers is not None:
                messages[headers.id] = Seen(headers, place.queue)
    return Survey(messages, there.whole)


def _headers_of(place: Place) -> Headers | None:
    try:
        payload, _, _ = place.opened()
        return _read_envelope(payload).headers
    except (ValueError, TypeError):  # no message of a task
        return None
