"""What is wrong with the application under ``-A`` and with its results, and the fix. No I/O, no clock."""

from collections.abc import Iterator
from typing import NamedTuple

from monitor.application import Application
from monitor.diagnosis import Finding


class ResultFacts(NamedTuple):
    """The result backend of a cluster. ``reason``: why it is not read; ``refusal``: why it does not answer."""

    address: str
    reason: str | None
    refusal: str | None


def judge_application(application: Application, workers_answered: bool) -> Iterator[Finding]:
    """Everything about its configuration."""
    shown = application.title
    for name, why in sorted(application.unusable.items()):
        what = f"{name} of {shown} cannot be used here: {why}."
        yield Finding("application", "note", what, "Set it to plain values, or give it as an option.")
    for why in application.problems.values():
        yield Finding("application", "wrong", f"{shown}: {why}.", "Start where workers start, with their environment.")
    for each in application.unread:
        what = f"The entry {each.name!r} of beat_schedule cannot be read: {each.reason}."
        yield Finding("schedule", "wrong", what, "Beat cannot read it either; fix the entry.")
    if not application.unusable and not application.problems:
        yield Finding("application", "ok", f"The configuration of {shown} is used.")
    accepted = application.setting("accept_content")
    if accepted and not {"json", "application/json"} & set(accepted):
        yield Finding(
            "content",
            "wrong",
            f"Workers accept {', '.join(sorted(map(str, accepted)))} and not json: what is retried or run from here, "
            "they refuse.",
            "Add json to accept_content.",
        )
    if not workers_answered and application.setting("task_send_sent_event") is False:
        what = f"task_send_sent_event is off in {shown}: a task is not seen until a worker takes it."
        yield Finding("sent events", "wrong", what, "Set task_send_sent_event = True where tasks are sent from.")


def judge_results(facts: ResultFacts | None) -> Finding:
    """Whether results can be read: arguments and missed ends come from there."""
    if facts is None:
        return Finding(
            "result backend",
            "note",
            "None is named: ends that were missed, and arguments that events cut, stay unknown.",
            "Give --result-backend, or start with -A.",
        )
    if facts.reason is not None:
        return Finding(
            "result backend",
            "note",
            f"{facts.address} cannot be read: {facts.reason}.",
            "Ends that were missed stay unknown; results are read from Redis or an SQL database.",
        )
    if facts.refusal is not None:
        return Finding("result backend", "wrong", facts.refusal, "Check its address, and that it runs.")
    return Finding("result backend", "ok", f"Results in {facts.address} can be read.")
