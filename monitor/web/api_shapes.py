"""What the JSON API answers. Every key is always there; times are epoch seconds; unknown is null."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import Literal
from typing import TypeVar

from msgspec import Struct

from monitor.control.known import Known
from monitor.fidelity import Fidelity
from monitor.fidelity import without_secrets
from monitor.messages import Unreadable
from monitor.messages import facts
from monitor.messages import stamps_of
from monitor.records import BeatHealth
from monitor.records import BeatSource
from monitor.records import Count
from monitor.records import FailureState
from monitor.records import FailureSummary
from monitor.records import FailureTrend
from monitor.records import Gap
from monitor.records import Job
from monitor.records import JobOutcome
from monitor.records import JobState
from monitor.records import Lineage
from monitor.records import Message
from monitor.records import Outcome
from monitor.records import Page
from monitor.records import Percentiles
from monitor.records import ReceiverHealth
from monitor.records import Series
from monitor.records import Task
from monitor.records import TaskState
from monitor.records import WorkerStatus
from monitor.records import WorkflowSummary
from monitor.redact import Redactor
from monitor.schedule import in_words
from monitor.store.timetable import Scheduled
from monitor.workflow import Tree
from monitor.workflow import critical_path
from monitor.workflow import waiting_for

SCHEDULED_RUNS = 50


class TaskItem(Struct, frozen=True, kw_only=True):
    """One task in a list."""

    id: str
    cluster: str
    name: str | None
    state: TaskState
    queue: str | None
    worker: str | None
    args: str | None
    kwargs: str | None
    result: str | None
    exception: str | None
    traceback: str | None
    retries: int | None
    eta: float | None
    expires: float | None
    sent: float | None
    received: float | None
    started: float | None
    finished: float | None
    runtime: float | None
    wait: float | None
    root_id: str | None
    parent_id: str | None
    failure_group: int | None


class RunItem(Struct, frozen=True, kw_only=True):
    """One attempt of a task on one worker."""

    worker: str | None
    pid: int | None
    retries: int | None
    outcome: Outcome | None
    received: float | None
    started: float | None
    ended: float | None
    eta: float | None
    runtime: float | None
    wait: float | None
    result: str | None
    exception: str | None
    traceback: str | None


class ArgumentsItem(Struct, frozen=True, kw_only=True):
    """What a retry would send, how surely it is what was sent, and where it is known from."""

    args: list[Any] | None
    kwargs: dict[str, Any] | None
    fidelity: Fidelity
    source: str | None
    reason: str


class MessageItem(Struct, frozen=True, kw_only=True):
    """What a task's message tells beside the events. Its body is not shown."""

    name: str | None
    content_type: str | None
    size: int
    priority: int | None
    exchange: str | None
    routing_key: str | None
    group: str | None
    group_index: int | None
    chord: str | None
    # Null where the body is not opened here, and no worker has told.
    chain: int | None
    callbacks: int | None
    errbacks: int | None
    stamps: dict[str, Any]
    beat: str | None


class TaskDetail(TaskItem, frozen=True, kw_only=True):
    """All that is known of one task."""

    runs: list[RunItem]
    arguments: ArgumentsItem
    message: MessageItem | None
    retry_of: str | None
    retried_as: list[str]
    learnt: float | None  # when the receiver learnt of it by asking: no event told that it was sent or received


class TaskPage(Struct, frozen=True, kw_only=True):
    """Tasks that match; ``next`` goes on where they end."""

    items: list[TaskItem]
    next: str | None
    count: Count | None
    searched: Count | None  # not null: only so many of the newest were searched; next goes on


class Retried(Struct, frozen=True, kw_only=True):
    """The new task, and how surely it has the old one's arguments."""

    id: str
    fidelity: Fidelity | None
    outcome: Literal["done", "unconfirmed"]
    message: str


class FoundMessage(Struct, frozen=True, kw_only=True):
    """It was found, and is kept like a captured one."""

    message: str


class Revoked(Struct, frozen=True, kw_only=True):
    """``unconfirmed``: it was sent, and not every worker that should have answered did."""

    outcome: Literal["done", "unconfirmed"]
    message: str


class WorkerItem(Struct, frozen=True, kw_only=True):
    """One worker; nulls until it was asked. Times are of our clock, ``skew`` is ours minus the worker's."""

    hostname: str
    cluster: str
    status: WorkerStatus
    pid: int | None
    first_seen: float | None
    last_heartbeat: float | None
    offline_at: float | None
    freq: float | None
    skew: float | None
    active: int | None
    processed: int | None
    loadavg: tuple[float, ...] | None
    sw_ident: str | None
    sw_ver: str | None
    sw_sys: str | None
    queues: tuple[str, ...] | None
    pool: str | None
    pool_size: int | None
    prefetch: int | None
    events_enabled: bool | None


class WorkerList(Struct, frozen=True):
    """Every worker."""

    items: list[WorkerItem]


class PauseItem(Struct, frozen=True, kw_only=True):
    """Who paused a queue, since when, and which workers take from it again when it is resumed."""

    by: str
    at: float
    workers: tuple[str, ...]
    reason: str | None


class QueueItem(Struct, frozen=True, kw_only=True):
    """One queue as last measured; null is what its broker cannot tell.

    ``wait`` is how many seconds the tasks waited that workers started in the last five minutes; null: none was seen.
    """

    name: str
    cluster: str
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None
    sampled_at: float | None
    workers: tuple[str, ...]
    wait: Percentiles | None
    paused: PauseItem | None


class QueueList(Struct, frozen=True):
    """Every queue."""

    items: list[QueueItem]


class FailureItem(Struct, frozen=True, kw_only=True):
    """Failures of one kind; ``count``, ``workers`` and ``trend`` are of the asked span, in equal steps."""

    id: int
    cluster: str
    name: str | None
    exception_type: str
    message: str
    frame: str | None
    state: FailureState
    state_at: float | None
    first_seen: float
    last_seen: float
    count: int
    count_hour: int
    count_day: int
    count_week: int
    workers: int
    trend: tuple[int, ...]


class WorkerShare(Struct, frozen=True):
    """Failures on one worker; null where it is not known."""

    worker: str | None
    count: int


class FailureDetail(FailureItem, frozen=True, kw_only=True):
    """One kind of failure. ``count_all`` is since it was first seen; the sample is the latest task that is kept."""

    count_all: int
    step: int
    by_worker: list[WorkerShare]
    sample: TaskItem | None


class FailureChanged(Struct, frozen=True, kw_only=True):
    """The state that the group has now."""

    id: int
    state: FailureState
    message: str


class FailureList(Struct, frozen=True):
    """Kinds of failure, the most frequent first."""

    items: list[FailureItem]


class StepItem(Struct, frozen=True, kw_only=True):
    """One task of a workflow; a null state: it is named as root or parent, and not in the record."""

    id: str
    parent_id: str | None
    name: str | None
    state: TaskState | None
    queue: str | None
    worker: str | None
    sent: float | None
    received: float | None
    started: float | None
    ended: float | None
    eta: float | None


class Waiting(Struct, frozen=True, kw_only=True):
    """Unfinished tasks of one state, name and queue."""

    state: TaskState
    name: str | None
    queue: str | None
    count: int


class WorkflowDetail(Struct, frozen=True, kw_only=True):
    """A root task and all under it. What a chord waits for, events do not tell; ``complete``: no task is left out."""

    root_id: str
    cluster: str
    began: float | None
    last_seen: float | None
    states: dict[str, int]
    waiting_for: list[Waiting]
    critical_path: list[str]
    items: list[StepItem]
    complete: bool


class WorkflowItem(Struct, frozen=True, kw_only=True):
    """A root task with how many tasks of each state stand under it, itself included."""

    root: StepItem
    cluster: str
    states: dict[str, int]
    tasks: int
    last_seen: float
    unended: int
    waits_for: str | None
    waits_for_tasks: int


class WorkflowPage(Struct, frozen=True, kw_only=True):
    """Workflows among the newest tasks; ``next`` goes on where they end."""

    items: list[WorkflowItem]
    next: str | None


class ScheduledRunItem(Struct, frozen=True, kw_only=True):
    """A task that was sent for an entry."""

    id: str
    at: float
    by_receipt: bool
    state: TaskState


class ScheduleItem(Struct, frozen=True, kw_only=True):
    """Something that beat sends. Null is unknown; ``sure``: its runs are beat's by their sender, not by name alone.

    ``may_wait_in`` is a queue with messages among which an overdue one may be: then it is not said that beat missed it.
    ``missed`` are the times at which it was due and nothing was sent; they, ``late`` and ``drift`` are since ``since``.
    ``by_receipt``: of some runs it is only known when a worker took them, not when they were sent. What waited in a
    queue looks missed then, so ``missed`` is a guess; ``late`` and ``drift`` are of what is known to be sent alone.
    Where the receiver does not run or is behind, ``known_until`` is the moment since which nobody knows what was sent
    (0: always); then ``overdue`` is null, and ``next`` may have passed.
    """

    name: str
    cluster: str
    task: str
    schedule: str
    words: str | None
    every: float | None
    timezone: str | None
    args: str
    kwargs: str
    queue: str | None
    source: BeatSource
    heard_at: float
    enabled: bool
    once_at: float | None
    starts: float | None
    total: int | None
    last_at: float | None
    last: ScheduledRunItem | None
    next: float | None
    overdue: float | None
    may_wait_in: str | None
    drift: float | None
    missed: tuple[float, ...] | None
    late: int | None
    runs: list[ScheduledRunItem]
    sure: bool
    since: float
    by_receipt: bool
    known_until: float | None


class ScheduleList(Struct, frozen=True):
    """Every entry that is known; ``unheard`` are clusters whose schedule nobody has told yet, ``beats`` what is known
    of each cluster's beat."""

    items: list[ScheduleItem]
    unheard: list[str]
    beats: list[BeatHealth]


class ScheduledSent(Struct, frozen=True, kw_only=True):
    """The task that was sent."""

    id: str
    message: str


class ActionItem(Struct, frozen=True, kw_only=True):
    """Who did what, to what, why, and what came of it."""

    id: int | None
    at: float
    actor: str
    action: str
    cluster: str | None
    target: str | None
    query: str | None
    count: int | None
    reason: str | None
    parameters: dict[str, Any]
    outcome: str
    message: str | None


class ActionPage(Struct, frozen=True, kw_only=True):
    """Actions; ``next`` goes on where they end."""

    items: list[ActionItem]
    next: str | None


class ReconciliationItem(Struct, frozen=True, kw_only=True):
    """What was found out after a gap about tasks that had not ended: ``asked`` is the sum of the five that follow."""

    began: float
    ended: float | None
    asked: int
    backend: int
    workers: int
    queue: int
    lost: int
    unknown: int
    learnt_from_workers: int
    learnt_from_queues: int
    complete: bool
    together_with: float | None


class GapItem(Struct, frozen=True, kw_only=True):
    """A span in which events may have been missed; ``reconciliation`` is null until it begins."""

    began: float
    ended: float | None
    cause: str
    dropped: int | None
    reconciliation: ReconciliationItem | None


class StandbyItem(Struct, frozen=True, kw_only=True):
    """A receiver that takes over when the one that writes dies."""

    host: str
    pid: int
    since: float
    listening: bool


class ShardItem(Struct, frozen=True, kw_only=True):
    """One of the receivers that share the tasks of a cluster; nulls where it never ran."""

    shard: int
    connected: bool | None
    error: str | None
    lag_seconds: float | None
    events_total: int | None
    dropped_total: int | None
    host: str | None
    pid: int | None
    updated_at: float | None


class HealthItem(Struct, frozen=True, kw_only=True):
    """The receiver of one cluster; nulls until it has said something of itself.

    Where several share its tasks, ``shards`` has each of them, and the rest tells of all together.
    """

    cluster: str
    connected: bool | None
    source: str | None
    error: str | None
    last_event_at: float | None
    lag_seconds: float | None
    events_total: int | None
    dropped_total: int | None
    malformed_total: int | None
    unknown_total: int | None
    host: str | None
    pid: int | None
    updated_at: float | None
    notices: tuple[str, ...]
    gaps: list[GapItem]
    standbys: list[StandbyItem]
    shards: list[ShardItem]


class HealthList(Struct, frozen=True):
    """Every receiver."""

    items: list[HealthItem]


class BucketItem(Struct, frozen=True, kw_only=True):
    """What happened from ``at`` on, for ``resolution`` seconds; null percentiles where nothing was measured."""

    at: float
    received: int
    started: int
    succeeded: int
    failed: int
    retried: int
    revoked: int
    rejected: int
    lost: int
    wait: Percentiles | None
    run: Percentiles | None


class DepthItem(Struct, frozen=True, kw_only=True):
    """A queue, or all together, at one time."""

    at: float
    ready: int | None
    unacked: int | None
    consumers: int | None
    oldest: float | None


class SeriesItem(Struct, frozen=True, kw_only=True):
    """The course of things. Within a gap the numbers are too small."""

    since: float
    until: float
    resolution: int
    buckets: list[BucketItem]
    gaps: list[GapItem]
    depth: list[DepthItem]


class ClusterItem(Struct, frozen=True):
    """One cluster."""

    name: str


class ClusterList(Struct, frozen=True):
    """Every cluster."""

    items: list[ClusterItem]


Shape = TypeVar("Shape", bound=Struct)


def shape(kind: type[Shape], record: object, **more: object) -> Shape:
    """A record as the API shows it: the fields of ``kind``, by name."""
    fields: dict[str, Any] = {name: getattr(record, name) for name in kind.__struct_fields__ if name not in more}
    return kind(**fields, **more)


def shapes(kind: type[Shape], records: Iterable[object]) -> list[Shape]:
    return [shape(kind, record) for record in records]


def task_item(task: Task) -> TaskItem:
    return shape(TaskItem, task)


def task_page(page: Page[Task]) -> TaskPage:
    return TaskPage(items=shapes(TaskItem, page.items), next=page.next, count=page.count, searched=page.searched)


def message_item(message: Message | None, redactor: Redactor) -> MessageItem | None:
    try:
        known = facts(message) if message is not None else None
    except Unreadable:
        return None
    if message is None or known is None:
        return None
    return MessageItem(
        name=known.name,
        content_type=message.content_type,
        size=message.size,
        priority=known.priority,
        exchange=message.exchange,
        routing_key=message.routing_key,
        group=known.group,
        group_index=known.group_index,
        chord=message.chord,
        chain=message.chain if message.links else None,
        callbacks=message.callbacks if message.links else None,
        errbacks=message.errbacks if message.links else None,
        stamps=stamps_of(known, redactor),
        beat=known.beat,
    )


def task_detail(task: Task, lineage: Lineage, found: Known, redactor: Redactor) -> TaskDetail:
    known = without_secrets(found.arguments, redactor)
    arguments = ArgumentsItem(
        args=known.args_value,
        kwargs=known.kwargs_value,
        fidelity=known.fidelity,
        source=known.source,
        reason=known.reason,
    )
    return shape(
        TaskDetail,
        task,
        runs=shapes(RunItem, task.runs),
        arguments=arguments,
        message=message_item(found.message, redactor),
        retry_of=lineage.retry_of,
        retried_as=[link.id for link in lineage.retried_as],
    )


def _failure_fields(summary: FailureSummary) -> dict[str, Any]:
    windows = summary.windows
    return {
        "count_hour": windows.hour,
        "count_day": windows.day,
        "count_week": windows.week,
        "workers": windows.workers,
        "trend": windows.trend,
    }


def failure_item(summary: FailureSummary) -> FailureItem:
    return shape(FailureItem, summary.group, **_failure_fields(summary))


def failure_detail(summary: FailureSummary, trend: FailureTrend, sample: Task | None) -> FailureDetail:
    return shape(
        FailureDetail,
        summary.group,
        **_failure_fields(summary) | {"trend": trend.counts, "count": sum(trend.counts)},
        count_all=summary.group.count,
        step=trend.step,
        by_worker=[WorkerShare(worker, count) for worker, count in trend.by_worker],
        sample=task_item(sample) if sample is not None else None,
    )


def _states(counts: Mapping[TaskState, int] | Mapping[TaskState | None, int]) -> dict[str, int]:
    return {"unknown" if state is None else state.value: count for state, count in counts.items()}


def workflow_page(page: Page[WorkflowSummary]) -> WorkflowPage:
    items = [
        shape(WorkflowItem, each, root=shape(StepItem, each.root), states=_states(each.states)) for each in page.items
    ]
    return WorkflowPage(items=items, next=page.next)


def workflow_detail(tree: Tree, cluster: str, *, complete: bool) -> WorkflowDetail:
    began, last = tree.span or (None, None)
    return WorkflowDetail(
        root_id=tree.root.id,
        cluster=cluster,
        began=began,
        last_seen=last,
        states=_states(tree.below[tree.root.id]),
        waiting_for=[Waiting(state=s, name=name, queue=queue, count=n) for s, name, queue, n in waiting_for(tree)],
        critical_path=[step.id for step in critical_path(tree)],
        items=shapes(StepItem, tree.steps.values()),
        complete=complete,
    )


def schedule_item(scheduled: Scheduled) -> ScheduleItem:
    entry, standing, known_until = scheduled
    return shape(
        ScheduleItem,
        entry,
        words=in_words(entry),
        last_at=standing.last_at,
        last=shape(ScheduledRunItem, standing.last) if standing.last is not None else None,
        runs=shapes(ScheduledRunItem, standing.runs[:SCHEDULED_RUNS]),
        next=standing.next,
        overdue=standing.overdue,
        may_wait_in=standing.may_wait_in,
        drift=standing.drift,
        missed=standing.missed,
        late=standing.late,
        sure=standing.sure,
        since=standing.since,
        by_receipt=standing.by_receipt,
        known_until=known_until,
    )


def series_item(series: Series) -> SeriesItem:
    return shape(
        SeriesItem,
        series,
        buckets=shapes(BucketItem, series.buckets),
        gaps=[gap_item(gap) for gap in series.gaps],
        depth=shapes(DepthItem, series.depth),
    )


def unknown_health(cluster: str) -> HealthItem:
    """A cluster whose receiver has never spoken."""
    fields: dict[str, Any] = dict.fromkeys(HealthItem.__struct_fields__)
    return HealthItem(**(fields | {"cluster": cluster, "notices": (), "gaps": [], "standbys": [], "shards": []}))


def gap_item(gap: Gap) -> GapItem:
    found = gap.reconciliation
    return shape(GapItem, gap, reconciliation=None if found is None else shape(ReconciliationItem, found))


def health_item(health: ReceiverHealth, gaps: Iterable[Gap], standbys: Iterable[object]) -> HealthItem:
    return shape(
        HealthItem,
        health,
        error=health.unwritten or health.error,
        gaps=[gap_item(gap) for gap in gaps],
        standbys=shapes(StandbyItem, standbys),
        shards=shapes(ShardItem, health.parts),
    )


class Fidelities(Struct, frozen=True, kw_only=True):
    """How surely the arguments of tasks are known."""

    exact: int
    probable: int
    unknown: int


class SampleItem(Struct, frozen=True, kw_only=True):
    """One task as it would be sent again."""

    id: str
    name: str
    args: str
    kwargs: str
    fidelity: str
    to: str


class PreviewItem(Struct, frozen=True, kw_only=True):
    """What would be done; ``id`` goes into the ``preview`` of the request that does it.

    ``count`` is exact. With ``estimated`` the other numbers are those of ``judged`` tasks, taken evenly from among all
    and multiplied. ``fidelity`` is null where nothing is sent again.
    """

    id: int
    action: Literal["retry", "revoke"]
    cluster: str
    q: str
    count: Count
    sendable: int
    judged: int
    estimated: bool
    fidelity: Fidelities | None
    skipped: dict[str, int]
    samples: list[SampleItem]
    warnings: list[str]


class JobReasonItem(Struct, frozen=True, kw_only=True):
    """How many tasks had this outcome for this reason."""

    outcome: JobOutcome
    reason: str
    count: int


class JobItem(Struct, frozen=True, kw_only=True):
    """A bulk action, and how far it is."""

    id: int
    action: Literal["retry", "revoke"]
    cluster: str
    q: str
    actor: str
    reason: str | None
    rate: float | None
    state: JobState
    count: int
    done: int
    skipped: int
    failed: int
    unconfirmed: int
    left: int
    started: float | None
    ended: float | None
    message: str | None
    reasons: list[JobReasonItem]


class JobList(Struct, frozen=True, kw_only=True):
    """Jobs that were started, the newest first."""

    items: list[JobItem]


class JobTaskItem(Struct, frozen=True, kw_only=True):
    """What came of one task of a job."""

    id: str
    outcome: JobOutcome
    reason: str | None
    new_id: str | None


class JobTaskPage(Struct, frozen=True, kw_only=True):
    """Tasks of a job, in the order in which they are taken."""

    items: list[JobTaskItem]
    next: str | None


def preview_item(job: Job) -> PreviewItem:
    preview = job.preview
    return PreviewItem(
        id=job.id,
        action=job.verb,
        cluster=job.cluster,
        q=job.query,
        count=Count(job.total),
        sendable=preview.sendable,
        judged=preview.judged,
        estimated=preview.estimated,
        fidelity=Fidelities(**preview.fidelity) if preview.fidelity else None,
        skipped=preview.skipped,
        samples=[SampleItem(**sample) for sample in preview.samples],
        warnings=preview.warnings,
    )


def job_item(job: Job) -> JobItem:
    return JobItem(
        id=job.id,
        action=job.verb,
        cluster=job.cluster,
        q=job.query,
        actor=job.actor,
        reason=job.reason,
        rate=job.rate,
        state=job.state,
        count=job.total,
        done=job.count(JobOutcome.DONE),
        skipped=job.count(JobOutcome.SKIPPED),
        failed=job.count(JobOutcome.FAILED),
        unconfirmed=job.count(JobOutcome.UNCONFIRMED),
        left=job.left,
        started=job.started,
        ended=job.ended,
        message=job.message,
        reasons=shapes(JobReasonItem, [each for each in job.reasons if each.reason]),
    )
