"""A user's Celery application as a document: the effective values of the settings that we use.

``brokers/read_application.py`` writes the document in a process that imports the application; all other processes have
only the document.
"""

import ssl
from datetime import timedelta
from typing import Any

from msgspec import Struct

TLS_SETTING = "broker_use_ssl"


class AppEntry(Struct, frozen=True, kw_only=True):
    """An entry of ``beat_schedule``. ``schedule`` is a number of seconds, ``{"seconds": n}``, or a schedule's text."""

    name: str
    task: str
    args: str
    args_json: str | None
    kwargs: str
    kwargs_json: str | None
    queue: str | None
    schedule: object

    @property
    def when(self) -> object:
        return _value(self.schedule)


class Unread(Struct, frozen=True, kw_only=True):
    """Something that could not be read."""

    name: str
    reason: str


class Database(Struct, frozen=True, kw_only=True):
    """A table of Django; ``timezone`` applies to times without one."""

    url: str
    table: str
    timezone: str


class Application(Struct, frozen=True, kw_only=True, eq=False):  # without eq an object is its own hash
    """One application. ``unusable`` has the settings that cannot be in a document, each with the reason."""

    name: str | None = None
    conf: dict[str, object] = {}
    unusable: dict[str, str] = {}
    broker_read_url: str
    broker_write_url: str
    queues: tuple[str, ...] = ()
    tasks: dict[str, dict[str, str | bool | int | float]] = {}  # the options that each is sent with, by its name
    entries: tuple[AppEntry, ...] = ()
    unread: tuple[Unread, ...] = ()
    databases: dict[str, Database] = {}  # "results" and "beat"
    problems: dict[str, str] = {}

    @property
    def title(self) -> str:
        """Its name for messages: a script that starts Celery's command itself has none."""
        return self.name or "the application"

    def setting(self, name: str) -> Any:
        """The effective value of a Celery setting; ``None`` where it is not set or unusable."""
        return _value(self.conf.get(name))

    @property
    def configuration(self) -> dict[str, Any]:
        """All usable settings, as values for Celery."""
        return {name: _value(value) for name, value in self.conf.items()}

    @property
    def lacks_tls(self) -> str | None:
        """Why a connection would be less secure than the application's own."""
        return next((why for name, why in self.unusable.items() if name.partition(".")[0] == TLS_SETTING), None)


def _value(encoded: object) -> Any:
    if isinstance(encoded, list):
        return [_value(each) for each in encoded]
    if not isinstance(encoded, dict):
        return encoded
    [(kind, inside)] = encoded.items()
    match kind:
        case "mapping":
            return {_value(key): _value(value) for key, value in inside}
        case "list" | "tuple" | "set":
            return {"list": list, "tuple": tuple, "set": set}[kind](_value(each) for each in inside)
        case "seconds":
            return timedelta(seconds=inside)
        case "ssl":
            return getattr(ssl, inside)
    raise ValueError(f"unknown kind of value {kind!r}")
