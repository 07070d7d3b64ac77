"""Failures grouped by cause; and one group with its trend, shares, latest task and actions."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from celery_monitor.control.commands import verb_of
from celery_monitor.control.views import FAILURE_COMMANDS, ChangeFailure
from celery_monitor.core.failures import mask, names_in
from celery_monitor.core.filters.parser import Filter
from celery_monitor.core.filters.terms import All, exactly
from celery_monitor.errors import InvalidInput
from celery_monitor.records.failure import FailureGroup, FailureState, FailureTrend
from celery_monitor.records.task import Task
from celery_monitor.store.receivers import read_gaps
from celery_monitor.store.rollups.failures import (
    UNRESOLVED,
    read_failure_group,
    read_failure_summaries,
    read_failure_summary,
    read_failure_trend,
    read_group_states,
    read_latest_failure,
)
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.facets import read_facets
from celery_monitor.web.charts import (
    RANGE_WORDS,
    Chart,
    ChartSeries,
    TimeRange,
    bars,
    gap_spans,
    parse_range,
    step_words,
    total_of,
)
from celery_monitor.web.pages import Act, Context, FormRequest, Page, Result, View, command_of, perform_form
from celery_monitor.web.problems import read_part
from celery_monitor.web.security.reach import IN_PART
from celery_monitor.web.wording import parts

MOST_GROUPS = 200
DEFAULT_RANGE = "24h"
NEW_SECONDS = 86400.0  # a group is new for a day
SAMPLES = 500  # tasks whose arguments are compared
LISTED = 10
WINDOWS = (("1h", "hour"), ("24h", "day"), ("7d", "week"))
SHOWN = {
    "open": UNRESOLVED,
    "resolved": (FailureState.RESOLVED,),
    "muted": (FailureState.MUTED,),
    "all": tuple(FailureState),
}


class FailureShare(NamedTuple):
    """One value among the failures of a group, with its tasks as a query. A value of ``None`` is unknown."""

    value: str | None
    times: int
    query: str | None = None
    field: str | None = None


def context(view: View) -> Context:
    span = _span(view)
    shown = view.query.get("state") or "open"
    if shown not in SHOWN:
        raise InvalidInput(f"unknown state {shown!r}; use one of {', '.join(SHOWN)}")
    rows = read_failure_summaries(
        view.store,
        since=span.since,
        now=view.now,
        cluster=view.cluster,
        states=SHOWN[shown],
        limit=MOST_GROUPS,
    )
    states = read_group_states(view.store, since=span.since, cluster=view.cluster)
    return {
        "rows": rows,
        "words": {row.group.id: state_word(row.group, view.now) for row in rows},
        "trends": {row.group.id: bars(row.windows.trend) for row in rows},
        "span": span,
        "ranges": RANGE_WORDS,
        "shown": shown,
        "counts": {name: sum(states[state] for state in SHOWN[name]) for name in SHOWN},
        "windows": windows(span),
        "several": len({row.group.cluster for row in rows}) > 1,
        "full": len(rows) == MOST_GROUPS,
    }


def failure_context(view: View) -> Context:
    """One group. Raises NotFound."""
    number = view.params["id"]
    span = _span(view)
    summary = read_failure_summary(view.store, number, since=span.since, now=span.until)
    group = summary.group
    return {
        "title": group.exception_type,
        "group": group,
        "word": state_word(group, view.now),
        "windows": summary.windows,
        "spans": windows(span),
        "span": span,
        "ranges": RANGE_WORDS,
        **read_part(lambda: _trend(view, span, number), "chart", "step_words", "by_worker", "workers_total"),
        **read_part(lambda: {"by_queue": _by_queue(view, number)}, "by_queue"),
        **read_part(lambda: {"by_variant": _by_variant(group)}, "by_variant"),
        **read_part(lambda: _samples(view, number), "tasks", "by_shape", "compared", "sample", "parts"),
        "may": {verb_of(command): view.may(command.action) for command in FAILURE_COMMANDS},
        "may_retry": view.may("task.retry"),
    }


def _trend(view: View, span: TimeRange, number: int) -> Context:
    trend = read_failure_trend(view.store, number, since=span.since, until=span.until)
    return {
        "chart": _chart(view, trend),
        "step_words": step_words(trend.step),
        "by_worker": [FailureShare(worker, count, field="worker") for worker, count in trend.by_worker[:LISTED]],
        "workers_total": len(trend.by_worker),
    }


def _samples(view: View, number: int) -> Context:
    """The latest tasks of a group, and the traceback of the last."""
    latest = read_latest_failure(view.store, number, SAMPLES)
    sample = read_task(view.store, latest[0].id, latest[0].cluster) if latest else None
    return {
        "tasks": latest[:LISTED],
        "by_shape": _by_shape(latest),
        "compared": len(latest),
        "sample": sample,
        "parts": parts(sample.traceback) if sample and sample.traceback else [],
    }


def windows(span: TimeRange) -> list[tuple[str | None, str | None]]:
    """The ranges with a count, shortest first, each with its field of FailureWindows; the selected one has none."""
    others: list[tuple[str | None, str | None]] = [
        (name, None if name == span.name else field) for name, field in WINDOWS
    ]
    return others if span.name in dict(WINDOWS) else [(span.name, None), *others]


def state_word(group: FailureGroup, now: float) -> str:
    """``new`` for an open group of the last day, else its state."""
    fresh = group.state is FailureState.OPEN and now - group.first_seen < NEW_SECONDS
    return "new" if fresh else group.state.value


def change(command: type[ChangeFailure]) -> Act:
    """The form that resolves, mutes or reopens a group."""

    def act(view: View, request: FormRequest) -> Result:
        group = read_failure_group(view.store, view.params["id"])
        make = partial(command_of, command, cluster=group.cluster, group=group.id)
        return perform_form(f"/failures/{group.id}", view, request, make)

    return act


def _span(view: View) -> TimeRange:
    query = view.query if {"range", "since", "until"} & set(view.query) else {"range": DEFAULT_RANGE}
    return parse_range(query, view.now)


def _chart(view: View, trend: FailureTrend) -> Chart:
    gaps = read_gaps(view.store, trend.since, view.cluster)
    return Chart(
        kind="stacked",
        unit="count",
        since=trend.at[0],
        until=trend.at[-1] + trend.step,
        step=trend.step,
        at=trend.at,
        series=[ChartSeries(name="failed", colour="--state-failed", values=trend.counts, summary=sum(trend.counts))],
        gaps=gap_spans(gaps, trend.since, trend.until),
        summary_of=total_of(trend.since, trend.until),
        partial=trend.at[-1] if trend.at[-1] + trend.step > view.now else None,
    )


def _by_queue(view: View, number: int) -> list[FailureShare]:
    found = read_facets(view.store, Filter(exactly("group", number)), ("queue",))["queue"]
    return [FailureShare(each.value or None, each.count.value, str(each.term)) for each in found[:LISTED]]


def _by_variant(group: FailureGroup) -> list[FailureShare]:
    """The messages of the group, which differ in names, each with its tasks as a query."""
    if len(group.variants) < 2:
        return []
    return [
        FailureShare(each.message, each.count, str(_named(names_in(each.message or ""))) or None)
        for each in group.variants
    ]


def _named(names: Iterable[str]) -> Filter:
    return Filter(All(tuple(exactly("exception", name) for name in names)))


def _by_shape(tasks: list[Task]) -> list[FailureShare]:
    """The arguments with their values masked: shows whether it is always the same kind of call that fails."""
    shapes = Counter(mask(f"{task.args or '(unknown)'} {task.kwargs or ''}".strip()) for task in tasks)
    return [FailureShare(shape, count) for shape, count in shapes.most_common(LISTED)]


PAGE = Page(
    "/failures",
    "failures.html",
    context,
    title="Failure groups",
    nav="Failure groups",
    regions=("failures",),
    access=IN_PART,
)
GROUP_PAGE = Page(
    "/failures/{id:int}",
    "failure.html",
    failure_context,
    title="Failure",
    regions=("head", "numbers", "why"),
    actions={verb_of(command): change(command) for command in FAILURE_COMMANDS},
    script="charts.js",
    access=IN_PART,
)
