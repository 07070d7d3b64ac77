"""Whether each worker sends task events: found out by asking, and turned on where that is wanted."""

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
AGAIN_SECONDS = 2.0  # between two questions to those of whom it is not known
TOLD_SECONDS = 1.0  # after which a task event that was sent beside a heartbeat has come
MOST_AGAIN = 20  # that are asked at once
MOST_TIMES = 30  # that one is asked, beside the questions that go to all

Process = tuple[str, int | None]  # a worker and its process id


class TaskEventsSwitch:
    """Knows of each process of one cluster whether its task events are on. ``notice`` is told what was done unasked."""

    def __init__(
        self, store: Store, cluster: str, remote: Remote, settings: Settings, notice: Callable[[str], None]
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._remote = remote
        self._turns_on = settings.enable_events and not settings.read_only
        self._notice = notice
        self._on: dict[Process, bool] = {}
        self._processed: dict[Process, int] = {}  # tasks that it had taken when we first asked
        self._told: dict[Process, float] = {}  # when its heartbeat first told of more
        self._times: Counter[Process] = Counter()  # that it was asked again
        self._asked_at = 0.0
        self._began = time.time()

    def judge(self, stats: Mapping[str, Reply], now: float) -> None:
        """Finds out of each process of which it is not known; ``stats`` are answers to that command."""
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
        # Only what is new: a worker whose events somebody turned off since then is not said to send them.
        judged = {name: self._on[process] for name, process in unknown.items() if process in self._on}
        found = {name: on for name, on in judged.items() if before.get(unknown[name]) is not on}
        change_workers(
            self._store,
            self._cluster,
            list(found),
            lambda worker: msgspec.structs.replace(worker, events_enabled=found[worker.hostname]),
        )

    def keep_only(self, stats: Mapping[str, Reply]) -> None:
        """Forgets the processes that did not answer when everybody was asked."""
        asked = set(_processes(stats).values())
        self._on = {each: on for each, on in self._on.items() if each in asked}
        self._processed = {each: taken for each, taken in self._processed.items() if each in asked}
        self._told = {each: at for each, at in self._told.items() if each in asked}
        self._times = Counter({each: times for each, times in self._times.items() if each in asked})

    def ask_again(self, workers: Sequence[Worker], now: float) -> None:
        """Asks those that have run tasks of which no event came, or do not say; a banner is not to wait for long."""
        doubtful = [each for each in workers if self._is_doubtful(each, now)][:MOST_AGAIN]
        if not doubtful or now - self._asked_at < AGAIN_SECONDS:
            return
        self._asked_at = now
        self._times.update((worker.hostname, worker.pid) for worker in doubtful)
        names = [worker.hostname for worker in doubtful]
        self.judge(self._remote.ask("stats", destination=names, timeout=ANSWER_SECONDS), now)

    def _is_doubtful(self, worker: Worker, now: float) -> bool:
        """It costs nothing to wait for the heartbeat of a worker that has one: it counts the tasks."""
        process = (worker.hostname, worker.pid)
        taken = self._processed.get(process)
        if process in self._on or taken is None or self._times[process] >= MOST_TIMES:
            return False
        if worker.last_heartbeat is None:
            return True
        return (worker.processed or 0) > taken and now - self._told.setdefault(process, now) >= TOLD_SECONDS

    def _ran_unseen(self, process: Process, stats: Mapping[str, object], now: float) -> bool:
        """The worker has taken tasks while we listened. What it took before we began, nobody could have told us."""
        total, uptime = _taken(stats), whole(stats.get("uptime"))
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
    return {name: (name, whole(fields_of(reply).get("pid"))) for name, reply in stats.items() if reply.ok}


def _taken(fields: Mapping[str, object]) -> int:
    """How many tasks the worker process has taken."""
    total = fields.get("total")
    return sum(whole(each) or 0 for each in total.values()) if isinstance(total, dict) else 0


def fields_of(reply: Reply | None) -> dict[str, object]:
    """An answer that is a table."""
    return reply.ok if reply is not None and isinstance(reply.ok, dict) else {}


def whole(value: object) -> int | None:
    """A whole number; ``None`` for whatever else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
