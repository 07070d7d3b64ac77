"""Forms of pages: parse one into a command, perform it, and redirect with the outcome."""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

from msgspec.inspect import BoolType, FloatType, Type, VarTupleType
from starlette.datastructures import FormData

from celery_monitor.control.commands import (
    ClusterCommand,
    Command,
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
    """The fields of a form as text."""
    return {name: str(value) for name, value in form.items()}


def command_of(command: type[CommandT], form: Form, **address: Any) -> CommandT:
    """The command that a form asks for. Raises InvalidInput.

    A missing or empty field has its default. ``address`` are the fields that the URL gives; without a cluster among
    them it is in the form field ``of_cluster``.
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
    """An integer field. Raises InvalidInput."""
    try:
        return int(form.get(name, "").strip())
    except ValueError:
        raise InvalidInput(f"{name} {form.get(name, '')!r} must be an integer", field=name) from None


def seconds(form: Form, name: str) -> float | None:
    """A number of seconds; ``None`` for an empty field. Raises InvalidInput."""
    text = form.get(name, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"{name} {text!r} must be a number of seconds", field=name) from None


def action_on(folder: str, parameter: str, make: Callable[[str, Form], Command]) -> Act:
    """An action that performs the command from ``make(name, form)`` and redirects to ``folder/name``."""

    def act(view: View, request: FormRequest) -> Result:
        name = str(view.params[parameter])
        return perform_form(
            f"{folder}/{quote(name, safe='', errors='replace')}", view, request, lambda form: make(name, form)
        )

    return act


def perform_form(path: str, view: View, request: FormRequest, make: Callable[[Form], Command]) -> Result:
    """Performs the command from ``make(form)`` and redirects to ``path`` with the outcome."""
    try:
        performed = request.controller.perform(request.actor, make(fields(request.form)))
    except MonitorError as error:
        return Result(path, {"cluster": view.cluster}, error.message, "bad")
    return Result(path, {"cluster": view.cluster}, performed.message, TONES[performed.outcome])
