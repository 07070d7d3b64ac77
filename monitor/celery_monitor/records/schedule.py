"""Schedule entries, their runs, and the health of beat."""

from typing import Literal

import msgspec

from celery_monitor.records.task import TaskState

BeatSource = Literal["workers", "app", "redbeat", "django"]  # who told of an entry


class ScheduleEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Something that beat sends by itself. Either ``every`` is known, or the five sets of a crontab, or neither."""

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
    timezone: str | None = None  # of the crontab; ``None``: beat's own, which is not known
    args: str = "()"  # as events show them, secrets masked
    kwargs: str = "{}"
    args_json: str | None = None  # ``None``: not known well enough to send it
    kwargs_json: str | None = None
    queue: str | None = None
    source: BeatSource = "workers"
    heard_at: float = 0.0
    # What RedBeat and django-celery-beat keep of an entry; the others keep nothing.
    enabled: bool = True
    once_at: float | None = None  # due once, at this time
    starts: float | None = None  # not before
    told_last: float | None = None  # when beat's own record says that it was last sent
    told_next: float | None = None  # when beat's own record says that it is due
    total: int | None = None  # how often it was sent


class OverdueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that should have been sent at ``since``, and was not seen."""

    name: str
    since: float
    may_wait_in: str | None = None  # a queue with messages among which it may be


class UnreadEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the schedule that could not be read; an empty name is that of what has none."""

    source: BeatSource
    name: str
    reason: str


class BeatHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the beat of one cluster. It tells nobody that it lives: each of these is a sign of it."""

    cluster: str
    at: float = 0.0
    overdue: tuple[OverdueEntry, ...] = ()
    stopped: bool = False  # all that it sends is overdue
    lock_until: float | None = None  # RedBeat's lock is held, and would expire then
    lock_free_since: float | None = None  # nobody holds it any more
    answered_at: float | None = None  # it answered a ping, where beat_enable_remote_control lets it
    answered: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()  # sources of the schedule that could not be read, and why
    unread_entries: tuple[UnreadEntry, ...] = ()


class ScheduledRun(msgspec.Struct, frozen=True, kw_only=True):
    """A task that may have been sent by beat for an entry."""

    id: str
    at: float  # when it was sent, else received
    by_receipt: bool = False  # when it was sent is not known
    state: TaskState
    client: str | None  # who sent it, as far as that was told
    queue: str | None = None
