"""Inspecting workers with Celery's remote control. Changes nothing.

Which queues a worker consumes is cached for a moment: a task whose events name no queue came from one of them, and is
sent again there.
"""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import NamedTuple

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.connection import configured_queues
from celery_monitor.brokers.event_queue.post import uses_queues
from celery_monitor.brokers.publish import Route
from celery_monitor.brokers.remote import Remote
from celery_monitor.control.commands import Target, find_broker
from celery_monitor.core.arguments import is_whole
from celery_monitor.core.captures import DELAYED_EXCHANGE_PREFIX
from celery_monitor.core.sanitize import Redactor
from celery_monitor.errors import Conflict, MonitorError
from celery_monitor.records.task import Task
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.queues import read_queues, recorded_queue_names
from celery_monitor.store.workers import read_workers

log = logging.getLogger(__name__)

FIRST_SECONDS = 1.5  # for the first answer; without one, no more questions are sent
NEXT_SECONDS = 1.0
MOST_TASKS = 500  # of each kind
LIMITS = ("time_limit", "soft_time_limit", "rate_limit")
_LIMIT = re.compile(r"(time_limit|soft_time_limit|rate_limit)=(\S+?)(?=[ \]]|$)")
_SECRET = re.compile("API|TOKEN|KEY|SECRET|PASS|SIGNATURE|DATABASE", re.IGNORECASE)  # celery.app.utils


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedTask:
    """A task that a worker has. ``started`` is by our clock; the limits are those of its task name."""

    id: str
    name: str | None
    args: str | None
    kwargs: str | None
    pid: int | None
    started: float | None = None
    eta: float | None = None
    priority: int | None = None
    soft_limit: float | None = None
    hard_limit: float | None = None


class Usage(NamedTuple):
    """Resources that the main process of a worker has used since it started; ``None``: not reported."""

    uptime_seconds: float | None
    cpu_seconds: float | None
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """Everything that one worker reports; ``None``: not reported. ``silent``: no answer at all."""

    silent: bool = False
    active: tuple[InspectedTask, ...] | None = None
    reserved: tuple[InspectedTask, ...] | None = None
    scheduled: tuple[InspectedTask, ...] | None = None
    revoked: tuple[str, ...] | None = None
    stats: Mapping[str, str] | None = None
    usage: Usage | None = None
    conf: Mapping[str, str] | None = None
    registered: Mapping[str, Mapping[str, str]] | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)


def query_worker(settings: Settings, worker: Worker) -> Inspected:
    """Asks one worker for everything. Raises BrokerUnavailable, and NotFound for a cluster that is not monitored."""
    remote = Remote(find_broker(settings, worker.cluster), settings)
    questions: tuple[tuple[str, Mapping[str, object]], ...] = (
        ("stats", {}),
        ("active", {"safe": True}),  # else one argument that is not JSON suppresses the whole answer
        ("registered", {"taskinfoitems": list(LIMITS)}),
        ("conf", {}),
        ("revoked", {}),
        ("scheduled", {}),
        ("reserved", {}),
    )
    redactor = Redactor(settings.redact)
    answers: dict[str, object] = {}
    refusals: dict[str, str] = {}
    for number, (question, arguments) in enumerate(questions):
        seconds = NEXT_SECONDS if number else FIRST_SECONDS
        reply = remote.ask(question, arguments, [worker.hostname], seconds).get(worker.hostname)
        if reply is None and not number:
            return Inspected(silent=True)
        if reply is not None and reply.error is None:
            answers[question] = reply.ok
        elif reply is not None:
            refusals[question] = redactor.text(str(reply.error))
    return _inspected(answers, refusals, worker, redactor)


def _inspected(
    answers: Mapping[str, object], refusals: Mapping[str, str], worker: Worker, redactor: Redactor
) -> Inspected:
    registered = task_limits(answers["registered"]) if "registered" in answers else None
    limits = _Limits(registered or {}, answers.get("conf"))
    revoked = answers.get("revoked")
    return Inspected(
        active=_tasks(answers.get("active"), worker, redactor, limits),
        reserved=_tasks(answers.get("reserved"), worker, redactor, limits),
        scheduled=_tasks(answers.get("scheduled"), worker, redactor, limits),
        revoked=tuple(str(each) for each in revoked[:MOST_TASKS]) if isinstance(revoked, list) else None,
        stats=_table(answers.get("stats"), redactor),
        usage=usage_of(answers.get("stats"), worker.sw_sys),
        conf=_table(answers.get("conf"), redactor),
        registered=registered,
        refusals=refusals,
    )


def usage_of(stats: object, system: str | None) -> Usage | None:
    """The usage in an answer to ``stats``. ``ru_maxrss`` is in KiB, on macOS in bytes (getrusage(2) of each)."""
    if not isinstance(stats, dict):
        return None
    rusage = stats.get("rusage")  # a sentence on platforms without it
    rusage = rusage if isinstance(rusage, dict) else {}
    cpu, peak = (_number(rusage.get("utime")), _number(rusage.get("stime"))), _number(rusage.get("maxrss"))
    unit = {"Linux": 1024, "FreeBSD": 1024, "Darwin": 1}.get(system or "")
    return Usage(
        uptime_seconds=_number(stats.get("uptime")),
        cpu_seconds=cpu[0] + cpu[1] if cpu[0] is not None and cpu[1] is not None else None,
        peak_bytes=int(peak * unit) if peak is not None and unit is not None else None,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


class _Limits:
    """The time limits of a task by its name, else those of the worker's configuration."""

    def __init__(self, registered: Mapping[str, Mapping[str, str]], conf: object) -> None:
        self.registered = registered
        self.conf = conf if isinstance(conf, dict) else {}

    def of(self, name: object, kind: str) -> float | None:
        own = self.registered.get(str(name), {}).get(kind)
        limit = own if own is not None else self.conf.get(f"task_{kind}")
        try:
            return float(limit) if limit is not None else None
        except (TypeError, ValueError):
            return None


def _tasks(answer: object, worker: Worker, redactor: Redactor, limits: _Limits) -> tuple[InspectedTask, ...] | None:
    if not isinstance(answer, list):
        return None
    return tuple(_task(each, worker, redactor, limits) for each in answer[:MOST_TASKS] if isinstance(each, dict))


def _task(entry: Mapping[str, object], worker: Worker, redactor: Redactor, limits: _Limits) -> InspectedTask:
    """``scheduled`` has the request inside the entry; in the other answers, the entry is the request."""
    request = entry.get("request", entry)
    request = request if isinstance(request, dict) else {}
    delivery = request.get("delivery_info")
    pid = request.get("worker_pid")
    started = request.get("time_start")
    return InspectedTask(
        id=str(request.get("id")),
        name=_text(request.get("name")),
        args=_masked(request.get("args"), redactor),
        kwargs=_masked(request.get("kwargs"), redactor),
        pid=pid if isinstance(pid, int) else None,
        started=started + (worker.skew or 0.0) if isinstance(started, int | float) else None,
        eta=_epoch(entry.get("eta")),
        priority=delivery.get("priority") if isinstance(delivery, dict) else None,
        soft_limit=limits.of(request.get("name"), "soft_time_limit"),
        hard_limit=limits.of(request.get("name"), "time_limit"),
    )


def task_limits(registered: object) -> dict[str, dict[str, str]]:
    """Limits by task name, from an answer to ``registered``: ``shop.pay [rate_limit=10/m time_limit=30]``."""
    if not isinstance(registered, list):
        return {}
    parts = [str(each).partition(" [") for each in registered]
    return {name: dict(_LIMIT.findall(limits)) for name, _, limits in parts}


def registered_names(registered: object) -> set[str]:
    """The task names in an answer to ``registered``, without the brackets behind each name."""
    return set(task_limits(registered))


def names_by_worker(settings: Settings, cluster: str, workers: Sequence[str]) -> dict[str, set[str]]:
    """The registered tasks of each worker that answers."""
    remote = Remote(find_broker(settings, cluster), settings)
    replies = remote.ask("registered", {"taskinfoitems": ["_"]}, timeout=FIRST_SECONDS, expected=workers)
    return {worker: registered_names(reply.ok) for worker, reply in replies.items() if reply.error is None}


def pool_processes(stats: object) -> int | None:
    """The number of processes (or threads) in an answer to ``stats``.

    ``max-concurrency`` of prefork stays at the first size, so its list of processes is counted.
    """
    pool = stats.get("pool") if isinstance(stats, dict) else None
    if not isinstance(pool, dict):
        return None
    processes = pool.get("processes")
    size = len(processes) if isinstance(processes, list) else pool.get("max-concurrency")
    return size if isinstance(size, int) else None


def queue_names(active_queues: object) -> list[str] | None:
    """The queues that a worker consumes, from an answer to ``active_queues``."""
    if not isinstance(active_queues, list):
        return None
    return [str(each.get("name")) for each in active_queues if isinstance(each, dict) and each.get("name")]


def _table(answer: object, redactor: Redactor) -> dict[str, str] | None:
    """A flat table for display: ``pool.max-concurrency``; secrets are masked by our key words and Celery's."""
    if not isinstance(answer, dict):
        return None
    flat: dict[str, str] = {}
    for name, value in _flat("", answer):
        masked = redactor.text(repr({name: value}))
        plain = masked == repr({name: value}) and not (_SECRET.search(name) and isinstance(value, str))
        flat[name] = str(value) if plain else _value_in(name, masked)
    return dict(sorted(flat.items()))


def _flat(prefix: str, table: Mapping[object, object]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in table.items():
        name = f"{prefix}{key}"
        rows += _flat(f"{name}.", value) if isinstance(value, dict) and value and not prefix else [(name, value)]
    return rows


def _value_in(name: str, masked: str) -> str:
    """The value in ``{name: value}``; just the mask if the name itself was changed."""
    start = f"{{{name!r}: "
    return masked[len(start) : -1] if masked.startswith(start) and not _SECRET.search(name) else "***"


def _masked(value: object, redactor: Redactor) -> str | None:
    if value is None:
        return None
    return redactor.text(value if isinstance(value, str) else repr(value))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _epoch(value: object) -> float | None:
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):  # of the year 1, or 9999
        return None


ASK_SECONDS = 1.0
CACHE_SECONDS = 2.0  # for the other tasks of a bulk retry
MOST_CACHED = 1000


@dataclass(frozen=True, slots=True)
class Consumed:
    """The queues of one worker, empty if unknown. ``same_process``: it is still the process that ran the task."""

    worker: str
    queues: tuple[str, ...] = ()
    same_process: bool = True

    @property
    def only_queue(self) -> str | None:
        """The only queue that the task can have come from."""
        return self.queues[0] if self.same_process and len(self.queues) == 1 else None


def consumed(target: Target, task: Task) -> Consumed | None:
    """The queues that the worker of the latest run consumes; ``None`` for a task that no worker received.

    From the record, else the worker is asked, for ASK_SECONDS at most. Unknown to somebody whose scope has not all of
    these queues.
    """
    run = task.run
    if run is None or run.worker is None:
        return None
    key = (target.settings.database, target.broker.url, run.worker, run.pid)
    now = time.monotonic()
    with _cache_lock:
        at, found = _cache.get(key, (float("-inf"), None))
    if found is None or now - at >= CACHE_SECONDS:
        found = _find(target, run.worker, run.pid)
        with _cache_lock:
            if len(_cache) >= MOST_CACHED:
                _cache.clear()
            _cache[key] = (time.monotonic(), found)
    scope = target.store.limits.scope
    return found if all(scope.has_queue(target.cluster, queue) for queue in found.queues) else None


def _find(target: Target, name: str, pid: int | None) -> Consumed:
    worker = next((each for each in workers_of(target) if each.hostname == name), None)
    same = worker is not None and pid in {None, worker.pid}
    return Consumed(name, _queues(target, name, worker), same)


def _queues(target: Target, name: str, worker: Worker | None) -> tuple[str, ...]:
    if worker is not None and worker.queues is not None:
        return worker.queues
    if worker is None or worker.status is WorkerStatus.OFFLINE:
        return ()
    try:
        reply = target.remote.ask("active_queues", destination=[name], timeout=ASK_SECONDS).get(name)
    except MonitorError as error:
        log.warning("cannot ask %s for its queues: %s", name, error.message)
        return ()
    return tuple(sorted(queue_names(reply.ok) or ())) if reply is not None else ()


_Key = tuple[str, str, str, int | None]
_cache: dict[_Key, tuple[float, Consumed]] = {}
_cache_lock = Lock()


def workers_of(target: Target) -> list[Worker]:
    """Every worker, also for somebody whose scope has none: they have and consume the tasks inside."""
    return read_workers(target.store.whole, target.cluster)


def living_workers(target: Target) -> list[str]:
    """Workers that may have or consume a task: online, or silent because busy."""
    return [worker.hostname for worker in workers_of(target) if worker.status is not WorkerStatus.OFFLINE]


def why_no_control(target: Target) -> str | None:
    """Why no worker receives commands; ``None`` if some may."""
    if not uses_queues(target.broker, target.settings) or living_workers(target):
        return None
    return (
        f"Over {transport_of(target.broker.url)} Celery has no remote control: only workers with "
        "celery_monitor_capture receive commands, and none of these is up."
    )


def queues_of(target: Target) -> list[str]:
    """Queues of the cluster: sampled, consumed by a worker, named by tasks or configured by the application."""
    sampled = {queue.name for queue in read_queues(target.store, target.cluster)}
    consumed = {name for worker in workers_of(target) for name in worker.queues or ()}
    of_tasks = recorded_queue_names(target.store, target.cluster)
    others = consumed | configured_queues(target.broker, target.settings)
    scope = target.store.limits.scope
    return sorted(sampled | of_tasks | {name for name in others if scope.has_queue(target.cluster, name)})


def find_route(
    target: Target, task: Task, queue: str | None, stored: str | None = None, *, doubtful: bool = False
) -> Route:
    """The route for a task. Raises Conflict, which lists the queues to choose from.

    The requested queue, else the task's own, else its exchange and routing key, else the only queue that its worker
    consumes. ``stored``: the queue in a result backend, which is really the routing key, so it is only used if a queue
    has that name (celery.backends.base). ``doubtful``: its queue may be from a message that is not used.
    """
    if queue is not None:
        return _requested_route(target, task, queue)
    if (task.sent is not None or not doubtful) and (route := recorded_route(task)):
        return route
    found = consumed(target, task)
    if found is not None and found.only_queue is not None and is_whole(found.only_queue):
        return Route("", found.only_queue)
    names = queues_of(target)
    if stored in names:
        return Route("", str(stored))
    choice = list(found.queues) if found is not None and found.queues else names
    raise Conflict(
        f"The queue of task {task.id} is unknown: events name it only with task_send_sent_event{_consumes(found)}. "
        f"Choose {' or '.join(choice) if choice else 'one once a worker answers; no queue is known yet'}.",
        queues=choice,
    )


def _requested_route(target: Target, task: Task, queue: str) -> Route:
    names = queues_of(target)
    if queue not in names and ((found := consumed(target, task)) is None or queue not in found.queues):
        raise Conflict(f"Unknown queue {queue!r}. Known queues: {', '.join(names) or 'none'}.", queues=names)
    return Route("", queue)


def _consumes(found: Consumed | None) -> str:
    if found is None:
        return ""
    if not found.queues:
        return f", and {found.worker} did not report which queues it consumes"
    if not found.same_process:
        return f", and {found.worker} was restarted since; it consumes {', '.join(found.queues)} now"
    return f", and {found.worker} consumes {', '.join(found.queues)}"


def recorded_route(task: Task) -> Route | None:
    """The route of a task, if its events contain it."""
    if task.queue and is_whole(task.queue):
        return Route("", task.queue)
    if task.routing_key and task.exchange is not None and not task.exchange.startswith(DELAYED_EXCHANGE_PREFIX):
        return Route(task.exchange, task.routing_key)
    return None
