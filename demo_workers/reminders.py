"""Delayed tasks: a countdown or an ETA is the earliest start, an expiry the latest.

The worker receives a task with an ETA at once and keeps it in memory until then: use minutes, not months.
"""

from datetime import UTC, datetime, timedelta

from demo_workers.app import app


@app.task(name="reminders.rate_order")
def rate_order(order: int) -> str:
    """Sent with ``apply_async((order,), countdown=20)``."""
    return f"asked for stars for order {order}"


@app.task(name="reminders.basket")
def basket(customer: int) -> str:
    return f"reminded customer {customer}"


@app.task(name="reminders.flash_sale")
def flash_sale(customer: int, percent: int) -> str:
    """Sent with an expiry: an expired offer is revoked instead of run."""
    return f"offered {percent} % to customer {customer}"


@app.task(name="reminders.forgotten_baskets")
def forgotten_baskets() -> str:
    """Sent by beat; each reminder has an ETA."""
    first = datetime.now(UTC) + timedelta(seconds=15)
    for number in range(3):
        basket.apply_async((8000 + number,), eta=first + timedelta(seconds=5 * number))
    return "3 reminders planned"
