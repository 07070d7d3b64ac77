"""Time limits, late acknowledgement and rejecting a message.

A soft limit raises SoftTimeLimitExceeded inside the task, which can clean up; a hard limit kills the process.
"""

import random
import time
from typing import Any

from celery.exceptions import Reject, SoftTimeLimitExceeded

from demo_workers.app import app

SHELVES = ("books", "lamps", "tea", "shoes", "chairs")


@app.task(name="warehouse.pick")
def pick(order: int, items: int) -> dict[str, int]:
    """A result is any JSON value."""
    time.sleep(min(items, 5) * random.uniform(0.05, 0.15))
    return {"order": order, "picked": items}


@app.task(name="warehouse.check_stock")
def check_stock() -> dict[str, int]:
    """Sent by beat every few seconds: see schedule.py."""
    return {shelf: random.randrange(200) for shelf in SHELVES}


@app.task(name="warehouse.count_shelf")
def count_shelf(shelf: str) -> int:
    """A member of the groups and chords in workflows.py."""
    time.sleep(random.uniform(0.1, 0.4))
    return sum(shelf.encode()) + random.randrange(50)


# acks_late: the message stays in the broker until the task is done, so that it runs again if the worker dies.
# Only for idempotent tasks.
@app.task(name="warehouse.print_label", acks_late=True, soft_time_limit=1)
def print_label(order: int, seconds: float = 0.2) -> str:
    """Cleans up at the soft time limit."""
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return f"label of order {order} left to the night shift"
    return f"label of order {order} printed"


@app.task(name="warehouse.pack_giant", time_limit=2)
def pack_giant(order: int) -> None:
    """Exceeds its hard limit, so its process is killed."""
    time.sleep(60)


@app.task(name="warehouse.ship_abroad", bind=True, acks_late=True)
def ship_abroad(self: Any, order: int, country: str) -> str:
    """Rejects a message: on RabbitMQ it goes to the dead-letter exchange, if there is one."""
    if country == "Atlantis":
        raise Reject(f"order {order}: nobody ships to {country}", requeue=False)
    return f"order {order} left for {country} as {self.request.id}"
