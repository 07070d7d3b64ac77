"""A task that writes its own runs into a ledger in Redis, beside everything that events say."""

import os

import redis

from tests.apps.basic import app, task

LEDGER_VARIABLE = "TEST_LEDGER_URL"
_clients: dict[int, "redis.Redis"] = {}  # a forked pool process must not share its parent's socket

__all__ = ["app"]


def ledger() -> "redis.Redis":
    if os.getpid() not in _clients:
        _clients[os.getpid()] = redis.Redis.from_url(os.environ[LEDGER_VARIABLE])
    return _clients[os.getpid()]


@task("entry", bind=True)
def entry(self: object, fails: bool) -> None:
    """Enters its id under how it ends; each run once more."""
    outcome = "failed" if fails else "succeeded"
    ledger().hincrby(f"ledger:{outcome}", self.request.id, 1)  # type: ignore[attr-defined]
    if fails:
        raise ValueError("entered as failed")
