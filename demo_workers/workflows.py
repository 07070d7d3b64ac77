"""Tasks in sequence (chain), in parallel (group), or in parallel with a final task (chord).

A signature, ``task.s(...)``, is a call to be made later. The result of a task becomes the first argument of the next;
``.si(...)`` is immutable and gets no such argument.
"""

from celery import chain, chord, group

from demo_workers.app import app
from demo_workers.mail import receipt
from demo_workers.payments import charge, note_failure
from demo_workers.warehouse import SHELVES, count_shelf, pick, print_label


@app.task(name="workflows.check_out")
def check_out(order: int, amount: float, items: int, address: str) -> str:
    """Payment, then picking, then label and receipt in parallel."""
    steps = chain(
        charge.si(order, amount).on_error(note_failure.s()),
        pick.si(order, items),
        group(print_label.si(order), receipt.si(order, address)),
    )
    return f"order {order} began as {steps.apply_async().id}"


@app.task(name="workflows.daily_report")
def daily_report(shop: str) -> str:
    """Counts all shelves in parallel, then adds up."""
    counts = chord((count_shelf.s(shelf) for shelf in SHELVES), add_up.s(shop))
    return f"report of {shop} will be {counts.apply_async().id}"


@app.task(name="workflows.add_up")
def add_up(counts: list[int], shop: str) -> str:
    """The chord body: gets the results of all members."""
    return f"{sum(counts)} things on {len(counts)} shelves of {shop}"
