"""The application of tests/apps/basic.py with celery_monitor_capture installed by its one line."""

import os
import time

import celery_monitor_capture

from tests.apps.basic import app, task
from tests.apps.captured import fail_once
from tests.apps.ledger import entry, ledger

__all__ = ["app", "entry", "fail_once"]
FORCED_VARIABLE = "TEST_APP_EVENT_QUEUE"

app.conf.task_annotations = None  # of captured
celery_monitor_capture.install(app, event_queue=os.environ.get(FORCED_VARIABLE))


@task("steps", bind=True)
def steps(self: object, number: int, seconds: float) -> None:
    """Enters when each of its steps ended, after it has sent an event."""
    for _ in range(number):
        time.sleep(seconds)
        self.send_event("task-step")  # type: ignore[attr-defined]
        ledger().rpush("ledger:steps", time.time())
