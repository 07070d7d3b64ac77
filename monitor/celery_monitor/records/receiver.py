"""Receivers: what they deliver, their health, their gaps and what was reconciled."""

import msgspec

from celery_monitor.records.event import Event


class RefusedEvents(msgspec.Struct, frozen=True, gc=False):
    """A message of events in a form that is not read, such as pickle; who sent it, as its headers say."""

    hostname: str
    content_type: str


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """What one read of a source gave.

    ``arrived`` is our clock when the bytes were read; ``malformed`` counts bodies that are no events;
    ``dropped`` counts events that the source had to throw away since the last delivery.
    """

    events: list[Event]
    arrived: float
    malformed: int = 0
    dropped: int = 0
    concluded: bool = False  # by us, of what workers, brokers and result backends answered: nobody sent it
    refused: tuple[RefusedEvents, ...] = ()  # senders of events in a form that is not read, each once
    gap: "Gap | None" = None  # of which it was concluded; how far its reconciliation is, is stored with the events


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out after a gap about the tasks that had not ended when it began.

    ``asked`` is the sum of what follows it, up to ``unknown``.
    """

    began: float
    ended: float | None = None  # None: it goes on
    asked: int = 0
    backend: int = 0  # the result backend knew how it ended
    workers: int = 0  # a worker has it
    queue: int = 0  # its message waits, or is delivered and not acknowledged
    lost: int = 0  # nobody has it, and nobody knows how it ended: marked as lost, with the evidence
    unknown: int = 0  # nothing could be found out
    # Tasks that were not in the record, under the names that stored gaps have for them.
    discovered_on_workers: int = msgspec.field(default=0, name="learnt_from_workers")
    discovered_in_queues: int = msgspec.field(default=0, name="learnt_from_queues")
    complete: bool = True  # False: some worker did not answer, or not every message could be looked at
    together_with: float | None = None  # when the later gap began whose numbers stand for both
    position: tuple[int, float, int] = (0, 0.0, 0)  # up to where tasks were asked for


class Gap(msgspec.Struct, kw_only=True):
    """A span in which events may have been missed. ``ended`` is ``None`` while it lasts."""

    cluster: str
    began: float
    ended: float | None
    cause: str
    dropped: int | None = None  # events known to be dropped; None: not known
    id: int | None = None
    reconciliation: Reconciliation | None = None  # None: not begun


CAUGHT_UP_SECONDS = 2.0  # a receiver further behind than this accuses nobody: what it misses may be on its way
SILENT_RECEIVER_SECONDS = 4.0  # nor does one that said nothing of itself for this long


class FailingHelper(msgspec.Struct, frozen=True, kw_only=True):
    """A thread or process beside a receiver that keeps failing, or the receiver itself (``receiver``)."""

    name: str
    error: str  # the last one
    since: float
    failures: int  # in a row


class ReceiverEnding(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver's process ended by itself, ``failures`` times in a row, the last time ``at``; it is started again."""

    cluster: str
    error: str
    since: float
    failures: int
    at: float


class ReceiverHealth(msgspec.Struct, kw_only=True):
    """What the receiver of one cluster last said of itself."""

    cluster: str
    connected: bool
    source: str | None = None  # redis, amqp, kombu
    error: str | None = None  # why it is not connected
    unwritten: str | None = None  # why the record cannot be written now; all else is then as old as updated_at
    last_event_at: float | None = None
    lag_seconds: float | None = None
    events_total: int = 0
    dropped_total: int = 0
    malformed_total: int = 0
    malformed_at: float | None = None  # when the last one came
    unknown_total: int = 0  # events of a type that we do not know
    host: str | None = None  # where it runs
    pid: int | None = None
    updated_at: float | None = None  # when it last said so
    kept_until: float | None = None  # what arrived before is stored or on disk; None: the broker keeps it
    notices: tuple[str, ...] = ()  # what it did on its own, e.g. turned events on
    refused: tuple[RefusedEvents, ...] = ()  # who sent such within the last minutes
    helpers: tuple[FailingHelper, ...] = ()  # those that keep failing

    def is_level(self, now: float, unsaid_seconds: float) -> bool:
        """It hears its broker and is not behind, and has said so within this time: then silence means something."""
        said = self.updated_at is not None and now - self.updated_at < unsaid_seconds
        return said and self.connected and self.lag_seconds is not None and self.lag_seconds <= CAUGHT_UP_SECONDS

    def known_until(self, now: float) -> float:
        """The last moment of which it can tell, where it is not level; 0: none."""
        said = self.updated_at or 0.0
        if not self.connected:
            return min(said, self.last_event_at or 0.0)
        return min(said, now - (self.lag_seconds or 0.0))


class StandbyReceiver(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver that writes nothing while another does, and takes over when that one dies."""

    cluster: str
    host: str
    pid: int
    since: float
    updated_at: float  # when it last said so
    listening: bool  # events that arrive now reach it too, or the broker keeps them
