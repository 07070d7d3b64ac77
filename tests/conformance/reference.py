"""What the events of a run say of each task, worked out a second time and as simply as can be.

Written from Celery's documents and source, not from our modules, and imports nothing of them. It may be simple
because it knows more than the product does: every event is there, all senders share one clock, and one worker with
one pool process runs the tasks, so that what ends is always what was started last.
"""

import ast
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from celery.utils.saferepr import saferepr

Event = dict[str, Any]
ENDS = {
    "task-succeeded": "SUCCESS",
    "task-failed": "FAILURE",
    "task-retried": "RETRY",
    "task-revoked": "REVOKED",
    "task-rejected": "REJECTED",
    "task-cancelled": "RETRY",
}
FINISHED = {"SUCCESS", "FAILURE", "REVOKED", "REJECTED"}
MEASURED = {"task-failed", "task-retried"}  # ends that do not say how long the run took
CUT = re.compile(r"\.\.\.|\\|\*\*\*|[\x00-\x1f\x7f-\x9f]")


@dataclass
class Run:
    """One delivery of one message to the worker."""

    received: Event | None = None
    started: Event | None = None
    ended: Event | None = None


@dataclass
class Task:
    """All events of one task id, in the order in which they happened."""

    id: str
    events: list[Event]
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events.sort(key=lambda event: (event["timestamp"], event["clock"] or 0))
        for event in self.events:
            if event["type"] == "task-received":
                self.runs.append(Run(received=event))
            elif event["type"] == "task-started":
                self._first_waiting().started = event
            elif event["type"] in ENDS:
                self._end(event)

    def _first_waiting(self) -> Run:
        for run in self.runs:
            if run.started is None and run.ended is None:
                return run
        self.runs.append(Run())
        return self.runs[-1]

    def _end(self, event: Event) -> None:
        running = [run for run in self.runs if run.started is not None and run.ended is None]
        if running:
            running[-1].ended = event
        elif any(run.ended is None for run in self.runs) or not self.runs:
            self._first_waiting().ended = event  # revoked or rejected before it was started
        elif event["type"] == "task-failed" and self.runs[-1].ended and self.runs[-1].ended["type"] == "task-rejected":
            self.runs[-1].ended = event  # Reject(requeue=False) sends both

    @property
    def last(self) -> Run:
        return self.runs[-1] if self.runs else Run()

    @property
    def messages(self) -> list[Event]:
        """The events that describe a message: that it was sent, and that it was received."""
        return [event for event in self.events if event["type"] in {"task-sent", "task-received"}]

    def message(self, key: str) -> Any:
        """A field of the message that came last."""
        return self.messages[-1].get(key) if self.messages else None

    @property
    def parent(self) -> str | None:
        """A task that is retried or replaced is sent by itself, and names itself as its parent."""
        named = [event.get("parent_id") for event in self.messages]
        others = [parent for parent in named if parent not in {None, self.id}]
        return others[-1] if others else None

    @property
    def queue(self) -> str | None:
        sent = [event for event in self.events if event["type"] == "task-sent"]
        return sent[-1].get("queue") if sent else None

    @property
    def sent(self) -> list[float]:
        """When its messages were sent."""
        return [event["timestamp"] for event in self.events if event["type"] == "task-sent"]

    @property
    def state(self) -> str:
        run = self.last
        if run.ended is not None:
            again = run.ended["type"] == "task-rejected" and run.ended.get("requeue")
            return "PENDING" if again else ENDS[run.ended["type"]]
        if run.started is not None:
            return "STARTED"
        if run.received is None:
            return "PENDING"
        eta = epoch(run.received.get("eta"))
        return "SCHEDULED" if eta is not None and eta > self.events[-1]["timestamp"] else "RECEIVED"

    @property
    def runtime(self) -> float | None:
        run = self.last
        if run.ended is None or run.started is None:
            return None
        said: float | None = run.ended.get("runtime")
        if said is None and run.ended["type"] in MEASURED:
            return float(run.ended["timestamp"] - run.started["timestamp"])
        return said

    def _outcome(self, run: Run) -> str | None:
        """In the API's word. In this suite what ends without a word, and is followed by another run, was replaced."""
        if run.ended is None:
            return None if run is self.last else "replaced"
        return "requeued" if run.ended.get("requeue") else str(run.ended["type"]).removeprefix("task-")

    @property
    def facts(self) -> dict[str, Any]:
        """What is compared, by the names of the API's keys."""
        run = self.last
        end = run.ended or {}
        seen = run.received or run.started or run.ended or {}
        readable = all(is_readable(self.message(key)) for key in ("args", "kwargs"))
        return {
            "state": self.state,
            "name": self.message("name"),
            "args": self.message("args"),
            "kwargs": self.message("kwargs"),
            "fidelity": "probable" if readable else "unknown",
            "source": "event" if readable else None,
            "queue": self.queue,
            "worker": seen.get("hostname"),
            "expires": epoch(self.message("expires")),
            "eta": epoch(run.received.get("eta")) if run.received else None,
            "retries": run.received.get("retries") if run.received else None,
            "received": run.received["timestamp"] if run.received else None,
            "started": run.started["timestamp"] if run.started else None,
            "finished": end.get("timestamp"),
            "runtime": self.runtime,
            "result": end.get("result"),
            "root_id": self.message("root_id"),
            "parent_id": self.parent,
            "runs": [self._outcome(run) for run in self.runs],
        }


def epoch(text: str | None) -> float | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def is_readable(text: str | None) -> bool:
    """The text of arguments from which the values can be read back without loss, as the documents promise."""
    if text is None or CUT.search(text):
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    arguments = list(value) if isinstance(value, tuple) else value
    return _is_plain(arguments, levels=3) and saferepr(value, 1024) == text


def _is_plain(value: Any, levels: int) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, bool | int | str):
        return True
    if not levels or not isinstance(value, list | dict):  # a tuple inside arrives as a list, or does not: unknown
        return False
    inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return all(_is_plain(each, levels - 1) for each in inside)


def evaluate(events: Iterable[Event]) -> dict[str, Task]:
    """Every task of which an event told, by its id."""
    by_task: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["type"] in {"task-sent", "task-received", "task-started", *ENDS}:
            by_task[event["uuid"]].append(event)
    return {task_id: Task(task_id, its) for task_id, its in by_task.items()}


def states(tasks: Iterable[Task]) -> Counter[str]:
    return Counter(task.state for task in tasks)


def workflows(tasks: Iterable[Task]) -> dict[str, set[str]]:
    """The tasks of each root, where there is more than the root itself."""
    members: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        root = task.message("root_id")
        if root is not None:
            members[root].add(task.id)
    return {root: ids for root, ids in members.items() if ids - {root}}
