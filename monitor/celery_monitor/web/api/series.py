"""Throughput, wait, run time and depth over time."""

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

HOUR = 3600.0


class SeriesSpan(InCluster, frozen=True, kw_only=True):
    """A span of time, of everything or of what is named."""

    since: Time | UnsetType = UNSET
    until: Time | UnsetType = UNSET
    name: Name | None = None
    queue: Name | None = None
    worker: Name | None = None


class BucketItem(Struct, frozen=True, kw_only=True):
    """What happened from ``at`` on, for ``resolution`` seconds; null percentiles where nothing was measured.

    ``wait`` is of the runs that started then, ``run`` of those that ended. ``wait.since_receipt`` is the share of runs
    whose wait is counted from receipt, since nothing tells when they could have started. Until the version that brought
    this field all waits were counted so.
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
    """A queue, or all together, at one time. ``oldest``: by then the oldest waiting message had been sent."""

    at: float
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None


class SeriesItem(Struct, frozen=True, kw_only=True):
    """The course of things. Within a gap the numbers are too small."""

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
        summary="Throughput, wait and run time over time, of the last hour unless since says otherwise",
        answer=SeriesItem,
        parameters=SeriesSpan,
    ),
)
