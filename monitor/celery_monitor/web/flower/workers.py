"""Workers in Flower's words: what they answer to inspection."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from starlette.responses import Response

from celery_monitor.brokers.remote import Remote
from celery_monitor.control.commands import ANSWER_SECONDS, find_broker
from celery_monitor.core.sanitize import Redactor
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.workers import read_workers
from celery_monitor.web.flower.call import FlowerCall, json_answer

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
