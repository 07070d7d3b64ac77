"""What all operations share that change something: their errors, and what came of it."""

from collections.abc import Callable
from typing import Literal

from msgspec import UNSET
from msgspec import Raw
from msgspec import Struct
from msgspec import UnsetType

from monitor.control.commands import Command
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.errors import ArgumentsUnknown
from monitor.errors import BrokerUnavailable
from monitor.errors import ConfirmationRequired
from monitor.errors import Conflict
from monitor.errors import MonitorError
from monitor.errors import NotFound
from monitor.errors import NotTaken
from monitor.errors import TakenUnknown
from monitor.errors import TooLarge
from monitor.errors import Unsupported
from monitor.errors import UnsupportedType
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.shapes import AnswerItem
from monitor.web.api.shapes import Told

CHANGE_ERRORS = (NotFound, Conflict, TooLarge, UnsupportedType)
ACTION_ERRORS = (*CHANGE_ERRORS, Unsupported, BrokerUnavailable)
RETRY_ERRORS = (*ACTION_ERRORS, ArgumentsUnknown, ConfirmationRequired, NotTaken, TakenUnknown)
ERRORS: tuple[type[MonitorError], ...] = (
    NotFound, Conflict, ConfirmationRequired, TooLarge, UnsupportedType, Unsupported, BrokerUnavailable,
)  # fmt: skip


def told(call: Call, command: Command) -> Told:
    """A refusal of every worker is a conflict; of some, it stands beside the answers of the others."""
    performed = done(call, command)
    answers = [AnswerItem(worker=each.id, outcome=each.outcome, message=each.message) for each in performed.results]
    return Told(outcome=_told_outcome(performed), message=performed.message, answers=answers)


def done(call: Call, command: Command) -> Performed:
    return call.controller.perform(call.actor, command)


def _told_outcome(performed: Performed) -> Literal["done", "unconfirmed"]:
    if performed.outcome == "failed":
        answers = [{"worker": each.id, "outcome": each.outcome, "message": each.message} for each in performed.results]
        raise Conflict(performed.message, answers=answers)
    return performed.outcome


def cluster_named(call: Call, name: str | None) -> str:
    """The cluster that is named, or the only one."""
    if name is not None:
        return name
    if len(call.settings.clusters) != 1:
        raise Conflict(f"Say which cluster: add cluster= to the address, one of {', '.join(call.settings.clusters)}.")
    return call.settings.clusters[0]


def post(
    path: str,
    handle: Callable[..., Struct],
    body: type[Struct],
    summary: str,
    parameters: type[Struct],
    answer: type[Struct] = Told,
    errors: tuple[type[MonitorError], ...] = ERRORS,
) -> Operation:
    return Operation(
        method="POST",
        path=f"/api/v1/{path}",
        handle=handle,
        summary=summary,
        answer=answer,
        parameters=parameters,
        body=body,
        errors=errors,
    )


def outcome(performed: Performed) -> Literal["done", "unconfirmed"]:
    if performed.outcome == "failed":
        raise Conflict(performed.message)
    return performed.outcome


def json_text(raw: Raw | UnsetType) -> str | None:
    return None if raw is UNSET else bytes(raw).decode()


def only_result(performed: Performed) -> TaskResult:
    if not performed.results:
        raise Conflict(performed.message)
    return performed.results[0]


def given_or(value: float | UnsetType, default: float) -> float:
    return default if value is UNSET else value
