"""The operations of the JSON API that ask workers and change queues."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Literal
from typing import TypedDict

from msgspec import UNSET
from msgspec import Raw
from msgspec import Struct
from msgspec import UnsetType

from monitor.control.commands import Command
from monitor.control.commands import Performed
from monitor.control.inspect import look_inside
from monitor.control.queue_commands import DeleteMessage
from monitor.control.queue_commands import PauseQueue
from monitor.control.queue_commands import PurgeQueue
from monitor.control.queue_commands import ReadQueue
from monitor.control.queue_commands import ResumeQueue
from monitor.control.queue_commands import RunTask
from monitor.control.worker_commands import AddConsumer
from monitor.control.worker_commands import Autoscale
from monitor.control.worker_commands import CancelConsumer
from monitor.control.worker_commands import DisableEvents
from monitor.control.worker_commands import EnableEvents
from monitor.control.worker_commands import PoolGrow
from monitor.control.worker_commands import PoolRestart
from monitor.control.worker_commands import PoolShrink
from monitor.control.worker_commands import RateLimit
from monitor.control.worker_commands import RevokeStamped
from monitor.control.worker_commands import Shutdown
from monitor.control.worker_commands import TimeLimit
from monitor.errors import BrokerUnavailable
from monitor.errors import ConfirmationRequired
from monitor.errors import Conflict
from monitor.errors import MonitorError
from monitor.errors import NotFound
from monitor.errors import NotTaken
from monitor.errors import TakenUnknown
from monitor.errors import TooLarge
from monitor.errors import Unsupported
from monitor.errors import UnsupportedType
from monitor.records import Worker
from monitor.store import queries
from monitor.web import api_control_requests as ask
from monitor.web import api_control_shapes as tell
from monitor.web.api_operation import Call
from monitor.web.api_operation import Operation
from monitor.web.api_requests import InCluster

ERRORS: tuple[type[MonitorError], ...] = (
    NotFound, Conflict, ConfirmationRequired, TooLarge, UnsupportedType, Unsupported, BrokerUnavailable,
)  # fmt: skip


class _Workers(TypedDict):
    cluster: str
    workers: tuple[str, ...]


class _Queue(TypedDict):
    cluster: str
    queue: str


def grow_pool(call: Call, given: ask.WorkerAddress, body: ask.PoolBody) -> tell.Told:
    return _told(call, PoolGrow(**_worker(call, given), reason=body.reason, number=int(body.number)))


def shrink_pool(call: Call, given: ask.WorkerAddress, body: ask.PoolBody) -> tell.Told:
    return _told(call, PoolShrink(**_worker(call, given), reason=body.reason, number=int(body.number)))


def restart_pool(call: Call, given: ask.WorkerAddress, body: ask.Why) -> tell.Told:
    return _told(call, PoolRestart(**_worker(call, given), reason=body.reason))


def autoscale(call: Call, given: ask.WorkerAddress, body: ask.AutoscaleBody) -> tell.Told:
    to = _worker(call, given)
    return _told(call, Autoscale(**to, reason=body.reason, maximum=int(body.maximum), minimum=int(body.minimum)))


def add_consumer(call: Call, given: ask.WorkerAddress, body: ask.ConsumerBody) -> tell.Told:
    return _told(call, AddConsumer(**_worker(call, given), reason=body.reason, queue=body.queue))


def cancel_consumer(call: Call, given: ask.WorkerAddress, body: ask.ConsumerBody) -> tell.Told:
    return _told(call, CancelConsumer(**_worker(call, given), reason=body.reason, queue=body.queue))


def rate_limit(call: Call, given: ask.WorkerAddress, body: ask.RateLimitBody) -> tell.Told:
    return _told(call, RateLimit(**_worker(call, given), reason=body.reason, task=body.task, rate=body.rate))


def time_limit(call: Call, given: ask.WorkerAddress, body: ask.TimeLimitBody) -> tell.Told:
    to = _worker(call, given)
    return _told(call, TimeLimit(**to, reason=body.reason, task=body.task, soft=body.soft, hard=body.hard))


def enable_events(call: Call, given: ask.WorkerAddress, body: ask.Why) -> tell.Told:
    return _told(call, EnableEvents(**_worker(call, given), reason=body.reason))


def disable_events(call: Call, given: ask.WorkerAddress, body: ask.Why) -> tell.Told:
    return _told(call, DisableEvents(**_worker(call, given), reason=body.reason))


def shut_down_worker(call: Call, given: ask.WorkerAddress, body: ask.ConfirmBody) -> tell.Told:
    return _told(call, Shutdown(**_worker(call, given), reason=body.reason, confirm=body.confirm))


def revoke_stamped(call: Call, given: InCluster, body: ask.StampBody) -> tell.Told:
    command = RevokeStamped(
        cluster=_cluster(call, given.cluster),
        workers=(),
        header=body.header,
        stamps=tuple(body.stamps),
        terminate=body.terminate,
        signal=body.signal,
        reason=body.reason,
    )
    return _told(call, command)


def inspect_worker(call: Call, given: ask.WorkerAddress) -> tell.InsideItem:
    return tell.inside_item(look_inside(call.settings, _find(call, given)))


def pause_queue(call: Call, given: ask.QueueAddress, body: ask.Why) -> tell.Told:
    return _told(call, PauseQueue(**_queue(call, given), reason=body.reason))


def resume_queue(call: Call, given: ask.QueueAddress, body: ask.Why) -> tell.Told:
    return _told(call, ResumeQueue(**_queue(call, given), reason=body.reason))


def purge_queue(call: Call, given: ask.QueueAddress, body: ask.ConfirmBody) -> tell.Purged:
    performed = _done(call, PurgeQueue(**_queue(call, given), reason=body.reason, confirm=body.confirm))
    purged = performed.details.get("purged")
    return tell.Purged(purged=purged if isinstance(purged, int) else 0, message=performed.message)


def read_queue(call: Call, given: ask.QueueAddress, body: ask.ReadBody) -> tell.ReadingItem:
    performed = _done(call, ReadQueue(**_queue(call, given), reason=body.reason, limit=int(body.limit)))
    if performed.reading is None:
        raise Conflict(performed.message)
    items = [tell.QueueMessageItem(**asdict(message)) for message in performed.reading.messages]
    return tell.ReadingItem(items=items, more=performed.reading.more, hazard=performed.reading.hazard)


def delete_message(call: Call, given: ask.QueueAddress, body: ask.DeleteBody) -> tell.Told:
    return _told(call, DeleteMessage(**_queue(call, given), reason=body.reason, digest=body.digest, id=body.id))


def run_task(call: Call, given: InCluster, body: ask.RunBody) -> tell.Ran:
    command = RunTask(
        cluster=_cluster(call, given.cluster),
        name=body.name,
        queue=body.queue,
        args=_text(body.args, "[]"),
        kwargs=_text(body.kwargs, "{}"),
        countdown=body.countdown,
        reason=body.reason,
        request_id=body.request_id,
    )
    performed = _done(call, command)
    return tell.Ran(id=performed.results[0].id, outcome=_outcome(performed), message=performed.message)


def _text(raw: Raw | UnsetType, default: str) -> str:
    return default if raw is UNSET else bytes(raw).decode()


def _told(call: Call, command: Command) -> tell.Told:
    """A refusal of every worker is a conflict; of some, it stands beside the answers of the others."""
    performed = _done(call, command)
    answers = [
        tell.AnswerItem(worker=each.id, outcome=each.outcome, message=each.message) for each in performed.results
    ]
    return tell.Told(outcome=_outcome(performed), message=performed.message, answers=answers)


def _done(call: Call, command: Command) -> Performed:
    return call.controller.perform(call.actor, command)


def _outcome(performed: Performed) -> Literal["done", "unconfirmed"]:
    if performed.outcome == "failed":
        answers = [{"worker": each.id, "outcome": each.outcome, "message": each.message} for each in performed.results]
        raise Conflict(performed.message, answers=answers)
    return performed.outcome


def _find(call: Call, given: ask.WorkerAddress) -> Worker:
    """The worker in the record. Raises NotFound, and Conflict where several clusters have one of that name."""
    found = [each for each in queries.workers(call.store, given.cluster) if each.hostname == given.hostname]
    if not found:
        raise NotFound(f"No worker is called {given.hostname!r}, at least none that was heard of.")
    if len(found) > 1:
        raise Conflict(f"Several clusters have a worker {given.hostname}; add cluster= to the address.")
    return found[0]


def _worker(call: Call, given: ask.WorkerAddress) -> _Workers:
    worker = _find(call, given)
    return {"cluster": worker.cluster, "workers": (worker.hostname,)}


def _queue(call: Call, given: ask.QueueAddress) -> _Queue:
    """A queue need not be in the record: a broker may have it, and nobody has looked yet."""
    clusters = {each.cluster for each in queries.queues(call.store, given.cluster) if each.name == given.name}
    if len(clusters) > 1:
        raise Conflict(f"Several clusters have a queue {given.name}; add cluster= to the address.")
    return {"cluster": clusters.pop() if clusters else _cluster(call, given.cluster), "queue": given.name}


def _cluster(call: Call, name: str | None) -> str:
    """The cluster that is named, or the only one."""
    if name is not None:
        return name
    if len(call.settings.clusters) != 1:
        raise Conflict(f"Say which cluster: add cluster= to the address, one of {', '.join(call.settings.clusters)}.")
    return call.settings.clusters[0]


def _post(
    path: str,
    handle: Callable[..., Struct],
    body: type[Struct],
    summary: str,
    parameters: type[Struct] = ask.WorkerAddress,
    answer: type[Struct] = tell.Told,
    errors: tuple[type[MonitorError], ...] = ERRORS,
) -> Operation:
    return Operation(
        method="POST",
        path=f"/api/v1/{path}",
        handle=handle,
        summary=summary,
        answer=answer,
        parameters=parameters,
        body=body,
        errors=errors,
    )


ON_WORKER = "workers/{hostname:name}/"
ON_QUEUE = "queues/{name:name}/"
OPERATIONS = (
    _post(ON_WORKER + "grow", grow_pool, ask.PoolBody, "Add processes to a worker's pool"),
    _post(ON_WORKER + "shrink", shrink_pool, ask.PoolBody, "Take processes from a worker's pool, never the last"),
    _post(
        ON_WORKER + "restart",
        restart_pool,
        ask.Why,
        "Replace each process of a worker's pool once it has ended what it runs",
    ),
    _post(ON_WORKER + "autoscale", autoscale, ask.AutoscaleBody, "Change the range in which a worker scales itself"),
    _post(ON_WORKER + "add-consumer", add_consumer, ask.ConsumerBody, "Let a worker take from one more queue"),
    _post(ON_WORKER + "cancel-consumer", cancel_consumer, ask.ConsumerBody, "Let a worker take no more from a queue"),
    _post(ON_WORKER + "rate-limit", rate_limit, ask.RateLimitBody, "Limit how often a worker runs tasks of a name"),
    _post(ON_WORKER + "time-limit", time_limit, ask.TimeLimitBody, "Set both time limits of tasks of a name"),
    _post(ON_WORKER + "enable-events", enable_events, ask.Why, "Let a worker send task events"),
    _post(ON_WORKER + "disable-events", disable_events, ask.Why, "Let a worker send no task events"),
    _post(ON_WORKER + "shutdown", shut_down_worker, ask.ConfirmBody, "End a worker once what it runs has ended"),
    Operation(
        method="GET",
        path=f"/api/v1/{ON_WORKER}inspect",
        handle=inspect_worker,
        summary="Ask a worker what it has in hand, and for its figures, configuration and tasks",
        answer=tell.InsideItem,
        parameters=ask.WorkerAddress,
        errors=(NotFound, Conflict, Unsupported, BrokerUnavailable),
    ),
    _post("revoke-stamped", revoke_stamped, ask.StampBody, "Revoke tasks by a stamp on every worker", InCluster),
    _post(ON_QUEUE + "pause", pause_queue, ask.Why, "Let no worker take from a queue", ask.QueueAddress),
    _post(ON_QUEUE + "resume", resume_queue, ask.Why, "Let the workers take from a queue again", ask.QueueAddress),
    _post(ON_QUEUE + "purge", purge_queue, ask.ConfirmBody, "Throw away all that waits", ask.QueueAddress, tell.Purged),
    _post(ON_QUEUE + "messages", read_queue, ask.ReadBody, "Look at what waits", ask.QueueAddress, tell.ReadingItem),
    _post(ON_QUEUE + "delete-message", delete_message, ask.DeleteBody, "Throw one message away", ask.QueueAddress),
    _post(
        "run",
        run_task,
        ask.RunBody,
        "Send a task that a worker has registered",
        InCluster,
        tell.Ran,
        (*ERRORS, NotTaken, TakenUnknown),
    ),
)
