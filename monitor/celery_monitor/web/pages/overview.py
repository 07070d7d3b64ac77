"""Health, charts, top failures, longest running and slowest tasks: the page that stays open."""

from celery_monitor.core.health.judgement import findings, settled
from celery_monitor.core.words import counted
from celery_monitor.records.failure import FailureCounts
from celery_monitor.records.receiver import StandbyReceiver
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store.health import read_facts, read_standbys
from celery_monitor.store.rollups.failures import UNRESOLVED, read_failure_counts, read_failure_groups
from celery_monitor.store.rollups.series import read_name_totals, read_series, record_began
from celery_monitor.store.tasks.page import count_states, read_longest_running
from celery_monitor.web.charts import (
    RANGE_WORDS,
    TimeRange,
    depth,
    first_bucket,
    parse_range,
    percentiles,
    step_words,
    throughput,
    wait_title,
)
from celery_monitor.web.pages import Context, Page, View
from celery_monitor.web.problems import read_part
from celery_monitor.web.security.reach import IN_PART

LISTED = 6
_STATUS_ORDER = {WorkerStatus.SILENT: 0, WorkerStatus.ONLINE: 1, WorkerStatus.OFFLINE: 2}
WORKERS_SHOWN = 20


def context(view: View) -> Context:
    span = parse_range(view.query, view.now, record_began(view.store))
    facts = read_facts(view.store, view.cluster, view.now)
    workers = facts.workers
    return {
        **read_part(lambda: {"sentence": findings(facts)}, "sentence"),
        "span": span,
        "ranges": RANGE_WORDS,
        "nothing_yet": not workers and not any(count_states(view.store, view.cluster).values()),
        "receivers": facts.receivers,
        "standbys": _standbys(view),
        "workers": sorted(workers, key=_worker_order)[:WORKERS_SHOWN],
        "workers_total": len(workers),
        **read_part(lambda: _charts(view, span), "charts"),
        **read_part(lambda: _lists(view, span), "groups", "settled", "most_time", "slowest", "running"),
    }


def _standbys(view: View) -> list[StandbyReceiver]:
    found = read_standbys(view.store, view.now)
    return [each for name, those in found.items() if view.cluster in (None, name) for each in those]


def _charts(view: View, span: TimeRange) -> Context:
    series = read_series(view.store, since=span.since, until=span.until, cluster=view.cluster)
    finished = throughput(series, view.now)
    return {
        "charts": (
            ("throughput", f"Finished per {step_words(finished.step)}", finished),
            ("depth", "Waiting in queues", depth(series)),
            ("wait", wait_title(series), percentiles(series, "wait", view.now)),
            ("run", "Run time", percentiles(series, "run", view.now)),
        )
    }


def _lists(view: View, span: TimeRange) -> Context:
    store, cluster = view.store, view.cluster
    totals = read_name_totals(store, since=span.since, until=span.until, cluster=cluster)
    ran = [each for each in totals if each.run is not None]
    began = first_bucket(span.since, span.until)  # so that charts and lists cover the same time
    return {
        "groups": read_failure_groups(store, since=began, cluster=cluster, states=UNRESOLVED, limit=LISTED),
        "settled": _settled(read_failure_counts(store, since=began, cluster=cluster)),
        "most_time": sorted(ran, key=lambda each: -each.seconds)[:LISTED],
        "slowest": sorted(ran, key=lambda each: -each.run.p95 if each.run else 0.0)[:LISTED],
        "running": read_longest_running(store, cluster=cluster, limit=LISTED),
    }


def _settled(failed: FailureCounts) -> str:
    """The failures that the chart counts and the list leaves out."""
    left_out = settled(failed)
    return f"{counted(failed.total, 'failure')}{left_out}" if left_out else ""


def _worker_order(worker: Worker) -> tuple[int, str, str]:
    """Silent workers first, offline ones last."""
    return _STATUS_ORDER[worker.status], worker.hostname, worker.cluster


PAGE = Page(
    "/",
    "overview.html",
    context,
    title="Overview",
    nav="Overview",
    regions=("health", "span", "charts", "lists", "strip"),
    script="charts.js",
    access=IN_PART,
)
