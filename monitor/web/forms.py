"""What a form says, as a command, and where its outcome is shown."""

from collections.abc import Callable
from typing import Any
from typing import TypeVar
from urllib.parse import quote

from msgspec.inspect import BoolType
from msgspec.inspect import FloatType
from msgspec.inspect import Type
from msgspec.inspect import VarTupleType
from starlette.datastructures import FormData

from monitor.control.commands import ClusterCommand
from monitor.control.commands import Command
from monitor.control.commands import Performed
from monitor.control.commands import given_fields
from monitor.control.commands import is_whole
from monitor.control.commands import kinds_of
from monitor.control.commands import noted
from monitor.control.commands import plain
from monitor.errors import InvalidInput
from monitor.errors import MonitorError
from monitor.web.pages import Act
from monitor.web.pages import Deed
from monitor.web.pages import Result
from monitor.web.pages import View

TONES = {"done": "good", "unconfirmed": "warning", "failed": "bad"}
Form = dict[str, str]
CommandT = TypeVar("CommandT", bound=Command)


def fields(form: FormData) -> Form:
    """The texts of a form."""
    return {name: str(value) for name, value in form.items()}


def command_of(command: type[CommandT], form: Form, **address: Any) -> CommandT:
    """The command that a form asks for. Raises InvalidInput.

    What is not in the form, or left empty, has its default. ``address`` are the fields that the address of the form
    gives; the cluster is else in its field ``of_cluster``.
    """
    given: dict[str, Any] = {}
    for each in given_fields(command):
        if each.required or each.name in form:
            value = _value(form, each.name, kinds_of(command)[each.name])
            given[each.name] = each.default if value == "" and not each.required else value
    if issubclass(command, ClusterCommand):
        address.setdefault("cluster", form.get("of_cluster", ""))
    return command(**address, **given)


def _value(form: Form, name: str, kind: Type) -> object:
    text, limits = form.get(name, ""), plain(kind)
    if is_whole(limits):
        return whole(form, name)
    if isinstance(limits, FloatType):
        return seconds(form, name)
    if isinstance(limits, BoolType):
        return text == "1"
    if isinstance(limits, VarTupleType):
        return tuple(text.split())
    return text.strip() if noted(kind, "strip") else text


def whole(form: Form, name: str) -> int:
    """Raises InvalidInput for what is no whole number."""
    try:
        return int(form.get(name, "").strip())
    except ValueError:
        raise InvalidInput(f"{name} {form.get(name, '')!r} is no whole number", field=name) from None


def seconds(form: Form, name: str) -> float | None:
    """Nothing where nothing was typed; raises InvalidInput for what is no number."""
    text = form.get(name, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"{name} {text!r} is no number of seconds", field=name) from None


def doing(folder: str, parameter: str, make: Callable[[str, Form], Command]) -> Act:
    """Performs what ``make`` reads from the thing's name and the form, and goes back to the page of the thing."""

    def act(view: View, deed: Deed) -> Result:
        name = str(view.params[parameter])
        return performing(
            f"{folder}/{quote(name, safe='', errors='replace')}", view, deed, lambda form: make(name, form)
        )

    return act


def performing(path: str, view: View, deed: Deed, make: Callable[[Form], Command]) -> Result:
    """Performs what ``make`` reads from the form, and goes to ``path`` with what came of it."""
    try:
        performed = deed.controller.perform(deed.actor, make(fields(deed.form)))
    except MonitorError as error:
        return Result(path, {"cluster": view.cluster}, error.message, "bad")
    return back(path, view, performed)


def back(path: str, view: View, performed: Performed) -> Result:
    return Result(path, {"cluster": view.cluster}, performed.message, TONES[performed.outcome])
