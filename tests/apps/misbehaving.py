"""A shop whose parts can be made to misbehave one at a time; run by tests/workers.py as basic.py is."""

import json
import os
import time
from typing import Any

from celery import chord

from tests.apps.basic import BROKER_VARIABLE, CONFIG_VARIABLE, make_app

app = make_app(os.environ.get(BROKER_VARIABLE, "memory://"), **json.loads(os.environ.get(CONFIG_VARIABLE, "{}")))


class LabelPrinterJammed(Exception):
    """An error that nobody has seen before."""


@app.task(name="shop.pick")  # type: ignore[untyped-decorator]  # celery has no types
def pick(seconds: float = 0.05) -> float:
    """The everyday work of the shop."""
    time.sleep(seconds)
    return seconds


@app.task(name="shop.print_label")  # type: ignore[untyped-decorator]
def print_label(order: int) -> None:
    raise LabelPrinterJammed(f"no label for order {order}")


@app.task(name="shop.tick")  # type: ignore[untyped-decorator]
def tick() -> None:
    """Sent by beat."""


@app.task(name="shop.count_shelf")  # type: ignore[untyped-decorator]
def count_shelf(shelf: int, seconds: float = 0.05) -> int:
    time.sleep(seconds)
    return shelf


@app.task(name="shop.add_up")  # type: ignore[untyped-decorator]
def add_up(counts: list[int]) -> int:
    return sum(counts)


@app.task(name="shop.report")  # type: ignore[untyped-decorator]
def report(shelves: int, slowest: float = 0.05) -> Any:
    """A chord; its last member takes ``slowest`` seconds."""
    members = [count_shelf.s(each, slowest if each == shelves - 1 else 0.05) for each in range(shelves)]
    return str(chord(members, add_up.s()).apply_async().id)
