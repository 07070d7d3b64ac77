"""The time range of a page: a named span that ends now, or two moments; always part of the URL."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from celery_monitor.errors import InvalidInput

RANGES: dict[str, float] = {
    "15m": 900.0,
    "1h": 3600.0,
    "6h": 6 * 3600.0,
    "24h": 86400.0,
    "7d": 7 * 86400.0,
    "30d": 30 * 86400.0,
}
RANGE_WORDS = {"15m": "15 min", "1h": "1 h", "6h": "6 h", "24h": "24 h", "7d": "7 days", "30d": "30 days"}
DEFAULT_RANGE = "1h"
SHORTEST_SECONDS = 60.0
LONGEST_SECONDS = 2 * 366 * 86400.0


class TimeRange(NamedTuple):
    """From ``since`` to ``until``. ``name`` is ``None`` for a range between two given moments."""

    name: str | None
    since: float
    until: float

    @property
    def seconds(self) -> float:
        return self.until - self.since

    @property
    def query(self) -> str:
        """The range as it stands in a URL."""
        if self.name is not None:
            return f"range={self.name}"
        return f"since={self.since:.0f}&until={self.until:.0f}"

    @property
    def kept(self) -> dict[str, str]:
        """The range for a link that must lead to the same time."""
        if self.name is not None:
            return {"range": self.name}
        return {"since": f"{self.since:.0f}", "until": f"{self.until:.0f}"}

    @property
    def term(self) -> str:
        """The range as a filter of tasks, by when they ended."""
        if self.name is not None:
            return f"finished:>-{self.name}"
        began, ended = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S}" for at in (self.since, self.until))
        return f"finished:{began}..{ended}"

    @property
    def words(self) -> str:
        return "the selected time" if self.name is None else f"the last {RANGE_WORDS[self.name]}"


def parse_range(query: Mapping[str, str], now: float, began: float | None = None) -> TimeRange:
    """``range=1h``, or ``since`` and ``until`` in epoch seconds. Raises InvalidInput and lists what is known.

    Without either it is the last hour, or less where a record that began later fits in less.
    """
    if "since" in query or "until" in query:
        return _between(query, now)
    name = query.get("range") or _fitting(now, began)
    if name not in RANGES:
        raise InvalidInput(f"there is no range {name!r}; known are {', '.join(RANGES)}")
    return TimeRange(name, now - RANGES[name], now)


def _fitting(now: float, began: float | None) -> str:
    if began is None:
        return DEFAULT_RANGE
    return next((name for name, span in RANGES.items() if name == DEFAULT_RANGE or began >= now - span), DEFAULT_RANGE)


def step_words(seconds: int) -> str:
    """``minute``, ``5 min``, ``hour``, ``6 h``, ``day``: what one bar of a chart stands for."""
    for size, one, unit in ((86400, "day", "days"), (3600, "hour", "h"), (60, "minute", "min")):
        if seconds % size == 0:
            return one if seconds == size else f"{seconds // size} {unit}"
    return f"{seconds} s"


def _between(query: Mapping[str, str], now: float) -> TimeRange:
    since = _moment("since", query.get("since") or "", now)
    until = min(_moment("until", query.get("until") or f"{now}", now), now)
    if not SHORTEST_SECONDS <= until - since <= LONGEST_SECONDS:
        raise InvalidInput("since must lie at least 60 s and at most two years before until")
    return TimeRange(None, since, until)


def _moment(name: str, text: str, now: float) -> float:
    try:
        moment = float(text)
    except ValueError:
        raise InvalidInput(f"{name}={text!r} is no time; write seconds since 1970, such as {now:.0f}") from None
    if not 0 <= moment < 1e11:
        raise InvalidInput(f"{name}={text!r} lies outside of any record")
    return moment
