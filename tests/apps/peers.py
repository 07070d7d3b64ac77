"""The application of tests.apps.basic as Flower needs it: it reads results by the current application."""

import time
from typing import Any

from celery.app.control import Control
from celery.contrib.abortable import AbortableTask

from tests.apps.basic import app, task


class PatientControl(Control):  # type: ignore[misc]
    """Celery waits 1 s for answers of workers, which a busy machine exceeds; Flower answers with an error then."""

    def broadcast(self, command: str, *arguments: Any, timeout: float = 10.0, **options: Any) -> Any:
        return super().broadcast(command, *arguments, timeout=timeout, **options)


app.control_cls = "tests.apps.peers:PatientControl"
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
