"""Sends the messages of alerts that are due, and the pings of the dead man's switch.

A message is claimed in the database before it is sent. What was not accepted is tried again, later each time; what may
have arrived is never sent again.
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from uuid import uuid4

from celery_monitor.alerts.channels import NotSent, SentUnknown, connect, post_alerts, send
from celery_monitor.alerts.messages import Composer
from celery_monitor.alerts.pings import Pings
from celery_monitor.core.alerts.judging import MOST_ALERTS, batches, gets
from celery_monitor.receiver.helper_failures import ALERT_SENDER, HelperFailures
from celery_monitor.receiver.pace import Pace, Steps
from celery_monitor.records.alert import Channel, Notification, NotificationState
from celery_monitor.settings import Settings
from celery_monitor.store.alerts.rules import read_channels
from celery_monitor.store.alerts.states import (
    claim,
    end_batch,
    read_alerts,
    read_waiting,
    recent_batches,
    settle_claims,
)
from celery_monitor.store.engine import Store

LOOK_SECONDS = 1.0
REFRESH_SECONDS = 60.0  # how often Alertmanager gets what fires, as it expects
FIRST_PAUSE_SECONDS = 10.0  # until a message is tried again; doubled each time
LONGEST_PAUSE_SECONDS = 900.0
MOST_ATTEMPTS = 8  # in about 20 min
MOST_THREADS = 8
log = logging.getLogger(__name__)


class AlertSender:
    """The thread that sends. A slow channel holds up no other."""

    def __init__(
        self, store: Store, cluster: str, settings: Settings, helpers: HelperFailures, pace: Pace | None = None
    ) -> None:
        self._pace = pace or Pace()
        self._steps = Steps(ALERT_SENDER, "messages of alerts are not sent", helpers, self._pace)
        self._store = store
        self._cluster = cluster
        self._composer = Composer(settings)
        self._pings = Pings(store, cluster, settings)
        self._busy: dict[int, Future[None]] = {}
        self._refreshed: dict[int, float] = {}

    def wake(self) -> None:
        """Looks for messages at once. Thread-safe."""
        self._steps.wake()

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        with ThreadPoolExecutor(MOST_THREADS, "alert-channel") as pool:

            def step(now: float) -> float:
                self.deliver(pool, now)
                self._pings.ping(now)
                return self._pace.pause(LOOK_SECONDS)

            self._steps.run(stop, step)

    def deliver(self, pool: ThreadPoolExecutor, now: float) -> list[Future[None]]:
        """Begins to send what is due. Raises StoreUnavailable, also of what was begun before."""
        ended = [self._busy.pop(number) for number, each in list(self._busy.items()) if each.done()]
        for each in ended:
            each.result()
        settle_claims(self._store, now)
        channels = read_channels(self._store)
        waiting = read_waiting(self._store, now) if channels else {}
        recent = recent_batches(self._store, now) if waiting else {}
        for channel in channels:
            groups = list(batches(channel, waiting.get(channel.id, ()), recent.get(channel.id, 0), now))
            stale = channel.kind == "alertmanager" and now - self._refreshed.get(channel.id, 0.0) >= REFRESH_SECONDS
            if channel.id not in self._busy and (groups or (stale and channel.enabled)):
                self._busy[channel.id] = pool.submit(self._deliver_to, channel, groups, refresh=stale)
        return list(self._busy.values())

    def _deliver_to(self, channel: Channel, groups: Sequence[Sequence[Notification]], *, refresh: bool) -> None:
        for group in groups:
            self._send(channel, group)
        if refresh:
            self._refresh(channel)

    def _send(self, channel: Channel, group: Sequence[Notification]) -> None:
        """Connects before it claims, so that a message is in doubt only from its first byte to the stored answer."""
        with ExitStack() as stack:
            connection, refusal = None, None
            try:
                connection = connect(channel)
            except NotSent as error:
                refusal = error
            if connection is not None:
                stack.callback(connection.close)
            batch = uuid4().hex
            mine = claim(self._store, [each.id for each in group], batch, time.time())
            if mine:
                group = [each for each in group if each.id in mine]
                self._end(channel, group, batch, refusal or self._outcome(channel, connection, batch, group))

    def _outcome(
        self, channel: Channel, connection: HTTPConnection | None, batch: str, group: Sequence[Notification]
    ) -> NotSent | SentUnknown | None:
        try:
            send(channel, connection, self._composer.message(batch, group), self._composer)
        except (NotSent, SentUnknown) as error:
            return error
        return None

    def _end(
        self, channel: Channel, group: Sequence[Notification], batch: str, error: NotSent | SentUnknown | None
    ) -> None:
        """Stores the fate of a batch. What was surely not sent may be tried again."""
        state, due_at, digest = NotificationState.SENT, None, len(group) > 1
        attempts = max(each.attempts for each in group) + 1
        if isinstance(error, SentUnknown):
            state = NotificationState.UNCONFIRMED
        elif error is not None and error.again and attempts < MOST_ATTEMPTS:
            state = NotificationState.WAITING
            due_at = time.time() + min(FIRST_PAUSE_SECONDS * 2 ** (attempts - 1), LONGEST_PAUSE_SECONDS)
        elif error is not None:
            state = NotificationState.FAILED
        if error is not None:
            log.warning("alert channel %s: %s", channel.name, error)
        text = None if error is None else str(error)
        end_batch(self._store, channel.id, batch, state, time.time(), error=text, due_at=due_at, digest=digest)

    def _refresh(self, channel: Channel) -> None:
        """Alertmanager takes an alert for resolved that it does not get again and again."""
        self._refreshed[channel.id] = time.time()
        firing = read_alerts(self._store, cluster=self._cluster, limit=MOST_ALERTS)
        wanted = [alert for alert in firing if gets(channel, alert)]
        if wanted:
            try:
                if (connection := connect(channel)) is not None:
                    with closing(connection):
                        post_alerts(channel, connection, wanted, self._composer)
            except (NotSent, SentUnknown) as error:
                log.warning("alert channel %s: %s", channel.name, error)
