"""The application that test workers run: one task for each way a task can end.

Broker, queue and result backend come from the environment, set by tests/workers.py.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from celery import Celery, group
from celery.exceptions import Ignore, Reject

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


@task("hold")
def hold(release: str) -> None:
    """Runs until the file ``release`` exists."""
    while not Path(release).exists():
        time.sleep(0.05)


@task("outlast", acks_late=True)
def outlast(ledger: str) -> str:
    """Runs until its message was delivered a second time, and ends while the second run goes on."""
    again = Path(ledger, "delivered-again")
    try:
        Path(ledger, "begun").touch(exist_ok=False)
    except FileExistsError:
        again.touch()
        time.sleep(2)
        return "second"
    while not again.exists():
        time.sleep(0.05)
    time.sleep(0.5)
    return "first"


@task("start", bind=True)
def start(self: Any, path: str, *, queue: str | None = None) -> None:
    """Goes on under its id as another call, maybe on another queue."""
    message = app.signature("basic.fail_row", ("row 17", "of " + path))
    raise self.replace(message.set(queue=queue) if queue else message)


@task("fail_row")
def fail_row(row: str, place: str) -> None:
    raise ValueError(f"{row} {place} cannot be read")


@task("count_down", bind=True)
def count_down(self: Any, number: int) -> int:
    """Replaces itself until nothing is left."""
    if number:
        raise self.replace(self.s(number - 1))
    return number


@task("start_group", bind=True)
def start_group(self: Any) -> None:
    raise self.replace(group(app.signature("basic.add", each) for each in ((1, 2), (3, 4))))


@task("retry_then_replace", bind=True)
def retry_then_replace(self: Any, path: str) -> None:
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    raise self.replace(app.signature("basic.fail_row", ("row 18", path)))


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
