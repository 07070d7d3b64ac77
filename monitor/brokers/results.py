"""What the result backend knows of tasks whose end no event told. Reads JSON alone, and never a pickle."""

import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

from celery import Celery
from celery.backends.base import BaseKeyValueStoreBackend
from celery.utils.saferepr import saferepr
from kombu.exceptions import KombuError

from monitor.brokers.connection import app_for
from monitor.lifecycle import parse_time
from monitor.settings import Broker
from monitor.settings import Settings

LONGEST_REPR = 1024  # as Celery cuts the result in an event
ENDS = {"SUCCESS": "task-succeeded", "FAILURE": "task-failed", "REVOKED": "task-revoked"}
# In all these the backend does not answer, or its library is not installed.
_TROUBLE = (OSError, KombuError, ImportError, ValueError, TypeError, AttributeError)

log = logging.getLogger(__name__)


class End(NamedTuple):
    """How a task ended: the type of the event that would have told it. ``done`` by the worker's clock."""

    event: str
    done: float | None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None


class Results:
    """The result backend of one cluster: of the setting, else of the application, else nothing is known."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._app = Celery("celery-monitor-results", set_as_current=False, fixups=[])
        self._app.conf.update(app_for(broker, settings).conf.table(with_defaults=False, censored=False))
        if settings.result_backend is not None:
            self._app.conf.result_backend = settings.result_backend
        self._known = self._app.conf.result_backend is not None
        self._complained = False

    def ends(self, ids: Sequence[str]) -> dict[str, End]:
        """Those of these tasks whose end is known. A backend that does not answer knows nothing (logged once)."""
        if not self._known or not ids:
            return {}
        errors: tuple[type[Exception], ...] = (*_TROUBLE, *_library_errors(self._app))
        try:
            backend = self._app.backend
            if not isinstance(backend, BaseKeyValueStoreBackend):
                return {}
            found = {each: read_end(backend.get(backend.get_key_for_task(each))) for each in ids}
        except errors as error:
            if not self._complained:
                log.warning("the result backend does not answer: %s", error)
            self._complained = True
            return {}
        self._complained = False
        return {each: end for each, end in found.items() if end is not None}


def _library_errors(app: Celery) -> tuple[type[Exception], ...]:
    try:
        return tuple(getattr(app.backend, "connection_errors", ()) or ())
    except _TROUBLE:
        return ()


def read_end(payload: bytes | str | None) -> End | None:
    """What Celery stored under a task's key; ``None`` where it is no JSON, or no end."""
    if payload is None:
        return None
    try:
        meta = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(meta, dict) or not isinstance(meta.get("status"), str) or meta["status"] not in ENDS:
        return None
    done = parse_time(meta["date_done"]) if isinstance(meta.get("date_done"), str) else None
    event, result, traceback = ENDS[meta["status"]], meta.get("result"), meta.get("traceback")
    if event == "task-succeeded":
        return End(event, done, result=str(saferepr(result, LONGEST_REPR)))
    return End(event, done, exception=_exception(result), traceback=traceback if isinstance(traceback, str) else None)


def _exception(stored: object) -> str | None:
    """``ValueError('no such order')`` of what Celery's JSON keeps of an exception."""
    if not isinstance(stored, dict) or not isinstance(stored.get("exc_type"), str):
        return None
    message = stored.get("exc_message")
    given = message if isinstance(message, list) else [] if message is None else [message]
    return f"{stored['exc_type']}({', '.join(map(repr, given))})"
