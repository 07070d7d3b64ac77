"""Settings by their names of before Celery 4, in a module of their own."""

import os
from pathlib import Path

from celery import Celery

held = Path(os.environ["SHOP_DIRECTORY"], "imported").open("a")  # whoever has it open has imported this
app = Celery("upper")
app.config_from_object("celeryconfig")


@app.task(name="shop.pay")
def pay(ledger: str, order: str) -> dict[str, str]:
    paid = Path(ledger, order)
    if not paid.exists():
        paid.touch()
        raise ValueError(f"the card of {order} was refused")
    return {"paid": order}
