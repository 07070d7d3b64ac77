"""Decoded events, and captured messages."""

from typing import Annotated

import msgspec

# The range of every database. The JSON decoder checks it in C; decode.py replaces values beyond by None.
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Timestamp = Annotated[float, msgspec.Meta(ge=0, lt=253_402_300_800)]  # up to the year 9999

# Why a message is recorded.
WAITING = "waiting"  # it is in its queue
UNACKED = "unacked"  # delivered to a worker, which has not acknowledged it
READ = "read"  # somebody read it from its queue
REMOVED = "removed"  # somebody deleted it from its queue, or purged the queue
KEPT_BY_BROKER = frozenset({WAITING, UNACKED, READ})
READ_BY_US = KEPT_BY_BROKER | {REMOVED}  # from the broker itself; no worker announces these


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker that has the capture key adds to a message: see core/captures.py."""

    time: float  # by the worker's clock
    mac: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """The message of a task, as a worker received it or as it is in the broker.

    ``headers`` and ``properties`` are JSON as kombu writes it. ``body`` is ``None`` where it was too large.
    """

    why: str  # captured: failed, rejected, revoked, received; from the broker: see WAITING ... REMOVED
    size: Integer  # bytes of the body
    headers: str
    properties: str
    body: bytes | None = None
    as_sent: bool = True  # False: it was compressed, and the worker has only the content
    content_type: str | None = None
    content_encoding: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    queue: str | None = None
    chain: Integer = 0  # tasks that follow
    callbacks: Integer = 0
    errbacks: Integer = 0
    chord: str | None = None  # name of the body of the chord that the task is a member of
    links: bool = True  # False: the body was not decoded, so the four above are unknown
    signature: Signature | None = None
    # Set by the sanitizer, whatever the event contains.
    worker: str | None = None  # who announced it, by the event; None: read from the broker
    pid: Integer | None = None
    args: str | None = None  # its argsrepr and kwargsrepr, as such texts are stored
    kwargs: str | None = None
    # Set when it is stored.
    others: "tuple[Message, ...]" = ()  # different ones that were announced later
    more: bool = False  # and further ones, which are not kept


class Event(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One event as its sender built it (celery/events/dispatcher.py).

    ``timestamp`` is by the sender's clock; ``utcoffset`` is ignored, since adjusting by it corrupts the time.
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
    # of events that we conclude after a gap
    discovered_at: Timestamp | None = None
    # worker-*
    freq: float | None = None
    active: Integer | None = None
    processed: Integer | None = None
    loadavg: tuple[float, ...] | None = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None
