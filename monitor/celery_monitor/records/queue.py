"""Queues, their samples and pauses."""

import msgspec


class Queue(msgspec.Struct, kw_only=True):
    """One queue as last sampled. Whatever a transport cannot tell is ``None``."""

    cluster: str
    name: str
    ready: int | None = None
    unacked: int | None = None
    consumers: int | None = None
    oldest: float | None = None  # epoch seconds at or before which the oldest waiting message was sent: age is ≥
    sampled_at: float | None = None
    workers: tuple[str, ...] = ()
    oldest_exact: bool = False  # it was sent just then
    heads: tuple[str | None, ...] = ()  # tasks whose messages come next, one a priority, where the broker shows them


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """A queue that somebody told the workers to take no more from. They forget it when they are started again."""

    cluster: str
    queue: str
    by: str
    at: float
    workers: tuple[str, ...]  # that took from it, and are to take from it again
    reason: str | None = None


class QueueSample(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one time; the largest depth where it spans several."""

    at: float
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None
