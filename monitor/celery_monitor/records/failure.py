"""Failure groups, their variants and counts."""

from enum import StrEnum

import msgspec


class FailureState(StrEnum):
    """What people have decided about a failure group, and whether it came back since."""

    OPEN = "open"
    REGRESSED = "regressed"  # it was resolved, and failed again
    RESOLVED = "resolved"
    MUTED = "muted"


class FailureVariant(msgspec.Struct, frozen=True, kw_only=True):
    """One of the messages that a failure group stands for, where they differ in names, and all its failures."""

    message: str | None  # None: of all that came after the first fifty
    count: int


class FailureGroup(msgspec.Struct, kw_only=True):
    """Failures that share a signature."""

    id: int
    cluster: str
    name: str | None
    exception_type: str
    message: str  # masked
    frame: str | None  # the deciding frame, ``shop/pay.py in charge``
    first_seen: float
    last_seen: float
    count: int
    state: FailureState = FailureState.OPEN
    state_at: float | None = None  # when it became so; ``None`` where nobody has touched it
    variants: tuple[FailureVariant, ...] = ()  # the most frequent first; empty: the message names nothing


class FailureCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Failures in a span of time, by whether their group still needs somebody."""

    open: int = 0
    muted: int = 0
    resolved: int = 0

    @property
    def total(self) -> int:
        return self.open + self.muted + self.resolved


class FailureWindows(msgspec.Struct, frozen=True, kw_only=True):
    """How often one failure group failed lately. ``workers`` are those known to be affected in the span asked for."""

    hour: int = 0
    day: int = 0
    week: int = 0
    workers: int = 0
    trend: tuple[int, ...] = ()  # the span asked for in equal steps, the last still filling


class FailureSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A failure group with its windows; ``group.count`` is of the span asked for."""

    group: FailureGroup
    windows: FailureWindows


class FailureTrend(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of one group over time, in steps of ``step`` seconds, and by worker."""

    since: float
    until: float
    step: int
    at: tuple[int, ...]
    counts: tuple[int, ...]
    by_worker: tuple[tuple[str | None, int], ...]  # the most first; ``None``: the worker is not known
