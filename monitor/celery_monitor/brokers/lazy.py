"""redis-py, loaded when it is first used: a web process needs it for some actions, and with RabbitMQ nothing does."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis as redis
    import redis.backoff
    import redis.retry
else:

    class _Redis:
        """Stands for the package until something of it is used."""

        def __getattr__(self, attribute: str) -> object:
            return getattr(import_module("redis"), attribute)

    redis = _Redis()
