"""Queues, their samples and pauses."""

import msgspec


class Queue(msgspec.Struct, kw_only=True):
    """One queue as last sampled. ``None`` where the transport cannot say."""

    cluster: str
    name: str
    ready: int | None = None
    unacked: int | None = None
    consumers: int | None = None
    oldest: float | None = None  # when the oldest waiting message was sent, or later
    sampled_at: float | None = None
    workers: tuple[str, ...] = ()
    oldest_exact: bool = False  # it was sent at ``oldest``
    # Ids of the tasks whose messages are next, one for each priority, where the broker shows them.
    next_tasks: tuple[str | None, ...] = ()


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """A queue that workers were told to stop consuming. They forget it on a restart."""

    cluster: str
    queue: str
    by: str
    at: float
    workers: tuple[str, ...]  # that consumed it, and will be told to consume it again
    reason: str | None = None


class QueueSample(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one time; the largest depth where it spans several."""

    at: float
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None
