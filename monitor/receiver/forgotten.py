"""Tasks that were started and of which their worker, alive and answering, knows nothing.

Their end came in a gap, or Celery sends none (``raise Ignore``). The worker is asked twice, long after the start; then
the result backend. What that knows becomes the end of the task; what nobody knows is LOST, with the evidence, until
any later event says otherwise.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from monitor.brokers.ends import End
from monitor.brokers.ends import Ends
from monitor.brokers.remote import Remote
from monitor.receiver.whereabouts import ANSWER_SECONDS
from monitor.receiver.whereabouts import QUESTIONS
from monitor.receiver.whereabouts import request_of
from monitor.records import Delivery
from monitor.records import Event
from monitor.records import TaskState
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.store import unfinished
from monitor.store.engine import Store
from monitor.store.unfinished import ProcessKey
from monitor.workers import twins

OLD_SECONDS = 60.0  # a task that was started later is asked about by nobody
ASK_SECONDS = 30.0  # between two questions
TIMES, TIMES_SILENT = 2, 20  # it is asked before a task is lost; so often while the result backend is silent
MOST_ASKED = 500


class Forgotten:
    """Asks the workers of one cluster. ``conclude`` takes the events that were concluded."""

    def __init__(
        self, store: Store, cluster: str, remote: Remote, ends: Ends, conclude: Callable[[Delivery], None]
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._remote = remote
        self._ends = ends
        self._conclude = conclude
        self._asked_at = 0.0
        self._unknown: dict[tuple[ProcessKey, str], int] = {}  # how often the worker did not know it

    def reset(self) -> None:
        """Silence means nothing any more: all questions begin anew."""
        self._unknown.clear()

    def step(self, workers: Iterable[Worker], held: Iterable[ProcessKey], now: float) -> None:
        """One round of questions, where it is time. Raises Broker- and StoreUnavailable."""
        if abs(now - self._asked_at) < ASK_SECONDS:  # the clock may have been set back
            return
        self._asked_at = now
        by_name = {worker.hostname: worker for worker in workers if worker.status is WorkerStatus.ONLINE}
        counted: dict[tuple[ProcessKey, str], int] = {}
        for holder in held:
            worker = by_name.get(holder.hostname)
            # Of two processes of one name nobody knows which one answered.
            if worker is not None and worker.pid == holder.pid and not twins(worker):
                counted |= self._ask(worker, holder, now)
        self._unknown = counted

    def _ask(self, worker: Worker, holder: ProcessKey, now: float) -> dict[tuple[ProcessKey, str], int]:
        before = now - (worker.skew or 0.0) - OLD_SECONDS
        shard = self._remote.settings.shard
        most = MOST_ASKED * shard.total
        found = unfinished.tasks_of_process(
            self._store, self._cluster, holder, (TaskState.STARTED,), most, started_before=before
        )
        ids = [each.id for each in found if shard.has(each.id)]
        missing = self._not_known(holder.hostname, ids) if ids else []
        counted = {(holder, each): self._unknown.get((holder, each), 0) + 1 for each in missing}
        gone = [each for (_, each), times in counted.items() if times >= TIMES]
        ends = self._ends.of(gone)
        if ends is None:
            gone = [each for (_, each), times in counted.items() if times >= TIMES_SILENT]
        self._end(worker, holder, gone, ends, now)
        return {place: times for place, times in counted.items() if place[1] not in gone}

    def _not_known(self, hostname: str, ids: Sequence[str]) -> list[str]:
        """Those that the worker surely does not have; none where it does not answer every question."""
        reply = self._remote.ask("query_task", {"ids": list(ids)}, [hostname], ANSWER_SECONDS).get(hostname)
        if reply is None or not isinstance(reply.ok, dict):
            return []
        missing = [each for each in ids if each not in reply.ok]
        for question, arguments in QUESTIONS if missing else ():
            listed = self._remote.ask(question, arguments, [hostname], ANSWER_SECONDS).get(hostname)
            if listed is None or not isinstance(listed.ok, list):
                return []
            known = {str(request.get("id")) for each in listed.ok if (request := request_of(each)) is not None}
            missing = [each for each in missing if each not in known]
        return missing

    def _end(
        self, worker: Worker, holder: ProcessKey, ids: Sequence[str], known: Mapping[str, End] | None, now: float
    ) -> None:
        """What the backend knows ends; the rest is lost. Stamped by the worker's clock, as the run's other times."""
        at = now - (worker.skew or 0.0)
        ends = self._present(known or {}, at)
        evidence = (
            f"{holder.hostname} (process {holder.pid}) is up and no longer knows the task: it was asked twice, "
            f"{ASK_SECONDS:.0f} s apart, over {OLD_SECONDS:.0f} s after the start. Its code ignored it, or "
            f"its end was missed; {self._ends.absence if known is not None else 'the result backend does not answer'}"
        )
        lost = [_lost(holder, each, at, evidence) for each in ids if each not in ends]
        told = [_told(holder, each, end, at) for each, end in ends.items()]
        if lost or told:
            self._conclude(Delivery(events=[*told, *lost], arrived=now))

    def _present(self, known: Mapping[str, End], at: float) -> dict[str, End]:
        """What the backend knows of the present runs; an older end under the same id is not theirs."""
        ends: dict[str, End] = {}
        for task_id, end in known.items():
            started = queries.task(self._store, task_id, self._cluster).started or 0.0
            done = end.since(started, at)
            if done is not None:
                ends[task_id] = end._replace(done=done)
        return ends


def _lost(holder: ProcessKey, task_id: str, at: float, evidence: str) -> Event:
    return Event(
        type="task-lost", timestamp=at, hostname=holder.hostname, pid=holder.pid, uuid=task_id, exception=evidence
    )


def _told(holder: ProcessKey, task_id: str, end: End, at: float) -> Event:
    return Event(
        type=end.event,
        timestamp=end.done or at,
        hostname=holder.hostname,
        pid=holder.pid,
        uuid=task_id,
        result=end.result,
        exception=end.exception,
        traceback=end.traceback,
    )
