"""What a form says, as a command, and where its outcome is shown."""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

from msgspec.inspect import BoolType, FloatType, Type, VarTupleType
from starlette.datastructures import FormData

from celery_monitor.control.commands import (
    ClusterCommand,
    Command,
    Performed,
    given_fields,
    is_whole,
    kinds_of,
    noted,
    plain,
)
from celery_monitor.errors import InvalidInput, MonitorError
from celery_monitor.web.pages import Act, FormRequest, Result, View

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

    def act(view: View, request: FormRequest) -> Result:
        name = str(view.params[parameter])
        return performing(
            f"{folder}/{quote(name, safe='', errors='replace')}", view, request, lambda form: make(name, form)
        )

    return act


def performing(path: str, view: View, request: FormRequest, make: Callable[[Form], Command]) -> Result:
    """Performs what ``make`` reads from the form, and goes to ``path`` with what came of it."""
    try:
        performed = request.controller.perform(request.actor, make(fields(request.form)))
    except MonitorError as error:
        return Result(path, {"cluster": view.cluster}, error.message, "bad")
    return back(path, view, performed)


def back(path: str, view: View, performed: Performed) -> Result:
    return Result(path, {"cluster": view.cluster}, performed.message, TONES[performed.outcome])
