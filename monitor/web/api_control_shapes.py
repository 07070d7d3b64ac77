"""What the JSON API answers of workers and queues that were asked or changed."""

from dataclasses import asdict
from typing import Any
from typing import Literal

from msgspec import Struct

from monitor.control.inspect import HeldTask
from monitor.control.inspect import Inside


class AnswerItem(Struct, frozen=True, kw_only=True):
    """What one worker answered, or that it did not."""

    worker: str
    outcome: Literal["done", "unconfirmed", "skipped", "failed"]
    message: str


class Told(Struct, frozen=True, kw_only=True):
    """``unconfirmed``: it was sent, and not everybody who should have answered did, or has done it yet."""

    outcome: Literal["done", "unconfirmed"]
    message: str
    answers: list[AnswerItem]


class Purged(Struct, frozen=True, kw_only=True):
    """How many messages were thrown away."""

    purged: int
    message: str


class Ran(Struct, frozen=True, kw_only=True):
    """The new task."""

    id: str
    outcome: Literal["done", "unconfirmed"]
    message: str


class QueueMessageItem(Struct, frozen=True, kw_only=True):
    """A message that waits. ``body`` is bytes as text where it is not plain JSON; ``digest`` names this message."""

    digest: str
    size: int
    id: str | None
    task: str | None
    args: str | None
    kwargs: str | None
    body: str | None
    content_type: str | None
    priority: int | None
    eta: str | None
    expires: str | None
    retries: int | None
    redelivered: bool | None
    sent: float | None


class ReadingItem(Struct, frozen=True, kw_only=True):
    """The messages that are delivered next; ``hazard`` says what reading them has changed, if anything."""

    items: list[QueueMessageItem]
    more: bool
    hazard: str | None


class HeldItem(Struct, frozen=True, kw_only=True):
    """A task that a worker has. ``started`` is by our clock; limits are those of its name, in seconds."""

    id: str
    name: str | None
    args: str | None
    kwargs: str | None
    pid: int | None
    started: float | None
    eta: float | None
    priority: int | None
    soft_limit: float | None
    hard_limit: float | None


class InsideItem(Struct, frozen=True, kw_only=True):
    """What a worker says of itself now; null: it did not say. ``silent``: it did not answer at all."""

    silent: bool
    active: list[HeldItem] | None
    reserved: list[HeldItem] | None
    scheduled: list[HeldItem] | None
    revoked: list[str] | None
    stats: dict[str, str] | None
    conf: dict[str, str] | None
    registered: dict[str, dict[str, str]] | None
    refusals: dict[str, str]


def inside_item(inside: Inside) -> InsideItem:
    return InsideItem(
        silent=inside.silent,
        active=_held(inside.active),
        reserved=_held(inside.reserved),
        scheduled=_held(inside.scheduled),
        revoked=None if inside.revoked is None else list(inside.revoked),
        stats=_plain(inside.stats),
        conf=_plain(inside.conf),
        registered=_plain(inside.registered),
        refusals=dict(inside.refusals),
    )


def _held(tasks: tuple[HeldTask, ...] | None) -> list[HeldItem] | None:
    return None if tasks is None else [HeldItem(**asdict(task)) for task in tasks]


def _plain(table: Any) -> Any:
    return None if table is None else dict(table)
