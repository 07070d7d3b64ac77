"""The table of docs/conformance.md, and the differences by name."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.conformance import reference
from tests.conformance.accepted import ACCEPTED, Accepted, is_accepted, stale
from tests.conformance.compare import KINDS, Difference, Evidence, by_kind
from tests.conformance.suite import SAME_VERSIONS, Outcome

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "conformance.md"
BEGIN, END = "<!-- measured: make conformance OPTIONS=--document -->\n", "<!-- end -->"
LONGEST = 120
NAMED = {"redis": "Redis", "amqp": "RabbitMQ"}


@dataclass
class Result:
    """One run of the suite on one broker."""

    broker: str
    evidence: Evidence
    differences: list[Difference]
    tests: list[Outcome]
    alone: list[Outcome]  # the failed tests once more, without the product
    began: float
    seconds: float

    @property
    def unexplained(self) -> list[Difference]:
        return [each for each in self.differences if not is_accepted(each)]

    @property
    def stale(self) -> list[Accepted]:
        return stale(self.differences, {task.message("name") for task in self.tasks.values()})

    @property
    def tasks(self) -> dict[str, reference.Task]:
        return reference.evaluate(self.evidence.events)

    def tests_that(self, result: str) -> int:
        return sum(each.result == result for each in self.tests)


def summary(results: Sequence[Result]) -> str:
    """Markdown: the table, then the differences by name, then the tests that failed."""
    heads = [NAMED[each.broker] for each in results]
    rows = [
        ["tests passed, failed, skipped", *(_tests(each) for each in results)],
        ["run time of the suite", *(f"{each.seconds / 60:.1f} min" for each in results)],
        ["events sent, recorded, counted by the product", *(_events(each) for each in results)],
        ["tasks", *(f"{len(each.tasks):,}" for each in results)],
        ["runs", *(f"{sum(len(task.runs) for task in each.tasks.values()):,}" for each in results)],
        ["workflows", *(f"{len(reference.workflows(each.tasks.values())):,}" for each in results)],
        ["states, by the events", *(_states(each) for each in results)],
        ["not ended, and found to be lost", *(_lost(each) for each in results)],
        *([f"differences: {kind}", *(_number(each, kind) for each in results)] for kind in KINDS),
    ]
    table = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in rows)]
    versions = ", ".join(f"{each} {version(each)}" for each in SAME_VERSIONS)
    date = datetime.fromtimestamp(results[0].began, UTC).date()
    named = [line for each in results for line in (*_named(each), *_stale(each), *_failed(each))]
    return "\n".join([f"{date}; {versions}.", "", *table, "", *named])


def write_document(text: str) -> None:
    """Puts the outcome where the last one stands."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _tests(result: Result) -> str:
    return ", ".join(str(result.tests_that(each)) for each in ("passed", "failed", "skipped"))


def _events(result: Result) -> str:
    sent, counted = len(result.evidence.of_kind("event")), result.evidence.observed["health"]["events_total"]
    return f"{sent:,}, {len(result.evidence.events):,}, {counted - 1:,}"  # without the one that ends the recording


def _states(result: Result) -> str:
    counted = reference.states(result.tasks.values())
    return ", ".join(f"{number:,} {state}" for state, number in counted.most_common())


def _lost(result: Result) -> str:
    """No event tells of it: the product looked into the queue, or missed the worker."""
    return str(sum(task["state"] == "LOST" for task in result.evidence.observed["tasks"]))


def _number(result: Result, kind: str) -> str:
    found = by_kind(result.differences).get(kind, [])
    accepted = sum(map(is_accepted, found))
    return f"{len(found)}, of which {accepted} accepted" if accepted else str(len(found))


def _named(result: Result) -> list[str]:
    """A line for each kind of difference and name of a task, with the first as its example."""
    alike: dict[tuple[str, str], list[Difference]] = defaultdict(list)
    for each in result.differences:
        alike[each.kind, each.name or ""].append(each)
    return [
        f"- {NAMED[result.broker]}, {kind}, {len(found)} of {name or '(no name)'}, as `{found[0].subject}`: "
        f"`{_short(found[0].ours)}` instead of `{_short(found[0].theirs)}`{_reason(found[0])}"
        for (kind, name), found in alike.items()
    ]


def _reason(difference: Difference) -> str:
    return "".join(f"; accepted: {each.reason}" for each in ACCEPTED if each.covers(difference))


def _stale(result: Result) -> list[str]:
    """What is to be taken out of accepted.py."""
    broker = NAMED[result.broker]
    return [f"- {broker}, stale: {each.kind} of {each.name} is accepted and no longer differs" for each in result.stale]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _failed(result: Result) -> list[str]:
    broker = NAMED[result.broker]
    alone = {each.test: each.result for each in result.alone}
    failed = [each for each in result.tests if each.result == "failed"]
    return [f"- {broker}, `{each.test}`: {alone.get(each.test)} without the product; {each.reason}" for each in failed]
