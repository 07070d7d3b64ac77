"""Retries with back-off and jitter, error handling, and idempotency.

Order numbers that end in 7: the bank drops the first call, and ``charge`` retries automatically. Those that end in 3:
the card is refused the first time; an automatic retry would not help, a person has to retry. Both succeed at the next
attempt, so *Retry* in the dashboard works for them.
"""

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from celery import Task

from demo_workers.app import DIRECTORY, app

DROPPED_LINE = 7
REFUSED_CARD = 3
# Idempotency needs a record of what has been paid that outlives every worker.
TABLE = 'CREATE TABLE IF NOT EXISTS payment ("order" INTEGER PRIMARY KEY, attempts INTEGER NOT NULL, paid REAL)'


class BankUnreachable(Exception):
    """The connection is down. It may be back soon, so a retry makes sense."""


class CardRefused(Exception):
    """The bank refused the card. A retry gets the same answer until the customer is contacted."""


class Payment(Task):  # type: ignore[misc]  # celery has no types
    """Error handling in one place for all payments."""

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:  # noqa: ARG002
        """Called once, when no attempt is left. A real shop would send an alert here."""
        app.log.get_default_logger().warning("payment %s needs a person: %s", task_id, exc)


@app.task(
    name="payments.charge",
    base=Payment,
    autoretry_for=(BankUnreachable,),
    retry_backoff=1,  # waits 1, 2, 4, 8 ... seconds
    retry_backoff_max=60,
    retry_jitter=True,  # ... at random up to that, so that a thousand retries do not come at the same time
    max_retries=5,
    soft_time_limit=20,
)
def charge(order: int, amount: float, currency: str = "EUR") -> str:
    """Idempotent: the ledger records what is paid, so a second run charges nothing."""
    attempt = count_attempt(order)
    time.sleep(random.uniform(0.1, 0.5))
    if attempt == 1 and order % 10 == DROPPED_LINE:
        raise BankUnreachable(f"bank.example.com dropped the line during order {order}")
    if attempt == 1 and order % 10 == REFUSED_CARD:
        raise CardRefused(f"card of order {order} was refused: limit reached")
    if not record_payment(order, amount):
        return f"order {order} had been paid before"
    return f"{amount:.2f} {currency} received for order {order}"


# bind=True passes the task as self: self.request.retries is the number of the attempt, self.retry raises a retry.
@app.task(name="payments.refund", bind=True, base=Payment, max_retries=3)
def refund(self: Any, order: int, amount: float) -> str:
    """An explicit retry, for a delay that depends on the error."""
    time.sleep(random.uniform(0.1, 0.3))
    if self.request.retries == 0 and order % 10 == DROPPED_LINE:
        raise self.retry(exc=BankUnreachable(f"no answer to the refund of order {order}"), countdown=2)
    return f"{amount:.2f} paid back for order {order}"


@app.task(name="payments.note_failure")
def note_failure(request: Any, exc: Exception, traceback: str) -> str:
    """An error callback, attached with ``link_error``."""
    return f"noted: {request.id} failed with {exc!r}"


@contextmanager
def _ledger() -> Iterator[sqlite3.Connection]:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(DIRECTORY / "payments.db", timeout=10)) as connection, connection:
        connection.execute(TABLE)
        yield connection


def count_attempt(order: int) -> int:
    """Number of payment attempts of this order, this one included."""
    with _ledger() as ledger:
        row = ledger.execute(
            'INSERT INTO payment ("order", attempts) VALUES (?, 1) '
            'ON CONFLICT ("order") DO UPDATE SET attempts = attempts + 1 RETURNING attempts',
            (order,),
        ).fetchone()
    return int(row[0])


def record_payment(order: int, amount: float) -> bool:
    """False if the order was already paid; then it must not be charged again."""
    with _ledger() as ledger:
        changed = ledger.execute('UPDATE payment SET paid = ? WHERE "order" = ? AND paid IS NULL', (amount, order))
    return changed.rowcount == 1
