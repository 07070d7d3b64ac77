"""Pings to a dead man's switch elsewhere: it raises the alarm when they stop, also where this machine is gone."""

import logging
from collections.abc import Mapping
from http.client import HTTPException
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector

from celery_monitor.errors import NotFound
from celery_monitor.records.alert import Severity
from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store.alerts.states import read_alerts
from celery_monitor.store.engine import Store, put_value, read_value
from celery_monitor.store.receivers import is_caught_up, read_open_gaps
from celery_monitor.store.schedule import read_entry_runs, schedule_entry

PING_SECONDS = 60.0
ENTRY_SECONDS = 10.0  # how often the runs of entries are read
RUNS_SECONDS = 86400.0
MOST_RUNS = 20
TIMEOUT_SECONDS = 10.0
PINGED = "pinged:"  # prefix of keys in ``meta``: the latest run of an entry that was reported
log = logging.getLogger(__name__)


class Pings:
    """The pings of one cluster."""

    def __init__(self, store: Store, cluster: str, settings: Settings) -> None:
        self._store = store
        self._cluster = cluster
        self._url = settings.ping_url
        self._entries: Mapping[str, str] = dict(settings.ping_entry)
        self._due = self._entries_due = 0.0

    def ping(self, now: float) -> None:
        """Sends the pings that are due. Raises StoreUnavailable."""
        if self._url and now >= self._due:
            self._due = now + PING_SECONDS
            if self.is_well(now):
                get(self._url)
        if self._entries and now >= self._entries_due:
            self._entries_due = now + ENTRY_SECONDS
            for name, url in self._entries.items():
                self._ping_entry(name, url, now)

    def is_well(self, now: float) -> bool:
        """The record is complete up to now, and no critical alert fires."""
        firing = read_alerts(self._store, cluster=self._cluster, limit=1000)
        critical = any(each.severity is Severity.CRITICAL for each in firing)
        return not critical and is_caught_up(self._store, self._cluster, now) and not self._gaps()

    def _gaps(self) -> bool:
        return bool(read_open_gaps(self._store, self._cluster))

    def _ping_entry(self, name: str, url: str, now: float) -> None:
        """Once for each run that succeeded, the latest at a time."""
        try:
            entry = schedule_entry(self._store, name, self._cluster)
        except NotFound:
            return  # of another cluster, or not reported yet
        runs = read_entry_runs(self._store, entry, now - RUNS_SECONDS, MOST_RUNS)
        last = max((run.at for run in runs if run.state is TaskState.SUCCESS), default=None)
        key = f"{PINGED}{self._cluster}:{name}"
        if last is not None and last > float(read_value(self._store, key) or 0.0):
            with self._store.begin() as connection:  # before: a run is reported at most once
                put_value(self._store, connection, key, repr(last))
            get(url)


def get(url: str) -> None:
    """Requests a URL, without following redirects; a failure is logged, since the other side notices it."""
    opener = OpenerDirector()
    for handler in (HTTPHandler(), HTTPSHandler()):
        opener.add_handler(handler)
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as response:
            if response.status >= 300:
                log.warning("the ping failed with status %d", response.status)
    except (OSError, HTTPException) as error:
        log.warning("the ping failed: %s", error)
