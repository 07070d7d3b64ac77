"""How often a receiver checks and stores: every second while somebody uses the dashboard, else every five.

Without news, such as an event of a task, a missing heartbeat or another length of a queue, it does so every twenty.
Web processes write each use into the record. The thread that stores looks for it once a second, and wakes the others.
"""

import logging
import time
from collections.abc import Callable
from threading import Condition, Event

from celery_monitor.errors import MonitorError, StoreUnavailable
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.store.engine import Changes, Store
from celery_monitor.store.receivers import USE_SECONDS, last_use

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
UNUSED_FACTOR = 5.0  # by which pauses are longer while nobody uses the dashboard
IDLE_FACTOR = 20.0  # the same without news
IDLE_AFTER_SECONDS = 30.0  # after the last news
UNUSED_BATCH_SECONDS = 1.6  # for which events gather while nobody uses the dashboard; a use ends it within a second


class Pace:
    """The pauses of a receiver's threads. Without a ``store`` the dashboard counts as used."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._commits = None if store is None else Changes(store)
        self._changed = Condition()
        self._look_at = 0.0
        self._last: str | None = None
        self._looked = False
        self._used_until = time.monotonic() + USE_SECONDS
        self._idle_from = time.monotonic() + IDLE_AFTER_SECONDS

    @property
    def used(self) -> bool:
        """Whether somebody has used the dashboard lately."""
        return self._store is None or time.monotonic() < self._used_until

    @property
    def idle(self) -> bool:
        """Whether nobody uses the dashboard, and there was no news lately."""
        return not self.used and time.monotonic() >= self._idle_from

    def news(self) -> None:
        """Something happened: checks are not as rare as in idleness for a while. Thread-safe."""
        idle, self._idle_from = self.idle, time.monotonic() + IDLE_AFTER_SECONDS
        if idle:
            self.wake()

    def look(self) -> None:
        """Reads whether somebody uses the dashboard, at most every LOOK_SECONDS and only after a commit."""
        now = time.monotonic()
        if self._store is None or self._commits is None or now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        try:
            if not self._commits.wait(0.0) and self._looked:
                return
            last = last_use(self._store)
        except StoreUnavailable as error:  # whoever stores reports it
            self._looked = False
            log.debug("whether the dashboard is used is unknown: %s", error)
            return
        self._looked = True
        if last == self._last:
            return
        waiting, self._last = not self.used, last
        self._used_until = now + USE_SECONDS  # by our own clock: that of another machine may differ
        if waiting:
            self.wake()

    def pause(self, seconds: float) -> float:
        """The pause that takes ``seconds`` while the dashboard is used."""
        if self.used:
            return seconds
        return seconds * (IDLE_FACTOR if self.idle else UNUSED_FACTOR)

    def batch_seconds(self, seconds: float) -> float:
        """For how long events gather, if it is ``seconds`` while the dashboard is used."""
        return seconds if self.used else max(seconds, UNUSED_BATCH_SECONDS)

    def wake(self) -> None:
        """Makes threads that wait check whether they still have to."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, stop: Event, seconds: float, event: Event | None = None) -> bool:
        """Waits, or until somebody begins to use the dashboard or idleness ends; returns whether ``stop`` is set.

        Who sets ``stop`` or ``event`` has to call ``wake``, to end it at once.
        """
        until, used, idle = time.monotonic() + seconds, self.used, self.idle

        def is_over() -> bool:
            over = stop.is_set() or (event is not None and event.is_set())
            return over or (self.used and not used) or (idle and not self.idle)

        with self._changed:
            while not is_over() and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
        return stop.is_set()

    def close(self) -> None:
        if self._commits is not None:
            self._commits.close()


class Steps:
    """The steps of one helper, with pauses between them. ``trouble`` is what the log says where one fails."""

    def __init__(self, name: str, trouble: str, helpers: HelperFailures, pace: Pace) -> None:
        self._name = name
        self._trouble = trouble
        self._helpers = helpers
        self._pace = pace
        self._woken = Event()

    def wake(self) -> None:
        """Begins the next step at once. Thread-safe."""
        self._woken.set()
        self._pace.wake()

    def run(self, stop: Event, step: Callable[[float], float]) -> None:
        """Until ``stop`` is set. ``step`` gets the time, and returns the seconds until the next one.

        An error is a fact of health, and the next step tries again.
        """
        while not stop.is_set():
            self._woken.clear()
            try:
                seconds = step(time.time())
            except MonitorError as error:
                self._helpers.failed(self._name, error)
                log.warning("%s: %s", self._trouble, error.message)
                stop.wait(self._helpers.pause(self._name))
            else:
                self._helpers.succeeded(self._name)
                self._pace.wait(stop, seconds, self._woken)
