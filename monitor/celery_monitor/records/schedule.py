"""Schedule entries, their runs, and the health of beat."""

from typing import Literal

import msgspec

from celery_monitor.records.task import TaskState

BeatSource = Literal["workers", "app", "redbeat", "django"]  # where an entry was read


class ScheduleEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of beat's schedule, with ``every``, or with the five sets of a crontab, or neither."""

    cluster: str
    name: str
    task: str
    schedule: str  # as it is configured
    every: float | None = None  # seconds
    minutes: tuple[int, ...] | None = None
    hours: tuple[int, ...] | None = None
    weekdays: tuple[int, ...] | None = None  # 0 is Sunday
    days: tuple[int, ...] | None = None
    months: tuple[int, ...] | None = None
    timezone: str | None = None  # of the crontab; ``None``: beat's, which is unknown
    args: str = "()"  # as events show them, secrets masked
    kwargs: str = "{}"
    args_json: str | None = None  # ``None``: not exact enough to send it
    kwargs_json: str | None = None
    queue: str | None = None
    source: BeatSource = "workers"
    reported_at: float = msgspec.field(default=0.0, name="heard_at")  # as stored
    # Recorded by RedBeat and django-celery-beat alone.
    enabled: bool = True
    once_at: float | None = None  # due once, at this time
    starts: float | None = None  # not before
    # When it was last sent, and when it is due next, by beat's own record; under the names that are stored.
    beat_last_at: float | None = msgspec.field(default=None, name="told_last")
    beat_next_at: float | None = msgspec.field(default=None, name="told_next")
    total: int | None = None  # how often it was sent


class OverdueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that was due at ``since``, without a task of it."""

    name: str
    since: float
    may_wait_in: str | None = None  # a queue in which its message may be waiting


class UnreadEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the schedule that could not be read; the name is empty where it has none."""

    source: BeatSource
    name: str
    reason: str


class BeatHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Signs of life of a cluster's beat, which does not report that it runs."""

    cluster: str
    at: float = 0.0
    overdue: tuple[OverdueEntry, ...] = ()
    stopped: bool = False  # every entry is overdue
    lock_until: float | None = None  # RedBeat's lock is held, and would expire then
    lock_free_since: float | None = None  # nobody holds it any more
    answered_at: float | None = None  # it answered a ping, with beat_enable_remote_control
    answered: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()  # sources of the schedule that could not be read, and why
    unread_entries: tuple[UnreadEntry, ...] = ()


class ScheduledRun(msgspec.Struct, frozen=True, kw_only=True):
    """A task that beat may have sent for an entry."""

    id: str
    at: float  # when it was sent, else received
    by_receipt: bool = False  # when it was sent is unknown
    state: TaskState
    client: str | None  # who sent it, if known
    queue: str | None = None
