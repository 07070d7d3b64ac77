"""The application of tests/apps/basic.py with capture in force, by the one line of configuration that users write."""

import json
import os
from typing import Any

import celery_monitor_capture

from tests.apps.basic import app, task
from tests.apps.order import Order

__all__ = ["app"]
ON_RECEIVE_VARIABLE = "TEST_APP_ON_RECEIVE"
BROKEN_VARIABLE = "TEST_APP_BROKEN_CAPTURE"

if os.environ.get(ON_RECEIVE_VARIABLE):
    celery_monitor_capture.install(app, on_receive=True)
else:
    app.conf.task_annotations = {"*": {"Request": "celery_monitor_capture:Request"}}

if os.environ.get(BROKEN_VARIABLE):

    def broken(request: Any, why: str) -> None:
        raise RuntimeError(f"cannot capture what {why}: {request.id}")

    setattr(celery_monitor_capture, "describe", broken)  # noqa: B010  # mypy takes no other function in its place


@task("fail_once", bind=True)
def fail_once(self: Any, path: str, *args: Any, **kwargs: Any) -> list[Any]:
    """Fails until the file at ``path`` exists, which its first run makes; then leaves its arguments in another."""
    if os.path.exists(path):  # noqa: PTH110
        with open(f"{path}.ran", "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump([list(args), kwargs], file)
        return [list(args), kwargs]
    with open(path, "x", encoding="utf-8"):  # noqa: PTH123
        raise ConnectionError("the bank is closed")


@task("pay_order")
def pay_order(path: str, order: Order) -> int:
    """Takes an object that only pickle carries."""
    if os.path.exists(path):  # noqa: PTH110
        return order.number
    with open(path, "x", encoding="utf-8"):  # noqa: PTH123
        raise ConnectionError("the bank is closed")


@task("mark")
def mark(*args: Any) -> list[str]:
    """The rest of a chain, a callback or an errback: leaves a file of its name."""
    with open(str(args[-1]), "a", encoding="utf-8") as file:  # noqa: PTH123
        file.write("ran\n")
    return [str(each) for each in args]


@task("retry_then_fail", bind=True)
def retry_then_fail(self: Any, retries: int) -> None:
    raise self.retry(exc=ConnectionError("still closed"), countdown=0.05, max_retries=retries)
