"""What the result backend knows of tasks whose end no event told. Reads JSON alone, and never a pickle."""

import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

from celery.utils.saferepr import saferepr

from monitor.brokers.results import result_backend
from monitor.brokers.results import stored_results
from monitor.errors import BrokerUnavailable
from monitor.lifecycle import parse_time
from monitor.settings import Broker
from monitor.settings import Settings

EARLY_SECONDS = 5.0  # a short task can have stored its result before its worker says that it was started
LONGEST_REPR = 1024  # as Celery cuts the result in an event
ENDS = {"SUCCESS": "task-succeeded", "FAILURE": "task-failed", "REVOKED": "task-revoked"}

log = logging.getLogger(__name__)


class End(NamedTuple):
    """How a task ended: the type of the event that would have told it. ``done`` by the worker's clock."""

    event: str
    done: float | None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None
    worker: str | None = None  # only an extended backend says it

    def since(self, begun: float, now: float) -> float | None:
        """When a run that began then ended, at the latest now; ``None`` where this is an older end of the same id."""
        done = self.done if self.done is not None else now
        return min(max(done, begun), now) if done >= begun - EARLY_SECONDS else None


class Ends:
    """What the result backend of one cluster tells of ends."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        self._complained = False

    @property
    def absence(self) -> str:
        """What it means that no end is known here: a backend that is not read may know one."""
        backend = result_backend(self._broker, self._settings)
        if backend.kind == "unreadable":
            return f"its result backend ({backend.address}) cannot be read from here, and may know more"
        return "no result backend tells of it"

    def of(self, ids: Sequence[str]) -> dict[str, End] | None:
        """Those of these tasks whose end is known; ``None`` where the backend does not answer (logged once).

        Where there is no backend that can be read, no end is known.
        """
        try:
            stored = stored_results(self._broker, self._settings, ids)
        except BrokerUnavailable as error:
            if not self._complained:
                log.warning("%s", error)
            self._complained = True
            return None
        self._complained = False
        found = {task_id: read_end(payload) for task_id, payload in stored.items()}
        return {task_id: end for task_id, end in found.items() if end is not None}


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
    worker = meta["worker"] if isinstance(meta.get("worker"), str) else None
    event, result, traceback = ENDS[meta["status"]], meta.get("result"), meta.get("traceback")
    if event == "task-succeeded":
        kept = str(saferepr(result, LONGEST_REPR)) if "result" in meta else None  # pickled: not opened
        return End(event, done, result=kept, worker=worker)
    text = traceback if isinstance(traceback, str) else None
    return End(event, done, exception=_exception(result), traceback=text, worker=worker)


def _exception(stored: object) -> str | None:
    """``ValueError('no such order')`` of what Celery's JSON keeps of an exception."""
    if not isinstance(stored, dict) or not isinstance(stored.get("exc_type"), str):
        return None
    message = stored.get("exc_message")
    given = message if isinstance(message, list) else [] if message is None else [message]
    return f"{stored['exc_type']}({', '.join(map(repr, given))})"
