"""The arguments of a task, and how certain they are.

A message that a worker captured (celery_monitor_capture) is *exact*: a retry sends it unchanged, whatever it contains.
Events do not contain arguments, only a text of them that the sender made with ``saferepr(maxlen=1024, maxlevels=3)``
(celery/utils/saferepr.py). That text is truncated, does not escape, and may be written by hand. So it is used only
where nothing can have been lost (``read_repr``), and is *probable* even then. An extended result backend and the
worker that has the task report the values themselves but not the message: also *probable*. Only JSON is read.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, NoReturn

from celery_monitor.core.captures import NO_TRUST, REPLACEMENT, Lossy, Trust, choose, read_repr
from celery_monitor.core.message import Unreadable, json_text
from celery_monitor.core.sanitize import NAME_LENGTH, Redactor
from celery_monitor.errors import InvalidInput
from celery_monitor.records import event
from celery_monitor.records.event import Message
from celery_monitor.records.task import Task

Fidelity = Literal["exact", "probable", "unknown", "edited"]  # edited: typed by a person, for one retry
EVENT = "event"  # the sender's repr, from an event
CAPTURE = "capture"  # the message, captured by a worker
QUEUE = "queue"  # the message, from its queue
DELIVERED = "unacked"  # the message, which the broker keeps until it is acknowledged
RESULT = "result"  # an extended result backend
INSPECT = "inspect"  # the worker that has the task
EDITOR = "editor"
MAX_JSON = 1_000_000  # characters accepted by the editor, each for args and kwargs
MAX_JSON_LEVELS = 100
MAX_KEY_SHOWN = 100  # characters of a key in an error

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A task's arguments. Texts and values are either all set or all ``None``: where they are unknown, or exact but in
    a format that is not read here. ``masked``: a secret is left out, so they cannot be sent. ``warning``: a message was
    announced that differs from the task's events.
    """

    args: str | None
    kwargs: str | None
    args_value: list[object] | None
    kwargs_value: dict[str, object] | None
    fidelity: Fidelity
    source: str | None
    reason: str
    masked: bool = False
    warning: str | None = None

    @property
    def known(self) -> bool:
        return self.fidelity != "unknown"


NOT_RESENT = "A retry won't include callbacks, chain, priority or headers"
FROM_EVENT = f"rebuilt from the event text. {NOT_RESENT}"
FROM_RESULT = f"from the result backend. {NOT_RESENT}"
NOT_REPORTED = "the sender reported no arguments: clients other than Celery omit the headers argsrepr and kwargsrepr"
NOT_SHOWN = "the arguments cannot be shown"
UNCHANGED = "A retry resends body, headers, callbacks and priority unchanged"


class _Origin(NamedTuple):
    """Where a message comes from, as a source and in words."""

    source: str
    words: str


def _origin(message: Message) -> _Origin:
    queue = message.queue or "its queue"
    match message.why:
        case event.WAITING:
            return _Origin(QUEUE, f"original message, from the queue {queue}. {UNCHANGED}")
        case event.READ:
            return _Origin(QUEUE, f"original message, from the queue {queue} when it was last read. {UNCHANGED}")
        case event.UNACKED:
            return _Origin(DELIVERED, f"original message, delivered to a worker and not acknowledged. {UNCHANGED}")
        case event.REMOVED:
            return _Origin(QUEUE, f"original message, removed from the queue {queue}. {UNCHANGED}")
        case _:
            return _Origin(CAPTURE, f"original message, captured by the worker. {UNCHANGED}")


def judge(task: Task, message: Message | None = None, trust: Trust = NO_TRUST) -> Arguments:
    """The arguments of a task, from its captured message, else from the stored texts."""
    return judge_message(task, message, trust)[0]


def judge_message(task: Task, message: Message | None, trust: Trust = NO_TRUST) -> tuple[Arguments, Message | None]:
    """Also the message that a retry may send, which may be another one of those that were announced."""
    if message is None:
        return _judge_texts(task), None
    choice = choose(message, task, trust)
    if choice.message is not None:
        return replace(_exact(choice.message), warning=choice.warning), choice.message
    arguments = _judge_texts(task)
    reason = f"{arguments.reason}; {choice.why_not}"
    return replace(arguments, reason=reason, warning=choice.warning), None


def _exact(message: Message) -> Arguments:
    """Sent unchanged. Its content is only shown if it is JSON."""
    origin = _origin(message)
    try:
        document = parse_json("body", json_text(message))
    except Unreadable as error:
        return _not_shown(origin, str(error))
    except InvalidInput:
        return _not_shown(origin, NOT_SHOWN)
    match document:
        case [list() as args, dict() as kwargs, *_]:
            return known(args, kwargs, "exact", origin.source, origin.words)
        case _:
            return _not_shown(origin, NOT_SHOWN)


def _not_shown(origin: _Origin, why: str) -> Arguments:
    return replace(_unknown(f"{origin.words}; {why}"), fidelity="exact", source=origin.source)


def without_secrets(arguments: Arguments, redactor: Redactor) -> Arguments:
    """The arguments as they may be shown: a captured message contains its secrets, stored events do not."""
    if arguments.args is None or arguments.kwargs is None:
        return arguments
    texts = [redactor.text(arguments.args), redactor.text(arguments.kwargs)]
    if texts == [arguments.args, arguments.kwargs]:
        return arguments
    try:
        args, kwargs = parse_json_arguments(*texts)
    except InvalidInput:
        hidden = replace(_unknown(arguments.reason), fidelity=arguments.fidelity, source=arguments.source)
        return replace(hidden, masked=True, warning=arguments.warning)
    shown = known(args, kwargs, arguments.fidelity, str(arguments.source), arguments.reason)
    return replace(shown, masked=True, warning=arguments.warning)


def _judge_texts(task: Task) -> Arguments:
    if task.args is None or task.kwargs is None:
        return _unknown("no event contained its arguments")
    if "" in {task.args, task.kwargs}:  # a worker reports empty headers argsrepr and kwargsrepr unchanged
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
    return known(list(args), kwargs, "probable", EVENT, FROM_EVENT)


def known(args: list[object], kwargs: dict[str, object], fidelity: Fidelity, source: str, reason: str) -> Arguments:
    """Arguments that can be sent, with their JSON for display."""
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
    """The arguments with JSON that a person typed for args, kwargs or both.

    Raises InvalidInput for text that is not JSON. Unknown arguments stay unknown until both are given.
    """
    if args is None and kwargs is None:
        return arguments
    args = arguments.args if args is None else args
    kwargs = arguments.kwargs if kwargs is None else kwargs
    if args is None or kwargs is None:
        return arguments
    edited = known(*parse_json_arguments(args, kwargs), "edited", EDITOR, "edited by hand")
    return replace(edited, warning=arguments.warning)


def is_whole(name: str) -> bool:
    """Whether a name was certainly stored unchanged: neither truncated nor with characters replaced."""
    return len(name) < NAME_LENGTH and REPLACEMENT not in name


def _unknown(reason: str) -> Arguments:
    return Arguments(
        args=None, kwargs=None, args_value=None, kwargs_value=None, fidelity="unknown", source=None, reason=reason
    )


def _within(field: str, text: str) -> object:
    try:
        return read_repr(text)
    except Lossy as error:
        raise Lossy(f"{field} {error}") from None


def parse_json_arguments(args: str, kwargs: str) -> tuple[list[object], dict[str, object]]:
    """Reads a JSON array and a JSON object that a person typed.

    Raises InvalidInput, with ``field`` and for a syntax error ``line`` and ``column`` (from 1) in its detail.
    """
    args_value = parse_json("args", args)
    kwargs_value = parse_json("kwargs", kwargs)
    if not isinstance(args_value, list):
        raise InvalidInput('args must be a JSON array, such as [1, "x"]', field="args", line=1, column=1)
    if not isinstance(kwargs_value, dict):
        raise InvalidInput('kwargs must be a JSON object, such as {"key": 1}', field="kwargs", line=1, column=1)
    return args_value, kwargs_value


def parse_json(field: str, text: str) -> object:
    """The value of a JSON text. Raises InvalidInput, also for what not every broker and worker accepts."""
    if len(text) > MAX_JSON:
        raise InvalidInput(f"{field}: {len(text)} characters are too many; the limit is {MAX_JSON}", field=field)
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
    raise ValueError(f"{word} is not JSON; write a number, a string or null")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"duplicate key {_first_twice(pairs)[:MAX_KEY_SHOWN]!r}")
    return result


def _first_twice(pairs: list[tuple[str, object]]) -> str:
    """The first key that has been there before."""
    seen: set[str] = set()
    return next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _check_value(field: str, value: object, level: int) -> None:
    if level > MAX_JSON_LEVELS:
        raise InvalidInput(f"{field}: nested more than {MAX_JSON_LEVELS} levels deep", field=field)
    if isinstance(value, dict):
        for key, each in value.items():
            _check_value(field, key, level + 1)
            _check_value(field, each, level + 1)
    elif isinstance(value, list):
        for each in value:
            _check_value(field, each, level + 1)
    elif isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
        raise InvalidInput(f"{field}: half of a surrogate pair cannot be sent", field=field)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"{field}: a number is too large", field=field)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedArguments:
    """Arguments from a result backend or a worker, with the task's real name and its queue if they were reported."""

    arguments: Arguments
    name: str | None = None
    queue: str | None = None


def from_result(task_id: str, stored: bytes) -> ReportedArguments:
    """Reads what a result backend stores with ``result_extended``. Raises Unreadable, with the reason."""
    try:
        meta = parse_json("result", stored.decode("utf-8"))
    except (UnicodeDecodeError, InvalidInput):
        raise Unreadable("the result backend's entry cannot be read as JSON") from None
    if not isinstance(meta, dict) or meta.get("task_id") != task_id:
        raise Unreadable("the result backend's entry belongs to another task")
    if {"args", "kwargs"} & set(meta.get("unread") or ()):
        raise Unreadable("the result backend stores the arguments as pickle, which is never opened")
    args, kwargs = _values(meta.get("args"), list), _values(meta.get("kwargs"), dict)
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise Unreadable("the result backend stores no arguments: that needs result_extended")
    return ReportedArguments(
        arguments=known(args, kwargs, "probable", RESULT, FROM_RESULT),
        name=_text(meta.get("name")),
        queue=_text(meta.get("queue")),
    )


def _values(stored: object, kind: type) -> object:
    """django-db stores the sender's repr. Raises Unreadable where the values cannot be rebuilt from it."""
    if not isinstance(stored, str):
        return stored
    try:
        values = read_repr(stored)
    except Lossy as error:
        raise Unreadable(f"the result backend stores only a text of its arguments: they {error}") from None
    values = list(values) if isinstance(values, tuple) else values
    if not isinstance(values, kind):
        raise Unreadable("the result backend's entry is not a text of arguments")
    return values


def from_worker(worker: str, answer: object) -> ReportedArguments:
    """Reads a worker's answer to ``query_task`` for one task: its state there, and the task. Raises Unreadable."""
    match answer:
        case [str(state), {"args": args, "kwargs": kwargs, **rest}]:
            reason = f"from {worker}, where the task is {state}. {NOT_RESENT}"
        case _:
            raise Unreadable(f"{worker} does not have the task")
    try:
        values = parse_json_arguments(_json("args", args), _json("kwargs", kwargs))
    except (InvalidInput, Lossy) as error:
        raise Unreadable(f"the arguments from {worker} cannot be used: {error}") from None
    return ReportedArguments(arguments=known(*values, "probable", INSPECT, reason), name=_text(rest.get("name")))


def _json(field: str, value: object) -> str:
    """Workers report the values, or in older versions the sender's repr of them."""
    if isinstance(value, str):
        value = _within(field, value)
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise Lossy(f"{field} contain what JSON cannot represent") from None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
