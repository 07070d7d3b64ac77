"""Concludes from silence: workers that are gone, and the tasks that went with them.

Nobody is accused while the receiver itself may be deaf. Silence counts only while we have listened: from the last
heartbeat, or from when the receiver last connected, caught up, or woke. Every conclusion can be taken back: by any
later event of the worker, by a redelivery, or by the worker's own word that it still knows the task.

Who says goodbye is not dead: in a warm shutdown a worker sends worker-offline first, and ends what it runs then.
"""

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from monitor.brokers.depth import make_probe
from monitor.brokers.ends import Ends
from monitor.brokers.remote import Remote
from monitor.errors import MonitorError
from monitor.receiver.forgotten import Forgotten
from monitor.receiver.helpers import RECONCILER
from monitor.receiver.helpers import Helpers
from monitor.receiver.missing import Missing
from monitor.receiver.recovery import Recovery
from monitor.records import Delivery
from monitor.records import Event
from monitor.records import ReceiverHealth
from monitor.records import TaskState
from monitor.records import Worker
from monitor.records import WorkerProcess
from monitor.records import WorkerStatus
from monitor.store import journal
from monitor.store import queries
from monitor.store import unfinished
from monitor.store.engine import Store
from monitor.store.unfinished import ProcessKey
from monitor.store.unfinished import UnfinishedTask
from monitor.workers import GRACE_SECONDS
from monitor.workers import SHUTDOWN_SECONDS
from monitor.workers import overdue_seconds
from monitor.workers import process_of

STEP_SECONDS = 0.5
HELD_SECONDS = 1.0  # between two looks at what workers hold
LONG_SECONDS, REST = 0.1, 10.0  # where to count them takes longer, it is done once in so many times what it took
DEAF_SECONDS = 5.0  # without a step: we were suspended, or the clock was set
UNSAID_SECONDS = 2.0  # without a word of the receiver: it waits for the database, or stores something large
LATE_INTERVALS = 1.25  # of a heartbeat, after which the worker is asked whether it hears us
UNHEARD_SECONDS = 30.0  # silence of a worker that sends no heartbeats, after which it is asked
PING_SECONDS = 1.0
PINGS = 2  # unanswered in a row before a worker is taken for gone
ASK_AGAIN_SECONDS = 30.0  # between pings beyond those
SOLO_SECONDS = 300.0  # a solo pool neither beats nor answers while it works
SETTLE_SECONDS = 5.0  # before a new process or a goodbye is believed: its last events may be on their way
LOST_AT_ONCE = 1000
USUAL_TIMES, MOST_TIMED = 2.0, 100  # a process in warm shutdown has this many times what its tasks usually take

log = logging.getLogger(__name__)


class Sign(NamedTuple):
    """How many tasks a process holds, since when that is watched, and when one of them ended last."""

    held: int
    since: float
    alive: float | None = None


class Reconciler:
    """Judges the workers of one cluster twice a second, in a thread of its own.

    ``health`` gives what the receiver says of itself; ``conclude`` takes events that were concluded.
    """

    def __init__(
        self,
        store: Store,
        cluster: str,
        remote: Remote,
        health: Callable[[], ReceiverHealth],
        conclude: Callable[[Delivery], None],
        helpers: Helpers | None = None,
    ) -> None:
        self._helpers = helpers or Helpers()
        self._shard = remote.settings.shard
        self._store = store
        self._cluster = cluster
        self._remote = remote
        self._health = health
        self._conclude = conclude
        self._forgotten = Forgotten(store, cluster, remote, Ends(remote.broker, remote.settings), conclude)
        ends, probe = Ends(remote.broker, remote.settings), make_probe(remote.broker, remote.settings)
        self._missing = Missing(store, remote, ends, probe, conclude)
        self._recovery = Recovery(store, cluster, remote, Ends(remote.broker, remote.settings), conclude)
        self._stepped_at = 0.0
        self._held_at = 0.0
        self._held: dict[ProcessKey, int] = {}
        self._count_at = 0.0
        self._listening_since = 0.0
        self._unanswered: dict[str, tuple[int, float]] = {}  # pings in a row, and when the last was sent
        self._gone: dict[str, str] = {}  # the evidence against workers that were taken for gone
        self._settled: dict[str, tuple[int | None, WorkerStatus, float]] = {}
        self._signs: dict[ProcessKey, Sign] = {}
        self._doubted: set[ProcessKey] = set()  # whose tasks we called lost, and who may come back
        self._said = ""

    def run(self, stop: threading.Event) -> None:
        """Judges until told to stop; broker and database may come and go."""
        while not stop.wait(STEP_SECONDS):
            try:
                self.step(time.time())
                self._helpers.works(RECONCILER)
                self._said = ""
            except MonitorError as error:
                self._helpers.failed(RECONCILER, error)
                if error.message != self._said:
                    log.warning("workers cannot be judged: %s", error)
                self._said = error.message
        self._missing.close()

    def step(self, now: float) -> None:
        """One look at all workers. Raises StoreUnavailable, and BrokerUnavailable when nobody can be asked."""
        began = time.monotonic()
        if self._listening(now):
            self._judge(now)
        self._stepped_at = now + time.monotonic() - began  # to wait for answers is not to be suspended

    def _judge(self, now: float) -> None:
        workers = queries.workers(self._store, self._cluster)
        self._settle(workers, now)
        if self._shard.first:
            self._judge_silent(workers, now)
        if abs(now - self._held_at) >= HELD_SECONDS:
            self._held_at = now
            self._judge_held(workers, now)

    def _judge_held(self, workers: Sequence[Worker], now: float) -> None:
        """What became of the tasks that workers hold."""
        held = self._holders()
        self._note_signs(held, now)
        by_name = {worker.hostname: worker for worker in workers}
        for holder in list(held):
            worker = by_name.get(holder.hostname)
            evidence = self._evidence(worker, holder, now) if worker else None
            if worker and evidence and self._lose(worker, holder, evidence, now):
                del held[holder]
        self._find_again(by_name, now)
        self._forgotten.step(workers, held, now)
        self._recovery.step(workers, now)
        self._missing.step(workers, held, now)

    def _note_signs(self, held: Mapping[ProcessKey, int], now: float) -> None:
        """A process that holds fewer tasks than before has ended one: it lives."""
        signs = {}
        for holder, count in held.items():
            before = self._signs.get(holder, Sign(count, now))
            signs[holder] = Sign(count, before.since, now if count < before.held else before.alive)
        self._signs = signs

    def _holders(self) -> dict[ProcessKey, int]:
        """Who holds tasks; where that is a million, to count them takes seconds: then it was counted a while ago."""
        began = time.monotonic()
        if began >= self._count_at:
            self._held = unfinished.tasks_by_process(self._store, self._cluster)
            took = time.monotonic() - began
            self._count_at = began + took * (REST if took > LONG_SECONDS else 1.0)
        return self._held

    def _listening(self, now: float) -> bool:
        """Whether silence means anything now; if not, listening begins anew."""
        listening = abs(now - self._stepped_at) < DEAF_SECONDS and self._health().is_level(now, UNSAID_SECONDS)
        if not listening:
            self._listening_since = now
            self._unanswered.clear()
            self._settled.clear()
            self._forgotten.reset()
            self._recovery.reset()
            self._missing.reset()
        return listening

    def _settle(self, workers: Sequence[Worker], now: float) -> None:
        """Notes since when each worker has had this process and status."""
        for worker in workers:
            pid, status, _ = self._settled.get(worker.hostname, (None, None, now))
            if (pid, status) != (worker.pid, worker.status):
                self._settled[worker.hostname] = (worker.pid, worker.status, now)

    # Silent workers

    def _judge_silent(self, workers: Sequence[Worker], now: float) -> None:
        silent = {worker.hostname: worker for worker in workers if self._is_silent(worker, now)}
        for worker in workers:
            if worker.hostname not in silent:
                self._unanswered.pop(worker.hostname, None)
            if worker.status is WorkerStatus.ONLINE:
                self._gone.pop(worker.hostname, None)
        names = [name for name, worker in silent.items() if self._to_be_asked(worker, now)]
        answered = self._remote.ask("ping", destination=names, timeout=PING_SECONDS) if names else {}
        for name in names:
            self._take_answer(silent[name], name in answered, now)

    def _to_be_asked(self, worker: Worker, now: float) -> bool:
        """A worker that works and cannot answer finds all our pings when it is done: few, then."""
        count, asked_at = self._unanswered.get(worker.hostname, (0, 0.0))
        again = count < PINGS and self._silence(worker, now) > _overdue(worker)
        return count == 0 or again or now - asked_at >= ASK_AGAIN_SECONDS

    def _take_answer(self, worker: Worker, answered: bool, now: float) -> None:
        if answered:
            self._unanswered.pop(worker.hostname, None)
            if self._silence(worker, now) > _overdue(worker):  # else the heartbeat is on its way
                self._mark(worker, WorkerStatus.SILENT if worker.freq else WorkerStatus.ONLINE, now)
            return
        count = self._unanswered.get(worker.hostname, (0, 0.0))[0] + 1
        self._unanswered[worker.hostname] = (count, now)
        if count < PINGS or not self._may_be_gone(worker, now):
            self._mark(worker, WorkerStatus.SILENT, now)
            return
        name = _name(worker.hostname, worker.pid)
        self._gone[worker.hostname] = f"{name} is gone: {_last_heard(worker, now)}, and it did not answer {count} pings"
        self._mark(worker, WorkerStatus.OFFLINE, now)

    def _is_silent(self, worker: Worker, now: float) -> bool:
        """Nothing was heard for long enough to ask; a worker that then does not answer is silent."""
        limit = LATE_INTERVALS * worker.freq if worker.freq else UNHEARD_SECONDS
        return worker.status is not WorkerStatus.OFFLINE and self._silence(worker, now) > limit

    def _silence(self, worker: Worker, now: float) -> float:
        """Seconds for which we have listened and heard nothing."""
        heard = max(worker.last_heartbeat or 0.0, 0.0 if worker.freq else worker.inspected_at or 0.0)
        return now - max(heard, self._listening_since)

    def _may_be_gone(self, worker: Worker, now: float) -> bool:
        return self._silence(worker, now) > (SOLO_SECONDS if worker.pool == "solo" else _overdue(worker))

    def _mark(self, judged: Worker, status: WorkerStatus, now: float) -> None:
        """Stores the verdict, unless the worker has been heard of meanwhile."""
        if judged.status is status:
            return

        def change(worker: Worker) -> Worker:
            if (worker.last_heartbeat, worker.pid, worker.status) != (
                judged.last_heartbeat,
                judged.pid,
                judged.status,
            ):
                return worker
            offline_at = now if status is WorkerStatus.OFFLINE else None
            return msgspec.structs.replace(worker, status=status, offline_at=offline_at)

        journal.change_workers(self._store, self._cluster, [judged.hostname], change)
        log.info("%s is %s", judged.hostname, status.value)

    # Tasks

    def _evidence(self, worker: Worker, holder: ProcessKey, now: float) -> str | None:
        """Why what this process holds is lost; ``None``: it is not."""
        pid, status, since = self._settled.get(worker.hostname, (None, worker.status, now))
        if pid != worker.pid or now - since < SETTLE_SECONDS:
            gone = self._gone.get(worker.hostname)
            return gone if gone is not None and status is WorkerStatus.OFFLINE and holder.pid == pid else None
        if holder.pid is None or pid is None or holder.pid == pid:
            return self._evidence_of_present(worker, holder, now)
        other = process_of(worker, holder.pid)
        if other is not None:
            return self._evidence_of_other(worker, holder, other, now)
        name = _name(worker.hostname, holder.pid)
        if now - self._signs[holder].since < self._patience(worker):
            return None
        return f"{name} is gone: process {pid} has taken its place"

    def _evidence_of_present(self, worker: Worker, holder: ProcessKey, now: float) -> str | None:
        """Of the process that stands for the worker."""
        if worker.status is not WorkerStatus.OFFLINE:
            return None
        if worker.said_goodbye:
            return self._outlasted(holder, worker.offline_at or 0.0, now)
        name = _name(worker.hostname, holder.pid)
        gone = self._gone.get(worker.hostname)
        return gone or f"{name} is gone: it went offline {_ago(worker.offline_at, now)} and had not ended the task"

    def _evidence_of_other(self, worker: Worker, holder: ProcessKey, other: WorkerProcess, now: float) -> str | None:
        """Of one that was, or is, under the name beside it. Nobody can ask it: the name is answered by the other."""
        if other.offline_at is not None:
            return self._outlasted(holder, other.offline_at, now)
        silence = now - max(other.last_heartbeat, self._listening_since)
        overdue = overdue_seconds(other.freq) if other.freq else SHUTDOWN_SECONDS
        if silence <= (max(overdue, SOLO_SECONDS) if other.pool == "solo" else overdue):
            return None
        name = _name(worker.hostname, holder.pid)
        due = f" (one is due every {other.freq:g} s)" if other.freq else ""
        last = f"its last heartbeat came {_ago(other.last_heartbeat, now)}{due}"
        return f"{name} is gone: {last}, and process {worker.pid} has taken its place"

    def _outlasted(self, holder: ProcessKey, offline_at: float, now: float) -> str | None:
        """A process in warm shutdown finishes its tasks and reports their ends; it sends no other event."""
        alive = self._signs[holder].alive
        if now - max(offline_at, alive or 0.0) < SHUTDOWN_SECONDS or self._usually_longer(holder, now):
            return None
        name, minutes = _name(holder.hostname, holder.pid), SHUTDOWN_SECONDS / 60
        ended = "it ended no task since" if alive is None else f"its last task ended {_ago(alive, now)}"
        return (
            f"{name} shut down {_ago(offline_at, now)} and had not ended the task; {ended}. After {minutes:.0f} min "
            "it is presumed killed"
        )

    def _usually_longer(self, holder: ProcessKey, now: float) -> bool:
        """Whether a task that it runs is of a name whose runs take that long."""
        tasks = unfinished.tasks_of_process(self._store, self._cluster, holder, (TaskState.STARTED,), MOST_TIMED)
        names = {task.name for task in tasks if task.name is not None}
        usual = queries.usual_runs(self._store, names, now, self._cluster) if names else {}
        limits = [(task.started or 0.0) + USUAL_TIMES * usual[task.name].p99 for task in tasks if task.name in usual]
        return max(limits, default=0.0) > now

    def _patience(self, worker: Worker) -> float:
        """How long a process is waited for that sent no event of its own but those of its tasks."""
        return SETTLE_SECONDS if worker.freq else SHUTDOWN_SECONDS

    def _lose(self, worker: Worker, holder: ProcessKey, evidence: str, now: float) -> bool:
        """Marks what it holds as lost, at most so many; whether that was all."""
        most = LOST_AT_ONCE * self._shard.total
        held = unfinished.tasks_of_process(self._store, self._cluster, holder, limit=most)
        ids = self._own(held)
        at = now - (worker.skew or 0.0)  # stamped by the worker's clock, as the run's other times are
        self._tell("task-lost", holder, ids, at, now, evidence)
        self._doubted.add(holder)
        if ids:
            log.warning("%d tasks are lost: %s", len(ids), evidence)
        return len(held) < most

    def _find_again(self, workers: dict[str, Worker], now: float) -> None:
        """A process that came back is asked which of its lost tasks it still knows."""
        for holder in list(self._doubted):
            worker = workers.get(holder.hostname)
            if worker is None or (worker.pid != holder.pid and worker.status is WorkerStatus.ONLINE):
                self._doubted.discard(holder)
            elif worker.status is WorkerStatus.ONLINE:
                self._ask_for_lost(holder, worker, now)

    def _ask_for_lost(self, holder: ProcessKey, worker: Worker, now: float) -> None:
        most = LOST_AT_ONCE * self._shard.total
        ids = self._own(unfinished.tasks_of_process(self._store, self._cluster, holder, (TaskState.LOST,), most))
        if ids:
            reply = self._remote.ask(
                "query_task", {"ids": ids}, destination=[holder.hostname], timeout=PING_SECONDS
            ).get(holder.hostname)
            if reply is None or not isinstance(reply.ok, dict):
                return
            found = [each for each in ids if each in reply.ok]
            self._tell("task-found", holder, found, now - (worker.skew or 0.0), now, None)
        self._doubted.discard(holder)

    def _own(self, tasks: Sequence[UnfinishedTask]) -> list[str]:
        """Those of our share; the others are another receiver's to judge."""
        return [each.id for each in tasks if self._shard.has(each.id)]

    def _tell(
        self, event_type: str, holder: ProcessKey, ids: Sequence[str], at: float, now: float, evidence: str | None
    ) -> None:
        events = [
            Event(
                type=event_type, timestamp=at, hostname=holder.hostname, pid=holder.pid, uuid=each, exception=evidence
            )
            for each in ids
        ]
        if events:
            self._conclude(Delivery(events=events, arrived=now))


def _overdue(worker: Worker) -> float:
    """Seconds of silence that no heartbeat on its way explains."""
    return 2 * worker.freq + GRACE_SECONDS if worker.freq else UNHEARD_SECONDS


def _name(hostname: str, pid: int | None) -> str:
    return f"{hostname} (process {pid})" if pid else hostname


def _last_heard(worker: Worker, now: float) -> str:
    heard = _ago(worker.last_heartbeat, now)
    return f"its last heartbeat came {heard} (one is due every {worker.freq:g} s)" if worker.freq else f"heard {heard}"


def _ago(then: float | None, now: float) -> str:
    return "at an unknown time" if then is None else f"{max(0.0, now - then):.0f} s ago"
