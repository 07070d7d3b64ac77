"""A small application for workers of any Celery and Python: copied to where the worker starts."""

import os
from typing import Any, List, Set

from celery import Celery

app = Celery("shop", broker=os.environ["SHOP_BROKER"])
app.conf.task_default_queue = os.environ["SHOP_QUEUE"]
app.conf.broker_connection_retry_on_startup = True
if os.environ["SHOP_CAPTURES"] == "yes":
    app.conf.task_annotations = {"*": {"Request": "celery_monitor_capture:Request"}}
paid: Set[str] = set()


@app.task(name="shop.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="shop.charge")
def charge(order: str) -> str:
    """Fails the first time for each order."""
    if order not in paid:
        paid.add(order)
        raise ValueError("the card of order %s was refused" % order)
    return "order %s is paid" % order


@app.task(name="shop.deliver", bind=True)
def deliver(self: Any) -> int:
    if not self.request.retries:
        raise self.retry(exc=ConnectionError("nobody is at home"), countdown=0.1)
    return int(self.request.retries)


@app.task(name="shop.open")
def open_shop(order: str) -> List[str]:
    """The tasks of a day, sent by this very version of Celery."""
    return [add.delay(2, 40).id, charge.delay(order).id, deliver.delay().id]
