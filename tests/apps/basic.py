"""The application that test workers run: one task for each way a task can end.

Broker, queue and result backend come from the environment, set by tests/workers.py.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import TypeVar
from typing import cast

from celery import Celery
from celery.exceptions import Ignore
from celery.exceptions import Reject

BROKER_VARIABLE = "TEST_APP_BROKER"
CONFIG_VARIABLE = "TEST_APP_CONFIG"


Function = TypeVar("Function", bound=Callable[..., Any])


def make_app(broker_url: str, **config: Any) -> Celery:
    """An application as the tests' workers and publishers use it; ``config`` overrides."""
    app = Celery("basic", broker=broker_url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=5,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=True,
    )
    app.conf.update(config)
    return app


app = make_app(os.environ.get(BROKER_VARIABLE, "memory://"), **json.loads(os.environ.get(CONFIG_VARIABLE, "{}")))


def task(name: str, **options: Any) -> Callable[[Function], Function]:
    """``app.task`` with a type."""
    return cast(Callable[[Function], Function], app.task(name=f"basic.{name}", **options))


@task("add")
def add(x: Any, y: Any) -> Any:
    return x + y


@task("echo")
def echo(*args: Any, **kwargs: Any) -> Any:
    return [args, kwargs]


@task("fail")
def fail(message: str = "no such order") -> None:
    raise ValueError(message)


class CardRefusedError(Exception):
    """Trying again does not help by itself; a person has to look."""


@task("charge")
def charge(ledger: str, order: str, amount: float, text: str = "") -> str:
    """Fails the first time for each order, which the folder ``ledger`` remembers."""
    paid = Path(ledger, order)
    if not paid.exists():
        paid.touch()
        raise CardRefusedError(f"the card of order {order} was refused")
    return f"order {order} is paid: {amount} EUR"


@task("retry_then_succeed", bind=True)
def retry_then_succeed(self: Any, failures: int = 2, countdown: float = 0.1) -> int:
    if self.request.retries < failures:
        raise self.retry(exc=ConnectionError("try again"), countdown=countdown, max_retries=failures)
    return int(self.request.retries)


@task("sleep")
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@task("reject", acks_late=True)
def reject(requeue: bool = False) -> None:
    raise Reject("not wanted", requeue=requeue)


@task("ignore")
def ignore() -> None:
    raise Ignore


@task("crash")
def crash() -> None:
    """Die as from the kernel's out-of-memory killer: the pool process, not the worker."""
    os.kill(os.getpid(), signal.SIGKILL)


@task("overrun", time_limit=1)
def overrun(seconds: float = 30) -> None:
    """Run into the hard time limit."""
    time.sleep(seconds)


@task("soft_overrun", soft_time_limit=1)
def soft_overrun(seconds: float = 30) -> None:
    time.sleep(seconds)


@task("recurse")
def recurse(depth: int = 40) -> None:
    """Fail with a long traceback."""
    _descend(depth)


def _descend(depth: int) -> None:
    if depth == 0:
        raise RuntimeError("the bottom")
    _descend(depth - 1)
