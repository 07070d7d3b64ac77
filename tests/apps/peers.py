"""The application of tests.apps.basic as Flower needs it: it reads results by the current application."""

import time
from typing import Any

from celery.contrib.abortable import AbortableTask

from tests.apps.basic import app, task

app.set_current()


@task("wait_for_abort", bind=True, base=AbortableTask)
def wait_for_abort(self: Any, seconds: float = 60) -> str:
    """Runs until it is aborted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if self.is_aborted():
            return "aborted"
        time.sleep(0.05)
    return "not aborted"
