"""Is it healthy, what fails, what takes the time, what hangs: the page that stays open."""

from monitor.health import findings
from monitor.health import settled
from monitor.records import FailureCounts
from monitor.records import StandbyReceiver
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.store.failures import UNRESOLVED
from monitor.store.health import read_facts
from monitor.store.health import read_standbys
from monitor.web import charts
from monitor.web.pages import Context
from monitor.web.pages import Page
from monitor.web.pages import View
from monitor.web.ranges import RANGE_WORDS
from monitor.web.ranges import Range
from monitor.web.ranges import parse_range
from monitor.web.ranges import step_words
from monitor.words import counted

LISTED = 6
_STATUS_ORDER = {WorkerStatus.SILENT: 0, WorkerStatus.ONLINE: 1, WorkerStatus.OFFLINE: 2}
WORKERS_SHOWN = 20


def context(view: View) -> Context:
    span = parse_range(view.query, view.now, queries.began(view.store))
    facts = read_facts(view.store, view.cluster, view.now)
    workers = facts.workers
    return {
        "sentence": findings(facts),
        "span": span,
        "ranges": RANGE_WORDS,
        "nothing_yet": not workers and not any(queries.state_counts(view.store, view.cluster).values()),
        "receivers": facts.receivers,
        "standbys": _standbys(view),
        "workers": sorted(workers, key=_worker_order)[:WORKERS_SHOWN],
        "workers_total": len(workers),
        **_charts(view, span),
        **_lists(view, span),
    }


def _standbys(view: View) -> list[StandbyReceiver]:
    found = read_standbys(view.store, view.now)
    return [each for name, those in found.items() if view.cluster in (None, name) for each in those]


def _charts(view: View, span: Range) -> Context:
    series = queries.series(view.store, since=span.since, until=span.until, cluster=view.cluster)
    finished = charts.throughput(series, view.now)
    return {
        "charts": (
            ("throughput", f"Finished per {step_words(finished.step)}", finished),
            ("depth", "Waiting in queues", charts.depth(series)),
            ("wait", charts.wait_title(series), charts.percentiles(series, "wait", view.now)),
            ("run", "Run time: the code decides it", charts.percentiles(series, "run", view.now)),
        )
    }


def _lists(view: View, span: Range) -> Context:
    store, cluster = view.store, view.cluster
    totals = queries.name_totals(store, since=span.since, until=span.until, cluster=cluster)
    ran = [each for each in totals if each.run is not None]
    began = charts.first_bucket(span.since, span.until)  # so that chart and list count the same
    return {
        "groups": queries.failure_groups(store, since=began, cluster=cluster, states=UNRESOLVED, limit=LISTED),
        "settled": _settled(queries.failure_counts(store, since=began, cluster=cluster)),
        "most_time": sorted(ran, key=lambda each: -each.seconds)[:LISTED],
        "slowest": sorted(ran, key=lambda each: -each.run.p95 if each.run else 0.0)[:LISTED],
        "running": queries.longest_running(store, cluster=cluster, limit=LISTED),
    }


def _settled(failed: FailureCounts) -> str:
    """What the chart counts and the list leaves out."""
    left_out = settled(failed)
    return f"{counted(failed.total, 'failure')}{left_out}" if left_out else ""


def _worker_order(worker: Worker) -> tuple[int, str, str]:
    """Who is gone comes last; of many, those that are silent are among the shown."""
    return _STATUS_ORDER[worker.status], worker.hostname, worker.cluster


PAGE = Page(
    "/",
    "overview.html",
    context,
    title="Overview",
    nav="Overview",
    regions=("health", "span", "charts", "lists", "strip"),
    script="charts.js",
)
