"""Whether each worker sends task events, found out from its stats; turned on if ``enable_events`` is set."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from celery_monitor.brokers.remote import Remote, Reply
from celery_monitor.records.page import Action
from celery_monitor.records.worker import Worker
from celery_monitor.settings import Settings
from celery_monitor.store.actions import record_action
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import is_caught_up
from celery_monitor.store.tasks.unfinished import workers_with_tasks
from celery_monitor.store.workers import change_workers

ACTOR = "celery-monitor"
ANSWER_SECONDS = 1.0
EVENTS_WERE_OFF = "task events enabled"  # celery/worker/control.py; else "task events already enabled"
AGAIN_SECONDS = 2.0  # between two questions to workers of unknown state
ARRIVAL_SECONDS = 1.0  # after which a task event that was sent together with a heartbeat has arrived
MOST_AGAIN = 20  # workers that are asked at once
MOST_TIMES = 30  # questions to one process, beside those that go to all

Process = tuple[str, int | None]  # a worker and its process id


class TaskEventsSwitch:
    """Tracks whether task events are on, by process of one cluster. ``notice`` gets a text when they were turned on."""

    def __init__(
        self, store: Store, cluster: str, remote: Remote, settings: Settings, notice: Callable[[str], None]
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._remote = remote
        self._turns_on = settings.enable_events and not settings.read_only
        self._notice = notice
        self._on: dict[Process, bool] = {}
        self._processed: dict[Process, int] = {}  # tasks that it had received when we first asked
        self._grew_at: dict[Process, float] = {}  # when a heartbeat first counted more
        self._times: Counter[Process] = Counter()  # that it was asked again
        self._asked_at = 0.0
        self._began = time.time()

    def judge(self, stats: Mapping[str, Reply], now: float) -> None:
        """Decides for each process whose state is unknown; ``stats`` are the replies to that command."""
        asked = _processes(stats)
        before = dict(self._on)
        unknown = {name: process for name, process in asked.items() if not before.get(process)}
        if self._turns_on and unknown:
            self._turn_on(unknown, now)
        elif unknown:
            seen = workers_with_tasks(self._store, self._cluster)
            for name, process in unknown.items():
                if name in seen:
                    self._on[process] = True
                elif self._ran_unseen(process, fields_of(stats[name]), now):
                    self._on[process] = False
        # Only what is new: somebody may have turned a worker's events off since it was judged.
        judged = {name: self._on[process] for name, process in unknown.items() if process in self._on}
        found = {name: on for name, on in judged.items() if before.get(unknown[name]) is not on}
        change_workers(
            self._store,
            self._cluster,
            list(found),
            lambda worker: msgspec.structs.replace(worker, events_enabled=found[worker.hostname]),
        )

    def keep_only(self, stats: Mapping[str, Reply]) -> None:
        """Forgets the processes that did not reply when all were asked."""
        asked = set(_processes(stats).values())
        for table in (self._on, self._processed, self._grew_at, self._times):
            for gone in table.keys() - asked:
                del table[gone]

    def ask_again(self, workers: Sequence[Worker], now: float) -> None:
        """Asks workers that have run tasks without an event, or don't report that, so that the banner appears soon."""
        doubtful = [each for each in workers if self._is_doubtful(each, now)][:MOST_AGAIN]
        if not doubtful or now - self._asked_at < AGAIN_SECONDS:
            return
        self._asked_at = now
        self._times.update((worker.hostname, worker.pid) for worker in doubtful)
        names = [worker.hostname for worker in doubtful]
        self.judge(self._remote.ask("stats", destination=names, timeout=ANSWER_SECONDS), now)

    def _is_doubtful(self, worker: Worker, now: float) -> bool:
        """Heartbeats count tasks: a worker that sends them is asked only after the count has grown."""
        process = (worker.hostname, worker.pid)
        before = self._processed.get(process)
        if process in self._on or before is None or self._times[process] >= MOST_TIMES:
            return False
        if worker.last_heartbeat is None:
            return True
        return (worker.processed or 0) > before and now - self._grew_at.setdefault(process, now) >= ARRIVAL_SECONDS

    def _ran_unseen(self, process: Process, stats: Mapping[str, object], now: float) -> bool:
        """Whether the worker received tasks while we listened; events from before we began were never received."""
        total, uptime = _received(stats), integer(stats.get("uptime"))
        ours = uptime is not None and now - uptime - 1.0 >= self._began
        before = self._processed.setdefault(process, 0 if ours else total)
        return total > before and is_caught_up(self._store, self._cluster, now)

    def _turn_on(self, processes: Mapping[str, Process], now: float) -> None:
        replies = self._remote.ask("enable_events", destination=list(processes), timeout=ANSWER_SECONDS)
        for name, reply in replies.items():
            if name not in processes or reply.error is not None:
                continue
            self._on[processes[name]] = True
            if reply.ok == EVENTS_WERE_OFF:
                self._record_turned_on(name, now)

    def _record_turned_on(self, worker: str, now: float) -> None:
        text = f"{worker} sent no task events; they were turned on. Start it with -E to keep them on."
        self._notice(text)
        record_action(
            self._store,
            Action(
                at=now,
                actor=ACTOR,
                action="enable_events",
                cluster=self._cluster,
                target=worker,
                count=1,
                reason="the worker sent no task events",
                message=text,
            ),
        )


def _processes(stats: Mapping[str, Reply]) -> dict[str, Process]:
    return {name: (name, integer(fields_of(reply).get("pid"))) for name, reply in stats.items() if reply.ok}


def _received(fields: Mapping[str, object]) -> int:
    """How many tasks the worker process has received."""
    total = fields.get("total")
    return sum(integer(each) or 0 for each in total.values()) if isinstance(total, dict) else 0


def fields_of(reply: Reply | None) -> dict[str, object]:
    """A reply that is a dictionary; empty for any other."""
    return reply.ok if reply is not None and isinstance(reply.ok, dict) else {}


def integer(value: object) -> int | None:
    """An integer; ``None`` for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
