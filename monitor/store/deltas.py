"""What a change of tasks means for the counters: everything a task counts for, taken out as it was and put in as
it is now. So replaying an event counts nothing, and a late one moves what it must.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache

from monitor.failures import Signature
from monitor.failures import signature
from monitor.records import Outcome
from monitor.records import Run
from monitor.records import Task
from monitor.records import TaskState
from monitor.sketch import bucket

MINUTE = 60
OUTCOME_FIELDS = {
    Outcome.SUCCEEDED: 2,
    Outcome.FAILED: 3,
    Outcome.RETRIED: 4,
    Outcome.REVOKED: 5,
    Outcome.REJECTED: 6,
    Outcome.REQUEUED: 6,
    Outcome.LOST: 7,
}
COUNT_FIELDS = ("received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "lost")

signature_of = lru_cache(maxsize=2048)(signature)


Place = tuple[int, str | None, str | None, str | None]  # where in the rollups it counts: minute, name, queue, worker


class Tally:
    """Counts and durations that change at one place."""

    __slots__ = ("counts", "run", "since_receipt", "wait")

    def __init__(self) -> None:
        self.counts = [0] * len(COUNT_FIELDS)
        self.since_receipt = 0  # waits that are counted from receipt
        self.wait: dict[int, int] = defaultdict(int)
        self.run: dict[int, int] = defaultdict(int)

    @property
    def empty(self) -> bool:
        return not (any(self.counts) or self.since_receipt or any(self.wait.values()) or any(self.run.values()))


_NOWHERE = Tally()
_FAILED, _SUCCEEDED = Outcome.FAILED, Outcome.SUCCEEDED


class FailureTally:
    """How the count of one failure group changes, by minute and worker."""

    __slots__ = ("counts", "first", "last", "latest", "name", "signature", "variants")

    def __init__(self, name: str | None, signature: Signature) -> None:
        self.name = name
        self.signature = signature
        self.counts: dict[tuple[int, str | None], int] = {}
        self.variants: dict[str, int] = {}
        self.first = float("inf")
        self.last = 0.0
        self.latest = 0.0  # the last failure by our own clock: a worker's may be an hour behind


class Deltas:
    """The change of all counters in one batch. ``skews`` are seconds to add to a worker's clock to have ours."""

    def __init__(self, skews: Mapping[str, float] | None = None) -> None:
        self._skews = skews or {}
        self.tasks: dict[tuple[TaskState, str | None, str | None, str | None], int] = defaultdict(int)
        self.rollups: dict[Place, Tally] = defaultdict(Tally)
        self.failures: dict[bytes, FailureTally] = {}

    def take_out(self, task: Task) -> None:
        """Call before a stored task changes."""
        self._count(task, -1)

    def put_in(self, task: Task) -> None:
        """Call after it changed, or for a new one."""
        self._count(task, 1)

    def _count(self, task: Task, sign: int) -> None:
        shown = task.run
        worker = shown.worker if shown is not None else None
        self.tasks[task.state, task.name, task.queue, worker] += sign
        for run in task.runs:
            self._count_run(task, run, sign)

    def _count_run(self, task: Task, run: Run, sign: int) -> None:
        minute, tally = -MINUTE, _NOWHERE  # most runs are received, started and ended in one minute
        if run.received is not None:
            minute, tally = self._tally(task, run, run.received)
            tally.counts[0] += sign
        if run.started is not None:
            if not minute <= run.started < minute + MINUTE:
                minute, tally = self._tally(task, run, run.started)
            tally.counts[1] += sign
            wait = run.wait
            if wait is not None:
                tally.wait[bucket(wait)] += sign
                if run.ready is None and run.wait_since == "received":
                    tally.since_receipt += sign
        if run.ended is None or run.outcome is None:
            return
        if not minute <= run.ended < minute + MINUTE:
            minute, tally = self._tally(task, run, run.ended)
        field = OUTCOME_FIELDS.get(run.outcome)
        if field is not None:
            tally.counts[field] += sign
        if run.runtime is not None and (run.outcome is _SUCCEEDED or not run.runtime_estimated):
            tally.run[bucket(run.runtime)] += sign
        if run.outcome is _FAILED:
            self._count_failure(task, run, sign)

    def _tally(self, task: Task, run: Run, at: float) -> tuple[int, Tally]:
        minute = int(at) // MINUTE * MINUTE
        message = run.invocation or task  # a run counts under the name that it ran
        return minute, self.rollups[minute, message.name, message.queue, run.worker]

    def _count_failure(self, task: Task, run: Run, sign: int) -> None:
        ended = run.ended or 0.0
        name = (run.invocation or task).name
        found = signature_of(name, run.exception, run.traceback)
        tally = self.failures.get(found.digest)
        if tally is None:
            tally = self.failures[found.digest] = FailureTally(name, found)
        place = (int(ended) // MINUTE * MINUTE, run.worker)
        tally.counts[place] = tally.counts.get(place, 0) + sign
        if found.variant != found.message:
            tally.variants[found.variant] = tally.variants.get(found.variant, 0) + sign
        if sign > 0:
            tally.first = min(tally.first, ended)
            tally.last = max(tally.last, ended)
            tally.latest = max(tally.latest, ended + self._skews.get(run.worker or "", 0.0))
