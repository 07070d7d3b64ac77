"""The factory pattern of Flask's own documentation."""

import os
import socket
from pathlib import Path
from typing import Any

from celery import Celery, Task, shared_task
from flask import Flask

held = Path(os.environ["SHOP_DIRECTORY"], "imported").open("a")  # whoever has it open has imported this


def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def create_app() -> Flask:
    app = Flask("flask_shop")
    app.config.from_mapping(
        CELERY={
            "broker_url": os.environ["SHOP_BROKER"],
            "broker_transport_options": {
                "global_keyprefix": "flask-",
                "socket_keepalive": True,
                "socket_keepalive_options": {socket.TCP_KEEPCNT: 5},
            },
            "task_default_queue": "flask-orders",
            "task_send_sent_event": True,
            "result_backend": f"db+sqlite:///{os.environ['SHOP_DIRECTORY']}/results.sqlite3",
            "result_extended": True,
        }
    )
    celery_init_app(app)
    return app


@shared_task(name="shop.pay")
def pay(ledger: str, order: str) -> dict[str, str]:
    paid = Path(ledger, order)
    if not paid.exists():
        paid.touch()
        raise ValueError(f"the card of {order} was refused")
    return {"paid": order}


flask_app = create_app()
celery_app = flask_app.extensions["celery"]
