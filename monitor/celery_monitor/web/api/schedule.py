"""What beat sends, and sending it now."""

import time
from typing import Annotated

from msgspec import Meta, Struct, field

from celery_monitor.control.commands import NO_NUL, Reason, summary_of
from celery_monitor.control.run import RunScheduled
from celery_monitor.core.schedule import in_words
from celery_monitor.errors import NotFound
from celery_monitor.records.schedule import BeatHealth, BeatSource
from celery_monitor.records.task import TaskState
from celery_monitor.store.health import known_until
from celery_monitor.store.schedule import Scheduled, read_beat_health, read_entries, read_schedule, schedule_reported_at
from celery_monitor.web.api.operation import (
    RETRY_ERRORS,
    Call,
    InCluster,
    NoParameters,
    Operation,
    only_result,
    shape,
    shapes,
)

SCHEDULED_RUNS = 50


class RunScheduledBody(InCluster, frozen=True, kw_only=True):
    """Which entry of a schedule to send now; ``confirm``: its arguments were seen."""

    name: Annotated[str, Meta(pattern=NO_NUL, min_length=1)]
    confirm: bool = False
    reason: Reason | None = None


class ScheduledRunItem(Struct, frozen=True, kw_only=True):
    """A task that was sent for an entry."""

    id: str
    at: float
    by_receipt: bool
    state: TaskState


class ScheduleItem(Struct, frozen=True, kw_only=True):
    """Something that beat sends. Null is unknown; ``sure``: its runs are beat's by their sender, not by name alone.

    ``may_wait_in`` is a queue with messages among which an overdue one may be: then it is not said that beat missed it.
    ``missed`` are the times at which it was due and nothing was sent; they, ``late`` and ``drift`` are since ``since``.
    ``by_receipt``: of some runs it is only known when a worker took them, not when they were sent. What waited in a
    queue looks missed then, so ``missed`` is a guess; ``late`` and ``drift`` are of what is known to be sent alone.
    ``shared_with`` are entries that send the same: whose runs are whose cannot be told, so ``runs`` are of all of them,
    ``last``, ``missed``, ``late`` and ``drift`` are null, and ``last_at`` is what beat itself keeps, if it does.
    Where the receiver does not run or is behind, ``known_until`` is the moment since which nobody knows what was sent
    (0: always); then ``overdue`` is null, and ``next`` may have passed.
    """

    name: str
    cluster: str
    task: str
    schedule: str
    words: str | None
    every: float | None
    timezone: str | None
    args: str
    kwargs: str
    queue: str | None
    source: BeatSource
    reported_at: float = field(name="heard_at")
    enabled: bool
    once_at: float | None
    starts: float | None
    total: int | None
    last_at: float | None
    last: ScheduledRunItem | None
    next: float | None
    overdue: float | None
    may_wait_in: str | None
    drift: float | None
    missed: tuple[float, ...] | None
    late: int | None
    runs: list[ScheduledRunItem]
    sure: bool
    since: float
    by_receipt: bool
    known_until: float | None
    shared_with: tuple[str, ...]


class UnreadItem(Struct, frozen=True, kw_only=True):
    """Something of a schedule that could not be read: an entry, or with a null name all of a source."""

    cluster: str
    source: BeatSource | None
    name: str | None
    reason: str


class ScheduleList(Struct, frozen=True):
    """Every entry that could be read, and under ``unread`` what could not.

    ``unheard`` are clusters whose schedule nobody has told yet, ``beats`` what is known of each cluster's beat.
    """

    items: list[ScheduleItem]
    unread: list[UnreadItem]
    unheard: list[str]
    beats: list[BeatHealth]


class ScheduledSent(Struct, frozen=True, kw_only=True):
    """The task that was sent."""

    id: str
    message: str


def schedule_item(scheduled: Scheduled) -> ScheduleItem:
    entry, standing, known_until = scheduled
    return shape(
        ScheduleItem,
        entry,
        words=in_words(entry),
        last_at=standing.last_at,
        last=shape(ScheduledRunItem, standing.last) if standing.last is not None else None,
        runs=shapes(ScheduledRunItem, standing.runs[:SCHEDULED_RUNS]),
        next=standing.next,
        overdue=standing.overdue,
        may_wait_in=standing.may_wait_in,
        drift=standing.drift,
        missed=standing.missed,
        late=standing.late,
        sure=standing.sure,
        since=standing.since,
        by_receipt=standing.by_receipt,
        known_until=known_until,
        shared_with=standing.shared_with,
    )


def unread_items(beat: BeatHealth) -> list[UnreadItem]:
    sources = [UnreadItem(cluster=beat.cluster, source=None, name=None, reason=each) for each in beat.unread]
    return sources + [
        UnreadItem(cluster=beat.cluster, source=each.source, name=each.name or None, reason=each.reason)
        for each in beat.unread_entries
    ]


def list_schedule(call: Call, given: InCluster) -> ScheduleList:
    now = time.time()
    watched = [name for name in call.settings.clusters if given.cluster in (None, name)]
    found = read_schedule(call.store, given.cluster, now, known_until(call.store, now))
    unheard = [name for name in watched if schedule_reported_at(call.store, name) is None]
    beats = [read_beat_health(call.store, name) for name in watched]
    unread = [each for beat in beats for each in unread_items(beat)]
    return ScheduleList([schedule_item(each) for each in found], unread, unheard, beats)


def run_scheduled(call: Call, _: NoParameters, body: RunScheduledBody) -> ScheduledSent:
    named = [each.cluster for each in read_entries(call.store, body.cluster) if each.name == body.name]
    if len(named) != 1:
        raise NotFound(f"{len(named)} clusters have an entry {body.name!r}; name one that exists, and its cluster.")
    command = RunScheduled(cluster=named[0], entry=body.name, confirm=body.confirm, reason=body.reason)
    performed = call.controller.perform(call.actor, command)
    return ScheduledSent(id=only_result(performed).id, message=performed.message)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/schedule",
        handle=list_schedule,
        summary="What beat sends: last, next, missed and late runs of the last day",
        answer=ScheduleList,
        parameters=InCluster,
    ),
    Operation(
        method="POST",
        path=f"/api/v1/{RunScheduled.route}",
        handle=run_scheduled,
        summary=summary_of(RunScheduled),
        answer=ScheduledSent,
        body=RunScheduledBody,
        errors=RETRY_ERRORS,
    ),
)
