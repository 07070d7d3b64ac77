"""The time range of a page, what its charts are drawn from, and the SVG that stands in where no script runs.

A range is a named span that ends now, or two moments; it is always part of the URL.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from celery_monitor.errors import InvalidInput
from celery_monitor.records.queue import QueueSample
from celery_monitor.records.receiver import Gap
from celery_monitor.records.series import Series
from celery_monitor.records.worker import WorkerStart
from celery_monitor.store.rollups.series import resolution_of
from celery_monitor.web.wording import since_receipt

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
    """From ``since`` to ``until``. ``name`` is ``None`` for a range given by two times."""

    name: str | None
    since: float
    until: float

    @property
    def seconds(self) -> float:
        return self.until - self.since

    @property
    def query(self) -> str:
        """The range as a query string."""
        if self.name is not None:
            return f"range={self.name}"
        return f"since={self.since:.0f}&until={self.until:.0f}"

    @property
    def parameters(self) -> dict[str, str]:
        """The range as query parameters of a link."""
        if self.name is not None:
            return {"range": self.name}
        return {"since": f"{self.since:.0f}", "until": f"{self.until:.0f}"}

    @property
    def term(self) -> str:
        """The range as a task filter on the end time."""
        if self.name is not None:
            return f"finished:>-{self.name}"
        began, ended = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S}" for at in (self.since, self.until))
        return f"finished:{began}..{ended}"

    @property
    def words(self) -> str:
        return "the selected time" if self.name is None else f"the last {RANGE_WORDS[self.name]}"


def parse_range(query: Mapping[str, str], now: float, began: float | None = None) -> TimeRange:
    """``range=1h``, or ``since`` and ``until`` in epoch seconds. Raises InvalidInput.

    The default is the last hour, or a shorter range if the whole record (since ``began``) fits in it.
    """
    if "since" in query or "until" in query:
        return _between(query, now)
    name = query.get("range") or _fitting(now, began)
    if name not in RANGES:
        raise InvalidInput(f"unknown range {name!r}; use one of {', '.join(RANGES)}")
    return TimeRange(name, now - RANGES[name], now)


def _fitting(now: float, began: float | None) -> str:
    if began is None:
        return DEFAULT_RANGE
    return next((name for name, span in RANGES.items() if name == DEFAULT_RANGE or began >= now - span), DEFAULT_RANGE)


def step_words(seconds: int) -> str:
    """The span of one bar of a chart: ``minute``, ``5 min``, ``hour``, ``6 h``, ``day``."""
    for size, one, unit in ((86400, "day", "days"), (3600, "hour", "h"), (60, "minute", "min")):
        if seconds % size == 0:
            return one if seconds == size else f"{seconds // size} {unit}"
    return f"{seconds} s"


def _between(query: Mapping[str, str], now: float) -> TimeRange:
    since = _moment("since", query.get("since") or "", now)
    until = min(_moment("until", query.get("until") or f"{now}", now), now)
    if not SHORTEST_SECONDS <= until - since <= LONGEST_SECONDS:
        raise InvalidInput("since must be at least 60 s and at most two years before until")
    return TimeRange(None, since, until)


def _moment(name: str, text: str, now: float) -> float:
    try:
        moment = float(text)
    except ValueError:
        raise InvalidInput(f"{name}={text!r} is not a time; use seconds since 1970, such as {now:.0f}") from None
    if not 0 <= moment < 1e11:
        raise InvalidInput(f"{name}={text!r} is out of range")
    return moment


Number = int | float | None


class ChartSeries(msgspec.Struct, frozen=True, kw_only=True):
    """One line or layer. ``colour`` is a CSS custom property; the legend shows ``summary`` without a cursor."""

    name: str
    colour: str
    values: Sequence[Number]
    weight: float = 1.0
    summary: Number = None


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart over time, as charts.js reads it. A value of ``None`` is a time without data."""

    kind: Literal["stacked", "lines", "area"]
    unit: Literal["count", "seconds"]
    since: float
    until: float
    step: int
    at: Sequence[float]
    series: Sequence[ChartSeries]
    gaps: Sequence[tuple[float, float | None, str]] = ()
    summary_of: str = ""  # what the summaries in the legend cover: "total of the last 1 h"
    marks: Sequence[tuple[float, str]] = ()  # times to mark, each with its text
    partial: float | None = None  # start of the bucket that is still filling

    @property
    def json(self) -> str:
        """The value of ``data-chart``; the template escapes it."""
        return msgspec.json.encode(self).decode()

    @property
    def layers(self) -> "list[Layer]":
        """The SVG for browsers without scripts."""
        return drawing(self)

    @property
    def empty(self) -> bool:
        """Nothing to draw. A stack of zeros is empty; a line along zero is not: it says that nothing waited."""
        values = [value for each in self.series for value in each.values]
        return not any(values) if self.kind == "stacked" else all(value is None for value in values)


class Layer(NamedTuple):
    """One coloured area of the SVG: the ``d`` of a path."""

    colour: str
    path: str


WIDTH, HEIGHT = 600.0, 60.0


def drawing(chart: Chart) -> list[Layer]:
    """The chart as SVG paths in a box of WIDTH × HEIGHT: steps for a stack, lines for anything else."""
    if chart.kind == "stacked":
        return _stack(chart)
    most = max((value for each in chart.series for value in each.values if value is not None), default=0) or 1
    return [Layer(each.colour, _line(chart, each.values, most)) for each in chart.series]


def sparkline(values: Sequence[Number], width: float = 96.0, height: float = 20.0) -> str:
    """The ``d`` of a small line; it breaks where a value is unknown and is empty where all are."""
    most = max((value for value in values if value is not None), default=0) or 1
    step = width / max(1, len(values) - 1)
    points = [None if v is None else (i * step, height - 1 - (height - 2) * v / most) for i, v in enumerate(values)]
    return _path(points)


def bars(values: Sequence[Number], width: float = 96.0, height: float = 20.0) -> str:
    """The ``d`` of small bars, one per value: for counts, where a line would interpolate."""
    most = max((value for value in values if value is not None), default=0)
    if not most:
        return ""
    step = width / len(values)
    parts = []
    for i, value in enumerate(values):
        if value:
            tall = max(1.5, height * value / most)  # one among thousands stays visible
            parts.append(f"M{i * step:.1f} {height:g}v-{tall:.1f}h{step * 0.82:.1f}v{tall:.1f}z")
    return "".join(parts)


def gap_spans(gaps: Sequence[Gap], since: float, until: float) -> list[tuple[float, float | None, str]]:
    """The gaps within the range, for ``Chart.gaps``."""
    return [
        (max(gap.began, since), min(gap.ended or until, until), gap.cause)
        for gap in gaps
        if gap.began < until and (gap.ended is None or gap.ended > since)
    ]


def start_marks(series: Series, step: int) -> list[tuple[float, str]]:
    """Restarts of workers, one mark per step of the chart."""
    by_step: dict[int, list[WorkerStart]] = {}
    for each in series.starts:
        by_step.setdefault(int(each.at // step), []).append(each)
    marks = []
    for group in by_step.values():
        names = sorted({each.hostname for each in group})
        who = names[0] if len(names) == 1 else f"{len(names)} workers"
        marks.append((group[0].at, f"{who} restarted"))
    return marks


def _stack(chart: Chart) -> list[Layer]:
    totals = [0.0] * len(chart.at)
    layers = []
    for each in chart.series:
        totals = [total + (value or 0) for total, value in zip(totals, each.values, strict=True)]
        layers.append((each.colour, totals))
    most = max(totals, default=0) or 1
    return [Layer(colour, _steps(chart, sums, most)) for colour, sums in reversed(layers)]


def _steps(chart: Chart, sums: Sequence[float], most: float) -> str:
    parts = [f"M0 {HEIGHT:g}"]
    for at, total in zip(chart.at, sums, strict=True):
        left, right = _x(chart, at), _x(chart, at + chart.step)
        parts.append(f"L{left:.1f} {_y(total, most):.1f}H{right:.1f}")
    return "".join(parts) + f"V{HEIGHT:g}Z"


def _line(chart: Chart, values: Sequence[Number], most: float) -> str:
    pairs = zip(chart.at, values, strict=True)
    return _path([None if value is None else (_x(chart, at), _y(value, most)) for at, value in pairs])


def _x(chart: Chart, at: float) -> float:
    share = (at - chart.since) / max(1.0, chart.until - chart.since)
    return WIDTH * min(1.0, max(0.0, share))


def _y(value: float, most: float) -> float:
    return HEIGHT - (HEIGHT - 2) * value / most


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    parts = []
    pen_down = False
    for point in points:
        if point is not None:
            parts.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None
    return "".join(parts)


OUTCOMES = ("succeeded", "retried", "failed", "rejected", "revoked", "lost")
OUTCOME_TOKENS = {"retried": "retry"}
ALWAYS_SHOWN = frozenset({"succeeded", "failed"})
PERCENTILES = (("p50", 1.0), ("p95", 0.65), ("p99", 0.4))


MOST_BARS = 120
BAR_STEPS = (60, 120, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 7 * 86400, 30 * 86400)


def first_bucket(since: float, until: float) -> float:
    """Start of the first bucket that the charts of a span show in full."""
    step = resolution_of(since, until)
    return since // step * step


def bar_step(series: Series) -> int:
    """Seconds per bar: as fine as the record, with at most MOST_BARS bars."""
    span = series.until - series.since
    steps = (step for step in BAR_STEPS if step >= series.resolution and span / step <= MOST_BARS)
    return next(steps, BAR_STEPS[-1])


def throughput(series: Series, now: float) -> Chart:
    """Finished runs by outcome, stacked. Outcomes without runs are left out, except success and failure."""
    step = bar_step(series)
    starts = sorted({bucket.at // step * step for bucket in series.buckets})
    layers = []
    for outcome in OUTCOMES:
        sums = dict.fromkeys(starts, 0)
        for bucket in series.buckets:
            sums[bucket.at // step * step] += getattr(bucket, outcome)
        values = list(sums.values())
        if any(values) or outcome in ALWAYS_SHOWN:
            token = f"--state-{OUTCOME_TOKENS.get(outcome, outcome)}"
            layers.append(ChartSeries(name=outcome, colour=token, values=values, summary=sum(values)))
    return _over_buckets(series, "stacked", "count", layers, now, starts, step, total_of(series.since, series.until))


def total_of(since: float, until: float) -> str:
    """What sums in a legend cover."""
    named = (RANGE_WORDS[name] for name, seconds in RANGES.items() if seconds == until - since)
    return f"total of {next(named, 'the selected time')}"


def wait_title(series: Series) -> str:
    """The title, with the share of waits that are counted from receipt, if there are any."""
    starts = sum(bucket.started for bucket in series.buckets if bucket.wait)
    counted = sum(bucket.started * bucket.wait.since_receipt for bucket in series.buckets if bucket.wait)
    return f"Wait time{since_receipt(counted / starts if starts else 0.0)}"


def percentiles(series: Series, of: Literal["wait", "run"], now: float) -> Chart:
    """Percentiles of wait or run time; the line breaks where nothing was measured."""
    token = "--state-received" if of == "wait" else "--state-started"
    found = [bucket.wait if of == "wait" else bucket.run for bucket in series.buckets]
    lines = []
    for name, weight in PERCENTILES:
        values = [None if each is None else round(getattr(each, name), 6) for each in found]
        lines.append(ChartSeries(name=name, colour=token, values=values, weight=weight, summary=_last(values)))
    step = series.resolution
    summary_of = f"last {step_words(step)} with tasks"
    return _over_buckets(
        series, "lines", "seconds", lines, now, [bucket.at for bucket in series.buckets], step, summary_of
    )


def depth(series: Series, *, with_unacked: bool = False) -> Chart:
    """Waiting messages of one queue, or of all."""
    samples = _with_breaks(series.depth, 3 * max(series.resolution, 60))
    waiting = [sample.ready for sample in samples]
    lines = [ChartSeries(name="waiting", colour="--state-pending", values=waiting, summary=_last(waiting))]
    if with_unacked:
        unacked = [sample.unacked for sample in samples]
        lines.append(
            ChartSeries(
                name="unacknowledged", colour="--state-received", values=unacked, weight=0.6, summary=_last(unacked)
            )
        )
    first, last = _span(series)
    return Chart(
        kind="area",
        unit="count",
        since=first,
        until=last,
        step=series.resolution,
        at=[sample.at for sample in samples],
        series=lines,
        gaps=gap_spans(series.gaps, first, last),
        summary_of=f"most in the last {step_words(series.resolution)}",
        marks=start_marks(series, series.resolution),
    )


def _over_buckets(
    series: Series,
    kind: Literal["stacked", "lines"],
    unit: Literal["count", "seconds"],
    layers: Sequence[ChartSeries],
    now: float,
    starts: Sequence[float],
    step: int,
    summary_of: str,
) -> Chart:
    first, last = _span(series)
    filling = starts[-1] if starts and starts[-1] + step > now else None
    return Chart(
        kind=kind,
        unit=unit,
        since=first,
        until=last,
        step=step,
        at=starts,
        series=layers,
        gaps=gap_spans(series.gaps, first, last),
        summary_of=summary_of,
        marks=start_marks(series, step),
        partial=filling,
    )


def _span(series: Series) -> tuple[float, float]:
    """Whole buckets, so that the HTML stays the same until there is new data."""
    step = series.resolution
    return series.since // step * step, -(-series.until // step) * step


def _with_breaks(samples: Sequence[QueueSample], longest: float) -> list[QueueSample]:
    """The samples, with an unknown one inserted where none was measured for ``longest`` seconds."""
    found: list[QueueSample] = []
    for sample in samples:
        if found and sample.at - found[-1].at > longest:
            found.append(QueueSample(at=found[-1].at + 1, ready=None, unacked=None, consumers=None, oldest=None))
        found.append(sample)
    return found


def _last(values: Sequence[Number]) -> Number:
    return next((value for value in reversed(values) if value is not None), None)
