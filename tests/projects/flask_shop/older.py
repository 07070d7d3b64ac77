"""The older way: Celery is given all of Flask's configuration."""

import os
from pathlib import Path

from celery import Celery
from flask import Flask

held = Path(os.environ["SHOP_DIRECTORY"], "imported").open("a")  # whoever has it open has imported this
flask_app = Flask("older_shop")
flask_app.config.update(
    SECRET_KEY="of-a-test",
    CELERY_BROKER_URL=os.environ["SHOP_BROKER"],
    CELERY_RESULT_BACKEND=os.environ["SHOP_BROKER"],
    CELERY_DEFAULT_QUEUE="older-orders",
    CELERY_SEND_TASK_SENT_EVENT=True,
    BROKER_TRANSPORT_OPTIONS={"global_keyprefix": "older-"},
)
celery = Celery(
    "older_shop", broker=flask_app.config["CELERY_BROKER_URL"], backend=flask_app.config["CELERY_RESULT_BACKEND"]
)
celery.conf.update(flask_app.config)


@celery.task(name="shop.pay")
def pay(ledger: str, order: str) -> dict[str, str]:
    paid = Path(ledger, order)
    if not paid.exists():
        paid.touch()
        raise ValueError(f"the card of {order} was refused")
    return {"paid": order}
