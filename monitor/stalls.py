"""Which workers and workflows may be stuck: judged by how long tasks of a name usually run. No I/O, no clock.

A worker whose pool hangs goes on to send heartbeats and to answer, so only its tasks tell. All of this is a guess.
"""

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Set
from typing import NamedTuple

from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.words import age_words
from monitor.words import counted
from monitor.words import number_words

LEAST_SECONDS = 3.0  # shorter than this nothing is unusual
TIMES_USUAL = 3.0  # longer than so many times what 99 of 100 took
LEAST_RUNS = 5  # fewer say nothing of what is usual


class HeldTask(NamedTuple):
    """A task that a worker has. Times are of our clock; ``started`` is ``None`` while it waits there."""

    cluster: str
    worker: str
    name: str | None
    since: float  # it was started, or could have been
    started: bool
    root_id: str | None = None
    id: str | None = None


class LongTask(NamedTuple):
    """A task in which a pool process has been far longer than tasks of its name usually run."""

    hostname: str
    name: str
    id: str | None
    seconds: float
    usual: float
    root_id: str | None = None


class Usual(NamedTuple):
    """How long tasks of a name run."""

    runs: int
    p99: float


class StalledWorker(NamedTuple):
    """A worker that may be stuck: the longest any of its tasks has run (``started``) or waited."""

    hostname: str
    seconds: float
    tasks: int
    started: bool
    usual: float | None = None
    at_least: bool = False  # there are more tasks than were counted


class SlowWorkflow(NamedTuple):
    """A workflow that waits for a task that runs unusually long, or (``usual`` is ``None``) nobody knows how long."""

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
        """Without those of these workers and workflows."""
        hostnames = {worker.hostname for worker in self.workers}
        roots = {each.root_id for each in self.workflows}
        return [task for task in self.tasks if task.hostname not in hostnames and task.root_id not in roots]


def stalled_workers(
    workers: Sequence[Worker],
    held: Sequence[HeldTask],
    usual: Mapping[str, Usual],
    now: float,
    more_waiting: Set[tuple[str, str]] = frozenset(),
) -> list[StalledWorker]:
    """Workers that are up, of which every task runs unusually long, and that have no room or start nothing.

    ``held`` has to hold all that the workers have started, for that is said of them; of those in ``more_waiting``,
    (cluster, hostname), more tasks wait than it holds.
    """
    by_worker: dict[tuple[str, str], list[HeldTask]] = defaultdict(list)
    for task in held:
        by_worker[task.cluster, task.worker].append(task)
    found = []
    for worker in workers:
        mine = by_worker.get((worker.cluster, worker.hostname), [])
        if worker.status is WorkerStatus.ONLINE and mine and (stalled := _stalled(worker, mine, usual, now)):
            more = not stalled.started and (worker.cluster, worker.hostname) in more_waiting
            found.append(stalled._replace(at_least=more))
    return sorted(found, key=lambda each: -each.seconds)


def slow_workflows(held: Sequence[HeldTask], usual: Mapping[str, Usual], now: float) -> list[SlowWorkflow]:
    """One for each root: its task that has run longest."""
    found: dict[str, SlowWorkflow] = {}
    for task in sorted(held, key=lambda each: -each.since):
        seconds = now - task.since
        known = _usual(usual, task.name)
        unusual = _overlong(task, usual, now) or (known is None and seconds > LEAST_SECONDS)
        if task.root_id is not None and task.started and unusual:
            p99 = known.p99 if known else None
            found[task.root_id] = SlowWorkflow(task.root_id, task.name, seconds, p99, task.worker)
    return sorted(found.values(), key=lambda each: (each.usual is None, -each.seconds))


def long_tasks(held: Sequence[HeldTask], usual: Mapping[str, Usual], now: float) -> list[LongTask]:
    """The longest first."""
    found = [
        LongTask(task.worker, task.name, task.id, now - task.since, known.p99, task.root_id)
        for task in held
        if task.started and task.name and _overlong(task, usual, now) and (known := _usual(usual, task.name))
    ]
    return sorted(found, key=lambda each: -each.seconds)


def may_be_busy(worker: Worker) -> bool:
    """A solo pool neither beats nor answers while it runs a task, and its events of that wait until it ends."""
    return worker.pool == "solo" and worker.status is WorkerStatus.SILENT


def stalled_words(stalled: StalledWorker) -> str:
    """Why a worker may be stuck."""
    seconds = age_words(stalled.seconds)
    if not stalled.started:
        waits = counted(stalled.tasks, "task it has taken waits", "tasks it has taken wait")
        waits = f"at least {waits}" if stalled.at_least else waits
        return f"{stalled.hostname} may be stuck: {waits}, one for {seconds}, and none is started."
    all_run = "its only task has run" if stalled.tasks == 1 else f"all {number_words(stalled.tasks)} tasks it runs have"
    ran = f"{all_run} for {seconds}" if stalled.tasks == 1 else f"{all_run} run unusually long, one for {seconds}"
    return f"{stalled.hostname} may be stuck: {ran}{usual_words(stalled.usual)}."


def usual_words(p99: float | None) -> str:
    """``; usually 0.3 s at most``; nothing where that is unknown."""
    if p99 is None:
        return ""
    seconds = f"{max(0.1, p99):.1f} s" if p99 < 10 else age_words(p99)
    return f"; usually {seconds} at most"


def _stalled(worker: Worker, held: Sequence[HeldTask], usual: Mapping[str, Usual], now: float) -> StalledWorker | None:
    running = [task for task in held if task.started]
    waiting = [task for task in held if not task.started and now - task.since > LEAST_SECONDS]
    if (worker.active or 0) > len(running) or not all(_overlong(task, usual, now) for task in running):
        return None  # its heartbeat may tell of tasks that we never heard of
    full = worker.pool_size is not None and min(len(running), worker.active or 0) >= worker.pool_size > 0
    if running and (full or waiting):
        oldest = min(running, key=lambda task: task.since)
        known = _usual(usual, oldest.name)
        return StalledWorker(worker.hostname, now - oldest.since, len(running), True, known.p99 if known else None)
    if waiting:
        return StalledWorker(worker.hostname, now - min(task.since for task in waiting), len(waiting), False)
    return None


def _overlong(task: HeldTask, usual: Mapping[str, Usual], now: float) -> bool:
    known = _usual(usual, task.name)
    return known is not None and now - task.since > max(LEAST_SECONDS, TIMES_USUAL * known.p99)


def _usual(usual: Mapping[str, Usual], name: str | None) -> Usual | None:
    known = usual.get(name) if name is not None else None
    return known if known is not None and known.runs >= LEAST_RUNS else None
