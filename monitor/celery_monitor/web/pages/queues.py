"""Queues: depth, age, rates and consumers; and one queue with charts, messages and controls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from celery_monitor.control.commands import Command, verb_of
from celery_monitor.control.queues import QUEUE_COMMANDS, QueueCommand, ReadQueue
from celery_monitor.control.workers import AddConsumer, GrowPool
from celery_monitor.core.health.findings import grows, unattended
from celery_monitor.errors import MonitorError, NotFound
from celery_monitor.records.queue import Pause, Queue, QueueSample
from celery_monitor.records.series import WaitPercentiles
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.store.queues import Key, read_depths, read_growing_queues, read_pauses, read_queues
from celery_monitor.store.rollups.flows import Flows, read_flows, read_waits
from celery_monitor.store.rollups.series import read_name_totals, read_series
from celery_monitor.store.workers import read_workers
from celery_monitor.web.charts import (
    RANGE_WORDS,
    TimeRange,
    depth,
    parse_range,
    percentiles,
    sparkline,
    step_words,
    throughput,
    wait_title,
)
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
    fields,
    part_of,
    perform_form,
)
from celery_monitor.web.problems import read_part
from celery_monitor.web.security.reach import IN_PART

RATE_SECONDS = 300.0
TREND_SECONDS = 3600.0
MOST_NAMES = 20
MOST_REMARKS = 5
MOST_CHOICES = 200  # workers in a form
COMMANDS: tuple[type[Command], ...] = (*QUEUE_COMMANDS, GrowPool, AddConsumer)


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue with rates and trend from its samples. Rates are per second; ``None`` is unknown."""

    queue: Queue
    out_rate: float | None
    in_rate: float | None
    drain_seconds: float | None
    growing: bool
    unattended: bool
    trend: str = ""
    wait: WaitPercentiles | None = None  # of tasks started within RATE_SECONDS
    pause: Pause | None = None
    consumers: tuple[str, ...] = ()  # workers, by their last report; newer than the sample

    @property
    def key(self) -> str:
        return f"{self.queue.cluster}\n{self.queue.name}"


def context(view: View) -> Context:
    rows = read_rows(view)
    part = part_of(view, rows)
    return {
        "part": part,
        "rows": _with_trends(view, part.items),
        "alone": [row for row in rows if row.unattended and not row.pause],
        "paused": [row for row in rows if row.pause and not row.queue.consumers],
        "most_remarks": MOST_REMARKS,
        "several": _several(rows),
    }


def queue_context(view: View) -> Context:
    """The queues of one name, of all selected clusters. Raises NotFound."""
    name = str(view.params["name"])
    rows = _with_trends(view, read_rows(view, name))
    if not rows:
        raise NotFound(f"Queue {name!r} not found. It may have been deleted, or is not measured (yet).")
    span = parse_range(view.query, view.now)
    cluster = view.cluster or (rows[0].queue.cluster if len(rows) == 1 else None)
    return {
        "name": name,
        **read_part(lambda: _names(view, span, cluster, name), "tasks"),
        **read_part(lambda: _charts(view, span, cluster, name), "charts"),
        "most_names": MOST_NAMES,
        "rows": rows,
        "several": _several(rows),
        "idle": _idle(view, rows),
        "span": span,
        "ranges": RANGE_WORDS,
        "reading": None,
        "reading_of": None,
        "can": {command.action.partition(".")[2]: view.may(command.action) for command in COMMANDS},
    }


def _names(view: View, span: TimeRange, cluster: str | None, queue: str) -> Context:
    totals = read_name_totals(view.store, since=span.since, until=span.until, cluster=cluster, queue=queue)
    return {"tasks": sorted(totals, key=lambda each: -each.runs)[:MOST_NAMES]}


def _charts(view: View, span: TimeRange, cluster: str | None, queue: str) -> Context:
    series = read_series(view.store, since=span.since, until=span.until, cluster=cluster, queue=queue)
    finished = throughput(series, view.now)
    return {
        "charts": (
            ("depth", "Waiting and unacknowledged", depth(series, with_unacked=True)),
            ("wait", wait_title(series), percentiles(series, "wait", view.now)),
            ("throughput", f"Finished per {step_words(finished.step)}", finished),
        )
    }


def read_messages(view: View, request: FormRequest) -> Result:
    """The page with the next messages. A POST, since reading marks messages on RabbitMQ."""
    try:
        command = command_of(ReadQueue, fields(request.form), queue=str(view.params["name"]))
        performed = request.controller.perform(request.actor, command)
    except MonitorError as error:
        return Result(f"/queues/{_quoted(view)}", {"cluster": view.cluster}, error.message, "bad")
    return Result(context={"reading": performed.reading, "reading_of": command.cluster})


def grow(view: View, request: FormRequest) -> Result:
    """Adds processes to the pool of one consumer of the queue, or of each."""

    def make(form: Form) -> Command:
        queue = form.get("of_cluster", ""), str(view.params["name"])
        consumers = _consumers_by_queue(read_workers(view.store, queue[0])).get(queue, [])
        return command_of(
            GrowPool, form, workers=tuple(each for each in consumers if form.get("worker") in ("", None, each))
        )

    return perform_form(f"/queues/{_quoted(view)}", view, request, make)


def _add_consumer(name: str, form: Form) -> Command:
    return AddConsumer(cluster=form.get("of_cluster", ""), workers=(form.get("worker", ""),), queue=name)


def _form_of(command: type[QueueCommand]) -> Act:
    """The form of a command to a queue."""
    return action_on("/queues", "name", lambda name, form: command_of(command, form, queue=name))


def _quoted(view: View) -> str:
    return quote(str(view.params["name"]), safe="", errors="replace")


def read_rows(view: View, name: str | None = None) -> list[QueueRow]:
    """All queues, or those of this name, without their trends.

    Those without consumers come first, then growing ones, then by name, so that rows stay in place.
    """
    queues = [queue for queue in read_queues(view.store, view.cluster) if name in (None, queue.name)]
    since = view.now - RATE_SECONDS
    depths = read_depths(view.store, since=since, cluster=view.cluster)
    flows = read_flows(view.store, "queue", since=since, now=view.now, cluster=view.cluster)
    waits = read_waits(view.store, since=since, cluster=view.cluster)
    growing = read_growing_queues(view.store, view.cluster)
    pauses = read_pauses(view.store, view.cluster)
    consumers = _consumers_by_queue(read_workers(view.store, view.cluster))
    rows = [
        replace(
            _row(queue, depths, flows, view.now, growing),
            pause=pauses.get((queue.cluster, queue.name)),
            consumers=tuple(consumers.get((queue.cluster, queue.name), ())),
            wait=waits.get((queue.cluster, queue.name)),
        )
        for queue in queues
    ]
    return sorted(rows, key=lambda row: (not row.unattended, not row.growing, row.queue.name, row.queue.cluster))


def _row(
    queue: Queue,
    depths: dict[Key, list[QueueSample]],
    flows: Flows,
    now: float,
    growing: set[tuple[str, str]],
) -> QueueRow:
    samples = depths.get((queue.cluster, queue.name), [])
    flow = flows.of(queue.cluster, queue.name)
    out_rate = None if flow is None else flow.received / flows.seconds
    change = _change(queue, samples, now)
    return QueueRow(
        queue=queue,
        out_rate=out_rate,
        in_rate=None if out_rate is None or change is None else max(0.0, out_rate + change),
        drain_seconds=_drain(queue.ready, change),
        growing=grows(queue, samples, growing, now),
        unattended=unattended(queue),
    )


def _idle(view: View, rows: list[QueueRow]) -> dict[str, list[str]]:
    """By cluster, the first workers that are up and do not consume the queue."""
    consumers = {(row.queue.cluster, name) for row in rows for name in row.consumers}
    idle: dict[str, list[str]] = {row.queue.cluster: [] for row in rows}
    for worker in read_workers(view.store, view.cluster):
        up = worker.status is not WorkerStatus.OFFLINE
        if up and worker.cluster in idle and (worker.cluster, worker.hostname) not in consumers:
            idle[worker.cluster].append(worker.hostname)
            if len(idle[worker.cluster]) >= MOST_CHOICES:
                break
    return idle


def _with_trends(view: View, rows: Sequence[QueueRow]) -> list[QueueRow]:
    """The rows with the depth of the last hour, which only those that are shown need."""
    names = {row.queue.name for row in rows}
    depths = read_depths(view.store, since=view.now - TREND_SECONDS, cluster=view.cluster, names=names)
    return [
        replace(row, trend=sparkline([each.ready for each in depths.get((row.queue.cluster, row.queue.name), [])]))
        for row in rows
    ]


def _consumers_by_queue(workers: Iterable[Worker]) -> dict[Key, list[str]]:
    """The workers that are up, by cluster and queue."""
    found: dict[Key, list[str]] = {}
    for worker in workers:
        if worker.status is not WorkerStatus.OFFLINE:
            for queue in worker.queues or ():
                found.setdefault((worker.cluster, queue), []).append(worker.hostname)
    return found


def _change(queue: Queue, samples: list[QueueSample], now: float) -> float | None:
    """Change of the depth in messages per second over RATE_SECONDS."""
    recent = [sample for sample in samples if sample.ready is not None and sample.at >= now - RATE_SECONDS]
    if not recent or queue.ready is None or now - recent[0].at < 30:
        return None
    return (queue.ready - (recent[0].ready or 0)) / (now - recent[0].at)


def _drain(ready: int | None, change: float | None) -> float | None:
    return ready / -change if ready and change is not None and change < 0 else None


def _several(rows: list[QueueRow]) -> bool:
    return len({row.queue.cluster for row in rows}) > 1


PAGE = Page("/queues", "queues.html", context, title="Queues", nav="Queues", regions=("queues",), access=IN_PART)
QUEUE_PAGE = Page(
    "/queues/{name:name}",
    "queue.html",
    queue_context,
    title="Queue",
    regions=("queue", "charts", "names"),
    actions={
        **{verb_of(command): _form_of(command) for command in QUEUE_COMMANDS},
        verb_of(ReadQueue): read_messages,
        "grow": grow,
        "add-consumer": action_on("/queues", "name", _add_consumer),
    },
    script="charts.js",
    access=IN_PART,
)
