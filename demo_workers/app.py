"""The application and its configuration.

Every worker, beat and every program that sends tasks imports this object. The broker comes from the environment, so
that the same code runs on Redis and on RabbitMQ.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from celery import Celery

from demo_workers.routing import DEFAULT_QUEUE, EXCHANGE, QUEUES, ROUTES
from demo_workers.schedule import SCHEDULE

BROKER_URL = os.environ.get("DEMO_BROKER", "redis://127.0.0.1:6379/0")
# The demo also runs where celery-monitor-capture is not installed.
CAPTURE = {"Request": "celery_monitor_capture:Request"} if find_spec("celery_monitor_capture") else {}
DIRECTORY = Path(os.environ.get("DEMO_DIR", Path(tempfile.gettempdir(), "celery-monitor-demo")))


def result_backend(broker_url: str, directory: Path) -> str:
    """Redis stores results, too. RabbitMQ cannot in a form that chords support, so files do."""
    if broker_url.startswith("redis"):
        return broker_url
    results = directory / "results"
    results.mkdir(parents=True, exist_ok=True)
    return f"file://{results.resolve()}"  # Celery uses the rest as the path and does not decode %20


app = Celery(
    "shop",
    broker=BROKER_URL,
    backend=result_backend(BROKER_URL, DIRECTORY),
    include=[
        "demo_workers.mail",
        "demo_workers.payments",
        "demo_workers.warehouse",
        "demo_workers.workflows",
        "demo_workers.reminders",
        "demo_workers.misbehave",
    ],
)
app.conf.update(
    # For monitoring: workers and senders send events.
    worker_send_task_events=True,
    task_send_sent_event=True,
    task_track_started=True,
    # A retry of a failed payment resends its original message. The warehouse has no capture, to show the difference:
    # there, the arguments are only probable.
    task_annotations=dict.fromkeys(("payments.charge", "payments.refund"), CAPTURE),
    # Where tasks go: see routing.py.
    task_queues=QUEUES,
    task_default_queue=DEFAULT_QUEUE,
    task_default_exchange=EXCHANGE.name,
    task_routes=ROUTES,
    # When beat sends what: see schedule.py.
    beat_schedule=SCHEDULE,
    timezone="UTC",
    # A worker prefetches one task per process, so that slow tasks do not delay quick ones.
    worker_prefetch_multiplier=1,
    # Nobody reads an old result.
    result_expires=600,
    broker_connection_retry_on_startup=True,
    # Start when the broker does, not seconds later.
    broker_connection_timeout=2,
)
