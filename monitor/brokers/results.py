"""What a result backend keeps of tasks: the bytes as they are, never unpickled. Redis alone is read.

Other backends unpickle what they fetch before anybody can look at it (the database one, memcached), or keep nothing
beyond a message (rpc).
"""

from collections.abc import Sequence
from functools import lru_cache

from celery import Celery
from celery.app.backends import by_url
from celery.backends.redis import RedisBackend
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from monitor.brokers.connection import app_for
from monitor.brokers.connection import without_password
from monitor.brokers.link import said
from monitor.errors import BrokerUnavailable
from monitor.settings import RESULT_SCHEMES
from monitor.settings import Broker
from monitor.settings import Settings

CONNECT_SECONDS = ANSWER_SECONDS = 2.0


def has_results(broker: Broker, settings: Settings) -> bool:
    """Whether there is a result backend that can be read."""
    return _address(broker, settings) is not None


def stored_results(broker: Broker, settings: Settings, ids: Sequence[str]) -> dict[str, bytes]:
    """What is stored of these tasks, by their ids. Raises BrokerUnavailable."""
    url = _address(broker, settings)
    if url is None or not ids:
        return {}
    backend = _backend(app_for(broker, settings), url)
    try:
        values = backend.mget([backend.get_key_for_task(each) for each in ids])
    except (RedisError, OSError) as error:
        raise BrokerUnavailable(
            f"The result backend of {broker.cluster} at {without_password(url)} does not answer ({said(error)})."
        ) from error
    return {each: value for each, value in zip(ids, values, strict=True) if isinstance(value, bytes)}


def _address(broker: Broker, settings: Settings) -> str | None:
    given = settings.address_of("result_backend", broker.cluster)
    url = given.url if given else app_for(broker, settings).conf.result_backend
    return url if isinstance(url, str) and url.startswith(RESULT_SCHEMES) else None


@lru_cache(maxsize=64)
def _backend(app: Celery, url: str) -> RedisBackend:
    """Its client is made at the first question, with limits that a page can wait for."""
    kind, address = by_url(url, app.loader)
    backend: RedisBackend = kind(app=app, url=address)
    limits = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": ANSWER_SECONDS}
    backend.connparams |= {**limits, "retry": Retry(NoBackoff(), 1)}
    return backend
