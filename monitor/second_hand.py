"""Arguments as somebody else tells them: an extended result backend, or the worker that has the task. No I/O.

Both are the values themselves, and neither is the message: so they are *probable*. JSON alone is read.
"""

import json
from dataclasses import dataclass

from monitor.errors import InvalidInput
from monitor.fidelity import INSPECT
from monitor.fidelity import RESULT
from monitor.fidelity import Arguments
from monitor.fidelity import Lossy
from monitor.fidelity import known
from monitor.fidelity import parse_json
from monitor.fidelity import parse_json_arguments
from monitor.fidelity import read_repr
from monitor.messages import Unreadable

MISSING = "callbacks, the rest of a chain, group, priority and custom headers are not known and not sent again"
FROM_RESULT = f"kept by the result backend; {MISSING}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Arguments, with the task's real name and its queue where they were told too."""

    arguments: Arguments
    name: str | None = None
    queue: str | None = None


def from_result(task_id: str, stored: bytes) -> Told:
    """What a backend keeps of a task with ``result_extended``. Raises Unreadable, with the reason."""
    try:
        meta = parse_json("result", stored.decode("utf-8"))
    except (UnicodeDecodeError, InvalidInput):
        raise Unreadable("what the result backend keeps of it is no JSON that is read here") from None
    if not isinstance(meta, dict) or meta.get("task_id") != task_id:
        raise Unreadable("what the result backend keeps under its id is of something else")
    if {"args", "kwargs"} & set(meta.get("unread") or ()):
        raise Unreadable("the result backend keeps its arguments as a pickle, which is never opened")
    args, kwargs = _values(meta.get("args"), list), _values(meta.get("kwargs"), dict)
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise Unreadable("the result backend keeps no arguments of it: that needs result_extended")
    return Told(
        arguments=known(args, kwargs, "probable", RESULT, FROM_RESULT),
        name=_text(meta.get("name")),
        queue=_text(meta.get("queue")),
    )


def _values(kept: object, kind: type) -> object:
    """django-db keeps the publisher's text of them. Raises Unreadable where that does not tell the values."""
    if not isinstance(kept, str):
        return kept
    try:
        read = read_repr(kept)
    except Lossy as error:
        raise Unreadable(f"the result backend keeps a text of its arguments that is not believed: {error}") from None
    read = list(read) if isinstance(read, tuple) else read
    if not isinstance(read, kind):
        raise Unreadable("the result backend keeps a text of something else than arguments under its id")
    return read


def from_worker(worker: str, said: object) -> Told:
    """What a worker answers to ``query_task`` about one task: its state there, and the task. Raises Unreadable."""
    match said:
        case [str(place), {"args": args, "kwargs": kwargs, **rest}]:
            reason = f"told by {worker}, which has it as {place}; {MISSING}"
        case _:
            raise Unreadable(f"{worker} does not have it")
    try:
        values = parse_json_arguments(_json("args", args), _json("kwargs", kwargs))
    except (InvalidInput, Lossy) as error:
        raise Unreadable(f"what {worker} tells of its arguments is not believed: {error}") from None
    return Told(arguments=known(*values, "probable", INSPECT, reason), name=_text(rest.get("name")))


def _json(field: str, value: object) -> str:
    """A worker tells the values, or in older versions the publisher's text of them."""
    if isinstance(value, str):
        value = read_repr(value)
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise Lossy(f"{field} hold more than JSON can carry") from None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
