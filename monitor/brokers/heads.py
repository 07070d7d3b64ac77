"""Since when a queue has had the same message at its head: a bound for the age of the oldest that waits.

Celery's messages do not say when they were sent. A message that was at the head at an earlier sample was sent before
that sample: a bound that keeps rising while nothing is consumed. A head that is new tells nothing.
"""

from typing import NamedTuple

import msgspec


class _Head(NamedTuple):
    identity: object
    since: float
    ready: int | None = None


class Heads:
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
