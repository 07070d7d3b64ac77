"""Events as they are decoded, and captured messages."""

from typing import Annotated

import msgspec

# What every database holds. The JSON decoder checks it in C; decode.py makes an unknown of what is beyond.
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Timestamp = Annotated[float, msgspec.Meta(ge=0, lt=253_402_300_800)]  # up to the year 9999


WAITING = "waiting"  # why a message is known: it lies in its queue
UNACKED = "unacked"  # delivered to a worker, which has not acknowledged it
READ = "read"  # it lay in its queue when somebody took it out to look at it
REMOVED = "removed"  # somebody deleted it from its queue here, or purged that
KEPT_BY_BROKER = frozenset({WAITING, UNACKED, READ})


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """The message of a task as a worker got it, or as it lies in the broker.

    ``headers`` and ``properties`` are JSON as kombu writes it. ``body`` is ``None`` where it was too large.
    """

    why: str  # captured: failed, rejected, revoked, received; in the broker: see HELD
    size: Integer  # bytes of the body
    headers: str
    properties: str
    body: bytes | None = None
    as_sent: bool = True  # False: compressed on its way, and the worker has only what was inside
    content_type: str | None = None
    content_encoding: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    queue: str | None = None
    chain: Integer = 0  # tasks that follow
    callbacks: Integer = 0
    errbacks: Integer = 0
    chord: str | None = None  # name of the chord's body, of which the task is a member
    links: bool = True  # False: nobody has opened the body, so the four above are not known


class Event(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One event as its sender stamped it (celery/events/dispatcher.py).

    ``timestamp`` is the sender's own clock; ``utcoffset`` is not kept, since adjusting by it corrupts the time.
    """

    type: str
    timestamp: Timestamp
    hostname: str
    pid: Integer | None = None
    clock: Integer | None = None
    # task-*
    uuid: str | None = None
    name: str | None = None
    args: str | None = None
    kwargs: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    retries: Integer | None = None
    eta: str | None = None
    expires: str | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    result: str | None = None
    runtime: float | None = None
    exception: str | None = None
    traceback: str | None = None
    requeue: bool | None = None
    terminated: bool | None = None
    signum: Integer | str | None = None
    expired: bool | None = None
    # capture-message
    message: Message | None = None
    # concluded after a gap
    discovered_at: Timestamp | None = None
    # worker-*
    freq: float | None = None
    active: Integer | None = None
    processed: Integer | None = None
    loadavg: tuple[float, ...] | None = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None
