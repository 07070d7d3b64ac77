"""The tree of a workflow, from its tasks' parents, and which workers, tasks and workflows may be stuck.

Events have a task's parent and root, but not its group or what a chord waits for. A worker whose pool hangs still sends
heartbeats and answers, so only its tasks show that. What is stuck is a guess, from the usual run times of task names.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from celery_monitor.core.words import age_words, counted, number_words
from celery_monitor.records.task import Step, TaskState, WorkflowState
from celery_monitor.records.worker import Worker, WorkerStatus

FEW = 5  # children of one name that are shown one by one
MOST_ROWS = 500
PAGE_ROWS = 100


class Row(NamedTuple):
    """A line of the tree: one task, or a bundle of all tasks of one name under one parent."""

    depth: int
    step: Step  # of a bundle, the first
    tasks: int
    states: Counter[TaskState | None]
    begins: float | None
    ends: float | None
    bundle: bool = False
    opened: bool = False
    critical: bool = False
    detached: bool = False  # its parent is not in the record


class Opened(NamedTuple):
    """The bundle that is unfolded, and the index of its first shown task."""

    parent: str
    name: str
    start: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """Steps by id, and their children in order of arrival."""

    root: Step
    steps: dict[str, Step]
    children: dict[str, list[str]]
    detached: frozenset[str]
    below: dict[str, Counter[TaskState | None]]  # tasks by state in each subtree, including its root

    @property
    def unfinished(self) -> list[Step]:
        return [step for step in self.steps.values() if step.state is not None and not step.state.finished]

    @property
    def span(self) -> tuple[float, float] | None:
        """The times of the first and the last event."""
        times = [at for step in self.steps.values() for at in times_of(step)]
        return (min(times), max(times)) if times else None

    def path_to(self, step_id: str) -> list[Step]:
        """The steps from the root to this one."""
        parents = {child: parent for parent, children in self.children.items() for child in children}
        path = [step_id]
        while path[-1] in parents:
            path.append(parents[path[-1]])
        return [self.steps[each] for each in reversed(path)]


_DECIDING: tuple[tuple[WorkflowState, frozenset[TaskState]], ...] = (
    (WorkflowState.RUNNING, frozenset({TaskState.STARTED})),
    (
        WorkflowState.WAITING,
        frozenset({TaskState.PENDING, TaskState.SCHEDULED, TaskState.RECEIVED, TaskState.RETRY}),
    ),
    (WorkflowState.LOST, frozenset({TaskState.LOST})),
    (WorkflowState.FAILED, frozenset({TaskState.FAILURE})),
    (WorkflowState.REJECTED, frozenset({TaskState.REJECTED})),
    (WorkflowState.REVOKED, frozenset({TaskState.REVOKED})),
    (WorkflowState.SUCCEEDED, frozenset({TaskState.SUCCESS})),
)


def state_of(states: Iterable[TaskState | None]) -> WorkflowState | None:
    """The state of a workflow from those of its tasks: unfinished states first, then the worst end.

    ``None`` is a task that is not recorded, and the result if no task is.
    """
    present = set(states)
    return next((word for word, deciding in _DECIDING if present & deciding), None)


def build(steps: Sequence[Step]) -> Tree:
    """The tree; the first step is its root. A step without a recorded parent, or in a cycle, is put under the root."""
    root = steps[0]
    by_id = {step.id: step for step in steps}
    children: dict[str, list[str]] = {}
    detached = set()
    for step in steps[1:]:
        parent = step.parent_id if step.parent_id in by_id and step.parent_id != step.id else None
        if parent is None:
            detached.add(step.id)
        children.setdefault(parent or root.id, []).append(step.id)
    reached = set(_reached(root.id, children))
    for step_id in [each for each in by_id if each not in reached]:  # in a cycle
        parent_id = by_id[step_id].parent_id
        if parent_id is not None and step_id in children.get(parent_id, ()):
            children[parent_id].remove(step_id)
        children.setdefault(root.id, []).append(step_id)
        detached.add(step_id)
    order = _reached(root.id, children)
    return Tree(root, by_id, children, frozenset(detached), _below(order, by_id, children))


def critical_path(tree: Tree) -> list[Step]:
    """The path to the unfinished task without events for longest; in a finished workflow, to the last end."""
    unfinished = [step for step in tree.unfinished if times_of(step)]
    if unfinished:
        return tree.path_to(min(unfinished, key=lambda step: max(times_of(step))).id)
    ended = [step for step in tree.steps.values() if step.ended is not None]
    return tree.path_to(max(ended, key=lambda step: step.ended or 0.0).id) if ended else []


def waiting_for(tree: Tree) -> list[tuple[TaskState, str | None, str | None, int]]:
    """Unfinished tasks by state, name and the queue in which they wait, the most first."""
    counts = Counter((step.state, step.name, _waits_in(step)) for step in tree.unfinished)
    return [(state, name, queue, n) for (state, name, queue), n in counts.most_common() if state is not None]


def _waits_in(step: Step) -> str | None:
    """The queue of a waiting task; a running or scheduled task is in none."""
    return step.queue if step.state in {TaskState.PENDING, TaskState.RETRY, TaskState.RECEIVED} else None


def tree_rows(tree: Tree, opened: Opened | None = None, critical: AbstractSet[str] = frozenset()) -> list[Row]:
    """The lines of the tree; more than FEW children of one name become a bundle."""
    found: list[Row] = []
    stack: list[tuple[int, Row | None, str]] = [(0, None, tree.root.id)]
    while stack and len(found) < MOST_ROWS:
        depth, bundle, step_id = stack.pop()
        if bundle is not None:
            found.append(bundle)
            continue
        found.append(_line(tree, step_id, depth, critical))
        below: list[tuple[int, Row | None, str]] = []
        for name, ids in _by_name(tree, step_id).items():
            if len(ids) <= FEW:
                below += [(depth + 1, None, each) for each in ids]
                continue
            here = opened is not None and (opened.parent, opened.name) == (step_id, name or "")
            below.append((depth + 1, _bundle(tree, ids, depth + 1, critical, opened=here), ""))
            if here and opened is not None:
                below += [(depth + 2, None, each) for each in ids[opened.start : opened.start + PAGE_ROWS]]
        stack += reversed(below)
    return found


def rows_to(tree: Tree, wanted: Iterable[str], critical: AbstractSet[str] = frozenset()) -> list[Row]:
    """The lines of these tasks and of their ancestors, without bundles."""
    parents = {child: parent for parent, children in tree.children.items() for child in children}
    kept: set[str] = set()
    for each in wanted:
        at: str | None = each if each in tree.steps else None
        while at is not None and at not in kept:
            kept.add(at)
            at = parents.get(at)
    found: list[Row] = []
    stack = [(0, tree.root.id)]
    while stack and len(found) < MOST_ROWS:
        depth, step_id = stack.pop()
        if step_id in kept:
            found.append(_line(tree, step_id, depth, critical))
            stack += [(depth + 1, each) for each in reversed(tree.children.get(step_id, []))]
    return found


def times_of(step: Step) -> list[float]:
    """The times of its events; an ETA is none."""
    return [at for at in (step.sent, step.received, step.started, step.ended) if at is not None]


def _line(tree: Tree, step_id: str, depth: int, critical: AbstractSet[str]) -> Row:
    step, below = tree.steps[step_id], tree.below[step_id]
    times = times_of(step)
    first, last = (min(times), max(times)) if times else (None, None)
    inside = step_id in critical
    return Row(depth, step, sum(below.values()), below, first, last, critical=inside, detached=step_id in tree.detached)


def _bundle(tree: Tree, ids: list[str], depth: int, critical: AbstractSet[str], *, opened: bool) -> Row:
    states: Counter[TaskState | None] = Counter(tree.steps[each].state for each in ids)
    times = [at for each in ids for at in times_of(tree.steps[each])]
    first, last = (min(times), max(times)) if times else (None, None)
    inside = not critical.isdisjoint(ids)
    return Row(depth, tree.steps[ids[0]], len(ids), states, first, last, bundle=True, opened=opened, critical=inside)


def _by_name(tree: Tree, step_id: str) -> dict[str | None, list[str]]:
    names: dict[str | None, list[str]] = {}
    for each in tree.children.get(step_id, []):
        names.setdefault(tree.steps[each].name, []).append(each)
    return names


def _reached(root_id: str, children: dict[str, list[str]]) -> list[str]:
    """All descendants of the root, each after its parent."""
    order = []
    stack = [root_id]
    while stack:
        at = stack.pop()
        order.append(at)
        stack += children.get(at, [])
    return order


def _below(
    order: list[str], steps: dict[str, Step], children: dict[str, list[str]]
) -> dict[str, Counter[TaskState | None]]:
    below: dict[str, Counter[TaskState | None]] = {}
    leaves = {state: Counter([state]) for state in {step.state for step in steps.values()}}  # shared, as most are equal
    for each in reversed(order):
        state = steps[each].state
        if each not in children:
            below[each] = leaves[state]
            continue
        counts: Counter[TaskState | None] = Counter([state])
        for child in children[each]:
            if child in children:
                counts.update(below[child])
            else:
                counts[steps[child].state] += 1
        below[each] = counts
    return below


LEAST_SECONDS = 3.0  # nothing shorter is unusual
TIMES_USUAL = 3.0  # times the 99th percentile is unusual
LEAST_RUNS = 5  # needed for a usual run time


class ActiveTask(NamedTuple):
    """A task that a worker has. Times are by our clock; ``started`` is False while it waits there."""

    cluster: str
    worker: str
    name: str | None
    since: float  # when it was started, or could have been
    started: bool
    root_id: str | None = None
    id: str | None = None


class LongTask(NamedTuple):
    """A task that has been running far longer than tasks of its name usually do."""

    hostname: str
    name: str
    id: str | None
    seconds: float
    usual: float
    root_id: str | None = None


class Usual(NamedTuple):
    """The usual run time of a task name, in seconds."""

    runs: int
    p99: float


class StalledWorker(NamedTuple):
    """A worker that may be stuck; ``seconds`` is the longest that one of its tasks has run (``started``) or waited."""

    hostname: str
    seconds: float
    tasks: int
    started: bool
    usual: float | None = None
    at_least: bool = False  # there are more tasks than were counted


class SlowWorkflow(NamedTuple):
    """A workflow that waits for a task with an unusual, or (``usual`` is ``None``) unknown, run time."""

    root_id: str
    name: str | None
    seconds: float
    usual: float | None
    worker: str | None = None


class Stalls(NamedTuple):
    """What may be stuck, the longest first."""

    workers: Sequence[StalledWorker] = ()
    workflows: Sequence[SlowWorkflow] = ()
    tasks: Sequence[LongTask] = ()

    @property
    def other_tasks(self) -> list[LongTask]:
        """The tasks that are not part of these workers or workflows."""
        hostnames = {worker.hostname for worker in self.workers}
        roots = {each.root_id for each in self.workflows}
        return [task for task in self.tasks if task.hostname not in hostnames and task.root_id not in roots]


def stalled_workers(
    workers: Sequence[Worker],
    active: Sequence[ActiveTask],
    usual: Mapping[str, Usual],
    now: float,
    more_waiting: Set[tuple[str, str]] = frozenset(),
) -> list[StalledWorker]:
    """Online workers whose running tasks all take unusually long, and that are full or start nothing.

    ``active`` has to contain all tasks that the workers have started. Workers in ``more_waiting``, (cluster, hostname),
    have more waiting tasks than it contains.
    """
    by_worker: dict[tuple[str, str], list[ActiveTask]] = defaultdict(list)
    for task in active:
        by_worker[task.cluster, task.worker].append(task)
    found = []
    for worker in workers:
        tasks = by_worker.get((worker.cluster, worker.hostname), [])
        if worker.status is WorkerStatus.ONLINE and tasks and (stalled := _stalled(worker, tasks, usual, now)):
            more = not stalled.started and (worker.cluster, worker.hostname) in more_waiting
            found.append(stalled._replace(at_least=more))
    return sorted(found, key=lambda each: -each.seconds)


def slow_workflows(active: Sequence[ActiveTask], usual: Mapping[str, Usual], now: float) -> list[SlowWorkflow]:
    """Slow workflows, with the task of each that has been running longest."""
    found: dict[str, SlowWorkflow] = {}
    for task in sorted(_running_long(active, now), key=lambda each: -each.since):
        known = _usual(usual, task.name)
        if task.root_id is not None and (known is None or _overlong(task, usual, now)):
            p99 = known.p99 if known else None
            found[task.root_id] = SlowWorkflow(task.root_id, task.name, now - task.since, p99, task.worker)
    return sorted(found.values(), key=lambda each: (each.usual is None, -each.seconds))


def long_tasks(active: Sequence[ActiveTask], usual: Mapping[str, Usual], now: float) -> list[LongTask]:
    """The longest first."""
    found = [
        LongTask(task.worker, task.name, task.id, now - task.since, known.p99, task.root_id)
        for task in _running_long(active, now)
        if task.name and _overlong(task, usual, now) and (known := _usual(usual, task.name))
    ]
    return sorted(found, key=lambda each: -each.seconds)


def _running_long(active: Sequence[ActiveTask], now: float) -> list[ActiveTask]:
    """The started tasks that may be slow: a younger one is not, however short it usually is."""
    return [task for task in active if task.started and now - task.since > LEAST_SECONDS]


def may_be_busy(worker: Worker) -> bool:
    """Whether a silent worker is probably busy: a solo pool sends nothing while it runs a task."""
    return worker.pool == "solo" and worker.status is WorkerStatus.SILENT


def stalled_words(stalled: StalledWorker) -> str:
    """The reason why a worker may be stuck."""
    seconds = age_words(stalled.seconds)
    if not stalled.started:
        received = counted(stalled.tasks, "received task")
        received = f"at least {received}" if stalled.at_least else received
        return f"{stalled.hostname} may be stuck: {received} not started, the longest for {seconds}."
    running = f"its only task has been running for {seconds}"
    if stalled.tasks > 1:
        running = f"all {number_words(stalled.tasks)} running tasks take unusually long, the longest {seconds}"
    return f"{stalled.hostname} may be stuck: {running}{usual_words(stalled.usual)}."


def usual_words(p99: float | None) -> str:
    """``; usually 0.3 s at most``; nothing where that is unknown."""
    if p99 is None:
        return ""
    seconds = f"{max(0.1, p99):.1f} s" if p99 < 10 else age_words(p99)
    return f"; usually {seconds} at most"


def _stalled(
    worker: Worker, tasks: Sequence[ActiveTask], usual: Mapping[str, Usual], now: float
) -> StalledWorker | None:
    running = [task for task in tasks if task.started]
    waiting = [task for task in tasks if not task.started and now - task.since > LEAST_SECONDS]
    if (worker.active or 0) > len(running) or not all(_overlong(task, usual, now) for task in running):
        return None  # its heartbeat may count tasks without events
    full = worker.pool_size is not None and min(len(running), worker.active or 0) >= worker.pool_size > 0
    if running and (full or waiting):
        oldest = min(running, key=lambda task: task.since)
        known = _usual(usual, oldest.name)
        return StalledWorker(worker.hostname, now - oldest.since, len(running), True, known.p99 if known else None)
    if waiting:
        return StalledWorker(worker.hostname, now - min(task.since for task in waiting), len(waiting), False)
    return None


def _overlong(task: ActiveTask, usual: Mapping[str, Usual], now: float) -> bool:
    known = _usual(usual, task.name)
    return known is not None and now - task.since > max(LEAST_SECONDS, TIMES_USUAL * known.p99)


def _usual(usual: Mapping[str, Usual], name: str | None) -> Usual | None:
    known = usual.get(name) if name is not None else None
    return known if known is not None and known.runs >= LEAST_RUNS else None
