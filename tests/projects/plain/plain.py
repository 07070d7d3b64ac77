"""One module, and results that nobody but the sender can read."""

import os
from pathlib import Path

from celery import Celery

held = Path(os.environ["SHOP_DIRECTORY"], "imported").open("a")  # whoever has it open has imported this
app = Celery("plain", broker=os.environ["SHOP_BROKER"], backend="rpc://")
app.conf.update(
    broker_transport_options={"global_keyprefix": "plain-"},
    task_default_queue="plain-orders",
    task_send_sent_event=True,
)


@app.task(name="shop.pay")
def pay(ledger: str, order: str) -> dict[str, str]:
    paid = Path(ledger, order)
    if not paid.exists():
        paid.touch()
        raise ValueError(f"the card of {order} was refused")
    return {"paid": order}


def make_app() -> Celery:
    return app
