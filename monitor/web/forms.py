"""What a form says, and where its outcome is shown."""

from collections.abc import Callable
from urllib.parse import quote

from starlette.datastructures import FormData

from monitor.control.commands import Command
from monitor.control.commands import Performed
from monitor.errors import InvalidInput
from monitor.errors import MonitorError
from monitor.web.pages import Act
from monitor.web.pages import Deed
from monitor.web.pages import Result
from monitor.web.pages import View

TONES = {"done": "good", "unconfirmed": "warning", "failed": "bad"}
Form = dict[str, str]


def fields(form: FormData) -> Form:
    """The texts of a form."""
    return {name: str(value) for name, value in form.items()}


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
        path = f"{folder}/{quote(name, safe='', errors='replace')}"
        try:
            performed = deed.controller.perform(deed.actor, make(name, fields(deed.form)))
        except MonitorError as error:
            return Result(path, {"cluster": view.cluster}, error.message, "bad")
        return back(path, view, performed)

    return act


def back(path: str, view: View, performed: Performed) -> Result:
    return Result(path, {"cluster": view.cluster}, performed.message, TONES[performed.outcome])
