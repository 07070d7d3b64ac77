"""Receivers: deliveries, health, gaps and reconciliations."""

import math

import msgspec

from celery_monitor.records.event import Event


class RefusedEvents(msgspec.Struct, frozen=True, gc=False):
    """A message of events with an unsupported serializer, such as pickle, and its sender, from its headers."""

    hostname: str
    content_type: str


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """The result of one read of a source.

    ``arrived`` is our clock when the bytes were read; ``malformed`` counts bodies that are not events; ``dropped``
    counts events that the source had to drop since the last delivery.
    """

    events: list[Event]
    arrived: float
    malformed: int = 0
    dropped: int = 0
    concluded: bool = False  # events concluded by us from answers of workers, brokers and result backends
    refused: tuple[RefusedEvents, ...] = ()  # senders of refused events, each once
    gap: "Gap | None" = None  # from which it was concluded; its reconciliation is stored with the events


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """Findings after a gap about the tasks that were unfinished when it began.

    ``asked`` is the sum of the fields after it, up to ``unknown``.
    """

    began: float
    ended: float | None = None  # None: it is still going on
    asked: int = 0
    backend: int = 0  # the result backend has its result
    workers: int = 0  # on a worker
    queue: int = 0  # its message is waiting or unacknowledged
    lost: int = 0  # found nowhere: marked as lost, with the evidence
    unknown: int = 0  # no answer
    # Tasks that were not in the record; stored under older names.
    discovered_on_workers: int = msgspec.field(default=0, name="learnt_from_workers")
    discovered_in_queues: int = msgspec.field(default=0, name="learnt_from_queues")
    complete: bool = True  # False: a worker did not answer, or a message could not be read
    together_with: float | None = None  # beginning of the later gap whose numbers include these
    position: tuple[int, float, int] = (0, 0.0, 0)  # up to which tasks were checked


class Gap(msgspec.Struct, kw_only=True):
    """A span in which events may have been missed. ``ended`` is ``None`` while it lasts."""

    cluster: str
    began: float
    ended: float | None
    cause: str
    dropped: int | None = None  # events that were dropped; None: unknown
    id: int | None = None
    reconciliation: Reconciliation | None = None  # None: not started


# A receiver with more lag, or without a report for longer, gives no evidence: events may be on their way.
CAUGHT_UP_SECONDS = 2.0
SILENT_RECEIVER_SECONDS = 4.0
SHORTEST_REPORT = 1.0  # seconds from one report of a receiver to the next
QUIET_SECONDS = 3.0  # for which a report may be late


class FailingHelper(msgspec.Struct, frozen=True, kw_only=True):
    """A thread or process beside a receiver that keeps failing, or the receiver itself (``receiver``)."""

    name: str
    error: str  # the last one
    since: float
    failures: int  # in a row


class ReceiverEnding(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver's process crashed, ``failures`` times in a row, the last time ``at``; it is restarted."""

    cluster: str
    error: str
    since: float
    failures: int
    at: float


class ReceiverHealth(msgspec.Struct, kw_only=True):
    """The last report of a cluster's receiver."""

    cluster: str
    connected: bool
    source: str | None = None  # redis, amqp, kombu, queue
    error: str | None = None  # why it is not connected
    unwritten: str | None = None  # why the record cannot be written now; the other fields are as old as updated_at
    last_event_at: float | None = None
    lag_seconds: float | None = None
    events_total: int = 0
    dropped_total: int = 0
    malformed_total: int = 0
    malformed_at: float | None = None  # when the last one came
    unknown_total: int = 0  # events of unknown types
    host: str | None = None  # where it runs
    pid: int | None = None
    updated_at: float | None = None  # when it last reported
    report_seconds: float = SHORTEST_REPORT  # until it reports again, at the latest
    kept_until: float | None = None  # events that arrived before are stored or on disk; None: the broker keeps them
    notices: tuple[str, ...] = ()  # automatic actions, such as turning events on
    refused: tuple[RefusedEvents, ...] = ()  # of the last minutes
    helpers: tuple[FailingHelper, ...] = ()  # failing ones

    def lag(self, now: float) -> float | None:
        """Seconds behind, by now: a receiver whose report is late is at work, or has ended."""
        if not self.connected or self.lag_seconds is None:
            return None
        late = self.late(now)
        return self.lag_seconds + (late if late > QUIET_SECONDS else 0.0)

    def late(self, now: float) -> float:
        """Seconds since its last report, less those for which it may be quiet; infinite before the first."""
        if self.updated_at is None:
            return math.inf
        return now - self.updated_at - max(0.0, self.report_seconds - SHORTEST_REPORT)

    def is_caught_up(self, now: float, silent_seconds: float) -> bool:
        """It is connected, has no lag, and its report is not that late: a missing event was then not sent."""
        on_time = self.late(now) < silent_seconds
        return on_time and self.connected and self.lag_seconds is not None and self.lag_seconds <= CAUGHT_UP_SECONDS

    def known_until(self, now: float) -> float:
        """Until when its events are complete, where it is not caught up; 0: never."""
        reported_at = self.updated_at or 0.0
        if not self.connected:
            return min(reported_at, self.last_event_at or 0.0)
        return min(reported_at, now - (self.lag_seconds or 0.0))


class StandbyReceiver(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver that takes over when the one that writes ends."""

    cluster: str
    host: str
    pid: int
    since: float
    updated_at: float  # when it last reported
    listening: bool  # it receives events too, or the broker keeps them
