"""What a result backend keeps of tasks: the bytes as they are, never unpickled. Redis and SQL databases are read.

Other backends keep pickles, or nothing beyond a message to who sent the task: those are said to be so.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal
from typing import NamedTuple

from celery import Celery
from celery.app.backends import by_url
from celery.backends.redis import RedisBackend
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from monitor.application import Application
from monitor.brokers.application import application_of
from monitor.brokers.beat import timezone_of
from monitor.brokers.connection import app_for
from monitor.brokers.connection import without_password
from monitor.brokers.link import said
from monitor.brokers.read_application import DJANGO_RESULTS
from monitor.errors import BrokerUnavailable
from monitor.errors import SettingsError
from monitor.errors import StoreUnavailable
from monitor.settings import REDIS_SCHEMES
from monitor.settings import SQL_SCHEMES
from monitor.settings import Broker
from monitor.settings import Settings
from monitor.store.foreign_results import CELERY
from monitor.store.foreign_results import DJANGO
from monitor.store.foreign_results import ResultTable
from monitor.store.foreign_results import read_results

CONNECT_SECONDS = ANSWER_SECONDS = 2.0
READ = "Redis, the database backend (db+...) and django-db are read"
# Why not, of those that people use most.
REASONS = {
    "rpc": "its results are messages to the process that sent the task, and nobody else can read them",
    "amqp": "its results are messages to the process that sent the task, and nobody else can read them",
    "cache": "what it keeps is not shared, or cannot be read safely",
    "django-cache": "what it keeps is not shared, or cannot be read safely",
}

ResultKind = Literal["none", "redis", "sql", "unreadable"]


class ResultBackend(NamedTuple):
    """Where a cluster's results are, and whether they can be read here; ``reason`` is why not.

    ``address`` has no password. ``source``: who says so.
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
    """The result backend that is given for a cluster, else the application's."""
    application = application_of(settings)
    given = settings.address_of("result_backend", broker.cluster)
    if given is not None:
        return _found(given.url, application)._replace(source="option")
    if application is None:
        return ResultBackend("none", "")
    if (why := application.unusable.get("result_backend")) is not None:
        return ResultBackend("unreadable", "(an object)", f"{why}; {READ}", "application")
    return _found(application.setting("result_backend"), application)._replace(source="application")


def stored_results(broker: Broker, settings: Settings, ids: Sequence[str]) -> dict[str, bytes]:
    """What is stored of these tasks, by their ids. Raises BrokerUnavailable."""
    backend = result_backend(broker, settings)
    if not backend.is_read or not ids:
        return {}
    try:
        if backend.table is not None:
            return read_results(backend.table, ids)
        return _from_redis(app_for(broker, settings), backend.url, ids)
    except (RedisError, OSError, StoreUnavailable, SettingsError) as error:
        raise BrokerUnavailable(
            f"The result backend of {broker.cluster} at {backend.address} does not answer ({said(error)})."
        ) from error


def _found(given: object, application: Application | None) -> ResultBackend:
    if not isinstance(given, str) or given in {"", "disabled", "disabled://"}:
        return ResultBackend("none", "")
    url = _database_url(given, application)
    if url is not None and url.startswith(SQL_SCHEMES):
        return ResultBackend("sql", without_password(url), url=url, table=_celery_table(url, application))
    if given.startswith(REDIS_SCHEMES) or given in {"redis", "rediss"}:  # redis_host and the like say where
        return ResultBackend("redis", _shown(given), url=given)
    if given.partition("://")[0] in DJANGO_RESULTS:
        return _django(application)
    name = given.partition("://")[0].partition("+")[0]
    return ResultBackend("unreadable", _shown(given), f"{REASONS.get(name, f'{name} is not read')}; {READ}")


def _shown(given: str) -> str:
    """Without a password; a bare scheme as it is."""
    return without_password(given) if given.partition("://")[2] else given


def _database_url(given: str, application: Application | None) -> str | None:
    """The address of Celery's database backend, which may stand in a setting of its own."""
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
        return ResultBackend("unreadable", "django-db", why or "only the application names its database: start with -A")
    table = ResultTable(url=database.url, name=database.table, columns=DJANGO, timezone=database.timezone)
    return ResultBackend("sql", f"django-db in {without_password(database.url)}", url=database.url, table=table)


def _from_redis(app: Celery, url: str, ids: Sequence[str]) -> dict[str, bytes]:
    backend = _backend(app, url)
    values = backend.mget([backend.get_key_for_task(each) for each in ids])
    return {each: value for each, value in zip(ids, values, strict=True) if isinstance(value, bytes)}


@lru_cache(maxsize=64)
def _backend(app: Celery, url: str) -> RedisBackend:
    """Its client is made at the first question, with limits that a page can wait for."""
    kind, address = by_url(url, app.loader)
    backend: RedisBackend = kind(app=app, url=address)
    limits = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": ANSWER_SECONDS}
    backend.connparams |= {**limits, "retry": Retry(NoBackoff(), 1)}
    return backend
