"""Queues: how deep they are, what waits in them, and what may be done to them."""

import time
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated
from typing import TypedDict

from msgspec import Meta
from msgspec import Struct

from monitor.control.queue_commands import DeleteMessage
from monitor.control.queue_commands import PauseQueue
from monitor.control.queue_commands import PurgeQueue
from monitor.control.queue_commands import ReadQueue
from monitor.control.queue_commands import ResumeQueue
from monitor.errors import Conflict
from monitor.records import Pause
from monitor.records import Queue
from monitor.records import WaitPercentiles
from monitor.store import breakdowns
from monitor.store import queries
from monitor.web.api.acting import cluster_named
from monitor.web.api.acting import done
from monitor.web.api.acting import post
from monitor.web.api.acting import told
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import NO_NUL
from monitor.web.api.requests import ConfirmBody
from monitor.web.api.requests import Given
from monitor.web.api.requests import InCluster
from monitor.web.api.requests import Why
from monitor.web.api.shapes import Told
from monitor.web.api.shapes import shape

WAIT_SECONDS = 300.0
ON_QUEUE = "queues/{name:name}/"
QueueName = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Name of a queue, percent-encoded")]


class QueueAddress(InCluster, frozen=True, kw_only=True):
    """One queue."""

    name: QueueName


class ReadBody(Why, frozen=True, kw_only=True):
    """How many messages."""

    limit: Annotated[float, Meta(ge=1, le=200, multiple_of=1)] = 50


class DeleteBody(Why, frozen=True, kw_only=True):
    """The digest of a message, as reading gave it."""

    digest: Given
    id: Annotated[str, Meta(pattern=NO_NUL)] | None = None


class PauseItem(Struct, frozen=True, kw_only=True):
    """Who paused a queue, since when, and which workers take from it again when it is resumed."""

    by: str
    at: float
    workers: tuple[str, ...]
    reason: str | None


class QueueItem(Struct, frozen=True, kw_only=True):
    """One queue as last measured; null is what its broker cannot tell.

    ``wait`` is how many seconds the tasks waited that workers started in the last five minutes; null: none was seen.
    """

    name: str
    cluster: str
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None
    sampled_at: float | None
    workers: tuple[str, ...]
    wait: WaitPercentiles | None
    paused: PauseItem | None


class QueueList(Struct, frozen=True):
    """Every queue."""

    items: list[QueueItem]


class Purged(Struct, frozen=True, kw_only=True):
    """How many messages were deleted. Their tasks are REVOKED within seconds."""

    purged: int
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


def list_queues(call: Call, given: InCluster) -> QueueList:
    pauses = queries.pauses(call.store, given.cluster)
    waits = breakdowns.waits(call.store, since=time.time() - WAIT_SECONDS, cluster=given.cluster)
    found = queries.queues(call.store, given.cluster)
    return QueueList([_queue_item(queue, pauses, waits.get((queue.cluster, queue.name))) for queue in found])


def _queue_item(queue: Queue, pauses: Mapping[tuple[str, str], Pause], wait: WaitPercentiles | None) -> QueueItem:
    pause = pauses.get((queue.cluster, queue.name))
    paused = None if pause is None else shape(PauseItem, pause)
    return shape(QueueItem, queue, wait=wait, paused=paused)


class _Queue(TypedDict):
    cluster: str
    queue: str


def pause_queue(call: Call, given: QueueAddress, body: Why) -> Told:
    return told(call, PauseQueue(**_queue(call, given), reason=body.reason))


def resume_queue(call: Call, given: QueueAddress, body: Why) -> Told:
    return told(call, ResumeQueue(**_queue(call, given), reason=body.reason))


def purge_queue(call: Call, given: QueueAddress, body: ConfirmBody) -> Purged:
    performed = done(call, PurgeQueue(**_queue(call, given), reason=body.reason, confirm=body.confirm))
    purged = performed.details.get("purged")
    return Purged(purged=purged if isinstance(purged, int) else 0, message=performed.message)


def read_queue(call: Call, given: QueueAddress, body: ReadBody) -> ReadingItem:
    performed = done(call, ReadQueue(**_queue(call, given), reason=body.reason, limit=int(body.limit)))
    if performed.reading is None:
        raise Conflict(performed.message)
    items = [QueueMessageItem(**asdict(message)) for message in performed.reading.messages]
    return ReadingItem(items=items, more=performed.reading.more, hazard=performed.reading.hazard)


def delete_message(call: Call, given: QueueAddress, body: DeleteBody) -> Told:
    return told(call, DeleteMessage(**_queue(call, given), reason=body.reason, digest=body.digest, id=body.id))


def _queue(call: Call, given: QueueAddress) -> _Queue:
    """A queue need not be in the record: a broker may have it, and nobody has looked yet."""
    clusters = {each.cluster for each in queries.queues(call.store, given.cluster) if each.name == given.name}
    if len(clusters) > 1:
        raise Conflict(f"Several clusters have a queue {given.name}; add cluster= to the address.")
    return {"cluster": clusters.pop() if clusters else cluster_named(call, given.cluster), "queue": given.name}


def _post(
    name: str, handle: Callable[..., Struct], body: type[Struct], summary: str, answer: type[Struct] = Told
) -> Operation:
    return post(ON_QUEUE + name, handle, body, summary, QueueAddress, answer)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/queues",
        handle=list_queues,
        summary="Queues as last measured",
        answer=QueueList,
        parameters=InCluster,
    ),
    _post("pause", pause_queue, Why, "Let no worker take from a queue"),
    _post("resume", resume_queue, Why, "Let the workers take from a queue again"),
    _post("purge", purge_queue, ConfirmBody, "Throw away all that waits", Purged),
    _post("messages", read_queue, ReadBody, "Look at what waits", ReadingItem),
    _post("delete-message", delete_message, DeleteBody, "Throw one message away"),
)
