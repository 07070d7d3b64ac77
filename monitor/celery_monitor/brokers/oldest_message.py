"""Since when a queue has had the same message at its head: a bound for the age of the oldest that waits.

Celery's messages do not say when they were sent. A message that was at the head at an earlier sample was sent before
that sample: a bound that keeps rising while nothing is consumed. A head that is new tells nothing by itself; but while
a message is still in the queue that was the newest at an earlier sample, all before it have waited at least as long.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

MOST_MARKERS = 32
LARGEST_MARKER = 8192  # bytes


class _Head(NamedTuple):
    identity: object
    since: float
    ready: int | None = None


class QueueHeads:
    """Remembers the head of each queue between samples. No I/O, no clock."""

    def __init__(self) -> None:
        self._heads: dict[str, _Head] = {}

    def see(self, queue: str, identity: object | None, now: float, ready: int | None = None) -> float | None:
        """The time at or before which the head was sent; ``None``: not known. No identity: no head can be told.

        With ``ready``, its head stays only as long as the queue does not shrink: what is purged or expires there is
        counted by nobody.
        """
        known = self._heads.get(queue)
        if identity is None:
            self._heads.pop(queue, None)
            return None
        shrank = known is not None and ready is not None and known.ready is not None and ready < known.ready
        if known is None or known.identity != identity or shrank:
            self._heads[queue] = _Head(identity, now, ready)
            return None
        self._heads[queue] = known._replace(ready=ready)
        return known.since

    def was_there(self, queue: str, since: float | None) -> float | None:
        """The head that is new was in the queue by then, as is known from elsewhere."""
        if since is not None:
            self._heads[queue] = self._heads[queue]._replace(since=since)
        return since


class Marker(NamedTuple):
    """A message that was the newest of its queue at that time."""

    since: float
    payload: bytes


class Markers:
    """The newest messages of one queue at earlier samples, the oldest first, at most MOST_MARKERS. No I/O, no clock."""

    def __init__(self) -> None:
        self._markers: deque[Marker] = deque()

    def see(self, newest: bytes | None, now: float) -> None:
        """Another sample. An empty queue has no markers; a message too large to be asked for is none."""
        if newest is None:
            self._markers.clear()
        elif len(newest) <= LARGEST_MARKER and (not self._markers or self._markers[-1].payload != newest):
            self._markers.append(Marker(now, newest))
            if len(self._markers) > MOST_MARKERS:  # half of them tell as much, only not as finely
                self._markers = deque(list(self._markers)[::2])

    def since(self, is_there: Callable[[bytes], bool | None]) -> float | None:
        """When the oldest marker that is still in the queue was seen: what is at the head was sent before.

        They leave in the order in which they came, so most are not asked for. ``None``: none is there, or it cannot be
        said of the oldest.
        """
        while self._markers:
            there = is_there(self._markers[0].payload)
            if there is not False:
                return self._markers[0].since if there else None
            self._markers.popleft()
            middle = len(self._markers) // 2
            if middle and is_there(self._markers[middle].payload) is False:
                for _ in range(middle + 1):
                    self._markers.popleft()
        return None


class _Headers(msgspec.Struct):
    id: str | None = None


class _Envelope(msgspec.Struct):
    headers: _Headers | None = None


_read_envelope = msgspec.json.Decoder(_Envelope).decode


def task_id_of(payload: bytes) -> str | None:
    """The task of a message as virtual transports store it; ``None`` where it is no message of a task."""
    try:
        headers = _read_envelope(payload).headers
    except ValueError:
        return None
    return None if headers is None else headers.id
