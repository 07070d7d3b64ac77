"""Inspection and control of workers and tasks in Flower's words.

What changes something is one of our commands, so it is checked and recorded.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, cast

from starlette.responses import Response

from celery_monitor.brokers.connection import application_of
from celery_monitor.brokers.remote import Remote
from celery_monitor.control.commands import ANSWER_SECONDS, Performed, Signal, find_broker
from celery_monitor.control.revoke import RevokeById
from celery_monitor.control.workers import (
    AddConsumer,
    Autoscale,
    CancelConsumer,
    GrowPool,
    RateLimit,
    RestartPool,
    ShrinkPool,
    ShutDownWorker,
    TimeLimit,
)
from celery_monitor.core.sanitize import Redactor
from celery_monitor.errors import InvalidInput, NotFound
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.workers import read_workers
from celery_monitor.web.flower.call import FlowerCall, json_answer, message, refused

Questions = Mapping[str, Mapping[str, object]]  # Celery's commands and their arguments

QUESTIONS: Questions = {"stats": {}, "active_queues": {}, "registered": {}, "conf": {}}
TASKS: Questions = {"active": {"safe": True}, "scheduled": {}, "reserved": {}, "revoked": {}}
KEPT_SECONDS = 30.0

_kept: dict[tuple[str, str, str], dict[str, Any]] = {}
_lock = Lock()


def list_workers(call: FlowerCall) -> Response:
    """``{name: {stats, active_queues, registered, conf, timestamp}}``; of one worker also its tasks."""
    refresh, status = call.value("refresh", bool, default=False), call.value("status", bool, default=False)
    name = call.text("workername")
    workers = read_workers(call.store, call.text("cluster"))
    if status:
        return json_answer({each.hostname: each.status is WorkerStatus.ONLINE for each in workers})
    if name:
        worker = call.worker(name)
        return json_answer(_inspected(call.settings, worker.cluster, [worker.hostname], {**QUESTIONS, **TASKS}))
    found: dict[str, Any] = {}
    for cluster in dict.fromkeys(each.cluster for each in workers):
        found |= _of_cluster(call.settings, [each for each in workers if each.cluster == cluster], refresh=refresh)
    return json_answer(found)


def _of_cluster(settings: Settings, workers: Sequence[Worker], *, refresh: bool) -> dict[str, Any]:
    """Workers that were asked in the last KEPT_SECONDS are not asked again unless ``refresh``."""
    cluster, oldest = workers[0].cluster, time.time() - KEPT_SECONDS
    places = {each.hostname: (settings.database, cluster, each.hostname) for each in workers}
    living = [each.hostname for each in workers if each.status is not WorkerStatus.OFFLINE]
    with _lock:
        kept = {name: _kept[place] for name, place in places.items() if place in _kept}
    asked = [each for each in living if refresh or each not in kept or kept[each]["timestamp"] < oldest]
    answers = _inspected(settings, cluster, asked, QUESTIONS)
    with _lock:
        _kept.update({places[name]: answer for name, answer in answers.items()})
    return {**kept, **answers}


def _inspected(settings: Settings, cluster: str, workers: Sequence[str], questions: Questions) -> dict[str, Any]:
    """The answers of these workers with their secrets masked; a question that a worker did not answer is missing."""
    if not workers:
        return {}
    remote, redactor = Remote(find_broker(settings, cluster), settings), Redactor(settings.redact)
    found: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(len(questions)) as pool:
        replies = pool.map(lambda each: remote.ask(each, questions[each], workers, ANSWER_SECONDS), questions)
    for question, answers in zip(questions, replies, strict=True):
        for worker, reply in answers.items():
            if reply.error is None:
                found.setdefault(worker, {})[question] = redactor.plain(reply.ok)
                found[worker]["timestamp"] = time.time()
    return found


UNKNOWN_TASK = "unknown task"  # celery.worker.control


def shut_down(call: FlowerCall) -> Response:
    worker = call.worker(call.target)
    call.perform(ShutDownWorker(**_of(worker), confirm=worker.hostname))
    return message("Shutting down!")


def restart_pool(call: FlowerCall) -> Response:
    worker = call.worker(call.target)
    performed = call.perform(RestartPool(**_of(worker)))
    name = worker.hostname
    return _answer(performed, f"Restarting '{name}' worker's pool", f"Failed to restart the '{name}' pool: {{}}")


def grow_pool(call: FlowerCall) -> Response:
    return _resize(call, GrowPool, "Growing", "grow")


def shrink_pool(call: FlowerCall) -> Response:
    return _resize(call, ShrinkPool, "Shrinking", "shrink")


def _resize(call: FlowerCall, command: type[GrowPool | ShrinkPool], doing: str, verb: str) -> Response:
    worker = call.worker(call.target)
    number = call.value("n", int, default=1)
    performed = call.perform(command(**_of(worker), number=number))
    name = worker.hostname
    return _answer(
        performed, f"{doing} '{name}' worker's pool by {number}", f"Failed to {verb} '{name}' worker's pool: {{}}"
    )


def autoscale(call: FlowerCall) -> Response:
    worker = call.worker(call.target)
    least, most = (_whole(call, name) for name in ("min", "max"))
    performed = call.perform(Autoscale(**_of(worker), minimum=least, maximum=most))
    name = worker.hostname
    return _answer(
        performed,
        f"Autoscaling '{name}' worker (min={least}, max={most})",
        f"Failed to autoscale '{name}' worker: {{}}",
    )


def _whole(call: FlowerCall, name: str) -> int:
    call.required(name)
    return call.value(name, int, default=0)


def add_consumer(call: FlowerCall) -> Response:
    return _consume(call, AddConsumer, "Failed to add '{}' consumer to '{}' worker: {{}}")


def cancel_consumer(call: FlowerCall) -> Response:
    return _consume(call, CancelConsumer, "Failed to cancel '{}' consumer from '{}' worker: {{}}")


def _consume(call: FlowerCall, command: type[AddConsumer | CancelConsumer], failure: str) -> Response:
    worker = call.worker(call.target)
    queue = call.required("queue")
    performed = call.perform(command(**_of(worker), queue=queue))
    return _answer(performed, None, failure.format(queue, worker.hostname))


def set_time_limits(call: FlowerCall) -> Response:
    name = call.required("workername")
    soft, hard = call.value("soft", float, None), call.value("hard", float, None)
    _check_task(call)
    command = TimeLimit(**_of(call.worker(name)), task=call.target, soft=soft, hard=hard)
    return _of_task(call, command, "Failed to set timeouts: '{}'")


def set_rate_limit(call: FlowerCall) -> Response:
    name, rate = call.required("workername"), call.required("ratelimit")
    _check_task(call)
    command = RateLimit(**_of(call.worker(name)), task=call.target, rate=rate)
    return _of_task(call, command, "Failed to set rate limit: '{}'")


def revoke(call: FlowerCall) -> Response:
    """On the task's cluster, or on all where it is not recorded: it may arrive later."""
    terminate, signal = call.value("terminate", bool, default=False), cast(Signal, call.text("signal") or "SIGTERM")
    try:
        clusters: tuple[str, ...] = (read_task(call.store, call.target, call.text("cluster")).cluster,)
    except NotFound:
        clusters = call.settings.clusters
    for each in clusters:
        call.perform(RevokeById(cluster=each, id=call.target, terminate=terminate, signal=signal))
    return message(f"Revoked '{call.target}'")


def _of(worker: Worker) -> dict[str, Any]:
    return {"cluster": worker.cluster, "workers": (worker.hostname,)}


def _check_task(call: FlowerCall) -> None:
    """Raises NotFound where the application has no such task; without ``-A`` the worker decides."""
    application = application_of(call.settings)
    if application is not None and application.tasks and call.target not in application.tasks:
        raise NotFound(f"Unknown task '{call.target}'")


def _of_task(call: FlowerCall, command: TimeLimit | RateLimit, failure: str) -> Response:
    try:
        performed = call.perform(command)
    except InvalidInput as error:
        return refused(failure.format(error.message))
    reply = performed.replies.get(command.workers[0])
    if reply is not None and UNKNOWN_TASK in str(reply.error):
        raise NotFound(f"Unknown task '{call.target}'")
    return _answer(performed, None, failure)


def _answer(performed: Performed, success: str | None, failure: str) -> Response:
    """``success``, or the worker's own words; or why not."""
    (result,) = performed.results
    reply = performed.replies.get(result.id)
    if reply is None or reply.error is not None or performed.outcome == "failed":
        return refused(failure.format(reply.error if reply is not None and reply.error else result.message))
    return message(success or str(reply.ok))
