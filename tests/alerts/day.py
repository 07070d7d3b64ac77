"""A made day of a shop, minute by minute, through decoder, writer and judge: traffic, what is normal, and incidents.

Times are minutes since the day began. Each minute's tasks run in the minute before it; workers send one heartbeat in
each. What helpers of a receiver find out by asking (dead workers, depths of queues) is stored as they store it.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

from msgspec import structs

from celery_monitor.alerts.judge import Judge
from celery_monitor.receiver.decode import decode
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.receiver.schedules import Schedules
from celery_monitor.records.alert import Alert, AlertState
from celery_monitor.records.failure import FailureState
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import save_queues
from celery_monitor.store.receivers import close_gap, open_gap
from celery_monitor.store.rollups.failures import read_failure_groups, set_failure_state
from celery_monitor.store.schedule import save_schedule
from celery_monitor.store.workers import change_workers
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_id

CLUSTER = "shop"
MINUTE = 60.0
BEGIN = NOW // 86400 * 86400  # midnight
WARM_UP = 60  # minutes of traffic before the day
LATE = 15  # minutes after its last one in which an incident may still fire: a rule's window, or its for-how-long
TRAFFIC = {"shop.pay": (6, 0.5), "shop.mail": (8, 0.2), "shop.report": (2, 2.0)}  # a minute, and seconds
Fields = dict[str, object]


class Fired(NamedTuple):
    """An alert of the day, in minutes."""

    rule: str
    subject: str
    began: float
    ended: float | None


class Day:
    """The record of the day, and its state in the minute that is made. Incidents change ``traffic`` and its kin."""

    def __init__(self, store: Store, begin: int) -> None:
        self.store = store
        self.settings = Settings()
        self.minute = begin - WARM_UP
        self.judged_from = begin
        self.pids = {f"worker{number}@shop": 100 + number for number in (1, 2, 3)}
        self.traffic: dict[str, tuple[int, float]] = dict(TRAFFIC)
        self.failing: dict[str, tuple[float, str]] = {"shop.pay": (0.02, "TimeoutError('30 s')")}
        self.silent: set[str] = set()  # workers that are not there
        self.beat = {"shop.tick": True, "shop.tock": True}
        self.depths = {"payments": 3}
        self.lag = 0.2
        self.deaf = False  # in a gap: events are missed
        self.held: list[Fields] | None = None  # events that the receiver has not stored yet
        self.fired: list[Fired] = []
        self.task_id = ""  # of the incident at hand
        self.task_ids: list[str] = []
        self.gap = 0
        self._firing: dict[int, Alert] = {}
        self._numbers = count(1)
        self._failures: dict[str, float] = defaultdict(float)
        self._events: list[Fields] = []
        self._writer = Writer(store, CLUSTER, self.settings)
        self._judge = Judge(store, CLUSTER, self.settings, HelperFailures())
        self._schedules = Schedules(store, Broker(CLUSTER, "memory://"), self.settings)
        entries = [
            ScheduleEntry(cluster=CLUSTER, name=name, task=name, schedule="60.0", every=60.0) for name in self.beat
        ]
        save_schedule(store, CLUSTER, entries, self.at)

    @property
    def at(self) -> float:
        return BEGIN + self.minute * MINUTE

    @property
    def up(self) -> list[str]:
        return [each for each in self.pids if each not in self.silent]

    def event(self, type: str, at: float, hostname: str, **fields: object) -> None:  # noqa: A002
        known = {"pid": self.pids.get(hostname, 9), "clock": next(self._numbers)}
        self._events.append({"type": type, "timestamp": at, "hostname": hostname, "utcoffset": 0, **known, **fields})

    def send(self, name: str, at: float, **fields: object) -> str:
        """A message that nobody has received yet; the id of the task."""
        task_id = make_id(next(self._numbers))
        given: Fields = {"queue": "payments", "args": "()", "kwargs": "{}", "root_id": task_id, **fields}
        self.event("task-sent", at, "gen9@web", uuid=task_id, name=name, **given)
        return task_id

    def start(self, name: str, at: float, worker: str, task_id: str | None = None) -> str:
        task_id = task_id or make_id(next(self._numbers))
        known: Fields = {"name": name, "args": "()", "kwargs": "{}", "root_id": task_id}
        self.event("task-received", at - 0.1, worker, uuid=task_id, **known)
        self.event("task-started", at, worker, uuid=task_id)
        return task_id

    def end(self, task_id: str, at: float, worker: str, seconds: float, failure: str | None = None) -> None:
        if failure is None:
            self.event("task-succeeded", at, worker, uuid=task_id, runtime=seconds, result="1")
            return
        trace = f"Traceback (most recent call last):\n  File shop/work.py, in work\n{failure}"
        self.event("task-failed", at, worker, uuid=task_id, exception=failure, traceback=trace)

    def run(self, name: str, at: float, seconds: float, task_id: str | None = None) -> None:
        """One task from receipt to its end; as many fail as shall."""
        worker = self.up[next(self._numbers) % len(self.up)]
        share, failure = self.failing.get(name, (0.0, ""))
        self._failures[name] += share
        fails = self._failures[name] >= 1
        self._failures[name] -= fails
        self.end(self.start(name, at, worker, task_id), at + seconds, worker, seconds, failure if fails else None)

    def change(self, hostname: str, **fields: object) -> None:
        """As the helpers store what they found out about a worker."""

        def changed(worker: Worker) -> Worker:
            return structs.replace(worker, **fields)

        change_workers(self.store, CLUSTER, [hostname], changed)

    def restart(self, hostname: str) -> None:
        """A warm shutdown, and a new process."""
        self.event("worker-offline", self.at - 30, hostname, freq=60.0)
        self.pids[hostname] += 10
        self.event("worker-online", self.at - 20, hostname, freq=60.0)

    def step(self) -> None:
        """Makes this minute, stores it and judges it."""
        if not self.deaf:
            self._run_beat()
            self._run_traffic()
        self._store()
        at = self.at
        queues = [
            Queue(cluster=CLUSTER, name=name, ready=ready, consumers=len(self.up), oldest=at - 5, sampled_at=at)
            for name, ready in self.depths.items()
        ]
        save_queues(self.store, CLUSTER, queues, at)
        if not self.deaf:
            self._schedules.step([], None, at)
        if self.minute >= self.judged_from:
            self._note(self._judge.judge(at))
        self.minute += 1

    def _run_beat(self) -> None:
        for name, sent in self.beat.items():
            if sent:
                task_id = self.send(name, self.at - 59)
                self._events[-1]["hostname"] = "gen7@beat"
                if self.up:
                    self.run(name, self.at - 58.5, 0.1, task_id)

    def _run_traffic(self) -> None:
        for name, (number, seconds) in self.traffic.items():
            for each in range(number if self.up else 0):
                self.run(name, self.at - 55 + each * 40 / number, seconds)
        for worker in self.up:
            self.event("worker-heartbeat", self.at - 1, worker, freq=60.0, active=0, processed=1)

    def _store(self) -> None:
        events, self._events = self._events, []
        if self.held is not None:
            self.held += events
            events = []
        events.sort(key=lambda event: float(str(event["timestamp"])))
        if self.deaf:
            events = []
        decoded, malformed = decode(json.dumps(events).encode()) if events else ([], 0)
        report = ReceiverHealth(
            cluster=CLUSTER,
            connected=not self.deaf,
            updated_at=self.at,
            last_event_at=self.at - 1,
            lag_seconds=None if self.deaf else self.lag,
        )
        self._writer.write([Delivery(events=list(decoded), arrived=self.at, malformed=malformed)], report)

    def _note(self, changed: Sequence[Alert]) -> None:
        for alert in changed:
            if alert.state is AlertState.FIRING:
                self._firing[alert.id] = alert
            else:
                self._firing.pop(alert.id, None)
                self.fired.append(_fired(alert))

    def all_fired(self) -> list[Fired]:
        """The alerts of the day, in the order in which they began; those that still fire have no end."""
        return sorted([*self.fired, *map(_fired, self._firing.values())], key=lambda each: (each.began, each.rule))


def _fired(alert: Alert) -> Fired:
    def minute(at: float | None) -> float | None:
        return None if at is None else (at - BEGIN) / MINUTE

    return Fired(alert.rule, alert.measured.subject, minute(alert.fired_at) or 0.0, minute(alert.resolved_at))


Incident = Callable[[Day, int], None]  # called in each of its minutes, with the number of that minute from 0 on


# What is normal


def night(day: Day, _: int) -> None:
    """Hardly any traffic."""
    day.traffic = {name: (1, seconds) for name, (_, seconds) in TRAFFIC.items()}


def rush(day: Day, _: int) -> None:
    """Four times the traffic, and a queue that is emptied as it fills."""
    day.traffic = {name: (4 * number, seconds) for name, (number, seconds) in TRAFFIC.items()}
    day.depths = {"payments": 40}


def rolling_restart(day: Day, number: int) -> None:
    day.restart(f"worker{number + 1}@shop")


# Incidents


def new_failure(day: Day, _: int) -> None:
    day.failing["shop.pay"] = (0.06, "KeyError('card')")


def mail_server_down(day: Day, _: int) -> None:
    day.traffic["shop.mail"] = (30, 0.2)
    day.failing["shop.mail"] = (0.9, "ConnectionRefusedError('mail.example.com')")


def slow_reports(day: Day, _: int) -> None:
    day.traffic["shop.report"] = (4, 14.0)


def killed_worker(day: Day, number: int) -> None:
    """It had a task, which is delivered again after a quarter of an hour."""
    name = "worker2@shop"
    if number == 0:
        day.task_id = day.start("shop.mail", day.at - 30, name)
        day.event("worker-heartbeat", day.at - 20, name, freq=60.0, active=1, processed=1)
    if number < 15:
        day.silent.add(name)
    if number == 2:
        day.change(name, status=WorkerStatus.OFFLINE, offline_at=day.at)
        day.event("task-lost", day.at - 1, name, uuid=day.task_id, exception=f"{name} is gone")
    if number == 15:
        day.pids[name] += 10
        day.event("worker-online", day.at - 58, name, freq=60.0)
        day.end(day.start("shop.mail", day.at - 50, name, day.task_id), day.at - 49, name, 0.2)


def everybody_down(day: Day, number: int) -> None:
    """A deployment that takes all workers down for five minutes: tasks wait."""
    if number == 0:
        day.task_ids = []
        for name in day.pids:
            day.event("worker-offline", day.at - 59, name, freq=60.0)
    if number < 5:
        day.silent.update(day.pids)
        for each in range(10):
            day.task_ids.append(day.send("shop.pay", day.at - 50 + each * 4))
        day.depths = {"payments": 10 * (number + 1)}
        return
    for name in day.pids:
        day.pids[name] += 10
        day.event("worker-online", day.at - 59, name, freq=60.0)
    for task_id in day.task_ids:
        day.run("shop.pay", day.at - 50, 0.5, task_id)


def receiver_behind(day: Day, number: int) -> None:
    """Its database was slow: what came is stored four minutes later."""
    if number < 4:
        day.lag = 60.0 * (number + 1)
        day.held = [] if day.held is None else day.held
        return
    day._events += day.held or []
    day.held = None


def deep_queue(day: Day, number: int) -> None:
    day.depths = {"payments": 3, "reports": 12_500 - 100 * number}


def growing_queue(day: Day, number: int) -> None:
    day.depths = {"payments": 3, "reports": 30 * (number + 1)}


def restart_loop(day: Day, number: int) -> None:
    if number < 5:
        day.restart("worker3@shop")


def missed_entry(day: Day, _: int) -> None:
    day.beat["shop.tick"] = False


def gap(day: Day, number: int) -> None:
    if number == 0:
        day.gap = open_gap(day.store, CLUSTER, day.at - 59, "the broker was away")
    if number < 3:
        day.deaf = True
    else:
        close_gap(day.store, day.gap, day.at - 58)


def stuck_worker(day: Day, number: int) -> None:
    name = "worker1@shop"
    if number == 0:
        day.task_ids = [day.start("shop.mail", day.at - 1, name) for _ in range(2)]
    if number < 8:
        day.silent.add(name)  # for new tasks
        day.event("worker-heartbeat", day.at - 0.5, name, freq=60.0, active=2, processed=1)
        day.change(name, pool_size=2)
    else:
        for task_id in day.task_ids:
            day.end(task_id, day.at - 40, name, 440.0)


def regressed_failure(day: Day, number: int) -> None:
    if number == 0:
        groups = [each for each in read_failure_groups(day.store, since=BEGIN) if each.exception_type == "KeyError"]
        set_failure_state(day.store, groups[0].id, FailureState.RESOLVED, day.at - 59)
    day.failing["shop.pay"] = (0.06, "KeyError('card')")


def stuck_workflow(day: Day, number: int) -> None:
    """Its second step was deleted from its queue; somebody sends that again."""
    if number == 0:
        root = day.start("shop.order", day.at - 30, "worker1@shop")
        day.end(root, day.at - 29, "worker1@shop", 1.0)
        day.task_id = day.send("shop.pick", day.at - 29, root_id=root, parent_id=root)
    elif number == 10:
        day.run("shop.pick", day.at - 30, 0.5, day.task_id)


class Planned(NamedTuple):
    """An incident, its first minute, how many minutes it takes, and the rules that have to fire, in any order."""

    incident: Incident
    begin: int
    minutes: int
    rules: tuple[str, ...] = ()


PLAN = (
    Planned(night, 60, 60),
    Planned(new_failure, 120, 10, ("New failure",)),
    Planned(rolling_restart, 200, 3),
    Planned(mail_server_down, 300, 6, ("Many failures of one cause", "New failure", "Task fails more than usual")),
    Planned(rush, 400, 30),
    Planned(slow_reports, 480, 15, ("Task runs longer than usual",)),
    Planned(killed_worker, 600, 16, ("Silent worker", "Lost tasks")),
    Planned(
        everybody_down,
        720,
        6,
        ("No worker", "Queue without consumer", "Task waits longer than usual"),
    ),
    Planned(receiver_behind, 780, 5, ("Receiver behind",)),
    Planned(deep_queue, 840, 15, ("Deep queue",)),
    Planned(growing_queue, 960, 15, ("Growing queue",)),
    Planned(restart_loop, 1020, 6, ("Restarting worker",)),
    Planned(missed_entry, 1080, 8, ("Missed schedule entry",)),
    Planned(gap, 1170, 4, ("Gap in the record",)),
    Planned(stuck_worker, 1260, 9, ("Stuck worker",)),
    Planned(regressed_failure, 1320, 10, ("Regressed failure",)),
    Planned(stuck_workflow, 1380, 11, ("Stuck workflow",)),
)


def make_day(store: Store, begin: int = 0, end: int = 24 * 60) -> Day:
    """The day as planned, or its minutes from ``begin`` on, after an hour without a judge."""
    day = Day(store, begin)
    while day.minute < end:
        day.traffic, day.depths, day.silent = dict(TRAFFIC), {"payments": 3}, set()
        day.failing = {"shop.pay": (0.02, "TimeoutError('30 s')")}
        day.beat = dict.fromkeys(day.beat, True)
        day.lag, day.deaf = 0.2, False
        for each in PLAN:
            if begin <= each.begin <= day.minute < each.begin + each.minutes:
                each.incident(day, day.minute - each.begin)
        day.step()
    return day


class Verdict(NamedTuple):
    """What fired for an incident, beside what should have."""

    planned: Planned
    fired: list[Fired]

    @property
    def is_right(self) -> bool:
        return sorted(each.rule for each in self.fired) == sorted(self.planned.rules)


def verdicts(fired: Sequence[Fired], begin: int = 0, end: int = 24 * 60) -> tuple[list[Verdict], list[Fired]]:
    """Of each incident, and the alerts that none explains. An alert is of the latest incident before it."""
    found = [Verdict(each, []) for each in PLAN if begin <= each.begin < end]
    unexplained = []
    for one in fired:
        before = [each for each in found if each.planned.begin <= one.began]
        if before and one.began <= before[-1].planned.begin + before[-1].planned.minutes + LATE:
            before[-1].fired.append(one)
        else:
            unexplained.append(one)
    return found, unexplained
