"""Workers: status, load, versions and events; and one worker with its current tasks, charts and controls."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from celery_monitor.control.commands import SIGNALS, verb_of
from celery_monitor.control.inspect import Inspected, query_worker
from celery_monitor.control.revoke import RevokeStamped
from celery_monitor.control.workers import WORKER_COMMANDS, EnableEvents, WorkerCommand
from celery_monitor.core.filters.parser import Filter
from celery_monitor.core.filters.terms import State, any_of, exactly
from celery_monitor.core.health.findings import RENAME, shared_names
from celery_monitor.core.workers import ProcessState, duplicate_pids, is_skewed, process_state
from celery_monitor.core.workflow import stalled_words
from celery_monitor.errors import MonitorError, NotFound
from celery_monitor.records.page import ListPage
from celery_monitor.records.task import Task
from celery_monitor.records.worker import Worker, WorkerProcess, WorkerStatus
from celery_monitor.store.health import read_receivers, read_stalls
from celery_monitor.store.queues import read_queues
from celery_monitor.store.receivers import read_receiver_records
from celery_monitor.store.rollups.flows import Flow, read_flows
from celery_monitor.store.rollups.series import read_series
from celery_monitor.store.tasks.page import find_tasks
from celery_monitor.store.terms import find_terms
from celery_monitor.store.workers import read_workers
from celery_monitor.web.charts import RANGE_WORDS, TimeRange, parse_range, percentiles, step_words, throughput
from celery_monitor.web.pages import (
    Act,
    Context,
    Form,
    FormRequest,
    Page,
    Result,
    View,
    action_on,
    command_of,
    part_of,
    perform_form,
)
from celery_monitor.web.problems import read_part
from celery_monitor.web.security.reach import IN_CLUSTERS

RATE_SECONDS = 3600.0
MOST_NAMES = 200
MOST_CURRENT = 20
MOST_FOLDED = 100  # offline workers under the list; the API has all
MOST_VERSIONS = 10
ORDER = {WorkerStatus.SILENT: 0, WorkerStatus.ONLINE: 1, WorkerStatus.OFFLINE: 2}
MOST_STUCK = 5  # tasks listed of a worker that may be stuck
FOLD_SECONDS = 600.0  # an offline worker is folded away after this time


_PIECES = re.compile(r"([^0-9]*)([0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker with its failure share and how it differs from the others."""

    worker: Worker
    flow: Flow | None
    differs: bool  # runs another version of Celery than most
    skewed: bool
    silent_events: bool
    processes_up: int  # of the same name; 0 if there is one
    processes: list[tuple[Worker | WorkerProcess, ProcessState]]  # if there are several; the worker's own first
    state: ProcessState  # of its own process

    @property
    def key(self) -> str:
        return f"{self.worker.cluster}\n{self.worker.hostname}"


class Stuck(NamedTuple):
    """Why a worker may be stuck, and some of its running tasks."""

    words: str
    tasks: list[Task]


def context(view: View) -> Context:
    rows = read_rows(view)
    folded = [row for row in rows if _folds(row.worker, view.now)]
    shown = [row for row in rows if not _folds(row.worker, view.now)]
    part = part_of(view, shown)
    return {
        "part": part,
        "rows": part.items,
        "doubled": list(shared_names({row.worker.hostname: row.processes_up for row in shown if row.processes_up})),
        "folded": folded[:MOST_FOLDED],
        "folded_total": len(folded),
        "muted_clusters": sorted({row.worker.cluster for row in shown if row.silent_events}),
        "several": len({row.worker.cluster for row in rows}) > 1,
        "versions": sorted({row.worker.sw_ver for row in shown if row.worker.sw_ver})[:MOST_VERSIONS],
        "may_enable": view.may(EnableEvents.action),
        "may_revoke": view.may(RevokeStamped.action),
        "signals": SIGNALS,
        "clusters": view.settings.clusters,
        "receivers": read_receiver_records(view.store),
    }


def worker_context(view: View) -> Context:
    """The workers of one name, of all selected clusters. Raises NotFound."""
    hostname = str(view.params["hostname"])
    rows = read_rows(view, hostname)
    if not rows:
        raise NotFound(f"Worker {hostname!r} not found.")
    span = parse_range(view.query, view.now)
    cluster = view.cluster or (rows[0].worker.cluster if len(rows) == 1 else None)
    return {
        "hostname": hostname,
        "rows": rows,
        "rename": RENAME,
        "several": len(rows) > 1,
        "stuck": {row.key: _stuck(view, row.worker) for row in rows},
        "span": span,
        "ranges": RANGE_WORDS,
        "may_enable": view.may(EnableEvents.action),
        "may_terminate": view.may("task.revoke"),
        "can": {command.action.partition(".")[2]: view.may(command.action) for command in WORKER_COMMANDS},
        "task_names": find_terms(view.store, "name", "", MOST_NAMES),
        "known_queues": sorted({queue.name for queue in read_queues(view.store, cluster)})[:MOST_NAMES],
        "inspected": view.query.get("ask") == "1" and view.store.limits.arguments,  # it reports those of current tasks
        "may_inspect": view.store.limits.arguments,
        "current": _current_tasks(view, hostname),
        "inspect": lambda worker: _inspect(view, worker),  # called by the page, not by live updates
        **read_part(lambda: _charts(view, span, cluster, hostname), "charts"),
    }


def _charts(view: View, span: TimeRange, cluster: str | None, hostname: str) -> Context:
    series = read_series(view.store, since=span.since, until=span.until, cluster=cluster, worker=hostname)
    finished = throughput(series, view.now)
    return {
        "charts": (
            ("throughput", f"Finished per {step_words(finished.step)}", finished),
            ("run", "Run time", percentiles(series, "run", view.now)),
        )
    }


def _stuck(view: View, worker: Worker) -> Stuck | None:
    health = read_receivers(view.store, view.now)
    stalled = read_stalls(view.store, health, [worker], view.now, worker.cluster).workers
    if not stalled:
        return None
    runs = (Filter(State("started")) & exactly("worker", worker.hostname)).in_cluster(worker.cluster)
    return Stuck(stalled_words(stalled[0]), list(find_tasks(view.store, runs, limit=MOST_STUCK).items))


def read_rows(view: View, hostname: str | None = None) -> list[WorkerRow]:
    """All workers, or those of this name: silent ones first, then online, then offline; worker2 before worker10."""
    workers = read_workers(view.store, view.cluster)
    since = view.now - RATE_SECONDS
    flows = read_flows(view.store, "worker", since=since, now=view.now, cluster=view.cluster)
    usual = _usual_versions(workers)
    rows = [
        WorkerRow(
            worker=worker,
            flow=flows.of(worker.cluster, worker.hostname),
            differs=worker.sw_ver is not None and worker.sw_ver != usual.get(worker.cluster),
            skewed=_skewed(worker),
            silent_events=worker.events_enabled is False and worker.status is not WorkerStatus.OFFLINE,
            processes_up=len(duplicate_pids(worker)),
            processes=_processes(worker, view.now),
            state=process_state(worker, worker.pid, view.now),
        )
        for worker in workers
        if hostname in (None, worker.hostname)
    ]
    return sorted(rows, key=lambda row: (ORDER[row.worker.status], _natural(row.worker.hostname), row.key))


def enable_events(view: View, request: FormRequest) -> Result:
    """Turns on task events at the workers of a cluster that have them off, or at one of them."""
    cluster = str(request.form.get("cluster") or "")
    named = request.form.get("worker")
    silent = [
        row.worker.hostname
        for row in read_rows(view)
        if row.worker.cluster == cluster and row.silent_events and named in (None, row.worker.hostname)
    ]
    if not silent:
        return Result("/workers", notice="Task events are already on.")
    performed = request.controller.perform(request.actor, EnableEvents(cluster=cluster, workers=tuple(silent)))
    tone = {"done": "good", "unconfirmed": "warning"}.get(performed.outcome, "bad")
    return Result("/workers", notice=performed.message, tone=tone)


def revoke_stamped(view: View, request: FormRequest) -> Result:
    """Makes every worker of a cluster skip tasks with a stamp."""
    return perform_form("/workers", view, request, lambda form: command_of(RevokeStamped, form))


def _form_of(command: type[WorkerCommand]) -> Act:
    """The form of a command to a worker."""

    def make(hostname: str, form: Form) -> WorkerCommand:
        return command_of(command, form, workers=(hostname,))

    return action_on("/workers", "hostname", make)


def _current_tasks(view: View, hostname: str) -> ListPage[Task]:
    """Started and received tasks of the worker, from events: the newest, and how many."""
    found = Filter(exactly("worker", hostname)) & any_of((State("started"), State("received")))
    return find_tasks(view.store, found.in_cluster(view.cluster), limit=MOST_CURRENT)


def _natural(name: str) -> list[tuple[str, int]]:
    """Sort key that orders numbers in a name by value."""
    return [(text, int(digits or 0)) for text, digits in _PIECES.findall(name)]


def _inspect(view: View, worker: Worker) -> Inspected | MonitorError:
    """The worker's answer, or why it cannot be queried."""
    try:
        return query_worker(view.settings, worker)
    except MonitorError as error:
        return error


def _processes(worker: Worker, now: float) -> list[tuple[Worker | WorkerProcess, ProcessState]]:
    """The processes of this name that are up or shutting down, if there are several."""
    others = [(each, process_state(worker, each.pid, now)) for each in worker.others]
    shown = [pair for pair in others if pair[1] in {"online", "shutting down"}]
    return [(worker, process_state(worker, worker.pid, now)), *shown] if shown else []


def _skewed(worker: Worker) -> bool:
    alive = worker.status is not WorkerStatus.OFFLINE
    return alive and is_skewed(worker)


def _folds(worker: Worker, now: float) -> bool:
    last = max(worker.offline_at or 0.0, worker.last_heartbeat or 0.0)
    return worker.status is WorkerStatus.OFFLINE and now - last > FOLD_SECONDS


def _usual_versions(workers: list[Worker]) -> dict[str, str]:
    """By cluster, the version that most workers run; the higher one of a tie."""
    versions: dict[str, Counter[str]] = {}
    for worker in workers:
        if worker.sw_ver and worker.status is not WorkerStatus.OFFLINE:
            versions.setdefault(worker.cluster, Counter())[worker.sw_ver] += 1
    return {
        cluster: max(counts, key=lambda version: (counts[version], version)) for cluster, counts in versions.items()
    }


PAGE = Page(
    "/workers",
    "workers.html",
    context,
    title="Workers",
    nav="Workers",
    regions=("workers", "folded"),
    actions={"enable-events": enable_events, "revoke-stamped": revoke_stamped},
    access=IN_CLUSTERS,
)
WORKER_PAGE = Page(
    "/workers/{hostname:name}",
    "worker.html",
    worker_context,
    title="Worker",
    regions=("worker", "current", "charts"),
    actions={verb_of(command): _form_of(command) for command in WORKER_COMMANDS},
    script="charts.js",
    access=IN_CLUSTERS,
)
