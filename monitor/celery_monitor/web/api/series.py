"""Time series: throughput, wait time, run time and queue depth."""

import time

from msgspec import UNSET, Struct, UnsetType

from celery_monitor.errors import InvalidInput
from celery_monitor.records.series import Percentiles, Series, WaitPercentiles
from celery_monitor.store.rollups.series import read_series
from celery_monitor.web.api.health import GapItem, gap_item
from celery_monitor.web.api.operation import (
    LONGEST_SPAN,
    Call,
    InCluster,
    Name,
    Operation,
    Time,
    given_or,
    shape,
    shapes,
)
from celery_monitor.web.security.reach import IN_PART

HOUR = 3600.0


class SeriesSpan(InCluster, frozen=True, kw_only=True):
    """A time span; all tasks, or those of a task name, queue or worker."""

    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    name: Name | None = None
    queue: Name | None = None
    worker: Name | None = None


class BucketItem(Struct, frozen=True, kw_only=True):
    """Counts of the ``resolution`` seconds from ``at`` on; percentiles are null if nothing was measured.

    ``wait`` is of runs that started, ``run`` of runs that ended. ``wait.since_receipt``: share of runs whose wait is
    counted from receipt, because the time before is unknown. Records from before this field have a share of 1.
    """

    at: float
    received: int
    started: int
    succeeded: int
    failed: int
    retried: int
    revoked: int
    rejected: int
    lost: int
    wait: WaitPercentiles | None
    run: Percentiles | None


class DepthItem(Struct, frozen=True, kw_only=True):
    """Depth of a queue, or of all, at one time. ``oldest``: latest possible send time of the oldest waiting message."""

    at: float
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None


class SeriesItem(Struct, frozen=True, kw_only=True):
    """The time series. Counts within a gap are too low."""

    since: float
    until: float
    resolution: int
    buckets: list[BucketItem]
    gaps: list[GapItem]
    depth: list[DepthItem]


def series_item(series: Series) -> SeriesItem:
    return shape(
        SeriesItem,
        series,
        buckets=shapes(BucketItem, series.buckets),
        gaps=[gap_item(gap) for gap in series.gaps],
        depth=shapes(DepthItem, series.depth),
    )


def get_series(call: Call, given: SeriesSpan) -> SeriesItem:
    until = given_or(given.until, time.time())
    since = given_or(given.since, until - HOUR)
    if not 0 < until - since <= LONGEST_SPAN:
        raise InvalidInput("since must be before until, and at most 731 days before it.", since=since, until=until)
    series = read_series(
        call.store,
        since=since,
        until=until,
        cluster=given.cluster,
        name=given.name,
        queue=given.queue,
        worker=given.worker,
    )
    return series_item(series)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/series",
        handle=get_series,
        summary="Get throughput, wait and run time over time; by default of the last hour",
        answer=SeriesItem,
        parameters=SeriesSpan,
        access=IN_PART,
    ),
)
