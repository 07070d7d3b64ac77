"""Series over time: buckets, percentiles, totals by task name."""

import msgspec

from celery_monitor.records.queue import QueueSample
from celery_monitor.records.receiver import Gap
from celery_monitor.records.worker import WorkerStart


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds."""

    p50: float
    p95: float
    p99: float


class WaitPercentiles(Percentiles, frozen=True):
    """Seconds. A share ``since_receipt`` (0 to 1) is counted from receipt, as it is unknown when the tasks could run:
    they may have waited longer."""

    since_receipt: float


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and times from ``at`` on, for the resolution of the series."""

    at: float
    received: int = 0
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    revoked: int = 0
    rejected: int = 0
    lost: int = 0
    wait: WaitPercentiles | None = None
    run: Percentiles | None = None


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Counts from ``since`` to ``until``; ``buckets`` has one for each ``resolution`` seconds."""

    since: float
    until: float
    resolution: int
    buckets: list[Bucket]
    gaps: list["Gap"]
    depth: list[QueueSample]  # of the requested queue, else of all together
    starts: list[WorkerStart] = []


class NameTotal(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of the tasks of one name in a span of time."""

    name: str | None
    runs: int
    failed: int
    seconds: float  # total run time, within 2 %
    run: Percentiles | None
    wait: WaitPercentiles | None
