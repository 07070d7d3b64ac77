"""Queues: depth, waiting messages and commands."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

from msgspec import Meta, Struct

from celery_monitor.control.commands import NO_NUL, Performed
from celery_monitor.control.queues import QUEUE_COMMANDS, PurgeQueue, QueueCommand, ReadQueue
from celery_monitor.errors import Conflict
from celery_monitor.records.queue import Pause, Queue
from celery_monitor.records.series import WaitPercentiles
from celery_monitor.store.queues import read_pauses, read_queues
from celery_monitor.store.rollups.flows import read_waits
from celery_monitor.web.api.operation import (
    Call,
    CommandAnswer,
    InCluster,
    NamedListing,
    Operation,
    answer_of,
    cluster_named,
    operation,
    page_by_name,
    shape,
)
from celery_monitor.web.security.reach import IN_PART

WAIT_SECONDS = 300.0
QueueName = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Name of a queue, percent-encoded")]


class QueueAddress(InCluster, frozen=True, kw_only=True):
    """One queue."""

    name: QueueName


class PauseItem(Struct, frozen=True, kw_only=True):
    """The pause of a queue; ``workers`` consume it again when it is resumed."""

    by: str
    at: float
    workers: tuple[str, ...]
    reason: str | None


class QueueItem(Struct, frozen=True, kw_only=True):
    """One queue as last measured; null: not reported by its broker.

    ``wait``: wait time in seconds of tasks started in the last five minutes, null if there were none; the share
    ``since_receipt`` is counted from receipt by the worker. ``oldest``: when the oldest waiting message was sent, with
    ``oldest_age`` in seconds; unless ``oldest_exact`` it is at least that old. Null: unknown, or nothing waits.
    """

    name: str
    cluster: str
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None
    oldest_age: float | None
    oldest_exact: bool
    sampled_at: float | None
    workers: tuple[str, ...]
    wait: WaitPercentiles | None
    paused: PauseItem | None


class QueueList(Struct, frozen=True):
    """Queues by cluster and name; ``next`` is the cursor of the following page."""

    items: list[QueueItem]
    next: str | None


class Purged(Struct, frozen=True, kw_only=True):
    """The number of deleted messages. Their tasks become REVOKED within seconds."""

    purged: int
    message: str


class QueueMessageItem(Struct, frozen=True, kw_only=True):
    """A waiting message. ``body``: raw bytes as text, if it is not plain JSON; ``digest`` identifies the message."""

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
    """The messages that are delivered next; ``hazard``: what reading them has changed, if anything."""

    items: list[QueueMessageItem]
    more: bool
    hazard: str | None


def list_queues(call: Call, given: NamedListing) -> QueueList:
    pauses = read_pauses(call.store, given.cluster)
    waits = read_waits(call.store, since=time.time() - WAIT_SECONDS, cluster=given.cluster)
    queues = read_queues(call.store, given.cluster)
    page, following = page_by_name(queues, given, "queues", lambda each: (each.cluster, each.name))
    now = time.time()
    items = [_queue_item(queue, pauses, waits.get((queue.cluster, queue.name)), now) for queue in page]
    return QueueList(items, following)


def _queue_item(
    queue: Queue, pauses: Mapping[tuple[str, str], Pause], wait: WaitPercentiles | None, now: float
) -> QueueItem:
    pause = pauses.get((queue.cluster, queue.name))
    paused = None if pause is None else shape(PauseItem, pause)
    age = None if queue.oldest is None else max(0.0, now - queue.oldest)
    return shape(QueueItem, queue, wait=wait, paused=paused, oldest_age=age)


def _purged(performed: Performed) -> Purged:
    purged = performed.details.get("purged")
    return Purged(purged=purged if isinstance(purged, int) else 0, message=performed.message)


def _reading(performed: Performed) -> ReadingItem:
    if performed.reading is None:
        raise Conflict(performed.message)
    items = [QueueMessageItem(**asdict(message)) for message in performed.reading.messages]
    return ReadingItem(items=items, more=performed.reading.more, hazard=performed.reading.hazard)


def _queue(call: Call, given: QueueAddress) -> dict[str, Any]:
    """The queue may be on the broker without being recorded yet."""
    clusters = {each.cluster for each in read_queues(call.store, given.cluster) if each.name == given.name}
    if len(clusters) > 1:
        raise Conflict(f"Several clusters have a queue {given.name}; add cluster= to the URL.")
    return {"cluster": clusters.pop() if clusters else cluster_named(call, given.cluster), "queue": given.name}


ANSWERS: dict[type[QueueCommand], tuple[type[Struct], Callable[[Performed], Struct]]] = {
    PurgeQueue: (Purged, _purged),
    ReadQueue: (ReadingItem, _reading),
}
OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/queues",
        handle=list_queues,
        summary="List queues as last measured",
        answer=QueueList,
        parameters=NamedListing,
        access=IN_PART,
    ),
    *(
        operation(command, QueueAddress, _queue, *ANSWERS.get(command, (CommandAnswer, answer_of)))
        for command in QUEUE_COMMANDS
    ),
)
