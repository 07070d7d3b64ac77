"""Every difference between what the product shows and what the events say."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.conformance import reference
from tests.conformance.recorder import END

Json = dict[str, Any]
ONLY_QUEUE = "celery"  # of the suite's worker
SECONDS = 1e-6  # what a float loses on its way through a database and JSON
WORDS = {"SUCCESS": "succeeded", "FAILURE": "failed"}
KINDS = (
    "not recorded",  # an event was sent, and the recorder has it not: the comparison itself would be wrong
    "not counted",  # ... and the product has not counted it
    "reference",  # the events say something else than the message that was sent
    "lost task",
    "extra task",
    "state",
    "name",
    "args",
    "kwargs",
    "fidelity",
    "source",
    "values",  # of arguments that are said to be known, against those that were sent
    "queue",
    "worker",
    "expires",
    "eta",
    "retries",
    "sent",
    "received",
    "started",
    "finished",
    "runtime",
    "result",
    "root_id",
    "parent_id",
    "runs",  # how each ended
    "list and detail",
    "count by state",
    "workflow",
)


@dataclass(frozen=True)
class Difference:
    """``subject`` is a task's id, a root's, or a state."""

    kind: str
    subject: str
    name: str | None
    ours: Any
    theirs: Any


@dataclass
class Evidence:
    """Three accounts of one run: what was sent, what the recorder received, what the product shows."""

    sent: list[Json]
    recorded: list[Json]
    observed: Json

    @property
    def events(self) -> list[Json]:
        """Those of the suite, without the one that ends the recording."""
        return [line["event"] for line in self.recorded if line["event"]["type"] != END]

    def of_kind(self, kind: str) -> list[Json]:
        return [line["content"] for line in self.sent if line["kind"] == kind]


def differences(evidence: Evidence) -> list[Difference]:
    """All of them, in the order of ``KINDS``."""
    tasks = reference.evaluate(evidence.events)
    ours = {task["id"]: task for task in evidence.observed["tasks"]}
    twice = Counter(task["id"] for task in evidence.observed["listed"]) - Counter(ours.keys())
    missing = [task for task_id, task in tasks.items() if task_id not in ours]
    added = [task for task_id, task in ours.items() if task_id not in tasks]
    found = [
        *_completeness(evidence),
        *_messages(evidence, tasks),
        *(Difference("lost task", each.id, each.message("name"), None, each.state) for each in missing),
        *(Difference("extra task", each["id"], each["name"], each["state"], None) for each in added),
        *(
            Difference("extra task", each, ours[each]["name"], f"{number} times more", None)
            for each, number in twice.items()
        ),
        *(each for task_id in tasks.keys() & ours for each in _task(tasks[task_id], ours[task_id])),
        *_listed(evidence.observed),
        *_counts(evidence.observed, tasks, ours),
        *_workflows(evidence.observed, tasks, ours),
    ]
    return sorted(found, key=lambda each: (KINDS.index(each.kind), each.name or "", each.subject))


def _completeness(evidence: Evidence) -> Iterator[Difference]:
    sent = Counter(map(_identity, evidence.of_kind("event")))
    recorded = Counter(map(_identity, evidence.events))
    for identity, number in ((sent - recorded) + (recorded - sent)).items():
        yield Difference("not recorded", str(identity), None, None, number)
    health = evidence.observed["health"]
    counted, arrived = health["events_total"], len(evidence.recorded)
    if counted != arrived:
        yield Difference("not counted", "events", None, counted, arrived)
    for key in ("dropped_total", "malformed_total"):
        if health[key]:
            yield Difference("not counted", key, None, health[key], 0)


def _identity(event: Json) -> tuple[Any, ...]:
    return tuple(event.get(key) for key in ("type", "hostname", "pid", "clock", "uuid"))


def _messages(evidence: Evidence, tasks: dict[str, reference.Task]) -> Iterator[Difference]:
    """The arguments that are said to be known, and what the reference says, against the last message of the task."""
    last = {message["id"]: message for message in evidence.of_kind("message")}
    ours = {task["id"]: task["arguments"] for task in evidence.observed["tasks"]}
    for task_id, message in last.items():
        if task_id in tasks:
            task = tasks[task_id]
            said = [task.message(key) for key in ("name", "root_id", "args", "kwargs")]
            true = [message[key] for key in ("task", "root_id", "argsrepr", "kwargsrepr")]
            if said != true:
                yield Difference("reference", task_id, message["task"], said, true)
        known = ours.get(task_id)
        if known and known["fidelity"] in {"exact", "probable"}:
            values, true = [known["args"], known["kwargs"]], [list(message["args"]), message["kwargs"]]
            if values != true:
                yield Difference("values", task_id, message["task"], values, true)


def _task(theirs: reference.Task, ours: Json) -> Iterator[Difference]:
    shown = ours | {key: ours["arguments"][key] for key in ("fidelity", "source")} | {"runs": _outcomes(theirs, ours)}
    passed_over: set[str] = set()
    if _is_lost(theirs, ours):
        passed_over |= {"state", "finished", "runtime"}
    if _is_in_the_broker(theirs, ours):
        passed_over |= {"fidelity", "source"}
    if not theirs.sent and ours["queue"] == ONLY_QUEUE:  # no event names it, but the worker says what it consumes
        passed_over |= {"queue"}
    for key, value in theirs.facts.items():
        if key not in passed_over and not _equal(shown[key], value):
            yield Difference(key, theirs.id, theirs.message("name"), shown[key], value)
    moments: list[float | None] = [*theirs.sent] or [None]
    if not any(_equal(ours["sent"], at) for at in moments):
        yield Difference("sent", theirs.id, theirs.message("name"), ours["sent"], theirs.sent)


def _is_lost(theirs: reference.Task, ours: Json) -> bool:
    """Its worker, which ends with the suite, left it unfinished: LOST is then what the product is to say."""
    return ours["state"] == "LOST" and theirs.state not in reference.FINISHED


def _outcomes(theirs: reference.Task, ours: Json) -> list[str | None]:
    """Of what was delivered: a message that was sent and that no worker received is no run of the reference."""
    received = sum(run.received is not None for run in theirs.runs)
    open_ends = {None, "lost"} if _is_lost(theirs, ours) else {None}
    waiting = [run for run in ours["runs"] if run["worker"] is None and run["outcome"] in open_ends]
    passed_over = waiting[: max(0, len(theirs.sent) - received)]
    outcomes = [run["outcome"] for run in ours["runs"] if not any(run is each for each in passed_over)]
    return [*outcomes[:-1], None] if outcomes and _is_lost(theirs, ours) else outcomes


def _is_in_the_broker(theirs: reference.Task, ours: Json) -> bool:
    """The message of an unfinished task lies in the broker, where the product reads it. Its values are compared."""
    return ours["arguments"]["source"] in {"queue", "unacked"} and theirs.state not in reference.FINISHED


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return abs(ours - theirs) < SECONDS
    return bool(ours == theirs)


def _listed(observed: Json) -> Iterator[Difference]:
    """A task in the list is the task on its own page."""
    for row, task in zip(observed["listed"], observed["tasks"], strict=True):
        other = {key: value for key, value in row.items() if task[key] != value}
        if other:
            yield Difference("list and detail", row["id"], row["name"], other, {key: task[key] for key in other})


def _state(theirs: reference.Task, ours: dict[str, Json]) -> str:
    task = ours.get(theirs.id)
    return "LOST" if task and _is_lost(theirs, task) else theirs.state


def _counts(observed: Json, tasks: dict[str, reference.Task], ours: dict[str, Json]) -> Iterator[Difference]:
    expected = Counter(_state(task, ours) for task in tasks.values())
    by_word = {WORDS.get(state, state.lower()): number for state, number in expected.items()}
    by_word["any"] = len(tasks)
    for word, shown in observed["counts"].items():
        if shown != by_word.get(word, 0):
            yield Difference("count by state", word, None, shown, by_word.get(word, 0))


def _workflows(observed: Json, tasks: dict[str, reference.Task], ours: dict[str, Json]) -> Iterator[Difference]:
    shown = {each["root_id"]: each for each in observed["workflows"]}
    expected = reference.workflows(tasks.values())
    for root in shown.keys() | expected.keys():
        name = tasks[root].message("name") if root in tasks else None
        members = {step["id"] for step in shown[root]["items"]} if root in shown else set()
        wanted = expected.get(root, set()) | ({root} if root in expected else set())
        if members != wanted:
            yield Difference("workflow", root, name, sorted(members - wanted), sorted(wanted - members))
            continue
        states = Counter(_state(tasks[each], ours) if each in tasks else "unknown" for each in wanted)
        if shown[root]["states"] != states:
            yield Difference("workflow", root, name, shown[root]["states"], dict(states))


def by_kind(found: Iterable[Difference]) -> dict[str, list[Difference]]:
    groups: dict[str, list[Difference]] = defaultdict(list)
    for each in found:
        groups[each.kind].append(each)
    return groups


def lines(text: str) -> list[Json]:
    """The objects of a file with one on each line."""
    return [json.loads(line) for line in text.splitlines()]
