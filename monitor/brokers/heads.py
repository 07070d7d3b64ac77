"""Since when a queue has had the same message at its head: all that is certain of the age of the oldest waiting.

Celery's messages do not say when they were sent. A message that was at the head at an earlier sample was sent before
that sample: a bound that keeps rising while nothing is consumed. A head that is new tells nothing.
"""

from typing import NamedTuple


class _Head(NamedTuple):
    identity: object
    since: float
    ready: int = 0


class Heads:
    """Remembers the head of each queue between samples. No I/O, no clock."""

    def __init__(self) -> None:
        self._heads: dict[str, _Head] = {}

    def see(self, queue: str, identity: object | None, now: float) -> float | None:
        """The time at or before which the head was sent; ``None``: not known. No identity: no head can be told."""
        known = self._heads.get(queue)
        if identity is None:
            self._heads.pop(queue, None)
            return None
        if known is None or known.identity != identity:
            self._heads[queue] = _Head(identity, now)
            return None
        return known.since

    def see_unconsumed(self, queue: str, ready: int, now: float) -> float | None:
        """The same for a queue without consumers: its head stays as long as the queue does not shrink."""
        known = self._heads.get(queue)
        if known is None or known.identity != "unconsumed" or known.ready > ready:
            self._heads[queue] = _Head("unconsumed", now, ready)
            return None
        self._heads[queue] = known._replace(ready=ready)
        return known.since
