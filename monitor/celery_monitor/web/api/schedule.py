"""The schedule: its entries with their runs, and running one now."""

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
    NamedListing,
    NoParameters,
    Operation,
    only_result,
    page_by_name,
    shape,
    shapes,
)
from celery_monitor.web.security.reach import IN_PART

SCHEDULED_RUNS = 50


class RunScheduledBody(InCluster, frozen=True, kw_only=True):
    """The entry to run now; ``confirm``: a person has checked its arguments."""

    name: Annotated[str, Meta(pattern=NO_NUL, min_length=1)]
    confirm: bool = False
    reason: Reason | None = None


class ScheduledRunItem(Struct, frozen=True, kw_only=True):
    """A run of an entry."""

    id: str
    at: float
    by_receipt: bool
    state: TaskState


class ScheduleItem(Struct, frozen=True, kw_only=True):
    """A schedule entry. Null: unknown. ``sure``: runs are matched by their sender, not by name and arguments only.

    ``may_wait_in``: a queue in which an overdue run may be waiting, so it is not counted as missed. ``missed``: times
    at which a run was due and none was sent. ``missed``, ``late`` and ``drift`` cover the time since ``since``.
    ``by_receipt``: of some runs only the receipt by a worker is known. A run that waited in a queue looks missed then,
    so ``missed`` is a guess; ``late`` and ``drift`` only use runs with a known send time.
    ``shared_with``: entries that send the same task and arguments. Their runs cannot be told apart, so ``runs`` has the
    runs of all, ``last``, ``missed``, ``late`` and ``drift`` are null, and ``last_at`` is the time that beat recorded.
    ``known_until``: if the receiver is down or behind, runs after this time are unknown (0: all runs); then ``overdue``
    is null and ``next`` may have passed.
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
    """An entry that could not be read; with a null name, a whole source."""

    cluster: str
    source: BeatSource | None
    name: str | None
    reason: str


class ScheduleList(Struct, frozen=True):
    """The entries by cluster and name, and in ``unread`` what could not be read.

    ``unheard``: clusters whose schedule is still unknown. ``beats``: the beat of each cluster. ``next`` is the cursor
    of the following page.
    """

    items: list[ScheduleItem]
    unread: list[UnreadItem]
    unheard: list[str]
    beats: list[BeatHealth]
    next: str | None


class ScheduledSent(Struct, frozen=True, kw_only=True):
    """The new task."""

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


def list_schedule(call: Call, given: NamedListing) -> ScheduleList:
    now = time.time()
    clusters = [name for name in call.settings.clusters if given.cluster in (None, name)]
    found = read_schedule(call.store, given.cluster, now, known_until(call.store, now))
    unheard = [name for name in clusters if schedule_reported_at(call.store, name) is None]
    beats = [read_beat_health(call.store, name) for name in clusters]
    unread = [each for beat in beats for each in unread_items(beat)]
    page, following = page_by_name(found, given, "schedule", lambda each: (each.entry.cluster, each.entry.name))
    return ScheduleList([schedule_item(each) for each in page], unread, unheard, beats, following)


def run_scheduled(call: Call, _: NoParameters, body: RunScheduledBody) -> ScheduledSent:
    named = [each.cluster for each in read_entries(call.store, body.cluster) if each.name == body.name]
    if len(named) != 1:
        raise NotFound(f"{len(named)} clusters have an entry {body.name!r}; give the name of an entry and its cluster.")
    command = RunScheduled(cluster=named[0], entry=body.name, confirm=body.confirm, reason=body.reason)
    performed = call.controller.perform(call.actor, command)
    return ScheduledSent(id=only_result(performed).id, message=performed.message)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/schedule",
        handle=list_schedule,
        summary="List schedule entries with last, next, missed and late runs of the last day",
        answer=ScheduleList,
        parameters=NamedListing,
        access=IN_PART,
    ),
    Operation(
        method="POST",
        path=f"/api/v1/{RunScheduled.route}",
        handle=run_scheduled,
        summary=summary_of(RunScheduled),
        answer=ScheduledSent,
        body=RunScheduledBody,
        errors=RETRY_ERRORS,
        access=IN_PART,
    ),
)
