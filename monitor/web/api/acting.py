"""What all operations share that change something: their errors, and what came of it."""

import re
from collections.abc import Callable
from inspect import getdoc
from typing import Any
from typing import Literal

from msgspec import UNSET
from msgspec import Raw
from msgspec import Struct
from msgspec import UnsetType
from msgspec import defstruct
from msgspec import structs

from monitor.control.commands import Command
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.control.commands import given_fields
from monitor.control.commands import is_whole
from monitor.control.commands import kinds_of
from monitor.control.commands import summary_of
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
from monitor.web.api.requests import Why
from monitor.web.api.shapes import AnswerItem
from monitor.web.api.shapes import Told

CHANGE_ERRORS = (NotFound, Conflict, TooLarge, UnsupportedType)
ACTION_ERRORS = (*CHANGE_ERRORS, Unsupported, BrokerUnavailable)
RETRY_ERRORS = (*ACTION_ERRORS, ArgumentsUnknown, ConfirmationRequired, NotTaken, TakenUnknown)
ERRORS: tuple[type[MonitorError], ...] = (
    NotFound, Conflict, ConfirmationRequired, TooLarge, UnsupportedType, Unsupported, BrokerUnavailable,
)  # fmt: skip
_capital = re.compile(r"(?<!^)[A-Z]")
_bodies: dict[str, type[Struct]] = {Why.__name__: Why}


def told(performed: Performed) -> Told:
    """A refusal of every worker is a conflict; of some, it stands beside the answers of the others."""
    answers = [AnswerItem(worker=each.id, outcome=each.outcome, message=each.message) for each in performed.results]
    if performed.outcome == "failed":
        raise Conflict(performed.message, answers=[structs.asdict(each) for each in answers])
    return Told(outcome=performed.outcome, message=performed.message, answers=answers)


def done(call: Call, command: Command) -> Performed:
    return call.controller.perform(call.actor, command)


def cluster_named(call: Call, name: str | None) -> str:
    """The cluster that is named, or the only one."""
    if name is not None:
        return name
    if len(call.settings.clusters) != 1:
        raise Conflict(f"Say which cluster: add cluster= to the address, one of {', '.join(call.settings.clusters)}.")
    return call.settings.clusters[0]


def operation(
    command: type[Command],
    parameters: type[Struct],
    address: Callable[[Call, Any], dict[str, Any]],
    answer: type[Struct] = Told,
    reply: Callable[[Performed], Struct] = told,
    errors: tuple[type[MonitorError], ...] = ERRORS,
) -> Operation:
    """The operation that performs a command. ``address`` finds the fields that the address gives, and may raise."""

    def handle(call: Call, given: Struct, body: Struct) -> Struct:
        return reply(done(call, command(**address(call, given), **_given(command, body))))

    return Operation(
        method="POST",
        path=f"/api/v1/{command.route}",
        handle=handle,
        id=_capital.sub(r"_\g<0>", command.__name__).lower(),
        summary=summary_of(command),
        answer=answer,
        parameters=parameters,
        body=body_of(command),
        errors=errors,
    )


def body_of(command: type[Command]) -> type[Struct]:
    """The request's body: the fields of a command that its address does not give. Commands may share one."""
    if command.body not in _bodies:
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
            (each.name, each.type) if each.required else (each.name, each.type, each.default)
            for each in given_fields(command)
        ]
        text = {"__doc__": (getdoc(command) or "").partition("\n\n")[2]}
        _bodies[command.body] = defstruct(
            command.body, fields, frozen=True, forbid_unknown_fields=True, kw_only=True, namespace=text, module=__name__
        )
    return _bodies[command.body]


def _given(command: type[Command], body: Struct) -> dict[str, Any]:
    kinds = kinds_of(command)
    values = {name: getattr(body, name) for name in body.__struct_fields__}
    return {
        name: int(value) if is_whole(kinds[name]) and value is not None else value for name, value in values.items()
    }


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
