"""Failure groups, their variants and counts."""

from enum import StrEnum

import msgspec


class FailureState(StrEnum):
    """What people have decided about a failure group, and whether it has failed since."""

    OPEN = "open"
    REGRESSED = "regressed"  # resolved, and failed again
    RESOLVED = "resolved"
    MUTED = "muted"


class FailureVariant(msgspec.Struct, frozen=True, kw_only=True):
    """One of the messages of a failure group that differ in names, with its number of failures."""

    message: str | None  # None: all others after the first fifty
    count: int


class FailureGroup(msgspec.Struct, kw_only=True):
    """Failures that share a signature."""

    id: int
    cluster: str
    name: str | None
    exception_type: str
    message: str  # masked
    frame: str | None  # the frame that the group has in common, ``shop/pay.py in charge``
    first_seen: float
    last_seen: float
    count: int
    state: FailureState = FailureState.OPEN
    state_at: float | None = None  # when the state changed; ``None``: never
    variants: tuple[FailureVariant, ...] = ()  # the most frequent first; empty where messages do not differ


class FailureCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Failures in a span of time, by state of their group; ``open`` includes regressed ones."""

    open: int = 0
    muted: int = 0
    resolved: int = 0

    @property
    def total(self) -> int:
        return self.open + self.muted + self.resolved


class FailureWindows(msgspec.Struct, frozen=True, kw_only=True):
    """Recent failures of one group. ``workers``: how many are affected in the requested span."""

    hour: int = 0
    day: int = 0
    week: int = 0
    workers: int = 0
    trend: tuple[int, ...] = ()  # of the requested span, in equal steps; the last is incomplete


class FailureSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A failure group with its windows; ``group.count`` is of the requested span."""

    group: FailureGroup
    windows: FailureWindows


class FailureTrend(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of one group over time, in steps of ``step`` seconds, and by worker."""

    since: float
    until: float
    step: int
    at: tuple[int, ...]
    counts: tuple[int, ...]
    by_worker: tuple[tuple[str | None, int], ...]  # the most first; ``None``: unknown worker
