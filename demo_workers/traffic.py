"""The customers: sends a steady, irregular stream of orders and other work.

``python -m demo_workers.traffic --rate 6 --failures 0.08``
"""

import argparse
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kombu.exceptions import OperationalError

from demo_workers import mail, misbehave, payments, reminders, warehouse, workflows

logger = logging.getLogger(__name__)

FIRST_ORDER = 1010
CUSTOMERS = ("ada", "grace", "edsger", "barbara", "donald", "radia", "tim", "margaret")
LUCKY_DIGITS = (0, 1, 2, 4, 5, 6, 8, 9)
MEGABYTE = 1_000_000


class Errand(NamedTuple):
    """Something to send, the number of tasks that follow, and its weight."""

    send: Callable[[], object]
    tasks: int
    weight: float


_tens = itertools.count(FIRST_ORDER, 10)


def next_order(last_digit: int | None = None) -> int:
    """Increasing order numbers; the last digit decides whether the payment succeeds: see payments.py."""
    return next(_tens) + (random.choice(LUCKY_DIGITS) if last_digit is None else last_digit)


def buy(last_digit: int | None = None) -> None:
    order = next_order(last_digit)
    amount = round(random.uniform(5, 250), 2)
    address = f"{random.choice(CUSTOMERS)}@example.org"
    workflows.check_out.delay(order, amount, random.randint(1, 9), address)


def settle_invoice(last_digit: int | None = None) -> None:
    payments.charge.delay(next_order(last_digit), round(random.uniform(20, 900), 2), "EUR")


def shout(text: str) -> None:
    """``argsrepr`` replaces the arguments in events, without any escaping."""
    misbehave.ugly_failure.apply_async((text,), argsrepr=f"({text},)")


USUAL = (
    Errand(buy, 6, 5),
    Errand(settle_invoice, 1, 3),
    Errand(lambda: mail.welcome.delay(random.choice(CUSTOMERS), language=random.choice(("en", "de", "pl"))), 1, 6),
    Errand(lambda: warehouse.ship_abroad.delay(next_order(), random.choice(("Peru", "Japan", "Norway"))), 1, 2),
    Errand(lambda: payments.refund.delay(next_order(), 19.9), 1, 1),
    Errand(lambda: reminders.rate_order.apply_async((next_order(),), countdown=random.randint(5, 40)), 1, 1),
    Errand(lambda: reminders.flash_sale.apply_async((random.randint(8000, 8999), 15), expires=30), 1, 1),
    Errand(lambda: misbehave.ugly.delay(misbehave.HOSTILE_NAME), 1, 0.2),
    Errand(lambda: misbehave.import_catalogue.delay("x" * (3 * MEGABYTE)), 1, 0.05),
)
TROUBLE = (
    Errand(lambda: settle_invoice(payments.REFUSED_CARD), 1, 5),
    Errand(lambda: settle_invoice(payments.DROPPED_LINE), 2, 5),
    Errand(lambda: buy(payments.DROPPED_LINE), 7, 3),
    Errand(lambda: buy(payments.REFUSED_CARD), 3, 2),
    Errand(lambda: payments.refund.delay(next_order(payments.DROPPED_LINE), 12.5), 2, 1),
    Errand(lambda: misbehave.import_prices.delay(random.choice(("Acme", "Globex", "Initech"))), 1, 3),
    Errand(lambda: warehouse.pack_giant.delay(next_order()), 1, 0.7),
    Errand(lambda: warehouse.print_label.delay(next_order(), 3.0), 1, 1),
    Errand(lambda: warehouse.ship_abroad.delay(next_order(), "Atlantis"), 1, 1),
    Errand(lambda: reminders.flash_sale.apply_async((random.randint(8000, 8999), 70), expires=-1), 1, 1),
    Errand(lambda: shout(misbehave.HOSTILE_NAME), 1, 1),
    Errand(misbehave.power_cut.delay, 1, 0.3),
    Errand(misbehave.blackout.delay, 1, 0.1),
)
# Rare cases that should show up soon: sent once at the start, unless --failures is 0.
OPENING = (
    TROUBLE[0],
    TROUBLE[5],
    Errand(lambda: misbehave.jam.delay("lamps"), 1, 0),
    TROUBLE[1],
    USUAL[7],
    TROUBLE[8],
    TROUBLE[9],
    TROUBLE[10],
)


def errands(failures: float) -> Iterator[Errand]:
    """Endless: first one of each kind, then at random."""
    if failures:
        for errand in OPENING:
            yield USUAL[0]
            yield errand
    while True:
        kind = TROUBLE if random.random() < failures else USUAL
        yield random.choices(kind, [errand.weight for errand in kind])[0]


def run(rate: float, failures: float) -> None:
    """Sends about ``rate`` tasks per second; ``failures`` is the share of TROUBLE."""
    for errand in errands(failures):
        try:
            errand.send()
        except OperationalError as error:
            logger.warning("the broker does not answer (%s); trying again", error)
        time.sleep(random.expovariate(rate / errand.tasks))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo_workers.traffic", description="The shop's customers.")
    parser.add_argument("--rate", type=float, default=6.0, help="tasks per second")
    parser.add_argument("--failures", type=float, default=0.08, help="share of errands that run into trouble")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    run(options.rate, options.failures)


if __name__ == "__main__":
    main()
