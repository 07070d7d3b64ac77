"""The arguments of a task, and how certain they are.

A message that a worker captured (celery_monitor_capture) is *exact*: it is sent again as it was, whatever is in it.
Events carry no arguments, only a text that the publisher made of them with ``saferepr(maxlen=1024, maxlevels=3)``
(celery/utils/saferepr.py). That text is cut, does not escape, and may have been written by hand, so it is used only
where nothing can have been lost (``read_repr``), and is *probable* even then. An extended result backend and the
worker that has the task report the values themselves, but not the message: *probable*, too. JSON alone is read.
"""

import ast
import json
import math
import re
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal, NamedTuple, NoReturn

from celery_monitor.core.message import Unreadable, json_text, why_not_exact
from celery_monitor.core.sanitize import NAME_LENGTH, Redactor
from celery_monitor.errors import InvalidInput
from celery_monitor.records import event
from celery_monitor.records.event import Message
from celery_monitor.records.task import Task

Fidelity = Literal["exact", "probable", "unknown", "edited"]  # edited: typed by a person, for one retry
SOURCE = "event"  # the publisher's repr, as an event carried it
CAPTURE = "capture"  # the message, as a worker captured it
QUEUE = "queue"  # the message, as it lies in its queue
DELIVERED = "unacked"  # the message, as the broker keeps it until a worker acknowledges it
RESULT = "result"  # an extended result backend
INSPECT = "inspect"  # what a worker said of the task that it has
EDITOR = "editor"
MAX_REPR = 1040  # stock saferepr never makes an uncut text longer: its limit, quotes, and closing brackets
MAX_LEVELS = 3  # brackets within brackets that saferepr shows
MAX_JSON = 1_000_000  # characters that the editor takes, of args and of kwargs
MAX_JSON_LEVELS = 100

_REPLACEMENT = "\ufffd"  # what a NUL or a lone surrogate became before it was stored
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MASK = "***"
# CPython 3.11 and 3.12 count the depth of a tree for all threads at once, and raise SystemError (cpython #106905).
_parsing = Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A task's arguments. Texts and values are all there, or none is: where they are unknown, and where they are
    exact but in a form that is not opened here. ``masked``: a secret is left out, so they cannot be sent.
    """

    args: str | None
    kwargs: str | None
    args_value: list[object] | None
    kwargs_value: dict[str, object] | None
    fidelity: Fidelity
    source: str | None
    reason: str
    masked: bool = False

    @property
    def known(self) -> bool:
        return self.fidelity != "unknown"


class Lossy(ValueError):
    """A repr that cannot be believed; the message says why."""


PROBABLE = (
    "read back from the text that the publisher made of the arguments; "
    "callbacks, the rest of a chain, group, priority and custom headers are not known and not sent again"
)


NOT_REPORTED = "its sender reported no arguments: other clients than Celery's own leave the headers argsrepr out"
SENT_WHOLE = "body, headers, links and priority are sent again as they were"
EXACT = f"its message, as the worker got it: {SENT_WHOLE}"


class _Origin(NamedTuple):
    source: str
    words: str


def _origin(message: Message) -> _Origin:
    """Where a message is known from, for programs and for people."""
    queue = message.queue or "its queue"
    match message.why:
        case event.WAITING:
            return _Origin(QUEUE, f"the message in the queue {queue}: {SENT_WHOLE}")
        case event.READ:
            return _Origin(QUEUE, f"the message in the queue {queue}, as it lay there when it was read: {SENT_WHOLE}")
        case event.UNACKED:
            return _Origin(DELIVERED, f"its message, delivered to a worker and not acknowledged: {SENT_WHOLE}")
        case event.REMOVED:
            return _Origin(QUEUE, f"the message that was removed from the queue {queue}: {SENT_WHOLE}")
        case _:
            return _Origin(CAPTURE, EXACT)


def judge(task: Task, message: Message | None = None) -> Arguments:
    """What is known of a task's arguments: by its captured message, else by the stored texts."""
    if message is None:
        return _judge_texts(task)
    why_not = why_not_exact(message, task)
    if why_not is None:
        return _exact(message)
    judged = _judge_texts(task)
    return replace(judged, reason=f"{judged.reason}; {why_not}")


def _exact(message: Message) -> Arguments:
    """Sent as it is. What is in it is only shown where it is JSON."""
    origin = _origin(message)
    try:
        document = parse_json("body", json_text(message))
    except Unreadable as error:
        return _unseen(origin, str(error))
    except InvalidInput:
        return _unseen(origin, NOT_SHOWN)
    match document:
        case [list() as args, dict() as kwargs, *_]:
            return known(args, kwargs, "exact", origin.source, origin.words)
        case _:
            return _unseen(origin, NOT_SHOWN)


NOT_SHOWN = "its arguments cannot be shown"


def _unseen(origin: _Origin, why: str) -> Arguments:
    return replace(_unknown(f"{origin.words}; {why}"), fidelity="exact", source=origin.source)


def without_secrets(arguments: Arguments, redactor: Redactor) -> Arguments:
    """The arguments as they may be shown: a captured message holds secrets that events were stored without."""
    if arguments.args is None or arguments.kwargs is None:
        return arguments
    texts = [redactor.text(arguments.args), redactor.text(arguments.kwargs)]
    if texts == [arguments.args, arguments.kwargs]:
        return arguments
    try:
        args, kwargs = parse_json_arguments(*texts)
    except InvalidInput:
        hidden = replace(_unknown(arguments.reason), fidelity=arguments.fidelity, source=arguments.source)
        return replace(hidden, masked=True)
    return replace(known(args, kwargs, arguments.fidelity, str(arguments.source), arguments.reason), masked=True)


def _judge_texts(task: Task) -> Arguments:
    if task.args is None or task.kwargs is None:
        return _unknown("no event carried its arguments")
    if "" in {task.args, task.kwargs}:  # a worker reports the headers argsrepr and kwargsrepr as they came
        return _unknown(NOT_REPORTED)
    try:
        args = _within("args", task.args)
        kwargs = _within("kwargs", task.kwargs)
    except Lossy as error:
        return _unknown(str(error))
    if not isinstance(args, (list, tuple)):
        return _unknown("args are neither a tuple nor a list")
    if not isinstance(kwargs, dict):
        return _unknown("kwargs are not a dictionary")
    return known(list(args), kwargs, "probable", SOURCE, PROBABLE)


def known(args: list[object], kwargs: dict[str, object], fidelity: Fidelity, source: str, reason: str) -> Arguments:
    """Arguments that can be sent, with the JSON that shows them."""
    return Arguments(
        args=json.dumps(args, ensure_ascii=False, allow_nan=False),
        kwargs=json.dumps(kwargs, ensure_ascii=False, allow_nan=False),
        args_value=args,
        kwargs_value=kwargs,
        fidelity=fidelity,
        source=source,
        reason=reason,
    )


def edit(arguments: Arguments, args: str | None, kwargs: str | None) -> Arguments:
    """What is known, with JSON that a person typed in the place of args, of kwargs or of both.

    Raises InvalidInput for what is no JSON; unknown stays unknown until both are given.
    """
    if args is None and kwargs is None:
        return arguments
    args = arguments.args if args is None else args
    kwargs = arguments.kwargs if kwargs is None else kwargs
    if args is None or kwargs is None:
        return arguments
    return known(*parse_json_arguments(args, kwargs), "edited", EDITOR, "typed in by hand")


def is_whole(name: str) -> bool:
    """Whether a name was certainly stored as it was sent: neither cut nor with characters replaced."""
    return len(name) < NAME_LENGTH and _REPLACEMENT not in name


def _unknown(reason: str) -> Arguments:
    return Arguments(
        args=None, kwargs=None, args_value=None, kwargs_value=None, fidelity="unknown", source=None, reason=reason
    )


def _within(field: str, text: str) -> object:
    try:
        return read_repr(text)
    except Lossy as error:
        raise Lossy(f"{field}: {error}") from None


def read_repr(text: str) -> object:
    """The one JSON-able value of which saferepr makes this text, uncut; raises Lossy.

    Without a backslash no string can hold an apostrophe, so quotes pair up as they look; without dots in a row
    nothing was left out; and a value whose repr is the same text again has no second reading.
    """
    _check_text(text)
    try:
        with _parsing:
            value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Lossy("not only plain values: an object, or something that was cut") from None
    if _repr(value, 0) != text:
        raise Lossy("reading it back gives another text than the publisher's")
    return value


def _check_text(text: str) -> None:
    if "..." in text or "…" in text:
        raise Lossy("shortened with dots: it was too long or too deep to be sent whole")
    if len(text) > MAX_REPR:
        raise Lossy("longer than Celery's limit, so written or cut by something else")
    if _MASK in text:
        raise Lossy("a secret in it is masked")
    if "\\" in text:
        raise Lossy("a backslash in it, which the publisher's text does not escape")
    if _CONTROL.search(text):
        raise Lossy("a control character in it")
    if _REPLACEMENT in text:
        raise Lossy("a character in it could not be stored as it was")


def _repr(value: object, level: int) -> str:
    """What saferepr makes of an accepted value; raises Lossy for any other."""
    if isinstance(value, str):
        return f"'{value}'"
    if value is None or isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if level >= MAX_LEVELS:
        raise Lossy("deeper than the publisher's text shows")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {_repr(each, level + 1)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_repr(each, level + 1) for each in value) + "]"
    if isinstance(value, tuple):
        return _tuple(value, level)
    raise Lossy(f"a {type(value).__name__} in it, which JSON cannot carry")


def _tuple(value: tuple[object, ...], level: int) -> str:
    # The outermost holds the arguments. Inside, JSON would have made a list of it and pickle would not.
    if level:
        raise Lossy("a tuple inside, and whether the worker got a tuple or a list is not known")
    inner = ", ".join(_repr(each, 1) for each in value)
    return f"({inner},)" if len(value) == 1 else f"({inner})"


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise Lossy("an infinite number in it, which JSON cannot carry")
    return str(value)


def _key(key: object) -> str:
    # JSON turns {1: ...} into {"1": ...} and pickle does not: which of them the worker got is not known.
    if not isinstance(key, str):
        raise Lossy(f"a key that is {key!r}, not a string")
    return f"'{key}'"


def parse_json_arguments(args: str, kwargs: str) -> tuple[list[object], dict[str, object]]:
    """What a person typed: a JSON array and a JSON object.

    Raises InvalidInput whose detail has ``field`` and, where there is a place, ``line`` and ``column`` (from 1).
    """
    args_value = parse_json("args", args)
    kwargs_value = parse_json("kwargs", kwargs)
    if not isinstance(args_value, list):
        raise InvalidInput('args must be a JSON array, such as [1, "x"]', field="args", line=1, column=1)
    if not isinstance(kwargs_value, dict):
        raise InvalidInput('kwargs must be a JSON object, such as {"key": 1}', field="kwargs", line=1, column=1)
    return args_value, kwargs_value


def parse_json(field: str, text: str) -> object:
    """A value that JSON carries, and that every worker can be given. Raises InvalidInput for anything else."""
    if len(text) > MAX_JSON:
        raise InvalidInput(f"{field}: {len(text)} characters are too many; at most {MAX_JSON}", field=field)
    try:
        value: object = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"{field}, line {error.lineno}, column {error.colno}: {error.msg}",
            field=field,
            line=error.lineno,
            column=error.colno,
        ) from None
    except RecursionError:
        raise InvalidInput(f"{field}: nested too deeply", field=field) from None
    except ValueError as error:
        raise InvalidInput(f"{field}: {error}", field=field) from None
    _check_value(field, value, 0)
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON; write a number, a string or null")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return result


def _check_value(field: str, value: object, level: int) -> None:
    """A value that every broker and worker can be given."""
    if level > MAX_JSON_LEVELS:
        raise InvalidInput(f"{field}: nested more than {MAX_JSON_LEVELS} levels deep", field=field)
    if isinstance(value, dict):
        for key, each in value.items():
            _check_value(field, key, level + 1)
            _check_value(field, each, level + 1)
    elif isinstance(value, list):
        for each in value:
            _check_value(field, each, level + 1)
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInput(f"{field}: half of a surrogate pair cannot be sent", field=field)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"{field}: a number is too large", field=field)


MISSING = "callbacks, the rest of a chain, group, priority and custom headers are not known and not sent again"
FROM_RESULT = f"kept by the result backend; {MISSING}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedArguments:
    """Arguments, with the task's real name and its queue where they were told too."""

    arguments: Arguments
    name: str | None = None
    queue: str | None = None


def from_result(task_id: str, stored: bytes) -> ReportedArguments:
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
    return ReportedArguments(
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


def from_worker(worker: str, said: object) -> ReportedArguments:
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
    return ReportedArguments(arguments=known(*values, "probable", INSPECT, reason), name=_text(rest.get("name")))


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
