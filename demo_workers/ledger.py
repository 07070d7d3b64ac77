"""What has been paid, in a file that outlives every worker. Idempotency needs such a place."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from demo_workers.app import DIRECTORY

TABLE = 'CREATE TABLE IF NOT EXISTS payment ("order" INTEGER PRIMARY KEY, attempts INTEGER NOT NULL, paid REAL)'


@contextmanager
def _ledger() -> Iterator[sqlite3.Connection]:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(DIRECTORY / "payments.db", timeout=10)) as connection, connection:
        connection.execute(TABLE)
        yield connection


def count_attempt(order: int) -> int:
    """How often this order's payment has been tried, this time included."""
    with _ledger() as ledger:
        row = ledger.execute(
            'INSERT INTO payment ("order", attempts) VALUES (?, 1) '
            'ON CONFLICT ("order") DO UPDATE SET attempts = attempts + 1 RETURNING attempts',
            (order,),
        ).fetchone()
    return int(row[0])


def record_payment(order: int, amount: float) -> bool:
    """False when the order had been paid already: then nothing may be charged again."""
    with _ledger() as ledger:
        changed = ledger.execute('UPDATE payment SET paid = ? WHERE "order" = ? AND paid IS NULL', (amount, order))
    return changed.rowcount == 1
