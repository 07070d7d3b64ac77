"""The helpers of a receiver (threads and processes beside the stream of events), and which of them keep failing.

Each helper reports the result of every step. One that fails twice in a row is part of the receiver's health, with the
last error and the time of the first, until a step succeeds.
"""

import threading
import time

import msgspec

from celery_monitor.addresses import masked
from celery_monitor.records.receiver import FailingHelper

SAMPLER = "sampler"
QUEUE_SAMPLER = "queue sampler"
SCHEDULES = "schedules"
RECONCILER = "reconciler"
RETENTION = "retention"
SOCKET_PROCESS = "socket process"
ALERTS = "alert evaluation"
ALERT_SENDER = "alert sender"

FEWEST_FAILURES = 2  # in a row; one may be a short outage of broker or database
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_ERROR = 500


class HelperFailures:
    """The current failures of one receiver's helpers. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: dict[str, FailingHelper] = {}

    def failed(self, name: str, error: BaseException | str) -> None:
        """A step failed, or an error ended the helper."""
        text = masked(" ".join(str(error).split())) or type(error).__name__
        if isinstance(error, BaseException) and not hasattr(error, "message"):  # the text of a KeyError is only a name
            text = f"{type(error).__name__}: {text}"
        with self._lock:
            before = self._failing.get(name) or FailingHelper(name=name, error="", since=time.time(), failures=0)
            self._failing[name] = msgspec.structs.replace(
                before, error=text[:LONGEST_ERROR], failures=before.failures + 1
            )

    def succeeded(self, name: str) -> None:
        """A step succeeded."""
        if name in self._failing:
            with self._lock:
                self._failing.pop(name, None)

    def failures(self, name: str) -> int:
        """Failures in a row."""
        found = self._failing.get(name)
        return 0 if found is None else found.failures

    def pause(self, name: str) -> float:
        """Seconds until a failed helper is started again; doubled after each failure."""
        doublings = min(max(0, self.failures(name) - 1), 10)
        return float(min(FIRST_PAUSE_SECONDS * 2**doublings, LONGEST_PAUSE_SECONDS))

    @property
    def failing(self) -> tuple[FailingHelper, ...]:
        """The helpers that failed at least twice in a row, by name."""
        if not self._failing:
            return ()
        with self._lock:
            found = [each for each in self._failing.values() if each.failures >= FEWEST_FAILURES]
        return tuple(sorted(found, key=lambda each: each.name))
