"""Task results in a result backend. Redis and SQL databases are read; only JSON is decoded, never a pickle.

For other backends the reason why they cannot be read is given. The end of a task whose last event was missed is read
from here, too.
"""

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from celery import Celery
from celery.app.backends import by_url
from celery.utils.saferepr import saferepr

from celery_monitor.addresses import without_password
from celery_monitor.brokers.beat import timezone_of
from celery_monitor.brokers.connection import app_for, application_of, short_error
from celery_monitor.brokers.lazy import redis
from celery_monitor.brokers.read_application import DJANGO_RESULTS
from celery_monitor.core.lifecycle import parse_time
from celery_monitor.core.untrusted import NotJson, decode_json
from celery_monitor.errors import BrokerUnavailable, SettingsError, StoreUnavailable, Unsupported
from celery_monitor.records.application import Application
from celery_monitor.settings import Settings
from celery_monitor.settings.values import REDIS_SCHEMES, SQL_SCHEMES, Broker
from celery_monitor.store.foreign import CELERY, DJANGO, ResultTable, read_results

if TYPE_CHECKING:
    from celery.backends.redis import RedisBackend

CONNECT_SECONDS = ANSWER_SECONDS = 2.0
READ = "Redis, the database backend (db+...) and django-db are read"
_TO_SENDER = "its results are messages to the process that sent the task, and nobody else can read them"
_CACHE = "a cache is not shared, or cannot be read safely"
REASONS = {"rpc": _TO_SENDER, "amqp": _TO_SENDER, "cache": _CACHE, "django-cache": _CACHE}

ResultKind = Literal["none", "redis", "sql", "unreadable"]


class ResultBackend(NamedTuple):
    """Where a cluster's results are stored, and whether they can be read here; ``reason`` is why not.

    ``address`` has no password. ``source`` is where the address was configured.
    """

    kind: ResultKind
    address: str
    reason: str | None = None
    source: Literal["option", "application", "unknown"] = "unknown"
    url: str = ""
    table: ResultTable | None = None

    @property
    def is_read(self) -> bool:
        return self.kind in {"redis", "sql"}


def result_backend(broker: Broker, settings: Settings) -> ResultBackend:
    """The result backend from the option for this cluster, else the application's."""
    application = application_of(settings)
    given = settings.address_of("result_backend", broker.cluster)
    if given is not None:
        return _backend_at(given.url, application)._replace(source="option")
    if application is None:
        return ResultBackend("none", "")
    if (why := application.unusable.get("result_backend")) is not None:
        return ResultBackend("unreadable", "(an object)", f"{why}; {READ}", "application")
    return _backend_at(application.setting("result_backend"), application)._replace(source="application")


def stored_results(broker: Broker, settings: Settings, ids: Sequence[str]) -> dict[str, bytes]:
    """The stored results of these tasks by id, not decoded. Raises BrokerUnavailable."""
    backend = result_backend(broker, settings)
    if not backend.is_read or not ids:
        return {}
    try:
        if backend.table is not None:
            return read_results(backend.table, ids)
        return _from_redis(app_for(broker, settings), backend.url, ids)
    except (redis.RedisError, OSError, StoreUnavailable, SettingsError) as error:
        raise BrokerUnavailable(
            f"The result backend of {broker.cluster} at {backend.address} does not answer ({short_error(error)})."
        ) from error


def _backend_at(given: object, application: Application | None) -> ResultBackend:
    if not isinstance(given, str) or given in {"", "disabled", "disabled://"}:
        return ResultBackend("none", "")
    url = _database_url(given, application)
    if url is not None and url.startswith(SQL_SCHEMES):
        return ResultBackend("sql", without_password(url), url=url, table=_celery_table(url, application))
    address = without_password(given) if given.partition("://")[2] else given  # a bare scheme
    if given.startswith(REDIS_SCHEMES) or given in {"redis", "rediss"}:  # then redis_host and the like have the rest
        return ResultBackend("redis", address, url=given)
    if given.partition("://")[0] in DJANGO_RESULTS:
        return _django(application)
    name = given.partition("://")[0].partition("+")[0]
    return ResultBackend("unreadable", address, f"{REASONS.get(name, f'{name} is not read')}; {READ}")


def _database_url(given: str, application: Application | None) -> str | None:
    """The address of Celery's database backend, which may be in the setting ``database_url``."""
    if given.rstrip(":/") in {"db", "database"} and application is not None:
        own = application.setting("database_url")
        return f"db+{own}" if isinstance(own, str) else None
    return given


def _celery_table(url: str, application: Application | None) -> ResultTable:
    names = application.setting("database_table_names") if application is not None else None
    schemas = application.setting("database_table_schemas") if application is not None else None
    return ResultTable(
        url=url.partition("+")[2],
        name=str((names or {}).get("task") or "celery_taskmeta"),
        columns=CELERY,
        timezone=timezone_of(application.setting) if application is not None else None,
        schema=(schemas or {}).get("task"),
    )


def _django(application: Application | None) -> ResultBackend:
    database = application.databases.get("results") if application is not None else None
    if database is None:
        why = application.problems.get("results database") if application is not None else None
        why = why or "its database is only in the application's settings: start with -A"
        return ResultBackend("unreadable", "django-db", why)
    table = ResultTable(url=database.url, name=database.table, columns=DJANGO, timezone=database.timezone)
    return ResultBackend("sql", f"django-db in {without_password(database.url)}", url=database.url, table=table)


def _from_redis(app: Celery, url: str, ids: Sequence[str]) -> dict[str, bytes]:
    backend = _backend(app, url)
    values = backend.mget([backend.get_key_for_task(each) for each in ids])
    return {each: value for each, value in zip(ids, values, strict=True) if isinstance(value, bytes)}


class TaskMeta(NamedTuple):
    """What a result backend has of a task: Celery's state, and the result or exception once there is one."""

    state: str
    result: Any = None
    traceback: str | None = None


READY = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
ABORTED = "ABORTED"  # celery.contrib.abortable


def task_meta(broker: Broker, settings: Settings, task_id: str) -> TaskMeta:
    """Celery's ``AsyncResult`` of a task; PENDING where there is none. Raises BrokerUnavailable and Unsupported."""
    _require_backend(broker, settings)
    payload = stored_results(broker, settings, [task_id]).get(task_id)
    try:
        meta = decode_json(payload) if payload is not None else None
    except NotJson as error:
        raise Unsupported(f"The result of {task_id} is not JSON ({error}), so it is not read.") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("status"), str):
        return TaskMeta("PENDING")
    failed = meta["status"] in READY - {"SUCCESS"}
    return TaskMeta(
        meta["status"], _exception(meta.get("result")) if failed else meta.get("result"), meta.get("traceback")
    )


def mark_aborted(broker: Broker, settings: Settings, task_id: str) -> None:
    """Stores the state ABORTED, as ``AbortableAsyncResult.abort`` does, unless the task has ended.

    Raises BrokerUnavailable, and Unsupported where the backend is not Redis or its results are not JSON.
    """
    found = _require_backend(broker, settings)
    app = app_for(broker, settings)
    if found.kind != "redis" or app.conf.result_serializer != "json":
        raise Unsupported("Tasks can be aborted where the result backend is in Redis, with results in JSON.")
    if task_meta(broker, settings, task_id).state in READY:
        return
    meta: dict[str, object] = {"status": ABORTED, "result": None, "traceback": None, "children": [], "date_done": None}
    backend = _backend(app, found.url)
    try:
        backend.set(backend.get_key_for_task(task_id), json.dumps({**meta, "task_id": task_id}))
    except (redis.RedisError, OSError) as error:
        raise BrokerUnavailable(
            f"The result backend at {found.address} does not answer ({short_error(error)})."
        ) from error


def _require_backend(broker: Broker, settings: Settings) -> ResultBackend:
    found = result_backend(broker, settings)
    if not found.is_read:
        raise Unsupported(f"There is no result backend that can be read. {found.reason or READ}.")
    return found


@lru_cache(maxsize=64)
def _backend(app: Celery, url: str) -> "RedisBackend":
    """Its client is created by the first request, with timeouts that a page can wait for."""
    kind, address = by_url(url, app.loader)
    backend: RedisBackend = kind(app=app, url=address)
    limits = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": ANSWER_SECONDS}
    backend.connparams |= {**limits, "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 1)}
    return backend


EARLY_SECONDS = 5.0  # the result of a short task can be stored before its task-started event is sent
LONGEST_REPR = 1024  # as Celery cuts the result in an event
EVENTS = {"SUCCESS": "task-succeeded", "FAILURE": "task-failed", "REVOKED": "task-revoked"}

log = logging.getLogger(__name__)


class StoredResult(NamedTuple):
    """How a task ended: the type of the event that was missed. ``done`` by the worker's clock."""

    event: str
    done: float | None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None
    worker: str | None = None  # only with result_extended

    def ended_at(self, begun: float, now: float) -> float | None:
        """When a run that began at ``begun`` ended, at the latest now; ``None``: an older result of the same id."""
        done = self.done if self.done is not None else now
        return min(max(done, begun), now) if done >= begun - EARLY_SECONDS else None


class ResultReader:
    """Reads results from the result backend of one cluster."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        self._logged = False

    @property
    def absence(self) -> str:
        """What a missing result means: a backend that cannot be read may have one."""
        backend = result_backend(self._broker, self._settings)
        if backend.kind == "unreadable":
            return f"its result backend ({backend.address}) cannot be read from here and may have a result"
        return "no result backend has a result"

    def of(self, ids: Sequence[str]) -> dict[str, StoredResult] | None:
        """The results of those of these tasks that have one; ``None`` where the backend does not answer (logged once).

        Empty where no backend can be read.
        """
        try:
            stored = stored_results(self._broker, self._settings, ids)
        except BrokerUnavailable as error:
            if not self._logged:
                log.warning("%s", error)
            self._logged = True
            return None
        self._logged = False
        found = {task_id: read_result(payload) for task_id, payload in stored.items()}
        return {task_id: result for task_id, result in found.items() if result is not None}


def read_result(payload: bytes | str | None) -> StoredResult | None:
    """What Celery stored under a task's key; ``None`` where it is not JSON, or the task has not ended."""
    if payload is None:
        return None
    try:
        meta = decode_json(payload)
    except NotJson:
        return None
    if not isinstance(meta, dict) or not isinstance(meta.get("status"), str) or meta["status"] not in EVENTS:
        return None
    done = parse_time(meta["date_done"]) if isinstance(meta.get("date_done"), str) else None
    worker = meta["worker"] if isinstance(meta.get("worker"), str) else None
    event, result, traceback = EVENTS[meta["status"]], meta.get("result"), meta.get("traceback")
    if event == "task-succeeded":
        text = str(saferepr(result, LONGEST_REPR)) if "result" in meta else None  # None: pickled in an SQL backend
        return StoredResult(event, done, result=text, worker=worker)
    text = traceback if isinstance(traceback, str) else None
    return StoredResult(event, done, exception=_exception(result), traceback=text, worker=worker)


def _exception(stored: object) -> str | None:
    """``ValueError('no such order')`` from the exception in Celery's JSON."""
    if not isinstance(stored, dict) or not isinstance(stored.get("exc_type"), str):
        return None
    message = stored.get("exc_message")
    given = message if isinstance(message, list) else [] if message is None else [message]
    return f"{stored['exc_type']}({', '.join(map(repr, given))})"
